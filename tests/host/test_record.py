"""Record Relevance and Preview Relevance on a real host: what is recorded is what an evaluation from the formulas
finds, and nothing else changes.
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from support.host.host_executor import Server, Studio
from troupe.model_patches.adapter import ImageAttentionSpec
from troupe.model_patches.attention.merges import MERGES
from troupe.model_patches.relevance.maps import NOBODY, NOT_SAMPLED, OTHER_LATENT, report
from troupe.model_patches.subjects import Box

REGION = torch.zeros(32, 32)
REGION[:, :20] = 1.0
REGION[8:12] = 0.5


@pytest.fixture(scope="module")
def lab(host):
    from support.host import recorded_runs as recording

    return recording


@pytest.fixture(scope="module")
def sd15(lab):
    return lab.stage()


# ---- what is recorded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_maps_are_the_formulas(lab, base, before):
    set_up = lab.stage(base)
    references = set_up.references(3)
    found, seen = lab.captured(set_up, references, before=before, size=(12, 20), steps=2)
    assert len(seen.looks) >= 6
    expected = seen.maps(references)
    assert expected.std(dim=(1, 2)).min() > 1e-3 and (expected[0] - expected[1]).abs().max() > 0.02, (
        "flat maps test nothing"
    )
    lab.close(found, expected)
    assert abs(float(found.sum(0).mean()) - 1) < 1e-5


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("count", [1, 2])
def test_every_merge_is_recorded_from_the_relevance(lab, sd15, merge, count):
    references = sd15.references(count)
    found, seen = lab.captured(sd15, references, lab.settings(merge, sharpness=2.0), steps=1)
    lab.close(found, seen.maps(references, sharpness=2.0))


@pytest.mark.parametrize("size, batch, cfg", [((13, 21), 1, 5.0), ((16, 16), 3, 5.0), ((16, 8), 2, 1.0)])
def test_odd_sizes_batches_and_guidance(lab, sd15, size, batch, cfg):
    references = sd15.references(2)
    found, seen = lab.captured(sd15, references, size=size, batch=batch, cfg=cfg, steps=1)
    assert all(len(hidden) == batch for _, hidden, _, _ in seen.looks)
    lab.close(found, seen.maps(references))


def test_regions_and_boxes(lab, sd15):
    box = torch.zeros(32, 32)
    box[8:24, 12:28] = 1.0
    references = sd15.references(2, regions=[REGION, None], boxes=[None, Box(12 / 32, 8 / 32, 0.5, 0.5)])
    found, seen = lab.captured(sd15, references, lab.settings(box_strength=0.6, box_feather=0.0))
    lab.close(found, seen.maps(references, [REGION, 1 - 0.6 * (1 - box)]))
    lone = sd15.references(1, regions=[REGION])
    found, seen = lab.captured(sd15, lone, lab.settings(), steps=1)
    lab.close(found, seen.maps(lone, [REGION]))


def test_a_subject_is_recorded_in_its_own_steps(lab, sd15):
    references = sd15.references(3, weights=[1.0, 1.0, 0.0], ranges=[(0.0, 1.0), (0.0, 0.5), (0.0, 1.0)])
    middle = sd15.patcher.model.model_sampling.percent_to_sigma(0.5)
    seen, patcher = lab.Captured(sd15), sd15.patcher
    sd15.patcher = seen.patcher
    try:
        _, record = lab.sampled(sd15, references, steps=4)
    finally:
        sd15.patcher = patcher
    sigmas = {sigma for *_, sigma in seen.looks}
    assert len(sigmas) == 4 and 0 < sum(sigma >= middle for sigma in sigmas) < 4
    expected = seen.maps(references, acting=lambda i, sigma: i == 0 or (i == 1 and sigma >= middle))
    first, second, third = (subject.values for subject in record.run.applied[0].subjects)
    lab.close(torch.stack((first, second)), expected[:2])
    assert third is None and "subject 2: not active" in report(record.run)


def test_coarse_and_fine_blocks(lab):
    from support.host import tiny_models

    set_up = lab.stage(patcher=tiny_models.micro_model("SD15", levels=3))
    references, grids = set_up.references(2), {"coarse": [(6, 4)], "fine": [(24, 16), (12, 8)]}
    for blocks, wanted in grids.items():
        found, seen = lab.captured(set_up, references, blocks=blocks, size=(24, 16), steps=1)
        assert {grid for _, _, grid, _ in seen.looks} == {(24, 16), (12, 8), (6, 4)}
        assert found.shape[1:] == wanted[0]
        lab.close(found, seen.maps(references, grids=wanted))


def test_a_prompt_for_a_part_of_the_picture(lab, sd15):
    """Conditioning (Set Area): its rows show the right half, and so do its maps."""
    references = sd15.references(2)
    model, positive, negative = sd15.apply(references, lab.settings())
    model, record = lab.record_relevance(model, "all")
    area = [[text, {**rest, "area": (16, 8, 0, 8), "strength": 1.0}] for text, rest in positive]
    lab.ksample(model, area, negative, steps=1, size=(16, 16))
    left, right = lab.maps_of(record).split(8, 2)
    assert not left.any() and abs(float(right.sum(0).mean()) - 1) < 1e-5


def test_two_apply_nodes_are_two_records_in_one(lab, sd15):
    import troupe.model_patches.hosts.comfyui.apply as apply

    first, second = sd15.references(2), sd15.references(1)
    model, positive, negative = sd15.apply(first, lab.settings())
    model, positive, negative, _ = apply.apply_image_attention(model, second, lab.settings("add"), positive, negative)
    model, record = lab.record_relevance(model, "all")
    lab.ksample(model, positive, negative)
    assert [(applied.merge, len(applied.subjects)) for applied in record.run.applied] == [("relevance", 2), ("add", 1)]


def test_two_record_nodes_on_one_model(lab, sd15):
    model, positive, negative = sd15.apply(sd15.references(2), lab.settings())
    model, whole = lab.record_relevance(model, "all")
    model, fine = lab.record_relevance(model, "fine")
    lab.ksample(model, positive, negative)
    lab.close(lab.maps_of(whole), lab.maps_of(fine).double())  # this model has fine blocks only
    assert (whole.run.blocks, fine.run.blocks) == ("all", "fine")


def test_two_positive_prompts_are_both_recorded(lab, sd15):
    """As Conditioning (Combine) makes them."""
    import comfy.samplers

    model, positive, negative = sd15.apply(sd15.references(2), lab.settings())
    model, record = lab.record_relevance(model, "all")
    seen = lab.Captured(sd15)
    model.set_model_attn2_patch(seen.see)
    guider = comfy.samplers.CFGGuider(model)
    second = [[torch.flip(positive[0][0], (1,)), positive[0][1]]]
    guider.set_conds(positive + second, negative)
    sigmas = comfy.samplers.calculate_sigmas(model.model.model_sampling, "normal", 1)
    guider.sample(lab.noise_of((16, 16)), torch.zeros(1, 4, 16, 16), comfy.samplers.sampler_object("euler"), sigmas)
    assert len(seen.looks[0][1]) == 2
    lab.close(lab.maps_of(record), seen.maps(sd15.references(2)))


def test_a_compiled_model_is_recorded(lab):
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from support.host import tiny_models

    short = lab.stage(patcher=tiny_models.micro_model("SD15", model_channels=64, levels=1))
    model, positive, negative = short.apply(short.references(2), lab.settings())
    model, record = lab.record_relevance(model, "all")
    plain = lab.ksample(model, positive, negative, steps=3)
    maps = lab.maps_of(record)
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    found = lab.ksample(compiled, positive, negative, steps=3)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    lab.close(lab.maps_of(record), maps.double())


def test_a_sampler_in_tiles_is_said(lab, sd15):
    """A pack that cuts the rows of a model call into tiles: its layers do not see the picture."""
    from comfy.patcher_extension import WrappersMP

    def tiles(executor, x, t, *args, **kwargs):
        halves = [executor(part.contiguous(), t, *args, **kwargs) for part in x.chunk(2, -1)]
        return torch.cat(halves, -1)

    model, positive, negative = sd15.apply(sd15.references(2), lab.settings())
    model, record = lab.record_relevance(model, "all")
    outside = sd15.patcher.clone()
    outside.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "tiles", tiles)
    for kind, wrappers in model.wrappers.items():
        for key, functions in wrappers.items():
            for function in functions:
                outside.add_wrapper_with_key(kind, key, function)
    outside.set_additional_models(next(iter(model.additional_models)), next(iter(model.additional_models.values())))
    outside.model_options["transformer_options"] |= {
        k: v for k, v in model.model_options["transformer_options"].items() if k.startswith("troupe")
    }
    lab.ksample(outside, positive, negative, steps=1)
    assert not record.run.applied and report(record.run).startswith(
        "Some layers were not recorded: another pack samples the picture in tiles"
    )


# ---- nothing else changes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
def test_recording_changes_no_bit(lab, sd15, merge, count, before):
    references = sd15.references(count, regions=[REGION] + [None] * (count - 1))
    given = lab.settings(merge, background=0.7)
    plain, _ = lab.sampled(sd15, references, given, record=False)
    found, record = lab.sampled(sd15, references, given, before=before)
    assert torch.equal(found, plain) and record.run.applied


def test_no_value_leaves_the_device_in_a_block(lab, sd15, monkeypatch):
    """Between the first model call and the end of the run nothing is read: no .item(), .cpu(), .tolist(), nor a tensor
    from a list.
    """
    reads = []
    model, positive, negative = sd15.apply(sd15.references(2), lab.settings("add"))
    model, record = lab.record_relevance(model, "all")
    unet = model.model.diffusion_model
    inside = unet.forward

    def forward(*args, **kwargs):
        with monkeypatch.context() as patch:
            for name in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__"):
                patch.setattr(torch.Tensor, name, lambda *a, name=name, **k: reads.append(name))
            return inside(*args, **kwargs)

    monkeypatch.setattr(unet, "forward", forward)
    lab.ksample(model, positive, negative)
    assert not reads and record.run.applied


def test_recording_adds_a_handful_of_small_operations(lab, sd15):
    """Published merge: in a layer one mean, two sums, nothing as large as the query."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if "view" not in str(func) and "select" not in str(func) and "detach" not in str(func):
                done.append((str(func), found.numel() if isinstance(found, torch.Tensor) else 0))
            return found

    references, layers = sd15.references(4), len(sd15.adapter.spec.part(ImageAttentionSpec).widths)
    counted = {}
    for record in (False, True):
        model, positive, negative = sd15.apply(references, lab.settings())
        if record:
            model, _ = lab.record_relevance(model, "all")
        lab.ksample(model, positive, negative, steps=1)  # the host loads the model
        lengths = []
        for steps in (1, 3):
            done = []
            with Count():
                lab.ksample(model, positive, negative, steps=steps)
            lengths.append(len(done))
        counted[record] = (lengths[1] - lengths[0]) / 2
    assert 0 < counted[True] - counted[False] <= 4 * layers, counted
    assert counted[True] < 1.05 * counted[False], counted


