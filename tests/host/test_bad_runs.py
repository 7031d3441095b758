"""Runs that are stopped, run out of memory or lose their models half way: the next one is as if nothing had been.

See the list in test_bad_days.py.
"""

from __future__ import annotations

import functools
import gc
import logging
import weakref

import pytest
import torch

KINDS = ("image", "gated", "prompt")
MECHANISMS = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def lab(host):
    """The module `sampling_studio`, whose nodes the host has while these tests run."""
    from support.host import sampling_graphs as sampling_studio

    with pytest.MonkeyPatch.context() as patch:
        sampling_studio.register(patch)
        yield sampling_studio


@pytest.fixture(scope="module")
def sets(lab, clips):
    """`sets(kind)`: the kind's model and adapter, made once."""
    return functools.cache(lambda kind: lab.Set(kind, clips))


@pytest.fixture(scope="module")
def undisturbed(lab, sets, base_folder):
    """`undisturbed(kind)`: the latent of the kind's graph, by a new executor; made once."""
    return functools.cache(lambda kind: lab.SamplingStudio(base_folder, sets(kind)).latent(lab.graph(kind)))


@pytest.fixture
def studio_of(lab, sets, base_folder):
    """`studio_of(kind)`: a new executor with empty caches; kind may be a Set too."""
    import comfy.model_management as mm

    mm.interrupt_current_processing(False)
    yield lambda kind: lab.SamplingStudio(base_folder, sets(kind) if isinstance(kind, str) else kind)
    mm.unload_all_models()


@pytest.fixture
def kept(monkeypatch):
    """Weak references to every Run, Call and Recording that is made."""
    from troupe.model_patches.hosts.comfyui.sampling import calls, record, run

    found = []
    for cls in (run.Run, calls.Call, record.Recording):

        def made(self, *args, original=cls.__init__, **kwargs):
            found.append(weakref.ref(self))
            original(self, *args, **kwargs)

        monkeypatch.setattr(cls, "__init__", made)
    return found


def alive(references) -> list:
    """What is left of them after a garbage collection."""
    gc.collect()
    return [ref() for ref in references if ref() is not None]


# ---- stopped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 3])
@MECHANISMS
def test_a_run_that_is_cancelled_and_the_next(kind, call, lab, studio_of, kept):
    """By the host's own flag, while the UNet works."""
    import comfy.model_management as mm

    expected = studio_of(kind).latent(lab.graph(kind))  # its models are loaded now
    studio = studio_of(kind)
    with lab.at_call(studio.set.patcher, call, mm.interrupt_current_processing) as calls:
        assert studio.run(lab.graph(kind)) == "interrupted"
    assert len(calls) == call, "no further model call"
    assert (kept or kind == "prompt") and not alive(kept)
    assert torch.equal(studio.latent(lab.graph(kind)), expected)


@pytest.mark.parametrize("call", [1, 3])
def test_a_recorded_run_that_is_cancelled_and_the_next(call, lab, studio_of, kept):
    """Preview Relevance shows nothing of it, and then the maps of the run that came to its end."""
    import comfy.model_management as mm
    from support.host.recorded_runs import Look

    def maps(studio):
        Look.got.clear()
        latent = studio.latent(lab.with_record(lab.graph("image")))
        [(found, report)] = Look.got[""]
        return latent, found, report

    latent, undisturbed, report = maps(studio_of("image"))
    Look.got.clear()
    studio = studio_of("image")
    with lab.at_call(studio.set.patcher, call, mm.interrupt_current_processing):
        assert studio.run(lab.with_record(lab.graph("image"))) == "interrupted"
    assert kept and not alive(kept) and not Look.got
    again = maps(studio)
    assert torch.equal(again[0], latent) and torch.equal(again[1], undisturbed) and again[2] == report


# ---- out of memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 3])
@MECHANISMS
def test_out_of_memory_in_a_step(kind, call, lab, studio_of, sets, kept):
    """The host says so and unloads everything; the same graph, run again, gives the latent of a run that went well."""
    expected = studio_of(kind).latent(lab.graph(kind))  # its models are loaded now
    studio = studio_of(kind)
    with lab.at_call(studio.set.patcher, call, lab.out_of_memory):
        assert "out of memory" in studio.run(lab.graph(kind))
    assert not lab.loaded(sets(kind).module) and not lab.loaded(sets(kind).patcher.model)
    assert (kept or kind == "prompt") and not alive(kept)
    assert torch.equal(studio.latent(lab.graph(kind)), expected)
    assert lab.loaded(sets(kind).module) == (kind != "prompt")  # whose modules work before sampling


