"""Weights that did not fit: the host keeps some of the UNet's and of the adapter's aside and casts them as they are
used. The picture is the same.
"""

import functools

import pytest
import torch
from support.host.small_mm_diff import mm_diff_scene
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("host")
ATTENTION, GATED = ["relevance", "text_to_weight", "mm_diff", "mm_diff, delayed"], ["text", "text_image", "patches"]
BUDGETS = [1, 0.3, 0.7]  # below 1: parts of a model's size; else bytes, as little as --novram gives
RUN = dict(size=(8, 8), steps=3)


def scene(kind):
    """(model, positive, negative, adapter's key on the MODEL), ready for KSampler."""
    from support.host.small_casts import settings, stage
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    if kind in GATED:
        st = gated_stage(kind)
        return *st.apply(st.references(2, weights=[1.0, 0.6]), GatedSettings(0.8)), f"{st.adapter.key}.gated"
    if kind.startswith("mm_diff"):
        return mm_diff_scene(kind.endswith("delayed"))
    st = stage(text_gain=kind == "text_to_weight")
    return *st.apply(st.references(2), settings()), st.adapter.key


def limit(patcher, budget, monkeypatch):
    """The host gives this model no more than the budget when it loads it."""
    size, original = patcher.model_size(), patcher.load
    room = size * budget if budget < 1 else budget

    def load(device_to=None, **kwargs):
        return original(device_to, **{**kwargs, "lowvram_model_memory": room, "full_load": False})

    monkeypatch.setattr(patcher, "load", load)


class Devices(TorchDispatchMode):
    """Notes operations that are given tensors of two devices, except for those that move them and for single
    numbers.
    """

    def __init__(self):
        super().__init__()
        self.mixed = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim]
        if len({t.device.type for t in given}) > 1 and function not in (
            torch.ops.aten._to_copy.default,
            torch.ops.aten.copy_.default,
        ):
            self.mixed.append(str(function))
        return function(*args, **(kwargs or {}))


def set_aside(patcher):
    """Names of modules whose weights the host casts at each use since they did not fit."""
    return {name for name, module in patcher.model.named_modules() if hasattr(module, "prev_comfy_cast_weights")}


@pytest.fixture(scope="module")
def of_whole_models(host):
    """`of_whole_models(kind)`: (model, positive, negative, adapter) and their latent with nothing set aside, made
    once.
    """

    def make(kind):
        import comfy.model_management as mm
        from support.host.small_casts import ksample

        model, positive, negative, key = scene(kind)
        (adapter,) = model.get_additional_models_with_key(key)
        mm.unload_all_models()
        latent = ksample(model, positive, negative, **RUN)
        assert not set_aside(model) and not set_aside(adapter)
        return (model, positive, negative, adapter), latent

    return functools.cache(make)


@pytest.mark.parametrize("kind", ATTENTION + GATED)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("who", ["unet", "adapter", "both"])
def test_the_picture_is_that_of_whole_models(who, budget, kind, of_whole_models, monkeypatch):
    import comfy.model_management as mm
    from support.host.small_casts import ksample

    (model, positive, negative, adapter), whole = of_whole_models(kind)
    mm.unload_all_models()
    limited = {"unet": [model], "adapter": [adapter], "both": [model, adapter]}[who]
    for patcher in limited:
        limit(patcher, budget, monkeypatch)
    torch.testing.assert_close(ksample(model, positive, negative, **RUN), whole)
    for patcher in (model, adapter):
        assert bool(set_aside(patcher)) == (patcher in limited)
        assert patcher.loaded_size() < patcher.model_size() or patcher not in limited
    mm.unload_all_models()


