"""Our boxes, gated layers and object tokens against the official Subject-Diffusion and GLIGEN code's stored outputs."""

import math
from dataclasses import replace

import pytest
import torch
from support.golden_subject_diffusion import KINDS, TOLERANCE, filled, golden, normal, published_name
from torch import nn
from troupe.model_patches.attention.box_mask import box_mask
from troupe.model_patches.attention.fourier import box_fourier, box_frequencies
from troupe.model_patches.attention.gated import ObjectTokens, gated_residual, scale_at, weighted
from troupe.model_patches.attention.guidance import subject_guidance
from troupe.model_patches.bases import PIXELS_PER_CELL
from troupe.model_patches.encoders.fuser import FuserFeedForward, GatedFuser, published_heads
from troupe.model_patches.encoders.grounding import (
    GroundingNet,
    TextImagePositionNet,
    TextPositionNet,
    to_text_space,
)
from troupe.model_patches.encoders.leaf_parameter import LeafParameter, module_name
from troupe.model_patches.encoders.mlp import MLP
from troupe.model_patches.encoders.projections import MisshapenTensor

FUSERS = {"d64h1": (64, 32, 1), "d40h8": (40, 24, 8), "d128h2": (128, 48, 2)}  # width, context, heads


def close(found: torch.Tensor, expected: torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), **(tolerance or TOLERANCE))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# ---- boxes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fourier_mlp", "gligen"])
def test_box_embedding_is_the_official_one(name):
    g = golden(name)
    close(box_fourier(g["fourier.boxes"]), g["fourier.out8"])
    if "fourier.out3" in g:
        close(box_fourier(g["fourier.boxes"], 3), g["fourier.out3"])
        close(box_frequencies(), g["fourier.freqs8"])


def test_box_embedding_is_float32_whatever_comes_in():
    for dtype in (torch.float16, torch.float64):
        boxes = golden("fourier_mlp")["fourier.boxes"].to(dtype)
        assert box_fourier(boxes).dtype == torch.float32
        assert torch.equal(box_fourier(boxes), box_fourier(boxes.float()))


@pytest.mark.parametrize("tag", ["one", "two"])
def test_mask_channel_is_the_official_one(tag):
    """Rows of the stored batch: text, image, uncond (zeros).

    The box of `one` is read off the stored mask itself: any edge within a cell.
    """
    stored = golden("pipeline")[f"{tag}.mask_latent"]
    if tag == "two":
        boxes = torch.tensor([[50, 100, 200, 400], [300, 100, 500, 400]]) / 512
    else:
        rows, columns = (torch.nonzero(stored[0, 0].eq(0).any(axis)).flatten() for axis in (1, 0))
        boxes = (
            torch.tensor([[8 * columns[0] - 7, 8 * rows[0], 8 * columns[-1] + 1, 8 * rows[-1] + 8], [0, 0, 0, 0]]) / 512
        )
    found = box_mask(boxes, (64, 64), PIXELS_PER_CELL)
    assert torch.equal(found, stored[0, 0].float()) and torch.equal(found, stored[1, 0].float())
    assert not stored[2].any()


def test_inpainting_mask_is_the_official_one():
    """GLIGEN's differs from Subject-Diffusion's only in its edges, which are whole latent cells, cut off."""
    g = golden("gligen")
    boxes = (g["inpaint_mask.boxes"] * 64).trunc() / 64
    assert torch.equal(box_mask(boxes, (64, 64), PIXELS_PER_CELL).unsqueeze(1), g["inpaint_mask.out"].float())


@pytest.mark.parametrize("grid", [(8, 8), (6, 10), (13, 21)])
def test_a_cell_is_inside_where_its_first_pixel_is(grid):
    h, w = grid
    box = (16, 8, 8 * w - 15, 41)  # pixels
    mask = box_mask(
        torch.tensor([[box[0] / (8 * w), box[1] / (8 * h), box[2] / (8 * w), box[3] / (8 * h)]]), grid, PIXELS_PER_CELL
    )
    expected = [
        [0.0 if box[0] <= 8 * x < box[2] and box[1] <= 8 * y < box[3] else 1.0 for x in range(w)] for y in range(h)
    ]
    assert mask.tolist() == expected and 0.0 in mask


