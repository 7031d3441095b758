"""Count who is confused with whom in the rehearsal world, and write benchmarks/CONFUSION.md.

usage: python benchmarks/confusion.py [--seeds N] [--minutes M] [--workers W]

Every method paints the same casts from the same noise. Results are kept picture by picture in
benchmarks/confusion.json, so a run that was stopped goes on where it ended; --minutes stops by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent / "tools"))

from confusion_page import readme_passage, training_passage, write_page  # noqa: E402
from troupe_tools.dev.markdown_pages import write_passage  # noqa: E402
from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

RESULTS, PAGE, README = FOLDER / "confusion.json", FOLDER / "CONFUSION.md", FOLDER.parent / "README.md"
TRAINING = FOLDER.parent / "docs" / "training.md"
WEIGHTS = (0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 1.2)  # of the curve
CURVE = ("add", "relevance", "relevance, sharpness 3")
PER_TASK = 10  # pictures that a worker paints before it reports
Task = tuple[str, str, str, float, int]  # adapter, method, cast, weight, first seed


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Count who is confused with whom in the rehearsal world.")
    parser.add_argument("--seeds", type=int, default=300, help="pictures for each method and cast (default: 300)")
    parser.add_argument(
        "--curve-seeds", type=int, default=100, help="pictures for each weight of the curve (default: 100)"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the next run goes on")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each (default: 1)")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    load_pack()
    results = of_models(results, fingerprint())
    from troupe.rehearsal.engine.paint import load_rehearsal

    load_rehearsal(in_prompt=True)  # a missing file ends the command here, not its workers again and again
    todo = [task for task in tasks(options.seeds, options.curve_seeds) if not done(results, task)]
    print(f"{len(todo) * PER_TASK} pictures to paint")
    with get_context("spawn").Pool(options.workers, prepare) as pool:
        for count, (task, verdicts) in enumerate(pool.imap_unordered(work, todo), 1):
            results["verdicts"].setdefault(key(task), {}).update(verdicts)
            if count % 10 == 0 or count == len(todo):
                save(results)
                print(f"{count * PER_TASK} of {len(todo) * PER_TASK} pictures", flush=True)
            if time.monotonic() > end:
                pool.terminate()
                break
    save(results)
    write_page(RESULTS, PAGE)
    write_passage(README, "confusion", readme_passage(results["verdicts"]))
    write_passage(TRAINING, "trained", training_passage(results["verdicts"]))


def tasks(seeds: int, curve_seeds: int) -> Iterator[Task]:
    """Yield all tasks of the table at weight 1, then those of the curve. Each round covers a few seeds of every cell,
    so an interrupted run has some pictures of each.
    """
    from troupe.rehearsal.engine.trials import CASTS, METHODS_OF, OWN_BASE, WITHOUT

    for first in range(0, seeds, PER_TASK):
        for adapter, methods in METHODS_OF.items():
            for cast in CASTS:
                for method in methods:
                    if method != WITHOUT or adapter in OWN_BASE:
                        yield adapter, method, cast, 1.0, first
    for first in range(0, curve_seeds, PER_TASK):
        for weight in WEIGHTS:
            for method in CURVE:
                yield "mip", method, "two classes", weight, first


def fingerprint() -> dict[str, str]:
    """Return the sha256 of every shipped model file by name. Results of other models are discarded."""
    from troupe.model_patches.checkpoints.hashes import sha256_of
    from troupe.rehearsal.files import FOLDER as MODEL_FILES

    return {path.name: sha256_of(path) for path in sorted(MODEL_FILES.glob("*.safetensors"))}


def of_models(results: dict, models: dict[str, str]) -> dict:
    """Return the results that are still those of these models: all but the cells of an adapter whose own file has
    changed, and none if another file has.
    """
    from troupe.rehearsal.files import EVERY_ADAPTER

    before, verdicts = results.get("models", {}), results.get("verdicts", {})
    changed = {name for name in before.keys() | models.keys() if before.get(name) != models.get(name)}
    own = {name: kind for kind, name in EVERY_ADAPTER.items()}
    redone = {own.get(name) for name in changed}
    kept = {} if None in redone else {cell: found for cell, found in verdicts.items() if cell.split()[0] not in redone}
    return {"models": models, "verdicts": kept}


def key(task: Task) -> str:
    """Return the key of a task's cell in the results."""
    adapter, method, cast, weight, _ = task
    return f"{adapter} | {method} | {cast} | {weight:g}"


def done(results: dict, task: Task) -> bool:
    """Return whether the results include every picture of a task."""
    found = results["verdicts"].get(key(task), {})
    return all(str(seed) in found for seed in range(task[-1], task[-1] + PER_TASK))


def save(results: dict) -> None:
    """Write the results, cells in the order of METHODS and pictures in that of their seeds; an interrupted write leaves
    the last ones.
    """
    order = {cell: place for place, cell in enumerate(dict.fromkeys(map(key, tasks(PER_TASK, PER_TASK))))}
    cells = {
        cell: {seed: results["verdicts"][cell][seed] for seed in sorted(results["verdicts"][cell], key=int)}
        for cell in sorted(results["verdicts"], key=order.__getitem__)
    }
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps({**results, "verdicts": cells}, indent=0), encoding="utf-8")
    partial.replace(RESULTS)


def prepare() -> None:
    """Load the models once a worker."""
    import torch

    torch.set_num_threads(1)
    hide_broken_torchaudio()
    load_pack()
    from troupe.rehearsal.engine.paint import load_rehearsal
    from troupe.rehearsal.engine.recogniser import load_recogniser

    global MODELS, RECOGNISER
    MODELS, RECOGNISER = load_rehearsal(in_prompt=True), load_recogniser()


def work(task: Task) -> tuple[Task, dict[str, list[str]]]:
    """Paint a task's pictures and return the task with their verdicts by seed. Each verdict is three strings with one
    letter per subject: by the recogniser, by colours, and 'x' if both colours are exact, else '.'.
    """
    from troupe.rehearsal.engine.trials import METHODS_OF, judge, paint_trial, places_drawn, trial
    from troupe.rehearsal.engine.verdict import LETTERS

    adapter, method, cast, weight, first = task
    found = {}
    for seed in range(first, first + PER_TASK):
        one = trial(cast, seed)
        way = METHODS_OF[adapter][method]
        places = None if not way.boxes else places_drawn(one) if way.drawn else trial_boxes(cast, seed)
        judgement = judge(RECOGNISER, one, paint_trial(MODELS, adapter, way, one, weight, places=places))
        reads = (
            "".join(LETTERS[verdict] for verdict in read) for read in (judgement.by_recogniser, judgement.by_colours)
        )
        found[str(seed)] = [*reads, "".join("x" if exact else "." for exact in judgement.exact)]
    return task, found


@lru_cache(maxsize=64)
def trial_boxes(cast: str, seed: int) -> list[tuple[float, float, float, float]]:
    """Return the boxes of a trial, cached so that a worker's next methods with boxes can reuse them."""
    from troupe.rehearsal.engine.trials import places_painted, trial

    return places_painted(MODELS, RECOGNISER, trial(cast, seed))


if __name__ == "__main__":
    main()
