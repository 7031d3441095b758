"""Figures and tables as the results page writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NOT_MEASURED = "not measured"
Table = Mapping[str, Any]


def encode_seconds(tables: Sequence[Table], table: Table, run: str) -> float | None:
    """Return the seconds that encoding a run's photos takes on the same device: None if not measured, 0 for runs
    without photos.
    """
    kind, _, size = run.partition(" ")
    if kind not in ("relevance", "add", "ipadapter-plus"):
        return 0.0
    who = "ipadapter-plus" if kind == "ipadapter-plus" else "troupe"
    photos = size.split("x")[0]
    same = (t for t in tables if t["kind"] == "encode" and t["machine"]["device"] == table["machine"]["device"])
    return next((t["seconds"].get(who, {}).get(photos) for t in same), None)


def amounts(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return the least arithmetic (GFLOP) and the least traffic (MB) of a row as text, '' if they are unknown."""
    theory = row.get("theory")
    return (f"{theory['flops'] / 1e9:.3g}", f"{theory['bytes'] / 1e6:.3g}") if theory else ("", "")


def least(row: Mapping[str, Any], rates: Mapping[str, float]) -> str:
    """Return as text the least possible time and the measured time that a run adds to a step, in ms. Their ratio is
    included only if the interval shows that the run adds time and the measured time is the longer one. '' if the least
    possible time is unknown.
    """
    if "theory" not in row:
        return ""
    theory = max(row["theory"]["flops"] / rates["flops"], row["theory"]["bytes"] / rates["bytes"])
    spent = seconds_added(row)
    # where noise is larger than what is added, a share says nothing
    part = f" ({theory / spent:.0%})" if row["ratio"]["low"] > 1 and spent > theory else ""
    return f"{theory * 1000:.3g} ms of {spent * 1000:.3g} ms{part}"


def seconds_added(row: Mapping[str, Any]) -> float:
    """Return the seconds that a run adds to a step of text alone."""
    return row["seconds"]["median"] * (1 - 1 / row["ratio"]["median"])


def share(found: Mapping[str, float] | None, of: float = 0.0) -> str:
    """Return an interval in percent as text, after subtracting `of`; '' for None."""
    return (
        ""
        if found is None
        else f"{100 * (found['median'] - of):+.1f} % [{100 * (found['low'] - of):+.1f}, "
        f"{100 * (found['high'] - of):+.1f}]"
    )


def width_of(found: Mapping[str, float]) -> float:
    """Return the width of an interval."""
    return found["high"] - found["low"]


def times(found: Mapping[str, float]) -> str:
    """Return an interval of factors as text."""
    return f"{found['median']:.2f} times [{found['low']:.2f}, {found['high']:.2f}]"


def verdict(kept: bool | None) -> str:
    """Return 'yes', 'no' in bold, or that it was not measured."""
    return NOT_MEASURED if kept is None else "yes" if kept else "**no**"


def machine_line(table: Table) -> str:
    """Return a line with the hardware, the software versions and the date of a measurement."""
    m = table["machine"]
    pairs = f"; {table['pairs']} pairs" if table["kind"] == "fusers" else ""
    orders = (
        "; text alone was always timed between its two neighbours"
        if table["kind"] == "steps" and "orders" not in table
        else ""
    )
    return (
        f"{m['cpu']}; {m['device']}; ComfyUI {m['comfyui']}, torch {m['torch']}, Python {m['python']}; "
        f"{m['date']}{pairs}{orders}.\n"
    )
