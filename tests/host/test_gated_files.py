"""Gated adapters from files on disk through the nodes to the sampled latent, against a separate evaluation of every
stage.
"""

import json

import pytest
import torch
from support.host.node_chains import HIDDEN, photo, run
from support.host.whole_unets import full_topology, sharp

pytestmark = pytest.mark.usefixtures("host")
PATCHES, WIDE = 16, 768  # patches of the tiny CLIP vision encoder; the pooled width of ViT-L
PHOTOS = {"corgi dog": [photo(40, 70, 1)], "red-haired girl": [photo(64, 50, 2), photo(33, 33, 3)]}
BOXES = [{"label": "corgi dog", "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.6}, {"x": 0.5, "y": 0.25, "w": 0.4, "h": 0.5}]


@pytest.fixture(scope="module")
def wide_vision(host, tmp_path_factory):
    from support.host import tiny_models

    return tiny_models.tiny_clip_vision(
        hidden=HIDDEN, projection=WIDE, tmp=str(tmp_path_factory.mktemp("clip_vision") / "wide.json")
    )


def cast_of(pack, names=True):
    """Add Subject twice, then Place Subjects."""
    cast = None
    for name, images in PHOTOS.items():
        more = {f"same_subject_{i}": image for i, image in enumerate(images[1:], 2)}
        (cast,) = run(
            pack.AddSubject,
            image=images[0],
            name=f"({name}:1.3)" if names else "",
            weight=1.0,
            start_percent=0.0,
            end_percent=1.0,
            cast=cast,
            **more,
        )
    return run(pack.PlaceSubjects, cast=cast, width=128, height=128, boxes=json.dumps(BOXES), layout="none")[0]


def expected_texts(clip):
    """CLIP's pooled text vector before its projection, by the host itself."""
    return [clip.encode_from_tokens(clip.tokenize(name), return_pooled="unprojected")[1][0] for name in PHOTOS]


def expected_image(vision, images, matrix):
    """Mean of the photos' unit embeddings, through the matrix, to length 28.7."""
    embeds = torch.cat([vision.encode_image(image).image_embeds for image in images])
    v = (embeds / embeds.norm(dim=-1, keepdim=True)).mean(0) @ matrix
    return 28.7 * v / v.norm()


def stretched(image):
    return (
        torch.nn.functional.interpolate(image.movedim(-1, 1), (32, 32), mode="bicubic", antialias=True)
        .movedim(1, -1)
        .clamp(0, 1)
    )


def check(st, model, positive, negative, truth):
    from support.host import independent_gated_evaluation as independent_gated
    from support.host.small_casts import error, ksample, noise_of

    noise = noise_of()
    expected = independent_gated.sample(st.patcher, [truth], st.positive, st.negative, noise)
    assert (
        error(
            ksample(model, positive, negative),
            expected,
            independent_gated.sample(st.patcher, [], st.positive, st.negative, noise),
        )
        < 1e-3
    )


@pytest.mark.parametrize("layout", ["ldm", "wrapped", "diffusers"])
@pytest.mark.parametrize("kind", ["text", "text_image"])
def test_gligen_files_to_latent(kind, layout, base_folder, clips, wide_vision):
    import safetensors.torch
    from support.host import tiny_models
    from support.host.small_gated_casts import GatedStage
    from support.published_layouts import SD_WIDTHS, gligen_state
    from troupe import nodes as pack
    from troupe.model_patches.binding.settings import GatedSettings

    patcher, clip = full_topology("SD15", 768), clips("sd15")
    state = sharp(gligen_state(kind, SD_WIDTHS, layout, whole=layout != "ldm"))
    folder = base_folder / "models" / "gligen" / f"{kind}_{layout}"
    folder.mkdir(parents=True, exist_ok=True)
    name = "model.bin" if layout == "wrapped" else "model.safetensors"
    if layout == "wrapped":
        torch.save({"model": {k[6:]: v for k, v in state.items() if k.startswith("model.")}}, folder / name)
    else:
        safetensors.torch.save_file(state, folder / name)
    matrix = torch.randn(768, 768, generator=torch.Generator().manual_seed(8)) / 28
    if kind == "text_image":
        torch.save(matrix, folder / "projection_matrix")
    (adapter,) = run(pack.LoadAdapter, adapter_name=f"gligen/{folder.name}/{name}", clip_vision_name="none")
    (references,) = run(
        pack.EncodeSubjects, adapter=adapter, cast=cast_of(pack), framing="auto", clip=clip, clip_vision=wide_vision
    )
    st = GatedStage(
        patcher, adapter, tiny_models.random_cond(77, 768, seed=1), tiny_models.random_cond(77, 768, seed=2)
    )
    given = dict(strength=1.0, end_percent=1.0, decay_percent=0.0, use_bbox="auto")
    model, positive, negative, _ = run(
        pack.ApplyGated, model=patcher, references=references, positive=st.positive, negative=st.negative, **given
    )
    truth = st.truth(references, GatedSettings())
    truth.text = expected_texts(clip)
    truth.image = [
        expected_image(wide_vision, images, matrix) if kind == "text_image" else None for images in PHOTOS.values()
    ]
    truth.boxes = [(b["x"], b["y"], b["x"] + b["w"], b["y"] + b["h"]) for b in BOXES]
    check(st, model, positive, negative, truth)


def test_subject_diffusions_files_to_latent(base_folder, vision):
    from support.host import tiny_models
    from support.host.small_gated_casts import GatedStage
    from support.published_layouts import SD_WIDTHS, save_members, subject_diffusion_members
    from troupe import nodes as pack
    from troupe.model_patches.binding.settings import GatedSettings

    patcher = full_topology("SD20", 1024)
    members = subject_diffusion_members(SD_WIDTHS, pooled=16, feature=HIDDEN, tokens=PATCHES)
    members = {name: sharp(state) for name, state in members.items()}
    save_members(members, base_folder / "models" / "subject_adapters")
    (adapter,) = run(
        pack.LoadAdapter, adapter_name="subject_adapters/unet_0_449999/pytorch_model.bin", clip_vision_name="none"
    )
    (references,) = run(pack.EncodeSubjects, adapter=adapter, cast=cast_of(pack), framing="stretch", clip_vision=vision)
    st = GatedStage(
        patcher, adapter, tiny_models.random_cond(77, 1024, seed=1), tiny_models.random_cond(77, 1024, seed=2)
    )
    weighted, _ = run(pack.ApplyAdapterWeights, model=patcher, adapter=adapter, strength_model=1.0, strength_clip=1.0)
    given = dict(strength=1.0, end_percent=1.0, decay_percent=0.0, use_bbox="auto")
    model, positive, negative, _ = run(
        pack.ApplyGated, model=weighted, references=references, positive=st.positive, negative=st.negative, **given
    )
    truth = st.truth(references, GatedSettings())
    truth.image = [
        torch.stack([vision.encode_image(stretched(p)).last_hidden_state[0, 1:] for p in images]).mean(0)
        for images in PHOTOS.values()
    ]
    truth.boxes = [(b["x"], b["y"], b["x"] + b["w"], b["y"] + b["h"]) for b in BOXES]
    naive = full_topology("SD20", 1024)
    _merge(naive.model.diffusion_model, members["unet"])
    truth.mask_conv = members["unet"]["conv_in.weight"][:, 4:]
    st.patcher = naive
    check(st, model, positive, negative, truth)


def _merge(unet, state):
    """The official UNet's first convolution (four channels) and cross-attention keys and values, put into the host's
    modules by hand.
    """
    from support.published_layouts import SD_PLACES

    unet.input_blocks[0][0].weight.data.copy_(state["conv_in.weight"][:, :4])
    unet.input_blocks[0][0].bias.data.copy_(state["conv_in.bias"])
    for diffusers, ldm in SD_PLACES.items():
        for kv in "kv":
            unet.get_submodule(f"{ldm}.transformer_blocks.0.attn2.to_{kv}").weight.data.copy_(
                state[f"{diffusers}.transformer_blocks.0.attn2.to_{kv}.weight"]
            )


def test_a_file_without_its_weights_on_the_model_warns_wherever_they_are_put(base_folder, vision, caplog):
    from support.host import tiny_models
    from support.host.small_casts import ksample
    from support.published_layouts import SD_WIDTHS, save_members, subject_diffusion_members
    from troupe import nodes as pack

    save_members(
        subject_diffusion_members(SD_WIDTHS, pooled=16, feature=HIDDEN, tokens=PATCHES),
        base_folder / "models" / "subject_adapters" / "other",
    )
    name = "subject_adapters/other/unet_0_449999/pytorch_model.bin"
    (adapter,), (again,) = (run(pack.LoadAdapter, adapter_name=name, clip_vision_name="none") for _ in range(2))
    (references,) = run(pack.EncodeSubjects, adapter=adapter, cast=cast_of(pack), framing="auto", clip_vision=vision)
    patcher, prompt = full_topology("SD20", 1024), tiny_models.random_cond(77, 1024, seed=1)
    given = dict(
        references=references,
        positive=prompt,
        negative=prompt,
        strength=1.0,
        end_percent=1.0,
        decay_percent=0.0,
        use_bbox="auto",
    )

    def warned(model, positive, negative):
        caplog.clear()
        ksample(model, positive, negative, size=(8, 8), steps=1)
        return "add Apply Adapter Weights to the MODEL wire" in caplog.text

    def weighted(model, loaded):
        return run(pack.ApplyAdapterWeights, model=model, adapter=loaded, strength_model=1.0, strength_clip=1.0)[0]

    plain = run(pack.ApplyGated, model=patcher, **given)[:3]
    assert warned(*plain)
    assert not warned(weighted(plain[0], adapter), *plain[1:])
    # another node has loaded the same file
    assert not warned(*run(pack.ApplyGated, model=weighted(patcher, again), **given)[:3])
