"""Adapters that act in the prompt, from files on disk through the nodes to the sampled latent, against a separate
evaluation of every stage.
"""

import pytest
import torch
from support.host.fused_by_hand import by_hand, position_of
from support.host.node_chains import photo, run
from support.host.whole_unets import full_topology, micro_patcher, sharp

pytestmark = pytest.mark.usefixtures("host")
HIDDEN, POOLED = 32, 768  # of a tiny CLIP vision encoder with the pooled width of ViT-L
TEXT = "a photo of a woman and a man in snow"


@pytest.fixture(scope="module")
def eyes(host, tmp_path_factory):
    """`eyes()`: a new tiny CLIP vision encoder, always with the same weights."""
    from support.host import tiny_models

    path = str(tmp_path_factory.mktemp("clip_vision") / "wide.json")
    return lambda: tiny_models.tiny_clip_vision(hidden=HIDDEN, projection=POOLED, tmp=path)


def thin_sdxl():
    """A micro model with SDXL's seventy transformer blocks, all 64 wide."""
    import comfy.supported_models as sm

    config = dict(
        model_channels=64,
        context_dim=2048,
        in_channels=4,
        out_channels=4,
        image_size=32,
        use_spatial_transformer=True,
        legacy=False,
        channel_mult=[1] * 3,
        num_res_blocks=[2] * 3,
        transformer_depth=[0, 0, 2, 2, 10, 10],
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
        transformer_depth_middle=10,
        use_linear_in_transformer=True,
        num_classes="sequential",
        adm_in_channels=2816,
        dtype=torch.float32,
    )

    return micro_patcher(sm.SDXL, config)


def faces(n, seed):
    """Prepared faces of n photos."""
    from troupe.model_patches.encoding.faces import Faces

    g = torch.Generator().manual_seed(seed)
    return Faces(
        torch.nn.functional.normalize(torch.randn(n, 512, generator=g), dim=-1), torch.rand(n, 224, 224, 3, generator=g)
    )


PEOPLE = {"woman": [photo(40, 70, 1), photo(50, 50, 2)], "man": [photo(64, 50, 3)]}
FACES = {"woman": 11, "man": 12}


def cast_of(pack):
    cast = None
    for name, images in PEOPLE.items():
        more = {f"same_subject_{i}": image for i, image in enumerate(images[1:], 2)}
        given = dict(weight=1.0, start_percent=0.0, end_percent=1.0, cast=cast, faces=faces(len(images), FACES[name]))
        (cast,) = run(pack.AddSubject, image=images[0], name=name, **given, **more)
    return cast


def mm_diff_members():
    from support.published_layouts import mm_diff_members

    members = mm_diff_members(hidden=(64, 64), patches=HIDDEN, layers=3)
    return {
        name: {k: v * (0.3 if "_lora" in k or "lora_linear" in k else 1.0) for k, v in sharp(state).items()}
        for name, state in members.items()
    }


def in_order(members):
    """(LDM path of a transformer block, index of its attn1 entry), in the order of the file: down, up, mid."""
    from support.published_layouts import SDXL_WIDTHS

    return [(path, 2 * i) for i, path in enumerate(SDXL_WIDTHS)]


def with_lora(unet, members):
    """Every pair added to its weight by hand; returns the layers' image matrices, made from the weights as they
    were.
    """
    state, kv = members["unet_adapter_weights"], []
    for path, index in in_order(members):
        block = unet.get_submodule(path)
        base = [block.attn2.to_k.weight.clone(), block.attn2.to_v.weight.clone()]
        kv.append(
            (
                *(
                    w
                    + state[f"{index + 1}.to_{x}_lora_image.up.weight"]
                    @ state[f"{index + 1}.to_{x}_lora_image.down.weight"]
                    for w, x in zip(base, "kv", strict=True)
                ),
                None,
            )
        )
        for attn, i in ((block.attn1, index), (block.attn2, index + 1)):
            for part, layer in (("q", attn.to_q), ("k", attn.to_k), ("v", attn.to_v), ("out", attn.to_out[0])):
                layer.weight.data.add_(
                    state[f"{i}.to_{part}_lora.up.weight"] @ state[f"{i}.to_{part}_lora.down.weight"]
                )
    return kv


def clip_with_lora(members, second=True):
    """A tiny SDXL CLIP with the file's pairs merged by hand."""
    from support.host import tiny_models

    clip = tiny_models.tiny_clip("sdxl")
    for stream, encoder in (("l", "text_encoder"), ("g", "text_encoder_2"))[: 2 if second else 1]:
        model = getattr(clip.cond_stage_model, f"clip_{stream}").transformer
        pairs = {
            k.removeprefix(f"{encoder}."): v
            for k, v in members["text_encoder_adapter_weights"].items()
            if k.startswith(f"{encoder}.")
        }
        for name in {k.rsplit(".lora_linear_layer.", 1)[0] for k in pairs}:
            down, up = (pairs[f"{name}.lora_linear_layer.{part}.weight"] for part in ("down", "up"))
            model.get_submodule(name).weight.data.add_(up @ down)
    return clip


