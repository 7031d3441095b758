"""MM-Diff's training: gradients against the papers' formulas in float64, constraints, and what it refuses."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from support import paper_mm_diff as paper
from support import tiny_training as small
from support.prompt_training import assert_equal_gradients, noisy_and_noise
from torch.nn.functional import gelu, interpolate
from troupe.model_patches.adapter import ImageAttentionSpec, PromptSpec, Weights
from troupe.model_patches.attention.decoupled import Mixing
from troupe.model_patches.binding.layer_tokens import COND
from troupe.model_patches.binding.settings import ImageAttentionSettings
from troupe.model_patches.errors import MismatchError
from troupe.model_patches.families.registry import read_adapter
from troupe.model_patches.hosts.diffusers.cross_layers import cross_layers
from troupe.model_patches.hosts.diffusers.encoders import ClipTexts, encode_references, load_adapter
from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention
from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
from troupe.model_patches.hosts.diffusers.weights import base_weights, text_encoder_weights
from troupe.training.config.schema import SheetConfig
from troupe.training.export import write_export
from troupe.training.recipes.drops import dropped
from troupe.training.run import settings_of, train
from troupe.training.sheet import cast_of, paint

CONSTRAINTS = {"text_constraint": 0.5, "image_constraint": 0.7}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


def small_one(models=None, **options):
    models = small.sdxl_base() if models is None else models
    return small.trainee("mm_diff", models, **{**small.no_drops("mm_diff"), **small.MM_DIFF, **options})


def sharp(models):
    """The models with cross-attention that differs from place to place, which random weights hardly give."""
    for name, weight in models.unet.named_parameters():
        if name.endswith("attn2.to_q.weight"):
            weight.data *= 8
    return models


def seen(models, image, mode):
    """A square reference as the image encoder reads it."""
    picture = interpolate(image.permute(2, 0, 1)[None], size=(32, 32), mode=mode, antialias=True, align_corners=False)
    picture = (picture.clamp(0, 1) * 255).round() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        return models.images._model((picture - mean) / std, output_hidden_states=True)


def conditions(models, weights, caption, subjects, words):
    """Text states [77, D] of one caption, and SDXL's pooled text [E]. words: of each subject, for each encoder."""
    states = []
    for i, (tower, padding, act) in enumerate(
        zip(models.texts.towers, (49407, 0), (lambda x: x * torch.sigmoid(1.702 * x), gelu), strict=False)
    ):
        model = copy.deepcopy(tower.model).double()
        ids = paper.ids_of(caption, padding)
        embeddings = list(model.get_input_embeddings().weight[torch.tensor(ids)].detach())
        for subject, own in zip(subjects, words, strict=True):
            place = paper.last_token(caption, subject.name)
            embeddings[place] = paper.fused(weights, ("mm_fuse_one", "mm_fuse_two")[i], embeddings[place], own[i])
        states.append(paper.text_states(model, torch.stack(embeddings), act, weights if i == 0 else None))
    text = getattr(model, "text_model", model)
    if len(states) == 1:  # SD1.5
        return text.final_layer_norm(states[0][-1]), None
    last = states[1][-1][ids.index(49407)]
    return torch.cat([s[-2] for s in states], -1), model.text_projection(text.final_layer_norm(last))