OURS = [  # kind, module, function of ours that takes memory, calls of it that go well
    ("image", "binding.run_tokens", "project_images", 0),
    ("image", "binding.run_tokens", "project_names", 0),
    ("image", "hosts.comfyui.sampling.image_attention", "layer_delta", 0),
    ("image", "hosts.comfyui.sampling.image_attention", "layer_delta", 12),
    ("gated", "binding.run_objects", "layer_objects", 0),
    ("gated", "hosts.comfyui.sampling.gated", "rows_from_options", 0),
    ("gated", "hosts.comfyui.sampling.gated", "rows_from_options", 12),
    ("prompt", "hosts.comfyui.prompting.encode_prompt", "fuse_prompt", 0),
    ("prompt", "hosts.comfyui.sampling.prompt_switch", "phases", 0),
    ("prompt", "hosts.comfyui.sampling.prompt_switch", "present", 3),
]


@pytest.mark.parametrize(("kind", "module", "name", "well"), OURS)
def test_out_of_memory_in_a_function_of_ours(kind, module, name, well, lab, studio_of, kept, monkeypatch, undisturbed):
    """Where our own tensors are made, once a run or in a layer, in the first step or a later one."""
    import importlib

    expected = undisturbed(kind)
    studio, calls = studio_of(kind), []
    within = importlib.import_module(f"troupe.model_patches.{module}")
    original = getattr(within, name)

    def short(*args, **kwargs):
        calls.append(1)
        return lab.out_of_memory() if len(calls) == well + 1 else original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(within, name, short)
        said = studio.run(lab.graph(kind))
    assert len(calls) == well + 1 and "out of memory" in said and not alive(kept)
    assert torch.equal(studio.latent(lab.graph(kind)), expected)


@MECHANISMS
def test_attention_that_runs_out_of_memory_and_is_tried_again_by_the_host(kind, lab, studio_of, monkeypatch):
    """The host's split attention catches it, empties its cache and tries once more, here in every call: the same
    latent, and nothing of ours twice.
    """
    from comfy.ldm.modules import attention
    from troupe.model_patches.hosts.comfyui.sampling import gated, image_attention

    counted, original = [], attention.einsum

    def count(inner):
        return lambda *args, **kwargs: (counted.append(1), inner(*args, **kwargs))[1]

    monkeypatch.setattr(image_attention, "layer_delta", count(image_attention.layer_delta))
    monkeypatch.setattr(gated, "rows_from_options", count(gated.rows_from_options))
    split = attention.attention_split

    tries = ["elsewhere"]

    def fresh(*args, **kwargs):
        tries.clear()
        try:
            return split(*args, **kwargs)
        finally:
            tries.append("elsewhere")  # attention in text encoders is not tried again

    monkeypatch.setattr(attention, "optimized_attention", fresh)
    expected = studio_of(kind).latent(lab.graph(kind))
    acted, short = len(counted), []

    def einsum(equation, *tensors):
        if equation == "b i d, b j d -> b i j":
            tries.append(1)
            if len(tries) == 1:
                short.append(1)
                lab.out_of_memory()
        return original(equation, *tensors)

    monkeypatch.setattr(attention, "einsum", einsum)
    counted.clear()
    assert torch.equal(studio_of(kind).latent(lab.graph(kind)), expected)
    assert len(short) >= 6 * lab.STEPS and len(counted) == acted and bool(acted) == (kind != "prompt")


def tried_again(lab, inner, level):
    """A set whose MODEL has another pack's wrapper outside of ours, which catches the lack of memory and calls once
    more; and how often it did.
    """
    import comfy.model_management as mm

    caught = []

    def again(executor, *args, **kwargs):
        try:
            return executor(*args, **kwargs)
        except mm.OOM_EXCEPTION:
            caught.append(1)
            return executor(*args, **kwargs)

    outside = lab.Set.__new__(lab.Set)
    outside.__dict__.update(inner.__dict__)
    outside.patcher = inner.patcher.clone()
    outside.patcher.add_wrapper_with_key(level, "again", again)
    return outside, caught


