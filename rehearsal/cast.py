"""The cast that comes with the pack: one individual of each class, with looks that nothing was trained on, and how a
prompt calls for them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from .world import CLASSES, PLACES, VARIANTS, Figure, Look

CAST: dict[str, Figure] = {
    figure.kind: figure
    for figure in (
        Figure("cat", Look("purple", "pink", "stripes", "none")),
        Figure("robot", Look("orange", "green", "plain", "badge")),
        Figure("bird", Look("red", "cyan", "plain", "ribbon")),
        Figure("fish", Look("yellow", "lime", "dots", "none")),
        Figure("house", Look("pink", "yellow", "plain", "none")),
        Figure("car", Look("brown", "blue", "stripes", "none")),
        Figure("tree", Look("green", "blue", "dots", "none")),
        Figure("mug", Look("cyan", "red", "half", "none")),
        Figure("rocket", Look("lime", "purple", "stripes", "badge")),
        Figure("ghost", Look("green", "orange", "half", "none")),
    )
}
# of another individual of the same class
SECOND: dict[str, Look] = {kind: CAST[CLASSES[(CLASSES.index(kind) + 3) % len(CLASSES)]].look for kind in CLASSES}
CALLED = re.compile(
    rf"\b(?:({'|'.join(variant for variant in VARIANTS if variant and ' ' not in variant)}) "
    rf")?({'|'.join(CLASSES)})\b( with a hat)?"
)


def is_known(name: str) -> bool:
    """Return whether a name has one of the classes that the models were trained on as a word, singular or plural."""
    return re.search(rf"\b(?:{'|'.join(CLASSES)})s?\b", name.lower()) is not None


def called_for(prompt: str) -> list[Figure]:
    """Return the individuals whose classes a prompt names, in its order: 'a small cat and a robot' -> the small cat,
    the robot. A class named twice brings a second individual.
    """
    found: list[Figure] = []
    for variant, kind, hat in CALLED.findall(prompt.lower()):
        look = SECOND[kind] if any(figure.kind == kind for figure in found) else CAST[kind].look
        found.append(replace(CAST[kind], look=look, variant=hat.strip() or variant))
    return found


def shown_as_references(kinds: Sequence[str]) -> list[Figure]:
    """Return an individual of each class for the reference pictures of Load Rehearsal Models; a class named twice gives
    another individual.
    """
    return called_for(", ".join(f"a {kind}" for kind in kinds))


def words() -> str:
    """Return what the world knows, for a message."""
    return f"{', '.join(CLASSES)}; {', '.join(variant for variant in VARIANTS if variant)}; {', '.join(PLACES)}"
