"""Subject-Diffusion's recipe: gradients against an evaluation of its own, files in the sampler, sheets, mistakes.

The evaluation is float64 and written from the paper and the specification: diffusers' own gated layers in a UNet with
five input channels, one picture at a time. Fourier features, boxes, masks and prompts are written out.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from support import tiny_training as small
from support.paper_mm_diff import tokenizer
from support.prompt_training import WithMaps, noisy_and_noise, through
from torch import nn
from torch.nn.functional import gelu, interpolate, layer_norm
from troupe.model_patches.adapter import GatedSpec, PromptSpec
from troupe.model_patches.binding.layer_tokens import COND
from troupe.model_patches.binding.settings import GatedSettings
from troupe.model_patches.errors import MismatchError
from troupe.model_patches.hosts.diffusers.encoders import ClipTexts, encode_references, load_adapter
from troupe.model_patches.hosts.diffusers.gated import apply_gated
from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
from troupe.model_patches.hosts.diffusers.weights import base_weights, text_encoder_weights
from troupe.model_patches.subjects import Box, Cast, Photo, Subject
from troupe.training.config.schema import DataConfig, SheetConfig
from troupe.training.data.records import DatasetError
from troupe.training.examples.example import Example, ExampleSubject
from troupe.training.export import write_export
from troupe.training.model.base import rehearsal_base
from troupe.training.recipes.subject_diffusion import box_in, dropped_parts
from troupe.training.run import example_set
from troupe.training.sheet import boxed_as, cast_of, paint, paint_sheet
from troupe.training.stop import TrainingError

RECIPE = "subject_diffusion"
TOLERANCE = 2e-4  # of the largest gradient of a tensor: float32 against float64
SKS = 48136
NO_DROPS = {"drop_text": 0.0, "drop_mask": 0.0, "drop_both": 0.0}
SLOTS, CELL = 2, 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


def changed(trainee):
    """The trainee with weights that no training begins with: open gates, null features, a mask that counts."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in trainee.named_parameters():
            leaf = name.split(".")[-2]
            strong = leaf.startswith(("alpha_", "null_", "mask_conv"))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * (0.5 if strong else 0.02))
    return trainee


# ---- the evaluation --------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """In the place of diffusers' position net: object tokens as they are."""

    def forward(self, objects):
        return objects


def gated_unet(trainee):
    """diffusers' own UNet with five input channels and gated layers, with the trainee's weights, float64; and the name
    in the trainee of each tensor that is trained.
    """
    unet = trainee.base.unet
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    five = UNet2DConditionModel(**{**config, "in_channels": 5, "attention_type": "gated"}).double().eval()
    five.position_net = Given()
    state = {name: value for name, value in unet.state_dict().items() if ".fuser." not in name}
    state["conv_in.weight"] = torch.cat((state["conv_in.weight"], trainee.gated.mask_conv.weight), 1)
    names = {}
    for place, path in trainee.paths.items():
        number = list(trainee.spec.part(GatedSpec).block_widths).index(place)
        for name, value in trainee.gated.fusers[number].state_dict().items():
            theirs = name.removesuffix(".weight") if name.startswith("alpha_") else name
            state[f"{path}.fuser.{theirs}"] = value
            names[f"{path}.fuser.{theirs}"] = f"gated.fusers.{number}.{name}"
        for leaf in ("to_k", "to_v"):
            name = f"{path}.attn2.{leaf}"
            names[f"{name}.weight"] = f"unet.{name.replace('.', '/')}.weight"
    five.load_state_dict({name: value.double() for name, value in state.items()})
    return five.requires_grad_(True), names


def as_published(caption, names):
    """77 tokens of a prompt with its placeholders, and where these are."""
    ids = tokenizer().encode(caption.strip() + "".join(f", the {name} is sks" for name in names))
    ids = [49406, *ids, 49407] + [0] * (75 - len(ids))
    return ids, [i for i, token in enumerate(ids) if token == SKS]


def seen(models, image):
    """A square reference's patch tokens and projected embedding, float64."""
    picture = interpolate(image.permute(2, 0, 1)[None], size=(32, 32), mode="bicubic", antialias=True)
    picture = (picture.clamp(0, 1) * 255).round() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        found = models.images._model((picture - mean) / std)
    return found.last_hidden_state[0, 1:].double(), found.image_embeds[0].double()


