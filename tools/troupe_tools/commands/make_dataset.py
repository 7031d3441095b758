"""Make a training set of pictures with named subjects: a folder with `metadata.jsonl`, masks and references."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..pack import hide_broken_torchaudio, load_pack
from .dataset_options import parse


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Return its exit status: 0 done, 1 an error, whose sentence is printed, 130 stopped by Ctrl-C."""
    options = parse(arguments)
    hide_broken_torchaudio()
    load_pack()
    from troupe.model_patches.errors import TroupeError

    try:
        COMMANDS[options.command](options)
    except TroupeError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, UnicodeDecodeError) as error:
        print(f"A file could not be read or written: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print("The GPU's memory is too small. Use a smaller --batch; the command goes on from here.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def coco(options: Namespace) -> None:
    """Convert a COCO split."""
    from troupe.training.data.coco import coco_sources

    _make(options, coco_sources(options.pictures, options.instances, options.captions))


def open_images(options: Namespace) -> None:
    """Convert OpenImages."""
    from troupe.training.data.open_images import open_images_sources

    found = open_images_sources(
        options.pictures, options.boxes, options.classes, options.masks, options.mask_folder, options.captions
    )
    _make(options, found)


def build(options: Namespace) -> None:
    """Annotate a folder of pictures."""
    from troupe.training.data.sources import folder_sources

    _make(options, folder_sources(options.pictures, options.captions))


def merge(options: Namespace) -> None:
    """Write `metadata.jsonl` from the journals of all shards."""
    from troupe.training.data import journal

    entries = journal.merge(options.folder, options.parts) if options.parts else journal.finish(options.folder)
    _made(options.folder, entries)


def references(options: Namespace) -> None:
    """Give subjects references from other pictures of the same individual. Raises DatasetError for a filtered set."""
    from troupe.training.data import references as data
    from troupe.training.data.journal import UNFILTERED
    from troupe.training.data.records import METADATA, DatasetError, read_records, write_records
    from troupe.training.data.report import references_lines

    if (options.folder / UNFILTERED).is_file():
        raise DatasetError(
            "a set without a quality filter",
            f"a filtered one in {options.folder}",
            f"Run references before quality; to undo the filter, rename {UNFILTERED} to {METADATA}.",
        )
    records = read_records(options.folder)
    keys = data.keys_of(options.folder, records)
    if options.table:
        individuals = data.from_table(records, keys, options.table)
    elif options.self_references and not options.folders:
        individuals = {}
    else:
        individuals = data.from_folders(records, keys)
    records, report = data.add_references(
        options.folder, records, individuals, options.each, options.least_difference, options.self_references
    )
    write_records(options.folder, records)
    _say(options.folder, "references", references_lines(report))


def quality(options: Namespace) -> None:
    """Score pictures and keep the best."""
    from troupe.training.data import quality as data
    from troupe.training.data.engine import work
    from troupe.training.data.journal import check_settings
    from troupe.training.data.report import contact_sheet, quality_lines, quality_rows

    items = data.unfiltered_items(options.folder)
    check_settings(options.folder, {"clip": options.clip, "cut_outs": options.cut_outs}, data.JOURNAL)
    scoring = data.Scoring(partial(data.ClipScorer.load, options.clip, _device(options)), options.cut_outs)
    plan = _plan(options, True)
    work(options.folder, items, scoring, plan, data.JOURNAL, _progress)
    scored, faulty, missing = data.scored_records(options.folder, items)
    if missing:
        print(f"{len(scored)} of {len(items)} pictures scored. After all shards, run quality without --shard.")
        return
    done = data.filter_set(options.folder, scored, faulty, options.threshold, options.keep)
    contact_sheet(quality_rows(done), options.folder / "report" / "quality.png")
    _say(options.folder, "quality", quality_lines(done))
    print(f"wrote {options.folder / 'report' / 'quality.png'}")


def report(options: Namespace) -> None:
    """Say what is in a set."""
    from troupe.training.data.journal import read_journal
    from troupe.training.data.records import read_records
    from troupe.training.data.report import contact_sheet, made_lines, set_lines

    records = read_records(options.folder)
    entries = read_journal(options.folder)
    step = max(len(records) // (options.rows * 6), 1)
    shown = records[::step][: options.rows * 6]
    rows = {"examples" if not i else f"{i + 1} ...": shown[i : i + 6] for i in range(0, len(shown), 6)}
    contact_sheet(rows, options.folder / "report" / "set.png")
    _say(options.folder, "set", [*set_lines(records), *(made_lines(entries.values()) if entries else [])])
    print(f"wrote {options.folder / 'report' / 'set.png'}")


COMMANDS = {
    "coco": coco,
    "open-images": open_images,
    "build": build,
    "merge": merge,
    "references": references,
    "quality": quality,
    "report": report,
}


# ---- what the commands share -----------------------------------------------------------------------------------------


def _make(options: Namespace, sources: Sequence[Any]) -> None:
    from troupe.training.data import journal
    from troupe.training.data.engine import work
    from troupe.training.data.making import Maker
    from troupe.training.data.selection import Rules

    rules = Rules(
        area=(options.min_area, options.max_area),
        aspect=(options.min_aspect, options.max_aspect),
        score=options.min_score,
        fill=options.min_fill,
        contained=options.max_contained,
        most=options.max_subjects,
        least=options.min_subjects,
    )
    models = {name: value for name in ("captioner", "detector", "segmenter") if (value := getattr(options, name, None))}
    vocabulary = _vocabulary(getattr(options, "vocabulary", None))
    settings = {"command": options.command, "pictures": options.pictures.resolve(), "captions": options.captions}
    journal.check_settings(options.out, {**settings, **vars(rules), **models, "vocabulary": vocabulary})
    plan = _plan(options, bool(models))
    maker = Maker(options.out, rules, vocabulary=vocabulary, **(_factories(options, models) if models else {}))
    made = work(options.out, sources, maker, plan, report=_progress)
    print(f"{made} pictures of this run, {len(sources)} in all")
    if plan.count > 1:
        print(f"After all shards: python tools/make_dataset.py merge {options.out}")
    else:
        _made(options.out, journal.finish(options.out))


def _factories(options: Namespace, models: dict[str, str]) -> dict[str, Any]:
    from troupe.training.data import models as data

    device = _device(options)
    factories: dict[str, Any] = {}
    if "captioner" in models:
        factories["captioner"] = partial(data.Blip.load, models["captioner"], device)
    if "detector" in models:
        factories["detector"] = partial(data.GroundingDino.load, models["detector"], device, options.min_score)
    if "segmenter" in models:
        factories["segmenter"] = partial(data.Sam.load, models["segmenter"], device)
    return factories


def _vocabulary(path: Path | None) -> tuple[str, ...] | None:
    if path is None:
        return None
    from troupe.training.data.records import DatasetError

    if not path.is_file():
        raise DatasetError("a file with one noun per line", f"no file {path}", "Correct the path of --vocabulary.")
    words = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    wrong = [word for word in words if "." in word or "?" in word]
    if wrong or not words:
        found = f"'{wrong[0]}'" if wrong else "an empty file"
        raise DatasetError(f"one noun per line in {path}, without full stops", found, "Correct the file.")
    return words


def _made(folder: Path, entries: dict[str, Any]) -> None:
    from troupe.training.data.records import DatasetError, read_records
    from troupe.training.data.report import made_lines, set_lines

    lines = made_lines(entries.values())
    if not any(entry.record is not None for entry in entries.values()):
        raise DatasetError(
            "a picture with a usable subject", "none. " + "\n".join(lines), "The numbers say which limit to change."
        )
    _say(folder, "made", [*lines, *set_lines(read_records(folder))])


def _say(folder: Path, name: str, lines: Sequence[str]) -> None:
    """Print a report, and keep it in the set's folder."""
    text = "\n".join(lines)
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
    print(text)


def _plan(options: Namespace, models: bool) -> Any:
    from troupe.training.data.engine import Plan, parse_shard
    from troupe.training.data.records import DatasetError

    index, count = parse_shard(options.shard)
    if models and options.processes > 1 and _device(options) != "cpu":
        raise DatasetError(
            "one process for each GPU",
            f"--processes {options.processes} on {_device(options)}",
            "Start one command per GPU, with CUDA_VISIBLE_DEVICES and --shard; or add --device cpu.",
        )
    return Plan(index, count, options.processes, options.batch)


def _device(options: Namespace) -> str:
    if options.device:
        return options.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _progress(done: int, of: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {of}", end="\n" if done == of else "", file=sys.stderr, flush=True)
