"""Scores in words, and as JSON for other nodes and programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from ..relevance.maps import Line
from .likeness import CLIP_T_FACTOR
from .regions import SubjectRegion
from .scoring import PictureScore, Scores
from .verdicts import CLONED, MISSING, MIXED, RIGHT, SWAPPED, Verdict, alike

DO = {
    SWAPPED: "Give each subject a box, or try another seed.",
    MIXED: "Give each subject a box, or try another seed. If the likeness is low too, raise its weight.",
    CLONED: "Say in the prompt that there are two, give each subject a box, or try another seed.",
    MISSING: "Move its name to the front of the prompt, give it a box, or raise its weight.",
}
DO_WITH_PLACES = {  # where the subject has a box or a region of its own
    SWAPPED: "Try another seed.",
    MIXED: "Try another seed. If the likeness is low too, raise its weight.",
    CLONED: "Say in the prompt that there are two, or try another seed.",
    MISSING: "Move its name to the front of the prompt, raise its weight, or try another seed.",
}
TWICE = "Give each subject a box, or try another seed."  # where a subject's looks are in another region too
CHECK_PLACE = "Look at its crop in 'matrix' first: if it does not show the subject, connect a detector's boxes."
TWINS = "The encoder cannot tell the references of {} and {} apart ({:.2f}): a mix-up of the two would not be noticed."


def to_json(scores: Scores) -> str:
    """Return the scores as JSON: encoder, threshold, names, and of each picture score, all_right, clip_i, clip_t
    (cosine or null), its subjects (name, verdict, looks_of, lead, likeness with every subject, place) and its further
    places (the same without name; verdict null where no subject is seen).
    """
    return json.dumps(
        {
            "encoder": scores.encoder,
            "threshold": scores.threshold,
            "names": list(scores.names),
            "pictures": [_as_plain(scores, picture) for picture in scores.pictures],
        },
        ensure_ascii=False,
    )


def score_report(scores: Scores, without_clip_t: str = "") -> list[Line]:
    """Return the lines of the report: of one picture a line for it, one for each subject, one for each further region
    that shows a subject, one for the others, then CLIP-I and CLIP-T; of a batch a line for each picture, then what to
    do, once each.

    without_clip_t: why there is no CLIP-T.
    """
    lines = _of_one(scores, scores.pictures[0]) if len(scores.pictures) == 1 else _of_batch(scores)
    pairs = scores.references.tolist()
    lines += [
        Line(TWINS.format(_name_of(scores, i), _name_of(scores, j), pairs[i][j]), warning=True)
        for j in range(len(pairs))
        for i in range(j)
        if alike(pairs, i, j)
    ]
    return lines + ([Line(without_clip_t)] if without_clip_t else [])


def _of_one(scores: Scores, picture: PictureScore) -> list[Line]:
    count = len(picture.verdicts)
    told = f"Picture 1: {picture.right} of {count} subjects right, score {picture.score:.2f}."
    figures = f"Whole picture: likeness {picture.clip_i:.2f}"
    if picture.clip_t is not None:
        times = CLIP_T_FACTOR * max(picture.clip_t, 0.0)
        figures += f", CLIP-T {picture.clip_t:.3f} ({times:.3f} where papers multiply it by {CLIP_T_FACTOR})"
    subjects = [_subject_line(scores, picture, i) for i in range(count)]
    return [Line(told, picture.right < count), *subjects, *_further_lines(scores, picture), Line(f"{figures}.")]


def _of_batch(scores: Scores) -> list[Line]:
    lines, remedies = [], {}
    for number, picture in enumerate(scores.pictures, 1):
        count, wrong = len(picture.verdicts), []
        for i, verdict in enumerate(picture.verdicts):
            if verdict.word != RIGHT:
                others = [_name_of(scores, owner) for owner in verdict.owners]
                twice = _is_twice(picture, i)
                short = f"{_name_of(scores, i)} {verdict.word}, it is there twice" if twice else ""
                wrong.append(short or _in_short(_name_of(scores, i), verdict.word, others))
                remedies.setdefault("there twice" if twice else verdict.word, _what_to_do(picture, i))
        told = f"Picture {number}: {picture.right} of {count} subjects right, score {picture.score:.2f}"
        text = "" if picture.clip_t is None else f", CLIP-T {picture.clip_t:.3f}"
        listed = f": {'; '.join(wrong)}" if wrong else ""
        lines.append(Line(f"{told}{text}{listed}.", bool(wrong)))
    return lines + [Line(f"If a subject is {word}: {do}") for word, do in remedies.items()]


def _in_short(name: str, verdict: str, looks_of: list[str]) -> str:
    """'2 robot mixed, with the looks of 1 cat and 2 robot'."""
    looks = f", with the looks of {' and '.join(looks_of)}" if looks_of else ""
    return f"{name} {verdict}{looks}"


def _is_twice(picture: PictureScore, i: int) -> bool:
    """Whether a subject is cloned because a further region has its looks too."""
    return picture.verdicts[i].word == CLONED and picture.verdicts[i].owners == (i,)


def _what_to_do(picture: PictureScore, i: int) -> str:
    if _is_twice(picture, i):
        return TWICE
    region = picture.regions[i]
    own = region is not None and region.source in ("box", "region")
    return (DO_WITH_PLACES if own else DO).get(picture.verdicts[i].word, "")


def _subject_line(scores: Scores, picture: PictureScore, i: int) -> Line:
    verdict, row, region = picture.verdicts[i], picture.likeness[i].tolist(), picture.regions[i]
    name, do = _name_of(scores, i), _what_to_do(picture, i)
    if verdict.word == MISSING:
        why = (
            "nothing found in the picture"
            if region is None
            else f"its {region.source} shows none of the subjects (likeness {max(row):.2f}, threshold "
            f"{scores.threshold:.2f})"
            if max(row) < scores.threshold
            else f"its {region.source} is the place of another subject"
        )
        return Line(f"{name}: {MISSING}, {why}. {do}", warning=True)
    nearest = max((j for j in range(len(row)) if j != i), key=row.__getitem__, default=None)
    beside = "" if nearest is None else f", with {_name_of(scores, nearest)} {row[nearest]:.2f}"
    likeness = f"likeness {row[i]:.2f}{beside}"
    if verdict.word == RIGHT:
        return Line(f"{name}: {RIGHT}, {likeness}.")
    if _is_twice(picture, i):
        return Line(f"{name}: {CLONED}, it is in the picture twice ({likeness}). {do}", True)
    where = CHECK_PLACE if region is not None and region.source == "relevance map" else ""
    return Line(f"{name}: {_what(scores, verdict)} ({likeness}). {f'{where} ' if where else ''}{do}", True)


def _further_lines(scores: Scores, picture: PictureScore) -> list[Line]:
    lines, others = [], 0
    for further in picture.further:
        if further.verdict.word == MISSING:
            others += 1
            continue
        [owner] = further.verdict.owners
        likeness = f"likeness {further.likeness[owner]:.2f}"
        whose = _name_of(scores, owner)
        text = f"Another {further.region.source}: {CLONED}, it has the looks of {whose} too ({likeness})."
        lines.append(Line(text, warning=True))
    if others:
        source = picture.further[0].region.source
        which = f"Another {source} shows" if others == 1 else f"{others} other {_plural(source)} show"
        lines.append(Line(f"{which} none of the subjects clearly."))
    return lines


def _plural(source: str) -> str:
    return f"{source}es" if source.endswith("x") else f"{source}s"


def _what(scores: Scores, verdict: Verdict) -> str:
    first = _name_of(scores, verdict.owners[0])
    if verdict.word == MIXED:
        return f"{MIXED}, it has the looks of {' and '.join(_name_of(scores, owner) for owner in verdict.owners)}"
    both = "which has other looks itself" if verdict.word == SWAPPED else "which has them too or is missing"
    return f"{verdict.word}, it has the looks of {first}, {both}"


def _name_of(scores: Scores, index: int) -> str:
    return f"{index + 1} {scores.names[index]}"


def _as_plain(scores: Scores, picture: PictureScore) -> dict[str, object]:
    subjects = zip(scores.names, picture.verdicts, picture.likeness.tolist(), picture.regions, strict=True)
    return {
        "score": round(picture.score, 4),
        "all_right": picture.all_right,
        "clip_i": round(picture.clip_i, 4),
        "clip_t": None if picture.clip_t is None else round(picture.clip_t, 4),
        "subjects": [
            {"name": name, **_as_row(scores, verdict, row, region)} for name, verdict, row, region in subjects
        ],
        "further": [
            _as_row(scores, further.verdict, further.likeness, further.region)
            | ({"verdict": None} if further.verdict.word == MISSING else {})
            for further in picture.further
        ],
    }


def _as_row(
    scores: Scores, verdict: Verdict, likeness: Sequence[float], region: SubjectRegion | None
) -> dict[str, object]:
    box = None if region is None else region.box
    return {
        "verdict": verdict.word,
        "looks_of": [scores.names[owner] for owner in verdict.owners],
        "lead": None if verdict.lead is None else round(verdict.lead, 4),
        "likeness": [None if math.isnan(value) else round(value, 4) for value in likeness],
        "place": None
        if region is None or box is None
        else {
            "from": region.source,
            "x": round(box.x, 4),
            "y": round(box.y, 4),
            "w": round(box.w, 4),
            "h": round(box.h, 4),
        },
    }
