"""The embedded engine's gated adapters: against diffusers' own GLIGEN, a UNet with Subject-Diffusion's five input
channels, and itself.
"""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from support import tiny_diffusers as tiny
from support.tiny_gated_unets import (
    PATCH_SLOTS,
    PATCHES,
    SLOTS,
    gated_references,
    gligen_adapter,
    native_fusers,
    native_unet,
    patches_adapter,
    plain_unet,
    unet,
)
from torch import nn
from troupe.model_patches.adapter import GatedSpec, Weights
from troupe.model_patches.attention.box_mask import box_mask
from troupe.model_patches.bases import PIXELS_PER_CELL
from troupe.model_patches.binding.layer_tokens import COND, UNCOND
from troupe.model_patches.binding.object_tokens import Group, corners_of, object_tokens
from troupe.model_patches.binding.settings import GatedSettings, ImageAttentionSettings
from troupe.model_patches.encoders.fuser import GatedFuser
from troupe.model_patches.errors import MismatchError
from troupe.model_patches.hosts.diffusers.encoders import Prompt
from troupe.model_patches.hosts.diffusers.gated import apply_gated
from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention
from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
from troupe.model_patches.hosts.diffusers.unet_blocks import transformer_blocks
from troupe.model_patches.hosts.diffusers.weights import base_weights
from troupe.model_patches.subjects import Box

SIZE = (18, 11)  # latent; the second level then has 9x6
BOXES = [Box(0.1, 0.2, 0.4, 0.7), Box(0.55, 0.0, 0.45, 1.0), Box(0.3, 0.5, 0.2, 0.25)]
PLAIN = GatedSettings()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def inputs(context: int, rows: int = 2, channels: int = 4) -> dict:
    g = torch.Generator().manual_seed(3)
    return {
        "sample": torch.randn(rows, channels, *SIZE, generator=g),
        "timestep": 500,
        "encoder_hidden_states": torch.randn(rows, 77, context, generator=g),
    }


def predict(model, references=None, settings=PLAIN, roles=(UNCOND, COND), percent=0.5, **changed):
    given = {**inputs(model.config.cross_attention_dim), **changed}
    if references is None:
        return model(**given).sample
    with apply_gated(model, references, settings, roles) as gated:
        gated.at(percent)
        return model(**given).sample


def assert_same(found, expected, plain):
    assert (expected - plain).abs().max() > 1e-2 * expected.abs().max(), (
        "the adapter has no effect, so nothing is tested"
    )
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


# ---- diffusers' own GLIGEN -------------------------------------------------------------------------------------------


def native_arguments(kind, subjects, present):
    """What diffusers' own GLIGEN takes for an uncond row, in which all are absent, and a cond row."""
    e = next(f for f in (subjects[0].features.text, subjects[0].features.image) if f is not None).numel()
    boxes, masks, texts, text_masks, images, image_masks = (
        torch.zeros(2, SLOTS, *more) for more in ((4,), (), (e,), (), (e,), ())
    )
    for i, subject in enumerate(subjects):
        if not present[i]:
            continue
        boxes[1, i], masks[1, i] = torch.tensor(corners_of(subject.box)), 1
        for feature, features, there in (
            (subject.features.text, texts, text_masks),
            (subject.features.image, images, image_masks),
        ):
            if feature is not None:
                features[1, i], there[1, i] = feature, 1
    if kind == "text":
        return {"boxes": boxes, "masks": masks, "positive_embeddings": texts}
    return {
        "boxes": boxes,
        "masks": masks,
        "phrases_masks": text_masks,
        "image_masks": image_masks,
        "phrases_embeddings": texts,
        "image_embeddings": images,
    }


