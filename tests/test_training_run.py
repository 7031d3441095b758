"""A whole training: settings, a folder in diffusers' layout, cached features, sheets, the exported file."""

from __future__ import annotations

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from PIL import Image
from support import tiny_diffusers as tiny
from support import tiny_training as small
from support.start_methods import needs_fork
from troupe.model_patches.errors import CheckpointError, MismatchError, TroupeError
from troupe.model_patches.families.registry import read_adapter
from troupe.training import run
from troupe.training.attention import two_products, two_products_are_faster
from troupe.training.caching import keep_features, unneeded_encoders
from troupe.training.checkpoints import checkpoints
from troupe.training.data.records import DatasetError
from troupe.training.examples.draws import Draws
from troupe.training.examples.folder import FolderSet
from troupe.training.model.base import diffusers_base, load_base
from troupe.training.model.features import Features
from troupe.training.model.noise import noised
from troupe.training.recipes.registry import RECIPES
from troupe.training.run import settings_of, train
from troupe.training.stop import TrainingError

pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Micro SD1.5 and an image encoder, as diffusers and transformers save them."""
    folder = tmp_path_factory.mktemp("models")
    tiny.unet().save_pretrained(folder / "base" / "unet")
    small.texts().towers[0].model.save_pretrained(folder / "base" / "text_encoder")
    small.vae().save_pretrained(folder / "base" / "vae")
    DDPMScheduler(**tiny.SCHEDULE).save_pretrained(folder / "base" / "scheduler")
    small.images()._model.save_pretrained(folder / "vision")
    return folder


@pytest.fixture
def settings(models, tmp_path):
    def read(*overrides):
        path = tmp_path / "recipe.toml"
        path.write_text(f"""
            [recipe]
            name = "mip_adapter"
            [base]
            kind = "diffusers"
            folder = "{(models / "base").as_posix()}"
            image_encoder = "{(models / "vision").as_posix()}"
            [data]
            folder = "{small.write_set(tmp_path / "pictures").as_posix()}"
            resolution = {small.SIDE}
            [training]
            steps = 3
            batch = 2
            [output]
            folder = "{(tmp_path / "out").as_posix()}"
            name = "mine"
            half = false
            [sheet]
            every = 2
            rows = 2
            steps = 2
        """)
        return settings_of(path, overrides)

    return read


@pytest.mark.slow
def test_from_settings_to_a_file(settings, tmp_path):
    said: list[str] = []
    ended = train(settings(), said.append, cpu=True)
    assert (ended.step, ended.signal) == (3, 0)
    adapter = read_adapter(tmp_path / "out" / "mine.safetensors")
    assert adapter.spec.family == "mip_adapter" and len(adapter.layers.layers) == 7
    assert said[-1].endswith("mine.safetensors, the weights of step 3")
    assert sorted(path.name for path in (tmp_path / "out" / "sheets").iterdir()) == [
        "step-00000002.png",
        "step-00000003.png",
    ]
    assert Image.open(tmp_path / "out" / "sheets" / "step-00000003.png").width > 5 * 128
    assert [step for step, _ in checkpoints(tmp_path / "out")] == [3]


def exported(settings, tmp_path, *overrides):
    small.forget_accelerate()
    out = tmp_path / "-".join(overrides).replace("=", "-")
    train(settings(f"output.folder={out}", "every=0", *overrides), cpu=True)
    return read_adapter(out / "mine.safetensors")


def same(a, b):
    pairs = zip(a.layers.state_dict().values(), b.layers.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.slow
@needs_fork
def test_workers_change_nothing(settings, tmp_path):
    plain = exported(settings, tmp_path, "training.steps=5")
    assert same(plain, exported(settings, tmp_path, "training.steps=5", "workers=1"))


@pytest.mark.slow
def test_a_cache_changes_only_the_rounding(settings, tmp_path):
    plain = exported(settings, tmp_path, "training.steps=5")
    cached = exported(settings, tmp_path, "training.steps=5", "cache=true")  # made one by one: other rounding
    for a, b in zip(plain.layers.parameters(), cached.layers.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert not same(plain, exported(settings, tmp_path, "training.steps=5", "training.seed=1"))


@pytest.mark.slow
def test_cached_features_are_made_once(models, tmp_path):
    base = diffusers_base(models / "base", models / "vision")
    draws = small.draws(small.write_set(tmp_path), 8)
    calls: list[int] = []
    encode = base.encode
    object.__setattr__(base, "encode", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    prompts: list[int] = []
    encode_prompts = base.texts.encode_prompts
    base.texts.encode_prompts = lambda texts: prompts.append(len(texts)) or encode_prompts(texts)
    for cache, expected in ((True, [1] * 4), (False, [4, 4])):
        features, calls[:], prompts[:] = Features(base, cache), [], []
        for _ in range(2):
            features.prompts(["a red cat", "a fox", "a dog"])
        assert prompts == ([1] * 3 if cache else [3, 3])
        first = features.latents([draw.example for draw in draws[:4]])
        again = features.latents([draw.example for draw in sorted(draws[4:], key=lambda d: d.example.label)])
        assert calls == expected
        labels = sorted(range(4), key=lambda i: draws[i].example.label)
        torch.testing.assert_close(first[labels], again, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", sorted(RECIPES.keys() - {"umm_diffusion"})
)  # which asks for what fastcomposer asks for
def test_kept_features_are_all_that_steps_need(recipe, tmp_path):
    """The encoders lose their numbers when everything is kept. Gradients are those of a training that has them."""
    folder = small.write_set(tmp_path)
    Image.new("RGB", (40, 40), "navy").save(folder / "more.png")
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('_1.png"]', '_1.png", "more.png"]'))
    examples = FolderSet(folder, small.SIDE, 4)
    drops = {name: 0.3 for name in small.no_drops(recipe) if name != "masked"}
    draws = Draws(examples, 0)

    def gradients(trainee):
        for first in (0, 3, 6):
            trainee.zero_grad()
            batch = trainee.prepare([draws[n] for n in range(first, first + 3)])
            sum(losses.sum() for losses in trainee(batch).values()).backward()
            yield [p.grad for p in trainee.parameters() if p.requires_grad]

    expected = list(gradients(small.trainee(recipe, cache=True, **drops)))
    kept = small.trainee(recipe, cache=True, **drops)
    keep_features(kept, examples)
    encoders = unneeded_encoders(kept, sheets=False)
    assert kept.base.images._model in encoders and kept.base.unet not in encoders
    assert (kept.base.texts.towers[0].model in encoders) == (recipe in ("ip_adapter", "mip_adapter"))
    shared = kept.base.images._model  # by micro models of SD1.5's width
    object.__setattr__(kept.base, "images", copy.deepcopy(kept.base.images))
    for encoder in {*encoders, kept.base.images._model} - {shared}:
        encoder.to("meta")
    object.__setattr__(kept.base, "encode", None)  # of the micro models no module
    for found, wanted in zip(gradients(kept), expected, strict=True):
        assert all(map(torch.equal, found, wanted))


@pytest.mark.slow
def test_encoders_leave_the_device_when_everything_is_kept(settings, monkeypatch):
    moved: list[tuple[str, torch.dtype]] = []
    config = settings("cache=true", "precision=bf16")
    monkeypatch.setattr(run, "keep_features", lambda trainee, *more: moved.append(types(trainee.base)))
    said: list[str] = []
    loop = run.make_loop(config, run.make_accelerator(config, cpu=True), said.append)
    half, whole = torch.bfloat16, torch.float32
    names = ["unet", "texts", "images", "vae"]
    assert moved == [dict(zip(names, [whole, half, half, whole], strict=True))], "the UNet waits on the CPU"
    assert types(loop.trainee.base) == dict(zip(names, [half, whole, whole, whole], strict=True))
    vae = next(module for module in loop.trainee.base.modules if isinstance(module, AutoencoderKL))
    assert vae not in unneeded_encoders(loop.trainee, sheets=True)
    assert vae in unneeded_encoders(loop.trainee, sheets=False)
    assert said[0].startswith("4 pictures are encoded and kept in memory")
    small.forget_accelerate()
    run.make_loop(config, run.make_accelerator(config, cpu=True), encode=False)
    assert len(moved) == 1, "an export encodes nothing"


def types(base):
    parts = {"unet": base.unet, "texts": base.texts.towers[0].model, "images": base.images._model}
    vae = next(module for module in base.modules if isinstance(module, AutoencoderKL))
    return {name: next(module.parameters()).dtype for name, module in {**parts, "vae": vae}.items()}


def test_latents_are_scaled_and_decoded_back(models):
    base = diffusers_base(models / "base")
    vae = base.modules[-1]
    pixels = torch.rand(2, 3, small.SIDE, small.SIDE) * 2 - 1
    with torch.no_grad():
        latents = base.encode(pixels)
        torch.testing.assert_close(latents, vae.encode(pixels).latent_dist.mode() * 0.5)
        torch.testing.assert_close(base.decode(latents), vae.decode(latents / 0.5).sample)
    assert base.cell == 8 and not any(p.requires_grad for module in base.modules for p in module.parameters())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_noise_is_the_schedulers(prediction, gamma, tmp_path):
    """Noisy latents and targets as DDPMScheduler makes them; min-SNR weights by their formula."""
    schedule = DDPMScheduler(**tiny.SCHEDULE, prediction_type=prediction)
    draws = small.draws(small.write_set(tmp_path), 8)
    clean = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = noised(schedule, clean, draws, 8, min_snr=gamma)
    noise = torch.stack([draw.noise((4, 8, 8)) for draw in draws])
    torch.testing.assert_close(found.latents, schedule.add_noise(clean, noise, found.timesteps))
    velocity = schedule.get_velocity(clean, noise, found.timesteps)
    torch.testing.assert_close(found.target, {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction])
    assert [step // 125 for step in found.timesteps.tolist()] == list(range(8)), "one in each eighth"
    signal = schedule.alphas_cumprod[found.timesteps]
    snr = signal / (1 - signal)
    capped = snr.clamp(max=5)
    expected = {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[prediction]
    torch.testing.assert_close(found.weights, expected if gamma else torch.ones(8))


def test_noisier_steps_are_drawn_more_often(tmp_path):
    draws = small.draws(small.write_set(tmp_path), 64)
    clean, schedule = torch.zeros(64, 4, 2, 2), DDPMScheduler(**tiny.SCHEDULE)
    for noisier, mean in ((0.0, 500), (1.0, 667)):
        steps = noised(schedule, clean, draws, 64, noisier).timesteps.float()
        assert abs(steps.mean() - mean) < 8


# ---- mistakes --------------------------------------------------------------------------------------------------------


def test_a_resolution_that_the_unet_cannot_halve_is_a_sentence(settings):
    with pytest.raises(TrainingError, match="a multiple of 16 as data.resolution .*found 72. Set resolution = 64"):
        train(settings("resolution=72"), cpu=True)


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_a_sentence(settings, monkeypatch, logger):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=f"pip install {logger}"):
        train(settings(f'log="{logger}"'), cpu=True)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "scheduler"])
def test_a_base_without_a_part_is_a_sentence(models, tmp_path, part):
    shutil.copytree(models / "base", tmp_path / "base", ignore=shutil.ignore_patterns(part))
    with pytest.raises(CheckpointError, match=f"config.json in .*{part}, found none.*nothing is downloaded"):
        load_base("diffusers", str(tmp_path / "base"), "")


def test_no_image_encoder_is_a_sentence(settings):
    with pytest.raises(MismatchError, match="Set image_encoder in .base."):
        train(settings("image_encoder="), cpu=True)


@pytest.mark.slow
def test_a_set_of_one_picture_is_a_sentence(settings, tmp_path):
    config = settings()
    small.write_set(tmp_path / "pictures", [("cat",)])
    with pytest.raises(TrainingError, match="a step takes, 2, found 1 in the training set"):
        train(config, cpu=True)


@pytest.mark.slow
def test_one_picture_can_be_trained_on_with_a_sheet(settings, tmp_path):
    config = settings("batch=1", "rows=4")
    small.write_set(tmp_path / "pictures", [("cat",)])
    said: list[str] = []
    assert train(config, said.append, cpu=True).step == 3
    assert read_adapter(tmp_path / "out" / "mine.safetensors").spec.family == "mip_adapter"
    assert Image.open(tmp_path / "out" / "sheets" / "step-00000003.png").height < 2 * 128, "one row"
    assert [step for step, _ in checkpoints(tmp_path / "out")] == [3]


@pytest.mark.parametrize("check, loaded", [("masks", False), ("headers", True)])
def test_a_black_mask_is_a_sentence_before_the_first_step(settings, tmp_path, check, loaded):
    """Where only headers are checked, it is one when the picture is read."""
    config = settings(f'check="{check}"', "every=0", "training.steps=9")
    Image.new("L", (96, 64)).save(tmp_path / "pictures" / "m1_0.png")
    with pytest.raises(TroupeError, match="m1_0.png, found a mask that is black everywhere") as error:
        train(config, cpu=True)
    assert isinstance(error.value, TrainingError if loaded else DatasetError)


@pytest.mark.slow
def test_export_alone_leaves_the_checkpoints(settings, tmp_path):
    """Also where the settings say that a training begins anew."""
    train(settings("every=0", "training.steps=1"), cpu=True)
    exported = tmp_path / "out" / "mine.safetensors"
    first = exported.read_bytes()
    exported.unlink()
    small.forget_accelerate()
    said: list[str] = []
    assert (
        train(settings("every=0", "resume=false", "training.seed=7"), said.append, cpu=True, export_only=True).step == 1
    )
    assert exported.read_bytes() == first and said[-1].endswith("the weights of step 1")
    assert [step for step, _ in checkpoints(tmp_path / "out")] == [1]
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    small.forget_accelerate()
    with pytest.raises(TrainingError, match="a checkpoint in .*out to export, found none"):
        train(settings("every=0"), cpu=True, export_only=True)
    assert exported.read_bytes() == first, "weights that were never trained replace no adapter"


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "kind", "precision", "expected"),
    [
        ("cpu", "rehearsal", "bf16", True),
        ("cuda", "rehearsal", "bf16", False),
        ("cpu", "diffusers", "bf16", False),
        ("cpu", "rehearsal", "no", False),
    ],
)
def test_attention_is_two_products_where_that_is_faster(device, kind, precision, expected):
    config = SimpleNamespace(base=SimpleNamespace(kind=kind), training=SimpleNamespace(precision=precision))
    assert two_products_are_faster(config, torch.device(device)) == expected


@pytest.fixture(params=[False, True], ids=["float32 as torch has it", "bf16 as ComfyUI sets it"])
def sums_in_bf16(request):
    """The process's own setting: a host in the same process has changed torch's."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(request.param)
    yield request.param
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def test_attention_is_two_products_in_the_context_only(sums_in_bf16):
    q, k, v = (torch.randn(2, 4, 16, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def kernels():
        with torch.profiler.profile() as watched:
            found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return found, {event.key for event in watched.key_averages()}

    fused, names = kernels()
    assert any("flash" in name for name in names)
    with pytest.raises(KeyError), two_products():
        found, names = kernels()
        assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed(), "in bf16 throughout"
        raise KeyError
    assert not any("flash" in name for name in names)
    torch.testing.assert_close(found, fused, rtol=0, atol=0.02)
    with two_products(False):
        assert any("flash" in name for name in kernels()[1])
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == sums_in_bf16


@pytest.mark.slow
def test_a_training_is_given_it(settings, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(run, "two_products_are_faster", lambda config, device: (config.name, device.type))
    monkeypatch.setattr(run, "two_products", lambda use: used.append(use) or two_products(False))
    exported(settings, tmp_path, "training.steps=1")
    assert len(used) == 1 and used[0][1] == "cpu"
