"""Several model calls at the same time: two runs, or the parts of one prediction on clones with UNets and adapters of
their own (see support.host.threaded_predictions).
"""

import logging
import threading
import time

import pytest
import torch
from support.host.threaded_predictions import sample

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["relevance", "text_to_weight", "mm_diff", "text_image", "patches"]


@pytest.fixture(autouse=True)
def newer(host, monkeypatch):
    """What a newer host's ModelPatcher has."""
    import comfy.model_patcher

    if not hasattr(comfy.model_patcher.ModelPatcher, "cached_patcher_init"):
        monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "cached_patcher_init", None, raising=False)


def scene(kind):
    """(model, positive, negative, a twin of the model)."""
    from support.host.applied_kinds import applied, micro
    from support.host.threaded_predictions import twin_of

    model, positive, negative, *_ = applied(kind, micro(kind))
    return model, positive, negative, twin_of(model, lambda: micro(kind))


@pytest.mark.parametrize("what", ["layers", "gated"])
def test_an_adapter_can_be_made_again_for_another_device(what):
    """Modules and weights of its own, and one that can be made again in turn."""
    from support.host.small_casts import stage
    from support.host.small_gated_casts import gated_stage

    patcher = stage().adapter.layers_patcher if what == "layers" else gated_stage("patches").adapter.gated_patcher
    make, given = patcher.cached_patcher_init
    for other in (make(*given), make(*given, disable_dynamic=True)):
        assert type(other.model) is type(patcher.model) and other.cached_patcher_init[1] != given
        theirs, ours = dict(other.model.named_parameters()), dict(patcher.model.named_parameters())
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
        assert not {p.data_ptr() for p in theirs.values()} & {p.data_ptr() for p in ours.values()}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_prediction_in_threads(kind, monkeypatch):
    """Twenty times with other delays: every picture is that of one thread bit for bit, and every thread uses the
    adapter of its own patcher.
    """
    from support.host.small_casts import error
    from support.host.threaded_predictions import Meeting, loaded, split
    from troupe.model_patches.hosts.comfyui.sampling.hook import Hook

    model, positive, negative, twin = scene(kind)
    ((key, (adapter,)),) = model.additional_models.items()
    modules = [adapter.model, twin.additional_models[key][0].model]
    whole = sample(model, positive, negative)
    used, original = [], Hook.module
    monkeypatch.setattr(
        Hook,
        "module",
        lambda self, base: (used.append((threading.current_thread().name, base, original(self, base))), used[-1][2])[1],
    )
    callers = [set(), set()]
    hooks = [
        part.register_forward_hook(lambda *_, i=i: callers[i].add(threading.current_thread().name))
        for i, module in enumerate(modules)
        for part in module.modules()
    ]
    with loaded(twin), split([model, twin], at_once=False):
        in_turn = sample(model, positive, negative)
    assert error(in_turn, whole, torch.zeros_like(whole)) < 1e-4
    for attempt in range(20):
        used.clear()
        with loaded(twin), split([model, twin]), Meeting(model, twin, seed=attempt) as meeting:
            assert torch.equal(sample(model, positive, negative), in_turn)
        assert meeting.met == 4, "two steps, two meetings each"
        names = {name: (base, module) for name, base, module in used}
        expected = {
            f"device {i}": (patcher.model, module)
            for i, (patcher, module) in enumerate(zip((model, twin), modules, strict=True))
        }
        # whose negative prompt gets nothing
        assert names == expected or kind == "mm_diff" and names == {"device 0": expected["device 0"]}
    for hook in hooks:
        hook.remove()
    assert all(names <= {f"device {i}"} for i, names in enumerate(callers))


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_at_the_same_time(kind, monkeypatch):
    """The same references, each run with a MODEL, a seed and a size of its own: what each is alone."""
    import comfy.model_management as mm
    from support.host.threaded_predictions import Meeting

    one_at_a_time, load = threading.Lock(), mm.load_models_gpu

    def in_turn(*args, **kwargs):  # the host's list of loaded models is not made for threads
        with one_at_a_time:
            return load(*args, **kwargs)

    model, positive, negative, twin = scene(kind)
    given = [dict(seed=3, size=(16, 16)), dict(seed=4, size=(12, 20))]
    alone = [sample(patcher, positive, negative, **rest) for patcher, rest in zip((model, twin), given, strict=True)]
    monkeypatch.setattr(mm, "load_models_gpu", in_turn)
    for attempt in range(5):
        found = [None, None]

        def run(i, patcher, found=found):
            with torch.inference_mode():
                found[i] = sample(patcher, positive, negative, **given[i])

        with Meeting(model, twin, seed=attempt) as meeting:
            threads = [threading.Thread(target=run, args=pair) for pair in enumerate((model, twin))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert meeting.met == 4 and all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))


@pytest.mark.parametrize("kind", ["relevance", "patches"])
def test_a_run_in_threads_tells_its_line_once(kind, monkeypatch, caplog):
    """Two positive prompts, both with the subjects, each in a thread: both come at the same time to where it is told,
    with other seconds to tell of.
    """
    from support.host.threaded_predictions import PATIENCE, loaded, split
    from troupe.model_patches.hosts.comfyui.sampling import gated, image_attention

    module, hook = (
        (gated, gated.GatedAdapter) if kind == "patches" else (image_attention, image_attention.ImageAttention)
    )
    barrier, asked, report = threading.Barrier(2), module.with_subjects, hook._report
    monkeypatch.setattr(module, "with_subjects", lambda chunks: (asked(chunks), barrier.wait(PATIENCE))[0])

    def slowly(self, run, *rest):
        time.sleep(0.2)
        run.seconds += 1.0
        report(self, run, *rest)

    monkeypatch.setattr(hook, "_report", slowly)
    model, positive, negative, twin = scene(kind)
    second = [[torch.flip(text, (1,)), dict(options)] for text, options in positive]
    with caplog.at_level(logging.INFO, "troupe"), loaded(twin), split([model, twin]):
        sample(model, positive + second, negative, steps=1)
    assert sum("2 subjects:" in record.message for record in caplog.records) == 1


def test_a_run_in_threads_is_recorded(monkeypatch):
    from support.host.threaded_predictions import Meeting, loaded, split
    from troupe.model_patches.hosts.comfyui.sampling.record import record_relevance

    model, positive, negative, twin = scene("relevance")
    model, record = record_relevance(model, "all")
    sample(model, positive, negative)
    expected = [subject.values for subject in record.run.applied[0].subjects]
    with loaded(twin), split([model, twin]), Meeting(model, twin):
        sample(model, positive, negative)
    for found, wanted in zip(record.run.applied[0].subjects, expected, strict=True):
        torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-5)


def test_delayed_prompts_change_in_threads_too():
    from support.host.applied_kinds import micro
    from support.host.small_mm_diff import mm_diff_scene
    from support.host.threaded_predictions import Meeting, loaded, split, twin_of

    model, positive, negative, _ = mm_diff_scene(delayed=True)
    twin = twin_of(model, lambda: micro("mm_diff"))
    with loaded(twin), split([model, twin], at_once=False):
        in_turn = sample(model, positive, negative, steps=3)
    for attempt in range(5):
        with loaded(twin), split([model, twin]), Meeting(model, twin, seed=attempt):
            assert torch.equal(sample(model, positive, negative, steps=3), in_turn)
