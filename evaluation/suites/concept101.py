"""The two-concept pairs of CustomConcept101, as MIP-Adapter's table is counted.

The folder holds `dataset_multiconcept.json`, `prompts/` and `benchmark_dataset/`. Each entry of the JSON has two
concepts (`class_prompt`, `instance_data_dir`) and `prompt_filename_compose`, a file of prompts with {0} and {1}.
Published: 101 pairs x 12 prompts, one picture each; names are the bare class_prompt; all photos of a concept are its
references, for painting and for the scores; averaged by pair. Some lines lack {1}: the second subject is not in those
prompts. MIP-Adapter paints from crops of the photos, whose boxes come with its repository: see `crops`. Its scores read
the photos as they are stored, without the turn that EXIF data ask for. Two details are not repeated here: its CLIP-T
reads the prompt from the picture's file name, which adds '_gen' to the three prompts without a full stop, and a prompt
that two lines of a pair share counts once.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ..tasks import TaskSubject
from .suite import Case, Suite, SuiteError, existing_folder, photos_in, read_json, read_lines

NAME, WHAT, FILE = "concept101", "CustomConcept101", "dataset_multiconcept.json"
WRONG = ("sofa", "furniture_chair3")  # class and photos of the entry that its authors call an error
KEPT = (
    "The pair that calls the photos of furniture_chair3 a sofa is kept, as in published figures "
    "(hqhQAQ/MIP-Adapter, issue 12): {}."
)
DROPPED = "Left out, unlike in published figures: {}, which calls the photos of furniture_chair3 a sofa."
COUNT = "CLIP-T of MIP-Adapter's table is the column clip_t_times_2_5."
WHOLE = "MIP-Adapter's pictures were painted from crops of the photos; here the photos are whole ('crops' in [suite])."


def concept101(folder: Path, keep_wrong: bool = True) -> Suite:
    """Read the pairs. keep_wrong: keep the pair with the wrong sofa.

    Raises:
        SuiteError: a file is missing or has another layout.
    """
    existing_folder(folder, WHAT)
    entries = read_json(folder / FILE, WHAT)
    if not isinstance(entries, list) or not entries:
        raise SuiteError(f"a list of pairs in '{folder / FILE}'", type(entries).__name__, "Download it again.")
    cases: list[Case] = []
    wrong = []
    for number, entry in enumerate(entries, 1):
        subjects, prompts, is_wrong = _entry(folder, entry, number)
        group = f"{number:03} {' + '.join(subject.name for subject in subjects)}"
        if is_wrong:
            wrong.append(group)
            if not keep_wrong:
                continue
        for line, template in enumerate(prompts):
            prompt = template.replace("{0}", subjects[0].name).replace("{1}", subjects[1].name)
            cases.append(Case(f"{group} {line:02}", prompt, subjects, group))
    notes = [COUNT]
    if wrong:
        notes.append((KEPT if keep_wrong else DROPPED).format(", ".join(wrong)))
    return Suite(NAME, folder, tuple(cases), tuple(notes), upright=False)


def _entry(folder: Path, entry: Any, number: int) -> tuple[tuple[TaskSubject, TaskSubject], list[str], bool]:
    """The subjects and prompts of a pair, and whether it is the wrong one."""
    try:
        concepts, compose = entry[:2], entry[2]["prompt_filename_compose"]
        pairs = [(one["class_prompt"].strip(), PurePosixPath(one["instance_data_dir"])) for one in concepts]
        first, second = pairs
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise SuiteError(
            f"two concepts and their prompts in pair {number} of '{folder / FILE}'",
            f"{type(error).__name__}: {error}",
            "Download it again.",
        ) from error
    subjects = [
        TaskSubject(name, photos_in(folder, folder / place, f"the concept {name}")) for name, place in (first, second)
    ]
    prompts = [line for line in read_lines(folder / compose, WHAT) if line]
    if not prompts:
        raise SuiteError(f"prompts in '{folder / compose}'", "none", "Download it again.")
    return (subjects[0], subjects[1]), prompts, any((name, place.name) == WRONG for name, place in pairs)
