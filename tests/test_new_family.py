"""A family that the pack does not have runs from its file to a latent once it is in the list of families."""

import pytest
import safetensors.torch
import torch
from support import mean_colour_family, tiny_diffusers
from troupe.model_patches.attention.merges import Mixing
from troupe.model_patches.binding.settings import ImageAttentionSettings
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families import registry
from troupe.model_patches.hosts.diffusers.cross_layers import cross_layers
from troupe.model_patches.hosts.diffusers.encoders import Prompt, encode_references, load_adapter
from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
from troupe.model_patches.subjects import Cast, make_subject

SETTINGS = ImageAttentionSettings(weight=1.0, mixing=Mixing("uniform"))


@pytest.fixture
def path(tmp_path):
    """A file for the tiny UNet."""
    widths = [layer.attention.to_q.out_features for layer in cross_layers(tiny_diffusers.unet())]
    safetensors.torch.save_file(
        mean_colour_family.state_for(widths, tiny_diffusers.CONTEXT), tmp_path / "colours.safetensors"
    )
    return tmp_path / "colours.safetensors"


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", [mean_colour_family, *registry.FAMILIES])


def cast(*colours):
    pictures = [torch.tensor(colour).expand(1, 16, 16, 3).contiguous() for colour in colours]
    return Cast(tuple(make_subject(f"subject {i}", [picture]) for i, picture in enumerate(pictures)))


def latent(applied):
    generator = torch.Generator().manual_seed(9)
    prompts = [Prompt(torch.randn(1, 77, tiny_diffusers.CONTEXT, generator=generator), None) for _ in range(2)]
    return sample(
        tiny_diffusers.unet(),
        tiny_diffusers.scheduler(),
        *prompts,
        SamplingSettings(steps=2, width=64, height=64, seed=1),
        applied,
    )


def test_without_its_line_in_the_list_the_file_is_refused(path):
    with pytest.raises(CheckpointError, match="IP-Adapter, MIP-Adapter"):
        load_adapter(path)


@pytest.mark.slow
def test_with_its_line_it_runs_from_file_to_latent(path, registered):
    adapter = load_adapter(path)
    assert adapter.spec.describe().startswith("Mean Colour for ") and registry.belonging(path) == (path,)
    red = encode_references(adapter, cast((1.0, 0.0, 0.0)), None, None)
    blue = encode_references(adapter, cast((0.0, 0.0, 1.0)), None, None)
    expected = adapter.projection.linear(torch.tensor([1.0, 0.0, 0.0])).reshape(mean_colour_family.TOKENS, -1)
    torch.testing.assert_close(red.subjects[0].tokens, expected)
    plain, with_red, with_blue, again = (
        latent(applied) for applied in ((), [(red, SETTINGS)], [(blue, SETTINGS)], [(red, SETTINGS)])
    )
    assert torch.equal(with_red, again)
    effects = [float((a - b).abs().max()) for a, b in ((with_red, plain), (with_blue, plain), (with_red, with_blue))]
    assert min(effects) > 1e-2, effects


def test_with_its_line_it_is_named_among_the_files_that_are_taken(tmp_path, registered):
    safetensors.torch.save_file({"something": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"an IP-Adapter, MIP-Adapter, Mean Colour, .* or UMM-Diffusion file in"):
        load_adapter(tmp_path / "other.safetensors")
