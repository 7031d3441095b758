"""Exported adapters: read by the pack's loader, and sampled with they predict what they did in training."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from support import tiny_diffusers as tiny
from support import tiny_training as small
from support.two_head_layers import interpolated, two_heads
from troupe.model_patches.adapter import ImageAttentionSpec, PromptSpec
from troupe.model_patches.attention.decoupled import Mixing
from troupe.model_patches.binding.layer_tokens import COND
from troupe.model_patches.binding.settings import ImageAttentionSettings
from troupe.model_patches.families.registry import read_adapter
from troupe.model_patches.hosts.diffusers.encoders import encode_references, load_adapter
from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention
from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
from troupe.model_patches.hosts.diffusers.weights import base_weights
from troupe.model_patches.subjects import Cast, make_subject
from troupe.training.export import write_export
from troupe.training.model.base import rehearsal_base
from troupe.training.recipes.recipe import Exported
from troupe.training.stop import TrainingError

NO_DROPS = {"drop_text": 0.0, "drop_images": 0.0, "drop_both": 0.0}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return small.write_set(tmp_path_factory.mktemp("pictures"))


def cast_of(draw, subjects=None):
    cast = Cast()
    for number, subject in enumerate(draw.example.subjects if subjects is None else subjects, 1):
        cast = cast.add(make_subject(subject.name or "thing", [subject.photo.image[None]], number=number))
    return cast


def sizes_of(batch, texts):
    """What the UNet of SDXL reads beside the prompt, of pictures of the training set; None for another base."""
    pooled = [text.pooled for text in texts]
    if None in pooled:
        return None
    assert batch.sizes[0].tolist() == [64, 96, 0, 16, 64, 64]
    return {"text_embeds": torch.cat(pooled), "time_ids": batch.sizes[: len(texts)].float()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe, options, base",
    [
        ("ip_adapter", {}, small.base),
        ("ip_adapter", {"projection": "Resampler"}, small.base),
        ("ip_adapter", {}, small.sdxl_base),
        ("mip_adapter", {}, small.base),
        ("mip_adapter", {"projection": "Resampler"}, small.base),
        ("mip_adapter", {"merge": "uniform"}, small.base),
        ("mip_adapter", {"projection": "Resampler"}, small.sdxl_base),
    ],
)
def test_an_image_adapter_predicts_in_the_sampler_what_it_did_in_training(recipe, options, base, pictures, tmp_path):
    trainee = small.changed(small.trainee(recipe, base(), **NO_DROPS, **options))
    path = write_export(trainee.export(), tmp_path / "trained.safetensors", half=False)
    adapter = load_adapter(path)
    assert adapter.spec.family == recipe and adapter.spec.part(ImageAttentionSpec).projection == options.get(
        "projection", "ImageProj"
    )
    draws = small.draws(pictures, 4)
    batch = trainee.prepare(draws)
    with torch.no_grad():
        trained = trainee.predict(batch)
    trainee.finish()
    models = trainee.base
    for b, draw in enumerate(draws):
        references = encode_references(adapter, cast_of(draw, trainee.chosen(draw)), models.images, models.texts)
        prompt = models.texts.encode_prompt(draw.example.caption)
        given = {"encoder_hidden_states": prompt.embeds, "added_cond_kwargs": sizes_of(batch, [prompt])}
        settings = ImageAttentionSettings(1.0, Mixing(options.get("merge", "relevance")))
        latent, step = batch.noised.latents[b : b + 1], batch.noised.timesteps[b : b + 1]
        with torch.no_grad(), ImageAttention(models.unet, references, settings, (COND,)):
            sampled = models.unet(latent, step, **given).sample
        with torch.no_grad():
            plain = models.unet(latent, step, **given).sample
        torch.testing.assert_close(trained[b], sampled[0], rtol=0, atol=2e-5)
        assert (sampled - plain).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "projection, base",
    [("ImageProj", small.base), ("Resampler", two_heads), ("Resampler", small.sdxl_base)],
    ids=["SD1.5", "SD1.5 plus", "SDXL plus"],
)
def test_a_pipeline_of_diffusers_predicts_with_the_file_what_the_training_did(projection, base, pictures, tmp_path):
    """Through diffusers' own loader, projection and attention, on a UNet of its own."""
    trainee = small.changed(small.trainee("ip_adapter", base(), **NO_DROPS, projection=projection))
    write_export(trainee.export(), tmp_path / "trained.safetensors", half=False)
    draws = small.draws(pictures, 4)
    batch = trainee.prepare(draws)
    with torch.no_grad():
        trained = trainee.predict(batch)
    unet, encoder, sizes = base().unet, trainee.base.images._model, sizes_of(batch, batch.prompts)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    parts |= {"unet": unet, "scheduler": tiny.EulerDiscreteScheduler(**tiny.SCHEDULE, steps_offset=1)}
    if sizes is None:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **more)
    else:
        pipeline = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None)
    looks = [interpolated(trainee.chosen(draw)[0].photo.image, 32).float() for draw in draws]
    seen = [encoder(look, output_hidden_states=True) for look in looks]
    photos = torch.stack([each.image_embeds if projection == "ImageProj" else each.hidden_states[-2] for each in seen])
    given = {"timestep": batch.noised.timesteps, "encoder_hidden_states": torch.cat([p.embeds for p in batch.prompts])}
    with torch.no_grad():
        plain = unet(batch.noised.latents, **given, added_cond_kwargs=sizes).sample
        file = {"subfolder": "", "weight_name": "trained.safetensors", "image_encoder_folder": None}
        pipeline.load_ip_adapter(str(tmp_path), **file)
        pipeline.set_ip_adapter_scale(1.0)
        given["added_cond_kwargs"] = {**(sizes or {}), "image_embeds": [photos]}
        sampled = unet(batch.noised.latents, **given).sample
    torch.testing.assert_close(sampled, trained, rtol=0, atol=2e-5)
    assert (sampled - plain).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("base", ["sd15", "rehearsal"])