def test_what_is_kept_does_not_grow_with_the_steps(lab, sd15):
    model, positive, negative = sd15.apply(sd15.references(2), lab.settings())
    model, record = lab.record_relevance(model, "all")
    sizes = []
    for steps in (1, 5):
        held = {}
        begin = record.begin
        record.begin = lambda blocks, begin=begin, held=held: held.setdefault("recording", begin(blocks))
        lab.ksample(model, positive, negative, steps=steps)
        record.begin = begin
        (tally,) = held["recording"]._tallies.values()
        sizes.append(sum(t.nbytes for pair in tally.sums._sums.values() for t in pair))
    assert sizes[0] == sizes[1] == sum(4 * 2 * (n + 1) for n in (64, 16))


# ---- when there is nothing to record ---------------------------------------------------------------------------------


def test_a_model_that_did_not_sample(lab, sd15):
    _, record = lab.record_relevance(sd15.patcher, "all")
    assert record.run is None and report(record.run) == NOT_SAMPLED


def test_no_apply_node(lab, sd15):
    model, record = lab.record_relevance(sd15.patcher, "all")
    lab.ksample(model, sd15.positive, sd15.negative, steps=1)
    assert report(record.run) == NOBODY


def test_no_names(lab, sd15):
    references = sd15.references(2)
    unnamed = replace(
        references, uncond_name_tokens=None, subjects=tuple(replace(s, name_tokens=None) for s in references.subjects)
    )
    plain, _ = lab.sampled(sd15, unnamed, lab.settings("uniform"), record=False)
    found, record = lab.sampled(sd15, unnamed, lab.settings("uniform"))
    assert torch.equal(found, plain)
    assert (
        report(record.run)
        == f"Connect 'clip' to Encode Subject References: the subjects of {unnamed.adapter.spec.file} have no "
        "names, so their relevance is unknown."
    )


