"""The published prompt files, read from the folder that TROUPE_BENCHMARKS names, have the published counts.

The folder has `dreambench`, `concept101`, `dreambench_plus` and `xverse`, each laid out as it was published. Photos are
not needed: each that is missing is a small random picture here.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import fake_benchmarks as fake
from troupe.evaluation.suites.crops import read_box
from troupe.evaluation.suites.registry import SuiteSettings, read_suite

BENCHMARKS = os.environ.get("TROUPE_BENCHMARKS", "")


def dreambench_photos(folder: Path) -> Iterator[str]:
    """A photo of each subject in the table at the file's beginning."""
    table = (folder / "prompts_and_classes.txt").read_text().split("Prompts")[0]
    for line in table.splitlines():
        if "," in line and line != "subject_name,class":
            yield f"{line.split(',')[0]}/00.jpg"


def concept101_photos(folder: Path) -> Iterator[str]:
    for pair in json.loads((folder / "dataset_multiconcept.json").read_text()):
        for concept in pair[:2]:
            yield f"{concept['instance_data_dir']}/0.jpg"


def dreambench_plus_photos(folder: Path) -> Iterator[str]:
    for captions in (folder / "captions").rglob("*.txt"):
        yield f"images/{captions.relative_to(folder / 'captions').with_suffix('.jpg').as_posix()}"


def xverse_photos(folder: Path) -> Iterator[str]:
    for file in (folder / "eval" / "tools").glob("XVerseBench_*.json"):
        for entry in json.loads(file.read_text()):
            for part in entry.get("modulation", ()):  # other files of the folder have none
                yield from (one["image_path"] for one in part["src_inputs"])


PUBLISHED: dict[str, tuple[str, Callable[[Path], Iterator[str]], int, int]] = {
    # suite -> folder, photos that its files name, prompts, groups
    "dreambench": ("dreambench", dreambench_photos, 750, 30),
    "dreambench_pairs": ("dreambench", dreambench_photos, 750, 30),
    "concept101": ("concept101", concept101_photos, 1212, 101),
    "dreambench_plus": ("dreambench_plus", dreambench_plus_photos, 1350, 150),
    "xverse_single": ("xverse", xverse_photos, 90, 90),
    "xverse_multi": ("xverse", xverse_photos, 210, 210),
}


@pytest.mark.parametrize("suite", PUBLISHED)
def test_the_published_counts(suite, tmp_path):
    name, photos, prompts, groups = PUBLISHED[suite]
    source = Path(BENCHMARKS) / name
    if not BENCHMARKS or not source.is_dir():
        pytest.skip(f"no prompt files of {suite}: set TROUPE_BENCHMARKS to a folder with '{name}'")
    folder = tmp_path / name
    texts = [path for path in source.rglob("*") if path.suffix in (".txt", ".json") and path.is_file()]
    for path in texts:
        (folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(source))
    small = fake.save_photo(tmp_path / "photo.jpg")
    for photo in set(photos(folder)):
        (folder / photo).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(small, folder / photo)
    found = read_suite(SuiteSettings(suite, str(folder)), tmp_path, False, None)
    assert len(found.cases) == prompts and len({case.group for case in found.cases}) == groups
    assert len({case.name for case in found.cases}) == prompts
    assert not [case.prompt for case in found.cases if "{" in case.prompt or not case.prompt.strip()]
    if suite == "concept101":
        assert sum("furniture_chair3 a sofa is kept" in note for note in found.notes) == 1
        boxes = source / "json_data"  # of MIP-Adapter's repository, which has the prompts too
        named = [read_box(boxes, f"{path.parent.name}/{path.stem}.jpg") for path in boxes.glob("*/*.json")]
        assert not boxes.is_dir() or len(named) == 634
