"""The results page, written from results.json and rerun.json and from nothing else."""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerun_page import Records, section

PICTURES = (4, 8, 28)  # steps
NOT_MEASURED = "not measured"
GPU = "a GPU"
OURS = ("relevance", "gated", "add")
ASKED = (
    *((base, 512, "float32", "CPU") for base in ("sd15", "sd15-thin")), ("sd15-thin", 256, "float32", "CPU"), ("sdxl-thin", 1024, "float32", "CPU"),
    *((base, pixels, dtype, GPU) for base, pixels in (("sd15", 512), ("sdxl", 1024)) for dtype in ("float16", "bfloat16")),
)
Table = Mapping[str, Any]

HEAD = """# What references cost

Written by `benchmarks/run.py`, by a machine: change the scripts, not this page.

    python benchmarks/run.py --base sd15-thin --pixels 256 --ipadapter-plus DIR

A figure is what a whole guided prediction (positive and negative, batch 1) takes more than the same prediction with the prompt alone, on a real ComfyUI. Both
are timed beside each other in one process, in all orders in turn, and what counts is the median of their ratios; in brackets the interval in which the true
median lies with 95 % (order statistics, which assume nothing about the distribution). A target is judged by the interval's unfavourable end, of the narrowest
interval where there are several. All weights are random, of the published shapes; `-thin` models have every block of the real one, all 320 wide.
`relevance 2x4` is two subjects of 4 image tokens each by Apply Image Attention with merge relevance, the trained gain f, names of three tokens and the middle
block included; `gated 2` two boxes by Apply Gated Adapter with a GLIGEN text-box file, `core-gligen 2` the same file by ComfyUI's own nodes; `ipadapter-plus
2x4` two stacked Apply nodes of ComfyUI_IPAdapter_plus, which leave the middle block alone. Seconds for whole pictures are added up from the photos, the first
step and the others, the photos always those of an adapter of 4 tokens. What is least possible counts what no arrangement can avoid, at this machine's own rates
for large matrix products and copies. MB are 1 000 000 bytes. ComfyUI copies what hangs on a MODEL with every further node: what n
stacked nodes of that pack bring is held n (n + 1) / 2 times.
"""


@dataclass(frozen=True)
class Target:
    """What was promised, the figure that decides, and whether it is kept; None where nothing was measured."""

    promise: str
    figure: str
    kept: bool | None


def write_page(results: Path, page: Path) -> None:
    """Write the page for a results file, with the edits and re-runs of the rerun.json beside it."""
    again = results.with_name("rerun.json")
    records = json.loads(again.read_text(encoding="utf-8")) if again.exists() else {}
    page.write_text(render(json.loads(results.read_text(encoding="utf-8")), records), encoding="utf-8")


def render(tables: Sequence[Table], records: Records | None = None) -> str:
    """The whole page."""
    parts = [HEAD, "## Targets\n", lines(("promised", "measured", "kept"), [(t.promise, t.figure, verdict(t.kept)) for t in targets(tables)])]
    parts += size_section(tables)
    for table in tables:
        parts += [f"## {heading(table)}\n", *{"steps": step_section, "encode": encode_section, "fusers": fuser_section}[table["kind"]](table, tables)]
    return "\n".join([*parts, *asked_section(tables), *([section(records)] if records else [])])


def in_readme(tables: Sequence[Table]) -> str:
    """The two figures that matter most, as a sentence for the README; '' where they were not measured together, on a CPU in float32."""
    names = [f"{who} {size}" for who in ("relevance", "ipadapter-plus") for size in ("2x4", "8x16")]
    whole = [t for t in on_cpu(tables) if t["kind"] == "steps" and (t["base"], t["pixels"]) == ("sd15-thin", 256) and all(name in t["rows"] for name in names)]
    if not whole:
        return ""
    table = min(whole, key=lambda t: width_of(t["rows"][names[0]]["ratio"]))
    rows = [table["rows"][name] for name in names]
    ours, theirs = rows[:2], rows[2:]
    steps = [share(row["ratio"], 1) for row in (ours[0], theirs[0])]
    held = [f"{row['held'] / 1e6:.0f} MB" for row in (ours[1], theirs[1])]
    return (f"Two subjects of 4 image tokens each make a sampling step longer by **{steps[0]}**, two stacked nodes of ComfyUI_IPAdapter_plus by {steps[1]}; "
            f"eight subjects of 16 tokens, as plus files have them, hold **{held[0]}**, eight nodes there {held[1]}. "
            f"Medians with 95 % intervals, ComfyUI {table['machine']['comfyui']} on a CPU, with random weights in an SD1.5 whose blocks are all 320 wide, at 256 px; "
            "[all figures, and what was not measured](benchmarks/RESULTS.md).")