@pytest.mark.parametrize("recipe", ["umm_diffusion", "fastcomposer"])
def test_a_prompt_adapter_predicts_in_the_sampler_what_it_did_in_training(recipe, base, pictures, tmp_path):
    options = {"tokens": 2, "depth": 3, "hidden": 8} if recipe == "umm_diffusion" else {}
    models = rehearsal_base() if base == "rehearsal" else None
    trainee = small.changed(small.trainee(recipe, models, **small.no_drops(recipe), **options))
    metadata = {"tokens": "2", "image_feature": "projected"} if options else {}
    path = write_export(trainee.export(), tmp_path / "trained.safetensors", half=False)
    adapter, models = load_adapter(path), trainee.base
    assert adapter.spec.base == ("SD1.5" if base == "sd15" else "the rehearsal world")
    assert (adapter.spec.family, adapter.spec.part(PromptSpec).tokens) == (recipe.split("_")[0], 2 if metadata else 1)
    draws = small.draws(pictures, 3)
    batch = trainee.prepare(draws)
    with torch.no_grad():
        trained = trainee.predict(batch)
    trainee.finish()
    own = {name: value.clone() for name, value in models.unet.state_dict().items()}
    with torch.no_grad():  # the file's UNet must come from the file
        for parameter in models.unet.parameters() if recipe == "fastcomposer" else ():
            parameter.zero_()
    for b, draw in enumerate(draws):
        references = encode_references(adapter, cast_of(draw), models.images, models.texts)
        prompt, plain = encode_prompt(models.texts, references, draw.example.caption)
        latent, step = batch.noised.latents[b : b + 1], batch.noised.timesteps[b : b + 1]
        with torch.no_grad(), base_weights(models.unet, adapter.weights):
            sampled = models.unet(latent, step, prompt.embeds).sample
        torch.testing.assert_close(trained[b], sampled[0], rtol=0, atol=1e-4 * float(trained.abs().max()))
        assert (prompt.embeds - plain.embeds).abs().max() > 1e-2
    models.unet.load_state_dict(own)


def test_the_copy_for_sheets_is_the_file(pictures, tmp_path):
    trainee = small.changed(small.trainee("mip_adapter"))
    path = write_export(trainee.export(), tmp_path / "trained.safetensors", half=False)
    copy, read = trainee.adapter(), read_adapter(path)
    for kind in ("projection", "layers"):
        own, theirs = (getattr(adapter, kind).state_dict() for adapter in (copy, read))
        assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)


@pytest.mark.slow
def test_a_training_begins_with_a_file(tmp_path):
    """An IP-Adapter's weights, and a gain of 1 that the file does not have; a MIP-Adapter's own gain is kept."""
    ip = write_export(small.changed(small.trainee("ip_adapter")).export(), tmp_path / "ip.safetensors")
    state = small.trainee("mip_adapter", start=str(ip)).state_dict()
    read = read_adapter(ip)
    assert torch.equal(state["projection.proj.weight"], read.projection.proj.weight.float())
    assert torch.equal(state["layers.layers.3.to_v_ip.weight"], read.layers.layers[3].to_v_ip.weight.float())
    gains = [name for name in state if name.endswith("text_to_weight.weight")]
    assert len(gains) == 7 and not any(state[name].any() for name in gains)
    mip = write_export(small.changed(small.trainee("mip_adapter")).export(), tmp_path / "mip.safetensors")
    again = small.trainee("mip_adapter", start=str(mip)).state_dict()
    assert torch.equal(again[gains[0]], read_adapter(mip).layers.layers[0].text_to_weight.weight.float())
    assert again[gains[0]].any()


def test_a_start_for_another_base_is_a_sentence(tmp_path):
    ip = write_export(small.trainee("ip_adapter").export(), tmp_path / "ip.safetensors")
    wide = small.base(tiny.unet("sdxl"))
    with pytest.raises(Exception, match="Expected .* found .*") as error:
        small.trainee("mip_adapter", wide, start=str(ip))
    assert "11 cross-attention layers" in str(error.value)


def test_an_export_is_whole_or_not_there(tmp_path):
    state = {"a": torch.tensor([1e9])}
    with pytest.raises(TrainingError, match="half = false"):
        write_export(Exported(state, {}), tmp_path / "a.safetensors")
    assert write_export(Exported(state, {}), tmp_path / "a.safetensors", half=False).is_file()
    with pytest.raises(TrainingError, match="to write .*Free space"):
        write_export(Exported(state, {}), tmp_path / "a.safetensors" / "b.safetensors", half=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]
