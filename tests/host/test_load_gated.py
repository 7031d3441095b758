"""Load Subject Adapter on gated files: GLIGEN beside its projection matrix, Subject-Diffusion by any member, and when a
node has to run again.
"""

import pytest
import safetensors.torch
import torch
from support.published_layouts import SD15, SDXL, gligen_state, position_net, save_members, subject_diffusion_members
from troupe.model_patches.adapter import PhotoSpec
from troupe.model_patches.errors import CheckpointError

FEW = {
    "input_blocks.1.1.transformer_blocks.0": 64,
    "output_blocks.3.1.transformer_blocks.0": 128,
    "middle_block.1.transformer_blocks.0": 64,
}
SMALL = {"context": 128, "pooled": 8, "feature": 16, "tokens": 3}


@pytest.fixture
def folder(host, base_folder):
    """A new folder below models/gligen and models/subject_adapters of the host, gone afterwards."""
    import shutil

    import folder_paths
    from troupe.model_patches.hosts.comfyui.loading.adapters import register_folders

    register_folders()
    places = {}
    for kind in ("gligen", "subject_adapters"):
        places[kind] = base_folder / "models" / kind / "mine"
        places[kind].mkdir(parents=True)
    folder_paths.filename_list_cache.clear()
    yield places
    for place in places.values():
        shutil.rmtree(place)
    folder_paths.filename_list_cache.clear()


def node():
    from troupe.nodes.load_adapter import LoadAdapter

    return LoadAdapter


def test_a_text_image_file_is_loaded_by_the_node(folder, caplog):
    from troupe.model_patches.hosts.comfyui.loading import adapters

    state = {name: tensor.half() for name, tensor in gligen_state("text_image", FEW, layout="diffusers").items()}
    matrix = torch.randn(SD15, SD15, generator=torch.Generator().manual_seed(1)) * SD15**-0.5
    safetensors.torch.save_file(state, folder["gligen"] / "ti.safetensors")
    name = "mine/ti.safetensors"
    assert name in adapters.adapter_names() and node().validate_inputs(name, "auto") is True
    with pytest.raises(CheckpointError, match="save it beside that file"):
        node().execute(name, "auto")
    before = node().fingerprint_inputs(name, "auto")
    torch.save(matrix, folder["gligen"] / "projection_matrix")
    assert node().fingerprint_inputs(name, "auto") != before
    with caplog.at_level("INFO", "troupe"):
        adapter = node().execute(name, "auto").args[0]
    assert "GLIGEN text-image boxes for SD1.5 (3 gated layers)" in caplog.text
    e = torch.randn(2, SD15, generator=torch.Generator().manual_seed(2))
    v = e @ matrix
    torch.testing.assert_close(adapter.project(e), 28.7 * v / v.norm(dim=-1, keepdim=True))
    gated = adapter.gated_patcher.model
    assert gated.net.linears_text[0].weight.dtype == torch.float16 and adapter.layers_patcher is None
    boxes, here = torch.rand(1, 2, 4), torch.ones(1, 2).bool()
    text = torch.randn(1, 2, SD15, generator=torch.Generator().manual_seed(3))
    net = position_net("text_image", SD15, SD15, 16)
    assert torch.isfinite(gated.net(boxes, here, here, here, text, text)).all(), "layers of 16 bits take 32"
    assert torch.equal(gated.net.null_image_feature.weight, net["null_image_feature"].half())


@pytest.mark.parametrize("context, sdxl", [(SD15, False), (SDXL, True)])
def test_a_text_file_needs_no_image_encoder(folder, context, sdxl):
    safetensors.torch.save_file(
        gligen_state("text", None if sdxl else FEW, context=context, feature=context, sdxl=sdxl),
        folder["gligen"] / "t.safetensors",
    )
    adapter = node().execute("gligen\\mine\\t.safetensors", "auto").args[0]
    assert adapter.clip_vision() is None and adapter.projection_patcher is None and not adapter.spec.has(PhotoSpec)
    assert len(adapter.gated_patcher.model.fusers) == (70 if sdxl else 3)


def test_a_pruned_text_file_is_read_as_the_hosts_own_gligen_reads_it(folder):
    """The same file, layers and position net of ComfyUI's own loader, which lists the middle block before the output
    blocks.
    """
    import comfy.gligen

    state = gligen_state("text", hidden=512)
    safetensors.torch.save_file(state, folder["gligen"] / "pruned.safetensors")
    ours = node().execute("gligen/mine/pruned.safetensors", "auto").args[0].gated_patcher.model
    theirs = comfy.gligen.load_gligen(dict(state))
    boxes, here, text = (
        torch.rand(1, 3, 4),
        torch.tensor([[True, True, False]]),
        torch.randn(1, 3, SD15, generator=torch.Generator().manual_seed(4)),
    )
    objects = ours.net(boxes, here, text)
    torch.testing.assert_close(objects, theirs.position_net(boxes, here.float(), text), rtol=1e-5, atol=1e-6)
    in_their_order = [*range(6), 15, *range(6, 15)]
    assert len(ours.fusers) == len(theirs.module_list) == 16
    x = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(5))
    for mine, module in zip((ours.fusers[i] for i in in_their_order), theirs.module_list, strict=True):
        torch.testing.assert_close(
            mine(x, mine.project(objects)), module(x, objects.expand(2, -1, -1)), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("chosen", ["unet", "clip_text", "mlp", "proj"])
def test_a_set_is_chosen_by_any_member_and_watched_whole(folder, chosen):
    from troupe.model_patches.hosts.comfyui.loading import adapters

    paths = save_members(subject_diffusion_members(FEW_SD, **SMALL), folder["subject_adapters"])
    name = f"mine/{chosen}_0_449999/pytorch_model.bin"
    assert name in adapters.adapter_names()
    adapter = node().execute(name, "none").args[0]
    assert adapter.spec.family == "subject_diffusion" and adapter.spec.file == f"{chosen}_0_449999/pytorch_model.bin"
    assert (
        adapter.gated_patcher.model.mask_conv.weight.shape == (64, 1, 3, 3)
        and "input_blocks.0.0.weight" in adapter.weights.unet
        and adapter.weights.text
    )
    assert adapter.project(torch.randn(2, 8)).shape == (2, 128)
    before = adapters.fingerprint(name)
    for path in paths.values():
        path.write_bytes(path.read_bytes() + b"\0")
        assert adapters.fingerprint(name) != before
        before = adapters.fingerprint(name)
    save_members({"clip_visual": {"ln_post.weight": torch.ones(16)}}, folder["subject_adapters"])
    assert adapters.fingerprint(name) != before


FEW_SD = {
    "input_blocks.1.1.transformer_blocks.0": 64,
    "output_blocks.5.1.transformer_blocks.0": 64,
    "middle_block.1.transformer_blocks.0": 64,
}
