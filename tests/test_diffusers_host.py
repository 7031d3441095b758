"""The embedded engine: image attention on diffusers UNets against the official outputs, diffusers' own IP-Adapter, and
itself.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from support import tiny_diffusers as tiny
from support.golden_mip import LAYERS, fill, layer
from troupe.model_patches.adapter import ImageAttentionSpec
from troupe.model_patches.attention.decoupled import LayerTokens
from troupe.model_patches.attention.merges import MERGES, Mixing
from troupe.model_patches.binding.layer_tokens import COND, UNCOND
from troupe.model_patches.binding.settings import ImageAttentionSettings
from troupe.model_patches.errors import MismatchError
from troupe.model_patches.families.ip_adapter import build
from troupe.model_patches.hosts.diffusers.cross_layers import cross_layers
from troupe.model_patches.hosts.diffusers.encoders import Prompt
from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention, inside
from troupe.model_patches.hosts.diffusers.sampling import (
    SamplingSettings,
    join_prompts,
    percent_of,
    sample,
    size_condition,
)
from troupe.model_patches.subjects import Box

SIZE = (18, 11)  # latent; the second level then has 9x6
PLAIN = ImageAttentionSettings(weight=1.0)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def inputs(kind: str = "sd15", rows: int = 2, size: tuple[int, int] = SIZE) -> dict:
    g = torch.Generator().manual_seed(3)
    extra = {
        "text_embeds": torch.randn(rows, tiny.POOLED, generator=g),
        "time_ids": torch.tensor([[144.0, 88, 0, 0, 144, 88]]).expand(rows, 6),
    }
    return {
        "sample": torch.randn(rows, 4, *size, generator=g),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(rows, 77, tiny.CONTEXT, generator=g),
        "added_cond_kwargs": extra if kind == "sdxl" else None,
    }


def predict(unet, references=None, settings=PLAIN, roles=(UNCOND, COND), percent=0.5, **changed):
    given = {**inputs("sdxl" if unet.config.addition_embed_type else "sd15"), **changed}
    if references is None:
        return unet(**given).sample
    with ImageAttention(unet, references, settings, roles) as attention:
        attention.at(percent)
        return unet(**given).sample


# ---- official outputs ------------------------------------------------------------------------------------------------


def golden_unet() -> tuple[UNet2DConditionModel, Attention]:
    """A UNet of one level whose first cross-attention layer has the widths and weights of the golden files, and an
    adapter likewise.
    """
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(24,),
        layers_per_block=1,
        cross_attention_dim=40,
        attention_head_dim=3,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    ).requires_grad_(False)
    attention = cross_layers(unet)[0].attention
    state = {name: fill(f"attn2.{name}", *value.shape) for name, value in attention.state_dict().items()}
    attention.load_state_dict(state)
    return unet, attention


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "free"])
def test_layer_output_is_the_official_one(name, trained, monkeypatch):
    """hidden states in, `to_out` included; every row is a part of the batch, since `_batch2` gives every sample its own
    image tokens.
    """
    g = layer(name)
    unet, attention = golden_unet()
    lengths, rows = g.meta["token_lens"], len(g["ip"])
    weights = {f"{n}.weight": fill(f"ip_adapter.1.{n}.weight", 24, 40) for n in ("to_k_ip", "to_v_ip")}
    if trained:
        weights["text_to_weight.weight"] = fill("ip_adapter.1.text_to_weight.weight", 1, 24)
    state = tiny.adapter_state([24] * len(cross_layers(unet)), 40, text_gain=trained)
    state.update({f"ip_adapter.1.{n}": value for n, value in weights.items()})
    adapter = build(state, "golden")
    references = tiny.references(tiny.unet(), g.meta["objects"])
    references = replace(references, adapter=adapter)
    entity = g["entity"].repeat_interleave(rows // 2, 0)
    names = torch.cat([entity[:, i, 1 : 1 + n] for i, n in enumerate(lengths)], 1)
    segments = torch.block_diag(*[torch.full((1, n), 1 / n) for n in lengths]).expand(rows, -1, -1)
    with ImageAttention(unet, references, ImageAttentionSettings(weight=g.meta["scale"]), (COND,) * rows) as bound:
        tokens = LayerTokens(
            adapter.layers.layers[0].to_k_ip(g["ip"]),
            adapter.layers.layers[0].to_v_ip(g["ip"]),
            attention.to_k(names),
            segments,
        )
        monkeypatch.setattr(bound, "tokens", lambda index: tokens)
        found = attention(g["hidden"], g["text"])
    torch.testing.assert_close(found, g[f"{'trained' if trained else 'free'}.out"], **g.tolerance)
    torch.testing.assert_close(attention(g["hidden"], g["text"]), attention.to_out[0](g["z_text"]), **g.tolerance)


# ---- diffusers' own IP-Adapter ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_one_subject_is_diffusers_own_ip_adapter(kind):
    """The same file through diffusers' own loader: index order, mid block included, and every layer's mathematics."""
    unet = tiny.unet(kind)
    references = tiny.references(unet, 1)
    found = predict(unet, references, ImageAttentionSettings(weight=0.7))
    state = tiny.adapter_state(list(references.adapter.spec.part(ImageAttentionSpec).widths))
    parts = {
        part: {k[len(part) + 1 :]: v for k, v in state.items() if k.startswith(part)}
        for part in ("image_proj", "ip_adapter")
    }
    unet._load_ip_adapter_weights([parts])
    processors = [p for p in unet.attn_processors.values() if isinstance(p, IPAdapterAttnProcessor2_0)]
    assert len(processors) == len(cross_layers(unet))
    for processor in processors:
        processor.scale = [0.7]
    unet.encoder_hid_proj = None  # the tokens are given as they are, not as image embeddings
    given = inputs(kind)
    tokens = torch.stack((references.uncond_tokens, references.subjects[0].tokens))
    given["encoder_hidden_states"] = (given["encoder_hidden_states"], [tokens])
    expected = unet(**given).sample
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected - predict(tiny.unet(kind))).abs().max() > 1e-2


def test_references_on_top_of_diffusers_own_ip_adapter():
    """A foreign processor keeps acting: its result plus ours, where ours alone was the same delta."""
    unet = tiny.unet()
    references, other = tiny.references(unet, 1), tiny.references(unet, 2)
    place = cross_layers(unet)[0].attention
    g = torch.Generator().manual_seed(9)
    hidden, text = torch.randn(2, 12, 32, generator=g), torch.randn(2, 77, tiny.CONTEXT, generator=g)
    plain = place(hidden, text)
    with ImageAttention(unet, other, PLAIN):
        ours = place(hidden, text) - plain
    processor = IPAdapterAttnProcessor2_0(32, tiny.CONTEXT)
    place.processor = processor
    foreign_states = (text, [references.subjects[0].tokens.expand(2, -1, -1)])
    foreign = place(hidden, foreign_states)
    assert (foreign - plain).abs().max() > 1e-3
    with ImageAttention(unet, other, PLAIN):
        torch.testing.assert_close(place(hidden, foreign_states), foreign + ours, rtol=1e-5, atol=1e-5)
    assert place.processor is processor


# ---- which layers, when, and when not --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_cross_attention_layer_acts_in_checkpoint_order(kind):
    unet = tiny.unet(kind)
    names = [name for name in unet.attn_processors if ".attn2." in name]
    assert [name.removesuffix(".processor") for name in names] == [
        next(n for n, m in unet.named_modules() if m is layer.attention) for layer in cross_layers(unet)
    ]
    assert names[-1].startswith("mid_block")
    references = tiny.references(unet, 2)
    base = predict(unet)
    for j in range(len(names)):
        quiet = replace(references, adapter=tiny.adapter(unet))
        for i, weights in enumerate(quiet.adapter.layers.layers):
            weights.to_v_ip.weight.mul_(float(i == j))
        assert (predict(unet, quiet) - base).abs().max() > 1e-5, names[j]


@pytest.mark.parametrize(
    "settings, each",
    [
        (ImageAttentionSettings(weight=0.0), {}),
        (ImageAttentionSettings(start_percent=0.6), {}),
        (ImageAttentionSettings(end_percent=0.4), {}),
        (ImageAttentionSettings(start_percent=0.5, end_percent=0.5), {}),
        (PLAIN, {"weight": [0.0, 0.0]}),
        (PLAIN, {"end_percent": [0.2, 0.2]}),
    ],
    ids=["weight 0", "not yet", "no longer", "empty range", "subjects at 0", "subjects out of range"],
)
def test_at_rest_it_is_bit_identical(settings, each):
    unet = tiny.unet()
    assert torch.equal(predict(unet, tiny.references(unet, 2, **each), settings), predict(unet))


def test_an_empty_cast_and_the_end_of_a_run_are_bit_identical():
    unet = tiny.unet()
    before, plain = unet.attn_processors, predict(unet)
    assert torch.equal(predict(unet, replace(tiny.references(unet, 1), subjects=())), plain)
    with pytest.raises(RuntimeError), ImageAttention(unet, tiny.references(unet, 2), PLAIN):
        assert not torch.equal(unet(**inputs()).sample, plain)
        raise RuntimeError
    assert torch.equal(predict(unet), plain)
    assert all(processor is before[name] for name, processor in unet.attn_processors.items())
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_ranges_are_the_hosts():
    assert inside(0.0, 0.0, 1.0) and inside(1.0, 0.0, 1.0) and inside(-0.1, 0.0, 0.5) and inside(1.1, 0.5, 1.0)
    assert inside(0.3, 0.3, 0.6) and inside(0.6, 0.3, 0.6) and not inside(0.29, 0.3, 0.6) and not inside(0.61, 0.3, 0.6)
    assert not inside(0.5, 0.5, 0.5) and not inside(0.5, 0.6, 0.4)
    schedule = tiny.scheduler()
    schedule.set_timesteps(11)
    assert [round(percent_of(t, schedule), 5) for t in schedule.timesteps.tolist()] == [i / 10 for i in range(11)]
    assert inside(percent_of(schedule.timesteps.tolist()[1], schedule), 0.1, 0.2)  # 899.1 in float32


@pytest.mark.slow
def test_rows_follow_their_roles():
    """Any order of cond and uncond, each several rows, and rows without references."""
    unet = tiny.unet()
    references = tiny.references(unet, 2, text_gain=True, region=[torch.eye(16), None])
    given = inputs(rows=6)
    names = {"sample": given["sample"], "encoder_hidden_states": given["encoder_hidden_states"]}

    def rows(start, stop, *roles):
        return predict(unet, references, PLAIN, roles, **{k: v[start:stop] for k, v in names.items()})

    mixed = rows(0, 6, COND, None, UNCOND)
    assert torch.equal(mixed[2:4], unet(given["sample"], 500, given["encoder_hidden_states"]).sample[2:4])
    torch.testing.assert_close(mixed[:2], rows(0, 2, COND), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mixed[4:], rows(4, 6, UNCOND), rtol=1e-5, atol=1e-5)
    assert (rows(0, 2, UNCOND) - mixed[:2]).abs().max() > 1e-3
    assert torch.equal(rows(0, 6, None), unet(given["sample"], 500, given["encoder_hidden_states"]).sample)
    with pytest.raises(MismatchError, match="4 equal parts"):
        rows(0, 6, COND, UNCOND, COND, UNCOND)


# ---- several subjects ------------------------------------------------------------------------------------------------


def deltas(unet, references, settings=PLAIN, index=1, roles=(UNCOND, COND)):
    """What one layer's `to_out` gets beyond plain attention, [rows, N, C], at a fixed input; the grid comes from the
    transformer around it.
    """
    place = cross_layers(unet)[index]
    caught = {}

    def run():
        keep = place.attention.to_out[0].register_forward_pre_hook(lambda module, args: caught.setdefault("z", args[0]))
        g = torch.Generator().manual_seed(5)
        place.transformer(
            torch.randn(2, place.transformer.in_channels, 9, 6, generator=g),
            torch.randn(2, 77, tiny.CONTEXT, generator=g),
        )
        keep.remove()
        return caught.pop("z")

    plain = run()
    with ImageAttention(unet, references, settings, roles):
        return run() - plain


def test_a_subjects_weight_leaves_the_others_delta_alone():
    unet = tiny.unet()
    both, half, none = (deltas(unet, tiny.references(unet, 2, weight=[1.0, w])) for w in (1.0, 0.5, 0.0))
    torch.testing.assert_close(half, (both + none) / 2, rtol=1e-4, atol=1e-5)
    assert none.abs().max() > 1e-2 and (both - none).abs().max() > 1e-2


@pytest.mark.parametrize("merge", ["relevance", "uniform"])
def test_disjoint_regions_are_lone_subjects(merge):
    unet = tiny.unet()
    left = torch.zeros(72, 48)
    left[:, :24] = 1
    references = tiny.references(unet, 2, region=[left, 1 - left])
    settings = ImageAttentionSettings(weight=1.0, mixing=Mixing(merge))
    together = deltas(unet, references, settings)
    lone = [deltas(unet, tiny.alone(references, i), settings) for i in (0, 1)]
    torch.testing.assert_close(together, lone[0] + lone[1], rtol=1e-5, atol=1e-5)
    grid = lone[0].unflatten(1, (9, 6))
    assert (grid[:, :, 3:] == 0).all() and (grid[:, :, :3].abs().amax((0, 3)) > 0).all()


def test_a_region_with_a_mask_for_each_picture():
    """Picture i as under mask i; masks that are not one for each picture become their union."""
    unet = tiny.unet()
    left = torch.zeros(72, 48)
    left[:, :24] = 1
    masks, settings = torch.stack([left, 1 - left]), ImageAttentionSettings(weight=1.0, mixing=Mixing("uniform"))

    def of(region):
        return deltas(unet, tiny.references(unet, 1, region=[region]), settings, roles=(COND,))  # two pictures

    found = of(masks)
    for i, mask in enumerate(masks):
        torch.testing.assert_close(found[i], of(mask)[i], rtol=1e-5, atol=1e-5)
    assert not torch.equal(of(left), of(1 - left))
    torch.testing.assert_close(of(torch.stack([left, left * 0, left])), of(left))


def test_boxes_limit_until_their_end():
    unet = tiny.unet()
    references = tiny.references(unet, 1, box=[Box(0.0, 0.0, 1.0, 1 / 3)])
    settings = ImageAttentionSettings(weight=1.0, box_feather=0.0)
    free, boxed, soft, over = (
        deltas(unet, given, s).unflatten(1, (9, 6))
        for given, s in (
            (tiny.references(unet, 1), PLAIN),
            (references, settings),
            (references, replace(settings, box_strength=0.25)),
            (references, replace(settings, box_end_percent=0.0)),
        )
    )
    assert (boxed[:, 3:] == 0).all()
    torch.testing.assert_close(boxed[:, :3], free[:, :3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(soft[:, 3:], 0.75 * free[:, 3:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(over, free)


def test_a_region_goes_on_limiting_when_the_boxes_of_a_run_end():
    unet = tiny.unet()
    left = torch.zeros(72, 48)
    left[:, :24] = 1
    settings = ImageAttentionSettings(weight=1.0, box_end_percent=0.5)
    in_region, in_both = (
        tiny.references(unet, 1, region=[left], **box) for box in ({}, {"box": [Box(0.0, 0.0, 1.0, 1 / 3)]})
    )
    given = inputs()
    with ImageAttention(unet, in_both, settings) as attention:
        early = unet(**given).sample
        attention.at(0.9)
        late = unet(**given).sample
    with ImageAttention(unet, in_region, settings):
        expected = unet(**given).sample
    assert torch.equal(late, expected) and not torch.allclose(early, late)


def test_two_apply_nodes_add_up_in_either_order():
    """Each sees the layer's own queries and plain text attention: what one adds is the same on top of the other."""
    unet = tiny.unet()
    first, second = (
        tiny.references(unet, 2, text_gain=True),
        replace(tiny.references(unet, 1), adapter=tiny.adapter(unet, text_gain=True, seed=2)),
    )
    for outer, inner in ((first, second), (second, first)):
        alone = deltas(unet, inner)
        with ImageAttention(unet, outer, PLAIN):
            torch.testing.assert_close(deltas(unet, inner), alone, rtol=1e-4, atol=1e-5)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_name_what_is_wrong():
    unet = tiny.unet()
    with pytest.raises(MismatchError, match="11 cross-attention layers"):
        ImageAttention(tiny.unet("sdxl"), tiny.references(unet, 1), PLAIN)
    nameless = tiny.references(unet, 2, name_tokens=[None, None])
    with pytest.raises(MismatchError, match="for merge 'relevance', found references that were encoded without 'clip'"):
        ImageAttention(unet, nameless, PLAIN)
    ImageAttention(unet, nameless, ImageAttentionSettings(mixing=Mixing("uniform")))
    with pytest.raises(MismatchError, match="a finite number as 'sharpness' of Apply Image Attention, found nan"):
        ImageAttention(unet, nameless, ImageAttentionSettings(0.0, Mixing("uniform", float("nan"))))