def test_no_blocks_of_that_kind(lab, sd15):
    _, record = lab.sampled(sd15, sd15.references(2), blocks="coarse")
    assert report(record.run).endswith("this MODEL has no coarse blocks at this size.")


def test_a_run_that_is_stopped_leaves_no_map(lab, sd15):
    model, positive, negative = sd15.apply(sd15.references(2), lab.settings())
    model, record = lab.record_relevance(model, "all")
    lab.ksample(model, positive, negative, steps=1)
    assert record.run is not None
    stopped = model.clone()

    def stop(*args, **kwargs):
        raise InterruptedError

    stopped.set_model_attn2_patch(stop)
    begin, begun = record.begin, []
    record.begin = lambda blocks: begun.append(weakref.ref(recording := begin(blocks))) or recording
    with pytest.raises(InterruptedError):
        lab.ksample(stopped, positive, negative, steps=1)
    gc.collect()
    assert record.run is None and [ref() for ref in begun] == [None], "nor what was added up until then"


def test_the_last_run_wins(lab, sd15):
    references = sd15.references(2)
    model, positive, negative = sd15.apply(references, lab.settings())
    model, record = lab.record_relevance(model, "all")
    lab.ksample(model, positive, negative, steps=1, seed=1)
    first = lab.maps_of(record)
    lab.ksample(model, positive, negative, steps=1, seed=2, size=(20, 12))
    assert first.shape[1:] == (8, 8) and lab.maps_of(record).shape[1:] == (20, 12)
    inner, outer = record.begin("all"), record.run
    later = record.begin("all")
    record.finish(inner, torch.zeros(1, 4, 8, 8))
    assert outer is None and record.run is None
    record.finish(later, torch.zeros(1, 4, 8, 8))
    assert record.run is not None