def corners(mask):
    """Left, top, right, bottom of a mask in the published way: of its pixels' first and last, over the side."""
    rows, columns = (mask > 0.5).nonzero().unbind(1)
    return [float(edge) / mask.shape[0] for edge in (columns.min(), rows.min(), columns.max(), rows.max())]


def fourier(box):
    angles = [100 ** (k / 8) * torch.tensor(box, dtype=torch.float64) for k in range(8)]
    return torch.cat([torch.cat((angle.sin(), angle.cos())) for angle in angles])


def mlp(x, p, prefix=""):
    x = layer_norm(x, x.shape[-1:], p[f"{prefix}layernorm.weight"], p[f"{prefix}layernorm.bias"])
    x = gelu(x @ p[f"{prefix}fc1.weight"].T + p[f"{prefix}fc1.bias"])
    return x @ p[f"{prefix}fc2.weight"].T + p[f"{prefix}fc2.bias"]


def doubled(module):
    return {name: p.detach().double().requires_grad_() for name, p in module.named_parameters()}


def expected(trainee, draws, batch, options):
    """Losses of each picture, and gradients by the trainee's names of the weighted means of both."""
    models, shown = trainee.base, batch.extra
    text = copy.deepcopy(trainee.text).double().requires_grad_(True)
    root = getattr(text, "text_model", text)
    root.encoder.layers = root.encoder.layers[:2]  # SD2 does not read the last one
    p, net = doubled(trainee.mlp), doubled(trainee.gated.net)
    contexts, objects, masks, words = [], [], [], []
    for draw, caption, masked in zip(draws, shown.captions, shown.masked, strict=True):
        subjects = draw.example.subjects[:SLOTS]
        ids, places = as_published(caption, [s.name for s in subjects if caption])
        embeddings = list(text.get_input_embeddings().weight[torch.tensor(ids)])
        tokens, mask = [], torch.ones(8, 8, dtype=torch.float64)
        for i in range(SLOTS):
            image = net["null_image_feature.weight"][0, 0]
            position = net["null_position_feature.weight"][0, 0]
            if i < len(subjects):
                image, vector = seen(models, subjects[i].photo.image)
                left, top, right, bottom = box = corners(subjects[i].mask)
                if options.get("box_embedding", True):
                    position = fourier(box).expand(len(image), -1)
                for row in range(8):
                    for column in range(8):
                        y, x = CELL * row / small.SIDE, CELL * column / small.SIDE
                        if left <= x < right and top <= y < bottom:
                            mask[row, column] = 0
                if caption:
                    embeddings[places[i]] = mlp(vector, p)
            tokens += [mlp(torch.cat(pair), net, "linears_image.") for pair in zip(image, position, strict=True)]
        contexts.append(through(text, torch.stack(embeddings)))
        objects.append(torch.stack(tokens))
        masks.append(mask if masked else mask * 0)
        words.append([(s.mask, at) for s, p0 in zip(subjects, places, strict=False) for at in (p0, p0 - 2)])
    five, names = gated_unet(trainee)
    maps = []
    for name, module in five.named_modules():
        if name.endswith("attn2"):
            outer = name.startswith(("down_blocks.0.", "up_blocks.1."))
            module.set_processor(WithMaps([] if outer else maps))
    noisy, noise = noisy_and_noise(batch, draws)
    noisy = torch.cat((noisy, torch.stack(masks)[:, None]), 1)
    prediction = five(
        noisy,
        batch.noised.timesteps,
        torch.stack(contexts),
        cross_attention_kwargs={"gligen": {"objects": torch.stack(objects)}},
    ).sample
    diffusion = (prediction - noise).square().mean((1, 2, 3))
    local = torch.stack([localization(maps, b, each, options) for b, each in enumerate(words)])
    (diffusion.mean() + options["localization"] * local.mean()).backward()
    gradients = {f"mlp.{name}": value.grad for name, value in p.items()}
    gradients |= {f"gated.net.{name}": value.grad for name, value in net.items()}
    gradients |= {f"text.{name}": value.grad for name, value in text.named_parameters()}
    own = dict(five.named_parameters())
    gradients |= {ours: own[theirs].grad for theirs, ours in names.items()}
    gradients |= {"unet.conv_in.bias": own["conv_in.bias"].grad}
    gradients["unet.conv_in.weight"], gradients["gated.mask_conv.weight"] = own["conv_in.weight"].grad.split((4, 1), 1)
    return diffusion, local, gradients


