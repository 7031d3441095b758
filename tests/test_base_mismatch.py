"""An adapter and a checkpoint of different base models: the sentence says which is which, and where one that
fits is.
"""

from __future__ import annotations

import pytest
from troupe.model_patches.adapter import AdapterSpec, EncoderNeed, ImageAttentionSpec, PhotoSpec
from troupe.model_patches.base_mismatch import base_mismatch
from troupe.model_patches.binding.checks import check_widths
from troupe.model_patches.encoding.interfaces import check_clip_width
from troupe.model_patches.errors import CheckpointError, MismatchError, SubjectError, TroupeError

HUB = "https://huggingface.co/h94/IP-Adapter/resolve/main"
SD15, SD2, SDXL, REHEARSAL = 768, 1024, 2048, 128


def spec(context_dim: int, file: str = "ip-adapter-plus_sdxl_vit-h.safetensors") -> AdapterSpec:
    parts = (
        PhotoSpec(EncoderNeed("penultimate", 1280)),
        ImageAttentionSpec("Resampler", (320,) * 16, 16, text_gain=False),
    )
    return AdapterSpec("ip_adapter", file, context_dim, parts)


def test_an_sdxl_adapter_on_sd15():
    with pytest.raises(MismatchError) as raised:
        check_widths(spec(SDXL), [320] * 16, SD15)
    assert str(raised.value) == (
        "The adapter ip-adapter-plus_sdxl_vit-h.safetensors is for SDXL, your checkpoint is SD1.5. "
        f"Choose an SD1.5 adapter: {HUB}/models/ip-adapter-plus_sd15.safetensors or "
        f"{HUB}/models/ip-adapter-plus-face_sd15.safetensors. Or load an SDXL checkpoint."
    )


def test_the_clip_is_blamed_where_only_the_clip_is_known():
    words = (
        r"is for SDXL, the connected CLIP is from an SD1\.5 checkpoint\. Choose an SD1\.5 adapter: http.* "
        r"Or, with an SDXL checkpoint, wire its own CLIP\."
    )
    with pytest.raises(MismatchError, match=words):
        check_clip_width(spec(SDXL), SD15, SDXL)


def test_an_sd15_adapter_on_sdxl():
    assert (
        "is for SD1.5, your checkpoint is SDXL. Choose an SDXL adapter: "
        f"{HUB}/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors or " in str(base_mismatch(spec(SD15), SDXL))
    )


def test_a_base_without_published_adapters_has_no_link():
    assert str(base_mismatch(spec(SDXL, "mine.safetensors"), SD2)) == (
        "The adapter mine.safetensors is for SDXL, your checkpoint is SD2.x. Choose an SD2.x adapter. Or "
        "load an SDXL checkpoint."
    )


def test_the_rehearsal_models_go_with_their_own_adapters():
    assert str(base_mismatch(spec(SDXL, "x.bin"), REHEARSAL)).endswith(
        "is for SDXL, your checkpoint is the rehearsal world. The rehearsal models go with their own "
        "adapters only: choose one whose name begins with 'rehearsal/'."
    )
    assert "is for the rehearsal world, your checkpoint is SDXL. Choose an SDXL adapter: " in str(
        base_mismatch(spec(REHEARSAL), SDXL)
    )
    assert str(base_mismatch(spec(REHEARSAL), SDXL)).endswith("Or use Load Rehearsal Models.")


@pytest.mark.parametrize("context_dim", [SDXL, 96])
def test_one_base_and_unknown_ones_are_no_such_mistake(context_dim):
    assert base_mismatch(spec(SDXL), context_dim) is None
    if context_dim == 96:
        with pytest.raises(
            MismatchError,
            match="Expected a MODEL for .*, found 16 cross-attention layers and text embeddings of size 96",
        ):
            check_widths(spec(SDXL), [320] * 16, context_dim)


def test_the_host_shows_no_module_path():
    """`execution.full_type_name` of ComfyUI leaves out the path of what is built in."""
    for error in (TroupeError, CheckpointError, SubjectError, MismatchError, type(base_mismatch(spec(SDXL), SD15))):
        assert (error.__module__, error.__qualname__) == ("builtins", error.__name__)
