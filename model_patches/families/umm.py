"""UMM-Diffusion (arXiv 2303.09319), of which nothing was published, in a safetensors format of Troupe, for SD1.5 and
the rehearsal world.

Tensors `mapping.layers.{i}.weight` [out, in] and `.bias` [out], i from 0 without a gap, and optional LayerNorms
`mapping.input_norm` and `mapping.output_norm`. Metadata, all texts: `format` umm_diffusion; `version` 1; `base` sd15 or
rehearsal; `image_encoder` openai/clip-vit-large-patch14 or rehearsal; `image_feature` projected, or pooled (CLS after
the last norm, before the projection); `normalize` true or false; `activation` gelu, relu, leaky_relu or silu; `tokens`,
pseudo words a subject.
Without metadata: version 1, sd15, projected, false, gelu, 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..adapter import Adapter, AdapterSpec, EncoderNeed, PhotoSpec, PromptFusion, PromptSpec
from ..bases import REHEARSAL_BASE, SD15_BASE
from ..checkpoints.adapter_file import AdapterFile
from ..checkpoints.tensors import SMALL_NUMBER, State, assign, check_format, missing, part, reading
from ..encoders.pseudo_words import ACTIVATIONS, PseudoWords
from ..encoding.interfaces import EncodeInputs
from ..encoding.prompt_vectors import prompt_vectors
from ..errors import CheckpointError, quoted
from ..subjects import References

FORMAT, VERSION = "umm_diffusion", 1
MAPPING = "mapping."
LABELS = {"umm": "UMM-Diffusion"}
FUSION = PromptFusion(keeps_other_rows=True)
KIND = "a UMM-Diffusion mapping"
FEATURES = {"projected": "pooled", "pooled": "unprojected"}  # `image_feature` -> kind of an EncoderNeed
CONVERT = "Save the mapping again with the metadata that it was trained with."


@dataclass(frozen=True)
class MappingBase:
    """A base model that mappings are made for.

    text: hidden size of the text encoder; image_encoder: its name in the metadata; features: what is read of it, by
    `image_feature`.
    """

    text: int
    image_encoder: str
    features: Mapping[str, EncoderNeed]


def _base(text: int, image_encoder: str, projected: int, pooled: int) -> MappingBase:
    widths = {"projected": projected, "pooled": pooled}
    needs = {name: EncoderNeed(kind, widths[name]) for name, kind in FEATURES.items()}
    return MappingBase(text, image_encoder, needs)


MAPPING_BASES = {
    "sd15": _base(SD15_BASE.width, "openai/clip-vit-large-patch14", 768, 1024),
    "rehearsal": _base(REHEARSAL_BASE.width, "rehearsal", 256, 128),
}


def matches(file: AdapterFile) -> bool:
    """Return whether the file's tensors are a mapping, whole or not."""
    return any(name.startswith(f"{MAPPING}layers.") for name in file.state)


def load(file: AdapterFile, operations: Any = nn) -> Adapter:
    """See `build`."""
    return build(file.state, file.label, operations, file.metadata)


def encode(given: EncodeInputs) -> tuple[References, list[str]]:
    """Encode the mean of the photos' pseudo words, for the subject's word; published is one photo."""
    return prompt_vectors(given, lambda embeds: given.project(embeds))


def companions(path: Path) -> Iterable[Path]:
    """Return no files: everything is in one."""
    return ()


def build(state: State, file: str, operations: Any = nn, metadata: Mapping[str, str] | None = None) -> Adapter:
    """Build the mapping from a photo to pseudo words, weights in the file's own dtypes.

    Arguments:
        state: the file's tensors; file: its name, for messages.
        operations: namespace with Linear and LayerNorm; metadata: the file's texts.
    Raises:
        CheckpointError: metadata of another format, version, base or encoder, widths that fit neither, or a tensor that
            is missing, misshapen or unknown.
    """
    texts = {
        "base": "sd15",
        "image_feature": "projected",
        "normalize": "false",
        "activation": "gelu",
        "tokens": "1",
    } | dict(metadata or {})
    _check_texts(texts, file)
    target, tokens, mapping_state = MAPPING_BASES[texts["base"]], int(texts["tokens"]), part(state, MAPPING)
    need = target.features[texts["image_feature"]]
    _check_numbers(mapping_state, file)
    with torch.device("meta"):
        with reading(file, MAPPING):
            widths = PseudoWords.widths(mapping_state)
        _check_mapping(widths, need.width, target.text, tokens, file)
        mapping = PseudoWords(
            **widths,
            tokens=tokens,
            activation=texts["activation"],
            normalize=texts["normalize"] == "true",
            operations=operations,
        )
    assign(mapping, state, {name: f"{MAPPING}{name}" for name in mapping.state_dict()}, file, KIND)
    spec = AdapterSpec(
        "umm",
        file,
        target.text,
        (PhotoSpec(need), PromptSpec(FUSION, {"l": target.text}, tokens)),
        LABELS["umm"],
    )
    return Adapter(spec, mapping, None)


def _check_texts(texts: Mapping[str, str], file: str) -> None:
    """Raise CheckpointError for metadata that mean something else."""
    found = texts.get("format", FORMAT)
    if found != FORMAT:
        raise CheckpointError(f"the format {FORMAT} in the metadata of '{file}'", quoted(found), CONVERT)
    check_format(texts, FORMAT, VERSION, file)
    target = MAPPING_BASES.get(texts["base"])
    allowed: dict[str, Collection[str]] = {
        "base": MAPPING_BASES,
        "image_encoder": () if target is None else (target.image_encoder,),
        "image_feature": FEATURES,
        "normalize": ("true", "false"),
        "activation": ACTIVATIONS,
    }
    for name, values in allowed.items():
        if name in texts and texts[name] not in values:
            raise CheckpointError(
                f"{' or '.join(values)} as '{name}' in the metadata of '{file}'", quoted(texts[name]), CONVERT
            )
    if not SMALL_NUMBER.fullmatch(texts["tokens"]):
        raise CheckpointError(
            f"a number from 1 to 99 as 'tokens' in the metadata of '{file}'", quoted(texts["tokens"]), CONVERT
        )


def _check_numbers(state: State, file: str) -> None:
    """Raise CheckpointError for a gap in the layers' numbers."""
    numbers = {number for name in state if name.startswith("layers.") and (number := name.split(".")[1]).isdecimal()}
    absent = [name for name in (f"layers.{i}.weight" for i in range(len(numbers) or 1)) if name not in state]
    if absent:
        raise missing(f"{MAPPING}{absent[0]}", file)


def _check_mapping(widths: Mapping[str, Any], feature: int, text: int, tokens: int, file: str) -> None:
    """Raise CheckpointError unless the mapping leads from the encoder's width to `tokens` words."""
    first, last = widths["layer_widths"][0], widths["layer_widths"][-1]
    if first != feature:
        raise CheckpointError(
            f"'{MAPPING}layers.0.weight' of '{file}' to read a photo's {feature} numbers", f"{first} columns", CONVERT
        )
    if last != tokens * text:
        words = "one pseudo word" if tokens == 1 else f"{tokens} pseudo words"
        raise CheckpointError(f"the last layer of '{file}' to return {words} of size {text}", f"{last} rows", CONVERT)
    if widths["output_norm"] not in (0, text, last):
        raise CheckpointError(
            f"'{MAPPING}output_norm.weight' of '{file}' to have {text} numbers",
            f"{widths['output_norm']}",
            CONVERT,
        )
