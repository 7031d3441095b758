"""Our gated layers in all sixteen places of a whole UNet, against the stored predictions of the official
Subject-Diffusion and GLIGEN models.

The UNet around them is diffusers'; for GLIGEN its names are turned into the published ones, since the stored weights
hang on them.
"""

import re
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from support.golden_subject_diffusion import golden, parameter, published_name
from torch import nn
from troupe.model_patches.encoders.fuser import GatedFuser
from troupe.model_patches.encoders.grounding import TextImagePositionNet

CONTEXT, WIDTHS, TIMESTEP = 48, (32, 64, 128, 128), 501
GRIDS = ("8x8", "8x16")


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small are slower on several threads, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class InPlace(GatedFuser):
    """The fuser as diffusers' blocks call theirs: objects every time."""

    scale = 1.0

    def forward(self, x, objects):
        return super().forward(x, self.project(objects), self.scale)


class Given(nn.Module):
    """In the place of diffusers' position net: what is given are object tokens already."""

    def forward(self, objects):
        return objects


@cache
def unet(heads: tuple[int, ...], published, **settings) -> UNet2DConditionModel:
    """A micro UNet with our layers and the generator's sharp weights; `published` gives the name that the official
    model has for a diffusers name.
    """
    model = UNet2DConditionModel(
        block_out_channels=WIDTHS,
        cross_attention_dim=CONTEXT,
        attention_head_dim=list(heads),
        attention_type="gated",
        **settings,
    )
    model.position_net = Given()
    places = [name for name, module in model.named_modules() if name.endswith(".fuser")]
    assert len(places) == 16
    for name in places:
        block = model.get_submodule(name.removesuffix(".fuser"))
        block.fuser = InPlace(block.attn1.query_dim, CONTEXT, block.attn1.heads)
    model.load_state_dict(
        {
            name: parameter(published(published_name(name)), tuple(tensor.shape), "sharp")
            for name, tensor in model.state_dict().items()
        }
    )
    return model.requires_grad_(False).eval()


def same_name(name: str) -> str:
    """Subject-Diffusion's UNet is diffusers' own."""
    return name


def predict(
    model: UNet2DConditionModel, x: torch.Tensor, context: torch.Tensor, objects: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    for module in model.modules():
        if isinstance(module, InPlace):
            module.scale = scale
    return model(x, TIMESTEP, context, cross_attention_kwargs={"gligen": {"objects": objects}}).sample


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * expected.abs().max().item())


@pytest.mark.parametrize("grid", GRIDS)
def test_subject_diffusions_unet(grid):
    """Five channels, linear projections; row 2 of the batch has objects and a mask of zeros: the uncond branch."""
    g = golden("unet")
    model = unet((1, 2, 4, 4), same_name, in_channels=5, use_linear_projection=True)
    x, context, objects = (g[f"{grid}.{name}"] for name in ("x", "context", "objs"))
    assert_same(predict(model, x, context, objects), g[f"{grid}.out.sharp"])
    assert (predict(model, x, context, objects.roll(1, 0)) - g[f"{grid}.out.sharp"]).abs().max() > 0.01, (
        "objects have no effect"
    )


GLIGEN_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def gligen_name(name: str) -> str:
    """A diffusers UNet's tensor under its name in the published GLIGEN files (LDM names)."""
    name = re.sub(r"(?<=resnets\.\d\.)(\w+)", lambda m: GLIGEN_RESNET[m[0]], name)
    rules = (
        (r"^conv_in\.", lambda m: "input_blocks.0.0."),
        (r"^conv_norm_out\.", lambda m: "out.0."),
        (r"^conv_out\.", lambda m: "out.2."),
        (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
        (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op"),
        (
            r"^down_blocks\.(\d)\.(resnets|attentions)\.(\d)",
            lambda m: f"input_blocks.{3 * int(m[1]) + int(m[3]) + 1}.{int(m[2] == 'attentions')}",
        ),
        (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^mid_block\.attentions\.0", lambda m: "middle_block.1"),
        (r"^up_blocks\.(\d)\.upsamplers\.0", lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{1 if m[1] == '0' else 2}"),
        (
            r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)",
            lambda m: f"output_blocks.{3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}",
        ),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.mark.parametrize("grid", GRIDS)
def test_gligens_unet_with_text_image_boxes(grid):
    g = golden("gligen")
    net = TextImagePositionNet(24, CONTEXT)
    net.load_state_dict(
        {
            name: parameter(f"position_net.{published_name(name)}", tuple(tensor.shape), "sharp")
            for name, tensor in net.state_dict().items()
        }
    )
    with torch.no_grad():
        objects = net(
            *(g[f"small.{name}"] for name in ("boxes", "masks", "text_masks", "image_masks", "text", "image"))
        )
    model = unet((8,) * 4, gligen_name)
    x, context = g[f"unet.{grid}.x"], g[f"unet.{grid}.context"]
    assert_same(predict(model, x, context, objects), g[f"unet.{grid}.out.alpha1"])
    assert (g[f"unet.{grid}.out.alpha1"] - g[f"unet.{grid}.out.alpha0"]).abs().max() > 0.01, (
        "the stored layers have no effect"
    )
    assert_same(predict(model, x, context, objects, scale=0.0), g[f"unet.{grid}.out.alpha0"])
