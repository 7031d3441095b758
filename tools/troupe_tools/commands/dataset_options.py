"""Options of make_dataset.py."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

DETECTOR = "IDEA-Research/grounding-dino-tiny"
SEGMENTER = "facebook/sam2.1-hiera-small"
CLIP = "openai/clip-vit-large-patch14"
STEPS = """
  python tools/make_dataset.py build photos --out set
  python tools/make_dataset.py references set
  python tools/make_dataset.py quality set --keep 10000
  python tools/make_dataset.py report set

A stopped command goes on where it stopped when it is started again. docs/training_data.md explains each command."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; `command` is the name of the command."""
    parser = argparse.ArgumentParser(
        prog="make_dataset.py",
        description="Make a training set of pictures with named subjects, masks and references.",
        epilog=f"for example:{STEPS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    coco = commands.add_parser("coco", help="convert COCO: instances and captions as JSON")
    coco.add_argument("pictures", type=Path, help="folder of the pictures, such as train2017")
    coco.add_argument("--instances", type=Path, required=True, metavar="JSON", help="instances_train2017.json")
    coco.add_argument(
        "--captions", type=Path, metavar="JSON", help="captions_train2017.json (default: 'a cat and a dog')"
    )

    images = commands.add_parser("open-images", help="convert OpenImages: boxes and masks")
    images.add_argument("pictures", type=Path, help="folder of the pictures, named <ImageID>.jpg")
    images.add_argument("--boxes", type=Path, required=True, metavar="CSV", help="oidv6-train-annotations-bbox.csv")
    images.add_argument("--classes", type=Path, required=True, metavar="CSV", help="class-descriptions-boxable.csv")
    images.add_argument("--masks", type=Path, metavar="CSV", help="train-annotations-object-segmentation.csv")
    images.add_argument("--mask-folder", type=Path, metavar="DIR", help="of the mask PNGs (default: beside the CSV)")
    images.add_argument(
        "--captions", type=Path, metavar="JSONL", help="such as Localized Narratives (default: 'a cat')"
    )

    build = commands.add_parser("build", help="annotate a folder of pictures with Grounding DINO and SAM 2")
    build.add_argument("pictures", type=Path, help="folder of pictures; cat.txt beside cat.jpg is its caption")
    build.add_argument("--captions", type=Path, metavar="JSONL", help='lines {"file_name": ..., "text": ...}')
    build.add_argument("--detector", default=DETECTOR, help="folder or hub name (default: %(default)s)")
    build.add_argument(
        "--vocabulary", type=Path, metavar="TXT", help="nouns to look for (default: words of the caption)"
    )

    for one in (coco, images, build):
        one.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the training set")
        one.add_argument("--captioner", metavar="BLIP", help="for pictures without a caption: folder or hub name")
        _add_rules(one)
        _add_work(one)
    for one in (images, build):
        default = SEGMENTER if one is build else None
        one.add_argument("--segmenter", default=default, metavar="SAM", help=f"folder or hub name (default: {default})")

    merge = commands.add_parser("merge", help="write metadata.jsonl from the journals of all shards")
    merge.add_argument("folder", type=Path, help="folder of the training set that the shards share")
    merge.add_argument("parts", type=Path, nargs="*", help="folders of shards on disks of their own")

    references = commands.add_parser("references", help="give subjects other pictures of the same individual")
    references.add_argument("folder", type=Path, help="folder of the training set")
    how = references.add_mutually_exclusive_group()
    how.add_argument("--folders", action="store_true", help="one source folder per individual (default)")
    how.add_argument("--table", type=Path, metavar="CSV", help="columns picture, subject, individual")
    references.add_argument("--each", type=_positive, default=4, metavar="N", help="most per subject (default: 4)")
    references.add_argument(
        "--least-difference",
        type=_part,
        default=0.02,
        metavar="D",
        help="mean difference, 0..1, below which two cut-outs count as one picture (default: 0.02)",
    )
    references.add_argument(
        "--self-references",
        action="store_true",
        help="a cut-out of the picture itself where there is no other; teaches copying",
    )

    quality = commands.add_parser("quality", help="score pictures with CLIP as MIP-Adapter does, and keep the best")
    quality.add_argument("folder", type=Path, help="folder of the training set")
    limit = quality.add_mutually_exclusive_group()
    limit.add_argument("--threshold", type=_finite, metavar="S", help="keep pictures with a score above")
    limit.add_argument(
        "--keep",
        type=_positive,
        metavar="N",
        help="keep N pictures in all, the best part of those with one, two, ... subjects (default: all)",
    )
    quality.add_argument("--clip", default=CLIP, help="folder or hub name (default: %(default)s)")
    quality.add_argument("--cut-outs", action="store_true", help="subjects on white instead of crops")
    _add_work(quality)

    report = commands.add_parser("report", help="say what is in a set, and draw a contact sheet")
    report.add_argument("folder", type=Path, help="folder of the training set")
    report.add_argument("--rows", type=_positive, default=4, metavar="N", help="of the sheet (default: 4)")
    return parser.parse_args(arguments)


def _add_rules(parser: argparse.ArgumentParser) -> None:
    rules = parser.add_argument_group("which subjects are kept (defaults: MIP-Adapter's)")
    for name, default, what in (
        ("--min-area", 0.08, "of the box, as a part of the picture"),
        ("--max-area", 0.7, "of the box"),
        ("--min-aspect", 0.3, "width / height of the box in pixels"),
        ("--max-aspect", 3.0, "width / height"),
        ("--min-score", 0.3, "of the detector"),
        ("--min-fill", 0.6, "part of the box that the mask fills"),
        ("--max-contained", 0.8, "part of the smaller of two boxes that may lie in the other"),
    ):
        rules.add_argument(name, type=_finite, default=default, metavar="X", help=f"{what} (default: {default})")
    rules.add_argument("--min-subjects", type=_positive, default=1, metavar="N", help="of a picture (default: 1)")
    rules.add_argument("--max-subjects", type=_positive, default=2, metavar="N", help="of a picture (default: 2)")


def _add_work(parser: argparse.ArgumentParser) -> None:
    work = parser.add_argument_group("how it runs")
    work.add_argument("--shard", default="0/1", metavar="I/N", help="this machine's part, from 0/N to N-1/N")
    work.add_argument("--processes", type=_positive, default=1, metavar="N", help="on the CPU (default: 1)")
    work.add_argument("--batch", type=_positive, default=8, metavar="N", help="pictures at once (default: 8)")
    work.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda if there is one)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is expected, not {text}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a number is expected, not {text}")
    return value


def _part(text: str) -> float:
    value = _finite(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a number in 0..1 is expected, not {text}")
    return value