def natively(native, kind, references, present=(True,) * 3):
    arguments = native_arguments(kind, references.subjects, present)
    return native(**inputs(native.config.cross_attention_dim), cross_attention_kwargs={"gligen": arguments}).sample


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("base", ["sd15", "sd2"])
@pytest.mark.parametrize("kind", ["text", "text_image"])
def test_it_is_diffusers_own_gligen(kind, base, count):
    """The same weights in diffusers' own layers: boxes, phrases, photos, features that are missing, absent slots, and
    an uncond row of null tokens.
    """
    native = native_unet(kind, base)
    plain, references = plain_unet(native), gated_references(gligen_adapter(native), BOXES[:count])
    assert native_fusers(native) == len(references.adapter.spec.part(GatedSpec).block_widths) == 7
    assert not native_fusers(plain)
    found, expected, without = predict(plain, references), natively(native, kind, references), predict(plain)
    for row in (0, 1):
        assert_same(found[row], expected[row], without[row])


@pytest.mark.slow
def test_subjects_that_do_not_act_are_null_slots():
    """At weight 0, and outside their ranges: as if diffusers' masks were 0 there."""
    native = native_unet("text_image")
    plain, adapter = plain_unet(native), gligen_adapter(native)
    quiet = gated_references(adapter, BOXES, weight=[0.0, 1.0, 1.0], end_percent=[1.0, 1.0, 0.4])
    assert_same(predict(plain, quiet), natively(native, "text_image", quiet, (False, True, False)), predict(plain))
    assert_same(
        predict(plain, quiet, percent=0.3),
        natively(native, "text_image", quiet, (False, True, True)),
        predict(plain, quiet),
    )


@pytest.mark.slow
def test_subjects_come_and_go_within_a_run():
    """Objects and mask follow the steps: each call is what a run of its own would give."""
    plain = unet("sd2")
    references = gated_references(patches_adapter(plain), BOXES[:2], end_percent=[0.4, 1.0])
    with apply_gated(plain, references, GatedSettings(use_bbox="on")) as gated:
        for percent in (0.2, 0.6, 0.2):
            gated.at(percent)
            assert torch.equal(plain(**inputs(64)).sample, predict_alone(references, percent))
    assert (predict_alone(references, 0.2) - predict_alone(references, 0.6)).abs().max() > 1e-2


def predict_alone(references, percent):
    return predict(unet("sd2"), references, GatedSettings(use_bbox="on"), percent=percent)


def test_the_end_of_tau_is_a_percent_whatever_float32_made_of_it():
    plain = unet("sd2")
    gated = apply_gated(plain, gated_references(patches_adapter(plain), BOXES[:1]), GatedSettings(end_percent=0.3))
    scales = []
    for percent in (0.299, 0.3 - 1e-8, 0.3, 0.3 + 1e-8, 0.301):
        gated.at(percent)
        scales.append(gated.scale)
    assert scales == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.slow
def test_strength_and_schedule_scale_the_gates():
    """Half strength, or the middle of the decay, is diffusers' own layer with half of both gates."""
    native = native_unet("text")
    plain, references = plain_unet(native), gated_references(gligen_adapter(native), BOXES)
    for name, parameter in native.named_parameters():
        if name.rpartition(".")[2].startswith("alpha_"):
            parameter.copy_(torch.atanh(parameter.tanh() / 2))
    half = natively(native, "text", references)
    assert_same(predict(plain, references, GatedSettings(0.5)), half, predict(plain))
    assert_same(predict(plain, references, GatedSettings(1.0, 0.4, 0.2), percent=0.5), half, predict(plain))


# ---- Subject-Diffusion -----------------------------------------------------------------------------------------------


class InPlace(nn.Module):
    """One of our fusers as diffusers calls its own: objects every time."""

    def __init__(self, fuser: GatedFuser):
        super().__init__()
        self.fuser = fuser

    def forward(self, x, objects):
        return self.fuser(x, self.fuser.project(objects))


class Given(nn.Module):
    """In the place of diffusers' position net: object tokens as they are."""

    def forward(self, objects):
        return objects


