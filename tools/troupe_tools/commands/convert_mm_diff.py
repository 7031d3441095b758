"""MM-Diff's three files made into one safetensors file.

python custom_nodes/comfyui-troupe/tools/convert_mm_diff.py
models/subject_adapters/portrait_generation/custom_weights.bin models/subject_adapters/mm_diff.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import safetensors.torch
import torch

from ..pack import load_pack


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("member", type=Path, help="any of the three files; the others are found beside it")
    parser.add_argument("output", type=Path, help="the file to write, .safetensors")
    parser.add_argument("--half", action="store_true", help="numbers of 16 bits instead of the files' own")
    options = parser.parse_args()
    load_pack()
    from troupe.model_patches.errors import CheckpointError

    try:
        tensors, metadata = bundle(options.member, options.half)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, options.output, metadata)
    print(f"{options.output}: {len(tensors)} tensors, {options.output.stat().st_size / 1e9:.2f} GB")
    return 0


def bundle(path: Path, half: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and metadata of the bundle. Raises CheckpointError if the files are not whole."""
    from troupe.model_patches.checkpoints.files import read_state
    from troupe.model_patches.errors import CheckpointError
    from troupe.model_patches.families.mm_diff import layout as mm_diff
    from troupe.model_patches.families.mm_diff import read_members, which_member

    state = read_state(path)
    member = which_member(path, state)
    if member is None:
        remedy = "Give 'unet_adapter_weights.bin', 'text_encoder_adapter_weights.bin' or 'custom_weights.bin'."
        raise CheckpointError(
            f"one of MM-Diff's three files in '{path.name}'", f"tensors such as '{next(iter(state))}'", remedy
        )
    found = mm_diff.bundled(read_members(path, member, state))
    mm_diff.build(found, path.name, beside="beside it")
    metadata = {"format": mm_diff.FORMAT, "version": str(mm_diff.VERSION)}
    return {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in found.items()
    }, metadata
