"""Subject-Diffusion's modules, each a file of its own, found beside the one that was chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ...checkpoints.adapter_file import WEIGHTS
from ...checkpoints.files import EXTENSIONS, read_state
from ...checkpoints.tensors import State

OPTIONAL = "clip_visual"
MEMBERS = ("unet", "clip_text", "mlp", "proj", OPTIONAL)
MEMBER = re.compile(rf"({'|'.join(MEMBERS)})(?:_(.+))?$")
FUSER, POSITION_NET = ".fuser.", "position_net."
SIGNS = {  # member -> names that it has
    "unet": ("conv_in.weight",),
    "clip_text": ("embeddings.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    "mlp": ("fc1.weight",),
    "proj": ("null_image_feature", "fc1.weight"),
    OPTIONAL: ("ln_post.weight", "visual.ln_post.weight", "vision_model.post_layernorm.weight", "proj", "visual.proj"),
}


def fits(names: Iterable[str], member: str | None) -> bool:
    """Return whether tensors of these names can be that member. GLIGEN's whole UNets have fusers too, and a position
    net.
    """
    names = set(names)
    if member == "unet" and (not any(FUSER in name for name in names) or any(POSITION_NET in name for name in names)):
        return False
    return any(sign in names for sign in SIGNS.get(member or "", ()))


def member_of(path: Path, state: State) -> str | None:
    """Return which member a file is: a UNet by its tensors alone, the others by their place too."""
    if fits(state, "unet"):
        return "unet"
    match = MEMBER.match(member_name(path) or "")
    member = match[1] if match else None
    return member if fits(state, member) else None


def read_members(path: Path, member: str, state: State) -> dict[str, State]:
    """Read all members beside the chosen one, whose tensors `state` are read already.

    Raises CheckpointError.
    """
    found = {name: read_state(file) for name, file in members(path).items() if file != path}
    return {**found, member: state}


def members(path: Path) -> dict[str, Path]:
    """Return Subject-Diffusion's modules that lie beside the chosen one, itself among them, by their names in MEMBERS.

    Either folders `unet_0_449999/pytorch_model.bin` or files `unet_0_449999.bin`. Of several steps it is the chosen
    file's, or else the only one that there is. {} if the chosen file is not called like a member.
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
    """Return which member a file is by its name or its folder's, with the epoch and step that follow:
    'unet_0_449999'.
    """
    return next((name for name in (path.stem, path.parent.name) if MEMBER.match(name)), None)


def _pick(steps: dict[str, Path], suffix: str) -> Path | None:
    return steps.get(suffix) or (next(iter(steps.values())) if len(steps) == 1 else None)


def _weights_in(folder: Path, preferred: str) -> Path | None:
    """The weight file of a member's folder: called like the chosen one, or as usual, or the only one."""
    files = {file.name: file for file in sorted(folder.iterdir()) if file.suffix.lower() in EXTENSIONS}
    usual = [file for name in WEIGHTS for file in files.values() if file.stem == name]
    return files.get(preferred) or next(iter(usual), None) or (next(iter(files.values())) if len(files) == 1 else None)
