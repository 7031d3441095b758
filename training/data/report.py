"""What is in a training set and what was dropped on the way: numbers as text, and pictures as a contact sheet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .journal import Entry
from .pictures import PictureFault, open_picture, pixels_of
from .quality import Filtered, picture_quality
from .records import PictureRecord
from .references import ReferencesReport

THUMB = 176  # pixels of a side on a contact sheet
TEXT = 52  # pixels of height for the text below
EXAMPLES = 5  # details that are named for each reason
BARS = 12
COLUMNS = 6  # pictures of a row of the sheet that shows a filter


def made_lines(entries: Iterable[Entry]) -> list[str]:
    """Return what became of all pictures of a journal: numbers, and for each reason the first examples."""
    entries = list(entries)
    kept = [entry.record for entry in entries if entry.record is not None]
    subjects = sum(len(record["subjects"]) for record in kept)
    lines = [f"{len(entries)} pictures read, {len(kept)} kept with {subjects} subjects"]
    details: dict[str, list[str]] = {}
    for entry in entries:
        for reason, detail in entry.notes:
            details.setdefault(reason, []).append(detail if detail in entry.key else f"{detail} in {entry.key}")
    for reason, found in sorted(details.items(), key=lambda pair: -len(pair[1])):
        more = ", ..." if len(found) > EXAMPLES else ""
        lines.append(f"  {len(found)} x {reason}: {', '.join(found[:EXAMPLES])}{more}")
    return lines


def set_lines(records: Sequence[PictureRecord]) -> list[str]:
    """Return what a set holds: pictures by number of subjects, names, masks, references, scores."""
    subjects = [subject for record in records for subject in record.subjects]
    counts = Counter(len(record.subjects) for record in records)
    names = Counter(subject.name.casefold() for subject in subjects)
    lines = [
        f"{len(records)} pictures, {len(subjects)} subjects, {len(names)} different names",
        f"  subjects in a picture: {', '.join(f'{n} in {counts[n]}' for n in sorted(counts))}",
        f"  most frequent names: {', '.join(f'{name} {n}' for name, n in names.most_common(10)) or 'none'}",
        f"  with a box {sum(one.box is not None for one in subjects)}, with a mask "
        f"{sum(one.mask is not None for one in subjects)}, with references "
        f"{sum(bool(one.references) for one in subjects)}, with a score "
        f"{sum(one.quality is not None for one in subjects)}",
    ]
    if len(records) == 1:
        lines.append("  warning: one picture is not enough to train on")
    if not any(one.references for one in subjects):
        lines.append("  no subject has references: see the command references")
    return lines


def references_lines(report: ReferencesReport) -> list[str]:
    """Return what the command references did."""
    lines = [
        f"{report.individuals} individuals: {report.distinct} subjects with references from other pictures, "
        f"{report.own} with a cut-out of their own picture, {report.none} with none",
    ]
    if report.unknown:
        lines.append(f"  {report.unknown} subjects without a known individual")
    lines += [f"  {number} pairs not used: {reason}" for reason, number in report.skipped.most_common()]
    lines += [f"  {fault}" for fault in sorted(set(report.faults))[:EXAMPLES]]
    if report.own:
        lines.append("  warning: references from the training picture itself teach a model to copy it")
    return lines


def quality_lines(done: Filtered) -> list[str]:
    """Return the number kept, the threshold, for each number of subjects how many were kept with which S, and a
    histogram of S.
    """
    scored = [*done.kept, *done.dropped]
    limit = "" if done.threshold is None else f", S above {done.threshold:.4f}"
    lines = [f"{len(done.kept)} of {len(scored) + len(done.faulty)} pictures kept{limit}"]
    if done.faulty:
        names = ", ".join(one.picture.name for one in done.faulty[:EXAMPLES])
        lines.append(f"  {len(done.faulty)} without a score, dropped: {names}")
    kept, every = (_by_count(records) for records in (done.kept, scored))
    for count, found in sorted(every.items()):
        here = kept.get(count, [])
        least = f" with S from {min(here):.4f}" if here else ""
        each = f"{len(found)} pictures, mean S {np.mean(found):.4f}, {len(here)} kept{least}"
        lines.append(f"  {count} subject{'s' if count > 1 else ''}: {each}")
    if done.threshold is not None and len(every) > 1:
        lines.append("  warning: one threshold compares pictures with different numbers of subjects; --keep does not")
    values = [picture_quality(record) for record in scored]
    numbers, edges = np.histogram(values, BARS)
    for number, low, high in zip(numbers, edges[:-1], edges[1:], strict=True):
        bar = "#" * round(40 * number / max(numbers))
        lines.append(f"  {low:8.4f} .. {high:8.4f} {number:7d} {bar}")
    return lines


def _by_count(records: Sequence[PictureRecord]) -> dict[int, list[float]]:
    """S of each picture, by its number of subjects."""
    found: dict[int, list[float]] = {}
    for record in records:
        found.setdefault(len(record.subjects), []).append(picture_quality(record))
    return found


def quality_rows(done: Filtered) -> dict[str, list[PictureRecord]]:
    """Return the rows of a contact sheet: the best, the last ones kept, the first ones dropped, the worst."""
    rows = {"best": done.kept[:COLUMNS], "last kept": done.kept[-COLUMNS:]}
    if done.dropped:
        rows |= {"first dropped": done.dropped[:COLUMNS], "worst": done.dropped[-COLUMNS:]}
    return rows


def contact_sheet(rows: Mapping[str, Sequence[PictureRecord]], path: Path) -> None:
    """Write a PNG with a row of pictures for each title: boxes drawn, names, score and caption below."""
    rows = {title: records for title, records in rows.items() if records}
    columns = max((len(records) for records in rows.values()), default=1)
    small, large = ImageFont.load_default(11), ImageFont.load_default(15)
    high = THUMB + TEXT + 24
    sheet = Image.new("RGB", (columns * (THUMB + 8) + 8, max(len(rows), 1) * high + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (title, records) in enumerate(rows.items()):
        top = 8 + r * high
        draw.text((8, top), title, "black", large)
        for c, record in enumerate(records):
            left = 8 + c * (THUMB + 8)
            sheet.paste(_thumb(record), (left, top + 22))
            for line, text in enumerate(_texts(record)):
                draw.text((left, top + 24 + THUMB + 14 * line), text, "black", small)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _texts(record: PictureRecord) -> list[str]:
    scores = [one.quality for one in record.subjects if one.quality is not None]
    names = ", ".join(one.name for one in record.subjects)
    first = f"{sum(scores) / len(scores):.4f}  {names}" if scores else names
    return [_plain(text)[:29] for text in (first, record.caption, record.caption[29:])]


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _thumb(record: PictureRecord) -> Image.Image:
    tile = Image.new("RGB", (THUMB, THUMB), (235, 235, 235))
    try:
        picture = open_picture(record.picture)
    except PictureFault:
        return tile
    picture.thumbnail((THUMB, THUMB))
    draw = ImageDraw.Draw(picture)
    for number, subject in enumerate(record.subjects):
        if subject.box is not None:
            colour = ("red", "blue", "green", "orange", "purple")[number % 5]
            left, top, right, bottom = pixels_of(subject.box, picture.size)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=2)
    tile.paste(picture, ((THUMB - picture.width) // 2, (THUMB - picture.height) // 2))
    return tile
