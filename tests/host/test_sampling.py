"""Sampled latents on the real host against an independent evaluation of the formula
(support.host.independent_evaluation).
"""

import pytest
from support.host.independent_runs import check
from troupe.model_patches.attention.merges import MERGES

pytestmark = pytest.mark.usefixtures("host")


@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_subjects(base, count):
    from support.host.small_casts import settings, stage

    st = stage(base)
    check(st, st.references(count), settings())


@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
@pytest.mark.parametrize("size", [(16, 16), (24, 13), (13, 21)])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_sizes_batches_and_guidance(base, size, batch, cfg):
    from support.host.small_casts import settings, stage

    st = stage(base, text_gain=True)
    check(st, st.references(2), settings(), size, batch, cfg)


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("text_gain", [False, True], ids=["free", "trained"])
def test_every_merge(merge, text_gain):
    from support.host.small_casts import settings, stage

    st = stage("SDXL", text_gain)
    check(st, st.references(3, weights=[1.0, 0.5, 1.5]), settings(merge), (13, 21))


@pytest.mark.parametrize("merge", MERGES)
def test_eight_subjects_in_a_batch(merge):
    from support.host.small_casts import settings, stage

    st = stage("SD20")
    check(st, st.references(8), settings(merge), (10, 7), batch=2)


@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
@pytest.mark.parametrize("tokens", [77, 154])
def test_long_prompts(base, tokens):
    from support.host.small_casts import settings, stage

    st = stage(base, tokens=tokens)
    check(st, st.references(2), settings())


@pytest.mark.parametrize("merge", MERGES)
def test_sharpness_and_background(merge):
    from support.host.small_casts import settings, stage

    st = stage("SD15")
    check(st, st.references(3), settings(merge, sharpness=2.5, background=0.3), (12, 17))


@pytest.mark.parametrize("merge", MERGES)
def test_subjects_that_are_equally_relevant(merge):
    """Names of one length are, in unconditional rows."""
    from support.host.small_casts import settings, stage

    st = stage("SD15")
    check(st, st.references(4, weights=[1.0, 0.3, 0.8, 0.5], lengths=[2, 2, 2, 2]), settings(merge), (12, 17))


def test_background_holds_a_lone_subject_back():
    from support.host.small_casts import settings, stage

    st = stage("SD15")
    check(st, st.references(1), settings(background=0.2))


def test_drop_in_on_the_model_wire():
    from support.host.small_casts import settings, stage

    st = stage("SD15")
    check(st, st.references(2), settings(), wired=False)


@pytest.mark.parametrize("merge", MERGES)
def test_regions(merge):
    import torch
    from support.host.small_casts import settings, stage

    st = stage("SD15")
    left, soft = torch.zeros(64, 64), torch.rand(50, 70, generator=torch.Generator().manual_seed(5))
    left[:, :32] = 1
    check(st, st.references(3, regions=[left, soft, None]), settings(merge), (13, 21))


@pytest.mark.parametrize("merge", [name for name, rule in MERGES.items() if rule.background])
def test_background_with_regions_and_boxes(merge):
    """What is held back is measured on the relevance itself, wherever a subject may be."""
    import torch
    from support.host.small_casts import settings, stage
    from troupe.model_patches.subjects import Box

    st = stage("SD15")
    left = torch.zeros(64, 64)
    left[:, :32] = 1
    check(st, st.references(3, regions=[left, None, None]), settings(merge, background=0.2), (13, 21))
    inside = torch.zeros(12, 16)
    inside[:9, 4:12] = 1
    check(
        st,
        st.references(3, boxes=[None, Box(0.25, 0.0, 0.5, 0.75), None]),
        settings(merge, background=0.2, box_feather=0.0),
        (12, 16),
        boxes=[None, inside, None],
    )


def test_subject_ranges_act_step_by_step():
    from support.host.small_casts import settings, stage

    st = stage("SD15")
    check(st, st.references(3, ranges=[(0.0, 0.5), (0.3, 1.0), (0.0, 1.0)]), settings(), steps=5)


@pytest.mark.parametrize("kind", ["sd15", "sd20", "sdxl"])
def test_checkpoints_that_the_host_loads(kind):
    """The same on models that went through the host's own detection and loading, at their real text widths."""
    import comfy.sd
    import torch
    from support.host import tiny_models
    from support.host.small_casts import settings, stage

    state = {
        k.removeprefix("model.diffusion_model."): v
        for k, v in tiny_models.build_unet_sd(kind, dtype=torch.float32).items()
    }
    patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32})
    st = stage(patcher=patcher, text_gain=True)
    check(st, st.references(2), settings(), steps=1)


@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
def test_cond_and_uncond_in_separate_calls(base):
    """Where the host cannot batch cond with uncond (here: 77 against 81 tokens of no common multiple), each half still
    gets its own tokens.
    """
    from support.host import tiny_models
    from support.host.small_casts import settings, stage

    st = stage(base)
    st.negative = tiny_models.random_cond(81 * 7, 64, seed=9)
    check(st, st.references(2), settings())
