"""What the nodes call: encode a cast and apply references, on the host's objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...adapter import GatedSpec, PhotoSpec
from ...base_mismatch import base_mismatch
from ...binding.checks import check_blocks, check_names, check_widths, may_act
from ...binding.settings import GatedSettings, ImageAttentionSettings
from ...binding.two_strengths import MIDDLE, NEGATIVE, POSITIVE, ROLES
from ...families.encode import encode_subjects
from ...subjects import Cast, References
from .loading import rehearsal_models
from .loading.adapters import HostAdapter
from .loading.encoders import HostImageEncoder, HostNameEncoder
from .sampling.blocks import attention_blocks
from .sampling.conditioning import Conditioning, ConditioningRecord, attach
from .sampling.gated import GatedAdapter
from .sampling.hook import Hook
from .sampling.image_attention import ImageAttention
from .sampling.weights import check_input_channels

Wired = tuple[Any, Conditioning | None, Conditioning | None, Conditioning | None]


def encode_references(
    adapter: HostAdapter,
    cast: Cast,
    framing: str = "auto",
    clip: Any = None,
    clip_vision: Any = None,
    prompts: Sequence[str] = (),
    warn: Callable[[str], None] = lambda sentence: None,
) -> References:
    """Encode the references by `model_patches.families.encode.encode_subjects` with the host's encoders; clip_vision
    overrides the adapter's own choice. An adapter that reads no photos loads none.
    """
    names = None if clip is None else HostNameEncoder(clip)
    if names is not None and (error := base_mismatch(adapter.spec, names.width, clip=True)) is not None:
        raise error  # before an image encoder is asked for, which an adapter for the right base may not need
    images = None
    if adapter.spec.has(PhotoSpec):
        vision = clip_vision if clip_vision is not None else adapter.clip_vision()
        images = None if vision is None else HostImageEncoder(vision)
    for sentence in rehearsal_models.unknown_subjects(adapter.spec, cast.subjects):
        warn(sentence)
    return encode_subjects(adapter, cast, images, adapter.project, names, framing, prompts, warn)


def apply_image_attention(
    model: Any,
    references: References,
    settings: ImageAttentionSettings,
    positive: Conditioning | None = None,
    negative: Conditioning | None = None,
    middle: Conditioning | None = None,
    node_id: str | None = None,
) -> Wired:
    """Return the MODEL with the references' attention bound to it, and the conditionings that carry them.

    With neither positive nor negative the references act on the sampler's positive list. Weight 0, and a cast
    that is empty or all at weight 0, return what came in.
    node_id: of the node that shows messages of the sampling run, or None.
    Raises:
        MismatchError: the adapter is for another base model, or relevance is asked for and the references carry no
            names, or a number is not finite.
    """
    if not may_act(references, settings, _use_instead(references, "Apply Image Attention")):
        return model, positive, negative, middle
    blocks = attention_blocks(model.get_model_object("diffusion_model"))
    check_widths(references.adapter.spec, [block.width for block in blocks], blocks[0].context_dim)
    check_names(references, settings)
    hook = ImageAttention(
        references, settings, blocks, positive is not None or middle is not None, negative is not None, node_id
    )
    return _attached(model, hook, positive, negative, middle)


def apply_gated(
    model: Any,
    references: References,
    settings: GatedSettings,
    positive: Conditioning,
    negative: Conditioning | None = None,
    middle: Conditioning | None = None,
    node_id: str | None = None,
) -> Wired:
    """Return the MODEL with the adapter's gated layers bound to it, and the conditionings that carry the references.

    Rows of the negative get the publisher's own uncond objects, whether it is wired or not. Strength 0, and a
    cast that is empty or all at weight 0, return what came in.
    node_id: of the node that shows messages of the sampling run, or None.
    Raises:
        MismatchError: the adapter has no gated layers, or is for another base model, or a number is not finite.
    """
    adapter = references.adapter
    if not may_act(references, settings, _use_instead(references, "Apply Gated Adapter")):
        return model, positive, negative, middle
    check_input_channels(model)
    blocks = {
        block.path.removesuffix(".attn2"): block
        for block in attention_blocks(model.get_model_object("diffusion_model"))
    }
    check_blocks(
        adapter.spec, {path: block.width for path, block in blocks.items()}, next(iter(blocks.values())).context_dim
    )
    keys = [blocks[path].key for path in adapter.spec.part(GatedSpec).block_widths]
    return _attached(
        model, GatedAdapter(references, settings, keys, negative is not None, node_id), positive, negative, middle
    )


def _attached(
    model: Any, hook: Hook, positive: Conditioning | None, negative: Conditioning | None, middle: Conditioning | None
) -> Wired:
    """A clone of the MODEL with the hook on it, and copies of the conditionings with its records."""
    patched = model.clone()
    hook.attach(patched)
    branches = ((positive, POSITIVE), (negative, NEGATIVE), (middle, MIDDLE))
    wired = [
        None if given is None else attach(given, ConditioningRecord(hook.id, ROLES[branch], hook.references))
        for given, branch in branches
    ]
    return patched, wired[0], wired[1], wired[2]


def _use_instead(references: References, node: str) -> str:
    """The remedy where the node is not for this kind of adapter, naming the one that is."""
    return f"Wire these references into {references.adapter.spec.node}, or choose an adapter for {node}."
