"""IP-Adapters as their training leaves them: loaded like the published file that holds the same tensors, or refused
with the reason and the way out.
"""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from support import tiny_diffusers as tiny
from support.published_layouts import flat, image_proj, layers, resampler
from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families.ip_adapter import build
from troupe.model_patches.families.registry import read_adapter
from troupe.model_patches.hosts.diffusers.cross_layers import cross_layers

CONTEXT = 64


def places() -> list[str]:
    """diffusers' own names of a UNet's cross-attention layers, in the order in which a training numbers them."""
    names = [name.removesuffix(".processor") for name in tiny.unet().attn_processors]
    assert [name.rsplit(".", 1)[1] for name in names] == ["attn1", "attn2"] * (len(names) // 2)
    return names[1::2]


def plain(text_gain: bool = False, projection=None) -> dict[str, torch.Tensor]:
    """A published file for that UNet; every layer has numbers of its own."""
    widths = [layer.attention.to_q.out_features for layer in cross_layers(tiny.unet())]
    return flat(projection or image_proj(CONTEXT, 16), layers(CONTEXT, widths, text_gain))


def parts(state):
    projection = {
        name.removeprefix("image_proj."): tensor for name, tensor in state.items() if name.startswith("image_proj.")
    }
    numbered = {
        name.removeprefix("ip_adapter."): tensor for name, tensor in state.items() if name.startswith("ip_adapter.")
    }
    return projection, numbered


def named(numbered, prefix):
    """Layers under diffusers' names instead of numbers."""
    found = {}
    for name, tensor in numbered.items():
        index, rest = name.split(".", 1)
        found[f"{prefix}.{places()[int(index) // 2]}.processor.{rest}"] = tensor
    return found


def accelerate_bin(state):
    projection, numbered = parts(state)
    return {
        "unet.conv_in.bias": torch.zeros(4),
        **{f"image_proj_model.{n}": t for n, t in projection.items()},
        **{f"adapter_modules.{n}": t for n, t in numbered.items()},
        **named(numbered, "unet"),
    }


def accelerate_safetensors(state):
    projection, numbered = parts(state)
    return {
        **named(numbered, "unet"),
        "unet.mid_block.attentions.0.norm.weight": torch.ones(4),
        **{f"image_proj_model.{n}": t for n, t in projection.items()},
    }


def by_name(state):
    projection, numbered = parts(state)
    return {**{f"image_proj.{n}": t for n, t in projection.items()}, **named(numbered, "ip_adapter")}


def several_processes(state):
    return {f"module.{name}": tensor for name, tensor in accelerate_bin(state).items()}


WAYS = [accelerate_bin, accelerate_safetensors, by_name, several_processes]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["plain", "plus", "mip"])
def test_a_training_checkpoint_is_the_published_file(kind, way, tmp_path):
    state = plain(
        kind == "mip", resampler(CONTEXT, embed=32, dim=128, inner=128, tokens=4, depth=1) if kind == "plus" else None
    )
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in way(state).items()}, path)
    found, expected = read_adapter(path, "model.safetensors"), build(state, "model.safetensors")
    assert found.spec == expected.spec and found.spec.family == ("mip_adapter" if kind == "mip" else "ip_adapter")
    for ours, theirs in ((found.projection, expected.projection), (found.layers, expected.layers)):
        ours, theirs = ours.state_dict(), theirs.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_layers_are_in_the_order_of_the_unets_processors():
    """Down, up, mid, and numbers as numbers: block 10 comes after block 2."""
    from troupe.model_patches.checkpoints.trained_ip import published_layout

    order = [
        "down_blocks.2.attentions.0",
        "down_blocks.10.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.1.attentions.10",
        "mid_block.attentions.0",
    ]
    given = {
        f"ip_adapter.{place}.transformer_blocks.{k}.attn2.processor.to_k_ip.weight": torch.full((1,), 10.0 * i + k)
        for i, place in enumerate(order)
        for k in (0, 1)
    }
    found = published_layout(dict(sorted(given.items())), "x")
    assert [found[f"ip_adapter.{2 * j + 1}.to_k_ip.weight"].item() for j in range(10)] == [
        10.0 * i + k for i in range(5) for k in (0, 1)
    ]


@pytest.mark.parametrize("prefix", ["image_proj", "image_proj_model"])
def test_half_a_file_is_refused_with_the_way_out(prefix):
    projection, _ = parts(plain())
    with pytest.raises(
        CheckpointError,
        match="found only the photos' half, 4 tensors. The conversion of a training checkpoint lost it: convert "
        "it again",
    ) as error:
        build({f"{prefix}.{name}": tensor for name, tensor in projection.items()}, "x.bin")
    assert "download" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_that_is_missing_is_named(way):
    state = {
        name: tensor
        for name, tensor in way(plain()).items()
        if not ("adapter_modules.3." in name or places()[1] in name) or "to_v" not in name
    }
    with pytest.raises(CheckpointError, match="ip_adapter.3.to_v_ip.weight"):
        build(state, "x.bin")


def test_published_files_are_left_alone():
    from troupe.model_patches.checkpoints.trained_ip import published_layout

    for state in (
        plain(),
        {name.replace("ip_adapter.", "adapter_modules."): tensor for name, tensor in plain().items()},
    ):
        assert published_layout(state, "x") is state