def localization(maps, b, words, options):
    """One picture's loss: each layer, head, and word by itself."""
    if not words:
        return torch.zeros((), dtype=torch.float64)
    each = []
    for layer in maps:
        side = round(layer.shape[2] ** 0.5)
        for head in layer[b]:
            found = []
            for mask, place in words:
                size = {"size": (side, side), "mode": "bilinear", "antialias": True}
                m, a = interpolate(mask[None, None].double(), **size).flatten(), head[:, place]
                if options.get("localization_form") == "absolute":
                    found.append((a - m).abs().mean())
                else:
                    outside, inside = (a * (1 - m)).sum() / ((1 - m).sum() + 1e-5), (a * m).sum() / (m.sum() + 1e-5)
                    found.append(outside - inside)
            each.append(sum(found) / (len(found) + 1e-5))
    return sum(each) / len(each)


CASES = {
    "signed": {},
    "absolute": {"localization_form": "absolute"},
    "no boxes": {"box_embedding": False},
    "drops": {"drop_text": 0.3, "drop_mask": 0.3, "drop_both": 0.2},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_gradients_are_the_papers(options, pictures):
    """Of everything that is trained, and of nothing else; one, two and three subjects in a batch of four pictures."""
    options = {**NO_DROPS, "localization": 20.0, **options}
    trainee = changed(small.trainee(RECIPE, **options))
    draws = small.draws(pictures, 4, seed=3)
    assert {len(draw.example.subjects) for draw in draws} == {1, 2, 3}
    batch = trainee.prepare(draws)
    losses = trainee(batch)
    sum(trainee.weights[name] * loss.mean() for name, loss in losses.items()).backward()
    trainee.finish()
    if options["drop_text"]:
        drops = set(zip(map(bool, batch.extra.captions), batch.extra.masked, strict=True))
        assert len(drops) > 1, "nothing is left out"
    diffusion, local, gradients = expected(trainee, draws, batch, options)
    torch.testing.assert_close(losses["diffusion"].double(), diffusion, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["localization"].double(), local, rtol=1e-3, atol=1e-7)
    found = {name: parameter.grad for name, parameter in trainee.named_parameters() if parameter.requires_grad}
    assert found.keys() == gradients.keys() and len(found) > 150
    whole = max(gradient.abs().max() for gradient in gradients.values())
    for name, gradient in found.items():
        error = (gradient.double() - gradients[name]).abs().max()
        assert error <= TOLERANCE * gradients[name].abs().max() + 1e-6 * whole, f"{name}: {error:.1e}"
        unread = name.endswith(("k_proj.bias", "position_embedding.weight"))  # softmax does not see a key's bias
        assert unread or gradients[name].abs().max() > 1e-6 * whole, f"nothing of {name} is tested"


@pytest.mark.slow
@pytest.mark.parametrize("drop, text, mask", [("drop_text", 0, 1), ("drop_mask", 1, 0), ("drop_both", 0, 0)])
def test_what_is_dropped_is_the_text_or_the_mask_and_never_an_object(drop, text, mask, pictures):
    draws = small.draws(pictures, 4)
    kept, trainee = (changed(small.trainee(RECIPE, **{**NO_DROPS, drop: part})) for part in (0.0, 1.0))
    full, batch = kept.prepare(draws), trainee.prepare(draws)
    shown = batch.extra
    assert set(map(bool, shown.captions)) == {bool(text)} and set(shown.masked) == {bool(mask)}
    assert [len(row) for row in shown.subjects] == [len(row) for row in full.extra.subjects]
    with torch.no_grad():
        assert trainee(batch)["localization"].any() == bool(text)
        found = trainee.context(batch)
        empty = trainee.base.texts.encode_prompt("").embeds
        assert torch.equal(found, empty.expand_as(found)) != bool(text)
        tokens, masks = trainee.objects._tokens, trainee.objects._masks
        kept.context(full)
    assert torch.equal(tokens, kept.objects._tokens) and kept.objects._masks.any()
    assert masks.any() == bool(mask)


def test_drops_exclude_each_other_and_come_as_often_as_told(pictures):
    trainee = small.trainee(RECIPE, drop_text=0.2, drop_mask=0.1, drop_both=0.3)
    draws = [replace(draw, number=n) for n, draw in enumerate(small.draws(pictures, 4) * 250)]
    drops = [dropped_parts(draw, trainee.options) for draw in draws]
    for which, part in (((True, False), 0.2), ((False, True), 0.1), ((True, True), 0.3), ((False, False), 0.4)):
        assert abs(drops.count(which) / 1000 - part) < 0.05


@pytest.mark.slow
def test_a_training_begins_with_the_base(pictures):
    """Gates are closed and the mask has no weight, so that only the prompt differs; the gates learn all the same."""
    trainee = small.trainee(RECIPE, **NO_DROPS, localization=0.0)
    batch = trainee.prepare(small.draws(pictures, 2))
    trainee(batch)["diffusion"].mean().backward()
    gates = [p for name, p in trainee.named_parameters() if ".alpha_" in name]
    assert len(gates) == 14 and not any(gate.any() for gate in gates) and all(gate.grad.abs() > 0 for gate in gates)
    assert trainee.gated.mask_conv.weight.grad.any() and not trainee.gated.mask_conv.weight.any()
    with torch.no_grad():
        context, found = trainee.context(batch), trainee.predict(batch)
        trainee.finish()
        plain = trainee.base.unet(batch.noised.latents, batch.noised.timesteps, context).sample
    assert torch.equal(found, plain)


@pytest.mark.slow
def test_a_picture_predicts_alone_what_it_does_in_a_batch(pictures):
    """Also one of which no subject is in the picture as it was cut."""
    trainee = changed(small.trainee(RECIPE, **NO_DROPS))
    draws = small.draws(pictures, 4)
    nobody = replace(draws[0].example, subjects=tuple(replace(s, mask=s.mask * 0) for s in draws[0].example.subjects))
    draws[0] = replace(draws[0], example=nobody)
    with torch.no_grad():
        together = trainee.predict(trainee.prepare(draws))
        alone = torch.cat([trainee.predict(trainee.prepare([draw])) for draw in draws])
    batch = trainee.prepare(draws)
    assert batch.extra.subjects[0] == () and not batch.extra.present[0].any()
    with torch.no_grad():
        steps = batch.noised.timesteps
        for b in range(4):  # alone, a picture has the timestep of a batch of its own
            batch.noised.timesteps[b] = trainee.prepare([draws[b]]).noised.timesteps[0]
        assert torch.equal(steps, batch.noised.timesteps)
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_gradient(pictures):
    draws, found = small.draws(pictures, 2), []
    for on in (False, True):
        trainee = changed(small.trainee(RECIPE, **NO_DROPS))
        if on:
            trainee.base.unet.enable_gradient_checkpointing()
            trainee.base.unet.train()
        losses = trainee(trainee.prepare(draws))
        sum(trainee.weights[name] * loss.mean() for name, loss in losses.items()).backward()
        found.append({name: p.grad for name, p in trainee.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()) + 1e-12)


def test_a_box_is_that_of_the_mask():
    mask = torch.zeros(64, 64)
    mask[8:24, 10:42] = 1.0
    box = box_in(mask)
    assert (box.x, box.y, box.x + box.w, box.y + box.h) == (10 / 64, 8 / 64, 41 / 64, 23 / 64)
    small_one = torch.zeros(512, 512)
    small_one[:11, :21] = 1.0  # 200 pixels and no more
    assert box_in(small_one) is None is box_in(torch.zeros(8, 8))
    small_one[:12] = small_one[:1]
    assert box_in(small_one) is not None


# ---- the file --------------------------------------------------------------------------------------------------------


def bases(kind):
    """Two equal base models: one to train, one to sample with."""
    if kind == "sd2":
        return small.base_for(RECIPE), small.base_for(RECIPE)
    if kind == "rehearsal":
        return rehearsal_base(), rehearsal_base()
    found = small.base_for("umm_diffusion")
    other = small.base_for("umm_diffusion")
    return tuple(
        small.base(each.unet, texts=ClipTexts.sd15(small.text_model(768)), images=each.images)
        for each in (found, other)
    )


def cast_in(example):
    return boxed_as(example, cast_of(replace(example, subjects=example.subjects[:SLOTS])))


def as_trained(example):
    """The subjects with the boxes of a training, which end before the last row and column."""
    cast = cast_in(example)
    boxes = [box_in(subject.mask) for subject in example.subjects[:SLOTS]]
    return Cast(tuple(replace(subject, box=box) for subject, box in zip(cast.subjects, boxes, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("kind, boxed", [("sd2", True), ("sd2", False), ("sd15", True), ("rehearsal", True)])
def test_it_predicts_in_the_sampler_what_it_did_in_training(kind, boxed, pictures, tmp_path):
    """The file on a base that was not trained: every weight must come from the file."""
    trained, fresh = bases(kind)
    trainee = changed(small.trainee(RECIPE, trained, **NO_DROPS, box_embedding=boxed))
    path = write_export(trainee.export(), tmp_path / "trained.safetensors", half=False)
    adapter = load_adapter(path)
    assert (adapter.spec.family, adapter.spec.part(GatedSpec).slots) == (RECIPE, SLOTS)
    assert list(adapter.spec.part(PromptSpec).streams) == ["h" if kind == "sd2" else "l"]
    draws = small.draws(pictures, 3)
    batch = trainee.prepare(draws)
    with torch.no_grad():
        predicted = trainee.predict(batch)
    trainee.finish()
    for b, draw in enumerate(draws):
        cast = as_trained(draw.example)
        latent, step = batch.noised.latents[b : b + 1], batch.noised.timesteps[b : b + 1]
        with torch.no_grad():
            with text_encoder_weights(fresh.texts, adapter.weights):
                references = encode_references(adapter, cast, fresh.images, fresh.texts)
                prompt, _ = encode_prompt(fresh.texts, references, draw.example.caption)
            plain = fresh.unet(latent, step, prompt.embeds).sample
            with (
                base_weights(fresh.unet, adapter.weights),
                apply_gated(fresh.unet, references, GatedSettings(use_bbox="on"), (COND,)),
            ):
                sampled = fresh.unet(latent, step, prompt.embeds).sample
        torch.testing.assert_close(predicted[b], sampled[0], rtol=0, atol=1e-4 * float(predicted.abs().max()))
        assert (sampled - plain).abs().max() > 1e-2


@pytest.mark.slow
def test_a_file_without_boxes_takes_none(pictures, tmp_path):
    """Whatever the node says; the mask channel still shows where the subjects are."""
    found = {}
    for boxed in (True, False):
        trainee = changed(small.trainee(RECIPE, **NO_DROPS, box_embedding=boxed))
        adapter = load_adapter(write_export(trainee.export(), tmp_path / f"{boxed}.safetensors", half=False))
        models, draws = trainee.base, small.draws(pictures, 4)
        cast = as_trained(next(draw.example for draw in draws if len(draw.example.subjects) == 2))
        references = encode_references(adapter, cast, models.images, models.texts)
        net = adapter.gated.net
        patches = torch.stack([s.features.image for s in references.subjects])[None]
        present = torch.tensor([[True, True]])
        boxes = [torch.tensor([[box, box]]) for box in ([0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0])]
        for use in (True, False):
            with torch.no_grad():
                found[boxed, use] = [net(patches, present, box, use) for box in boxes]
    for (boxed, _), tokens in found.items():
        assert torch.equal(*tokens) != boxed


@pytest.mark.slow
@pytest.mark.parametrize("in_prompt", [True, False])
def test_a_photo_that_is_not_in_the_prompt_changes_no_text(in_prompt, pictures, tmp_path):
    """The text is that of the caption with its placeholders as words; photos still change the prediction."""
    trainee = small.trainee(RECIPE, **NO_DROPS, photo_in_prompt=in_prompt, localization=0.0)
    texts, begun = trainee.base.texts, copy.deepcopy(trainee.mlp.state_dict())
    changed(trainee)
    if not in_prompt:  # `changed` moves what no training would
        assert not any(parameter.requires_grad for parameter in trainee.mlp.parameters())
        trainee.mlp.load_state_dict(begun)
        texts.towers[0].model.get_input_embeddings().weight.data[SKS] = begun["fc2.bias"]
    draws = small.draws(pictures, 1, most=1)
    [subject] = draws[0].example.subjects
    other = replace(subject, photo=Photo(1 - subject.photo.image), key="")
    exchanged = replace(draws[0], example=replace(draws[0].example, subjects=(other,)))
    batches = [trainee.prepare([draw]) for draw in (draws[0], exchanged)]
    with torch.no_grad():
        contexts, predictions = zip(*((trainee.context(b), trainee.predict(b)) for b in batches), strict=True)
        words = texts.encode_prompt(f"{draws[0].example.caption}, the {subject.name} is sks").embeds
    trainee.finish()
    assert torch.equal(*contexts) is not in_prompt
    assert torch.allclose(contexts[0], words, atol=1e-5) is not in_prompt
    assert (predictions[0] - predictions[1]).abs().max() > 1e-3
    adapter = load_adapter(write_export(trainee.export(), tmp_path / "trained.safetensors", half=False))
    found = adapter.projection(torch.randn(2, trainee.mlp.fc1.in_features, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(found[0], found[1]) is not in_prompt


def test_layers_that_the_base_does_not_read_are_neither_trained_nor_exported(pictures):
    trainee = small.trainee(RECIPE)
    trained = {name for name, p in trainee.named_parameters() if p.requires_grad}
    assert any("text_model.encoder.layers.1." in name or "encoder.layers.1." in name for name in trained)
    assert not any("encoder.layers.2." in name for name in trained)
    state = trainee.export().state
    layers = {name.split(".")[4] for name in state if name.startswith("clip_text.text_model.encoder.layers.")}
    assert layers == {"0", "1"} and state["unet.conv_in.weight"].shape[1] == 5


# ---- the sheet -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_sheets_picture_has_the_gated_layers_of_the_sampler(count, pictures):
    """A lone subject has its box too, as in training."""
    trainee = changed(small.trainee(RECIPE, **NO_DROPS))
    draws = small.draws(pictures, 4)
    example = next(draw.example for draw in draws if len(draw.example.subjects) == count)
    models, adapter, settings = trainee.base, trainee.adapter(), SheetConfig(steps=2, seed=3)
    cast = cast_in(example)
    painted = paint(models, adapter, example.caption, cast, settings, small.SIDE)
    references = encode_references(adapter, cast, models.images, models.texts)
    prompt, _ = encode_prompt(models.texts, references, example.caption)
    negative = models.texts.encode_prompt("")

    def by_hand(applied):
        size = SamplingSettings(small.SIDE, small.SIDE, 2, settings.cfg, 3)
        latent = sample(models.unet, models.sampler(), prompt, negative, size, applied, weights=[(adapter, 1.0)])
        return (models.decode(latent)[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)

    torch.testing.assert_close(painted, by_hand([(references, GatedSettings(use_bbox="on"))]), rtol=0, atol=1e-6)
    assert (painted - by_hand([])).abs().max() > 1e-2
    elsewhere = Cast(tuple(replace(s, box=Box(0.5, 0.5, 0.4, 0.4)) for s in cast.subjects))
    assert (painted - paint(models, adapter, example.caption, elsewhere, settings, small.SIDE)).abs().max() > 1e-3


@pytest.mark.slow
def test_a_sheet_changes_nothing(pictures, tmp_path):
    trainee = changed(small.trainee(RECIPE, **NO_DROPS))
    draws = small.draws(pictures, 2)
    batch = trainee.prepare(draws)
    with torch.no_grad():
        before = trainee.predict(batch)
    sheets = [
        paint_sheet(trainee, [d.example for d in draws], SheetConfig(steps=2), small.SIDE, tmp_path / f"{i}.png")
        for i in range(2)
    ]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    with torch.no_grad():
        assert torch.equal(trainee.predict(batch), before)


def test_a_subject_outside_of_the_picture_is_not_painted():
    inside, nothing = torch.zeros(8, 8), torch.zeros(8, 8)
    inside[2:4, 1:7] = 1.0
    photo = Photo(torch.zeros(8, 8, 3))
    subjects = tuple(ExampleSubject(name, photo, mask=mask) for name, mask in (("cat", inside), ("dog", nothing)))
    example = Example("a", torch.zeros(3, 8, 8), "a cat and a dog", subjects)
    cat, dog = boxed_as(example, cast_of(example)).subjects
    assert (cat.box.x, cat.box.y, cat.box.w, cat.box.h, cat.weight) == (1 / 8, 2 / 8, 6 / 8, 2 / 8, 1.0)
    assert dog.weight == 0.0
    alone = replace(example, subjects=())
    assert boxed_as(alone, cast_of(alone)).subjects[0].box is None
    unmasked = replace(example, subjects=(ExampleSubject("cat", photo),))
    assert boxed_as(unmasked, Cast((Subject("cat", (photo,)),))).subjects[0].box is None


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_set(tmp_path):
    """Changes the first subject of a training set; returns its settings."""

    def write(text=None, **changes):
        small.write_set(tmp_path, [("cat",), ("dog",)])
        lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
        subject = lines[0]["subjects"][0]
        for name, value in changes.items():
            subject[name] = value
        lines[0]["text"] = text or lines[0]["text"]
        (tmp_path / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return DataConfig(folder=str(tmp_path), resolution=small.SIDE)

    return write


def test_what_does_not_fit_is_a_sentence_before_the_training(own_set):
    trainee = small.trainee(RECIPE)

    def examples(*text, **changes):
        return example_set(own_set(*text, **changes), trainee.base, trainee)

    assert len(examples()) == 2
    assert len(examples(mask=None)) == len(examples(box=None)) == 2
    with pytest.raises(
        TrainingError, match=r"a mask or a box .*'cat' in .*p0.png without either. Add one to that line"
    ):
        examples(mask=None, box=None)
    with pytest.raises(DatasetError, match="a box .*inside the picture"):
        examples(box=[0.5, 0.2, 0.6, 0.4])
    with pytest.raises(TrainingError, match="no 'sks' in the prompt.*Correct that line"):
        examples("a sks cat")
    with pytest.raises(TrainingError, match=r"p0.png \(.*at most 75 tokens.*Correct that line"):
        examples(f"a cat{' and grass' * 36}")
    assert len(examples(f"a cat{' and grass' * 30}")) == 2


@pytest.mark.slow
def test_any_two_of_many_subjects_must_fit_behind_the_caption(tmp_path):
    """Which of them are in the picture is known only when it is cut."""
    long = "very small and very round red robot with a big hat"
    config = DataConfig(folder=str(small.write_set(tmp_path, [("cat", "dog", long)])), resolution=small.SIDE)
    trainee = small.trainee(RECIPE)
    assert len(example_set(config, trainee.base, trainee)) == 1
    lines = (tmp_path / "metadata.jsonl").read_text().replace("outside", f"outside{' and grass' * 19}")
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(TrainingError, match="at most 75 tokens"):
        example_set(config, trainee.base, trainee)
    trainee = small.trainee(RECIPE, slots=1)
    assert len(example_set(config, trainee.base, trainee)) == 1


def test_a_mask_without_white_is_a_sentence(own_set, tmp_path):
    trainee = small.trainee(RECIPE)
    found = example_set(own_set(), trainee.base, trainee)
    Image.new("L", (96, 64)).save(tmp_path / "m0_0.png")
    with pytest.raises(DatasetError, match="'cat' in white in .*m0_0.png, found a mask that is black everywhere"):
        found.get(0, None)


def test_another_base_is_a_sentence():
    two = small.base(texts=ClipTexts.sdxl(small.text_model(), small.text_model()))
    with pytest.raises(MismatchError, match="SD1.5, SD2 .*found text encoders l, g"):
        small.trainee(RECIPE, two)
    nine = small.base_for(RECIPE)
    nine.unet.conv_in = nn.Conv2d(9, 64, 3, padding=1)
    with pytest.raises(MismatchError, match="a UNet with 9 input channels"):
        small.trainee(RECIPE, nine)