# ---- whole runs ------------------------------------------------------------------------------------------------------


def prompts(seed=11, pooled=True):
    g = torch.Generator().manual_seed(seed)
    return [
        Prompt(
            torch.randn(1, n, tiny.CONTEXT, generator=g), torch.randn(1, tiny.POOLED, generator=g) if pooled else None
        )
        for n in (154, 77)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, subjects, batch, size",
    [("sd15", 1, 1, (88, 136)), ("sd15", 2, 2, (104, 72)), ("sd2", 3, 1, (128, 128)), ("sdxl", 3, 2, (136, 104))],
)
def test_whole_runs(kind, subjects, batch, size):
    unet, seen = tiny.unet(kind), []
    settings = SamplingSettings(*size, steps=3, cfg=4.0, seed=5, batch=batch)
    references = tiny.references(unet, subjects)
    plain = sample(unet, tiny.scheduler(), *prompts(), settings)
    found = sample(
        unet,
        tiny.scheduler(),
        *prompts(),
        settings,
        [(references, PLAIN)],
        lambda done, steps, latent: seen.append((done, steps, latent.shape)),
    )
    shape = (batch, 4, size[1] // 8, size[0] // 8)
    assert seen == [(i, 3, shape) for i in (1, 2, 3)]
    assert found.shape == shape and found.isfinite().all() and (found - plain).abs().max() > 1e-2
    assert torch.equal(found, sample(unet, tiny.scheduler(), *prompts(), settings, [(references, PLAIN)]))
    assert torch.equal(
        plain, sample(unet, tiny.scheduler(), *prompts(), settings, [(references, ImageAttentionSettings(weight=0.0))])
    )


@pytest.mark.slow
def test_a_run_is_guidance_of_two_predictions():
    """One step by hand: cfg over the model's two predictions, an Euler step to sigma 0; cfg 1 runs the positive rows
    alone.
    """
    unet, references = tiny.unet(), tiny.references(tiny.unet(), 2)
    positive, negative = prompts()
    schedule = tiny.scheduler()
    schedule.set_timesteps(1)
    sigma, t = schedule.sigmas[0], schedule.timesteps[0]
    noise = torch.randn(1, 4, 9, 12, generator=torch.manual_seed(8))
    x = noise * (sigma**2 + 1) ** 0.5

    def prediction(role, prompt):
        return predict(
            unet,
            references,
            roles=(role,),
            percent=0.0,
            sample=x / (sigma**2 + 1) ** 0.5,
            timestep=t,
            encoder_hidden_states=prompt.embeds,
        )

    cond, uncond = prediction(COND, positive), prediction(UNCOND, negative)
    for cfg, guided in ((1.0, cond), (3.0, uncond + 3.0 * (cond - uncond))):
        found = sample(
            unet, tiny.scheduler(), positive, negative, SamplingSettings(96, 72, 1, cfg, 8), [(references, PLAIN)]
        )
        torch.testing.assert_close(found, x - sigma * guided, rtol=1e-4, atol=1e-4)


def test_ranges_act_in_their_steps():
    """A node that acts in the last of three steps leaves the first two as they are."""
    unet, latents = tiny.unet(), {}
    settings = SamplingSettings(64, 64, 3)
    for name, applied in (
        ("plain", []),
        ("late", [(tiny.references(unet, 2), ImageAttentionSettings(weight=1.0, start_percent=0.6))]),
    ):
        latents[name] = []
        sample(
            unet,
            tiny.scheduler(),
            *prompts(),
            settings,
            applied,
            lambda done, steps, latent, kept=latents[name]: kept.append(latent),
        )
    same = [torch.equal(a, b) for a, b in zip(latents["plain"], latents["late"], strict=True)]
    assert same == [True, True, False]


def test_projections_happen_once_a_run():
    unet = tiny.unet()
    references = tiny.references(unet, 2, region=[torch.ones(8, 8), torch.eye(8)])
    text_keys = [layer.attention.to_k for layer in cross_layers(unet)]
    projections = [m for weights in references.adapter.layers.layers for m in (weights.to_k_ip, weights.to_v_ip)]
    calls = dict.fromkeys([*text_keys, *projections], 0)

    def count(module, args, output):
        calls[module] += 1

    for module in calls:
        module.register_forward_hook(count)
    sample(unet, tiny.scheduler(), *prompts(), SamplingSettings(64, 64, 4), [(references, PLAIN)])
    assert {calls[m] for m in projections} == {1}
    assert {calls[m] for m in text_keys} == {4 + 1}  # the prompt in every step, the names once
    sample(
        unet,
        tiny.scheduler(),
        *prompts(),
        SamplingSettings(64, 64, 2),
        [(references, ImageAttentionSettings(weight=1.0, end_percent=0.0))],
    )
    assert {calls[m] for m in projections} == {1}  # nothing is projected where nothing acts


def test_the_next_run_sees_new_weights():
    """What was projected is dropped at the end of a run: a LoRA merged between two runs counts."""
    unet = tiny.unet()
    references = tiny.references(unet, 2)
    attention = ImageAttention(unet, references, PLAIN)
    with attention:
        unet(**inputs())
    cross_layers(unet)[0].attention.to_k.weight.mul_(3.0)
    with attention:
        found = unet(**inputs()).sample
    assert torch.equal(found, predict(unet, references))


def test_sdxl_sizes_and_pooled_texts_row_by_row():
    """Height before width, original then crop then target, one row a picture; pooled rows in the order of the
    prompts.
    """
    positive, negative = prompts()
    found = size_condition(tiny.unet("sdxl"), [negative, positive], SamplingSettings(width=96, height=64, batch=2))
    assert found["time_ids"].tolist() == [[64, 96, 0, 0, 64, 96]] * 4
    assert torch.equal(
        found["text_embeds"], torch.cat((negative.pooled, negative.pooled, positive.pooled, positive.pooled))
    )
    assert size_condition(tiny.unet(), [negative, positive], SamplingSettings()) is None


def test_shorter_prompts_are_repeated_which_changes_no_attention():
    unet, (positive, negative) = tiny.unet(), prompts()
    joined = join_prompts([negative.embeds, positive.embeds], 2)
    assert joined.shape == (4, 154, tiny.CONTEXT)
    x = inputs(rows=1)["sample"]
    torch.testing.assert_close(unet(x, 9, joined[:1]).sample, unet(x, 9, negative.embeds).sample, rtol=1e-5, atol=1e-5)


def test_sdxl_asks_for_pooled_prompts():
    with pytest.raises(MismatchError, match="pooled"):
        sample(tiny.unet("sdxl"), tiny.scheduler(), *prompts(pooled=False), SamplingSettings(64, 64, 1))


# ---- recording -------------------------------------------------------------------------------------------------------


def sampled(references, settings, record=None):
    """A whole run of three steps, 144x88 pixels."""
    model = tiny.unet()
    g = torch.Generator().manual_seed(9)
    prompts = [Prompt(torch.randn(1, 77, tiny.CONTEXT, generator=g)) for _ in range(2)]
    return sample(
        model,
        tiny.scheduler(),
        *prompts,
        SamplingSettings(88, 144, 3, 4.0, seed=1),
        [(references, settings)],
        record=record,
    )


@pytest.mark.slow
@pytest.mark.parametrize("merge", MERGES)
def test_recording_changes_no_latent_and_shares_add_up(merge):
    """Each subject's map is its mean share: they sum to 1 at every position, whatever the merge; who has weight 0 has
    none.
    """
    references, maps = tiny.references(tiny.unet(), 3), []
    settings = ImageAttentionSettings(1.0, Mixing(merge))
    assert torch.equal(sampled(references, settings), sampled(references, settings, maps))
    (applied,) = maps
    assert applied.merge == merge and [s.name for s in applied.subjects] == ["subject 0", "subject 1", "subject 2"]
    values = torch.stack([s.values for s in applied.subjects])
    assert (
        values.shape == (3, 18, 11)
        and torch.allclose(values.sum(0), torch.ones(18, 11), atol=1e-5)
        and values.std() > 1e-4
    )
    absent, maps = tiny.references(tiny.unet(), 2, weight=[1.0, 0.0]), []
    sampled(absent, settings, maps)
    assert [s.values is None for s in maps[0].subjects] == [False, True]


def test_recorded_maps_stay_in_their_boxes():
    boxed, maps = tiny.references(tiny.unet(), 2, box=[Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 0.5, 1.0)]), []
    sampled(boxed, ImageAttentionSettings(1.0, box_feather=0.0), maps)
    left, right = (s.values for s in maps[0].subjects)
    assert (
        left[:, :4].mean() > 0.9
        and right[:, -4:].mean() > 0.9
        and left[:, -4:].abs().max() < 0.05
        and right[:, :4].abs().max() < 0.05
    )


def test_nothing_is_recorded_of_who_did_not_act():
    maps = []
    sampled(tiny.references(tiny.unet(), 2), ImageAttentionSettings(0.0), maps)
    assert maps == []
