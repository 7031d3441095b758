"""UMM-Diffusion's mapping, unified states and fused sampling against stored float64 evaluations of its formulas."""

import json

import pytest
import torch
from support.golden_mm_diff import FOLDER, golden, loaded, normal
from support.golden_prompts import StoredEncoder, fused
from troupe.model_patches.attention.guidance import subject_guidance, umm_coefficients, umm_condition
from troupe.model_patches.encoders.projections import MisshapenTensor
from troupe.model_patches.encoders.pseudo_words import ACTIVATIONS, PseudoWords
from troupe.model_patches.prompt.tokens import LENGTH

INDEX = json.loads((FOLDER / "umm" / "umm.json").read_text())
FUSED = sorted(name for name in INDEX if name.startswith("umm.fused.s"))


def mapping_state():
    """The published form of a file: float64, names without `mapping.`."""
    return {
        name.removeprefix("mapping."): (0.1 if len(shape) == 1 else 0.25) * normal(name, *shape)
        for name, shape in INDEX["parameters"].items()
    }


def mapping(state, **options):
    return loaded(PseudoWords(**PseudoWords.widths(state), **options).to(next(iter(state.values())).dtype), state)


def agree(found, expected):
    """1e-12 in float64, 1e-5 of the largest value in float32."""
    torch.testing.assert_close(
        found.double(),
        expected,
        rtol=0,
        atol=1e-12 if found.dtype == torch.float64 else 1e-5 * float(expected.abs().max()),
    )


# ---- pseudo words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "norm"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pseudo_words_are_the_formulas(activation, normalize, dtype):
    g = golden("umm")
    module = mapping(
        {name: tensor.to(dtype) for name, tensor in mapping_state().items()}, activation=activation, normalize=normalize
    )
    found = module(g["umm.image_embed"].to(dtype))
    assert found.shape == (2, 1, 24)
    agree(found[:, 0], g[f"umm.pseudo.{activation}.{'norm' if normalize else 'raw'}"])


def test_several_words_are_one_after_the_other_in_the_output():
    embeds = golden("umm")["umm.image_embed"]
    assert torch.equal(mapping(mapping_state(), tokens=3)(embeds), mapping(mapping_state())(embeds).view(2, 3, 8))


@pytest.mark.parametrize("over", [8, 24], ids=["each word", "all words"])
def test_norms_are_where_the_file_has_them(over):
    state, embeds = mapping_state(), golden("umm")["umm.image_embed"]
    before, after = (normal("in.w", 32), normal("in.b", 32)), (normal("out.w", over), normal("out.b", over))
    plain = mapping(state, tokens=3)(torch.nn.functional.layer_norm(embeds, (32,), *before))
    state |= {
        "input_norm.weight": before[0],
        "input_norm.bias": before[1],
        "output_norm.weight": after[0],
        "output_norm.bias": after[1],
    }
    expected = torch.nn.functional.layer_norm(plain if over == 8 else plain.flatten(1), (over,), *after).view(2, 3, 8)
    torch.testing.assert_close(mapping(state, tokens=3)(embeds), expected)


def test_one_layer_has_no_activation():
    state = {"layers.0.weight": normal("w", 24, 32), "layers.0.bias": normal("b", 24)}
    embeds = golden("umm")["umm.image_embed"]
    torch.testing.assert_close(mapping(state)(embeds)[:, 0], torch.nn.functional.linear(embeds, *state.values()))


