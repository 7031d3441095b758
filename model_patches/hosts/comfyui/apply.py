"""What the nodes call: encode a cast and apply references, on the host's objects."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...binding import check_names, check_widths
from ...encode import encode_subjects
from ...layer_tokens import COND, UNCOND
from ...settings import ImageAttentionSettings
from ...subjects import Cast, References
from .adapters import HostAdapter
from .blocks import attention_blocks
from .conditioning import Conditioning, Record, attach
from .encoders import HostImageEncoder, HostNameEncoder
from .image_attention import ImageAttention

Wired = tuple[Any, Conditioning | None, Conditioning | None, Conditioning | None]


def encode_references(adapter: HostAdapter, cast: Cast, framing: str = "auto", clip: Any = None, clip_vision: Any = None,
                      prompts: Sequence[str] = (), warn: Callable[[str], None] = lambda sentence: None) -> References:
    """`model_patches.encode.encode_subjects` with the host's encoders; clip_vision overrides the adapter's own choice."""
    vision = clip_vision if clip_vision is not None else adapter.clip_vision()
    images = None if vision is None else HostImageEncoder(vision)
    names = None if clip is None else HostNameEncoder(clip)
    return encode_subjects(adapter, cast, images, adapter.project, names, framing, prompts, warn)


def apply_image_attention(model: Any, references: References, settings: ImageAttentionSettings,
                          positive: Conditioning | None = None, negative: Conditioning | None = None, middle: Conditioning | None = None) -> Wired:
    """The MODEL with the references' attention bound to it, and the conditionings that carry them.

    With neither positive nor negative the references act on the sampler's positive list. Weight 0 and an empty cast return what came in.
    Raises:
        MismatchError: the adapter is for another base model, or relevance is asked for and the references carry no names.
    """
    if settings.weight == 0.0 or not references.subjects:
        return model, positive, negative, middle
    unet = model.get_model_object("diffusion_model")
    blocks = attention_blocks(unet)
    check_widths(references.adapter.spec, [block.width for block in blocks], blocks[0].context_dim)
    check_names(references, settings)
    hook = ImageAttention(references, settings, blocks, positive_wired=positive is not None or middle is not None, negative_wired=negative is not None)
    patched = model.clone()
    hook.attach(patched)
    roles = ((positive, COND), (negative, UNCOND), (middle, COND))
    wired = [None if given is None else attach(given, Record(hook.id, role, references)) for given, role in roles]
    return patched, wired[0], wired[1], wired[2]
