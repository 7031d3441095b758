"""Photos, names and prompts of the embedded engine, on tiny random CLIP models."""

import numpy as np
import pytest
import safetensors.torch
import torch
from support import tiny_diffusers as tiny
from support import tiny_open_clip
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from troupe.model_patches.adapter import Adapter, AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec, Weights
from troupe.model_patches.checkpoints.clip_vision import with_transformers_names
from troupe.model_patches.encoders.mlp import MLP
from troupe.model_patches.errors import MismatchError, SubjectError
from troupe.model_patches.hosts.diffusers.encoders import (
    BOS,
    EOS,
    ClipImages,
    ClipTexts,
    encode_references,
    load_adapter,
    pixel_values,
    prompt_chunks,
)
from troupe.model_patches.subjects import Cast, make_subject

A, CAT, RED, FOX, OPEN, CLOSE = 320, 2368, 736, 3240, 263, 264  # in CLIP's vocabulary


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def text_model(width=32, projection=0, layers=3, seed=0):
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=projection or width,
        eos_token_id=EOS,
    )
    return (CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)).eval()


def vision_model():
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32,
        image_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        patch_size=8,
        projection_dim=tiny.EMBED,
    )
    return CLIPVisionModelWithProjection(config).eval()


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, tokens",
    [
        ("", []),
        ("cat", [CAT]),
        ("Red  FOX", [RED, FOX]),
        ("(cat:1.2)", [CAT]),
        ("((red) fox)", [RED, FOX]),
    ],
)
def test_tokens_of_a_prompt(prompt, tokens):
    assert [[token for token, _ in chunk] for chunk in prompt_chunks(prompt)] == [[BOS, *tokens, EOS]]


def test_weights_and_brackets_to_be_read():
    assert prompt_chunks("a (cat:1.2) \\(red\\) fox")[0][1:-1] == [
        (A, 1.0),
        (CAT, 1.2),
        (OPEN, 1.0),
        (RED, 1.0),
        (CLOSE, 1.0),
        (FOX, 1.0),
    ]


def test_long_prompts_go_on_in_a_second_chunk():
    chunks = prompt_chunks("cat " * 80)
    assert [len(c) for c in chunks] == [77, 7] and all(c[0] == (BOS, 1.0) and c[-1] == (EOS, 1.0) for c in chunks)
    # four tokens do not fit into the three that are left: they stay together
    chunks = prompt_chunks("cat " * 72 + "(red fox red fox:1.1)")
    assert [len(c) for c in chunks] == [74, 6] and chunks[1][1:-1] == [(RED, 1.1), (FOX, 1.1)] * 2


# ---- names and prompts -----------------------------------------------------------------------------------------------


def states(model, chunk, padding):
    """All hidden states of one padded chunk, computed layer by layer; the last one without the final norm."""
    inner = getattr(model, "text_model", model)
    ids = torch.tensor([chunk + [padding] * (77 - len(chunk))])
    x = inner.embeddings(input_ids=ids)
    mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
    found = [x]
    for block in inner.encoder.layers:
        x = block(x, mask)
        found.append(x)
    return found, inner.final_layer_norm


def expected_states(kind, models, chunk):
    if kind == "sdxl":
        (low, _), (big, _) = states(models[0], chunk, EOS), states(models[1], chunk, 0)
        return torch.cat((low[-2], big[-2]), -1)[0]
    found, norm = states(models[0], chunk, EOS if kind == "sd15" else 0)
    return norm(found[-1] if kind in ("sd15", "sd2 without its last layer") else found[-2])[0]


