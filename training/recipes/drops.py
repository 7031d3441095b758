"""Which parts of a picture's conditions are left out, so that classifier-free guidance works afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..examples.draws import Draw


@dataclass(frozen=True)
class Dropped:
    """Conditions of a drawn picture that are left out: its caption, its references."""

    text: bool
    images: bool


def dropped(draw: Draw, options: Any) -> Dropped:
    """Return what is left out of a draw.

    options: has drop_text, drop_images and drop_both, which exclude each other.
    """
    number = draw.chance("drop").random()
    if number < options.drop_both:
        return Dropped(True, True)
    number -= options.drop_both
    if number < options.drop_text:
        return Dropped(True, False)
    return Dropped(False, number - options.drop_text < options.drop_images)
