"""Subject-Diffusion's modules, as its training saves them, made into one safetensors file: what Troupe reads of them
and no more.

    python custom_nodes/comfyui-troupe/tools/convert_subject_diffusion.py
    models/subject_adapters/unet_0_449999/pytorch_model.bin models/subject_adapters/mine.safetensors --half
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
    parser.add_argument(
        "member", type=Path, help="the weight file of any of the modules; the others are found beside it"
    )
    parser.add_argument("output", type=Path, help="the file to write, .safetensors")
    parser.add_argument("--half", action="store_true", help="numbers of 16 bits instead of the file's own")
    parser.add_argument("--slots", type=int, default=2, help="subjects that it was trained with (2)")
    options = parser.parse_args()
    load_pack()
    from troupe.model_patches.errors import CheckpointError

    try:
        tensors, metadata = bundle(options.member, options.half, options.slots)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, options.output, metadata)
    print(f"{options.output}: {len(tensors)} tensors, {options.output.stat().st_size / 1e9:.2f} GB")
    return 0


def bundle(path: Path, half: bool, slots: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors and metadata of the bundle. Raises CheckpointError if the modules are not whole."""
    from troupe.model_patches.checkpoints.adapter_file import adapter_label
    from troupe.model_patches.checkpoints.files import read_state
    from troupe.model_patches.errors import CheckpointError
    from troupe.model_patches.families.subject_diffusion import layout as subject_diffusion
    from troupe.model_patches.families.subject_diffusion.members import member_of, read_members

    label, state = adapter_label(path), read_state(path, adapter_label(path))
    member = member_of(path, state)
    if member is None:
        remedy = "Give the weight file in a folder such as 'unet_0_449999'."
        raise CheckpointError(
            f"one of Subject-Diffusion's modules in '{label}'", f"tensors such as '{next(iter(state))}'", remedy
        )
    members = read_members(path, member, state)
    subject_diffusion.build(members, label, beside="beside it", slots=slots)
    found = subject_diffusion.needed(members)
    metadata = {"format": subject_diffusion.FORMAT, "version": str(subject_diffusion.VERSION), "slots": str(slots)}
    return {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in found.items()
    }, metadata
