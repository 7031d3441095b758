"""The memory and speed of trainings on published models: what is announced, what is counted on tensors without numbers,
and the page that says it.
"""

import copy
import sys
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from support import tiny_training as small
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile, record_function
from troupe.training.config.schema import TrainingConfig
from troupe.training.memory import STATES, memory_of
from troupe.training.optimizers import make_optimizer
from troupe.training.recipes.registry import RECIPES
from troupe.training.run import settings_of
from troupe_tools.pack import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import training_memory as script
import training_models as published
import training_passes as passes
import training_tables as tables

NUMBERS = script.read_counts()
BACKWARD = "the backward begins"
LARGE = ("sdxl_mm_diff", "sdxl_ip_plus", "sdxl_mip", "sdxl_mip_plus")


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_what_a_step_leaves_in_memory(recipe, tmp_path):
    trainee = small.trainee(recipe)
    found = memory_of(trainee, trainee.base.modules, TrainingConfig(ema=True))
    trained = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    sum(
        losses.mean() for losses in trainee(trainee.prepare(small.draws(small.write_set(tmp_path), 2))).values()
    ).backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert found.weights == size(trained) > 0 and found.average == size(trained)
    assert found.gradients == size(parameter.grad for parameter in trained) and found.optimizer == size(moments)
    everything = {id(p): p for module in (trainee, *trainee.base.modules) for p in module.parameters()}
    assert found.frozen == size(p for key, p in everything.items() if key not in set(map(id, trained)))
    assert memory_of(trainee, (), TrainingConfig(optimizer="adamw8bit")).optimizer * 4 == found.optimizer
    assert f"{found.weights / 4e6:.1f} million weights" in found.sentence()


def test_8_bit_moments_are_as_small_as_they_are_said_to_be():
    bitsandbytes = pytest.importorskip(
        "bitsandbytes", reason='bitsandbytes is not installed: pip install ".[train-8bit]"'
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    weight = torch.nn.Parameter(torch.ones(1024, 64, device=device))
    optimizer = make_optimizer(TrainingConfig(optimizer="adamw8bit"), [weight])
    assert isinstance(optimizer, bitsandbytes.optim.AdamW8bit)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight != 1).all()
    moments = sum(optimizer.state[weight][name].nbytes for name in ("state1", "state2"))
    assert moments == STATES["adamw8bit"] * weight.numel()


# ---- counting --------------------------------------------------------------------------------------------------------