def test_edges_are_whole_pixels_whatever_the_picture_size():
    """Every pixel edge, written as a fraction in float32, finds its cell again."""
    for cells in range(1, 200):
        edges = torch.arange(cells) * 8
        boxes = torch.zeros(cells, 1, 4)
        boxes[:, 0, 0], boxes[:, 0, 2], boxes[:, 0, 3] = edges / (8 * cells), 1.0, 1.0
        assert torch.equal(box_mask(boxes, (1, cells), PIXELS_PER_CELL).sum(-1).flatten(), torch.arange(cells).float())


def test_no_box_is_everywhere_outside_and_the_whole_picture_everywhere_inside():
    assert box_mask(torch.zeros(2, 3, 4), (6, 10), PIXELS_PER_CELL).eq(1).all()
    assert box_mask(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), (6, 10), PIXELS_PER_CELL).eq(0).all()


# ---- object tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tag", "module"),
    [("mlp1024", lambda: MLP(1024, 1024, 1024)), ("mlp32res", lambda: MLP(32, 32, 48, residual=True))],
    ids=["mlp1024", "mlp32res"],
)
def test_mlp_is_the_official_one(tag, module, kind):
    g = golden("fourier_mlp")
    close(filled(module(), kind)(g[f"{tag}.x"]), g[f"{tag}.out.{kind}"])


@pytest.mark.parametrize("use_bbox", [True, False], ids=["bbox", "free"])
@pytest.mark.parametrize(
    ("tag", "kind"), [(tag, kind) for tag in ("n1", "n2", "n3") for kind in KINDS] + [("real", "sharp")]
)
def test_grounding_net_is_the_official_one(tag, use_bbox, kind):
    g = golden("grounding_net")
    net = filled(
        GroundingNet(1280, 1024, 1024, tokens=2) if tag == "real" else GroundingNet(48, 32, 40, tokens=6), kind
    )
    close(
        net(g[f"{tag}.embeds"], g[f"{tag}.mask"], g[f"{tag}.boxes"], use_bbox),
        g[f"{tag}.out.bbox{int(use_bbox)}.{kind}"],
    )


def test_an_absent_object_is_null_whatever_its_photo():
    g = golden("grounding_net")
    net = filled(GroundingNet(48, 32, 40, tokens=6), "sharp")
    present = torch.tensor([[True, False], [True, True], [False, True]])
    out = net(g["n2.embeds"], present, g["n2.boxes"]).unflatten(1, (2, 6))
    noise = torch.where(present[..., None, None], g["n2.embeds"], torch.nan)
    assert torch.equal(net(noise, present, g["n2.boxes"]).unflatten(1, (2, 6)), out)
    assert torch.equal(out[0, 1], out[2, 0]) and not torch.equal(out[0, 1], out[1, 1])


def test_object_tokens_of_the_official_run():
    """From the stored CLIP pixels through the run's fake CLIP: the batch is text, image, uncond, and uncond's objects
    are zeros, not null.
    """
    g = golden("pipeline")
    net = filled(GroundingNet(40, 32, 32, tokens=4), "sharp", "proj.")
    for tag, n in (("one", 1), ("two", 2)):
        patches = torch.zeros(1, 2, 4, 40)
        patches[0, :n] = (g[f"{tag}.clip_pixels_pool8"].flatten(1) @ normal("input:clip.B", 192, 160) * 0.1).view(
            n, 4, 40
        )
        boxes = torch.tensor([[[50, 100, 200, 400], [300, 100, 500, 400]]]) / 512
        found = net(patches, torch.tensor([[True, n == 2]]), boxes, use_bbox=False)[0]
        for row, expected in enumerate((found, found, torch.zeros_like(found))):
            close(expected, g[f"{tag}.objs_3branch"][row], rtol=1e-3, atol=4e-3)


def position_net(tag: str, image: bool, kind: str) -> nn.Module:
    cls = TextImagePositionNet if image else TextPositionNet
    return filled(cls(768, 768) if tag == "real" else cls(24, 20), kind)


@pytest.mark.parametrize(("tag", "kind"), [("small", "plain"), ("small", "sharp"), ("real", "sharp")])
@pytest.mark.parametrize("image", [False, True], ids=["text", "textimage"])
def test_position_net_is_the_official_one(tag, image, kind):
    g, name = golden("gligen"), f"{tag}.{'textimage' if image else 'text'}_net"
    net = position_net(tag, image, kind)
    boxes, masks, text, text_masks, photo, photo_masks = (
        g[f"{tag}.{n}"] for n in ("boxes", "masks", "text", "text_masks", "image", "image_masks")
    )
    found = net(boxes, masks, text_masks, photo_masks, text, photo) if image else net(boxes, masks, text)
    close(found, g[f"{name}.out.{kind}"])
    close(net.null(torch.full_like(text[:1, :2], torch.nan)), g[f"{name}.null.{kind}"])