@MECHANISMS
def test_a_model_call_that_is_tried_again(kind, lab, studio_of, undisturbed):
    """A pack that catches the lack of memory around the model and calls it once more: the same latent."""
    from comfy.patcher_extension import WrappersMP

    expected = undisturbed(kind)
    studio = studio_of(kind)
    for level in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL, WrappersMP.CALC_COND_BATCH):
        outside, caught = tried_again(lab, studio.set, level)
        with lab.at_call(studio.set.patcher, 2, lab.out_of_memory) as calls:
            assert torch.equal(studio_of(outside).latent(lab.graph(kind)), expected)
        assert caught.pop() and len(calls) == lab.STEPS + 1


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [case[:3] for case in OURS if case[2] in ("project_images", "project_names", "layer_objects")],
)
def test_what_is_made_once_a_run_and_failed_is_made_when_the_call_is_tried_again(
    kind, module, name, lab, studio_of, monkeypatch, undisturbed
):
    import importlib

    from comfy.patcher_extension import WrappersMP

    expected = undisturbed(kind)
    within = importlib.import_module(f"troupe.model_patches.{module}")
    original, calls = getattr(within, name), []
    monkeypatch.setattr(
        within,
        name,
        lambda *args, **kwargs: (
            calls.append(1),
            lab.out_of_memory() if len(calls) == 1 else original(*args, **kwargs),
        )[1],
    )
    outside, caught = tried_again(lab, studio_of(kind).set, WrappersMP.APPLY_MODEL)
    assert torch.equal(studio_of(outside).latent(lab.graph(kind)), expected)
    assert len(caught) == 1 and len(calls) > 1


def test_a_picture_that_is_decoded_in_tiles_for_want_of_memory(lab, studio_of, monkeypatch):
    """The host's VAE tries tiles; the run before it and the run after it are as ever."""
    import comfy.sd
    from support.host import tiny_models

    latent = studio_of("image").latent(lab.graph("image"))
    vae = comfy.sd.VAE(
        sd={
            name.removeprefix("first_stage_model."): tensor.float()
            for name, tensor in tiny_models.build_taesd_sd().items()
        }
    )
    tiles, short = vae.decode_tiled_(latent), []
    inside = vae.first_stage_model.decode

    def decode(*args, **kwargs):
        if not short:
            short.append(1)
            lab.out_of_memory()
        return inside(*args, **kwargs)

    monkeypatch.setattr(vae.first_stage_model, "decode", decode)
    studio = studio_of("image")
    assert (
        torch.equal(vae.decode(studio.latent(lab.graph("image"))), tiles.movedim(1, -1).to(vae.output_device)) and short
    )
    assert torch.equal(studio_of("image").latent(lab.graph("image")), latent)


# ---- models that go away ---------------------------------------------------------------------------------------------


@MECHANISMS
def test_models_unloaded_between_runs(kind, lab, studio_of, sets):
    """By the host, all or for room; the next run loads the adapter again, once, and gives the same latent."""
    import comfy.model_management as mm

    def free():
        mm.free_memory(1e30, mm.get_torch_device())

    studio, module = studio_of(kind), sets(kind).module
    first, second = (studio_of(kind).latent(lab.graph(kind, seed=seed)) for seed in (1, 2))
    assert torch.equal(studio.latent(lab.graph(kind)), first)
    for away, seed, expected in (
        (mm.unload_all_models, 2, second),
        (free, 1, first),
        (studio.executor.reset, 1, first),
    ):
        away()
        if away != studio.executor.reset:
            assert not lab.loaded(module) and not lab.loaded(sets(kind).patcher.model)
        assert torch.equal(studio.latent(lab.graph(kind, seed=seed)), expected)
        # whose modules work when the prompt is encoded, which is cached
        again = kind != "prompt" or away == studio.executor.reset
        assert lab.loaded(module) == again and lab.loaded(sets(kind).patcher.model) == 1


# ---- many runs, and runs of others -----------------------------------------------------------------------------------


