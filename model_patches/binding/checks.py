"""What every host checks when it binds references or weights to a base model: whether the two belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..adapter import AdapterSpec, GatedSpec, ImageAttentionSpec, PartSpec
from ..attention.merges import NAMELESS
from ..base_mismatch import base_mismatch
from ..bases import base_name
from ..errors import MismatchError
from ..subjects import References
from .plan import is_idle, needs_names
from .settings import GatedSettings, ImageAttentionSettings, check_finite


def check_kind(spec: AdapterSpec, kind: type[PartSpec], remedy: str) -> None:
    """Raise MismatchError if the adapter has no part of that type. remedy: what to do with its references."""
    if not spec.has(kind):
        raise MismatchError(f"references of {kind.EXPECTED}", f"{spec.file}, {spec.describe()}", remedy)


def may_act(references: References, settings: ImageAttentionSettings | GatedSettings, remedy: str) -> bool:
    """Return whether an Apply node has an effect in any step; if not, it needs no model. remedy: what to do with
    references that are for another node.

    Raises:
        MismatchError: the references are for another node, or a number is not finite.
    """
    if isinstance(settings, GatedSettings):
        kind, node, strength = GatedSpec, "Apply Gated Adapter", settings.strength
    else:
        kind, node, strength = ImageAttentionSpec, "Apply Image Attention", settings.weight
    check_kind(references.adapter.spec, kind, remedy)
    check_finite(settings, node)
    return not is_idle(strength, references.subjects)


def check_widths(spec: AdapterSpec, widths: Sequence[int], context_dim: int) -> None:
    """Raise MismatchError unless the adapter's layers are the model's: widths of its cross-attention layers in
    checkpoint order, and of its text.
    """
    if (error := base_mismatch(spec, context_dim)) is not None:
        raise error
    own = spec.part(ImageAttentionSpec).widths if spec.has(ImageAttentionSpec) else ()
    if context_dim != spec.context_dim or tuple(widths) != own:
        what = f"{len(widths)} cross-attention layers and text embeddings of size {context_dim}"
        wanted = f"a MODEL for {spec.file}: {spec.describe()}, text embeddings of size {spec.context_dim}"
        raise MismatchError(
            wanted, what, f"Sample with a checkpoint of the {spec.base} family, or load an adapter made for this model."
        )


def check_blocks(spec: AdapterSpec, widths: Mapping[str, int], context_dim: int) -> None:
    """Raise MismatchError unless the model has a transformer block of the right width for every gated layer, and the
    text width of the file's base.

    widths: LDM path of each transformer block of the model, as in `GatedSpec.block_widths`, -> its width.
    """
    gated = spec.part(GatedSpec)
    expected = gated.block_widths
    fitting = sum(widths.get(path) == width for path, width in expected.items())
    if fitting == len(expected) and context_dim == gated.object_dim:
        return
    if (error := base_mismatch(spec, context_dim)) is not None:
        raise error
    found = f"a MODEL for {base_name(context_dim)}, with a matching block for {fitting} of the {len(expected)} layers"
    remedy = f"Sample with a checkpoint of the {spec.base} family, or load a file made for this model."
    raise MismatchError(
        f"a MODEL for {spec.file}: {spec.describe()}, text embeddings of size {gated.object_dim}", found, remedy
    )


def check_names(references: References, settings: ImageAttentionSettings) -> None:
    """Raise MismatchError if the merge needs the subjects' names and they were not encoded."""
    if needs_names(references, settings) and not references.named:
        nameless = f"{', '.join(NAMELESS[:-1])} or {NAMELESS[-1]}"
        wanted = f"the subjects' names read by a text encoder, for merge '{settings.mixing.merge}'"
        raise MismatchError(
            wanted,
            "references that were encoded without 'clip'",
            f"Wire 'clip' into Encode Subject References, or set 'merge' to {nameless}.",
        )


def check_whole_weights(strength: float, widget: str = "") -> None:
    """Raise MismatchError unless whole weights have strength 0 or 1. widget: the one that sets it, for the message."""
    if strength not in (0.0, 1.0):
        found, name = (f"'{widget}' at {strength:g}", f"'{widget}'") if widget else (f"{strength:g}", "it")
        remedy = f"Set {name} to 1, or to 0 to leave the model unchanged."
        raise MismatchError("strength 1, since full weights replace the model's own", found, remedy)
