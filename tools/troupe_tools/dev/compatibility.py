"""The README's table of ComfyUI versions, from what the host tests did on each."""

from __future__ import annotations

import inspect
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..pack import ROOT
from .markdown_pages import markdown_table, write_passage

RECORDS, README = ROOT / "benchmarks" / "compatibility.json", ROOT / "README.md"
FACTS = ("comfyui", "frontend", "python", "torch", "system", "device", "commit")  # in this order in a record
HOST = FACTS[:-1]  # what makes two records two
OUTCOMES = ("passed", "failed", "skipped")
HEAD = ("ComfyUI", "pinned front end", "Python, PyTorch", "on", "tests passed", "failed", "skipped", "run")
Record = dict[str, Any]


class ResultError(Exception):
    """A results file that cannot be recorded."""


def facts_of_host() -> dict[str, str]:
    """Return what the host in this process says of itself, and the pack's own commit. Needs the host to be started."""
    import comfy.model_management
    import comfyui_version
    import torch

    front_end = pinned_frontend(Path(inspect.getfile(comfyui_version)).parent)
    return {
        "comfyui": comfyui_version.__version__,
        "frontend": front_end,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "device": comfy.model_management.get_torch_device().type,
        "commit": commit(),
    }


def pinned_frontend(host: Path) -> str:
    """Return the version of comfyui-frontend-package that a host's requirements.txt pins; 'none' without such
    a line.
    """
    path = host / "requirements.txt"
    found = (
        re.search(r"^comfyui-frontend-package==(\S+)", path.read_text(encoding="utf-8"), re.M)
        if path.is_file()
        else None
    )
    return found[1] if found else "none"


def commit() -> str:
    """Return the checked out commit, short, with `+` behind it where files have changed since; 'unknown'
    without git.
    """
    try:
        found, changed = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603, S607 - git, with our own words
            for words in (("rev-parse", "--short=9", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found}+" if changed else found


def read(path: Path) -> Record:
    """Read the record of one results file: FACTS, the date and, for each test file, how many tests had which outcome.
    Raises ResultError.
    """
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))  # noqa: S314 - pytest's own, of a run that was started here
    except (OSError, ElementTree.ParseError) as error:
        raise ResultError(
            f"{path}: expected the results of a pytest run with --junitxml, found nothing that can be read "
            f"({type(error).__name__}). Run the tests again."
        ) from error
    told = {p.get("name"): p.get("value") for suite in suites for p in suite.iter("property")}
    lacking = [name for name in FACTS if name not in told]
    if lacking:
        raise ResultError(
            f"{path}: expected the host's {', '.join(lacking)}, found no such property. Run tests of "
            "tests/host with a ComfyUI."
        )
    outcomes: dict[tuple[str, str], str] = {}
    for case in (case for suite in suites for case in suite.iter("testcase")):
        test = case.get("classname", ""), case.get("name", "")
        bad = case.find("failure") is not None or case.find("error") is not None
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        # a test that fails and cannot be cleared away is there twice
        outcomes[test] = "failed" if outcomes.get(test) == "failed" else outcome
    files: dict[str, dict[str, int]] = {}
    for (file, _), outcome in sorted(outcomes.items()):
        files.setdefault(file.split(".")[-1], dict.fromkeys(OUTCOMES, 0))[outcome] += 1
    return {**{name: told[name] for name in FACTS}, "date": suites[0].get("timestamp", "")[:10], "files": files}


def merged(records: Sequence[Record], found: Iterable[Record]) -> list[Record]:
    """Return the records with new ones: of the same host, the same commit is filled up and another one replaced, as is
    one with changes, which may or may not be the same. Newest ComfyUI first.
    """
    kept = {tuple(record[name] for name in HOST): record for record in records}
    for record in found:
        key = tuple(record[name] for name in HOST)
        before = kept.get(key)
        files = record["files"]
        if before and before["commit"] == record["commit"] and not record["commit"].endswith(("+", "unknown")):
            files = {**before["files"], **files}
        kept[key] = {**record, "files": dict(sorted(files.items()))}
    return sorted(
        kept.values(),
        key=lambda record: ([int(n) for n in re.findall(r"\d+", record["comfyui"])], record["python"], record["torch"]),
        reverse=True,
    )


def total(record: Record, outcome: str) -> int:
    """Return the number of tests with that outcome."""
    return sum(counts[outcome] for counts in record["files"].values())


def table(records: Sequence[Record]) -> str:
    """Return the table in Markdown, a row a record."""
    rows = []
    for r in records:
        where = [name for name, counts in r["files"].items() if counts["failed"]]
        failed = str(total(r, "failed")) + (f" ({', '.join(where)})" if where else "")
        files = len(r["files"])
        run = f"{r['date']}, {files} test file{'' if files == 1 else 's'}, commit {r['commit']}"
        rows.append(
            (
                r["comfyui"],
                r["frontend"],
                f"{r['python']}, {r['torch']}",
                f"{r['system']}, {r['device']}",
                str(total(r, "passed")),
                failed,
                str(total(r, "skipped")),
                run,
            )
        )
    return markdown_table(HEAD, rows)


def main(paths: Sequence[str]) -> None:
    """Add the results files to the records, and write the table into the page. Raises ResultError."""
    records = json.loads(RECORDS.read_text(encoding="utf-8")) if RECORDS.exists() else []
    records = merged(records, [read(Path(path)) for path in paths])
    RECORDS.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    try:
        write_passage(README, "compatibility", table(records))
    except ValueError as error:
        raise ResultError(str(error)) from error
    print(table(records))
