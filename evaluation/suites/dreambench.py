"""DreamBench, the `dataset` folder of google/dreambooth: a folder of photos for each subject, and
`prompts_and_classes.txt` with the subjects' classes and two lists of prompts, for objects and for live subjects.

Of the templates 'a {0} {1} in the snow' the unique token {0} is left out: a method with references has none.

Single: each subject with each prompt of its list, painted from its first photo, compared with all of them; averaged by
subject. Subject-Diffusion reports 30 subjects x 25 prompts x 6 seeds.

Pairs: Subject-Diffusion reports 30 pairs x 25 prompts x 6 seeds, and neither names the pairs nor the prompts. A file of
pairs can be given; without one Troupe chooses: the subjects that a fixed shuffle puts next to each other in a ring, of
different classes. A pair with an object gets the prompts of objects. '{0} {1}' becomes 'cat and a dog'.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..tasks import TaskSubject
from .suite import Case, Suite, SuiteError, existing_folder, photos_in, read_lines

SINGLE, PAIRS = "dreambench", "dreambench_pairs"
WHAT, FILE = "DreamBench", "prompts_and_classes.txt"
LIVE = {"cat", "dog"}  # classes that get the prompts of live subjects
TEMPLATE = re.compile(r"""^(['"])(.*\{0\} \{1\}.*)\1\.format\(""")
HEADS = {"object prompts": "objects", "live subject prompts": "live"}
SHUFFLE, SHUFFLES = 30, 10_000  # seed and most tries of the pairs that Troupe chooses; 30 with the 30 subjects
FIRST_PHOTO = "Painted from the first photo of each subject, compared with all of them."
CHOSEN = (
    "The published pairs are not known: these are Troupe's choice, so figures cannot be compared with published ones."
)


@dataclass(frozen=True)
class Subjects:
    """Contents of the file: class of each subject, templates for objects and for live subjects."""

    classes: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def templates(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the templates for subjects: those for live ones if all are."""
        return self.live if all(self.classes[name] in LIVE for name in names) else self.objects


def dreambench(folder: Path) -> Suite:
    """Read DreamBench with single subjects. Raises SuiteError where the folder has another layout."""
    found = _read(folder)
    cases = []
    for name, kind in found.classes.items():
        photos = photos_in(folder, folder / name, f"the subject {name}")
        for number, template in enumerate(found.templates([name])):
            prompt = template.replace("{0} {1}", kind)
            cases.append(Case(f"{name} {number:02}", prompt, (TaskSubject(kind, photos[:1]),), name, (photos,)))
    return Suite(SINGLE, folder, tuple(cases), (FIRST_PHOTO,))


def dreambench_pairs(folder: Path, pairs: Path | None = None) -> Suite:
    """Read DreamBench with two subjects. pairs: a text file with two names of subjects and a comma in each line.

    Raises:
        SuiteError: the folder has another layout, or the pairs name another subject.
    """
    found = _read(folder)
    chosen = _chosen(found) if pairs is None else _pairs(pairs, found)
    cases = []
    for pair in chosen:
        photos = tuple(photos_in(folder, folder / name, f"the subject {name}") for name in pair)
        first, second = kinds = [found.classes[name] for name in pair]
        subjects = tuple(TaskSubject(kind, own[:1]) for kind, own in zip(kinds, photos, strict=True))
        for number, template in enumerate(found.templates(pair)):
            prompt = template.replace("{0} {1}", f"{first} and a {second}")
            cases.append(Case(f"{'+'.join(pair)} {number:02}", prompt, subjects, "+".join(pair), photos))
    return Suite(PAIRS, folder, tuple(cases), (FIRST_PHOTO, *((CHOSEN,) if pairs is None else ())))


def _read(folder: Path) -> Subjects:
    existing_folder(folder, WHAT)
    lines = read_lines(folder / FILE, WHAT)
    classes, prompts, part = {}, {"objects": [], "live": []}, ""
    for line in lines:
        part = HEADS.get(line.casefold(), part)
        template = TEMPLATE.match(line)
        if template and part:
            prompts[part].append(template[2])
        elif not part and line.count(",") == 1 and line != "subject_name,class":
            name, kind = (one.strip() for one in line.split(","))
            classes[name] = kind
    missing = [
        what
        for what, there in (("classes", classes), ("object prompts", prompts["objects"]), ("live", prompts["live"]))
        if not there
    ]
    if missing:
        raise SuiteError(
            f"subjects and prompts in '{folder / FILE}'", f"no {' and no '.join(missing)}", "Download the file again."
        )
    return Subjects(classes, tuple(prompts["objects"]), tuple(prompts["live"]))


def _chosen(found: Subjects) -> list[tuple[str, str]]:
    """Neighbours in a ring of shuffled subjects, of different classes; the first shuffle that gives as many pairs as
    there are subjects, else the best one.
    """
    names, chance = sorted(found.classes), random.Random(SHUFFLE)
    best: list[tuple[str, str]] = []
    for _ in range(SHUFFLES):
        chance.shuffle(names)
        ring = zip(names, [*names[1:], names[0]], strict=True) if len(names) > 2 else [(names[0], names[-1])]
        pairs = [(first, second) for first, second in ring if found.classes[first] != found.classes[second]]
        best = max(best, pairs, key=len)
        if len(best) == len(names):
            break
    if not best:
        raise SuiteError("subjects of two classes or more for pairs", "one class", "Give a file of 'pairs' in [suite].")
    return best


def _pairs(path: Path, found: Subjects) -> list[tuple[str, str]]:
    pairs = []
    for line in read_lines(path, "the pairs"):
        if not line:
            continue
        names = [name.strip() for name in line.split(",")]
        strange = [name for name in names if name not in found.classes]
        if len(names) != 2 or strange:
            raise SuiteError(
                f"two subjects of DreamBench in each line of '{path}'", f"'{line}'", "Write for example cat, dog6."
            )
        pairs.append((names[0], names[1]))
    if not pairs:
        raise SuiteError(f"pairs in '{path}'", "none", "Write for example cat, dog6.")
    return pairs
