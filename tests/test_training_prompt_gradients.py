"""Gradients of recipes that act in the prompt against an evaluation of its own: from the papers and specifications, in
float64, one picture and one head at a time, with plain torch.
"""

from __future__ import annotations

import copy

import pytest
import torch
from support import tiny_training as small
from support.paper_mm_diff import tokenizer
from support.prompt_training import WithMaps, assert_equal_gradients, noisy_and_noise, through
from torch.nn.functional import gelu, interpolate, layer_norm
from troupe.training.config.schema import DataConfig
from troupe.training.model.captions import token_positions
from troupe.training.run import example_set
from troupe.training.stop import TrainingError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


def ids_of(caption):
    ids = [49406, *tokenizer().encode(caption), 49407]
    return ids + [49407] * (77 - len(ids))


def last_token(caption, name):
    """The position of a name's last token in a caption's 77 tokens."""
    ids, own = ids_of(caption), tokenizer().encode(name)
    (start,) = [i for i in range(77) if ids[i : i + len(own)] == own]
    return start + len(own) - 1


def photo(models, image, mode):
    """A reference's projected embedding, [768] float64."""
    picture = interpolate(image.permute(2, 0, 1)[None], size=(32, 32), mode=mode, antialias=True, align_corners=False)
    picture = (picture.clamp(0, 1) * 255).round() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        return models.images._model((picture - mean) / std).image_embeds[0].double()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"activation": "leaky_relu", "normalize": True, "depth": 3, "hidden": 16}])
def test_umm_diffusion(options, pictures):
    """Only the rows of the subjects' words change, and only they have gradients."""
    trainee = small.trainee("umm_diffusion", **small.no_drops("umm_diffusion"), **options)
    draws = small.draws(pictures, 3)
    batch = trainee.prepare(draws)
    trainee(batch)["diffusion"].mean().backward()
    trainee.finish()

    models, text = trainee.base, copy.deepcopy(trainee.base.texts.towers[0].model).double()
    mapping = {name: p.detach().double().requires_grad_() for name, p in trainee.mapping.named_parameters()}
    activation = gelu if not options else lambda x: torch.where(x > 0, x, 0.01 * x)
    contexts = []
    for draw in draws:
        caption = draw.example.caption
        words = text.get_input_embeddings().weight[torch.tensor(ids_of(caption))].detach()
        changed = words.clone()
        rows = [last_token(caption, subject.name) for subject in draw.example.subjects]
        for row, subject in zip(rows, draw.example.subjects, strict=True):
            x = photo(models, subject.photo.image, "bicubic")
            if options:
                x = x / x.norm()
            for i in range(options.get("depth", 2)):
                x = (activation(x) if i else x) @ mapping[f"layers.{i}.weight"].T + mapping[f"layers.{i}.bias"]
            changed[row] = x
        plain, fused = through(text, words), through(text, changed)
        contexts.append(torch.stack([fused[p] if p in rows else plain[p] for p in range(77)]))
    noisy, noise = noisy_and_noise(batch, draws)
    unet = copy.deepcopy(models.unet).double()
    prediction = unet(noisy, batch.noised.timesteps, torch.stack(contexts)).sample
    (prediction - noise).square().mean().backward()
    expected = {f"mapping.{name}": p.grad for name, p in mapping.items()}
    assert assert_equal_gradients(trainee, expected) > 0


