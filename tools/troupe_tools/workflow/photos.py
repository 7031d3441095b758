"""The two sample photos of the templates, which come with the pack, and whether a photo can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import RunError
from ..pack import ROOT

SAMPLES = ROOT / "samples"
# Eileen Collins (NASA) and Chelsea the cat (Stefan van der Walt, CC0)
NAMES = ("troupe_astronaut.jpg", "troupe_cat.jpg")
PLACEHOLDER = "example.png"  # ComfyUI's own picture, in templates of older versions


def real_photos() -> list[Path]:
    """Return the paths of the astronaut and the cat. Raises RunError if one is missing."""
    paths = [SAMPLES / name for name in NAMES]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise RunError(
            f"{missing[0]} is missing from Troupe's folder. Install Troupe again, or give your own photos with --photo."
        )
    return paths


def check_photos(photos: Sequence[Path]) -> None:
    """Raise RunError for a file that is no picture, by the name that the user gave it.

    Files that are not there are left to `edit`.
    """
    from PIL import Image

    for path in photos:
        if path.is_file():
            try:
                with Image.open(path) as picture:
                    picture.load()
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                raise RunError(
                    f"{path} is no picture that can be read ({type(error).__name__}). Give a JPEG, PNG or "
                    "WebP file with --photo."
                ) from error
