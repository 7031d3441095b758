"""What rerun.json says, as a section of the results page and as a sentence for the README."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from troupe_tools.dev.markdown_pages import markdown_table

OURS, THEIRS = "two Apply Image Attention", "two IPAdapter Advanced"
EDITS = ("edit", "differs from a fresh start by up to", "the edit itself changes up to")
Records = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]  # version -> kind -> edit -> difference, effect

HEAD = """## Edit, run again

    python benchmarks/rerun.py --ipadapter-plus DIR

Ten edits, one after another, in one server: a number is changed and set back, a node is taken out and put back. After each one the latent is compared with the one
that a newly started server makes of the same prompt. Two nodes are stacked on one MODEL, as is usual for two subjects; the models are small and random, the
machine's CPU computes the same bits each time. A difference means that the picture depends on earlier runs. The last column shows what the edit itself changes.
"""


def section(records: Records) -> str:
    """Return the section with each edit whose result differs on some ComfyUI, '' without records."""
    if not records:
        return ""
    versions = sorted(records, key=_number)
    rows = [
        ("nodes", *(f"ComfyUI {version}" for version in versions)),
        *((kind, *(_count(records[v].get(kind)) for v in versions)) for kind in (OURS, THEIRS)),
    ]
    parts = [HEAD, markdown_table(rows[0], rows[1:])]
    for version in versions:
        for kind, edits in records[version].items():
            wrong = [
                (edit, f"{one['difference']:.3g}", f"{one['effect']:.3g}")
                for edit, one in edits.items()
                if one["difference"]
            ]
            if wrong:
                parts.append(f"{kind}, ComfyUI {version}:\n\n{markdown_table(EDITS, wrong)}")
    return "\n".join(parts)


def readme_sentence(records: Records) -> str:
    """Return the figure for the README's first screen, '' unless both packs were measured on the newest ComfyUI."""
    newest = max(records, key=_number, default="")
    both = records.get(newest, {})
    if not {OURS, THEIRS} <= both.keys():
        return ""
    worse = sum(any(one["difference"] for one in kinds.get(THEIRS, {}).values()) for kinds in records.values())
    ours, theirs = (sum(one["difference"] == 0 for one in both[kind].values()) for kind in (OURS, THEIRS))
    alike = all(one["difference"] == 0 for kinds in records.values() for one in kinds.get(OURS, {}).values())
    older = len(records) - 1
    others = f", as on {older} older version{'s' if older > 1 else ''}" if alike and older else ""
    return (
        f"Edit and run again: after ten edits in a running ComfyUI {newest}, **{ours} of 10** pictures with "
        "two Troupe nodes are bit-identical "
        f"to those of a fresh start{others}; "
        f"with two stacked IPAdapter nodes {theirs} of 10 are, and pictures differ on {worse} of {len(records)} "
        "versions "
        "([how, and the others](benchmarks/RESULTS.md#edit-run-again))."
    )


def _count(edits: Mapping[str, Any] | None) -> str:
    if edits is None:
        return "not measured"
    return f"{sum(one['difference'] == 0 for one in edits.values())} of {len(edits)} as after a fresh start"


def _number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