@pytest.mark.parametrize(
    "options, complaint",
    [
        ({"tokens": 5}, "divides the output width 24, found 5"),
        ({"tokens": 0}, "found 0"),
        ({"activation": "tanh"}, "gelu, relu, leaky_relu, silu, found 'tanh'"),
        ({"tokens": 2, "output_norm": 8}, "a width of 12 or 24, found 8"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        PseudoWords((32, 48, 24), **options)


def test_layers_that_do_not_follow_each_other_are_told_by_the_tensor():
    state = {**mapping_state(), "layers.1.weight": torch.zeros(48, 47)}
    with pytest.raises(MisshapenTensor, match=r"layers.1.weight: expected 48 columns, found \[48, 47\]"):
        PseudoWords.widths(state)


@pytest.mark.parametrize("case", ["one", "two", "none"])
def test_unified_states_are_the_formulas(case):
    g = golden("umm")
    for row, mask in enumerate(g[f"umm.mask.{case}"]):
        length, places = len(mask) - 1, mask.nonzero().flatten().tolist()
        h_y, h_r = (
            torch.nn.functional.pad(g[f"umm.{name}"][row], (0, 0, 0, LENGTH - length - 1))[None]
            for name in ("h_y", "h_r")
        )

        def states(tokens, h_y=h_y, h_r=h_r):
            return (h_r if any(isinstance(token, torch.Tensor) for token in tokens) else h_y), None

        encoder = StoredEncoder(states, torch.zeros(length + 1, 24))
        found = fused("pseudo", encoder, length, places, [torch.ones(1, 24)] * len(places))
        assert torch.equal(found.fused.states[0, : length + 1], g[f"umm.h_u.{case}"][row]) and torch.equal(
            found.plain.states, h_y
        )


# ---- fused sampling --------------------------------------------------------------------------------------------------


def branches(dtype, *names):
    return [golden("umm")[f"eps.{name}"].to(dtype) for name in names]


def guided(null, cond, cfg):
    """Classifier-free guidance, as both hosts have it."""
    return null + cfg * (cond - null)


def numbers(name):
    """cfg and alpha of a stored case, `umm.fused.s7.5.a0.5`."""
    cfg, alpha = name.removeprefix("umm.fused.s").split(".a")
    return float(cfg), float(alpha)


@pytest.mark.parametrize("name", FUSED)
def test_coefficients_are_the_stored_ones(name):
    cfg, alpha = numbers(name)
    assert umm_coefficients(cfg, alpha) == pytest.approx(
        tuple(INDEX[name]["coefficients"][branch] for branch in ("null", "y", "u")), abs=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FUSED)
def test_fused_sampling_is_the_formula(name, dtype):
    cfg, alpha = numbers(name)
    null, text, subject = branches(dtype, "null", "y", "u")
    agree(guided(null, umm_condition(text, subject, alpha), cfg), golden("umm")[name])


def test_it_is_the_same_formula_on_denoised_pictures():
    g = golden("umm")
    null, text, subject = (g["latent"] - 3.25 * eps for eps in branches(torch.float64, "null", "y", "u"))
    agree(guided(null, umm_condition(text, subject, 0.8), 7.5), g["umm.fused_denoised.s7.5.a0.8.sigma3.25"])


@pytest.mark.parametrize(
    "cfg, alpha, needed",
    [
        (7.5, 0.5, (True, True, True)),
        (7.5, 1.0, (True, False, True)),
        (7.5, 0.0, (True, True, False)),
        (1.0, 0.3, (False, True, True)),
        (5.0, 0.1 * 3 + 0.7, (True, False, True)),
        (0.0, 0.5, (True, False, False)),
    ],
)
def test_branches_of_coefficient_0_are_known_and_not_read(cfg, alpha, needed):
    coefficients = umm_coefficients(cfg, alpha)
    assert tuple(bool(c) for c in coefficients) == needed and sum(coefficients) == pytest.approx(1)
    text, subjects = normal("branches", 2, 1, 4, 5, 5)
    read = (
        one if factor else None for one, factor in zip((text, subjects), umm_coefficients(1.0, alpha)[1:], strict=True)
    )
    torch.testing.assert_close(umm_condition(*read, alpha), alpha * subjects + (1 - alpha) * text)


@pytest.mark.parametrize("name", sorted(name for name in INDEX if name.startswith("three.")))
def test_subject_diffusions_guidance_is_the_stored_one(name):
    cfg, image_cfg = (float(number) for number in name.removeprefix("three.s").split(".i"))
    null, image, text = branches(torch.float64, "null", "image", "text")
    agree(subject_guidance(text, image, null, cfg, image_cfg), golden("umm")[name])


@pytest.mark.parametrize("name", ["nested.s5.0.i1.5", "nested.s7.5.i5.0"])
def test_guidance_text_first_is_the_same_formula_in_another_order(name):
    """`null + s_t (y - null) + s_i (u - y)`: text before picture, as InstructPix2Pix has it."""
    g, (text_scale, image_scale) = golden("umm"), (float(x) for x in name.removeprefix("nested.s").split(".i"))
    torch.testing.assert_close(
        subject_guidance(g["eps.u"], g["eps.y"], g["eps.null"], image_scale, text_scale),
        g[name],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_rescaled_guidance_is_the_formula(share):
    g = golden("umm")
    text = g["eps.text"]
    found = guided(g["eps.null"], text, 7.5)
    axes = tuple(range(1, found.ndim))
    rescaled = share * found * (text.std(axes, keepdim=True) / found.std(axes, keepdim=True)) + (1 - share) * found
    torch.testing.assert_close(rescaled, g[f"rescale.{share}"], rtol=1e-12, atol=1e-12)
