"""MM-Diff (arXiv 2403.15059): three files that belong together, each a pickle, or all in one bundle.

`unet_adapter_weights`: see unet.py; `text_encoder_adapter_weights`: LoRAs of the text encoders; `custom_weights`: the
heads, what fuses photos with words, and the retrained part of the image encoder.

A bundle is a safetensors file in Troupe's format: the first file's tensors below `unet.`, the others' as they are,
which begin with `text_encoder.`, `text_encoder_2.`, `image_encoder.`, `obj_embeds_proj.`, `face_embeds_proj.`,
`mm_fuse_one.` and `mm_fuse_two.`; metadata `format` mm_diff, `version` 1. tools/convert_mm_diff.py makes one;
tools/train.py too, also for SD1.5 and the rehearsal world, which have one text encoder and for which none was
published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import nn

from ...adapter import (
    Adapter,
    AdapterSpec,
    EncoderNeed,
    ImageAttentionSpec,
    PhotoSpec,
    PromptFusion,
    PromptSpec,
    Weights,
)
from ...checkpoints.clip_vision import overlay
from ...checkpoints.tensors import AGAIN, State, assign, check_format, check_matrix, part, reading
from ...encoders.mm_diff import LoraLayers, MMDiffHeads
from ...encoders.refiner import FACE_WIDTH, SERefiner, SubjectHead
from ...encoders.words import PhotoToWords, WordFusion
from ...errors import CheckpointError
from . import text_lora
from . import unet as unet_layout
from .unet import KIND

FORMAT, VERSION = "mm_diff", 1
# the files' usual names
MEMBERS = UNET, TEXT, CUSTOM = "unet_adapter_weights", "text_encoder_adapter_weights", "custom_weights"
FUSION = PromptFusion(learned=True, starts_image_attention=True)
BELOW, VISION_PREFIX, LORAS = "unet.", "image_encoder.", tuple(f"{name}." for name in text_lora.STREAM_OF_ENCODER)
WORDS, HEAD = "obj_embeds_proj.", "face_embeds_proj."
FUSIONS = {"l": "mm_fuse_one.", "g": "mm_fuse_two."}
OWN = (WORDS, HEAD, *FUSIONS.values())  # sections that only such files have
# the beginning of our modules' names -> of the file's
SECTIONS = {"heads.words.": WORDS, "heads.head.": HEAD} | {f"fusion.{stream}.": p for stream, p in FUSIONS.items()}


def member_of(names: Iterable[str]) -> str | None:
    """Return which of MEMBERS tensors of these names are, None for none of them. The text encoders' could be of any
    LoRA.
    """
    names = list(names)
    if unet_layout.recognised(names):
        return UNET
    if any(name.startswith(OWN) for name in names) and not is_bundle(names):
        return CUSTOM
    return TEXT if text_lora.recognised(names) else None


def is_bundle(names: Iterable[str]) -> bool:
    """Return whether tensors of these names are a bundle, whole or not."""
    names = list(names)
    unet = [name.removeprefix(BELOW) for name in names if name.startswith(BELOW)]
    return unet_layout.recognised(unet) or (
        any(name.startswith(OWN) for name in names) and any(name.startswith((BELOW, *LORAS)) for name in names)
    )


def bundled(members: Mapping[str, State]) -> State:
    """Return the tensors of a bundle of those members, by MEMBERS."""
    unet = {f"{BELOW}{name}": tensor for name, tensor in members.get(UNET, {}).items()}
    return unet | {
        name: tensor
        for member in (TEXT, CUSTOM)
        for name, tensor in members.get(member, {}).items()
        if not name.endswith("position_ids")
    }


def build(
    state: State, file: str, operations: Any = nn, metadata: Mapping[str, str] | None = None, beside: str = "in it"
) -> Adapter:
    """Build the modules of an MM-Diff, weights in the files' own dtypes, and the LoRAs that it brings.

    Arguments:
        state: a bundle's tensors; file: name of the chosen file, for messages.
        operations: namespace with Linear and LayerNorm; metadata: of the bundle; beside: where the parts were looked
            for, in words.
    Raises:
        CheckpointError: a part is missing or of an unknown base model, or a tensor is missing, misshapen or unknown.
    """
    check_format(metadata or {}, FORMAT, VERSION, file)
    _check_parts(state, file, beside)
    heads, fusion = _heads(state, f"{CUSTOM} of {file}", operations)
    widths = _text_widths(fusion)
    loras = text_lora.text_lora(
        {name: tensor for name, tensor in state.items() if name.startswith(LORAS)}, widths, f"{TEXT} of {file}"
    )
    layers, unet_lora = unet_layout.read(part(state, BELOW), f"{UNET} of {file}", operations)
    base = unet_layout.base_of(part(state, BELOW), f"{UNET} of {file}")
    if (base == "SDXL") is not (len(fusion) == 2):
        found = f"low-rank pairs for the UNet of {base} and words for text encoders {', '.join(fusion)}"
        raise CheckpointError(f"parts for one base model in '{file}'", found, AGAIN)
    if heads.head.context_dim != layers.context_dim:
        raise CheckpointError(
            f"tokens of size {layers.context_dim} for the UNet from '{CUSTOM} of {file}'",
            f"{heads.head.context_dim}",
            AGAIN,
        )
    weights = Weights(
        vision=overlay(part(state, VISION_PREFIX), f"{CUSTOM} of {file}"), unet_lora=unet_lora, text_lora=loras
    )
    return Adapter(describe(heads, fusion, layers, file), heads, layers, weights=weights, fusion=fusion)


def describe(heads: MMDiffHeads, fusion: nn.ModuleDict, layers: LoraLayers, file: str) -> AdapterSpec:
    """Return what an MM-Diff of these modules is. file: its name, for messages."""
    reads_projected = heads.head.vector_dim == heads.words.fc.in_features
    # of the photo's projected embedding, or CLS before it
    kind = "FaceHead" if heads.head.reads_faces else "ObjectHead" if reads_projected else "CLSHead"
    return AdapterSpec(
        "mm_diff",
        file,
        layers.context_dim,
        (
            PhotoSpec(EncoderNeed("pooled", heads.words.fc.in_features), framing="black"),
            ImageAttentionSpec(kind, layers.widths, heads.head.tokens, text_gain=False, merge="joint"),
            PromptSpec(FUSION, _text_widths(fusion)),
        ),
        "MM-Diff",
    )


def _text_widths(fusion: nn.ModuleDict) -> dict[str, int]:
    return {stream: cast(WordFusion, module).fc2.out_features for stream, module in fusion.items()}


def _check_parts(state: State, file: str, beside: str) -> None:
    """Raise CheckpointError if the tensors of one of the three files are not there."""
    there = {UNET: BELOW, TEXT: LORAS, CUSTOM: OWN}
    absent = [name for name, prefixes in there.items() if not any(key.startswith(prefixes) for key in state)]
    if absent:
        expected = (
            f"MM-Diff's three files together ({', '.join(f'{name}.bin' for name in MEMBERS)}), of which '{file}' is one"
        )
        raise CheckpointError(
            expected,
            f"no {' and no '.join(absent)} {beside}",
            "Put all three into one folder, under these names, and choose any of them.",
        )


def _heads(state: State, file: str, operations: Any) -> tuple[MMDiffHeads, nn.ModuleDict]:
    """The heads, and the word fusion of each text encoder, with their weights. A file without a part for the second
    text encoder is for a base model with one.
    """
    own = {name: tensor for name, tensor in state.items() if not name.startswith((BELOW, VISION_PREFIX, *LORAS))}
    two = any(name.startswith(FUSIONS["g"]) for name in own) or f"{WORDS}proj_2.weight" in own
    streams = {stream: prefix for stream, prefix in FUSIONS.items() if two or stream == "l"}
    if two:
        check_matrix(own, f"{WORDS}proj_2.weight", file)
    with torch.device("meta"):
        with reading(file, WORDS):
            words = PhotoToWords.widths(part(state, WORDS))
        with reading(file, f"{HEAD}refiner."):
            SERefiner.widths(part(state, f"{HEAD}refiner."))
        with reading(file, HEAD):
            head = SubjectHead.widths(part(state, HEAD))
        fusions = {}
        for stream, prefix in streams.items():
            with reading(file, prefix):
                fusions[stream] = WordFusion.widths(part(state, prefix))
        heads = MMDiffHeads(words, head, operations)
        fusion = nn.ModuleDict(
            {stream: WordFusion(**widths, operations=operations) for stream, widths in fusions.items()}
        )
        modules = nn.ModuleDict({"heads": heads, "fusion": fusion})
    _check_sizes(words, head, {stream: widths["out_dim"] for stream, widths in fusions.items()}, file)
    assign(modules, own, {ours: file_name(ours) for ours in modules.state_dict()}, file, KIND)
    return heads, fusion


def file_name(name: str) -> str:
    """Return the file's name of a tensor that is called `heads.…` or `fusion.…` here."""
    return next(f"{there}{name.removeprefix(here)}" for here, there in SECTIONS.items() if name.startswith(here))


def _check_sizes(words: Mapping[str, int], head: Mapping[str, Any], text: Mapping[str, int], file: str) -> None:
    """Raise CheckpointError if the sections do not fit each other, or the head reads vectors of an unknown kind."""
    pairs = {
        "photos for CLIP-L": (words["one_dim"], text["l"]),
        "photos for OpenCLIP-bigG": (words["two_dim"], text.get("g", 0)),
    }
    for what, (found, wanted) in pairs.items():
        if found != wanted:
            raise CheckpointError(f"{what} of size {wanted} from '{file}'", f"{found}", AGAIN)
    known = {FACE_WIDTH: "ArcFace vectors", words["embed_dim"]: "projected CLS", head["refiner"]["embed_dim"]: "CLS"}
    if head["vector_dim"] not in known:
        expected = (
            f"'{HEAD}proj.0.weight' of '{file}' to read "
            f"{' or '.join(f'{what} ({width})' for width, what in known.items())}"
        )
        raise CheckpointError(
            expected,
            f"vectors of size {head['vector_dim']}",
            "This variant is not supported yet: please report it with a link to the file.",
        )
