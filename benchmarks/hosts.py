"""Measures how many pictures a minute an evaluation gets from one ComfyUI server and from two on this machine, and
writes benchmarks/hosts.json and the table of docs/evaluation_hosts.md.

usage: COMFYUI_PATH=/path/to/ComfyUI OMP_NUM_THREADS=1 python benchmarks/hosts.py [rounds]

The rehearsal models, one torch thread for each server, so that two servers have two cores. Rounds alternate, so that
other work on the machine slows each arrangement alike; every round has seeds of its own, so that nothing is cached.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from troupe_tools.dev.markdown_pages import markdown_table, write_passage  # noqa: E402

RESULTS = ROOT / "benchmarks" / "hosts.json"
PAGE = ROOT / "docs" / "evaluation_hosts.md"
COLUMNS = ("arrangement", "pictures a minute", "against one server", "cores used", "CPU seconds for a picture")
PICTURES, STEPS = 8, 20
KINDS = ("cat", "robot")


def tasks(seeds: Any, amount: int) -> list[Any]:
    """Return tasks with two subjects each, at new seeds."""
    from troupe.evaluation.tasks import Method, Task, TaskSubject

    subjects = tuple(TaskSubject(kind, (f"{kind}.png",)) for kind in KINDS)
    method = Method("relevance", {"merge": "relevance", "steps": STEPS})
    return [Task("hosts", "pair", method, "a cat and a robot on grass", subjects, next(seeds)) for _ in range(amount)]


def measure(rounds: int) -> dict[str, Any]:
    """Return the results: of each round of an arrangement [seconds, CPU seconds of the servers], the machine's median
    load average, its cores, and what was painted.
    """
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
        processes = [psutil.Process(server._process.pid) for server in servers]

        def used() -> float:
            return sum(times.user + times.system for times in (process.cpu_times() for process in processes))

        found: dict[str, list[list[float]]] = {name: [] for name in arrangements}
        loads: list[float] = []
        for _ in range(rounds):
            for name, chosen in arrangements.items():
                todo, started, before = tasks(seeds, PICTURES), time.monotonic(), used()
                loads.append(os.getloadavg()[0])
                rows = run_tasks(todo, chosen, folder / "results")
                found[name].append([round(time.monotonic() - started, 3), round(used() - before, 3)])
                if any(row.error for row in rows.values()):
                    sys.exit(f"A picture failed: {[row.error for row in rows.values() if row.error][0]}")
                print(f"{name}: {found[name][-1][0]:.1f} s, {found[name][-1][1]:.1f} s of CPU", flush=True)
        load = round(statistics.median(loads), 2)
        return {"rounds": found, "load": load, "cores": os.cpu_count(), "pictures": PICTURES, "steps": STEPS}


def table(results: dict[str, Any]) -> str:
    """Return the rows in Markdown: medians with ranges, and the conditions. results: of `measure`."""
    found, pictures = results["rounds"], results["pictures"]
    alone = found["one server"]
    rows = []
    for name, measured in found.items():
        ratios = [one / seconds for (seconds, _), (one, _) in zip(measured, alone, strict=True)]
        columns = (
            spread([60 * pictures / seconds for seconds, _ in measured], 1),
            "" if measured is alone else spread(ratios, 2),
            spread([cpu / seconds for seconds, cpu in measured], 2),
            spread([cpu / pictures for _, cpu in measured], 2),
        )
        rows.append((name, *columns))
    conditions = (
        f"Median of {len(alone)} rounds of {pictures} pictures, with the range in brackets: rehearsal models, 128x128, "
        f"{results['steps']} steps, two subjects; {results['cores']} CPU cores, no GPU, one torch thread for each "
        f"server, servers and evaluation on one machine with a load average of {results['load']:.1f}. Cores used: CPU "
        "time of the servers divided by the time of the round. If the load average is above the number of cores, other "
        "programs took the rest."
    )
    return f"{markdown_table(COLUMNS, rows)}\n{conditions}\n"


def spread(values: list[float], digits: int) -> str:
    """Return 'median (least to most)'."""
    least, most = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({least} to {most})"


def main() -> None:
    """Run the measurement and write its table into the page."""
    from troupe_tools.pack import load_pack

    load_pack()
    results = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_passage(PAGE, "hosts", table(results))


if __name__ == "__main__":
    main()