def official(model: UNet2DConditionModel, adapter) -> UNet2DConditionModel:
    """Subject-Diffusion's own UNet: five input channels, a fuser in every block."""
    five = (
        UNet2DConditionModel(**{**{k: v for k, v in model.config.items() if not k.startswith("_")}, "in_channels": 5})
        .eval()
        .requires_grad_(False)
    )
    state = model.state_dict()
    five.load_state_dict(
        {**state, "conv_in.weight": torch.cat((state["conv_in.weight"], adapter.gated.mask_conv.weight), 1)}
    )
    five.position_net = Given()
    for block, fuser in zip(transformer_blocks(five).values(), adapter.gated.fusers, strict=True):
        block.fuser = InPlace(fuser)
    return five


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("use_bbox", ["auto", "on", "off"])
def test_subject_diffusion_with_its_mask_channel(count, use_bbox):
    """Five channels in, in the uncond row objects and mask of zeros; boxes count for two subjects, or where
    asked for.
    """
    plain = unet("sd2")
    references = gated_references(patches_adapter(plain), BOXES[:count])
    present = torch.tensor([[True] * count + [False] * (PATCH_SLOTS - count)])
    corners = torch.tensor([[corners_of(box) for box in BOXES[:count]] + [(0.0,) * 4] * (PATCH_SLOTS - count)])
    patches = torch.stack(
        [s.features.image for s in references.subjects]
        + [torch.zeros_like(references.subjects[0].features.image)] * (PATCH_SLOTS - count)
    )
    objects = references.adapter.gated.net(
        patches[None], present, corners, {"auto": count > 1, "on": True, "off": False}[use_bbox]
    )
    given = inputs(64)
    mask = torch.stack((torch.zeros(SIZE), box_mask(corners[0], SIZE, PIXELS_PER_CELL)))[:, None]
    assert objects.shape == (1, PATCH_SLOTS * PATCHES, 64) and 0 < mask[1].mean() < 1
    expected = official(plain, references.adapter)(
        torch.cat((given["sample"], mask), 1),
        500,
        given["encoder_hidden_states"],
        cross_attention_kwargs={"gligen": {"objects": torch.cat((torch.zeros_like(objects), objects))}},
    ).sample
    found, without = predict(plain, references, GatedSettings(use_bbox=use_bbox)), predict(plain)
    for row in (0, 1):
        assert_same(found[row], expected[row], without[row])


# ---- rows, nesting, rest ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_follow_their_roles():
    """Any order of cond and uncond, each several rows, and rows without references."""
    plain = unet("sd2")
    references, given = gated_references(patches_adapter(plain), BOXES[:2]), inputs(64, rows=6)

    def rows(start, stop, *roles):
        part = {name: given[name][start:stop] for name in ("sample", "encoder_hidden_states")}
        return predict(plain, references if roles else None, roles=roles, **part)

    expected = torch.cat((rows(0, 2, COND), rows(2, 4), rows(4, 6, UNCOND)))
    torch.testing.assert_close(rows(0, 6, COND, None, UNCOND), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        rows(0, 4, UNCOND, COND), torch.cat((rows(0, 2, UNCOND), rows(2, 4, COND))), rtol=1e-5, atol=1e-5
    )
    assert torch.equal(rows(0, 6, COND, None, None)[2:], rows(0, 6)[2:])
    assert (rows(0, 2, COND) - rows(0, 2, UNCOND)).abs().max() > 1e-2 < (rows(0, 2, UNCOND) - rows(0, 2)).abs().max()
    with pytest.raises(MismatchError, match="2 equal parts"):
        rows(0, 5, UNCOND, COND)


def doubled(given):
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v for k, v in given.items()}


class Chain(nn.Module):
    """Fusers of ours in one place: objects is one tensor for each."""

    def __init__(self, *fusers: tuple[GatedFuser, float]):
        super().__init__()
        self.fusers = fusers

    def forward(self, x, objects):
        for (fuser, scale), tokens in zip(self.fusers, objects, strict=True):
            x = fuser(x, fuser.project(tokens), scale)
        return x


