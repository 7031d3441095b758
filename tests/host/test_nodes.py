"""From files on disk through the nodes to the sampled latent, against a separate evaluation of every stage."""

import pytest
import torch
from support.host.node_chains import HIDDEN, POOLED, photo, run
from troupe.model_patches.attention.merges import MERGES, Mixing

pytestmark = pytest.mark.usefixtures("host")
KINDS = {"sd15": ("SD15", 768), "sd20": ("SD20", 1024), "sdxl": ("SDXL", 2048)}


def resampler_state(context, dim=64, tokens=6, seed=21):
    """Random `plus` projection in the published layout, heads of 64."""
    from support.host.small_casts import random

    def matrix(out, width, offset):
        return random(out, width, seed=seed + offset, gain=width**-0.5)

    def near(value, width, offset):
        return value + random(width, seed=seed + offset, gain=0.1)

    state = {
        "latents": random(1, tokens, dim, seed=seed),
        "proj_in.weight": matrix(dim, HIDDEN, 1),
        "proj_in.bias": near(0, dim, 2),
        "proj_out.weight": matrix(context, dim, 3),
        "proj_out.bias": near(0, context, 4),
        "norm_out.weight": near(1, context, 5),
        "norm_out.bias": near(0, context, 6),
    }
    for i in range(2):
        k = 100 * (i + 1)
        for j, norm in enumerate(("0.norm1", "0.norm2", "1.0")):
            state |= {
                f"layers.{i}.{norm}.weight": near(1, dim, k + j),
                f"layers.{i}.{norm}.bias": near(0, dim, k + 10 + j),
            }
        for j, (name, out, width) in enumerate(
            (
                ("0.to_q", 64, dim),
                ("0.to_kv", 128, dim),
                ("0.to_out", dim, 64),
                ("1.1", 4 * dim, dim),
                ("1.3", dim, 4 * dim),
            )
        ):
            state[f"layers.{i}.{name}.weight"] = matrix(out, width, k + 20 + j)
    return {f"image_proj.{k}": v for k, v in state.items()}


