"""The host's own split of a prediction over several GPUs (comfy/multigpu.py of newer hosts), its code unchanged, on two
devices that are this CPU under two names.
"""

import importlib.util
import threading

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["relevance", "text_to_weight", "mm_diff", "text_image", "patches"]
SECOND = torch.device("cpu:1")  # a name of its own; tensors that are sent there lie on the CPU


@pytest.fixture(autouse=True)
def two_devices(host, monkeypatch):
    import comfy.model_management as mm

    if importlib.util.find_spec("comfy.multigpu") is None:
        pytest.skip("THIS COMFYUI HAS NO comfy/multigpu.py: nothing about several GPUs was tested")
    monkeypatch.setattr(mm, "get_all_torch_devices", lambda exclude_current=False: [torch.device("cpu"), SECOND])


def made(kind):
    """A MODEL that can be made again, as the host's loaders note it."""
    from support.host.applied_kinds import micro

    model = micro(kind)
    model.cached_patcher_init = (micro, (kind,))
    return model


def over_two(model):
    from comfy.multigpu import create_multigpu_deepclones

    return create_multigpu_deepclones(model, 2)


@pytest.fixture
def used(monkeypatch):
    """(device of the thread, UNet, our modules) of every model call that looked them up."""
    from troupe.model_patches.hosts.comfyui.sampling.hook import Hook

    found, original = [], Hook.module

    def spy(self, base):
        module = original(self, base)
        found.append((threading.current_thread() is not threading.main_thread(), id(base), id(module)))
        return module

    monkeypatch.setattr(Hook, "module", spy)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ["split before the Apply node", "split after it"])
def test_a_prediction_over_two_devices_is_that_of_one(kind, order, used):
    from support.host.applied_kinds import applied
    from support.host.small_casts import error
    from support.host.threaded_predictions import sample

    whole = sample(*applied(kind, made(kind))[:3])
    plain = sample(made(kind), *applied(kind, made(kind))[1:3])
    used.clear()
    if order == "split before the Apply node":
        model, positive, negative, *_ = applied(kind, over_two(made(kind)))
    else:
        model, positive, negative, *_ = applied(kind, made(kind))
        model = over_two(model)
    assert error(sample(model, positive, negative), whole, plain) < 1e-4
    assert all(in_thread for in_thread, *_ in used), "the host's pool of threads ran them"
    pairs = {(base, module) for _, base, module in used}
    assert len(pairs) == len({base for base, _ in pairs}) == len({module for _, module in pairs}), (
        "each UNet has modules of its own"
    )
    assert len(pairs) == (1 if kind == "mm_diff" else 2), "the negative prompt of MM-Diff gets nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_keeps_is_kept_for_each_device(kind, monkeypatch):
    """Both of these devices lie on the CPU, so the values cannot tell; but a key without a device or a UNet would hand
    one GPU's tensors to the other.
    """
    from support.host.applied_kinds import applied
    from support.host.threaded_predictions import sample
    from troupe.model_patches.hosts.comfyui.sampling.run import Run

    kept, original = {}, Run.once

    def spy(self, key, make, most=None):
        value = original(self, key, make, most)
        if threading.current_thread() is not threading.main_thread() and _tensors_in(value):
            kept[key] = value
        return value

    monkeypatch.setattr(Run, "once", spy)
    model, positive, negative, *_ = applied(kind, made(kind))
    sample(over_two(model), positive, negative)
    assert kept
    assert [key[0] for key in kept if not any(isinstance(part, torch.device) for part in _flat(key))] == []


def _flat(value):
    return [leaf for part in value for leaf in _flat(part)] if isinstance(value, (tuple, list)) else [value]


def _tensors_in(value) -> bool:
    """Whether a value is, or has, tensors or modules."""
    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return True
    parts = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else vars(value).values()
        if hasattr(value, "__dict__")
        else ()
    )
    return any(_tensors_in(part) for part in parts)