@pytest.mark.slow
@pytest.mark.parametrize("order", ["ga2", "a2g", "2ga"])
def test_two_adapters_act_one_after_the_other_beside_image_attention(order):
    """In every block the one entered first acts first; image attention has a place of its own, so that it may come
    before or after. In float64: the two orders of computation differ by more than 1e-5 in float32 on some CPUs.
    """
    plain = unet("sd2").double()
    given = {
        "g": gated_references(patches_adapter(plain, mask=False), BOXES[:2]),
        "2": gated_references(gligen_adapter(native_unet("text", "sd2")), BOXES),
    }
    scales, attention = {"g": 1.0, "2": 0.5}, tiny.references(plain, 2)
    with ExitStack() as stack:
        for which in order:
            ours = (
                ImageAttention(plain, attention, ImageAttentionSettings(1.0))
                if which == "a"
                else apply_gated(plain, given[which], GatedSettings(scales[which]))
            )
            stack.enter_context(ours).at(0.5)
        found = plain(**doubled(inputs(64))).sample
    gated = [which for which in order if which != "a"]
    for references in given.values():
        references.adapter.gated.float()
    objects = [
        torch.cat(
            [
                object_tokens(given[w].adapter.gated, given[w], Group(role, (1.0,) * len(given[w].subjects)))
                for role in (UNCOND, COND)
            ]
        ).double()
        for w in gated
    ]
    for references in given.values():
        references.adapter.gated.double()
    by_hand = plain_unet(plain)
    by_hand.double().position_net = Given()
    for i, block in enumerate(transformer_blocks(by_hand).values()):
        block.fuser = Chain(*((given[which].adapter.gated.fusers[i], scales[which]) for which in gated))
    with ImageAttention(by_hand, attention, ImageAttentionSettings(1.0)):
        expected = by_hand(**doubled(inputs(64)), cross_attention_kwargs={"gligen": {"objects": objects}}).sample
    assert_same(found, expected, plain(**doubled(inputs(64))).sample)


@pytest.mark.slow
@pytest.mark.parametrize("quiet_first", [True, False])
def test_an_adapter_at_rest_leaves_the_other_alone(quiet_first):
    plain = unet("sd2")
    quiet = gated_references(patches_adapter(plain, mask=False), BOXES[:2], end_percent=[0.2, 0.2])
    acting = gated_references(gligen_adapter(native_unet("text", "sd2")), BOXES)
    with ExitStack() as stack:
        for references in (quiet, acting) if quiet_first else (acting, quiet):
            stack.enter_context(apply_gated(plain, references, PLAIN)).at(0.5)
        found = plain(**inputs(64)).sample
    assert torch.equal(found, predict(plain, acting))


def test_the_next_run_sees_new_weights():
    """What was projected is dropped at the end of a run."""
    plain = unet("sd2")
    references = gated_references(patches_adapter(plain), BOXES[:2])
    gated = apply_gated(plain, references, PLAIN)
    with gated:
        before = plain(**inputs(64)).sample
    references.adapter.gated.fusers[0].attn.to_v.weight.mul_(3.0)
    with gated:
        found = plain(**inputs(64)).sample
    assert torch.equal(found, predict(plain, references, percent=0.0)) and not torch.equal(found, before)


@pytest.mark.slow
def test_an_adapter_on_diffusers_own_gligen_acts_after_it():
    native = native_unet("text", "sd2")
    own, references = (
        gated_references(gligen_adapter(native), BOXES),
        gated_references(patches_adapter(native, mask=False), BOXES[:2]),
    )
    plain = plain_unet(native)
    with apply_gated(plain, own, PLAIN), apply_gated(plain, references, PLAIN):
        expected = plain(**inputs(64)).sample
    before = {name: type(module) for name, module in native.named_modules()}
    with apply_gated(native, references, PLAIN):
        found, alone = natively(native, "text", own), native(**inputs(64)).sample
    assert_same(found, expected, natively(native, "text", own))
    assert_same(alone, predict(plain, references), predict(plain))
    assert {name: type(module) for name, module in native.named_modules()} == before


