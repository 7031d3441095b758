"""Many pictures at once, large ones, and very long ones: still what the formulas say."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")
LONG = [(4, 96), (96, 4), (5, 77)]


@pytest.mark.parametrize("text_gain", [False, True], ids=["free", "trained"])
def test_eight_pictures_with_image_attention(text_gain):
    from support.host.independent_runs import check
    from support.host.small_casts import settings, stage

    st = stage("SDXL", text_gain)
    check(st, st.references(3, weights=[1.0, 0.5, 1.2]), settings(), (8, 8), batch=8)


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_eight_pictures_with_a_gated_adapter(kind):
    from support.host.independent_gated_runs import check
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind)
    check(st, st.references(2), GatedSettings(), (8, 8), batch=8)


@pytest.mark.parametrize("delayed", [False, True])
def test_eight_pictures_with_mm_diff_are_eight_single_ones(delayed):
    import comfy.samplers
    from support.host.small_mm_diff import mm_diff_scene

    def sample(noise):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(5.0)
        sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", 3)
        return guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True
        )

    model, positive, negative, _ = mm_diff_scene(delayed)
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    found = sample(noise)
    for i in range(8):
        torch.testing.assert_close(
            found[i : i + 1], sample(noise[i : i + 1]), rtol=1e-4, atol=1e-4 * float(found.abs().max())
        )


@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize("merge", ["relevance", "paper", "joint"])
def test_very_long_pictures_with_image_attention(merge, size):
    from support.host.independent_runs import check
    from support.host.small_casts import settings, stage

    st = stage(text_gain=True)
    check(st, st.references(2), settings(merge), size)


@pytest.mark.parametrize("size", LONG)
@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_very_long_pictures_with_a_gated_adapter(kind, size):
    from support.host.independent_gated_runs import check
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind)
    check(st, st.references(2), GatedSettings(), size)


def test_2048_pixels_a_side_with_image_attention(monkeypatch):
    """65 536 positions in the widest layers, a softmax over all of them.

    Self-attention, which is the host's, rests: it is most of the time there.
    """
    from support.host import tiny_models
    from support.host.independent_runs import check
    from support.host.small_casts import settings, stage

    patcher, seen = tiny_models.micro_model("SD15", levels=1), []
    for module in patcher.model.diffusion_model.modules():
        if hasattr(module, "attn1"):
            attn = module.attn1
            monkeypatch.setattr(
                attn,
                "forward",
                lambda x, *args, attn=attn, **kwargs: (seen.append(x.shape[1]), attn.to_out(attn.to_v(x)))[1],
            )
    st = stage(patcher=patcher, text_gain=True)
    check(st, st.references(2), settings(), (256, 256), steps=1, cfg=1.0)
    assert set(seen) == {65536}


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_2048_pixels_a_side_with_a_gated_adapter(kind):
    """Its layers are at a quarter of the side here, with 4096 positions: the evaluation that it is compared with keeps
    whole maps.
    """
    from support.host import tiny_models
    from support.host.independent_gated_runs import check
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind, patcher=tiny_models.micro_model("SD15", model_channels=64, levels=3, depths=[0, 0, 1]))
    check(st, st.references(2), GatedSettings(), (256, 256), steps=1, cfg=1.0)