# ---- graphs on the host's executor -----------------------------------------------------------------------------------


@pytest.fixture
def studio(lab, sd15, base_folder, monkeypatch):
    import server
    from troupe.nodes import NODES

    import nodes

    for cls in NODES:
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.GET_SCHEMA().node_id, cls)
    for cls in (lab.Scene, lab.Plain, lab.Look):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)
    lab.Scene.set_up = sd15
    lab.Look.got.clear()
    stand_in = Server()
    monkeypatch.setattr(server.PromptServer, "instance", stand_in, raising=False)
    return Studio(base_folder, stand_in)


def shown(studio, node):
    """What the front end was told that the node shows, and finds in the history: (number of pictures, texts)."""
    told = studio.server.executed[node]
    assert studio.executor.history_result["outputs"][node] == told
    return len(told["images"]), list(told["text"])


def test_another_seed_shows_new_maps(lab, studio):
    for seed in (1, 2):
        assert studio.run(lab.graph(seed=seed)) is None
    (first, report_1), (second, report_2) = lab.Look.got[""]
    assert first.shape == second.shape and not torch.equal(first, second) and report_1 != report_2
    assert "subject 1" in report_2 and " overlap " in report_2 and OTHER_LATENT not in report_2
    assert shown(studio, "preview") == (1, [report_2])
    messages = studio.messages("preview")
    assert [*messages["done"], *messages["warnings"]] == [line for line in report_2.split("\n") if line], (
        "facts first, then what to do"
    )


def test_a_cached_sampler_shows_the_last_maps(lab, studio):
    assert studio.run(lab.graph()) is None
    before = shown(studio, "preview")
    assert studio.run(lab.graph()) is None
    assert len(lab.Look.got[""]) == 1 and shown(studio, "preview") == before


def test_another_image_alone_shows_the_last_maps_over_it(lab, studio):
    for image in (None, 0.2, 0.8):
        assert studio.run(lab.graph(image=image)) is None
    (alone, report_1), (dark, report_2), (light, report_3) = lab.Look.got[""]
    assert report_1 == report_2 == report_3 and OTHER_LATENT not in report_1
    width = alone.shape[2]
    assert torch.equal(alone, dark[:, :, :width]) and torch.equal(alone, light[:, :, :width])
    assert dark.shape[2] > 1.9 * width and not torch.equal(dark, light)


def test_two_samplers_keep_their_own(lab, studio):
    """Also where both have run before either preview looks."""
    both = lab.branch(lab.graph(called="A", seed=1, image=0.5), called="B", seed=2, size=64, image=0.5)
    both["imageA"]["inputs"]["after"], both["imageB"]["inputs"]["after"] = ["samplerB", 0], ["samplerA", 0]
    assert studio.run(both) is None
    for called, rest in (("A", {"seed": 1}), ("B", {"seed": 2, "size": 64})):
        assert studio.run(lab.graph(called=f"only{called}", image=0.5, **rest)) is None
        (maps, told), (alone, expected) = lab.Look.got[called][0], lab.Look.got[f"only{called}"][0]
        assert told == expected and OTHER_LATENT not in told and torch.equal(maps, alone)
    assert lab.Look.got["A"][0][1] != lab.Look.got["B"][0][1]


def test_a_sampler_beside_the_record(lab, studio):
    """The sampler's wire passes Record Relevance by: a sentence, not a failure and not old maps unmarked."""
    assert studio.run(lab.graph(recorded=False)) is None
    assert lab.Look.got[""][0][1] == NOT_SAMPLED
    assert studio.run(lab.graph()) is None and " overlap " in lab.Look.got[""][1][1]
    assert studio.run(lab.graph(recorded=False, seed=2)) is None
    assert lab.Look.got[""][2][1].endswith(OTHER_LATENT)
