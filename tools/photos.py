"""Two real photos that come inside the scikit-image package: no download, free to use (NASA; public domain)."""
from __future__ import annotations

from pathlib import Path

from graph import RunError

PLACEHOLDER = "example.png"  # the host's own picture, which the templates hold
REAL = ("astronaut.png", "chelsea.png")  # Eileen Collins (NASA) and Chelsea the cat (Stefan van der Walt, CC0)


def real_photos() -> list[Path]:
    """Paths of the astronaut and the cat. Raises RunError where scikit-image is missing."""
    try:
        import skimage
    except ImportError:
        raise RunError('The two real photos come with scikit-image, which is not installed. Run: pip install -e ".[run]" (or give your own with --photo).') from None
    found = [Path(skimage.__file__).parent / "data" / name for name in REAL]
    missing = [path for path in found if not path.is_file()]
    if missing:
        raise RunError(f"scikit-image came without {missing[0].name}. Reinstall it (pip install --force-reinstall scikit-image), or give your own photos with --photo.")
    return found