@pytest.mark.parametrize(
    "settings, each",
    [
        (GatedSettings(0.0), {}),
        (GatedSettings(end_percent=0.4), {}),
        (GatedSettings(end_percent=0.2, decay_percent=0.3), {}),
        (GatedSettings(end_percent=0.0), {}),
        (PLAIN, {"weight": [0.0, 0.0]}),
        (PLAIN, {"end_percent": [0.2, 0.2]}),
        (PLAIN, {"start_percent": [0.6, 0.7]}),
    ],
    ids=["strength 0", "no longer", "decayed", "never", "subjects at 0", "subjects out of range", "subjects not yet"],
)
def test_at_rest_it_is_bit_identical_and_nothing_is_called(settings, each):
    plain = unet("sd2")
    references = gated_references(patches_adapter(plain), BOXES[:2], **each)
    calls = [
        module.register_forward_hook(lambda *_: pytest.fail("called")) for module in references.adapter.gated.modules()
    ]
    assert torch.equal(predict(plain, references, settings), predict(plain))
    assert calls


@pytest.mark.slow
def test_an_empty_cast_and_the_end_of_a_run_are_bit_identical():
    plain = unet("sd2")
    references, names, before = (
        gated_references(patches_adapter(plain), BOXES[:2]),
        list(plain.state_dict()),
        predict(plain),
    )
    assert torch.equal(predict(plain, replace(references, subjects=())), before)
    with pytest.raises(RuntimeError), apply_gated(plain, references, PLAIN):
        assert list(plain.state_dict()) == names, "the adapter's weights are not the UNet's"
        assert not torch.equal(plain(**inputs(64)).sample, before)
        raise RuntimeError
    assert torch.equal(predict(plain), before)
    assert not any(hasattr(block, "fuser") for block in transformer_blocks(plain).values()) and not hasattr(
        plain, "position_net"
    )
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in plain.modules())


def test_gates_of_zero_are_bit_identical():
    plain = unet("sd2")
    references = gated_references(patches_adapter(plain, mask=False), BOXES[:2])
    for fuser in references.adapter.gated.fusers:
        fuser.alpha_attn.weight.zero_()
        fuser.alpha_dense.weight.zero_()
    assert torch.equal(predict(plain, references), predict(plain))


def test_refusals_name_what_is_wrong():
    with pytest.raises(MismatchError, match="a MODEL for SD2|text embeddings of size 64"):
        apply_gated(unet("sd15"), gated_references(patches_adapter(unet("sd2")), BOXES[:1]), PLAIN)
    plain = unet("sd2")
    with pytest.raises(MismatchError, match="a finite number as 'decay_percent' of Apply Gated Adapter, found inf"):
        apply_gated(plain, gated_references(patches_adapter(plain), BOXES[:1]), GatedSettings(0.0, 0.5, float("inf")))
    with pytest.raises(MismatchError, match="with ImageAttention"):
        apply_gated(plain, tiny.references(plain, 1), PLAIN)
    with pytest.raises(
        MismatchError, match=r"with image attention, found tiny.safetensors.*gated layers\).*GatedAdapter"
    ):
        ImageAttention(plain, gated_references(patches_adapter(plain), BOXES[:1]), ImageAttentionSettings(1.0))


# ---- weights that an adapter brings ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sd15", "sd2"])
def test_weights_of_the_base_are_in_place_until_the_end(base):
    """By LDM names, in every part of the UNet; afterwards the UNet is what it was."""
    plain, other = unet(base), unet(base)
    to_k, to_v, norm = (
        f"transformer_blocks.0.{name}" for name in ("attn2.to_k.weight", "attn2.to_v.weight", "norm2.bias")
    )
    names = {
        "input_blocks.0.0.weight": "conv_in.weight",
        f"input_blocks.1.1.{to_k}": f"down_blocks.0.attentions.0.{to_k}",
        f"middle_block.1.{to_v}": f"mid_block.attentions.0.{to_v}",
        f"output_blocks.3.1.{norm}": f"up_blocks.1.attentions.1.{norm}",
    }
    state, before = dict(other.named_parameters()), predict(plain)
    weights = {ldm: torch.randn_like(state[name]) for ldm, name in names.items()}
    for ldm, name in names.items():
        state[name].copy_(weights[ldm])
    with pytest.raises(RuntimeError), base_weights(plain, Weights(weights)):
        assert torch.equal(predict(plain), predict(other)) and not torch.equal(predict(plain), before)
        raise RuntimeError
    assert torch.equal(predict(plain), before)


