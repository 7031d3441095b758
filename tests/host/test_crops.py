"""Regions and boxes in runs that sample a part of the picture: the node is skipped with a warning, and nothing is
stretched over the part.
"""

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")
HIRES = {
    "1": {"class_type": "KSampler", "inputs": {}},
    "2": {"class_type": "KSampler", "inputs": {"latent_image": ["1", 0]}},
}
TILED = {
    "1": {"class_type": "KSampler", "inputs": {}},
    "2": {"class_type": "UltimateSDUpscale", "inputs": {"image": ["1", 0]}},
}


def left_half(kind: str) -> dict:
    from troupe.model_patches.subjects import Box

    region = torch.zeros(32, 32)
    region[:, :16] = 1
    return {"regions": [region]} if kind == "region" else {"boxes": [Box(0, 0, 0.5, 1)]}


def tile(model, positive, negative, denoise=0.3, size=(16, 16)):
    """What an upscaler runs on one of its tiles."""
    import nodes

    picture = {"samples": torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(3))}
    return nodes.common_ksampler(model, 1, 4, 1.0, "euler", "normal", positive, negative, picture, denoise=denoise)[0][
        "samples"
    ]


def effect(**how) -> float:
    """How much one subject in the left half changes a tile."""
    from support.host.small_casts import settings, stage

    kind, denoise, size = how.pop("kind", "region"), how.pop("denoise", 0.3), how.pop("size", (16, 16))
    st = stage()
    applied = st.apply(st.references(1, **({} if kind == "nowhere" else left_half(kind))), settings("uniform", **how))
    return float(
        (tile(*applied, denoise, size) - tile(st.patcher, st.positive, st.negative, denoise, size)).abs().max()
    )


@pytest.fixture
def running(host, monkeypatch):
    """`running(graph, node)`: the host's queue runs that graph, and the node in it."""
    import execution
    import server
    from comfy_execution.utils import CurrentNodeContext

    contexts = []

    def start(graph: dict, node: str) -> None:
        queue = execution.PromptQueue(SimpleNamespace(prompt_queue=None, queue_updated=lambda: None))
        queue.put((0, "a prompt", graph, {}, [], {}))
        queue.get(timeout=1)
        monkeypatch.setattr(server.PromptServer, "instance", SimpleNamespace(prompt_queue=queue), raising=False)
        contexts.append(CurrentNodeContext("a prompt", node))
        contexts[-1].__enter__()

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("kind", ["region", "box"])
@pytest.mark.parametrize("denoise", [0.3, 1.0])
def test_in_a_tile_of_an_upscaler_the_node_is_skipped_with_a_warning(kind, denoise, running, caplog):
    running(TILED, "2")
    assert effect(kind=kind, denoise=denoise) == 0.0
    assert (
        "UltimateSDUpscale (node 2) samples a part of the picture: regions and boxes of Apply Image "
        "Attention cannot be mapped to it" in caplog.text
    )
    assert "had no effect in this run" not in caplog.text, "why is told once"


def test_in_a_second_pass_over_the_whole_picture_it_acts(running, caplog):
    running(HIRES, "2")
    assert effect() > 1e-3
    assert "is skipped in this run" not in caplog.text


def test_without_regions_and_boxes_a_tile_is_like_any_picture(running):
    running(TILED, "2")
    assert effect(kind="nowhere") > 1e-3
    assert effect(kind="box", box_strength=0.0) > 1e-3, "a box that does not limit"


def test_the_user_has_the_last_word(running, caplog):
    running(TILED, "2")
    assert effect(in_crops="apply") > 1e-3
    running(HIRES, "2")
    assert effect(in_crops="skip") == 0.0 and "'in_crops' is 'skip'" in caplog.text
    assert effect(in_crops="skip", denoise=0.8) == 0.0


def test_what_limits_nobody_now_skips_nobody(running):
    """A box that has ended before this run begins; a subject with a region that is out."""
    from support.host.small_casts import settings, stage

    running(TILED, "2")
    assert effect(kind="box", box_end_percent=0.3) > 1e-3
    for out in (dict(weights=[0.0, 1.0]), dict(ranges=[(0.0, 0.3), (0.0, 1.0)])):
        st = stage()
        applied = st.apply(
            st.references(2, regions=[left_half("region")["regions"][0], None], **out), settings("uniform")
        )
        assert float((tile(*applied) - tile(st.patcher, st.positive, st.negative)).abs().max()) > 1e-3


def test_where_no_reference_comes_the_missing_wire_is_told(running, caplog):
    from support.host.small_casts import settings, stage

    running(TILED, "2")
    st = stage()
    model = st.apply(st.references(1, **left_half("region")), settings("uniform"))[0]
    tile(model, st.positive, st.negative)
    assert (
        "connect 'positive' of Apply Image Attention to the sampler" in caplog.text
        and "samples a part" not in caplog.text
    )


def test_sixteen_tiles_warn_once(running, caplog):
    from support.host.small_casts import settings, stage

    running(TILED, "2")
    st = stage()
    applied = st.apply(st.references(1, **left_half("region")), settings("uniform"))
    for _ in range(16):
        tile(*applied, size=(8, 8))
    assert (
        sum(
            "samples a part of the picture" in record.message and record.levelname == "WARNING"
            for record in caplog.records
        )
        == 1
    )


def test_a_picture_that_another_sampler_has_begun_is_made_from_noise(running):
    """The second of two KSampler (Advanced), as with a refiner: no noise is added to its latent."""
    from support.host.small_casts import settings, stage

    import nodes

    st = stage()
    begun = {"samples": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)) * 10}

    def second(model, positive, negative):
        given = ("enable", 1, 8, 1.0, "euler", "normal", positive, negative, begun, 5, 8, "disable")
        return nodes.KSamplerAdvanced().sample(model, "disable", *given[1:])[0]["samples"]

    plain = second(st.patcher, st.positive, st.negative)
    for graph in (HIRES, None):
        if graph:
            running(graph, "2")
        applied = st.apply(
            st.references(1, **left_half("region")), settings("uniform", in_crops="skip" if graph else "auto")
        )
        assert not torch.equal(second(*applied), plain)


def test_without_a_graph_a_run_that_begins_from_a_picture_may_be_a_part(caplog):
    """As in scripts, which have no node that runs."""
    assert effect() == 0.0 and "may sample a part of a larger picture" in caplog.text
    assert effect(denoise=1.0) > 1e-3


def test_gated_layers_are_skipped_too(running, caplog):
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    running(TILED, "2")
    st = gated_stage()
    plain = tile(st.patcher, st.positive, st.negative, 1.0)
    assert torch.equal(tile(*st.apply(st.references(1), GatedSettings()), 1.0), plain)
    assert "Apply Gated Adapter is skipped in this run" in caplog.text
    running(HIRES, "2")
    assert not torch.equal(tile(*st.apply(st.references(1), GatedSettings()), 1.0), plain)