def written_into(readme: str, sentence: str) -> str:
    """The README with the sentence between its two marks. Raises ValueError where they are not there once."""
    found, count = re.subn(r"(<!-- speed: .*?-->\n).*?(<!-- end of speed -->)", lambda m: f"{m[1]}{sentence}\n{m[2]}", readme, flags=re.S)
    if count != 1:
        raise ValueError(f"README.md: expected one pair of marks 'speed', found {count}")
    return found


def heading(table: Table) -> str:
    """What a table is of."""
    what = {"steps": "{base}, {pixels} px, {dtype}", "encode": "Encoding photos, {dtype}", "fusers": "The gated layers of SD1.5, {pixels} px, {dtype}"}[table["kind"]]
    return f"{what.format(**table)}, {table['machine']['device']}" + (f", {table['pairs']} rounds" if table["kind"] == "steps" else "")


# ---- sections ----------------------------------------------------------------------------------------------------------------------------------


def step_section(table: Table, tables: Sequence[Table]) -> list[str]:
    """Costs of one base at one size."""
    rows, rates = table["rows"], table["rates"]
    columns = ("run", "a step costs more", "pairs", "s a step", "first step, s", *(f"{n} steps, s" for n in PICTURES), "weights and tokens, MB", "peak of a step, MB", "operators",
               "numbers read", "growth over 8 steps, B", "least arithmetic added, GFLOP", "least traffic added, MB", "least possible of what is added")
    body = []
    for name, row in rows.items():
        count, step = row["counts"], row["seconds"]["median"]
        encode = encode_seconds(tables, table, name)
        whole = [NOT_MEASURED if encode is None else f"{encode + row['first'] + (n - 1) * step:.1f}" for n in PICTURES]
        pairs = str(row.get("ratio", {}).get("count", ""))
        body.append((name, share(row.get("ratio"), 1), pairs, f"{step:.3g}", f"{row['first']:.3g}", *whole, f"{row['held'] / 1e6:.1f}", f"{count['peak'] / 1e6:.0f}",
                     f"{count['operators']}", f"{count['scalars']}", f"{count['kept']}", *amounts(row), least(row, rates)))
        if count["launches"] is not None:
            body[-1] += (f"{count['launches']}", f"{count['waits']}")
    columns += ("kernel launches", "waits") * (rows["text"]["counts"]["launches"] is not None)
    about = machine_line(table)
    gpu = "" if rows["text"]["counts"]["launches"] is not None else f"Kernel launches, waits and memory of {GPU}: {NOT_MEASURED}.\n"
    growing = [(few, many, share(found)) for many, row in rows.items() for few, found in row.get("growth", {}).items()]
    grown = ["Each further subject adds, of a step of text alone:\n", lines(("from", "to", "a subject more"), growing)] if growing else []
    return [about, lines(columns, body), gpu, *grown]


def encode_section(table: Table, tables: Sequence[Table]) -> list[str]:
    """Seconds of looking at the photos."""
    body = [(name, *(f"{table['seconds'][name].get(str(n), float('nan')):.1f}" for n in table["photos"])) for name in table["seconds"]]
    return [machine_line(table), f"{table['encoder']}, seconds for as many photos, one a subject:\n", lines(("", *map(str, table["photos"])), body)]


def fuser_section(table: Table, tables: Sequence[Table]) -> list[str]:
    """The gated layers in both forms."""
    body = [(f"{row['tokens']} object tokens", f"{row['published']['median']:.3g}", f"{row['ours']['median']:.3g}", times(row["times"])) for row in table["rows"]]
    return [machine_line(table), "All 16 layers, two rows, seconds:\n", lines(("", "as published", "here", "faster"), body)]