def expected_subjects(members, eyes):
    """(words of CLIP-L, words of bigG, image tokens) of each person."""
    from troupe.model_patches.encoders.refiner import SubjectHead
    from troupe.model_patches.encoding.framing import black_square

    custom, found = members["custom_weights"], []
    tuned, untouched = eyes(), eyes()
    tuned.model.load_state_dict(
        {k.removeprefix("image_encoder."): v for k, v in custom.items() if k.startswith("image_encoder.")}, strict=False
    )
    head_state = {
        k.removeprefix("face_embeds_proj."): v for k, v in custom.items() if k.startswith("face_embeds_proj.")
    }
    head = SubjectHead(**SubjectHead.widths(head_state))
    head.load_state_dict(head_state)
    for name, images in PEOPLE.items():
        pooled = tuned.encode_image(black_square(images[0][0], 32)[None]).image_embeds
        w = {k.removeprefix("obj_embeds_proj."): v for k, v in custom.items() if k.startswith("obj_embeds_proj.")}
        h = torch.nn.functional.layer_norm(pooled, (POOLED,), w["layernorm.weight"], w["layernorm.bias"])
        h = torch.nn.functional.gelu(h @ w["fc.weight"].T + w["fc.bias"])
        mine = faces(len(images), FACES[name])
        dense = untouched.encode_image(mine.crops).penultimate_hidden_states
        found.append(
            (
                h @ w["proj_1.weight"].T + w["proj_1.bias"],
                h @ w["proj_2.weight"].T + w["proj_2.bias"],
                head(mine.vectors, dense).flatten(0, 1),
            )
        )
    return found