def test_image_features_go_to_the_text_space():
    g = golden("gligen")
    found = to_text_space(g["project.x"], g["project.matrix"])
    close(found, g["project.out_norm28p7"])
    close(found.norm(dim=-1), torch.full((3,), 28.7))
    assert to_text_space(torch.zeros(2, 16), g["project.matrix"]).eq(0).all()


# ---- the gated layer -------------------------------------------------------------------------------------------------


def fuser(tag: str, kind: str = "sharp") -> GatedFuser:
    return filled(GatedFuser(*FUSERS[tag]), kind)


def naive(layer: GatedFuser, x: torch.Tensor, objects: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """As published: all tokens attend to all, the objects' results are dropped. x [B, N, C], objects [B, M, D]."""
    n, c = x.shape[1:]
    s = layer.norm1(torch.cat((x, layer.linear(objects)), 1))
    q, k, v = (
        to(s).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for to in (layer.attn.to_q, layer.attn.to_k, layer.attn.to_v)
    )
    p = (q @ k.transpose(-1, -2) / math.sqrt(c // layer.heads)).softmax(-1)
    x = (
        x
        + scale * torch.tanh(layer.alpha_attn.weight) * layer.attn.to_out[0]((p @ v).transpose(1, 2).flatten(2))[:, :n]
    )
    value, gate = layer.ff.net[0].proj(layer.norm2(x)).chunk(2, -1)
    return x + scale * torch.tanh(layer.alpha_dense.weight) * layer.ff.net[2](value * nn.functional.gelu(gate))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tag", FUSERS)
def test_fuser_is_the_official_one(tag, kind):
    g, ours, layer = golden("fuser"), golden("gligen"), fuser(tag, kind)
    x, objects = g[f"{tag}.x"], layer.project(g[f"{tag}.objs"])
    close(layer(x, objects), g[f"{tag}.out.{kind}"])
    close(layer(x, objects, 0.3), g[f"{tag}.out_scale0p3.{kind}"])
    close(layer(x, layer.project(torch.zeros_like(g[f"{tag}.objs"]))), g[f"{tag}.out_zero_objs.{kind}"])
    close(layer(x, objects), ours[f"fuser.{tag}.out.{kind}"])
    close(layer(x, objects, 0.3), ours[f"fuser.{tag}.out_scale0p3.{kind}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tag", FUSERS)
def test_keys_and_values_alone_are_the_published_form(tag, dtype):
    g, layer = golden("fuser"), fuser(tag).to(dtype)
    x, objects = g[f"{tag}.x"].to(dtype), g[f"{tag}.objs"].to(dtype)
    for scale in (1.0, 0.3, 2.0):
        close(layer(x, layer.project(objects), scale), naive(layer, x, objects, scale), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tag", FUSERS)
def test_half_precision_stays_close(tag, dtype):
    g, layer = golden("fuser"), fuser(tag).to(dtype)
    out = layer(g[f"{tag}.x"].to(dtype), layer.project(g[f"{tag}.objs"].to(dtype)))
    assert out.dtype == dtype and relative(out, g[f"{tag}.out.sharp"]) < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_object_tokens_in_half_precision_stay_close(dtype):
    """The weights in half precision, and what goes in as well: the positions are still float32 until they are used."""
    g = golden("grounding_net")
    net = filled(GroundingNet(48, 32, 40, tokens=6), "sharp").to(dtype)
    assert relative(net(g["n3.embeds"].to(dtype), g["n3.mask"], g["n3.boxes"]), g["n3.out.bbox1.sharp"]) < 2e-2
    g, net = golden("gligen"), position_net("small", True, "sharp").to(dtype)
    out = net(
        g["small.boxes"],
        g["small.masks"],
        g["small.text_masks"],
        g["small.image_masks"],
        g["small.text"].to(dtype),
        g["small.image"].to(dtype),
    )
    assert relative(out, g["small.textimage_net.out.sharp"]) < 2e-2


def test_objects_projected_in_float32_serve_a_layer_in_half_precision():
    g, layer = golden("fuser"), fuser("d40h8")
    objects, x = layer.project(g["d40h8.objs"]), g["d40h8.x"].bfloat16()
    out = layer.to(torch.bfloat16)(x, objects)
    assert out.dtype == torch.bfloat16 and relative(out, g["d40h8.out.sharp"]) < 2e-2


def test_a_closed_gate_or_no_scale_gives_back_what_came_in():
    g, layer = golden("fuser"), fuser("d40h8")
    x = g["d40h8.x"]
    assert layer(x, layer.project(g["d40h8.objs"]), 0.0) is x
    for gate in (layer.alpha_attn, layer.alpha_dense):
        gate.weight.zero_()
    assert layer(x, layer.project(g["d40h8.objs"])) is x


@pytest.mark.parametrize("closed", ["alpha_attn", "alpha_dense"])
def test_one_closed_gate_leaves_the_other_half(closed):
    g, layer = golden("fuser"), fuser("d40h8")
    getattr(layer, closed).weight.zero_()
    x, objects = g["d40h8.x"], g["d40h8.objs"]
    close(layer(x, layer.project(objects)), naive(layer, x, objects))
    (layer.attn.to_q if closed == "alpha_attn" else layer.ff.net[2]).weight.fill_(torch.nan)
    assert layer(x, layer.project(objects)).isfinite().all(), "a closed branch is computed"


def test_a_branch_is_not_called_in_vain():
    def never(_):
        raise AssertionError("called")

    x = torch.randn(2, 3)
    assert gated_residual(x, never, 0.0) is x and gated_residual(x, never, 0.5, 0.0) is x
    close(gated_residual(x, torch.sin, 0.5, 0.5), x + 0.25 * x.sin())


def test_gates_that_are_trained_have_gradients_also_at_0():
    """Trainings begin with closed gates: a closed one must learn from what its branch would add. As numbers, gates have
    no gradients, and nothing else changes.
    """
    g, layer = golden("fuser"), fuser("d40h8").double()
    x, objects = g["d40h8.x"].double(), g["d40h8.objs"].double()
    for values in ((0.0, 0.0), (0.7, -0.4)):
        gates = (layer.alpha_attn.weight, layer.alpha_dense.weight)
        for gate, value in zip(gates, values, strict=True):
            gate.fill_(value)
        with torch.enable_grad():
            for gate in gates:
                gate.requires_grad_(True)
            (trained,) = torch.autograd.grad(layer(x, layer.project(objects)).square().sum(), gates[:1])
            (dense,) = torch.autograd.grad(layer(x, layer.project(objects)).square().sum(), gates[1:])
        for gate in gates:
            gate.requires_grad_(False)
        for gate, gradient in zip(gates, (trained, dense), strict=True):
            ends = []
            for step in (1e-5, -2e-5):  # there, and to the other side
                gate.add_(step)
                ends.append(naive(layer, x, objects).square().sum())
            gate.add_(1e-5)
            torch.testing.assert_close(gradient, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-6)
            assert gradient.abs() > 1e-3


def test_the_order_of_objects_does_not_matter():
    g, layer = golden("fuser"), fuser("d64h1")
    x, objects = g["d64h1.x"].double(), g["d64h1.objs"].double()
    layer = layer.double()
    shuffled = objects[:, torch.randperm(objects.shape[1], generator=torch.Generator().manual_seed(1))]
    out = layer(x, layer.project(objects))
    torch.testing.assert_close(layer(x, layer.project(shuffled)), out, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(x, layer.project(objects.flip(0))), out), "objects have no effect"


def test_rows_do_not_see_each_other_and_groups_share_their_objects():
    g, layer = golden("fuser"), fuser("d128h2")
    x, objects = g["d128h2.x"], g["d128h2.objs"]
    # rows 0, 1 with objects 0, rows 2, 3 with objects 1
    both = layer(torch.cat((x, x)), layer.project(objects.repeat_interleave(2, 0)))
    close(layer(torch.cat((x, x)), layer.project(objects)), both, rtol=1e-6, atol=1e-6)
    for row in range(4):
        close(
            layer(x[row % 2 :][:1], layer.project(objects[row // 2 :][:1])), both[row : row + 1], rtol=1e-5, atol=1e-6
        )
    close(layer(x, layer.project(objects[:1])), both[:2], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="3 groups"):
        layer(x, layer.project(torch.cat((objects, objects[:1]))))


def test_zero_objects_are_one_token_that_counts_as_many():
    """What a host may use for the uncond rows: M equal tokens are one key with log M on its logit."""
    g, layer = golden("fuser"), fuser("d40h8").double()
    x, m = g["d40h8.x"].double(), g["d40h8.objs"].shape[1]
    objects = layer.project(torch.zeros(1, m, 24, dtype=torch.float64))
    close(objects.keys, objects.keys[:, :1].expand_as(objects.keys), rtol=1e-12, atol=1e-12)
    normed = layer.norm1(x)
    q, k, v = (
        to(normed).unflatten(-1, (8, 5)).transpose(1, 2) for to in (layer.attn.to_q, layer.attn.to_k, layer.attn.to_v)
    )
    key, value = (t[:, :1].unflatten(-1, (8, 5)).transpose(1, 2) for t in (objects.keys, objects.values))
    logits = torch.cat((q @ k.transpose(-1, -2), q @ key.transpose(-1, -2)), -1) / math.sqrt(5)
    logits[..., -1] += math.log(m)
    folded = (logits.softmax(-1) @ torch.cat((v, value.expand(2, -1, -1, -1)), 2)).transpose(1, 2).flatten(2)
    x1 = x + objects.attention_gate * layer.attn.to_out[0](folded)
    close(x1 + objects.dense_gate * layer.ff(layer.norm2(x1)), g["d40h8.out_zero_objs.sharp"])


def test_weights_scale_values():
    objects = fuser("d40h8").project(golden("fuser")["d40h8.objs"])
    ones = weighted(objects, torch.ones(18))
    assert torch.equal(ones.keys, objects.keys) and torch.equal(ones.values, objects.values)
    mixed = weighted(objects, torch.tensor([0.0] * 6 + [0.5] * 6 + [1.0] * 6))
    assert torch.equal(mixed.keys, objects.keys)
    assert torch.equal(
        mixed.values, torch.cat((objects.values[:, :6] * 0, objects.values[:, 6:12] * 0.5, objects.values[:, 12:]), 1)
    )
    assert (mixed.attention_gate, mixed.dense_gate) == (objects.attention_gate, objects.dense_gate)


def test_a_step_reads_nothing_from_the_device():
    """On the meta device there are no values to read, so a step that looked at one (and made a GPU wait) would
    raise.
    """
    g, layer = golden("fuser"), fuser("d40h8")
    objects, x = layer.project(g["d40h8.objs"]), g["d40h8.x"].to("meta")
    objects = ObjectTokens(
        objects.keys.to("meta"), objects.values.to("meta"), objects.attention_gate, objects.dense_gate
    )
    weights = torch.ones(18, device="meta")
    assert layer.to("meta")(x, weighted(objects, weights), 0.5).shape == x.shape
    subject_guidance(x, x, x, 7.5, 1.5)


class PlainAttention(nn.Module):
    """Attention with published names, spelled out."""

    def __init__(self, width: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(n, width, bias=False) for n in (width, context_dim, context_dim))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x, context):
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out[0](
            ((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(1, 2).flatten(2)
        )


class PlainBlock(nn.Module):
    """A transformer block with the fuser between self- and cross-attention."""

    def __init__(self, width: int, context_dim: int, heads: int):
        super().__init__()
        self.attn1, self.attn2 = PlainAttention(width, width, heads), PlainAttention(width, context_dim, heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.ff = FuserFeedForward(width)
        self.fuser = GatedFuser(width, context_dim, heads)

    def forward(self, x, context, objects):
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = self.fuser(x, self.fuser.project(objects))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", ["8x8", "6x10"])
def test_the_fuser_stands_between_self_and_cross_attention(grid, kind):
    g, ours, block = golden("block"), golden("gligen"), filled(PlainBlock(64, 48, 2), kind)
    out = block(g[f"{grid}.x"], g[f"{grid}.context"], g[f"{grid}.objs"])
    close(out, g[f"{grid}.out.{kind}"])
    if f"block.{grid}.out.{kind}" in ours:
        close(out, ours[f"block.{grid}.out.{kind}"])


# ---- when, and how the branches meet ---------------------------------------------------------------------------------

SCHEDULES = sorted(name for name in golden("gligen") if name.startswith("alphas."))


def stepwise(steps, hold, decay=0.0):
    """The scale of each step: published step counts are truncated, and a step of the fall has the value at its end."""
    end, fall = int(hold * steps) / steps, int(decay * steps) / steps
    return [scale_at(i / steps if i / steps < end else (i + 1) / steps, end, fall) for i in range(steps)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_scheduled_sampling_is_the_official_one(name):
    _, steps, rest = name.split(".", 2)
    hold, decay, _ = (float(part) for part in rest.split("_"))
    close(torch.tensor(stepwise(int(steps[1:]), hold, decay)), golden("gligen")[name], rtol=0, atol=1e-7)


def test_the_schedule_in_progress_is_the_schedule_in_steps():
    for steps, hold, decay in ((50, 0.5, 0.2), (20, 1.0, 0.0), (20, 0.0, 0.5), (40, 0.25, 0.75)):
        full, falling = int(hold * steps), int(decay * steps)
        published = ([1.0] * full + [(falling - 1 - i) / falling for i in range(falling)] + [0.0] * steps)[:steps]
        for i, scale in enumerate(published):
            at = i / steps
            assert scale_at(at if at < hold else (i + 1) / steps, hold, decay) == pytest.approx(scale, abs=1e-9)
    assert (
        scale_at(0.3, 0.3) == 0.0
        and scale_at(0.299, 0.3) == 1.0
        and scale_at(1.0, 1.0) == 1.0
        and scale_at(0.99, 0.3, 0.2) == 0.0
    )
    assert stepwise(10, 0.29, 0.39) == pytest.approx([1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0, 0, 0]), (
        "step counts are truncated"
    )
    assert stepwise(4, 1.0, 1.0) == [1.0] * 4 and stepwise(3, 0.0) == [0.0] * 3


@pytest.mark.parametrize("tag", ["one", "two"])
def test_three_branches_meet_as_in_the_official_run(tag):
    g = golden("pipeline")
    text, image, uncond = (g[f"{tag}.noise_{name}"] for name in ("text", "image", "uncond"))
    close(subject_guidance(text, image, uncond, 7.5, 1.5), g[f"{tag}.combined_g7p5_i1p5"])


# ---- published names -------------------------------------------------------------------------------------------------

MODULES = (
    (GatedFuser, {"width": 128, "context_dim": 768, "heads": 8}),
    (MLP, {"in_dim": 12, "out_dim": 20, "hidden_dim": 16}),
    (GroundingNet, {"feature_dim": 48, "out_dim": 32, "hidden_dim": 40, "tokens": 6, "frequencies": 4}),
    (TextPositionNet, {"feature_dim": 24, "out_dim": 20, "hidden_dim": 28, "frequencies": 8}),
    (TextImagePositionNet, {"feature_dim": 24, "out_dim": 20, "hidden_dim": 28, "frequencies": 3}),
)


def published(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's weights under the names of the published files."""
    return {published_name(name): tensor for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize(("cls", "widths"), MODULES, ids=lambda value: getattr(value, "__name__", ""))
def test_widths_are_read_off_the_published_names(cls, widths):
    state = published(cls(**widths))
    assert cls.widths(state) == widths
    cls(**widths).load_state_dict({module_name(name): tensor for name, tensor in state.items()})


@pytest.mark.parametrize(("cls", "widths"), MODULES, ids=lambda value: getattr(value, "__name__", ""))
def test_layers_are_the_hosts_and_bare_tensors_are_leaves(cls, widths):
    class Linear(nn.Linear):
        pass

    class LayerNorm(nn.LayerNorm):
        pass

    class Operations:
        pass

    Operations.Linear, Operations.LayerNorm = Linear, LayerNorm
    for module in cls(**widths, operations=Operations).modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, Linear | LayerNorm | LeafParameter) and not list(module.children())


def test_names_of_the_published_tensors():
    fuser_names = {
        "linear.weight",
        "linear.bias",
        "attn.to_q.weight",
        "attn.to_k.weight",
        "attn.to_v.weight",
        "attn.to_out.0.weight",
        "attn.to_out.0.bias",
        "ff.net.0.proj.weight",
        "ff.net.0.proj.bias",
        "ff.net.2.weight",
        "ff.net.2.bias",
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
        "alpha_attn",
        "alpha_dense",
    }
    assert set(published(GatedFuser(64, 32, 1))) == fuser_names
    mlp = {f"{layer}.{part}" for layer in ("layernorm", "fc1", "fc2") for part in ("weight", "bias")}
    assert set(published(MLP(8, 8, 8))) == mlp
    assert set(published(GroundingNet(8, 8, 8, 2))) == {f"linears_image.{name}" for name in mlp} | {
        "null_image_feature",
        "null_position_feature",
    }
    linears = {f"{n}.{part}" for n in (0, 2, 4) for part in ("weight", "bias")}
    assert set(published(TextPositionNet(8, 8))) == {f"linears.{name}" for name in linears} | {
        "null_positive_feature",
        "null_position_feature",
    }
    both = {f"linears_{half}.{name}" for half in ("text", "image") for name in linears}
    assert set(published(TextImagePositionNet(8, 8))) == both | {
        "null_text_feature",
        "null_image_feature",
        "null_position_feature",
    }
    assert (
        module_name("position_net.null_text_feature") == "position_net.null_text_feature.weight"
        and module_name("a.fuser.alpha_attn") == "a.fuser.alpha_attn.weight"
    )


@pytest.mark.parametrize(("width", "millions"), [(320, 1.97), (640, 7.22), (1280, 27.54)])
def test_a_layer_is_as_large_as_the_published_one(width, millions):
    with torch.device("meta"):
        layer = GatedFuser(width, 1024, published_heads(width, 1024))
    assert sum(p.numel() for p in layer.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_heads_of_published_layers():
    assert [published_heads(width, 1024) for width in (320, 640, 1280)] == [5, 10, 20]
    assert [published_heads(width, 768) for width in (320, 640, 1280)] == [8, 8, 8]
    assert [published_heads(width, 2048) for width in (640, 1280)] == [10, 20]


@pytest.mark.parametrize(
    ("cls", "name", "shape"),
    [
        (GatedFuser, "linear.weight", (100, 1024)),
        (GatedFuser, "linear.weight", (100, 768)),
        (GatedFuser, "linear.weight", (64,)),
        (GroundingNet, "null_position_feature", (1, 1, 6, 30)),
        (TextPositionNet, "null_position_feature", (30,)),
        (TextImagePositionNet, "null_text_feature", (0,)),
    ],
)
def test_a_misshapen_tensor_is_named(cls, name, shape):
    state = published(cls(**dict(MODULES)[cls])) | {name: torch.zeros(shape)}
    with pytest.raises(MisshapenTensor, match=name):
        cls.widths(state)


@pytest.mark.parametrize("rows", [2, 6])
def test_equal_tokens_are_one_that_counts_for_all(rows, monkeypatch):
    """Subject-Diffusion's objects of a negative prompt: all zeros before the layer, so one and the same after it."""
    from troupe.model_patches.attention import gated

    query, keys, values = torch.randn(3, rows, 10, 24)
    one, two, many = torch.randn(3, 1, 24), torch.randn(3, 1, 24), torch.randn(2, 40, 24)
    objects = gated.ObjectTokens(
        torch.cat((one[:1].expand(-1, 40, -1), many[:1])), torch.cat((two[:1].expand(-1, 40, -1), many[1:])), 0.5, 0.5
    )
    full = gated.gated_self_attention(query, keys, values, objects, 3)
    seen, original = [], gated.scaled_dot_product_attention
    monkeypatch.setattr(
        gated,
        "scaled_dot_product_attention",
        lambda q, k, v, attn_mask: seen.append(k.shape[2]) or original(q, k, v, attn_mask=attn_mask),
    )
    torch.testing.assert_close(
        gated.gated_self_attention(query, keys, values, replace(objects, equal=(True, False)), 3), full
    )
    assert seen == [keys.shape[1] + 1, keys.shape[1] + 40]


def test_slices_of_a_long_picture_are_the_whole(monkeypatch):
    """On a CPU the second half of a layer goes through in slices."""
    from troupe.model_patches.encoders import fuser

    g = golden("fuser")
    layer, x = filled(GatedFuser(*FUSERS["d40h8"]), "sharp"), g["d40h8.x"]
    objects, sizes = layer.project(g["d40h8.objs"]), []
    layer.ff.register_forward_hook(lambda module, given, found: sizes.append(found.shape[1]))
    monkeypatch.setattr(fuser, "SLICE", x.shape[1])
    whole = layer(x, objects)
    monkeypatch.setattr(fuser, "SLICE", 25)
    torch.testing.assert_close(layer(x, objects), whole, rtol=1e-5, atol=1e-6)
    assert sizes == [60, 25, 25, 10]