def padded(image):
    """[1, h, w, 3] on a white square, centred."""
    _, h, w, _ = image.shape
    side = max(h, w)
    square = torch.ones(1, side, side, 3)
    square[:, (side - h) // 2 : (side - h) // 2 + h, (side - w) // 2 : (side - w) // 2 + w] = image
    return square


def expected_tokens(adapter, vision, photos, plus):
    """Mean over photos of the projection of the host's own encoding of the padded photo; and the uncond tokens."""
    module = adapter.projection_patcher.model
    outputs = [vision.encode_image(padded(p)) for p in photos]
    features = [o.penultimate_hidden_states if plus else o.image_embeds for o in outputs]
    blank = (
        vision.model(pixel_values=torch.zeros(1, 3, 32, 32), intermediate_output=-2)[1]
        if plus
        else torch.zeros(1, POOLED)
    )
    return torch.cat([module(f) for f in features]).mean(0), module(blank)[0]


def expected_name(clip, name):
    """Rows 1..L of the name encoded alone."""
    tokens = clip.tokenize(name)
    stream = [t for t, *_ in tokens.get("l", tokens.get("h"))[0]]
    return clip.encode_from_tokens(tokens)[0, 1 : stream.index(49407)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["plus", "mip", "plain"])
def test_files_to_latent(kind, variant, base_folder, clips, vision):
    import safetensors.torch
    from support.host import independent_evaluation as independent
    from support.host import tiny_models
    from support.host.small_casts import adapter_state, error, ksample, noise_of, settings, stage
    from troupe import nodes as pack

    base, context = KINDS[kind]
    patcher = tiny_models.micro_model(base, context_dim=context)
    state = adapter_state(patcher, text_gain=variant == "mip", embed=POOLED)
    if variant == "plus":
        state = {**{k: v for k, v in state.items() if k.startswith("ip_adapter.")}, **resampler_state(context)}
    nested = {
        part: {k[len(part) + 1 :]: v for k, v in state.items() if k.startswith(part)}
        for part in ("image_proj", "ip_adapter")
    }
    name = f"{kind}_{variant}." + ("bin" if variant == "mip" else "safetensors")
    path = base_folder / "models" / "ipadapter" / name
    torch.save(nested, path) if variant == "mip" else safetensors.torch.save_file(state, path)
    clip = clips(kind)
    st = stage(patcher=patcher)
    st.state = state
    (st.adapter,) = run(pack.LoadAdapter, adapter_name=f"ipadapter/{name}", clip_vision_name="none")
    photos = {"corgi dog": [photo(40, 70, 1)], "red-haired girl": [photo(64, 50, 2), photo(33, 33, 3)]}
    cast = None
    for subject, images in photos.items():
        more = {f"same_subject_{i}": image for i, image in enumerate(images[1:], 2)}
        (cast,) = run(
            pack.AddSubject,
            image=images[0],
            name=f"({subject}:1.3)",
            weight=1.0,
            start_percent=0.0,
            end_percent=1.0,
            cast=cast,
            **more,
        )
    (references,) = run(
        pack.EncodeSubjects, adapter=st.adapter, cast=cast, framing="auto", clip=clip, clip_vision=vision
    )
    tokens = [expected_tokens(st.adapter, vision, images, variant == "plus") for images in photos.values()]
    names = [expected_name(clip, subject) for subject in photos]
    empty = clip.encode_from_tokens(clip.tokenize(""))[0, 1:]
    truth = st.truth(references, settings())
    truth.tokens, truth.uncond, truth.names, truth.empty = [t for t, _ in tokens], tokens[0][1], names, empty
    given = dict(
        weight=0.65,
        merge="auto",
        start_percent=0.0,
        end_percent=1.0,
        box_strength=1.0,
        box_end_percent=1.0,
        box_feather=0.05,
        sharpness=1.0,
        background=1.0,
    )
    model, positive, negative, _ = run(
        pack.ApplyImageAttention,
        model=patcher,
        references=references,
        positive=st.positive,
        negative=st.negative,
        **given,
    )
    noise = noise_of()
    expected = independent.sample(patcher, truth, st.positive, st.negative, noise)
    assert (
        error(
            ksample(model, positive, negative),
            expected,
            independent.sample(patcher, None, st.positive, st.negative, noise),
        )
        < 1e-3
    )


def test_quick_subjects_is_the_four_nodes(base_folder, clips, vision):
    import safetensors.torch
    from support.host import tiny_models
    from support.host.small_casts import adapter_state, ksample, stage
    from troupe import nodes as pack

    patcher = tiny_models.micro_model("SD15", context_dim=768)
    safetensors.torch.save_file(
        adapter_state(patcher, embed=POOLED), base_folder / "models" / "ipadapter" / "quick.safetensors"
    )
    st, clip, name = stage(patcher=patcher), clips("sd15"), "ipadapter/quick.safetensors"
    (adapter,) = run(pack.LoadAdapter, adapter_name=name, clip_vision_name="none")
    (cast,) = run(pack.AddSubject, image=photo(40, 40, 1), name="cat", weight=1.0, start_percent=0.0, end_percent=1.0)
    (cast,) = run(
        pack.AddSubject, image=photo(50, 40, 2), name="dog", weight=1.0, start_percent=0.0, end_percent=1.0, cast=cast
    )
    (references,) = run(pack.EncodeSubjects, adapter=adapter, cast=cast, framing="auto", clip=clip, clip_vision=vision)
    given = dict(
        weight=0.5,
        merge="auto",
        start_percent=0.0,
        end_percent=1.0,
        box_strength=1.0,
        box_end_percent=1.0,
        box_feather=0.05,
        sharpness=1.0,
        background=1.0,
    )
    long = run(
        pack.ApplyImageAttention,
        model=patcher,
        references=references,
        positive=st.positive,
        negative=st.negative,
        **given,
    )
    asked = dict(
        model=patcher,
        clip=clip,
        adapter_name=name,
        weight=0.5,
        image_1=photo(40, 40, 1),
        name_1="cat",
        image_2=photo(50, 40, 2),
        name_2="dog",
        clip_vision=vision,
    )
    quick = run(pack.QuickSubjects, **asked, positive=st.positive, negative=st.negative)
    assert torch.equal(ksample(*long[:3]), ksample(*quick[:3]))
    drop_in = run(pack.QuickSubjects, **asked)
    assert torch.equal(ksample(drop_in[0], st.positive, st.negative), ksample(*quick[:3]))


def test_unwired_outputs_tell_whoever_uses_them(clips, vision):
    from comfy_execution.graph_utils import ExecutionBlocker
    from support.host.small_casts import stage
    from troupe import nodes as pack

    st = stage()
    given = dict(
        weight=0.65,
        merge="uniform",
        start_percent=0.0,
        end_percent=1.0,
        box_strength=1.0,
        box_end_percent=1.0,
        box_feather=0.05,
        sharpness=1.0,
        background=1.0,
    )
    _, positive, negative, middle = run(
        pack.ApplyImageAttention, model=st.patcher, references=st.references(2), positive=st.positive, **given
    )
    assert positive and all(
        isinstance(x, ExecutionBlocker) and "is not connected" in x.message for x in (negative, middle)
    )


def test_what_is_optional_only_for_its_place_is_asked_for(clips):
    """Optional in the schema, so that a bypassed node hands on each prompt by its own slot."""
    from support.host.small_casts import stage
    from troupe import nodes as pack
    from troupe.model_patches.errors import MismatchError

    st = stage()
    numbers = dict(
        weight=0.65,
        merge="uniform",
        start_percent=0.0,
        end_percent=1.0,
        box_strength=1.0,
        box_end_percent=1.0,
        box_feather=0.05,
        sharpness=1.0,
        background=1.0,
    )
    with pytest.raises(
        MismatchError,
        match="^Expected a wire in 'references' of Apply Image Attention, found none. Wire 'references' from "
        "Encode Subject References.$",
    ):
        run(pack.ApplyImageAttention, model=st.patcher, positive=st.positive, **numbers)
    with pytest.raises(MismatchError, match="'references' of Apply Gated Adapter"):
        run(
            pack.ApplyGated,
            model=st.patcher,
            positive=st.positive,
            strength=1.0,
            end_percent=1.0,
            decay_percent=0.0,
            use_bbox="auto",
        )
    quick = dict(model=st.patcher, adapter_name="ipadapter/any.safetensors", weight=0.5)
    with pytest.raises(MismatchError, match="'clip' of Quick Subjects.*from the checkpoint"):
        run(pack.QuickSubjects, **quick, image_1=photo(40, 40, 1))
    with pytest.raises(MismatchError, match="'image_1' of Quick Subjects.*from Load Image"):
        run(pack.QuickSubjects, **quick, clip=clips("sd15"))


def test_relevance_without_names_asks_for_clip_and_a_lone_subject_needs_none(vision):
    from support.host.small_casts import ksample, stage
    from troupe import nodes as pack
    from troupe.model_patches.errors import MismatchError

    st = stage()
    given = dict(
        weight=0.65,
        start_percent=0.0,
        end_percent=1.0,
        box_strength=1.0,
        box_end_percent=1.0,
        box_feather=0.05,
        sharpness=1.0,
        background=1.0,
    )
    cast = None
    for count in (1, 2):
        (cast,) = run(
            pack.AddSubject,
            image=photo(40, 40, count),
            name="",
            weight=1.0,
            start_percent=0.0,
            end_percent=1.0,
            cast=cast,
        )
        (references,) = run(pack.EncodeSubjects, adapter=st.adapter, cast=cast, framing="auto", clip_vision=vision)
        for merge in MERGES:
            if Mixing(merge).needs_relevance(count):
                with pytest.raises(MismatchError, match="Wire 'clip'"):
                    run(pack.ApplyImageAttention, model=st.patcher, references=references, merge=merge, **given)
                continue
            model = run(pack.ApplyImageAttention, model=st.patcher, references=references, merge=merge, **given)[0]
            assert not torch.equal(
                ksample(model, st.positive, st.negative), ksample(st.patcher, st.positive, st.negative)
            )


def test_an_adapter_for_another_base_model_is_refused():
    from support.host import tiny_models
    from support.host.small_casts import settings, stage
    from troupe.model_patches.errors import MismatchError

    sd15, sdxl = stage("SD15"), stage("SDXL")
    sd15.patcher = tiny_models.micro_model("SD15", context_dim=96)
    with pytest.raises(MismatchError, match="cross-attention layers and text embeddings of size 96"):
        sd15.apply(sdxl.references(1), settings())


def test_quick_subjects_does_not_read_or_encode_again_for_another_weight(base_folder, clips, vision, monkeypatch):
    import gc
    import weakref

    import safetensors.torch
    from support.host import tiny_models
    from support.host.small_casts import adapter_state, stage
    from troupe import nodes as pack
    from troupe.model_patches.hosts.comfyui import quick

    patcher = tiny_models.micro_model("SD15", context_dim=768)
    path = base_folder / "models" / "ipadapter" / "again.safetensors"
    safetensors.torch.save_file(adapter_state(patcher, embed=POOLED), path)
    st, clip, done = stage(patcher=patcher), clips("sd15").clone(), []
    for work in ("load_adapter", "encode_references"):
        original = getattr(quick, work)
        monkeypatch.setattr(
            quick, work, lambda *a, work=work, original=original, **k: (done.append(work), original(*a, **k))[1]
        )
    asked = dict(
        model=patcher, clip=clip, adapter_name="ipadapter/again.safetensors", clip_vision=vision, positive=st.positive
    )
    asked |= dict(image_1=photo(40, 40, 1), name_1="cat", image_2=photo(50, 40, 2))
    changes = (
        ({"weight": 0.5, "name_2": "cat"}, ["load_adapter", "encode_references"]),
        ({"weight": 0.6, "name_2": "cat"}, []),
        ({"weight": 0.6, "name_2": "dog"}, ["encode_references"]),
        ({"weight": 0.6, "name_2": "dog", "image_1": photo(40, 40, 3)}, ["encode_references"]),
    )
    for change, expected in changes:
        done.clear()
        references = run(pack.QuickSubjects, **{**asked, **change})[3]
        assert done == expected and references.subjects[1].name == change["name_2"]
    done.clear()
    safetensors.torch.save_file(adapter_state(patcher, embed=POOLED, seed=5), path)
    run(pack.QuickSubjects, **asked, weight=0.6, name_2="dog")
    assert done == ["load_adapter", "encode_references"]
    kept = weakref.ref(quick._last[clip].adapter)
    del clip, asked, references
    gc.collect()
    assert kept() is None


def test_quick_subjects_encodes_again_when_the_encoder_file_has_changed(base_folder, clips, monkeypatch, tmp_path):
    """Nothing is wired into clip_vision; what 'auto' finds is replaced by another encoder of the same name and
    widths.
    """
    import safetensors.torch
    from support import published_layouts as published
    from support.host import tiny_models
    from support.host.node_chains import HIDDEN
    from support.host.small_casts import adapter_state
    from troupe import nodes as pack
    from troupe.model_patches.hosts.comfyui.loading import adapters

    patcher, clip = tiny_models.micro_model("SD15", context_dim=768), clips("sd15").clone()
    safetensors.torch.save_file(
        adapter_state(patcher, embed=POOLED), base_folder / "models" / "ipadapter" / "stale.safetensors"
    )
    file = base_folder / "models" / "clip_vision" / "stale.safetensors"
    encoders = iter(
        [
            tiny_models.tiny_clip_vision(seed=seed, hidden=HIDDEN, projection=POOLED, tmp=str(tmp_path / "sizes.json"))
            for seed in (1, 2)
        ]
    )
    monkeypatch.setattr(adapters, "_load_clip_vision", lambda *_: next(encoders))
    image = photo(40, 40, 1)

    def tokens(weight):
        return (
            run(
                pack.QuickSubjects,
                model=patcher,
                clip=clip,
                adapter_name="ipadapter/stale.safetensors",
                weight=weight,
                image_1=image,
                name_1="cat",
            )[3]
            .subjects[0]
            .tokens
        )

    try:
        safetensors.torch.save_file(published.vision_encoder(HIDDEN, POOLED), file)
        first = tokens(0.5)
        assert torch.equal(tokens(0.6), first)
        safetensors.torch.save_file(
            {name: value + 1 for name, value in published.vision_encoder(HIDDEN, POOLED).items()}, file
        )
        assert not torch.allclose(tokens(0.7), first)
    finally:
        file.unlink()


def test_quick_subjects_says_its_warnings_each_time(base_folder, clips, vision, caplog):
    import safetensors.torch
    from support.host import tiny_models
    from support.host.small_casts import adapter_state
    from troupe import nodes as pack

    patcher = tiny_models.micro_model("SD15", context_dim=768)
    safetensors.torch.save_file(
        adapter_state(patcher, embed=POOLED), base_folder / "models" / "ipadapter" / "said.safetensors"
    )
    image = photo(40, 40, 1)
    asked = dict(
        model=patcher,
        clip=clips("sd15"),
        adapter_name="ipadapter/said.safetensors",
        clip_vision=vision,
        image_1=image,
        name_1="girl",
        image_2=image,
        name_2="girl",
    )
    for weight in (0.5, 0.6):
        caplog.clear()
        run(pack.QuickSubjects, **asked, weight=weight)
        assert sum("are both called 'girl'" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("which", ["ApplyImageAttention", "ApplyGated"])
@pytest.mark.parametrize("past", [True, False])
def test_a_model_wired_past_the_node_is_told(which, past, monkeypatch, caplog):
    """By the graph, before anything is sampled."""
    from types import SimpleNamespace

    from support.host.small_casts import stage
    from support.host.small_gated_casts import gated_stage
    from troupe import nodes as pack

    st = stage() if which == "ApplyImageAttention" else gated_stage("text", "SD15")
    inputs = {"model": ["1" if past else "5", 0], "positive": ["5", 1], "negative": ["5", 2]}
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {}},
        "5": {"class_type": f"Troupe{which}", "inputs": {"model": ["1", 0]}},
        "9": {"class_type": "KSampler", "inputs": inputs},
    }
    node = getattr(pack, which)
    monkeypatch.setattr(node, "hidden", SimpleNamespace(unique_id="5", prompt=prompt))
    numbers = dict(
        weight=0.65,
        merge="uniform",
        start_percent=0.0,
        end_percent=1.0,
        box_strength=1.0,
        box_end_percent=1.0,
        box_feather=0.05,
        sharpness=1.0,
        background=1.0,
    )
    numbers = (
        numbers
        if which == "ApplyImageAttention"
        else dict(strength=1.0, end_percent=1.0, decay_percent=0.0, use_bbox="auto")
    )
    node.execute(model=st.patcher, references=st.references(1), positive=st.positive, negative=st.negative, **numbers)
    name = {"ApplyImageAttention": "Apply Image Attention", "ApplyGated": "Apply Gated Adapter"}[which]
    expected = [
        f"Troupe: Connect 'model' of {name} to KSampler (node 9), directly or through LoRA and other nodes: "
        f"it uses a prompt of {name} with another MODEL, so the references have no effect."
    ]
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == (expected if past else [])