def expected(trainee, weights, draws, batch, drops):
    """The three losses of each picture by the paper's formulas."""
    models, identity = trainee.base, trainee.options.identity
    tokens, contexts, pooled, cast = [], [], [], []
    for draw, drop in zip(draws, drops, strict=True):
        subjects = () if drop.images else draw.example.subjects
        caption, words, images = "" if drop.text else draw.example.caption, [], []
        for subject in subjects:
            look, whole = (seen(models, subject.photo.image, mode) for mode in ("bicubic", "bilinear"))
            vector = look.image_embeds
            if identity == "unprojected":
                vector = models.images._model.vision_model.post_layernorm(look.last_hidden_state[:, 0])
            patches = look.hidden_states[-2][0].double()
            images.append(paper.image_tokens(weights, vector[0].double(), patches, trainee.options.depth))
            words.append(paper.photo_words(weights, whole.image_embeds[0].double()))
        tokens.append(torch.cat(images) if images else None)
        named = subjects if caption else ()
        context, text = conditions(models, weights, caption, named, words if caption else [])
        contexts.append(context)
        pooled.append(text)
        cast.append((caption, subjects))
    unet, kept = paper.paper_unet(models.unet, weights, tokens)
    noisy, noise = noisy_and_noise(batch, draws)
    sizes = torch.tensor([[64.0, 96.0, 0.0, 16.0, 64.0, 64.0]] * len(draws), dtype=torch.float64)
    extra = None if pooled[0] is None else {"text_embeds": torch.stack(pooled), "time_ids": sizes}
    prediction = unet(noisy, batch.noised.timesteps, torch.stack(contexts), added_cond_kwargs=extra).sample
    text, image = [], []
    for b, (caption, subjects) in enumerate(cast):
        layers = {"text": [], "image": []}
        for layer in kept:
            for head in range(layer.text_maps[b].shape[0]):
                words, looks = [], []
                for i, subject in enumerate(subjects):
                    if caption:
                        row = layer.text_maps[b][head, :, paper.last_token(caption, subject.name)]
                        words.append(paper.outside_less_inside(row, subject.mask))
                    each = layer.image_maps[b][head][:, 3 * i : 3 * i + 3].T
                    looks.append(sum(paper.outside_less_inside(row, subject.mask) for row in each) / 3)
                layers["text"].append(sum(words) / (len(words) + 1e-5))
                layers["image"].append(sum(looks) / (len(looks) + 1e-5))
        assert len(layers["text"]) == (11 if extra is None else 60) * len(layer.text_maps[b])
        text.append(torch.as_tensor(sum(layers["text"]) / len(layers["text"])))
        image.append(torch.as_tensor(sum(layers["image"]) / len(layers["image"])))
    return (prediction - noise).square().mean((1, 2, 3)), torch.stack(text), torch.stack(image)


DROPS = {"drop_text": 0.3, "drop_images": 0.3, "drop_both": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options, base",
    [
        ({}, small.sdxl_base),
        ({"identity": "unprojected", **DROPS}, small.sdxl_base),
        ({}, small.narrow_sd15_base),
        (DROPS, small.narrow_sd15_base),
    ],
    ids=["projected", "unprojected, drops", "SD1.5", "SD1.5, drops"],
)
def test_the_gradients_are_the_papers(options, base, pictures):
    """Four pictures with one, two and three subjects in one batch; every part is trained."""
    trainee = small.changed(small_one(sharp(base()), **{**CONSTRAINTS, **options}))
    draws = small.draws(pictures, 4, seed=10)
    assert {len(draw.example.subjects) for draw in draws} == {1, 2, 3}
    drops = [dropped(draw, trainee.options) for draw in draws]
    assert len({(d.text, d.images) for d in drops}) == (4 if "drop_text" in options else 1)
    batch = trainee.prepare(draws)
    losses = trainee(batch)
    sum(trainee.weights[name] * loss.mean() for name, loss in losses.items()).backward()
    trainee.finish()

    weights = {name: value.double().requires_grad_() for name, value in trainee.export().state.items()}
    found = expected(trainee, weights, draws, batch, drops)
    sum(factor * loss.mean() for factor, loss in zip((1.0, 0.5, 0.7), found, strict=True)).backward()
    for name, loss in zip(("diffusion", "text_constraint", "image_constraint"), found, strict=True):
        largest = float(loss.detach().abs().max())
        assert largest > 1e-4, name
        torch.testing.assert_close(losses[name].double(), loss, rtol=0, atol=1e-4 * largest, msg=name)
    gradients = by_own_names(trainee, {name: value.grad for name, value in weights.items()})
    assert_equal_gradients(trainee, gradients)
    idle = {name.rsplit("_lora", 1)[0] for name, value in weights.items() if not value.grad.abs().max() > 0}
    # in SD1.5's middle block the picture is one cell, and a softmax over one cell is 1
    assert idle == ({"unet.30.to_q", "unet.30.to_k"} if base is small.narrow_sd15_base else set())


