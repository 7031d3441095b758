"""IP-Adapter and MIP-Adapter files: recognise by tensor names and shapes, convert, build the modules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..adapter import Adapter, AdapterSpec, EncoderNeed, ImageAttentionSpec, PhotoSpec
from ..checkpoints.adapter_file import AdapterFile
from ..checkpoints.refused import no_adapter, other_kind
from ..checkpoints.tensors import AGAIN, State, assign, check_matrix, part, reading
from ..checkpoints.trained_ip import is_training, published_layout
from ..encoders.decoupled import DecoupledLayers
from ..encoders.projections import FaceMLP, ImageProj, Resampler, resampler_module_name
from ..encoding.image_tokens import image_tokens
from ..encoding.interfaces import EncodeInputs
from ..encoding.warnings import name_warnings, region_warnings
from ..errors import CheckpointError
from ..subjects import References

PHOTOS = "image_proj."
# before the names of the layers, in files of the publishers and of some trainers
LAYERS = ("ip_adapter.", "adapter_modules.")
LABELS = {"ip_adapter": "IP-Adapter", "mip_adapter": "MIP-Adapter"}
NUMBER = re.compile(r"[0-9]{1,4}")


def matches(file: AdapterFile) -> bool:
    """Return whether the file has one of the two halves of an adapter, as published or as a training saves it, and is
    of no other known kind, such as FaceID, whose names are the same.
    """
    published = any(name.startswith((PHOTOS, *LAYERS)) for name in file.state)
    return (published or is_training(file.state)) and other_kind(file.state) is None


def load(file: AdapterFile, operations: Any = nn) -> Adapter:
    """See `build`."""
    return build(file.state, file.label, operations)


def encode(given: EncodeInputs) -> tuple[References, list[str]]:
    """Encode photos as image tokens, and names for relevance where there is a text encoder."""
    references = image_tokens(given)
    names = name_warnings(given.cast, given.prompts) if given.names is not None else []
    return references, names + region_warnings(given.cast)


def companions(path: Path) -> Iterable[Path]:
    """Return no files: everything is in one."""
    return ()


def build(state: State, file: str, operations: Any = nn) -> Adapter:
    """Build the modules of an IP-Adapter or MIP-Adapter, weights in the file's own dtypes.

    Arguments:
        state: flat tensors (`image_proj.*` and `ip_adapter.*` or `adapter_modules.*`), or those of a training's
            checkpoint (see `trained_ip`).
        file: its name, for messages.
        operations: namespace with Linear and LayerNorm.
    Raises:
        CheckpointError: another kind of file, or a tensor that is missing, misshapen or unknown.
    """
    state = published_layout(state, file)
    prefix = next((prefix for prefix in LAYERS if part(state, prefix)), LAYERS[0])
    projection_state, layer_state = part(state, PHOTOS), part(state, prefix)
    if not projection_state or not layer_state:
        half = PHOTOS if layer_state else LAYERS[0]
        found = f"{len(state)} tensors, none of them '{half}...'"
        raise no_adapter(file, found, AGAIN, list(LABELS.values()))
    with torch.device("meta"):
        projection, tokens, need = _projection(projection_state, file, operations)
        layers = _decoupled_layers(layer_state, prefix, file, operations)
    context_dim = _context_of(projection)
    if layers.context_dim != context_dim:
        raise CheckpointError(
            f"the two halves of '{file}' to be for one base model",
            f"image tokens of size {context_dim} and layers for size {layers.context_dim}",
            AGAIN,
        )
    _load(projection, {f"{PHOTOS}{k}": v for k, v in projection_state.items()}, PHOTOS, file)
    _load(layers, {f"{prefix}{k}": v for k, v in layer_state.items()}, prefix, file)
    family = "mip_adapter" if layers.text_gain else "ip_adapter"
    spec = AdapterSpec(
        family,
        file,
        context_dim,
        (
            PhotoSpec(need),
            ImageAttentionSpec(type(projection).__name__, layers.widths, tokens, layers.text_gain),
        ),
        LABELS[family],
    )
    return Adapter(spec, projection, layers)


def _projection(state: State, file: str, operations: Any) -> tuple[nn.Module, int, EncoderNeed]:
    """The projection module on the meta device, its tokens a subject, and the encoder output it reads."""
    with reading(file, PHOTOS):
        if "latents" in state or any(k.startswith("layers.") for k in state):
            widths = Resampler.widths(state)
            return (
                Resampler(**widths, operations=operations),
                widths["tokens"],
                EncoderNeed("penultimate", widths["embed_dim"]),
            )
        if any(k.startswith("proj.3.") or k.startswith("proj.2.") for k in state):
            widths = FaceMLP.widths(state)
            return FaceMLP(**widths, operations=operations), 0, EncoderNeed("penultimate", widths["embed_dim"])
        widths = ImageProj.widths(state)
        return ImageProj(**widths, operations=operations), widths["tokens"], EncoderNeed("pooled", widths["embed_dim"])


def _decoupled_layers(state: State, prefix: str, file: str, operations: Any) -> DecoupledLayers:
    """The cross-attention layers on the meta device, widths read off `{2j+1}.to_k_ip.weight` [C, D]."""
    indices = _indices(state)
    for index in range(1, max(indices, default=1) + 1, 2):
        check_matrix(state, f"{index}.to_k_ip.weight", file, prefix)
    shapes = [tuple(state[f"{index}.to_k_ip.weight"].shape) for index in indices]
    contexts = [d for _, d in shapes]
    context_dim = max(set(contexts), key=contexts.count)
    text_gain = any(k.endswith("text_to_weight.weight") for k in state)
    return DecoupledLayers(context_dim, [width for width, _ in shapes], text_gain, operations)


def _context_of(projection: nn.Module) -> int:
    if isinstance(projection, ImageProj):
        return projection.context_dim
    last = projection.proj_out if isinstance(projection, Resampler) else cast(nn.Sequential, projection.proj)[2]
    return cast(nn.Linear, last).out_features


def _load(module: nn.Module, published: State, prefix: str, file: str) -> None:
    """Assign the published tensors to the module after comparing every name and shape."""
    ours = _our_names(published, prefix)
    back = {ours_name: name for name, ours_name in ours.items()}
    names = {
        ours_name: back.get(ours_name) or _published_name(ours_name, prefix, ours) for ours_name in module.state_dict()
    }
    assign(module, published, names, file, "an IP-Adapter or MIP-Adapter")


def _our_names(published: State, prefix: str) -> dict[str, str]:
    """Published name -> name in our module. Layers are numbered by order: the j-th odd index is layer j."""
    if prefix == PHOTOS:
        return {name: resampler_module_name(name[len(prefix) :]) for name in published}
    order = {str(index): j for j, index in enumerate(_indices(name[len(prefix) :] for name in published))}
    names = {}
    for name in published:
        index, _, rest = name[len(prefix) :].partition(".")
        names[name] = f"layers.{order[index]}.{rest}" if index in order else name
    return names


def _published_name(ours_name: str, prefix: str, ours: dict[str, str]) -> str:
    """The name the publisher gives a tensor that is missing."""
    if prefix == PHOTOS:
        return prefix + ours_name.replace("latents.weight", "latents")
    _, j, rest = ours_name.split(".", 2)
    return f"{prefix}{_indices(name[len(prefix) :] for name in ours)[int(j)]}.{rest}"


def _indices(names: Iterable[str]) -> list[int]:
    """The layer numbers at the start of `names`, ascending: odd, in the order down, up, mid of the UNet's
    cross-attention layers.
    """
    return sorted(
        {
            int(number)
            for number in (name.split(".", 1)[0] for name in names)
            if NUMBER.fullmatch(number) and int(number) % 2
        }
    )