@pytest.mark.parametrize("kind", ATTENTION[:3] + GATED)
def test_weights_that_wait_on_another_device_come_to_the_picture(kind, monkeypatch):
    """The UNet and the adapter lie on the CPU and the picture on `meta`: no operation meets tensors of both, bare ones
    (gates, null features) included.
    """
    import comfy.model_management as mm
    from comfy.patcher_extension import WrappersMP
    from support.host.small_casts import ksample

    devices, calls = Devices(), []

    def elsewhere(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        away = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in kwargs.items()}
        with devices:
            found = executor(
                x.to("meta"), t.to("meta"), c_concat, c_crossattn.to("meta"), control, transformer_options, **away
            )
        calls.append(found.device.type)
        return torch.zeros_like(x)

    model, positive, negative, key = scene(kind)
    # around ours
    model.wrappers[WrappersMP.APPLY_MODEL] = {"elsewhere": [elsewhere], **model.wrappers[WrappersMP.APPLY_MODEL]}
    # the host's own reads its table on the CPU
    monkeypatch.setattr(model.model.model_sampling, "timestep", lambda sigma: torch.full_like(sigma, 500.0))
    # of `meta` it knows none
    monkeypatch.setattr(
        mm, "get_free_memory", lambda device=None, torch_free_too=False: (2**34, 2**34) if torch_free_too else 2**34
    )
    (adapter,) = model.get_additional_models_with_key(key)
    mm.unload_all_models()
    limit(model, 1, monkeypatch)
    limit(adapter, 1, monkeypatch)
    worked = []
    hooks = [
        module.register_forward_hook(lambda *_: worked.append(1))
        for module in adapter.model.modules()
        if not list(module.children())
    ]
    ksample(model, positive, negative, **RUN)
    for hook in hooks:
        hook.remove()
    mm.unload_all_models()
    assert calls == ["meta"] * RUN["steps"] and worked and not devices.mixed


@pytest.mark.parametrize(
    "name",
    [
        "ip-adapter_sd15 (and light)",
        "ip-adapter-plus_sd15 (and face)",
        "ip-adapter-full-face_sd15",
        "MIP model_sdxl_plus",
    ],
)
def test_photos_are_read_by_projections_that_did_not_fit(name, monkeypatch):
    """Learned queries too come to where the photos are."""
    import comfy.model_management as mm
    import comfy.ops
    from support import published_layouts as published
    from troupe.model_patches.families.ip_adapter import build
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter

    family, devices = published.FAMILIES[name], Devices()
    adapter = host_adapter(build(family.state, "a", comfy.ops.manual_cast))
    mm.unload_all_models()
    whole = adapter.project(family.features)
    mm.unload_all_models()
    limit(adapter.projection_patcher, 1, monkeypatch)
    torch.testing.assert_close(adapter.project(family.features), whole)
    assert set_aside(adapter.projection_patcher)
    with devices:
        assert adapter.projection_patcher.model(family.features.to("meta")).device.type == "meta" and not devices.mixed
    mm.unload_all_models()


@pytest.mark.parametrize(
    "family",
    [
        "ip_adapter",
        "plus",
        "mip_adapter",
        "mm_diff",
        "fastcomposer",
        "gligen",
        "gligen images",
        "subject_diffusion",
        "umm",
    ],
)
def test_every_weight_lies_where_the_host_looks_for_it(family):
    """The host moves modules without children; a weight beside them would stay behind on the wrong device."""
    for patcher in patchers_of(family):
        listed = {
            f"{name}.{weight}" if name else weight
            for *_, name, _, weights in patcher._load_list()
            for weight in weights
        }
        assert listed == {name for name, _ in patcher.model.named_parameters()} and listed
        assert not list(patcher.model.buffers())


def patchers_of(family):
    """Every model that an adapter of this family hands to the host."""
    import comfy.ops
    from support import published_layouts as published
    from troupe.model_patches.families import fastcomposer, ip_adapter, umm
    from troupe.model_patches.families.gligen import layout as gligen
    from troupe.model_patches.families.mm_diff import layout as mm_diff
    from troupe.model_patches.families.subject_diffusion import layout as subject_diffusion
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter

    ops, files = comfy.ops.manual_cast, published.FAMILIES
    adapter = {
        "ip_adapter": lambda: ip_adapter.build(files["ip-adapter-full-face_sd15"].state, "a", ops),
        "plus": lambda: ip_adapter.build(files["ip-adapter-plus_sd15 (and face)"].state, "a", ops),
        "mip_adapter": lambda: ip_adapter.build(files["MIP model_sdxl_plus"].state, "a", ops),
        "mm_diff": lambda: mm_diff.build(mm_diff.bundled(published.mm_diff_members()), "a", ops),
        "fastcomposer": lambda: fastcomposer.build(published.fastcomposer_state(), "a", ops),
        "gligen": lambda: gligen.build(published.gligen_state("text"), "a", ops),
        "gligen images": lambda: gligen.build(
            published.gligen_state("text_image"), "a", ops, torch.eye(published.SD15)
        ),
        "subject_diffusion": lambda: subject_diffusion.build(published.subject_diffusion_members(), "a", ops),
        "umm": lambda: umm.build(published.umm_state(), "a", ops),
    }[family]()
    found = host_adapter(adapter)
    return [
        patcher
        for patcher in (found.projection_patcher, found.layers_patcher, found.gated_patcher, found.fusion_patcher)
        if patcher is not None
    ]