@pytest.mark.parametrize("quirks", ["clean", "official"])
def test_mm_diffs_files_to_latent(quirks, base_folder, eyes):
    from support.host import independent_evaluation as independent
    from support.host import tiny_models
    from support.host.independent_evaluation import Truth
    from support.host.small_casts import error, ksample, noise_of
    from support.published_layouts import save_mm_diff
    from troupe import nodes as pack

    members = mm_diff_members()
    save_mm_diff(members, base_folder / "models" / "subject_adapters" / f"portrait_{quirks}")
    (adapter,) = run(
        pack.LoadAdapter, adapter_name=f"subject_adapters/portrait_{quirks}/custom_weights.bin", clip_vision_name="none"
    )
    (references,) = run(pack.EncodeSubjects, adapter=adapter, cast=cast_of(pack), framing="auto", clip_vision=eyes())
    expected = expected_subjects(members, eyes)
    for subject, (one, two, tokens) in zip(references.subjects, expected, strict=True):
        for found, wanted in ((subject.words["l"], one), (subject.words["g"], two), (subject.tokens, tokens)):
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert [len(s.tokens) for s in references.subjects] == [8, 4]
    patcher, clip = thin_sdxl(), tiny_models.tiny_clip("sdxl")
    model, clip = run(
        pack.ApplyAdapterWeights, model=patcher, adapter=adapter, strength_model=1.0, strength_clip=1.0, clip=clip
    )
    given = dict(clip=clip, references=references, fuse_start_percent=0.0, fuse_start_step=-1, quirks=quirks)
    (positive, text_only) = run(pack.EncodePrompt, text=TEXT, **given)
    official = quirks == "official"
    if official:
        (negative, _) = run(pack.EncodePrompt, text="ugly, blurry, and so much too dark here", places_of=TEXT, **given)
    else:
        negative = clip.encode_from_tokens_scheduled(clip.tokenize("ugly"))
    by_itself = clip_with_lora(members, second=not official)
    rows = [position_of(by_itself, "l", TEXT, name) for name in PEOPLE]
    (states, pooled), (plain, plain_pooled) = by_hand("word", by_itself, references, TEXT, rows)
    torch.testing.assert_close(positive[0][0], states, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(positive[0][1]["pooled_output"], pooled, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(text_only[0][0], plain, rtol=1e-3, atol=2e-4)
    if official:
        leaked, _ = by_hand("word", by_itself, references, "ugly, blurry, and so much too dark here", rows)
        torch.testing.assert_close(negative[0][0], leaked[0], rtol=1e-3, atol=2e-4)
        return
    settings = dict(
        weight=0.8,
        merge="auto",
        start_percent=0.0,
        end_percent=1.0,
        box_strength=1.0,
        box_end_percent=1.0,
        box_feather=0.05,
        sharpness=1.0,
        background=1.0,
    )
    model, with_records, unconditional, _ = run(
        pack.ApplyImageAttention, model=model, references=references, positive=positive, negative=negative, **settings
    )
    naive = thin_sdxl()
    truth = Truth(
        [tokens for *_, tokens in expected],
        None,
        with_lora(naive.model.diffusion_model, members),
        None,
        None,
        [1.0, 1.0],
        0.8,
        "joint",
    )
    noise = noise_of((8, 8))
    wanted = independent.sample(naive, truth, positive, negative, noise)
    without = independent.sample(naive, None, positive, negative, noise)
    assert error(ksample(model, with_records, unconditional, size=(8, 8)), wanted, without) < 1e-3


def test_umms_file_to_conditioning(base_folder, eyes, clips):
    import safetensors.torch
    from support.published_layouts import umm_state
    from troupe import nodes as pack
    from troupe.model_patches.encoding.framing import frame

    state = sharp(umm_state(widths=(POOLED, 32, 768)))
    metadata = {"format": "umm_diffusion", "activation": "silu", "normalize": "true"}
    safetensors.torch.save_file(
        state, base_folder / "models" / "subject_adapters" / "mapping.safetensors", metadata=metadata
    )
    (adapter,) = run(pack.LoadAdapter, adapter_name="subject_adapters/mapping.safetensors", clip_vision_name="none")
    (references,) = run(pack.EncodeSubjects, adapter=adapter, cast=cast_of(pack), framing="auto", clip_vision=eyes())
    for subject, images in zip(references.subjects, PEOPLE.values(), strict=True):
        z = torch.cat([eyes().encode_image(frame(image[0], 32, "pad")[None]).image_embeds for image in images])
        z = z / z.norm(dim=-1, keepdim=True)
        h = torch.nn.functional.silu(z @ state["mapping.layers.0.weight"].T + state["mapping.layers.0.bias"])
        wanted = (h @ state["mapping.layers.1.weight"].T + state["mapping.layers.1.bias"]).mean(0)
        torch.testing.assert_close(subject.words["l"][0], wanted, rtol=1e-3, atol=1e-4)
    clip = clips("sd15")
    (positive, _) = run(
        pack.EncodePrompt,
        clip=clip,
        references=references,
        text=TEXT,
        fuse_start_percent=0.0,
        fuse_start_step=-1,
        quirks="clean",
    )
    (states, _), _ = by_hand("pseudo", clip, references, TEXT, [position_of(clip, "l", TEXT, name) for name in PEOPLE])
    torch.testing.assert_close(positive[0][0], states, rtol=1e-3, atol=2e-4)


def test_fastcomposers_file_to_latent(base_folder, eyes, clips):
    import comfy.utils
    from support.host import tiny_models
    from support.host.small_casts import ksample
    from support.published_layouts import fastcomposer_state
    from troupe import nodes as pack

    state = sharp(fastcomposer_state(channels=(64, 64, 64, 64), hidden=HIDDEN))
    # not where other tests expect that nothing is
    (base_folder / "models" / "subject_adapters" / "files").mkdir(exist_ok=True)
    torch.save(state, base_folder / "models" / "subject_adapters" / "files" / "fastcomposer.bin")
    (adapter,) = run(pack.LoadAdapter, adapter_name="subject_adapters/files/fastcomposer.bin", clip_vision_name="none")
    (references,) = run(pack.EncodeSubjects, adapter=adapter, cast=cast_of(pack), framing="auto", clip_vision=eyes())
    patcher, clip = full_topology("SD15", 768), clips("sd15")
    model, _ = run(pack.ApplyAdapterWeights, model=patcher, adapter=adapter, strength_model=1.0, strength_clip=1.0)
    (positive, _) = run(
        pack.EncodePrompt,
        clip=clip,
        references=references,
        text=TEXT,
        fuse_start_percent=0.0,
        fuse_start_step=-1,
        quirks="clean",
    )
    (states, _), _ = by_hand(
        "postfuse", clip, references, TEXT, [position_of(clip, "l", TEXT, name) for name in PEOPLE]
    )
    torch.testing.assert_close(positive[0][0], states, rtol=1e-3, atol=2e-4)
    negative = tiny_models.random_cond(77, 768, seed=2)
    naive = full_topology("SD15", 768)
    config = dict(
        channel_mult=[1] * 4,
        num_res_blocks=[2] * 4,
        transformer_depth=[1] * 6 + [0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1,
    )
    names = comfy.utils.unet_to_diffusers(config)
    own = naive.model.diffusion_model.state_dict()
    own.update(
        {
            ldm: state[f"unet.{diffusers}"].reshape(own[ldm].shape)
            for diffusers, ldm in names.items()
            if f"unet.{diffusers}" in state
        }
    )
    naive.model.diffusion_model.load_state_dict(own)
    found, wanted, before = (ksample(m, positive, negative, size=(8, 8)) for m in (model, naive, patcher))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert (found - before).abs().max() > 1e-2 * wanted.abs().max()