def by_own_names(trainee, published):
    """Tensors in the published layout, by the parameters they belong to."""
    state = trainee.export().state
    parameters = dict(trainee.named_parameters())
    found = {}
    for name, value in state.items():
        (own,) = [n for n, p in parameters.items() if n not in found and torch.equal(p.detach(), value)]
        found[own] = published[name]
    return found


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "base, identity, kind, streams, pairs",
    [
        (small.sdxl_base, "pooled", "ObjectHead", ["l", "g"], 560),
        (small.narrow_sd15_base, "unprojected", "CLSHead", ["l"], 128),
    ],
)
def test_it_predicts_in_the_sampler_what_it_did_in_training(base, identity, kind, streams, pairs, pictures, tmp_path):
    """Through the exported file: LoRAs merged into the weights, prompts and tokens encoded as for painting."""
    trainee = small.changed(small_one(base(), identity=identity))
    adapter = load_adapter(write_export(trainee.export(), tmp_path / "trained.safetensors", half=False))
    spec, models = adapter.spec, trainee.base
    attention = spec.part(ImageAttentionSpec)
    assert (spec.family, attention.projection, attention.tokens) == ("mm_diff", kind, 3)
    assert len(adapter.weights.unet_lora) == pairs
    assert sorted(spec.part(PromptSpec).streams) == sorted(streams)
    assert set(adapter.weights.text_lora) == {"l"} and len(adapter.weights.text_lora["l"]) == 2 * 4
    draws = small.draws(pictures, 4)
    batch = trainee.prepare(draws)
    with torch.no_grad():
        trained = trainee.predict(batch)
    trainee.finish()
    for b, draw in enumerate(draws):
        settings = ImageAttentionSettings(1.0, Mixing("joint"))
        noisy, sizes = batch.noised, batch.sizes[b : b + 1].float()
        with torch.no_grad(), text_encoder_weights(models.texts, adapter.weights):
            references = encode_references(adapter, cast_of(draw.example), models.images, models.texts)
            prompt, plain = encode_prompt(models.texts, references, draw.example.caption)

        def predicted(prompt, noisy=noisy, b=b, sizes=sizes):
            return models.unet(
                noisy.latents[b : b + 1],
                noisy.timesteps[b : b + 1],
                prompt.embeds,
                added_cond_kwargs=None if prompt.pooled is None else {"text_embeds": prompt.pooled, "time_ids": sizes},
            ).sample[0]

        with torch.no_grad(), base_weights(models.unet, adapter.weights):
            with ImageAttention(models.unet, references, settings, (COND,), merged=1.0):
                found, unnamed = predicted(prompt), predicted(plain)
            wordy = predicted(prompt)
        largest = float(trained[b].abs().max())
        torch.testing.assert_close(trained[b], found, rtol=0, atol=1e-4 * largest)
        for other in (unnamed, wordy):  # without the fused words, without image tokens
            assert (found - other).abs().max() > 1e-3 * largest


