"""The memory that a training announces: against what lies in memory after a step, and published numbers of weights."""

import sys

import pytest
import torch
from support import tiny_training as small
from troupe.training.config.schema import TrainingConfig
from troupe.training.memory import memory_of
from troupe.training.recipes.registry import RECIPES
from troupe_tools.pack import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


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


@pytest.mark.slow
def test_the_page_has_the_published_sizes():
    """22 million weights of SD1.5's IP-Adapter and 860 million of its UNet are the published numbers; the "plus" file
    for SDXL has 848 MB at two bytes a weight. MM-Diff: 121.9 million in the UNet, 149.5 in the head, the rest counted
    here. Of Subject-Diffusion's, 208 million (SD1.5) and 211 (SD2) are gated layers, 123 and 341 a text encoder, 19.2
    and 25.6 keys and values; the rest is two small nets.
    """
    from training_memory import MARKS, ROWS, row

    lines = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    written = dict(zip([each[:2] for each in ROWS], lines.splitlines()[2:], strict=True))
    for each in ROWS[:6]:
        assert row(*each) == f"{written[each[:2]]}\n"
    trained = {key: float(line.split("|")[3]) for key, line in written.items()}
    assert round(trained["ip_adapter", "SD1.5"]) == 22 and abs(trained["fastcomposer", "SD1.5"] - 860) < 5
    assert abs(trained["ip_adapter", "SDXL"] - 848 / 2) < 0.5
    fusion = sum(2 * (2 * d) + (2 * d + 1) * d + (d + 1) * d for d in (768, 1280))
    words = 2 * 768 + 769 * (768 + 768 + 1280)
    text, wider = 11 * 4 * 2 * 64 * 768, (768 - 512) * 1024  # the published head reads 512 numbers
    rest = (fusion + words + text + wider) / 1e6
    assert abs(trained["mm_diff", "SDXL"] - (121.9 + 149.5 + rest)) < 0.15
    assert 1 < trained["subject_diffusion", "SD1.5"] - (208.0 + 123.1 + 19.2) < 4
    assert 1 < trained["subject_diffusion", "SD2"] - (211.2 + 340.4 + 25.6) < 6
