"""XVerseBench, in the folder of the XVerse repository: `eval/tools/XVerseBench_single.json` or `_multi.json`.

Each entry has `prompt` and `modulation[0].src_inputs`, one for each subject with `image_path` (relative to the
repository) and `caption`; `modulation[0].use_words[i][1]` is the label by which the subject is searched in the picture.
Published scores are a VQA score, an aesthetic score, a face identity and IP-Sim; only IP-Sim is counted here (`ip_sim`,
with Grounding DINO in place of Florence-2 and SAM 2).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from ..tasks import TaskSubject
from .suite import Case, Suite, SuiteError, existing_folder, read_json

SINGLE, MULTI = "xverse_single", "xverse_multi"
FILES = {SINGLE: "eval/tools/XVerseBench_single.json", MULTI: "eval/tools/XVerseBench_multi.json"}
WHAT = "XVerseBench"
LIKE = "Not the published protocol: Grounding DINO finds the subjects, and only IP-Sim is counted of the four scores."


def xverse(folder: Path, name: str) -> Suite:
    """Read XVerseBench. name: SINGLE or MULTI.

    Raises:
        SuiteError: the file or a picture is missing, or an entry has another layout.
    """
    path = existing_folder(folder, WHAT) / FILES[name]
    entries = read_json(path, WHAT)
    if not isinstance(entries, list) or not entries:
        raise SuiteError(f"a list of prompts in '{path}'", type(entries).__name__, "Download it again.")
    cases = [_case(folder, path, entry, number) for number, entry in enumerate(entries)]
    return Suite(name, folder, tuple(cases), (LIKE,))


def _case(folder: Path, path: Path, entry: Any, number: int) -> Case:
    try:
        prompt, modulation = entry["prompt"].strip(), entry["modulation"][0]
        labels = [words[1] for words in modulation.get("use_words", [])]
        inputs = [(one["image_path"], one.get("caption", "")) for one in modulation["src_inputs"]]
        subjects = tuple(
            TaskSubject(_name(prompt, labels[i : i + 1], caption), (PurePosixPath(photo).as_posix(),))
            for i, (photo, caption) in enumerate(inputs)
        )
        if not prompt or not subjects or not all(subject.name for subject in subjects):
            raise ValueError("no prompt, or a subject without a name")
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise SuiteError(
            f"a prompt and subjects in entry {number} of '{path}'",
            f"{type(error).__name__}: {error}",
            "Download it again.",
        ) from error
    missing = [photo for subject in subjects for photo in subject.photos if not (folder / photo).is_file()]
    if missing:
        raise SuiteError(
            f"the pictures of {WHAT} in '{folder}'", f"no {missing[0]}", "Follow the steps in its assets/README.md."
        )
    case = f"{entry.get('index', number)}"
    return Case(case, prompt, subjects, case)


def _name(prompt: str, label: list[str], caption: str) -> str:
    """The label, or the caption without its article: what is in the prompt; the label where neither is."""
    words = caption.strip()
    for article in ("a ", "an ", "the "):
        words = words.removeprefix(article)
    options = [one for one in (*label, words) if one]
    return next((one for one in options if one.casefold() in prompt.casefold()), options[0] if options else "")
