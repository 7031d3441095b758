"""What results depend on beside the tasks: photos, models, versions of packages."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..model_patches.checkpoints.hashes import sha256_of
from ..rehearsal.files import CLIP_WEIGHTS, DINO_WEIGHTS
from ..rehearsal.files import FOLDER as REHEARSAL_FILES
from .scores.making import REHEARSAL_CLIP, REHEARSAL_DINO
from .scores.scores import Scorer
from .settings import EngineSettings, EvaluationSettings
from .suites.suite import Suite

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "numpy", "pillow")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
DIGITS = 16  # of a sha256
# of rehearsal models that only count: no picture depends on them
OWN_FILES = {REHEARSAL_CLIP: CLIP_WEIGHTS, REHEARSAL_DINO: DINO_WEIGHTS}


def origin_of(
    settings: EvaluationSettings, suite: Suite, scorers: Sequence[Scorer], workflows: Sequence[Path] = ()
) -> dict[str, str]:
    """Return what the results of these settings depend on, by name. Photos that are missing are left out. workflows:
    the files that servers get.
    """
    files = {}
    for case in suite.cases:
        files |= {photo: suite.folder / photo for photos in case.references for photo in photos}
        files |= {photo: suite.painted_from / photo for subject in case.subjects for photo in subject.photos}
    return {
        "suite": suite.name,
        "engine": _engine(settings.engine),
        **{f"score {column}": fingerprint(one.model) for one in scorers for column in one.columns},
        **{f"workflow {path.as_posix()}": _sha256(path) for path in workflows},
        **{f"photo {photo}": _sha256(path) for photo, path in sorted(files.items()) if path.is_file()},
    }


def _engine(chosen: EngineSettings) -> str:
    """What paints. Ray's actors paint what the embedded engine paints; which models a server has is not known."""
    if chosen.kind == "comfyui":
        return "comfyui"
    return f"embedded, rehearsal models {rehearsal_models()}"


def fingerprint(model: str) -> str:
    """Return a model's name, with the sha256 of its weights where it is a folder or comes with the pack.

    model: several models with commas.
    """
    names = []
    for name in model.split(", "):
        folder = Path(name)
        if name in OWN_FILES:
            name += f" {_sha256(REHEARSAL_FILES / OWN_FILES[name])}"
        elif name.startswith("rehearsal"):
            name += f" {rehearsal_models()}"
        elif folder.is_dir():
            weights = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
            name = f"{folder.name} {' '.join(_sha256(path) for path in weights)}"
        names.append(name)
    return ", ".join(names)


def rehearsal_models() -> str:
    """Return a hash of all rehearsal models but those of OWN_FILES, which neither paint nor find subjects."""
    found = hashlib.sha256()
    for path in sorted(REHEARSAL_FILES.glob("*.safetensors")):
        found.update(_sha256(path).encode())
    return found.hexdigest()[:DIGITS]


def versions() -> dict[str, str]:
    """Return the versions of Troupe, Python and the packages, and the machine."""
    found = re.search(r'^version = "(.+?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return {
        "troupe": found[1] if found else "unknown",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _sha256(path: Path) -> str:
    return sha256_of(path)[:DIGITS]
