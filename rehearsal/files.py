"""The shipped rehearsal files: where they lie, what they are called, and reading them."""

from __future__ import annotations

from pathlib import Path

import torch

from ..model_patches.checkpoints.files import read_state
from ..model_patches.errors import CheckpointError

FOLDER = Path(__file__).parent / "files"
UNET, TEXTS, IMAGES = "unet.safetensors", "text_encoder.safetensors", "image_encoder.safetensors"
# what acts beside the text attention, and what puts subjects into the prompt
ADAPTERS = {"ip": "rehearsal_ip_adapter.safetensors", "mip": "rehearsal_mip_adapter.safetensors"}
PROMPT_ADAPTERS = {
    "umm": "rehearsal_umm_diffusion.safetensors",
    "fastcomposer": "rehearsal_fastcomposer.safetensors",
    "subject": "rehearsal_subject_diffusion.safetensors",
    "mm": "rehearsal_mm_diff.safetensors",
}
EVERY_ADAPTER = ADAPTERS | PROMPT_ADAPTERS
OFFERED = {  # values of the combo of Load Rehearsal Models -> keys of EVERY_ADAPTER
    "mip_adapter": "mip",
    "ip_adapter": "ip",
    "fastcomposer": "fastcomposer",
    "umm_diffusion": "umm",
    "subject_diffusion": "subject",
    "mm_diff": "mm",
}
CLIP = "clip"  # a folder in transformers' layout: counts CLIP-T of the world's pictures
CLIP_WEIGHTS = f"{CLIP}/model.safetensors"
DINO = "dino"  # a folder in transformers' layout: counts DINOv2 likeness of the world's pictures
DINO_WEIGHTS = f"{DINO}/model.safetensors"
VOCABULARY = 49408
# in the text encoder's file: rows of the words that the world knows, and their ids
TABLE, IDS = "embeddings.token_embedding.weight", "token_ids"
AGAIN = "It comes with Troupe: reinstall or update the pack."


def state_of(*names: str) -> tuple[tuple[int, int] | None, ...]:
    """Return size and time of files in `FOLDER`, None for one that is missing: other values mean another file."""
    stats = [(FOLDER / name).stat() if (FOLDER / name).is_file() else None for name in names]
    return tuple(None if stat is None else (stat.st_size, stat.st_mtime_ns) for stat in stats)


def read(name: str, folder: Path = FOLDER) -> dict[str, torch.Tensor]:
    """Read the tensors of a shipped file, float32 where they are numbers.

    Raises CheckpointError where it is missing or damaged.
    """
    try:
        state = read_state(folder / name)
    except CheckpointError as error:
        raise CheckpointError(error.expected, error.found, AGAIN) from error
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def full_table(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the text encoder's tensors with all of CLIP's vocabulary: words that the world does not know are zeros, as
    they were in training.

    Raises CheckpointError where the file lacks its table.
    """
    state = dict(state)
    if not {TABLE, IDS} <= state.keys():
        raise CheckpointError(
            f"'{TEXTS}' to hold the rehearsal model", f"no tensor '{TABLE if TABLE not in state else IDS}'", AGAIN
        )
    rows, ids = state.pop(TABLE), state.pop(IDS)
    state[TABLE] = rows.new_zeros(VOCABULARY, rows.shape[1]).index_copy_(0, ids.long(), rows)
    return state


def load_into(module: torch.nn.Module, state: dict[str, torch.Tensor], name: str) -> torch.nn.Module:
    """Fill a module with a file's tensors, ready to run. Raises CheckpointError where names or shapes differ."""
    own = module.state_dict()
    odd = [key for key, value in state.items() if key in own and own[key].shape != value.shape]
    if not odd:
        odd = [
            key
            for keys in module.load_state_dict(state, strict=False)
            for key in keys
            if not key.endswith("position_ids")
        ]
    if odd:
        raise CheckpointError(f"'{name}' to hold the rehearsal model", f"a difference at '{min(odd)}'", AGAIN)
    return module.eval().requires_grad_(False)