KINDS = {
    "sd15": (lambda: [text_model()], ClipTexts.sd15),
    "sd2": (lambda: [text_model()], ClipTexts.sd2),
    "sd2 without its last layer": (lambda: [text_model(layers=23)], ClipTexts.sd2),
    "sdxl": (lambda: [text_model(), text_model(48, 48, seed=1)], ClipTexts.sdxl),
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_cut_out_of_the_right_layer(kind):
    make, texts = KINDS[kind]
    models = make()
    cat, fox, empty = texts(*models).encode(["cat", "(red fox:1.5)", ""])
    assert [len(t) for t in (cat, fox, empty)] == [1, 2, 76]
    for found, chunk in ((cat, [BOS, CAT, EOS]), (fox, [BOS, RED, FOX, EOS]), (empty, [BOS, EOS])):
        torch.testing.assert_close(
            found, expected_states(kind, models, chunk)[1 : 1 + len(found)], rtol=1e-4, atol=1e-5
        )


def test_prompts_with_weights():
    models = KINDS["sdxl"][0]()
    texts = ClipTexts.sdxl(*models)
    found = texts.encode_prompt("red (fox:1.5)")
    plain, empty = expected_states("sdxl", models, [BOS, RED, FOX, EOS]), expected_states("sdxl", models, [BOS, EOS])
    expected = plain.clone()
    expected[2] = empty[2] + 1.5 * (plain[2] - empty[2])
    torch.testing.assert_close(found.embeds[0], expected, rtol=1e-4, atol=1e-5)
    hidden, norm = states(models[1], [BOS, RED, FOX, EOS], 0)
    torch.testing.assert_close(found.pooled, models[1].text_projection(norm(hidden[-1])[:, 3]), rtol=1e-4, atol=1e-5)
    assert texts.encode_prompt("cat " * 80).embeds.shape == (1, 154, 80)
    assert ClipTexts.sd15(models[0]).encode_prompt("cat").pooled is None


def test_several_prompts_take_one_pass_and_get_what_each_gets_alone():
    models = KINDS["sdxl"][0]()
    texts, passes = ClipTexts.sdxl(*models), []
    prompts = ["red (fox:1.5)", "cat " * 80, ""]
    alone = [texts.encode_prompt(prompt) for prompt in prompts]
    for model in models:
        model.register_forward_hook(lambda *_: passes.append(1))
    together = texts.encode_prompts(prompts)
    assert len(passes) == 2, "one of each text encoder"
    for found, expected in zip(together, alone, strict=True):
        assert found.embeds.shape == expected.embeds.shape
        torch.testing.assert_close(found.embeds, expected.embeds, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-4, atol=1e-5)


def test_a_name_has_one_chunk():
    with pytest.raises(SubjectError, match="at most 75 tokens"):
        ClipTexts.sd15(text_model()).encode(["cat " * 76])
    assert len(ClipTexts.sd15(text_model()).encode(["cat " * 75])[0]) == 75


@pytest.mark.parametrize("kind", KINDS)
def test_pooled_names(kind):
    """At EOS after the final norm: CLIP-L before its projection, behind it bigG with its own."""
    make, texts = KINDS[kind]
    models = make()
    if kind == "sd15":  # the same numbers from a model that also has the projection
        models = [text_model(32, projection=24)]
    found = texts(*models).pooled(["cat", "((red) fox:1.5)", "()", ""])
    assert found[2:] == [None, None]
    for vector, chunk in zip(found, ([BOS, CAT, EOS], [BOS, RED, FOX, EOS]), strict=False):
        expected = []
        for model, padding in zip(models, (EOS, 0) if kind != "sd2" else (0,), strict=False):
            hidden, norm = states(model, chunk, padding)
            expected.append(norm(hidden[-1])[0, len(chunk) - 1])
        if kind == "sdxl":
            expected[1] = models[1].text_projection(expected[1])
        torch.testing.assert_close(vector, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_a_pooled_name_has_one_chunk():
    with pytest.raises(SubjectError, match="at most 75 tokens"):
        ClipTexts.sd15(text_model()).pooled(["cat " * 76])


# ---- photos ----------------------------------------------------------------------------------------------------------


def test_pixel_values_are_clips_own_preprocessing():
    """Against the 8-bit picture in numpy, with CLIP's published mean and deviation."""
    pictures = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(2)) * 1.2 - 0.1
    bytes_ = np.clip(np.rint(pictures.double().numpy() * 255), 0, 255).astype(np.uint8)
    expected = (bytes_ / 255.0 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    torch.testing.assert_close(
        pixel_values(pictures), torch.from_numpy(expected.transpose(0, 3, 1, 2)).float(), rtol=1e-5, atol=1e-5
    )


def test_encoder_outputs():
    model = vision_model()
    images = ClipImages(model)
    assert (images.size, images.hidden, images.pooled) == (32, 32, tiny.EMBED)
    pictures = torch.rand(40, 32, 32, 3, generator=torch.Generator().manual_seed(3))  # more than one call of the model
    inner = model.vision_model
    x = inner.pre_layrnorm(inner.embeddings(torch.cat((pixel_values(pictures), torch.zeros(1, 3, 32, 32)))))
    x = inner.encoder.layers[1](inner.encoder.layers[0](x, None), None)
    torch.testing.assert_close(images.encode(pictures, "penultimate", True), x, rtol=1e-4, atol=1e-5)
    pooled = model.visual_projection(inner.post_layernorm(inner.encoder.layers[2](x, None)[:, 0]))
    torch.testing.assert_close(images.encode(pictures, "pooled", False), pooled[:-1], rtol=1e-4, atol=1e-5)
    assert images.encode(pictures[:0], "pooled", False).shape == (0, tiny.EMBED)
    assert images.encode(pictures[:0], "penultimate", True).shape == (1, 17, 32)


def test_references_from_a_file_and_photos(tmp_path):
    """File, photos and names to References; several photos of a subject are averaged after the projection."""
    path = tmp_path / "tiny.safetensors"
    state = {name: value.half() for name, value in tiny.adapter_state([32, 64]).items()}
    safetensors.torch.save_file(state, path)
    adapter = load_adapter(path)
    assert {p.dtype for module in (adapter.projection, adapter.layers) for p in module.parameters()} == {torch.float32}
    g = torch.Generator().manual_seed(4)
    photos = torch.rand(3, 32, 32, 3, generator=g)
    cast = Cast((make_subject("cat", [photos[:2]]), make_subject("red fox", [photos[2:]])))
    images = ClipImages(vision_model())
    references = encode_references(adapter, cast, images, ClipTexts.sd15(text_model(tiny.CONTEXT)))
    tokens = adapter.projection(images.encode(photos, "pooled", False))
    torch.testing.assert_close(references.subjects[0].tokens, tokens[:2].mean(0))
    torch.testing.assert_close(references.subjects[1].tokens, tokens[2])
    torch.testing.assert_close(references.uncond_tokens, adapter.projection(torch.zeros(1, tiny.EMBED))[0])
    assert [len(s.name_tokens) for s in references.subjects] == [1, 2] and references.uncond_name_tokens.shape == (
        76,
        tiny.CONTEXT,
    )


# ---- gated layers ----------------------------------------------------------------------------------------------------


def last_states(model, pixels):
    """The vision tower layer by layer: all tokens before the final norm, and the projected CLS."""
    inner = model.vision_model
    x = inner.pre_layrnorm(inner.embeddings(pixels))
    for layer in inner.encoder.layers:
        x = layer(x, None)
    return x, model.visual_projection(inner.post_layernorm(x[:, 0]))


def test_patch_tokens_and_pooled_vectors_of_one_pass():
    model = vision_model()
    pictures = torch.rand(40, 32, 32, 3, generator=torch.Generator().manual_seed(3))  # more than one call of the model
    patches, pooled = ClipImages(model).encode_patches(pictures)
    x, cls = last_states(model, pixel_values(pictures))
    torch.testing.assert_close(patches, x[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled, cls, rtol=1e-4, atol=1e-5)


def tuned(model, seed=7):
    """Other weights for the model's last layer and projection."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=g) / 8
        for name, value in model.state_dict().items()
        if ".layers.2." in name or "visual_projection" in name
    }


def test_an_adapters_own_vision_weights_leave_the_model_alone():
    model, other = vision_model(), vision_model()
    weights = tuned(model)
    other.load_state_dict(weights, strict=False)
    pictures = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    images = ClipImages(model)
    before = images.encode_patches(pictures)
    found = images.with_weights(weights)
    for mine, wanted, plain, again in zip(
        found.encode_patches(pictures),
        ClipImages(other).encode_patches(pictures),
        before,
        images.encode_patches(pictures),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)
        assert torch.equal(plain, again) and not torch.allclose(mine, plain, atol=1e-2)
    torch.testing.assert_close(
        found.encode(pictures, "pooled", False), ClipImages(other).encode(pictures, "pooled", False)
    )


@pytest.mark.parametrize(
    "name, shape, found",
    [
        ("vision_model.encoder.layers.31.mlp.fc1.bias", (64,), "without"),
        ("visual_projection.weight", (3, 32), r"is \(24, 32\)"),
    ],
)
def test_vision_weights_for_another_encoder_are_refused(name, shape, found):
    with pytest.raises(MismatchError, match=f"that fits the adapter's own '{name}'.*{found}"):
        ClipImages(vision_model()).with_weights({name: torch.zeros(shape)})


def test_features_of_subject_diffusion_from_photos():
    """Photos to features through the adapter's own vision weights and its MLP, without a text encoder."""
    model = vision_model()
    weights = tuned(model)
    gated = GatedSpec("patches", {"middle_block.1.transformer_blocks.0": 64}, 24, 32, 2, 16)
    spec = AdapterSpec("subject_diffusion", "tiny.bin", 24, (PhotoSpec(EncoderNeed("last", 32)), gated))
    torch.manual_seed(5)
    adapter = Adapter(spec, MLP(tiny.EMBED, 24, 24), None, weights=Weights(vision=weights))
    photos = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(4))
    cast = Cast((make_subject("cat", [photos[:1]]), make_subject("red fox", [photos[1:]])))
    references = encode_references(adapter, cast, ClipImages(model), None)
    other = vision_model()
    other.load_state_dict(weights, strict=False)
    x, pooled = last_states(other, pixel_values(photos))
    for subject, tokens, word in zip(references.subjects, x[:, 1:], adapter.projection(pooled), strict=True):
        torch.testing.assert_close(subject.features.image, tokens, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(subject.words["h"][0], word, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("saved", ["open_clip", "transformers"])
def test_open_clips_files_give_open_clips_numbers(saved, tmp_path):
    """Patch tokens before the final norm, and the pooled vector; the same through both layouts of one encoder."""
    from troupe_tools.engine.embedded_models import load_vision

    tower = tiny_open_clip.vision_tower()
    state = tiny_open_clip.file_of(tower)
    safetensors.torch.save_file(
        state if saved == "open_clip" else with_transformers_names(state), tmp_path / "vision.safetensors"
    )
    images = ClipImages(load_vision(tmp_path / "vision.safetensors"))
    pictures = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    for found, wanted in zip(
        images.encode_patches(pictures), tiny_open_clip.patches_and_pooled(tower, pixel_values(pictures)), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_parts_of_an_open_clip_tower_get_their_names():
    """As fine-tuned last blocks are saved; what is no part of a tower is left alone."""
    state = tiny_open_clip.file_of(tiny_open_clip.vision_tower())
    whole = with_transformers_names(state)
    part = with_transformers_names(
        {
            name.removeprefix("visual."): value
            for name, value in state.items()
            if "visual.transformer.resblocks.2." in name
        },
        prefix="",
    )
    assert len(part) == 16 and all(torch.equal(value, whole[name]) for name, value in part.items())
    assert set(part) == {name for name in whole if name.startswith("vision_model.encoder.layers.2.")}
    other = {"vision_model.embeddings.class_embedding": torch.zeros(4)}
    assert with_transformers_names(other) == other and "logit_scale" not in whole


def test_phrases_need_no_projection_and_no_photos():
    gated = GatedSpec("text", {"middle_block.1.transformer_blocks.0": 64}, 32, 32, 30, 1)
    adapter = Adapter(AdapterSpec("gligen", "tiny.safetensors", 32, (gated,)), None, None)
    texts = ClipTexts.sd15(text_model())
    references = encode_references(adapter, Cast((make_subject("cat", [torch.rand(1, 32, 32, 3)]),)), None, texts)
    torch.testing.assert_close(references.subjects[0].features.text, texts.pooled(["cat"])[0])
