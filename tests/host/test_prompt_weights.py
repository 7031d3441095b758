"""Weights that MM-Diff's and FastComposer's files bring, against what the real host makes of the same names: its UNets,
its table of diffusers' names, its LoRA loader.
"""

from types import SimpleNamespace

import pytest
import torch
from support.published_layouts import fastcomposer_state, mm_diff_members, save_mm_diff, sdxl_path, umm_state
from troupe.model_patches.adapter import PromptSpec

pytestmark = pytest.mark.usefixtures("host")
COMMON = dict(in_channels=4, out_channels=4, use_spatial_transformer=True, legacy=False)
SD15 = dict(
    COMMON,
    model_channels=320,
    context_dim=768,
    channel_mult=[1, 2, 4, 4],
    num_res_blocks=[2] * 4,
    transformer_depth=[1] * 6 + [0] * 2,
    transformer_depth_output=[1] * 9 + [0] * 3,
    transformer_depth_middle=1,
    use_linear_in_transformer=False,
    num_heads=8,
    num_head_channels=-1,
    adm_in_channels=None,
)
SDXL = dict(
    COMMON,
    model_channels=320,
    context_dim=2048,
    channel_mult=[1, 2, 4],
    num_res_blocks=[2] * 3,
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10,
    use_linear_in_transformer=True,
    num_heads=-1,
    num_head_channels=64,
    num_classes="sequential",
    adm_in_channels=2816,
)


def unet(config, device="meta", **more):
    """The host's own UNet."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(
        image_size=32, dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init, **(config | more)
    )


@pytest.fixture(scope="module")
def mm_diff(host):
    """At the published widths, and its files."""
    from troupe.model_patches.families.mm_diff import layout as mm_diff

    members = mm_diff_members(alpha=1.5, mlp=True)
    return mm_diff.build(mm_diff.bundled(members), "custom_weights.bin"), members


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        SD15,
        SDXL,
        SD15
        | dict(num_res_blocks=[1] * 4, transformer_depth=[1] * 3 + [0], transformer_depth_output=[1] * 6 + [0] * 2),
    ],
    ids=["SD1.5", "SDXL", "one residual block"],
)
def test_every_name_of_a_unet_is_the_hosts(config):
    import comfy.utils
    from troupe.model_patches.checkpoints.unet_layout import ldm_names

    theirs = {
        name: ldm
        for name, ldm in comfy.utils.unet_to_diffusers(config).items()
        if not name.startswith("class_embedding")
    }
    theirs = {name: ldm for name, ldm in theirs.items() if "add_embedding" not in name or config is SDXL}
    assert ldm_names(theirs) == theirs
    there = {name for name in unet(config).state_dict() if not name.endswith(("num_batches_tracked",))}
    assert there <= set(theirs.values()), "the host's UNet has no other tensors"


def test_pairs_fit_sdxls_own_unet(mm_diff):
    adapter, _ = mm_diff
    state = unet(SDXL).state_dict()
    assert {name: tuple(state[name].shape) for name in adapter.weights.unet_lora} == {
        name: (pair.up.shape[0], pair.down.shape[1]) for name, pair in adapter.weights.unet_lora.items()
    }
    assert adapter.weights.unet_lora.keys() == {name for name in state if ".attn" in name and name.endswith(".weight")}


def test_pairs_are_at_the_places_where_the_hosts_lora_loader_puts_them(mm_diff):
    """Numbers spelled out as diffusers' names, loaded by the host alone."""
    import comfy.lora

    adapter, members = mm_diff
    from troupe.model_patches.checkpoints.unet_layout import SDXL as DEPTHS
    from troupe.model_patches.checkpoints.unet_layout import transformer_paths

    state = {f"diffusion_model.{name}": tensor for name, tensor in unet(SDXL).state_dict().items()}
    model = SimpleNamespace(state_dict=lambda: state, model_config=SimpleNamespace(unet_config=SDXL))
    attentions = [
        f"{sdxl_path(path)}.{attention}.processor"
        for path in transformer_paths(DEPTHS)
        for attention in ("attn1", "attn2")
    ]
    spelled = {
        f"{attentions[int(name.split('.')[0])]}.{name.partition('.')[2]}": tensor
        for name, tensor in members["unet_adapter_weights"].items()
        if "_image" not in name
    }
    theirs = comfy.lora.load_lora(spelled, comfy.lora.model_lora_keys_unet(model, {}))
    assert theirs.keys() == {f"diffusion_model.{name}" for name in adapter.weights.unet_lora}
    for name, pair in adapter.weights.unet_lora.items():
        up, down, alpha = theirs[f"diffusion_model.{name}"].weights[:3]
        assert torch.equal(up, pair.up) and torch.equal(down, pair.down) and alpha is pair.alpha is None


def test_text_encoders_loras_are_what_the_hosts_lora_loader_makes_of_the_file(mm_diff):
    import comfy.lora
    from support.host import tiny_models

    adapter, members = mm_diff
    clip = tiny_models.tiny_clip("sdxl", ffn=4 * 768)
    # where the host looks for it
    stock = {
        name.replace(".lora_linear_layer.alpha", ".alpha"): tensor
        for name, tensor in members["text_encoder_adapter_weights"].items()
    }
    theirs = comfy.lora.load_lora(stock, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))
    ours = {
        f"clip_{stream}.transformer.{name}": pair
        for stream, pairs in adapter.weights.text_lora.items()
        for name, pair in pairs.items()
    }
    assert theirs.keys() == ours.keys() and len(ours) == 2 * 2 * 6
    for name, pair in ours.items():
        up, down, alpha = theirs[name].weights[:3]
        assert torch.equal(up, pair.up) and torch.equal(down, pair.down) and alpha == pair.alpha == 1.5


