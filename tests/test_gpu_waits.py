"""What a layer does in a step, played through on a GPU that is not there (tensors without numbers): no operation of it
waits for the GPU or leaves it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from troupe.model_patches.attention.decoupled import MANY_TOKENS, LayerTokens, image_delta
from troupe.model_patches.attention.gated import ObjectTokens
from troupe.model_patches.attention.merges import MERGES, Mixing
from troupe.model_patches.encoders.fuser import GatedFuser

ops = torch.ops.aten
WAITING = {
    ops._local_scalar_dense.default,
    ops.nonzero.default,
    ops.masked_select.default,
    ops._unique2.default,
    ops.equal.default,
    ops.lift_fresh.default,
}


class Watch(TorchDispatchMode):
    """Lists operations that wait for a GPU, take tensors from it, or bring some there."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)]
        given = {t.device.type for t in tensors if t.ndim}
        if function is ops.index.Tensor and any(t.dtype == torch.bool for t in tensors[1:]):
            self.seen.append(str(function))
        found = function(*args, **(kwargs or {}))
        made = {t.device.type for t in tree_leaves(found) if isinstance(t, torch.Tensor)}
        if function in WAITING or given and made and given != made:
            self.seen.append(str(function))
        return found


@pytest.fixture
def gpu():
    """Makes tensors of a size on a GPU that is only said to be there."""
    with FakeTensorMode():
        yield lambda *shape, dtype=torch.float16: torch.empty(shape, dtype=dtype, device="cuda")


def test_the_watch_sees_what_waits(gpu):
    x = gpu(4, dtype=torch.float32)
    mask = torch.zeros(4, dtype=torch.bool)
    for waits in (
        lambda: x.cpu(),
        lambda: x.to("cpu", non_blocking=True),
        lambda: torch.ones(3).to("cuda"),
        lambda: x + torch.ones(4).to(x),
        lambda: x[mask],
    ):
        with Watch() as watch, suppress(RuntimeError):  # what a mask lets through is not known without numbers
            waits()
        assert watch.seen, waits
    with pytest.raises(RuntimeError):
        float(x.sum())
    with Watch() as watch:
        (x * 2.0).softmax(0).to(torch.float16)
    assert not watch.seen


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("tokens", [4, 16, MANY_TOKENS + 1])
@pytest.mark.parametrize(
    "mixing",
    [
        *map(Mixing, MERGES),
        Mixing("relevance", 3.0, 0.2),
        Mixing("add", 1.0, 0.5),
    ],
    ids=str,
)
def test_image_attention_never_waits(gpu, mixing, tokens, gained, limited):
    g, b, n, c, m, names, heads = 2, 2, 64, 32, 3, 7, 4
    whole = torch.float32
    layer = LayerTokens(
        gpu(g, m * tokens, c), gpu(g, m * tokens, c), gpu(g, names, c), gpu(g, m, names, dtype=whole)
    ).prepared(heads)
    if limited:
        layer = replace(layer, valid_tokens=gpu(1, m * tokens, dtype=torch.bool))
    given = [
        gpu(g, b, n, c),
        layer,
        gpu(m, dtype=whole),
        heads,
        mixing,
        gpu(1, 1, m, n, dtype=whole) if limited else None,
        gpu(g, b, n, c),
        gpu(g, b, n) if gained else None,
    ]
    with Watch() as watch:
        found = image_delta(*given)
    assert (
        not watch.seen
        and found.device.type == "cuda"
        and found.shape == (g, b, n, heads, c // heads)
        and found.dtype == torch.float16
    )


@pytest.mark.parametrize("equal", [(), (True, False)])
@pytest.mark.parametrize("scale", ["a number", "a tensor"])
def test_a_gated_layer_never_waits(gpu, scale, equal):
    with torch.device("cuda"):
        fuser = GatedFuser(64, 32, 8).requires_grad_(False)
    objects = ObjectTokens(gpu(2, 30, 64), gpu(2, 30, 64), 0.5, 0.3, equal=equal)
    x, share = gpu(2, 100, 64, dtype=torch.float32), 0.7 if scale == "a number" else gpu(2, 1, 1, dtype=torch.float32)
    with Watch() as watch:
        found = fuser(x, objects, share)
    assert not watch.seen and found.device.type == "cuda" and found.shape == x.shape