def test_weights_of_another_base_are_refused():
    for name, message in (
        (
            "middle_block.1.norm.weight",
            r"1 of 1 tensors do not fit: 'middle_block.1.norm.weight' has the shape \[128\] instead of \[64\]",
        ),
        ("input_blocks.9.1.norm.weight", "there is no weight named 'input_blocks.9.1.norm.weight'"),
    ):
        with pytest.raises(MismatchError, match=message), base_weights(unet("sd2"), Weights({name: torch.ones(64)})):
            pass


# ---- whole runs ------------------------------------------------------------------------------------------------------


def run(model, applied=(), steps=4, cfg=3.0, seen=None):
    g = torch.Generator().manual_seed(11)
    prompts = [Prompt(torch.randn(1, 77, model.config.cross_attention_dim, generator=g)) for _ in range(2)]
    keep = None if seen is None else lambda done, of, latent: seen.append(latent)
    return sample(
        model, tiny.scheduler(), *prompts, SamplingSettings(88, 136, steps, cfg, seed=5, batch=2), applied, keep
    )


@pytest.mark.slow
def test_whole_runs_take_gated_and_image_attention_applies():
    plain = unet("sd2")
    gated, attention = (
        (gated_references(patches_adapter(plain), BOXES[:2]), PLAIN),
        (tiny.references(plain, 2), ImageAttentionSettings(1.0)),
    )
    results = [
        run(plain),
        run(plain, [gated]),
        run(plain, [attention]),
        run(plain, [gated, attention]),
        run(plain, [gated], cfg=1.0),
    ]
    assert all(found.shape == (2, 4, 17, 11) and found.isfinite().all() for found in results)
    assert all((a - b).abs().max() > 1e-2 for i, a in enumerate(results) for b in results[:i])
    torch.testing.assert_close(run(plain, [attention, gated]), results[3], rtol=1e-4, atol=1e-4)
    assert torch.equal(run(plain, [gated]), results[1]) and torch.equal(
        run(plain, [(gated[0], GatedSettings(0.0))]), results[0]
    )


@pytest.mark.slow
def test_tau_ends_in_its_step():
    """Of four steps at 0, 1/3, 2/3 and 1, a tau of 0.5 leaves the first two; until there both runs are one."""
    plain, latents = unet("sd2"), {}
    references = gated_references(patches_adapter(plain), BOXES[:2])
    for name, settings in (
        ("whole", PLAIN),
        ("half", GatedSettings(end_percent=0.5)),
        ("edge", GatedSettings(end_percent=1 / 3)),
    ):
        run(plain, [(references, settings)], seen=latents.setdefault(name, []))
    same = [
        [torch.equal(a, b) for a, b in zip(latents["whole"], latents[name], strict=True)] for name in ("half", "edge")
    ]
    assert same == [[True, True, False, False], [True, False, False, False]]


@pytest.mark.slow
def test_a_unet_in_half_precision():
    """The adapter follows the UNet; what its net makes is made in float32."""
    plain = unet("sd2")
    references = gated_references(patches_adapter(plain), BOXES[:2])
    expected, without = predict(plain, references), predict(plain)
    given = {name: inputs(64)[name].bfloat16() for name in ("sample", "encoder_hidden_states")}
    found = predict(plain.bfloat16(), references, **given).float()
    assert (found - expected).abs().max() < 0.03 * expected.abs().max() < 0.3 * (expected - without).abs().max()
    assert references.adapter.gated.net.linears_image.fc1.weight.dtype == torch.float32


@pytest.mark.slow
def test_objects_and_mask_are_made_once_a_run():
    plain = unet("sd2")
    references = gated_references(patches_adapter(plain), BOXES[:2])
    gated = references.adapter.gated
    counted = [gated.mask_conv, gated.net.linears_image, *(fuser.linear for fuser in gated.fusers)]
    calls = dict.fromkeys(counted, 0)

    def count(module, args, output):
        calls[module] += 1

    for module in counted:
        module.register_forward_hook(count)
    run(plain, [(references, PLAIN)])
    assert set(calls.values()) == {1}
    run(plain, [(references, GatedSettings(0.0))])
    assert set(calls.values()) == {1}
