"""Files that belong together, found beside the one that was chosen: parts of one file, GLIGEN's projection matrix, modules of Subject-Diffusion
and MM-Diff."""
from __future__ import annotations

import re
from collections.abc import Iterable
from glob import escape
from pathlib import Path

import torch

from ..errors import CheckpointError
from .files import EXTENSIONS, read_state
from .tensors import check_numbers

MATRIX = "projection_matrix"
IMAGE_PROJECT = "image_project"  # the same in a diffusers repository
MEMBERS = ("unet", "clip_text", "mlp", "proj", "clip_visual")
MEMBER = re.compile(rf"({'|'.join(MEMBERS)})(?:_(.+))?$")
MM_DIFF = ("unet_adapter_weights", "text_encoder_adapter_weights", "custom_weights")  # its files' usual names
AGAIN = "Download it again from the publisher of the file that it belongs to."
PART = re.compile(r"(.+)-\d{5}-of-(\d{5})$")  # diffusers cuts big files: diffusion_pytorch_model-00001-of-00002
WEIGHTS = ("pytorch_model", "model", "diffusion_pytorch_model")  # usual names within a folder


def adapter_label(path: str | Path) -> str:
    """What to call a file: its name, with the folder's where the name is one that every file has."""
    path = Path(str(path).replace("\\", "/"))
    return f"{path.parent.name}/{path.name}" if (PART.match(path.stem) or [path.stem, path.stem])[1] in WEIGHTS and path.parent.name else path.name


def belonging(path: Path) -> tuple[Path, ...]:
    """Every file that may be read with this one, it first."""
    more = [*parts(path), matrix_file(path), *members(path).values(), *beside(path, MM_DIFF).values()]
    return (path, *(other for other in dict.fromkeys(more) if other is not None and other != path))


def parts(path: Path) -> tuple[Path, ...]:
    """All parts of a file that was cut into several, or the file alone."""
    cut = PART.match(path.stem)
    return tuple(sorted(path.parent.glob(f"{escape(cut[1])}-?????-of-{cut[2]}{escape(path.suffix)}"))) if cut else (path,)


def read_whole(path: Path, label: str) -> dict[str, torch.Tensor]:
    """`read_state` of a file, or of all its parts. Raises CheckpointError where one is missing."""
    cut, found = PART.match(path.stem), parts(path)
    if cut and len(found) != int(cut[2]):
        raise CheckpointError(f"{int(cut[2])} parts of '{label}' beside each other", f"{len(found)}", "Download the others from the same page into the same folder.")
    return {name: tensor for file in found for name, tensor in read_state(file, label if file == path else file.name).items()}


def matrix_file(path: Path) -> Path | None:
    """`projection_matrix` beside a checkpoint, or `image_project/diffusion_pytorch_model.*` beside it or one folder up."""
    beside = [path.parent / f"{MATRIX}{extension}" for extension in ("", *EXTENSIONS)]
    folders = [folder / IMAGE_PROJECT for folder in (path.parent, path.parent.parent)]
    beside += [folder / f"{name}{extension}" for folder in folders for name in reversed(WEIGHTS) for extension in EXTENSIONS]
    return next((file for file in beside if file.is_file()), None)


def read_matrix(path: Path) -> torch.Tensor | None:
    """P [E, E] for the checkpoint at `path`, with which image features are `e P`; None where it has none beside it.

    The official file holds P itself, the weight of CLIP's text projection. diffusers keeps it as the weight of a Linear `project`, which computes
    `e W^T`: there P is W transposed.
    Raises:
        CheckpointError: the file is unreadable or holds something else.
    """
    file = matrix_file(path)
    if file is None:
        return None
    state = read_state(file)
    if len(state) != 1:
        raise CheckpointError(f"one matrix in '{file.name}'", f"{len(state)} tensors", AGAIN)
    (name, matrix), = state.items()
    if matrix.ndim != 2:
        raise CheckpointError(f"'{name}' of '{file.name}' to be a matrix", f"the shape {list(matrix.shape)}", AGAIN)
    check_numbers(matrix, name, file.name)
    return matrix.mT.contiguous() if name.endswith("project.weight") else matrix


def beside(path: Path, names: Iterable[str]) -> dict[str, Path]:
    """The weight files in the folder of `path` that have these names, the one with its extension first."""
    files = {name: [path.parent / f"{name}{extension}" for extension in (path.suffix, *EXTENSIONS)] for name in names}
    return {name: next(filter(Path.is_file, candidates)) for name, candidates in files.items() if any(map(Path.is_file, candidates))}


def members(path: Path) -> dict[str, Path]:
    """Subject-Diffusion's modules that lie beside the chosen one, itself among them, by their names in MEMBERS.

    Either folders `unet_0_449999/pytorch_model.bin` or files `unet_0_449999.bin`. Of several steps it is the chosen file's, or else the only one
    that there is. {} where the chosen file is not called like a member.
    """
    in_folders = MEMBER.match(path.stem) is None
    chosen = MEMBER.match(path.parent.name if in_folders else path.stem)
    if chosen is None:
        return {}
    found: dict[str, dict[str, Path]] = {}
    for entry in sorted((path.parent.parent if in_folders else path.parent).iterdir()):
        match = MEMBER.match(entry.name if in_folders else entry.stem)
        file = _weights_in(entry, path.name) if in_folders and entry.is_dir() else entry
        if match and file is not None and file.is_file() and file.suffix.lower() in EXTENSIONS:
            found.setdefault(match[1], {}).setdefault(match[2] or "", file)
    picked = {name: _pick(steps, chosen[2] or "") for name, steps in found.items() if name != chosen[1]}
    return {chosen[1]: path} | {name: file for name, file in picked.items() if file is not None}


def member_name(path: Path) -> str | None:
    """Which member a file is by its name or its folder's, with the epoch and step that follow: 'unet_0_449999'."""
    return next((name for name in (path.stem, path.parent.name) if MEMBER.match(name)), None)


def _pick(steps: dict[str, Path], suffix: str) -> Path | None:
    return steps.get(suffix) or (next(iter(steps.values())) if len(steps) == 1 else None)


def _weights_in(folder: Path, preferred: str) -> Path | None:
    """The weight file of a member's folder: called like the chosen one, or as usual, or the only one."""
    files = {file.name: file for file in sorted(folder.iterdir()) if file.suffix.lower() in EXTENSIONS}
    usual = [file for name in WEIGHTS for file in files.values() if file.stem == name]
    return files.get(preferred) or next(iter(usual), None) or (next(iter(files.values())) if len(files) == 1 else None)
