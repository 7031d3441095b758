"""The embedded engine's prompts with subjects in them, weights that come with an adapter, delays and guidance, on tiny
random models.
"""

import math
from dataclasses import replace

import pytest
import torch
from support import tiny_diffusers as tiny
from support.prompt_fusions import FUSIONS
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from troupe.model_patches.adapter import Adapter, AdapterSpec, LoraPair, PromptSpec, Weights
from troupe.model_patches.attention.guidance import subject_guidance, umm_condition
from troupe.model_patches.binding.two_strengths import Guidance
from troupe.model_patches.errors import MismatchError
from troupe.model_patches.hosts.diffusers.encoders import EOS, ClipTexts, Prompt, embeddings_replaced
from troupe.model_patches.hosts.diffusers.guidance import branches, factors, of_step, second_at
from troupe.model_patches.hosts.diffusers.prompt import TextsPromptEncoder, encode_prompt
from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
from troupe.model_patches.hosts.diffusers.weights import base_weights, text_encoder_weights
from troupe.model_patches.prompt.fusion import fuse_prompt, fuse_prompts
from troupe.model_patches.subjects import References, ReferenceSubject


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def text_model(width=32, projection=False, seed=0):
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=width,
        eos_token_id=EOS,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Sum(torch.nn.Module):
    """A fusion of a word and a photo."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, words, vectors):
        return words + self.scale * vectors


def subject(stream="l", width=32, name="cat", kind="pseudo", **rest):
    spec = AdapterSpec("umm", "umm.safetensors", width, (PromptSpec(FUSIONS[kind], {stream: width}),))
    return References(
        Adapter(spec, None, None), (ReferenceSubject(name, None, None, words={stream: drawn(1, width)}, **rest),), None
    )


# ---- word embeddings -------------------------------------------------------------------------------------------------


def test_a_words_own_embedding_in_its_place_changes_nothing():
    texts = ClipTexts.sd15(text_model())
    streams = texts.tokenize("a (cat:1.2) in the snow")
    again = {
        "l": [
            [(texts.towers[0].embed([token])[0], weight) for token, weight in chunk[:3]] + chunk[3:]
            for chunk in streams["l"]
        ]
    }
    [found], [expected] = texts.encode_each([again]), texts.encode_each([streams])
    torch.testing.assert_close(found.embeds, expected.embeds, rtol=0, atol=1e-6)


def test_a_vector_stands_where_it_is_put_and_later_tokens_see_it():
    texts = ClipTexts.sdxl(text_model(), text_model(48, True, seed=2))
    streams = texts.tokenize("a cat in the snow")
    vectors = {"l": drawn(32), "g": drawn(48)}
    changed = {
        name: [[*chunk[:2], (vectors[name], 1.0), *chunk[3:]] for chunk in chunks] for name, chunks in streams.items()
    }
    [before], [after] = texts.encode_each([streams]), texts.encode_each([changed])
    assert (
        torch.equal(before.embeds[:, :2], after.embeds[:, :2])
        and (before.embeds[:, 2:6] - after.embeds[:, 2:6]).abs().amax(-1).min() > 1e-3
    )
    assert not torch.allclose(before.pooled, after.pooled)


def test_nothing_stays_on_the_model():
    texts = ClipTexts.sd15(text_model())
    table = texts.towers[0].model.get_input_embeddings()
    with pytest.raises(RuntimeError), embeddings_replaced(texts.towers[0].model, {(0, 1): drawn(32)}):
        raise RuntimeError
    encode_prompt(texts, subject(), "a cat")
    assert not table._forward_hooks


def test_only_the_subjects_row_is_kept_of_pseudo_words():
    """UMM-Diffusion's unified states: everything else is the plain text's."""
    fused, plain = encode_prompt(ClipTexts.sd15(text_model()), subject(), "a cat in the snow")
    differs = (fused.embeds - plain.embeds).abs().amax(-1)[0] > 1e-4
    assert differs.nonzero().flatten().tolist() == [2] and fused.before is None


def test_prompts_together_are_the_prompts_one_by_one_from_one_pass():
    """Short and long, with emphasis, with and without subjects, one and two text encoders."""
    single, two = ClipTexts.sd15(text_model()), ClipTexts.sdxl(text_model(), text_model(48, True, seed=2))
    captions = ["a (cat:1.3) in the snow", "a cat, " + "very " * 90 + "far away", "", "a (red:0.7) barn"]
    for texts in (single, two):
        streams = [texts.tokenize(caption) for caption in captions]
        for alone, each in zip(streams, texts.encode_each(streams), strict=True):
            [one] = texts.encode_each([alone])
            torch.testing.assert_close(each.embeds, one.embeds, rtol=0, atol=1e-5)
            assert texts is single or torch.allclose(each.pooled, one.pooled, rtol=0, atol=1e-5)
    passes = []
    hook = single.towers[0].model.register_forward_hook(lambda *_: passes.append(1))
    for kind in ("pseudo", "postfuse"):
        passes.clear()
        shown = subject(kind=kind)
        adapter = replace(shown.adapter, fusion=torch.nn.ModuleDict({"l": Sum()}))
        given = [(References(adapter, shown.subjects if "cat" in text else (), None), text) for text in captions]
        encoder = TextsPromptEncoder(single, adapter.fusion)
        together = fuse_prompts(given, encoder)
        assert len(passes) == 1
        for (references, text), ((found,), said) in zip(given, together, strict=True):
            (alone,), alone_said = fuse_prompt(references, text, encoder)
            assert said == alone_said and bool(said) == ("cat" in text)
            torch.testing.assert_close(found.plain.states, alone.plain.states, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.fused.states, alone.fused.states, rtol=0, atol=1e-5)
            assert torch.equal(found.plain.states, found.fused.states) == (not said)
    hook.remove()


def test_an_adapter_without_words_is_refused():
    references = tiny.references(tiny.unet(), 1)
    with pytest.raises(MismatchError, match="acts in the prompt"):
        encode_prompt(ClipTexts.sd15(text_model()), references, "a cat")


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength, alpha", [(1.0, None), (0.6, 4.0), (-0.5, 1.0)])
def test_lora_is_added_and_taken_off_again(strength, alpha):
    """W + strength * (alpha / r) up down, whichever part of the UNet; afterwards it is bit-identical."""
    plain, other = tiny.unet(), tiny.unet()
    changed = ("attn1.to_q", "attn2.to_k", "attn2.to_out.0")
    ldm, diffusers = "input_blocks.1.1.transformer_blocks.0", "down_blocks.0.attentions.0.transformer_blocks.0"
    names = {f"{ldm}.{x}.weight": f"{diffusers}.{x}.weight" for x in changed}
    own = dict(other.named_parameters())
    pairs = {}
    for i, (ldm, name) in enumerate(names.items()):
        out, into = own[name].shape
        pairs[ldm] = LoraPair(drawn(2, into, seed=i), drawn(out, 2, seed=9 + i), alpha)
        own[name].add_(strength * (1.0 if alpha is None else alpha / 2) * pairs[ldm].up @ pairs[ldm].down)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(RuntimeError), base_weights(plain, Weights(unet_lora=pairs), strength):
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(value, own.get(name, value), rtol=0, atol=1e-5)
        assert sum(not torch.equal(value, before[name]) for name, value in plain.state_dict().items()) == len(names)
        raise RuntimeError
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_text_encoders_have_their_weights_while_it_is_open():
    """LoRAs of each stream apart; a stream without one stays as it is."""
    texts = ClipTexts.sdxl(text_model(), text_model(48, True, seed=2))
    name = "text_model.encoder.layers.0.self_attn.v_proj.weight"
    weights = Weights(text_lora={s: {name: LoraPair(drawn(2, w), drawn(w, 2))} for s, w in (("l", 32), ("g", 48))})
    plain = texts.encode_prompt("a cat").embeds
    with text_encoder_weights(texts, weights, 0.5):
        both = texts.encode_prompt("a cat").embeds
    with text_encoder_weights(texts, Weights(text_lora={"l": weights.text_lora["l"]}), 0.5):
        first = texts.encode_prompt("a cat").embeds
    assert torch.equal(plain, texts.encode_prompt("a cat").embeds)
    assert not torch.allclose(both[..., :32], plain[..., :32]) and not torch.allclose(both[..., 32:], plain[..., 32:])
    assert torch.equal(first[..., :32], both[..., :32]) and torch.equal(first[..., 32:], plain[..., 32:])


def test_whole_text_weights_and_what_does_not_fit():
    texts = ClipTexts.sd15(text_model())
    name = "text_model.final_layer_norm.bias"
    plain = texts.encode_prompt("a cat").embeds
    with text_encoder_weights(texts, Weights(text={name: drawn(32)})):
        changed = texts.encode_prompt("a cat").embeds
    with text_encoder_weights(texts, Weights(text={name: drawn(32)}), 0.0):
        assert torch.equal(texts.encode_prompt("a cat").embeds, plain)
    assert torch.equal(texts.encode_prompt("a cat").embeds, plain)
    torch.testing.assert_close(changed - plain, drawn(32).expand_as(changed), rtol=0, atol=1e-5)
    for weights, strength, message in (
        (Weights(text={name: drawn(31)}), 1.0, r"has the shape \[32\] instead of \[31\]"),
        (Weights(text={name: drawn(32)}), 0.5, "strength 1.*found 0.5"),
        (Weights(text_lora={"g": {}}), 1.0, "a CLIP with OpenCLIP bigG for the LoRAs.*found one with CLIP-L"),
    ):
        with pytest.raises(MismatchError, match=message), text_encoder_weights(texts, weights, strength):
            pass
    two = ClipTexts.sdxl(text_model(), text_model(48, True, seed=2))
    alone = Weights(text={name: drawn(32)})
    with pytest.raises(MismatchError, match="with one text encoder.*found 2"), text_encoder_weights(two, alone):
        pass


def test_weights_at_strength_0_need_not_fit():
    """As Apply Adapter Weights has it."""
    texts, plain = ClipTexts.sd15(text_model()), tiny.unet()
    wrong = {"nobody's": drawn(3)}
    with text_encoder_weights(texts, Weights(text=wrong, text_lora={"g": {}}), 0.0):
        pass
    with base_weights(plain, Weights(unet=wrong), 0.0):
        pass


# ---- guidance and delays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg, second", [(7.5, 1.5), (1.0, 1.5), (7.5, 1.0), (5.0, 5.0), (1.0, 1.0)])
def test_factors_are_subject_diffusions_formula(cfg, second):
    e = {name: drawn(5, seed=i) for i, name in enumerate(("negative", "middle", "positive"))}
    found = factors(Guidance("subject_diffusion", second, second), cfg, 0.3)
    mixed = sum(share * e[name] for name, share in found.items())
    torch.testing.assert_close(mixed, subject_guidance(e["positive"], e["middle"], e["negative"], cfg, second))
    assert sum(found.values()) == pytest.approx(1.0) and 0.0 not in found.values()


@pytest.mark.parametrize(
    "cfg, alpha, count", [(7.5, 0.5, 3), (7.5, 1.0, 2), (7.5, 0.0, 2), (1.0, 0.5, 2), (1.0, 1.0, 1)]
)
def test_factors_are_umms_formula_with_no_branch_too_many(cfg, alpha, count):
    e = {name: drawn(5, seed=i) for i, name in enumerate(("negative", "middle", "positive"))}
    found = factors(Guidance("umm", alpha, alpha), cfg, 0.3)
    torch.testing.assert_close(
        sum(share * e[name] for name, share in found.items()),
        e["negative"] + cfg * (umm_condition(e["middle"], e["positive"], alpha) - e["negative"]),
    )
    assert len(found) == count


def test_the_second_strength_moves_evenly_and_outside_its_range_guidance_is_ordinary():
    guidance = Guidance("subject_diffusion", 1.0, 3.0, 0.2, 0.6)
    assert [second_at(guidance, p) for p in (0.1, 0.2, 0.4, 0.6, 0.7)] == [
        None,
        1.0,
        pytest.approx(2.0),
        pytest.approx(3.0),
        None,
    ]
    assert factors(guidance, 7.5, 0.7) == {"negative": -6.5, "positive": 7.5} == factors(None, 7.5, 0.3)
    assert factors(Guidance("umm", 0.5, 0.5, 0.2, 0.6), 7.5, 0.7) == {"negative": -6.5, "middle": 7.5}


def test_umm_asks_for_its_middle_and_for_a_share():
    prompt = Prompt(drawn(1, 77, 32))
    with pytest.raises(MismatchError, match="in 'middle' for method umm, found nothing wired"):
        branches(Guidance("umm", 0.5, 0.5), prompt, prompt, None)
    with pytest.raises(MismatchError, match="from 0 to 1"):
        branches(Guidance("umm", 0.5, 1.5), prompt, prompt, prompt)


@pytest.mark.parametrize(
    ("cfg", "second", "message"),
    [
        (math.nan, 1.5, "a finite number as 'cfg' of Two-Strength Guider, found nan"),
        (7.5, math.inf, "a finite number as 'second' of Two-Strength Guider, found inf"),
        (7.5, -1.0, "0 or more as 'second' of Two-Strength Guider, found -1"),
    ],
)
def test_guidance_refuses_the_numbers_that_the_node_refuses(cfg, second, message):
    plain, prompt = tiny.unet(), Prompt(drawn(1, 77, tiny.CONTEXT))
    guidance = Guidance("subject_diffusion", second)
    with pytest.raises(MismatchError, match=message):
        sample(plain, tiny.scheduler(), prompt, prompt, SamplingSettings(64, 64, 1, cfg), guidance=guidance)


@pytest.mark.parametrize(
    "delay, fused",
    [
        ({}, 4),
        ({"start_step": 0}, 4),
        ({"start_step": 3}, 1),
        ({"start_step": 4}, 0),
        ({"start_percent": 0.5}, 2),
        ({"start_step": 1, "start_percent": 0.9}, 3),
    ],
)
def test_a_delay_in_steps_or_percent(delay, fused):
    before = Prompt(drawn(1, 77, 8))
    prompt = Prompt(drawn(1, 77, 8), None, before, **delay)
    assert [of_step(prompt, step, step / 3) is prompt for step in range(4)] == [False] * (4 - fused) + [True] * fused


@pytest.mark.slow
def test_a_run_changes_its_prompt_and_its_pooled_text_in_the_middle():
    """As far as the delay it is the run of the plain prompt, then no more; the pooled text changes too."""
    unet, kept = tiny.unet("sdxl"), {}
    plain, fused = (Prompt(drawn(1, 77, tiny.CONTEXT, seed=i), drawn(1, tiny.POOLED, seed=10 + i)) for i in (1, 2))
    choices = {
        "plain": plain,
        "late": Prompt(fused.embeds, fused.pooled, plain, start_step=2),
        "pooled only": Prompt(plain.embeds, fused.pooled, plain, start_step=2),
    }
    for name, prompt in choices.items():
        latents = kept.setdefault(name, [])
        sample(
            unet,
            tiny.scheduler(),
            prompt,
            plain,
            SamplingSettings(64, 64, 4),
            callback=lambda done, of, latent, latents=latents: latents.append(latent),
        )
    for name in ("late", "pooled only"):
        assert [torch.equal(a, b) for a, b in zip(kept[name], kept["plain"], strict=True)] == [True, True, False, False]
    assert not torch.equal(kept["late"][-1], kept["pooled only"][-1])