@pytest.mark.slow
def test_fastcomposer(pictures):
    """Postfuse and the whole UNet, of both losses; in one picture only the subjects' places count."""
    options = {**small.no_drops("fastcomposer"), "localization": 0.5, "masked": 0.6}
    trainee = small.trainee("fastcomposer", **options)
    draws = small.draws(pictures, 3)
    masked = [draw.chance("masked").random() < 0.6 for draw in draws]
    assert set(masked) == {True, False}
    batch = trainee.prepare(draws)
    losses = trainee(batch)
    sum(trainee.weights[name] * loss.mean() for name, loss in losses.items()).backward()
    trainee.finish()

    models, text = trainee.base, copy.deepcopy(trainee.base.texts.towers[0].model).double()
    fuse = {name: p.detach().double().requires_grad_() for name, p in trainee.postfuse.named_parameters()}

    def mlp(x, name):
        y = layer_norm(x, x.shape, fuse[f"{name}.layernorm.weight"], fuse[f"{name}.layernorm.bias"])
        y = gelu(y @ fuse[f"{name}.fc1.weight"].T + fuse[f"{name}.fc1.bias"])
        return y @ fuse[f"{name}.fc2.weight"].T + fuse[f"{name}.fc2.bias"]

    contexts, places = [], []
    for draw in draws:
        caption, subjects = draw.example.caption, draw.example.subjects
        with torch.no_grad():
            rows = list(through(text, text.get_input_embeddings().weight[torch.tensor(ids_of(caption))]))
        places.append([last_token(caption, subject.name) for subject in subjects])
        for place, subject in zip(places[-1], subjects, strict=True):
            x = mlp(torch.cat((rows[place], photo(models, subject.photo.image, "bilinear"))), "mlp1") + rows[place]
            x = x + mlp(x, "mlp2")
            rows[place] = layer_norm(x, x.shape, fuse["layer_norm.weight"], fuse["layer_norm.bias"])
        contexts.append(torch.stack(rows))
    unet, maps = copy.deepcopy(models.unet).double().requires_grad_(True), []
    unet.zero_grad()
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            outer = name.startswith(("down_blocks.0.", "up_blocks.3."))
            module.set_processor(WithMaps([] if outer else maps))
    noisy, noise = noisy_and_noise(batch, draws)
    error = (unet(noisy, batch.noised.timesteps, torch.stack(contexts)).sample - noise).square()
    total = []
    for b, draw in enumerate(draws):
        masks = torch.stack([subject.mask for subject in draw.example.subjects]).double()
        cells = torch.ones(8, 8, dtype=torch.float64)
        if masked[b]:
            cells = interpolate(masks.amax(0)[None, None], size=(8, 8), mode="bilinear", antialias=True)[0, 0]
        total.append((error[b] * cells).sum() / (4 * cells.sum()))
    local = []
    for layer in maps:
        side = round(layer.shape[2] ** 0.5)
        for b, draw in enumerate(draws):
            for head in layer[b]:
                each = []
                for subject, place in zip(draw.example.subjects, places[b], strict=True):
                    m = interpolate(
                        subject.mask[None, None].double(), size=(side, side), mode="bilinear", antialias=True
                    )
                    m, a = m.flatten(), head[:, place]
                    each.append((a * (1 - m)).sum() / ((1 - m).sum() + 1e-5) - (a * m).sum() / (m.sum() + 1e-5))
                local.append(sum(each) / (len(each) + 1e-5))
    assert len(maps) == 11  # 2 + 0 + 1 + 3 + 3, and 2 of the third level
    (sum(total) / len(total) + 0.5 * sum(local) / len(local)).backward()
    torch.testing.assert_close(losses["diffusion"].double(), torch.stack(total), rtol=1e-4, atol=0)
    expected = {f"postfuse.{name}": p.grad for name, p in fuse.items()}
    expected |= {f"unet.{name}": p.grad for name, p in unet.named_parameters()}
    assert assert_equal_gradients(trainee, expected) > 0
    assert all(value.abs().max() > 0 for value in (g for n, g in expected.items() if n.startswith("postfuse.")))


@pytest.mark.slow
def test_subjects_that_are_left_out_are_in_neither_prompt_nor_loss(pictures):
    draws = small.draws(pictures, 4)
    everyone = small.trainee("fastcomposer", **small.no_drops("fastcomposer"))
    nobody = small.trainee("fastcomposer", **{**small.no_drops("fastcomposer"), "drop_subjects": 1.0})
    with torch.no_grad():
        batch = nobody.prepare(draws)
        plain = torch.cat([prompt.embeds for prompt in batch.prompts])
        assert torch.equal(nobody.context(batch), plain) and not nobody(batch)["localization"].any()
        changed = (everyone.context(everyone.prepare(draws)) - plain).abs().amax(-1) > 1e-3
    assert changed.sum(1).tolist() == [len(draw.example.subjects) for draw in draws]
    no_caption = small.trainee("umm_diffusion", drop_text=1.0)
    no_caption(no_caption.prepare(draws))["diffusion"].mean().backward()
    assert not any(p.grad.any() for p in no_caption.parameters())


@pytest.mark.parametrize("recipe", ["umm_diffusion", "mm_diff"])
def test_a_name_that_is_only_part_of_a_word_is_a_sentence(recipe, tmp_path):
    trainee = small.trainee(recipe)
    config = DataConfig(folder=str(small.write_set(tmp_path, [("cat",), ("dog",)])), resolution=small.SIDE)
    assert len(example_set(config, trainee.base, trainee)) == 2
    lines = (tmp_path / "metadata.jsonl").read_text().replace("of a dog", "of hotdogs")
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(TrainingError, match=r"found another caption for .*p1.png .*Correct that line"):
        example_set(config, trainee.base, trainee)


def test_brackets_in_a_caption_are_text(pictures):
    """They are emphasis and markers in ComfyUI's notation, which captions of a training set are not in."""
    texts = small.base_for("umm_diffusion").texts
    caption = "a (red:1.5) cat {on} grass"
    (place,) = token_positions(texts, caption, ["cat"])
    ids = ids_of(caption)
    assert place.position == ids.index(tokenizer().encode("cat")[0])


@pytest.mark.parametrize("recipe", ["umm_diffusion", "fastcomposer"])
def test_another_base_is_a_sentence(recipe):
    with pytest.raises(Exception, match="SD1.5 as the base .*found text embeddings of size 64 from 1"):
        small.trainee(recipe, small.base())
