"""Models, prompts and graphs as artists really have them: each still gets the references, and each its own."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")


def test_a_float8_model_with_a_cast_is_the_same_model_in_float32():
    import comfy.sd
    from support.host import tiny_models
    from support.host.small_casts import error, ksample, settings, stage

    state = {
        k.removeprefix("model.diffusion_model."): v
        for k, v in tiny_models.build_unet_sd("sd15", dtype=torch.float32).items()
    }
    rounded = {k: v.to(torch.float8_e4m3fn) for k, v in state.items()}
    small = comfy.sd.load_diffusion_model_state_dict(dict(rounded), model_options={"dtype": torch.float8_e4m3fn})
    assert small.model.get_dtype() == torch.float8_e4m3fn
    st, whole = (
        stage(patcher=small),
        comfy.sd.load_diffusion_model_state_dict(
            {k: v.float() for k, v in rounded.items()}, model_options={"dtype": torch.float32}
        ),
    )
    references = st.references(2)
    found = ksample(*st.apply(references, settings()), steps=1)
    st.patcher = whole
    assert (
        error(
            found,
            ksample(*st.apply(references, settings()), steps=1),
            ksample(whole, st.positive, st.negative, steps=1),
        )
        < 1e-3
    )


def test_an_inpainting_model_changes_only_where_the_mask_lets_it():
    from support.host import tiny_models
    from support.host.small_casts import settings, stage

    import nodes

    st = stage(patcher=tiny_models.micro_model("SD15", context_dim=64, in_channels=9))
    mask = torch.ones(1, 128, 128)
    mask[..., :64] = 0
    plain, found = (
        nodes.common_ksampler(
            model, 1, 2, 5.0, "euler", "normal", *conds, {"samples": torch.zeros(2, 4, 16, 16), "noise_mask": mask}
        )[0]["samples"]
        for model, *conds in ((st.patcher, st.positive, st.negative), st.apply(st.references(2), settings()))
    )
    assert torch.equal(plain[..., :8], found[..., :8]) and (plain - found)[..., 8:].abs().amax((1, 2, 3)).min() > 1e-3


def test_one_apply_node_serves_samplers_of_several_sizes():
    """A hires fix: both passes are what they are alone, in any order."""
    from support.host.small_casts import ksample, settings, stage

    region = torch.zeros(30, 30)
    region[:, :12] = 1
    st = stage()
    model = st.apply(st.references(2, regions=[region, None]), settings())
    small, large = ksample(*model, size=(12, 16)), ksample(*model, size=(24, 32))
    fresh = st.apply(st.references(2, regions=[region, None]), settings())
    assert torch.equal(ksample(*fresh, size=(24, 32)), large) and torch.equal(ksample(*fresh, size=(12, 16)), small)


def test_merging_models_before_or_after_is_the_same():
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    from support.host import tiny_models
    from support.host.small_casts import ksample, settings, stage

    def merged(model):
        return ModelMergeSimple().merge(model, other, 0.5)[0]

    st, other = stage(), tiny_models.micro_model("SD15", context_dim=64, seed=9)
    references = st.references(2)
    model, positive, negative = st.apply(references, settings())
    after = ksample(merged(model), positive, negative)
    st.patcher = merged(st.patcher)
    assert torch.equal(ksample(*st.apply(references, settings())), after)


def test_the_same_references_in_two_apply_nodes_add_up():
    from support.host import independent_evaluation as independent
    from support.host.small_casts import error, ksample, noise_of, settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    st, second = stage(text_gain=True), settings("add", 0.3)
    references = st.references(2)
    truths = [st.truth(references, settings()), st.truth(references, second)]
    expected, without = (
        independent.sample(st.patcher, t, st.positive, st.negative, noise_of()) for t in (truths, None)
    )
    for wired in (True, False):
        model, positive, negative = st.apply(references, settings(), wired)
        model, positive, negative, _ = apply_image_attention(model, references, second, positive, negative)
        assert error(ksample(model, positive, negative), expected, without) < 1e-3


@pytest.mark.parametrize("node", ["concat", "average", "combine"])
def test_prompts_put_together_after_apply_keep_their_references(node):
    from support.host.small_casts import ksample, settings, stage

    import nodes

    def put_together(positive):
        return {
            "concat": lambda: nodes.ConditioningConcat().concat(positive, st.positive),
            "average": lambda: nodes.ConditioningAverage().addWeighted(positive, st.positive, 0.5),
            "combine": lambda: nodes.ConditioningCombine().combine(positive, positive),
        }[node]()[0]

    st = stage()
    model, positive, negative = st.apply(st.references(2), settings())
    dropped_in = st.apply(st.references(2), settings(), wired=False)[0]
    torch.testing.assert_close(
        ksample(model, put_together(positive), negative), ksample(dropped_in, put_together(st.positive), st.negative)
    )


@pytest.mark.parametrize("zsnr", [False, True])
@pytest.mark.parametrize("order", ["before", "after"])
def test_ranges_follow_the_models_own_sigmas(order, zsnr, monkeypatch):
    """Percents mean what they mean in ConditioningSetTimestepRange, also under another noise schedule set before or
    after Apply.
    """
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
    from support.host.ranges import in_range
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.hosts.comfyui.sampling import image_attention

    def v_prediction(model):
        return ModelSamplingDiscrete().patch(model, "v_prediction", zsnr)[0]

    acted, original = [], image_attention.ImageAttention._deltas
    monkeypatch.setattr(
        image_attention.ImageAttention, "_deltas", lambda self, *a: (acted.append(1), original(self, *a))[1]
    )
    st = stage()
    plain = st.patcher
    st.patcher = v_prediction(plain) if order == "before" else plain
    model, positive, negative = st.apply(st.references(2), settings(start_percent=0.25, end_percent=0.75))
    ksample(model if order == "before" else v_prediction(model), positive, negative, steps=8)
    ours, acted[:] = len(acted), []
    model, positive, _ = st.apply(st.references(2), settings())
    ksample(
        model if order == "before" else v_prediction(model),
        in_range(positive, 0.25, 0.75) + st.positive,
        st.negative,
        steps=8,
    )
    assert 0 < ours == len(acted) < 8
