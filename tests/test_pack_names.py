"""Whose patch it is, from where the host loaded its module."""

from functools import partial

import pytest
from troupe.model_patches.hosts.comfyui.sampling import other_packs
from troupe.model_patches.hosts.comfyui.sampling.other_packs import named, pack_of, patches_of


def patch_of(module):
    """A patch function as a pack loaded under this module name leaves it."""

    def patch():
        pass

    patch.__module__ = module
    return patch


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("/home/a_x_b/ComfyUI/custom_nodes/Some-Pack.nodes.patches", "Some-Pack"),
        ("C:\\ComfyUI\\custom_nodes\\Some Pack v1_x_2.nodes", "Some Pack v1.2"),
        ("/home/a.b/ComfyUI/custom_nodes/one_file", "one_file"),
        ("custom_nodes.cgem156-ComfyUI.scripts.attention_couple.node", "cgem156-ComfyUI"),
        ("comfy_extras.nodes_hypertile", "nodes_hypertile"),
        ("comfy.ldm.modules.attention", None),
        ("somewhere", None),
        (None, None),
    ],
)
def test_the_name_of_a_pack(module, name):
    assert pack_of(patch_of(module)) == pack_of(partial(partial(patch_of(module), 1), 2)) == name


def test_objects_that_are_called():
    made = type(
        "Patch", (), {"__module__": "/custom_nodes/Pack.a", "__call__": lambda self: None, "method": lambda self: None}
    )()
    assert pack_of(made) == "Pack" and pack_of(None) is None


def test_one_or_several_or_nobody(monkeypatch):
    monkeypatch.setattr(other_packs, "OURS", "/custom_nodes/comfyui-troupe.")
    a, b, c = (patch_of(f"/custom_nodes/{name}.x") for name in ("A", "B", "C"))
    assert named([None, patch_of("comfy.x")]) == named([]) == "another pack"
    assert named([b, b, None]) == "B" and named([b, a]) == "one of A and B" and named([c, a, b]) == "one of A, B and C"
    own = type("GatedPatch", (), {"__module__": f"{other_packs.OURS}model_patches.hosts.comfyui.sampling.gated"})()
    assert named([own, b]) == "B" and named([own]) == "another pack"
    assert (
        patches_of({"patches": {"attn2_patch": [a], "middle_patch": [b], "other": [c]}}, "middle_patch", "attn2_patch")
        == [b, a]
        and patches_of({}, "attn2_patch") == []
    )