def allocated(forward):
    """Bytes that a forward leaves allocated, and the peak of it with its backward, by PyTorch's own record of its
    allocations.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        loss = forward()
        with record_function(BACKWARD):
            loss.backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    now = peak = kept = 0
    for event in events:
        if event.name() == BACKWARD:
            kept = now
        elif event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return kept, peak


def use_checkpointing(unet, on):
    (unet.enable_gradient_checkpointing if on else unet.disable_gradient_checkpointing)()


@contextmanager
def counted_checkpoints():
    """Yield a list that gets an item for each checkpoint of a forward; a mock would keep their tensors."""
    found, checkpoint = [], torch.utils.checkpoint.checkpoint

    def counted(*args, **kwargs):
        found.append(None)
        return checkpoint(*args, **kwargs)

    with patch.object(torch.utils.checkpoint, "checkpoint", counted):
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=() if name == "ip_adapter" else pytest.mark.slow) for name in RECIPES]
)
def test_counted_memory_is_what_pytorch_allocates(recipe, tmp_path):
    """On tensors without numbers, against allocations of a real pass, with and without gradient checkpointing."""
    models = copy.deepcopy(small.base_for(recipe))  # which lose their numbers here
    trainee = small.trainee(recipe, models, **small.no_drops(recipe))
    batch = trainee.prepare(small.draws(small.write_set(tmp_path), 2))
    parameters = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    real = {}
    for on in (False, True):
        use_checkpointing(models.unet, on)
        with counted_checkpoints() as checkpoints:
            kept, peak = allocated(published.loss_of(trainee, batch))
        states = len(checkpoints) * torch.get_rng_state().nbytes  # which each checkpoint keeps in main memory
        assert bool(states) == on
        real[on] = kept - states, peak - states, peak
        trainee.finish()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    published.make_fake((trainee, *models.modules), mode)
    parameters = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    forward, found = published.loss_of(trainee, published.fake(batch, mode)), {}
    for on in (False, True):
        use_checkpointing(models.unet, on)
        with mode:
            found[on] = passes.count_memory(forward, parameters)
        trainee.finish()
        assert found[on].kept == pytest.approx(real[on][0], rel=0.01)
        assert 0.98 * real[on][1] <= found[on].peak <= 1.02 * real[on][2]  # the states are freed one after the other
    assert found[True].kept < found[False].kept


def test_norms_under_autocast_keep_float32_as_on_a_gpu():
    norm, pixels = torch.nn.GroupNorm(2, 4), torch.rand(1, 4, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    with passes.as_on_a_gpu(), passes.autocast(torch.bfloat16):
        assert norm(pixels).dtype == torch.float32
    with passes.autocast(torch.bfloat16):
        assert norm(pixels).dtype == torch.bfloat16
    with passes.as_on_a_gpu():
        assert norm(pixels.float()).dtype == torch.float32 and norm.bfloat16()(pixels).dtype == torch.bfloat16


def test_operations_of_attention_and_of_a_second_forward_are_counted():
    """Two layers [n, d] x [d, d] and attention of h heads between them, twice in the forward with checkpointing."""
    n, d, h = 16, 32, 2
    first, last = (torch.nn.Linear(d, d, bias=False) for _ in range(2))
    rows = torch.rand(1, n, d, requires_grad=True)

    def block(x):
        x = first(x).unflatten(-1, (h, -1)).transpose(1, 2)
        return last(torch.nn.functional.scaled_dot_product_attention(x, x, x).transpose(1, 2).flatten(2))

    linear, attention = 2 * n * d * d, 2 * 2 * n * n * d
    forward, backward = passes.count_operations(lambda: block(rows).sum())
    assert forward == 2 * linear + attention
    assert backward == 2 * 2 * linear + 5 * attention // 2  # attention's own backward computes its shares again
    again = passes.count_operations(
        lambda: torch.utils.checkpoint.checkpoint(block, rows, use_reentrant=False, preserve_rng_state=False).sum()
    )
    assert again[0] == forward and backward + linear + attention <= again[1] <= backward + forward


# ---- published models ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_file_for_published_models_builds_its_adapter():
    """22 million weights of SD1.5's IP-Adapter and 860 million of its UNet are the published numbers; the "plus" file
    for SDXL has 848 MB at two bytes a weight, that of MIP-Adapter without the projection, which is not trained, 682 MB.
    MM-Diff: 121.9 million in the UNet, 149.5 in the head, the rest counted here. Of Subject-Diffusion's, 208 million
    (SD1.5) and 211 (SD2) are gated layers, 123 and 341 a text encoder, 19.2 and 25.6 keys and values; the rest is two
    small nets.
    """
    trained = {}
    for name in published.recipe_files():
        counted = script.sizes(published.training(name))
        assert {key: NUMBERS[name][key] for key in counted} == counted, "run benchmarks/training_memory.py again"
        trained[name] = counted["trained"] / 1e6
    assert trained.keys() == NUMBERS.keys()
    assert round(trained["sd15_ip"]) == 22 and abs(trained["sd15_fastcomposer"] - 860) < 5
    assert abs(trained["sdxl_ip_plus"] - 848 / 2) < 0.5
    for name, widths in (("sd15_mip", 19.169280), ("sdxl_mip", 340.787200), ("sdxl_mip_plus", 340.787200)):
        assert widths < trained[name] < widths + 0.1  # and the text gain
    fusion = sum(2 * (2 * d) + (2 * d + 1) * d + (d + 1) * d for d in (768, 1280))
    words = 2 * 768 + 769 * (768 + 768 + 1280)
    text, wider = 11 * 4 * 2 * 64 * 768, (768 - 512) * 1024  # the published head reads 512 numbers
    rest = (fusion + words + text + wider) / 1e6
    assert abs(trained["sdxl_mm_diff"] - (121.9 + 149.5 + rest)) < 0.15
    assert 1 < trained["sd15_subject_diffusion"] - (208.0 + 123.1 + 19.2) < 4
    assert 1 < trained["sd2_subject_diffusion"] - (211.2 + 340.4 + 25.6) < 6


@pytest.mark.slow
def test_counting_again_gives_the_stored_numbers():
    made, entry = published.training("sd15_umm"), NUMBERS["sd15_umm"]["512"]
    assert script.features(made, 512) == entry["features"]
    assert script.pass_memory(made, 512, 1, True) == entry["checkpointing"]["1"]


def test_every_file_is_counted():
    assert list(NUMBERS) == published.recipe_files()
    for _, resolution, entry in tables.entries(NUMBERS):
        assert resolution in ("512", "1024")
        plain, again = entry["plain"], entry["checkpointing"]
        for batch in map(str, script.BATCHES):
            assert again[batch]["kept"] < plain[batch]["kept"] <= plain[batch]["peak"]
            assert again[batch]["peak"] < plain[batch]["peak"]
        first, second = (kind["operations"] for kind in (plain, again))
        assert second["forward"] == first["forward"]
        assert first["backward"] < second["backward"] <= first["backward"] + first["forward"]
    assert {name: [r for n, r, _ in tables.entries(NUMBERS) if n == name] for name in LARGE} == dict.fromkeys(
        LARGE, ["512", "1024"]
    )


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_is_written_from_the_numbers():
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.with_tables(text, NUMBERS) == text, "run python benchmarks/training_memory.py --page"
    assert text.count("computed by benchmarks/training_memory.py") == 4 + len(tables.SIZES)


@pytest.mark.parametrize("gigabytes", tables.SIZES)
def test_the_settings_for_a_card_are_settings_and_fit_it(gigabytes):
    """The sum is made here once more, for the file's own step."""
    table = tables.card_table(NUMBERS, gigabytes).splitlines()[2:]
    assert len(table) == len(list(tables.entries(NUMBERS)))
    for line in table:
        name, pixels, given, total = (cell.strip(" `") for cell in line.strip("|").split("|"))
        if given == "does not fit":
            assert float(total.removesuffix(" at least")) > gigabytes
            continue
        path = published.RECIPE_FILES / f"{name}.toml"
        config = settings_of(path, [*given.split("--set ")[1:], "cache=true"])
        assert config.data.resolution == int(pixels) and config.training.precision == "bf16"
        assert tables.per_step(config) == tables.per_step(settings_of(path))
        found, training = NUMBERS[name], config.training
        kind = found[pixels]["checkpointing" if training.gradient_checkpointing else "plain"]
        slope = (kind["4"]["peak"] - kind["1"]["peak"]) / 3
        activations = kind["1"]["peak"] + (training.batch - 1) * slope
        weights = 4 * found["trained"]
        moments, update = (2 * weights, weights) if training.optimizer == "adamw" else (weights / 2, 0)
        step = max(activations, update, found[str(config.sheet.size or pixels)]["features"]["decode"])
        step += found["resident"] + 2 * weights + moments
        expected = max(step, found["encoding"] + found[pixels]["features"]["peak"]) + 1e9
        assert float(total) == pytest.approx(expected / 1e9, abs=0.051) and float(total) <= gigabytes


def test_a_larger_card_never_needs_more_thrift():
    for name, resolution, _ in tables.entries(NUMBERS):
        small_card, large_card = (tables.first_that_fits(NUMBERS, name, int(resolution), gb) for gb in (12, 24))
        if small_card is not None:
            assert large_card is not None and large_card.checkpointing <= small_card.checkpointing