def held(studio) -> dict[str, int]:
    """Everything that must not grow: objects of ours and of the host by their kind, tensors and their bytes, loaded
    models, and what hangs on MODELs.
    """
    from collections import Counter

    import comfy.model_management as mm
    from comfy.model_patcher import ModelPatcher

    gc.collect()
    found = gc.get_objects()
    counted = Counter(
        type(thing).__name__ for thing in found if str(type(thing).__module__).startswith(("troupe.", "comfy."))
    )
    tensors = [thing for thing in found if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    patchers = [thing for thing in found if ModelPatcher in type(thing).__mro__]
    counted["tensors"], counted["bytes"], counted["loaded"] = (
        len(tensors),
        sum(t.nbytes for t in tensors),
        len(mm.current_loaded_models),
    )
    counted["wrappers"] = sum(
        len(functions) for patcher in patchers for keyed in patcher.wrappers.values() for functions in keyed.values()
    )
    counted["additional"] = sum(len(models) for patcher in patchers for models in patcher.additional_models.values())
    assert not studio.set.patcher.wrappers and not studio.set.patcher.additional_models
    del counted["LoadedModel"]  # the host's own: one more each time it loads a clone, until that clone is gone
    return dict(counted)


def bytes_of_ours() -> int:
    """Python's memory that was asked for in a line of the pack, but not by torch.tensor: of what that frees by itself
    tracemalloc keeps the records, until something else lies there. Tensors are counted in `held`.
    """
    import linecache
    import tracemalloc

    from troupe_tools.pack import ROOT

    snapshot = tracemalloc.take_snapshot().filter_traces(
        [tracemalloc.Filter(True, f"{ROOT}/{room}/*") for room in ("model_patches", "nodes")]
    )
    places = {trace.traceback[0] for trace in snapshot.traces}
    counted = {at for at in places if "torch.tensor(" not in linecache.getline(at.filename, at.lineno)}
    return sum(trace.size for trace in snapshot.traces if trace.traceback[0] in counted)


@MECHANISMS
def test_fifty_runs_hold_no_more_than_ten(kind, lab, studio_of, kept, monkeypatch, caplog):
    """Objects, tensors, wrappers, loaded models and bytes of Python; and of what has been there before, nothing lives
    on. Every other run has another seed only, the others have other subjects and settings too.
    """
    import tracemalloc

    from troupe.model_patches.hosts.comfyui.sampling import hook, prompt_switch

    applied, casts = [], []
    for cls in (hook.Hook, prompt_switch.FusedPrompt):

        def made(self, *args, original=cls.__init__, **kwargs):
            applied.append(weakref.ref(self))
            original(self, *args, **kwargs)

        monkeypatch.setattr(cls, "__init__", made)
    monkeypatch.setattr(lab.Cast, "made", [lambda references: casts.append(weakref.ref(references))])
    studio, sizes = studio_of(kind), {}
    caplog.set_level(logging.ERROR, "troupe")  # pytest keeps every line
    try:
        for i in range(1, 51):
            other = i // 2
            made_now = lab.graph(kind, seed=i, who=other % 3, how=0.3 + other / 50)
            made_now["sampler"]["inputs"]["steps"] = 2
            studio.latent(made_now)
            if i in (10, 30, 50):
                kept[:], applied[:], casts[:] = (
                    [ref for ref in some if ref() is not None] for some in (kept, applied, casts)
                )
                sizes[i] = held(studio), bytes_of_ours() if i > 10 else None
            if i == 10:  # twenty runs before the first count: what torch frees by itself is long in its records
                tracemalloc.start()
    finally:
        tracemalloc.stop()
    assert sizes[10][0] == sizes[50][0] and sizes[50][0]["wrappers"] > 0
    assert 0 < sizes[50][1] < sizes[30][1] + 20 * 200, [size for _, size in sizes.values()]
    assert not alive(kept) and len(alive(applied)) == len(alive(casts)) == 1


@MECHANISMS
def test_prompts_with_other_subjects_one_after_the_other(kind, lab, studio_of, clips):
    """Each latent is the one that a new host with new models gives."""
    queue = [(0, 1), (2, 1), (0, 2), (2, 2), (1, 1), (0, 1)]
    expected = {
        asked: studio_of(lab.Set(kind, clips)).latent(lab.graph(kind, *asked)) for asked in dict.fromkeys(queue)
    }
    studio = studio_of(kind)
    for asked in queue:
        assert torch.equal(studio.latent(lab.graph(kind, *asked)), expected[asked]), asked
    assert len({tuple(latent.flatten().tolist()) for latent in expected.values()}) == 5


# ---- what the node shows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, layers", [("image", "layers of"), ("gated", "gated layers of")])
def test_a_run_tells_its_node_who_acts_and_what_it_costs(kind, layers, lab, studio_of):
    studio = studio_of(kind)
    for seed in (1, 2):  # in the second run the Apply node itself is not executed
        studio.latent(lab.graph(kind, seed=seed))
        assert ("apply" in studio.server.executed) == (seed == 1)
        told = [data for event, data in studio.server.events if event == "troupe.message"]
        assert {data["node"] for data in told} == {"apply"}
        assert [data["first"] for data in told] == [True] + [False] * (len(told) - 1)
        [report] = [data["text"] for data in told if layers in data["text"]]
        assert " MB" in report and "2 subjects" in report


def test_a_warning_of_the_run_is_one_on_the_node_too(lab, studio_of):
    studio = studio_of("image")
    graph = lab.graph("image")
    graph["sampler"]["inputs"] |= {"positive": ["cast", 2], "negative": ["cast", 3]}
    studio.latent(graph)
    warnings = [data["text"] for _, data in studio.server.events if data["warning"]]
    assert warnings[-1].startswith("connect 'positive' of Apply Image Attention to the sampler")
