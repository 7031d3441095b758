"""Compiled models: the host's own node, before or after ours.

One graph, made once, and the picture of the model that is not compiled.
"""

import shutil
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")
KINDS = [
    "relevance",
    "text_to_weight",
    "regions",
    "ranges",
    "recorded",
    "mm_diff",
    "mm_diff, delayed",
    "text",
    "text_image",
    "patches",
    "decay",
]
RUN = dict(size=(8, 8), steps=5)


@pytest.fixture(autouse=True)
def compiler(host):
    """Counts what is compiled."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield SimpleNamespace(
        graphs=lambda: counters["stats"]["unique_graphs"], breaks=lambda: dict(counters["graph_break"])
    )
    torch._dynamo.reset()


def plain(kind):
    from support.host import tiny_models

    return tiny_models.micro_model(
        "SDXL" if kind.startswith("mm_diff") else "SD15",
        model_channels=64,
        levels=2 if kind.startswith("mm_diff") else 1,
    )


def applied(kind, patcher):
    """(model, positive, negative) with references on a patcher."""
    from support.host.small_casts import settings, stage
    from support.host.small_gated_casts import GatedStage, gated_adapter
    from support.host.small_mm_diff import mm_diff_scene
    from troupe.model_patches.binding.settings import GatedSettings
    from troupe.model_patches.hosts.comfyui.sampling.record import record_relevance

    if kind.startswith("mm_diff"):
        return mm_diff_scene(kind.endswith("delayed"), patcher)[:3]
    st = stage(patcher=patcher, text_gain=kind == "text_to_weight")
    if kind in ("text", "text_image", "patches", "decay"):
        st = GatedStage(patcher, gated_adapter(patcher, "text" if kind == "decay" else kind), st.positive, st.negative)
        return st.apply(
            st.references(2, weights=[1.0, 0.6]),
            GatedSettings(0.8, **(dict(end_percent=0.1, decay_percent=0.9) if kind == "decay" else {})),
        )
    region = torch.zeros(32, 32)
    region[:16] = 1
    regions, ranges = (
        [region, None] if kind == "regions" else None,
        [(0.0, 0.5), (0.2, 1.0)] if kind == "ranges" else None,
    )
    model, positive, negative = st.apply(
        st.references(2, regions=regions, ranges=ranges), settings(background=0.5, sharpness=2.0)
    )
    return record_relevance(model, "all")[0] if kind == "recorded" else model, positive, negative


def compiled(model, backend):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = model.clone()
    set_torch_compile_wrapper(model, backend=backend)
    return model


def both(kind, order, backend):
    """((model, positive, negative) as it is, the same compiled)."""
    patcher = plain(kind)
    model, *prompts = applied(kind, patcher)
    if order == "after":
        return (model, *prompts), (compiled(model, backend), *prompts)
    return (model, *prompts), applied(kind, compiled(patcher, backend))


def test_the_host_alone_makes_one_graph(compiler):
    """What the others are measured by."""
    from support.host.small_casts import ksample, stage

    st = stage(patcher=plain("host"))
    model = compiled(st.patcher, "eager")
    for _ in range(2):
        ksample(model, st.positive, st.negative, **RUN)
        assert (compiler.graphs(), compiler.breaks()) == (1, {})


@pytest.mark.parametrize(
    "kind, order", [(kind, "after") for kind in KINDS] + [("text_to_weight", "before"), ("patches", "before")]
)
def test_references_make_one_graph_too(kind, order, compiler):
    """No step, and no second run, compiles anything again.

    Where a run ends at scale 0, its last step is the plain model's graph.
    """
    from support.host.small_casts import ksample

    graphs = 2 if kind == "decay" else 1
    model, made = both(kind, order, "eager")
    expected = ksample(*model, **RUN)
    for _ in range(2):
        torch.testing.assert_close(ksample(*made, **RUN), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert (compiler.graphs(), compiler.breaks()) == (graphs, {})


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None,
    reason="the compiler's default backend needs a C++ compiler",
)
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("kind", ["text_to_weight", "patches"])
def test_the_hosts_node_with_its_default_backend(kind, order, compiler):
    from comfy_extras.nodes_torch_compile import TorchCompileModel
    from support.host.small_casts import error, ksample

    def node(model):
        return TorchCompileModel.execute(model, "inductor").result[0]

    patcher = plain(kind)
    model, positive, negative = applied(kind, patcher)
    expected, without = (
        ksample(model, positive, negative, **RUN),
        ksample(patcher, *[[p] for p in (positive[0], negative[0])], **RUN),
    )
    made, positive, negative = (node(model), positive, negative) if order == "after" else applied(kind, node(patcher))
    for _ in range(2):
        assert error(ksample(made, positive, negative, **RUN), expected, without) < 1e-3
        assert (compiler.graphs(), compiler.breaks()) == (1, {})


@pytest.mark.parametrize("topology", ["sd15_full_topology", "sdxl_vega_topology"])
def test_what_layers_share_is_made_before_the_first_of_them(topology, monkeypatch):
    """On the block layouts of the real models, at an odd size: nothing is made for the first time in a layer, which
    could not be compiled.
    """
    import comfy.sd
    from comfy.patcher_extension import WrappersMP
    from support.host import tiny_models
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.binding import limits
    from troupe.model_patches.hosts.comfyui.sampling import record
    from troupe.model_patches.relevance import sums

    state = {
        k.removeprefix("model.diffusion_model."): v
        for k, v in tiny_models.build_unet_sd(topology, dtype=torch.float32).items()
    }
    st = stage(patcher=comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float32}))
    grids, rooms, inside = [], [], []
    made, room = limits.limits_on_grid, sums.LimitedSums.room
    monkeypatch.setattr(
        limits, "limits_on_grid", lambda *given: (grids.append((given[2], bool(inside))), made(*given))[1]
    )
    monkeypatch.setattr(
        sums.LimitedSums,
        "room",
        lambda self, *key: (rooms.append((key[0], bool(inside), key in self._sums)), room(self, *key))[1],
    )

    def within(executor, *args, **kwargs):
        inside.append(1)
        found = executor(*args, **kwargs)
        inside.clear()
        return found

    region = torch.zeros(32, 32)
    region[:16] = 1
    model, positive, negative = st.apply(st.references(2, regions=[region, None]), settings())
    model, _ = record.record_relevance(model, "all")
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "within", within)
    ksample(model, positive, negative, size=(25, 13), steps=1)
    seen = {grid for grid, within_unet, _ in rooms if within_unet}
    assert seen == {grid for grid, _ in grids} and len(seen) == (4 if topology.startswith("sd15") else 2)
    assert not any(within_unet for _, within_unet in grids) and all(
        there for _, within_unet, there in rooms if within_unet
    )
