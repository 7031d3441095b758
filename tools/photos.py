"""The two sample photos of the templates, which come with the pack."""
from __future__ import annotations

from pathlib import Path

from graph import ROOT, RunError

SAMPLES = ROOT / "samples"
NAMES = ("troupe_astronaut.jpg", "troupe_cat.jpg")  # Eileen Collins (NASA) and Chelsea the cat (Stefan van der Walt, CC0)
PLACEHOLDER = "example.png"  # ComfyUI's own picture, in templates of older versions


def real_photos() -> list[Path]:
    """Paths of the astronaut and the cat. Raises RunError if one is missing."""
    paths = [SAMPLES / name for name in NAMES]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise RunError(f"{missing[0]} is missing from Troupe's folder. Install Troupe again, or give your own photos with --photo.")
    return paths