def size_section(tables: Sequence[Table]) -> list[str]:
    """How cost grows with the picture: the runs of a base that were measured at several sizes on the same device, of each the surest."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for table in tables:
        for name, row in table["rows"].items() if table["kind"] == "steps" else ():
            if "ratio" in row:
                sizes = found.setdefault((", ".join((table["base"], table["dtype"], table["machine"]["device"])), name), {})
                sizes[table["pixels"]] = min(sizes.get(table["pixels"], row), row, key=lambda r: width_of(r["ratio"]))
    several = ((who, sorted(sizes.items())) for who, sizes in found.items() if len(sizes) > 1)
    body = [(*who, f"{pixels} px", share(row["ratio"], 1), f"{1000 * seconds_added(row):.0f} ms") for who, sizes in several for pixels, row in sizes]
    return ["## How cost grows with the picture\n", lines(("base", "run", "size", "a step costs more", "that is"), body)] if body else []


def asked_section(tables: Sequence[Table]) -> list[str]:
    """Every base, size and dtype that belongs here, and whether it was measured."""
    there = {(t["base"], t["pixels"], t["dtype"], "CPU" if t["machine"]["device"].startswith("CPU") else GPU) for t in tables if t["kind"] == "steps"}
    body = [(base, f"{pixels} px", dtype, place, "yes" if (base, pixels, dtype, place) in there else NOT_MEASURED) for base, pixels, dtype, place in ASKED]
    body += [(f"partial loading on {GPU}, {flag}", "", "", GPU, NOT_MEASURED) for flag in ("--lowvram", "--novram")]
    return ["## What was measured, and what was not\n", lines(("base", "size", "numbers", "on", "measured"), body)]


# ---- targets -----------------------------------------------------------------------------------------------------------------------------------


def targets(tables: Sequence[Table]) -> list[Target]:
    """Every promise, with what decides it."""
    cpu = on_cpu(tables)
    gpu = [t for t in tables if not t["machine"]["device"].startswith("CPU")]
    found = [
        below("relevance 2x4 adds at most 3 % to SD1.5 at 512 px, full size, on a CPU", cpu, "sd15", 512, "relevance 2x4", 0.03),
        below("relevance 2x4 adds at most 5 % to the thin SD1.5 at 256 px, on a CPU", cpu, "sd15-thin", 256, "relevance 2x4", 0.05),
        below(f"relevance 2x4 adds at most 4 % to SDXL at 1024 px, on {GPU}", gpu, "sdxl", 1024, "relevance 2x4", 0.04),
        below("relevance 8x16 adds at most 12 % to SD1.5 at 512 px, full size, on a CPU", cpu, "sd15", 512, "relevance 8x16", 0.12),
        below("relevance 8x16 adds at most 12 % to the thin SD1.5 at 256 px, on a CPU", cpu, "sd15-thin", 256, "relevance 8x16", 0.12),
    ]
    for size in ("2x4", "8x16"):
        row = surest(cpu, "sd15-thin", 256, f"relevance {size}", "beyond_half")
        promise = f"relevance {size} adds at most half of what ipadapter-plus {size} adds (thin SD1.5, 256 px, CPU)"
        found.append(Target(promise, NOT_MEASURED if row is None else f"{share(row)} beyond half", None if row is None else row["high"] <= 0))
    for tokens in (4, 16):
        row = surest(cpu, "sd15-thin", 256, f"relevance 8x{tokens}", "growth", f"relevance 1x{tokens}")
        promise = f"each further subject of {tokens} tokens adds less than 1.5 % of a step (thin SD1.5, 256 px, CPU)"
        found.append(Target(promise, NOT_MEASURED if row is None else share(row), None if row is None else row["high"] < 0.015))
    ours = [row["counts"] for t in tables if t["kind"] == "steps" for name, row in t["rows"].items() if name.startswith(OURS)]
    scalars, kept = (max((counts[key] for counts in ours), default=0) for key in ("scalars", "kept"))
    found.append(Target("no number is read from a tensor in a step (a GPU would wait)", f"{scalars} at most in {len(ours)} runs", scalars == 0 if ours else None))
    found.append(Target("no allocation grows over steps", f"{kept} bytes at most in 8 steps of {len(ours)} runs", kept <= 0 if ours else None))
    waits = [t["rows"][name]["counts"]["waits"] - t["rows"]["text"]["counts"]["waits"] for t in gpu if t["kind"] == "steps" for name in t["rows"] if name.startswith(OURS)]
    found.append(Target(f"no step waits for {GPU} more often than with text alone", f"{max(waits)} more at most in {len(waits)} runs" if waits else NOT_MEASURED,
                        max(waits) <= 0 if waits else None))
    promise = "the gated layers of two subjects at 512 px are 1.3 times as fast as in their published form"
    rows = [row["times"] for t in tables if t["kind"] == "fusers" and t["pixels"] == 512 for row in t["rows"] if row["tokens"] == 512]
    found += [Target(promise, times(row), row["low"] >= 1.3) for row in rows] or [Target(promise, NOT_MEASURED, None)]
    return found


def below(promise: str, tables: Iterable[Table], base: str, pixels: int, run: str, bound: float) -> Target:
    """A promise that a run adds no more than a share of a step."""
    ratio = surest(tables, base, pixels, run, "ratio")
    return Target(promise, NOT_MEASURED if ratio is None else share(ratio, 1), None if ratio is None else ratio["high"] - 1 <= bound)


def on_cpu(tables: Iterable[Table]) -> list[Table]:
    """Those of steps and layers in float32 on a CPU."""
    return [t for t in tables if t["machine"]["device"].startswith("CPU") and t["dtype"] == "float32" and t["kind"] != "encode"]


def surest(tables: Iterable[Table], base: str, pixels: int, run: str, *what: str) -> Mapping[str, Any] | None:
    """An interval of a run, by its keys; where several were measured the narrowest, whatever it says; None where nobody measured it."""
    same = [t["rows"][run] for t in tables if t["kind"] == "steps" and (t["base"], t["pixels"]) == (base, pixels) and run in t["rows"]]
    for key in what:
        same = [row[key] for row in same if key in row]
    return min(same, key=width_of, default=None)


# ---- parts -------------------------------------------------------------------------------------------------------------------------------------


def encode_seconds(tables: Sequence[Table], table: Table, run: str) -> float | None:
    """What the photos of a run take on the same device, None where that was not measured; 0 for runs without photos."""
    kind, _, size = run.partition(" ")
    if kind not in ("relevance", "add", "ipadapter-plus"):
        return 0.0
    who = "ipadapter-plus" if kind == "ipadapter-plus" else "troupe"
    photos = size.split("x")[0]
    same = (t for t in tables if t["kind"] == "encode" and t["machine"]["device"] == table["machine"]["device"])
    return next((t["seconds"].get(who, {}).get(photos) for t in same), None)


def amounts(row: Mapping[str, Any]) -> tuple[str, str]:
    """The least arithmetic and the least traffic of a row, '' where they are not known."""
    theory = row.get("theory")
    return (f"{theory['flops'] / 1e9:.3g}", f"{theory['bytes'] / 1e6:.3g}") if theory else ("", "")


def least(row: Mapping[str, Any], rates: Mapping[str, float]) -> str:
    """The least possible time, what is added, and what share of that the least is, where the interval says that anything is added."""
    if "theory" not in row:
        return ""
    theory = max(row["theory"]["flops"] / rates["flops"], row["theory"]["bytes"] / rates["bytes"])
    spent = seconds_added(row)
    part = f" ({theory / spent:.0%})" if row["ratio"]["low"] > 1 and spent > theory else ""  # where noise is larger than what is added, a share says nothing
    return f"{theory * 1000:.3g} ms of {spent * 1000:.3g} ms{part}"


def seconds_added(row: Mapping[str, Any]) -> float:
    """Of a step, over text alone."""
    return row["seconds"]["median"] * (1 - 1 / row["ratio"]["median"])


def share(found: Mapping[str, float] | None, of: float = 0.0) -> str:
    """An interval in percent, `of` taken away."""
    return "" if found is None else f"{100 * (found['median'] - of):+.1f} % [{100 * (found['low'] - of):+.1f}, {100 * (found['high'] - of):+.1f}]"


def width_of(found: Mapping[str, float]) -> float:
    """How far apart an interval's ends are."""
    return found["high"] - found["low"]


def times(found: Mapping[str, float]) -> str:
    """An interval of factors."""
    return f"{found['median']:.2f} times [{found['low']:.2f}, {found['high']:.2f}]"


def verdict(kept: bool | None) -> str:
    """Yes, no, or not measured."""
    return NOT_MEASURED if kept is None else "yes" if kept else "**no**"


def machine_line(table: Table) -> str:
    """On what, with what, when."""
    m = table["machine"]
    pairs = f"; {table['pairs']} pairs" if table["kind"] == "fusers" else ""
    orders = "; text alone always stood between its two neighbours" if table["kind"] == "steps" and "orders" not in table else ""
    return f"{m['cpu']}; {m['device']}; ComfyUI {m['comfyui']}, torch {m['torch']}, Python {m['python']}; {m['date']}{pairs}{orders}.\n"


def lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