@pytest.mark.slow
def test_a_sheet_is_painted_with_the_text_encoders_weights(pictures):
    """As by hand with everything that the file brings; without them it is another picture."""
    trainee, example = small.changed(small_one()), small.draws(pictures, 1)[0].example
    trainee.finish()
    models, adapter, settings = trainee.base, trainee.adapter(), SheetConfig(steps=2, cfg=2.0, seed=3)
    painted = paint(models, adapter, example.caption, cast_of(example), settings, small.SIDE)

    def by_hand(weights):
        with torch.no_grad(), text_encoder_weights(models.texts, weights):
            references = encode_references(adapter, cast_of(example), models.images, models.texts)
            prompt, _ = encode_prompt(models.texts, references, example.caption)
            negative = models.texts.encode_prompt("")
        applied = [(references, ImageAttentionSettings(settings.weight, Mixing("joint")))]
        size = SamplingSettings(small.SIDE, small.SIDE, 2, 2.0, 3)
        latent = sample(models.unet, models.sampler(), prompt, negative, size, applied, weights=[(adapter, 1.0)])
        return (models.decode(latent)[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)

    torch.testing.assert_close(painted, by_hand(adapter.weights), rtol=0, atol=1e-5)
    assert (painted - by_hand(Weights())).abs().max() > 1e-3
    for tower in models.texts.towers:  # it takes them off again
        assert all(not parameter.requires_grad for parameter in tower.model.parameters())
    again = paint(models, adapter, example.caption, cast_of(example), settings, small.SIDE)
    assert torch.equal(painted, again)


@pytest.mark.slow
def test_a_training_begins_with_the_base_itself(pictures):
    """Pairs change nothing yet; what is left out of every picture leaves SDXL."""
    trainee = small_one(drop_images=1.0)
    draws = small.draws(pictures, 2)
    batch = trainee.prepare(draws)
    with torch.no_grad():
        context = trainee.context(batch)
        found = trainee.predict(batch)
    trainee.finish()
    prompts = [trainee.base.texts.encode_prompt(draw.example.caption) for draw in draws]
    plain = torch.cat([prompt.embeds for prompt in prompts])
    torch.testing.assert_close(context, plain, rtol=0, atol=1e-6)
    extra = {"text_embeds": torch.cat([p.pooled for p in prompts]), "time_ids": batch.sizes.float()}
    noisy = batch.noised
    with torch.no_grad():
        expected = trainee.base.unet(noisy.latents, noisy.timesteps, plain, added_cond_kwargs=extra).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_training_begins_with_a_file(tmp_path):
    made = small.changed(small_one())
    path = write_export(made.export(), tmp_path / "start.safetensors", half=False)
    begun, expected = small_one(start=str(path)).state_dict(), made.state_dict()
    assert begun.keys() == expected.keys() and all(torch.equal(begun[name], expected[name]) for name in begun)


@pytest.mark.slow
def test_a_start_of_another_kind_or_size_is_a_sentence(tmp_path):
    path = write_export(small_one().export(), tmp_path / "start.safetensors")
    with pytest.raises(MismatchError, match="CLSHead, 70 layers.* to start from, found .*ObjectHead, 70 layers"):
        small_one(start=str(path), identity="unprojected")
    with pytest.raises(MismatchError, match=r"whose 'unet.0.to_k_lora.down.weight' is \[4, 16\], found \[2, 16\]"):
        small_one(start=str(path), rank=4)
    with pytest.raises(MismatchError, match="refiner.layers.2.* is .*, found no such tensor"):
        small_one(start=str(path), depth=3)
    other = write_export(small.trainee("ip_adapter").export(), tmp_path / "ip.safetensors")
    with pytest.raises(MismatchError, match="MM-Diff for .* to start from, found IP-Adapter"):
        small_one(start=str(other))


def ip_file(folder, **options):
    """An IP-Adapter for the same models, with weights that no training began with."""
    made = small.changed(small.trainee("ip_adapter", small.sdxl_base(), tokens=3, **options))
    return write_export(made.export(), folder / "ip.safetensors", half=False)


@pytest.mark.slow
@torch.no_grad()
def test_image_attention_begins_as_that_of_an_ip_adapter(tmp_path):
    """Its tokens, keys and values, whatever the patches are; with too small a rank, the nearest of this rank."""
    path = ip_file(tmp_path)
    theirs, begun = read_adapter(path), small_one(start_images=str(path), hidden=64, image_rank=16)
    rounded = small_one(start_images=str(path), hidden=64)
    generator = torch.Generator().manual_seed(5)
    head = begun.heads.head
    vectors = torch.randn(2, head.vector_dim, generator=generator)
    patches = torch.randn(2, 5, head.refiner.proj_in.in_features, generator=generator)
    tokens = head(vectors, patches)
    torch.testing.assert_close(tokens, theirs.projection(vectors), rtol=0, atol=1e-5)
    attentions = [layer.attention for layer in cross_layers(begun.base.unet)]
    each = zip(begun.layers.layers, theirs.layers.layers, rounded.layers.layers, attentions, strict=True)
    for layer, other, near, attention in each:
        for name in ("k", "v"):
            own, wanted = getattr(attention, f"to_{name}"), getattr(other, f"to_{name}_ip").weight
            read = getattr(layer, {"k": "keys", "v": "values"}[name])(tokens, own, merged=0.0)
            torch.testing.assert_close(read, tokens @ wanted.T, rtol=0, atol=1e-4)
            change, pair = wanted - own.weight, getattr(near, f"to_{name}_lora_image")
            left = torch.linalg.matrix_norm(change - pair.up.weight @ pair.down.weight, 2)
            torch.testing.assert_close(left, torch.linalg.svdvals(change)[2], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_start_of_images_that_does_not_fit_is_a_sentence(tmp_path):
    path = str(ip_file(tmp_path))
    with pytest.raises(MismatchError, match="a 'hidden' of at least .* to start from an IP-Adapter, found 8"):
        small_one(start_images=path)
    with pytest.raises(MismatchError, match="2 image tokens in 'start_images', found 3"):
        small_one(start_images=path, hidden=64, tokens=2)
    own = write_export(small_one().export(), tmp_path / "own.safetensors", half=False)
    with pytest.raises(MismatchError, match="without text gain to start from, found MM-Diff"):
        small_one(start_images=str(own), hidden=64)
    made = small.trainee("mip_adapter", small.sdxl_base(), tokens=3)
    mip = write_export(made.export(), tmp_path / "mip.safetensors", half=False)
    with pytest.raises(MismatchError, match="without text gain to start from, found MIP-Adapter"):
        small_one(start_images=str(mip), hidden=64)
    with pytest.raises(MismatchError, match="either 'start' or 'start_images', found both"):
        small_one(start=str(own), start_images=path)


@pytest.mark.slow
def test_from_settings_to_a_file(tmp_path):
    """A folder in diffusers' layout, with a sheet in the middle of the training."""
    models, folder = small.sdxl_base(), tmp_path / "base"
    models.unet.save_pretrained(folder / "unet")
    for tower, name in zip(models.texts.towers, ("text_encoder", "text_encoder_2"), strict=True):
        tower.model.save_pretrained(folder / name)
    small.vae().save_pretrained(folder / "vae")
    models.noise.save_pretrained(folder / "scheduler")
    models.images._model.save_pretrained(tmp_path / "vision")
    options = "\n".join(f"{name} = {value}" for name, value in small.MM_DIFF.items())
    (tmp_path / "mine.toml").write_text(f"""
        [recipe]
        name = "mm_diff"
        {options}
        [base]
        kind = "diffusers"
        folder = "{folder.as_posix()}"
        image_encoder = "{(tmp_path / "vision").as_posix()}"
        [data]
        folder = "{small.write_set(tmp_path / "pictures").as_posix()}"
        resolution = {small.SIDE}
        [training]
        steps = 3
        batch = 2
        [output]
        folder = "{(tmp_path / "out").as_posix()}"
        [sheet]
        every = 2
        rows = 1
        steps = 1
    """)
    small.forget_accelerate()
    try:
        ended = train(settings_of(tmp_path / "mine.toml"), cpu=True)
    finally:
        small.forget_accelerate()
    adapter = read_adapter(tmp_path / "out" / "mm_diff.safetensors")
    assert ended.step == 3 and (adapter.spec.family, adapter.spec.part(ImageAttentionSpec).projection) == (
        "mm_diff",
        "ObjectHead",
    )
    assert any(pair.up.any() for pair in adapter.weights.unet_lora.values())
    assert len(list((tmp_path / "out" / "sheets").iterdir())) == 2


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_place_without_a_subject_takes_no_share(pictures):
    """A picture of one subject in a batch with pictures of three has the prediction and losses that it has alone."""
    trainee = small.changed(small_one(**CONSTRAINTS))
    draws = small.draws(pictures, 4)
    alone = next(i for i, draw in enumerate(draws) if len(draw.example.subjects) == 1)
    with torch.no_grad():
        together = trainee.predict(trainee.prepare(draws))[alone]
        losses = trainee(trainee.prepare(draws))
        lone = trainee.prepare(draws[alone : alone + 1])
        torch.testing.assert_close(together, trainee.predict(lone)[0], rtol=0, atol=2e-5)
        for name, loss in trainee(lone).items():
            assert loss.abs() > 1e-6, name
            torch.testing.assert_close(losses[name][alone], loss[0], rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_pictures_without_masks_have_no_constraints(tmp_path):
    lines = small.write_set(tmp_path, masks=False) / "metadata.jsonl"
    lines.write_text("".join(re.sub(r', "box": \[[^]]*\]', "", line) for line in lines.open()))
    trainee = small_one(**CONSTRAINTS)
    losses = trainee(trainee.prepare(small.draws(tmp_path, 2)))
    assert not losses["text_constraint"].any() and not losses["image_constraint"].any()
    losses["diffusion"].mean().backward()
    off = small_one(text_constraint=0.0, image_constraint=0.0)
    assert not off(off.prepare(small.draws(tmp_path, 2)))["image_constraint"].any() and not off.maps.maps


@pytest.mark.slow
def test_a_batch_without_subjects_has_gradients_of_0_for_what_makes_them(pictures):
    trainee = small.changed(small_one(drop_images=1.0, **CONSTRAINTS))
    losses = trainee(trainee.prepare(small.draws(pictures, 2)))
    sum(trainee.weights[name] * loss.mean() for name, loss in losses.items()).backward()
    for part, moved in (("heads", False), ("fusion", False), ("unet_pairs", True), ("text_pairs", True)):
        gradients = [p.grad for n, p in trainee.named_parameters() if n.startswith(f"{part}.")]
        assert gradients and all(g is not None and g.any() == moved for g in gradients), part


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_gradient(pictures):
    draws, found = small.draws(pictures, 2), []
    for on in (False, True):
        trainee = small.changed(small_one(**CONSTRAINTS))
        if on:
            trainee.base.unet.enable_gradient_checkpointing()
            trainee.base.unet.train()
        losses = trainee(trainee.prepare(draws))
        sum(trainee.weights[name] * loss.mean() for name, loss in losses.items()).backward()
        found.append([p.grad for p in trainee.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_base_is_a_sentence():
    towers, models = small.base().texts.towers, small.sdxl_base()
    with pytest.raises(MismatchError, match="SDXL, SD1.5 or .* MM-Diff, found 16 transformer blocks and .* l, g"):
        small_one(small.base(small.narrow_sd15_base().unet, texts=models.texts))
    unknown = UNet2DConditionModel(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=32,
    )
    with pytest.raises(MismatchError, match="found 11 transformer blocks and text encoders l. Set kind"):
        small_one(small.base(unknown))
    with pytest.raises(MismatchError, match="found 70 transformer blocks and text encoders l"):
        small_one(small.base(models.unet, texts=ClipTexts(*towers)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "images, options, kind",
    [({"projection": 512}, {}, "FaceHead"), ({"projection": 32}, {"identity": "unprojected"}, "ObjectHead")],
)
def test_an_image_encoder_whose_sizes_would_be_misread_is_a_sentence(images, options, kind):
    models = small.sdxl_base()
    fitted = small.base(models.unet, texts=models.texts, images=small.images(**images))
    with pytest.raises(MismatchError, match=f"found sizes with which it would be read as {kind}. Set image_encoder"):
        small_one(fitted, **options)


def test_no_image_encoder_is_a_sentence():
    models = replace(small.sdxl_base(), images=None)
    with pytest.raises(MismatchError, match="Set image_encoder in .base."):
        small_one(models)
