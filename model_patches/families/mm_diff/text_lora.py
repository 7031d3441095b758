"""LoRAs of SDXL's text encoders, or of one, as diffusers writes them, in either of its spellings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ...adapter import LoraPair
from ...checkpoints.tensors import AGAIN, State, check_shapes, missing, reading
from ...encoders.projections import shape_of
from ...errors import CheckpointError

STREAM_OF_ENCODER = {
    "text_encoder": "l",
    "text_encoder_2": "g",
}  # diffusers' names of SDXL's text encoders -> the host's
LORA_TENSOR = re.compile(
    r"(?P<module>(?P<encoder>text_encoder(?:_2)?)\.(?:text_model\.)?encoder\.layers\.(?P<layer>\d+)\.(?:"
    r"self_attn\.(?:to_(?P<old>q|k|v|out)_lora|(?P<new>q|k|v|out)_proj(?:\.lora_linear_layer)?)|mlp\.(?P<mlp>fc[12])(?:\.lora_linear_layer)?"
    r"))\.(?P<part>down\.weight|up\.weight|alpha)$"
)
KIND = "LoRAs of text encoders"


def recognised(names: Iterable[str]) -> bool:
    """Return whether all names are of such LoRAs."""
    names = list(names)
    return bool(names) and all(map(LORA_TENSOR.match, names))


def text_lora(state: State, widths: Mapping[str, int], file: str) -> dict[str, dict[str, LoraPair]]:
    """Return the pairs for each text encoder, by the names that transformers gives the weights they change.

    Arguments:
        state: `text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight` [r, d] and
            `.up.weight` [d, r], or `….self_attn.to_q_lora.down.weight`; `.alpha` beside them where there is one;
            `text_encoder_2` likewise.
        widths: d by stream ('l', 'g'); file: its name, for messages.
    Raises:
        CheckpointError: a tensor is missing, misshapen or of something else.
    """
    pairs: dict[tuple[str, str], dict[str, str]] = {}  # stream, weight -> part -> name in the file
    for name in state:
        match = LORA_TENSOR.match(name)
        if not match or STREAM_OF_ENCODER[match["encoder"]] not in widths:
            raise CheckpointError(f"{KIND} in '{file}'", f"a tensor called '{name}'", AGAIN)
        projection = match["old"] or match["new"]
        weight = f"text_model.encoder.layers.{match['layer']}." + (
            f"self_attn.{projection}_proj.weight" if projection else f"mlp.{match['mlp']}.weight"
        )
        parts = pairs.setdefault((STREAM_OF_ENCODER[match["encoder"]], weight), {"module": match["module"]})
        parts[match["part"]] = name
    shapes: dict[str, tuple[int, ...]] = {}
    for (stream, weight), parts in pairs.items():
        shapes |= _pair_shapes(state, parts, weight, widths[stream], file)
    check_shapes(state, shapes, file, KIND)
    found: dict[str, dict[str, LoraPair]] = {}
    for (stream, weight), parts in pairs.items():
        alpha = state[parts["alpha"]].item() if "alpha" in parts else None
        found.setdefault(stream, {})[weight] = LoraPair(state[parts["down.weight"]], state[parts["up.weight"]], alpha)
    return found


def _pair_shapes(
    state: State, parts: Mapping[str, str], weight: str, width: int, file: str
) -> dict[str, tuple[int, ...]]:
    """What the tensors of one pair have to be; only the inner width of an encoder's MLP is read off them."""
    for part in ("down.weight", "up.weight"):
        if part not in parts:
            raise missing(f"{parts['module']}.{part}", file)
    down, up = parts["down.weight"], parts["up.weight"]
    with reading(file, ""):
        (rank, into), (out, _) = shape_of(state, down, 2), shape_of(state, up, 2)
    into, out = into if weight.endswith("fc2.weight") else width, out if weight.endswith("fc1.weight") else width
    return {down: (rank, into), up: (out, rank)} | ({parts["alpha"]: ()} if "alpha" in parts else {})
