"""Measures how many pictures a minute an evaluation gets from one ComfyUI server and from two on this machine, and
writes the table of docs/evaluation_hosts.md.

usage: COMFYUI_PATH=/path/to/ComfyUI OMP_NUM_THREADS=1 python benchmarks/hosts.py [rounds]

The rehearsal models, one torch thread for each server, so that two servers have two cores. Rounds alternate, so that
other work on the machine slows each arrangement alike; every round has seeds of its own, so that nothing is cached.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
PAGE = ROOT / "docs" / "evaluation_hosts.md"
MARKS = ("<!-- hosts: measured by benchmarks/hosts.py -->\n", "<!-- end of hosts -->\n")
PICTURES, STEPS = 8, 20
KINDS = ("cat", "robot")


def tasks(seeds: Any, amount: int) -> list[Any]:
    """Return tasks with two subjects each, at new seeds."""
    from troupe.evaluation.tasks import Method, Subject, Task

    subjects = tuple(Subject(kind, (f"{kind}.png",)) for kind in KINDS)
    method = Method("relevance", {"merge": "relevance", "steps": STEPS})
    return [Task("hosts", "pair", method, "a cat and a robot on grass", subjects, next(seeds)) for _ in range(amount)]


def measure(rounds: int) -> tuple[dict[str, list[float]], float]:
    """Return the pictures a minute of each round, for each arrangement, and the machine's median load average."""
    from troupe.evaluation.engines.comfyui import ComfyUIEngine
    from troupe.evaluation.pool import run_tasks
    from troupe.rehearsal.cast import CAST
    from troupe.rehearsal.world import reference
    from troupe_tools.engine.comfyui import find_comfyui, usable_host
    from troupe_tools.engine.host_server import HostServer

    path = find_comfyui()
    if path is None:
        sys.exit("This needs a ComfyUI: set COMFYUI_PATH.")
    host, seeds = usable_host(path), count()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for kind in KINDS:
            Image.fromarray(reference(CAST[kind])).save(folder / f"{kind}.png")
        servers = [
            stack.enter_context(
                HostServer(host, folder / f"host_{n}", {}, lambda text: None, environment={"OMP_NUM_THREADS": "1"})
            )
            for n in (1, 2)
        ]

        def engines(amount: int, slots: int) -> list[ComfyUIEngine]:
            return [
                ComfyUIEngine(server.url, folder, settings={"checkpoint": "rehearsal"}, slots=slots)
                for server in servers[:amount]
            ]

        arrangements = {
            "one server": engines(1, 1),
            "one server, `slots=2`": engines(1, 2),
            "two servers": engines(2, 1),
        }
        run_tasks(tasks(seeds, 8), arrangements["two servers"], folder / "results")  # loads the models
        found: dict[str, list[float]] = {name: [] for name in arrangements}
        loads: list[float] = []
        for _ in range(rounds):
            for name, chosen in arrangements.items():
                todo, started = tasks(seeds, PICTURES), time.monotonic()
                loads.append(os.getloadavg()[0])
                rows = run_tasks(todo, chosen, folder / "results")
                found[name].append(60 * PICTURES / (time.monotonic() - started))
                if any(row.error for row in rows.values()):
                    sys.exit(f"A picture failed: {[row.error for row in rows.values() if row.error][0]}")
                print(f"{name}: {found[name][-1]:.1f} pictures a minute", flush=True)
        return found, statistics.median(loads)


def table(found: dict[str, list[float]], load: float) -> str:
    """Return the rows in Markdown: median and range of the pictures a minute, and how that compares with one server in
    the same round.
    """
    lines = ["| arrangement | pictures a minute | against one server |", "| --- | --- | --- |"]
    alone = found["one server"]
    for name, rates in found.items():
        ratios = [rate / one for rate, one in zip(rates, alone, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        against = "" if rates is alone else f"{statistics.median(ratios):.2f} times ({spread})"
        rate = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
        lines.append(f"| {name} | {rate} | {against} |")
    lines += [
        "",
        f"Median of {len(alone)} rounds of {PICTURES} pictures, with the range in brackets: rehearsal models, 128x128, "
        f"{STEPS} steps, two subjects; {os.cpu_count()} CPU cores, no GPU, one torch thread for each server, servers "
        f"and evaluation on one machine with a load average of {load:.1f}. Where the load average is above the "
        "number of cores, other programs took part of them, and two servers together get a larger share than one.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the table into the page."""
    from troupe_tools.pack import load_pack

    load_pack()
    rows = table(*measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5))
    begin, end = MARKS
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(f"{begin}.*?{end}", lambda _: begin + rows + end, text, flags=re.S), encoding="utf-8")


if __name__ == "__main__":
    main()