# ---- FastComposer's UNet ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fastcomposers_unet_is_the_same_on_both_hosts():
    """Its tensors in the host's UNet give what diffusers' own UNet gives."""
    from diffusers import UNet2DConditionModel
    from troupe.model_patches.families import fastcomposer

    channels = (32, 64, 96, 96)
    state = fastcomposer_state(channels)
    weights = fastcomposer.build(state, "pytorch_model.bin").weights.unet
    ours = unet(SD15, "cpu", model_channels=32, channel_mult=[1, 2, 3, 3])
    ours.load_state_dict(weights)
    theirs = UNet2DConditionModel(block_out_channels=channels, cross_attention_dim=768, attention_head_dim=8).eval()
    theirs.load_state_dict(
        {name.removeprefix("unet."): tensor for name, tensor in state.items() if name.startswith("unet.")}
    )
    g = torch.Generator().manual_seed(1)
    x, text, t = (
        torch.randn(2, 4, 16, 24, generator=g),
        torch.randn(2, 7, 768, generator=g),
        torch.tensor([37.0, 800.0]),
    )
    expected = theirs(x, t, text).sample
    assert expected.std() > 0.1 and (ours(x, t, text) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_fastcomposers_unet_is_set_on_the_model_as_a_whole():
    """Nothing of the checkpoint's UNet is left."""
    from support.host.whole_unets import full_topology
    from troupe.model_patches.families import fastcomposer
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights, weights_of

    model = full_topology("SD15", 768)
    adapter = host_adapter(fastcomposer.build(fastcomposer_state((64,) * 4), "pytorch_model.bin"))
    patched, clip = apply_weights(model, adapter)
    assert clip is None and weights_of(patched) == {adapter.id: 1.0}
    assert patched.patches.keys() == {f"diffusion_model.{name}" for name in model.model.diffusion_model.state_dict()}
    patched.patch_model()
    found = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
    patched.unpatch_model()
    assert all(torch.equal(found[name], tensor) for name, tensor in adapter.weights.unet.items())


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(host, base_folder):
    """A new folder below models/subject_adapters of the host, gone afterwards."""
    import shutil

    import folder_paths
    from troupe.model_patches.hosts.comfyui.loading.adapters import register_folders

    register_folders()
    place = base_folder / "models" / "subject_adapters" / "portrait_generation"
    place.mkdir(parents=True)
    folder_paths.filename_list_cache.clear()
    yield place
    shutil.rmtree(place)
    folder_paths.filename_list_cache.clear()


def test_the_node_runs_again_when_any_of_mm_diffs_files_changes(folder, caplog):
    from troupe.model_patches.hosts.comfyui.loading import adapters
    from troupe.nodes.load_adapter import LoadAdapter

    paths = save_mm_diff(mm_diff_members(context=32, hidden=(8, 16), text=(12, 20), pooled=24, patches=40), folder)
    name = "portrait_generation/custom_weights.bin"
    assert name in adapters.adapter_names() and LoadAdapter.validate_inputs(name, "auto") is True
    with caplog.at_level("INFO", "troupe"):
        adapter = LoadAdapter.execute(name, "none").args[0]
    assert (
        "Troupe: loaded custom_weights.bin: MM-Diff for" in caplog.text
        and adapter.spec.part(PromptSpec).streams == {"l": 12, "g": 20}
        and len(adapter.weights.unet_lora) == 560
    )
    assert adapter.layers_patcher.model.layers[69].to_v_lora_image.up.weight.shape == (16, 3)
    before = LoadAdapter.fingerprint_inputs(name, "auto")
    for path in paths.values():
        path.write_bytes(path.read_bytes() + b"\0")
        assert LoadAdapter.fingerprint_inputs(name, "auto") != before
        before = LoadAdapter.fingerprint_inputs(name, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_mapping_projects_in_32_bits(folder, dtype):
    import safetensors.torch
    from troupe.model_patches.encoders.pseudo_words import PseudoWords
    from troupe.nodes.load_adapter import LoadAdapter

    state = {name: tensor.to(dtype) for name, tensor in umm_state(tokens=2).items()}
    safetensors.torch.save_file(
        state, folder / "umm.safetensors", {"format": "umm_diffusion", "tokens": "2", "normalize": "true"}
    )
    adapter = LoadAdapter.execute("subject_adapters/portrait_generation/umm.safetensors", "none").args[0]
    photos = torch.randn(3, 768, generator=torch.Generator().manual_seed(1))
    direct = PseudoWords((768, 32, 1536), tokens=2, normalize=True)
    direct.load_state_dict({name.removeprefix("mapping."): tensor.float() for name, tensor in state.items()})
    torch.testing.assert_close(adapter.project(photos), direct(photos).detach(), rtol=1e-5, atol=1e-6)


def test_a_file_of_the_table_that_is_not_there_says_where_it_is(folder):
    from troupe.nodes.load_adapter import LoadAdapter

    assert (
        "Download https://huggingface.co/mit-han-lab/fastcomposer/resolve/main/pytorch_model.bin"
        in LoadAdapter.validate_inputs("subject_adapters/fastcomposer.bin", "auto")
    )
    assert "Look on https://github.com/alibaba/mm-diff for it" in LoadAdapter.validate_inputs(
        "portrait_generation/custom_weights.bin", "auto"
    )
