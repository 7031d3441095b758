"""What was promised of speed and memory, and whether the measured tables keep it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from page_text import NOT_MEASURED, Table, share, times, width_of

GPU = "a GPU"
OURS = ("relevance", "gated", "add")


@dataclass(frozen=True)
class Target:
    """Promised limit, the figure that decides it, and whether it is kept: None if nothing was measured."""

    promise: str
    figure: str
    kept: bool | None


def targets(tables: Sequence[Table]) -> list[Target]:
    """Return every target with the figure that decides it."""
    cpu = on_cpu(tables)
    gpu = [t for t in tables if not t["machine"]["device"].startswith("CPU")]
    found = [
        below(
            "relevance 2x4 adds at most 3 % to SD1.5 at 512 px, full size, on a CPU",
            cpu,
            "sd15",
            512,
            "relevance 2x4",
            0.03,
        ),
        below(
            "relevance 2x4 adds at most 5 % to the thin SD1.5 at 256 px, on a CPU",
            cpu,
            "sd15-thin",
            256,
            "relevance 2x4",
            0.05,
        ),
        below(f"relevance 2x4 adds at most 4 % to SDXL at 1024 px, on {GPU}", gpu, "sdxl", 1024, "relevance 2x4", 0.04),
        below(
            "relevance 8x16 adds at most 12 % to SD1.5 at 512 px, full size, on a CPU",
            cpu,
            "sd15",
            512,
            "relevance 8x16",
            0.12,
        ),
        below(
            "relevance 8x16 adds at most 12 % to the thin SD1.5 at 256 px, on a CPU",
            cpu,
            "sd15-thin",
            256,
            "relevance 8x16",
            0.12,
        ),
    ]
    for size in ("2x4", "8x16"):
        row = surest(cpu, "sd15-thin", 256, f"relevance {size}", "beyond_half")
        promise = f"relevance {size} adds at most half of what ipadapter-plus {size} adds (thin SD1.5, 256 px, CPU)"
        found.append(
            Target(
                promise,
                NOT_MEASURED if row is None else f"{share(row)} beyond half",
                None if row is None else row["high"] <= 0,
            )
        )
    for tokens in (4, 16):
        row = surest(cpu, "sd15-thin", 256, f"relevance 8x{tokens}", "growth", f"relevance 1x{tokens}")
        promise = f"each further subject of {tokens} tokens adds less than 1.5 % of a step (thin SD1.5, 256 px, CPU)"
        found.append(
            Target(promise, NOT_MEASURED if row is None else share(row), None if row is None else row["high"] < 0.015)
        )
    ours = [
        row["counts"]
        for t in tables
        if t["kind"] == "steps"
        for name, row in t["rows"].items()
        if name.startswith(OURS)
    ]
    scalars, kept = (max((counts[key] for counts in ours), default=0) for key in ("scalars", "kept"))
    found.append(
        Target(
            "no number is read from a tensor in a step (a GPU would wait)",
            f"{scalars} at most in {len(ours)} runs",
            scalars == 0 if ours else None,
        )
    )
    found.append(
        Target(
            "no allocation grows over steps",
            f"{kept} bytes at most in 8 steps of {len(ours)} runs",
            kept <= 0 if ours else None,
        )
    )
    waits = [
        t["rows"][name]["counts"]["waits"] - t["rows"]["text"]["counts"]["waits"]
        for t in gpu
        if t["kind"] == "steps"
        for name in t["rows"]
        if name.startswith(OURS)
    ]
    found.append(
        Target(
            f"no step waits for {GPU} more often than with text alone",
            f"{max(waits)} more at most in {len(waits)} runs" if waits else NOT_MEASURED,
            max(waits) <= 0 if waits else None,
        )
    )
    promise = "the gated layers of two subjects at 512 px are 1.3 times as fast as in the published code"
    rows = [
        row["times"]
        for t in tables
        if t["kind"] == "fusers" and t["pixels"] == 512
        for row in t["rows"]
        if row["tokens"] == 512
    ]
    found += [Target(promise, times(row), row["low"] >= 1.3) for row in rows] or [Target(promise, NOT_MEASURED, None)]
    return found


def below(promise: str, tables: Iterable[Table], base: str, pixels: int, run: str, bound: float) -> Target:
    """Return the target that a run adds at most `bound`, a share of a step of text alone."""
    ratio = surest(tables, base, pixels, run, "ratio")
    return Target(
        promise,
        NOT_MEASURED if ratio is None else share(ratio, 1),
        None if ratio is None else ratio["high"] - 1 <= bound,
    )


def on_cpu(tables: Iterable[Table]) -> list[Table]:
    """Return the tables of steps and of gated layers measured in float32 on a CPU."""
    return [
        t
        for t in tables
        if t["machine"]["device"].startswith("CPU") and t["dtype"] == "float32" and t["kind"] != "encode"
    ]


def surest(tables: Iterable[Table], base: str, pixels: int, run: str, *what: str) -> Mapping[str, Any] | None:
    """Return an interval of a run, found by the keys `what`. If there are several measurements, take the narrowest,
    whatever its values. None if there is none.
    """
    same = [
        t["rows"][run]
        for t in tables
        if t["kind"] == "steps" and (t["base"], t["pixels"]) == (base, pixels) and run in t["rows"]
    ]
    for key in what:
        same = [row[key] for row in same if key in row]
    return min(same, key=width_of, default=None)
