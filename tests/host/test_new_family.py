"""A family that the pack does not have runs through the nodes of ComfyUI, and gives the predictions of the embedded
engine.
"""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file in the list of Load Subject Adapter, and the family in the list of families."""
    import folder_paths
    from support import mean_colour_family
    from troupe.model_patches.families import registry

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([str(tmp_path)], {".safetensors"}))
    monkeypatch.setattr(registry, "FAMILIES", [mean_colour_family, *registry.FAMILIES])
    folder_paths.filename_list_cache.pop("ipadapter", None)
    return tmp_path / "colours.safetensors"


def write(path, patcher):
    """The file of an adapter for this model."""
    import safetensors.torch
    from support import mean_colour_family
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    blocks = attention_blocks(patcher.model.diffusion_model)
    safetensors.torch.save_file(
        mean_colour_family.state_for([block.width for block in blocks], blocks[0].context_dim), path
    )


def references_of(colour):
    from support.host.node_chains import run
    from troupe.nodes.add_subject import AddSubject
    from troupe.nodes.encode_subjects import EncodeSubjects
    from troupe.nodes.load_adapter import LoadAdapter

    (adapter,) = run(LoadAdapter, adapter_name="colours.safetensors", clip_vision_name="auto")
    picture = torch.tensor(colour).expand(1, 16, 16, 3).contiguous()
    (cast,) = run(AddSubject, image=picture, name="subject", weight=1.0, start_percent=0.0, end_percent=1.0)
    (references,) = run(EncodeSubjects, adapter=adapter, cast=cast, framing="auto")
    return references


def test_it_runs_through_the_nodes(path):
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    write(path, st.patcher)
    latents = [ksample(st.patcher, st.positive, st.negative)]
    latents += [
        ksample(*st.apply(references_of(colour), settings("uniform", 1.0)))
        for colour in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    ]
    plain, red, blue = latents
    effects = [float((a - b).abs().max()) for a, b in ((red, plain), (blue, plain), (red, blue))]
    assert min(effects) > 1e-2, effects


def test_both_engines_predict_the_same(path):
    from dataclasses import replace

    from support.host.both_engines import both, host_calls, same_predictions
    from support.host.small_casts import settings
    from troupe.model_patches.hosts.diffusers.encoders import load_adapter
    from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention

    st, unet = both("SD15")
    write(path, st.patcher)
    references, widgets = references_of((0.2, 0.9, 0.4)), settings("uniform", 1.0)
    calls = host_calls(st.patcher.model.diffusion_model, st.apply(references, widgets))
    own = replace(references, adapter=load_adapter(path))
    assert len(same_predictions(unet, [ImageAttention(unet, own, widgets)], calls, st)) == 3
