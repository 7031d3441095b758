"""Subjects inside the prompt on the real host: the official numbers through its own CLIP classes, and its own encoding
around them.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from support.golden_mm_diff import golden, state
from support.host.fused_by_hand import by_hand, position_of
from support.host.small_prompt_casts import KINDS, references_of
from troupe.model_patches.adapter import Weights
from troupe.model_patches.bases import BASES

pytestmark = pytest.mark.usefixtures("host")
LENGTH, START, END = 12, 98, 99


class TinySDXL:
    """The host's SDXL text encoding with the stored tiny encoders in it."""

    def __init__(self, mode):
        from comfy.sd1_clip import SDClipModel

        sizes = dict(
            num_attention_heads=4,
            num_hidden_layers=3,
            vocab_size=100,
            max_position_embeddings=LENGTH,
            bos_token_id=START,
            eos_token_id=END,
        )
        kinds = {"one": ("l", 24, "quick_gelu"), "two": ("g", 40, "gelu")}
        for which, (stream, width, act) in kinds.items():
            weights = state(f"text_encoder_{which}", mode)
            inner = weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
            config = dict(
                sizes, hidden_size=width, intermediate_size=inner, hidden_act=act, layer_norm_eps=1e-5, eos_token_id=END
            )
            tokens = {"start": START, "end": END, "pad": END if stream == "l" else 0}
            model = SDClipModel(
                device="cpu",
                max_length=LENGTH,
                layer="hidden",
                layer_idx=-2,
                textmodel_json_config=config,
                dtype=torch.float32,
                special_tokens=tokens,
                layer_norm_hidden_state=False,
                enable_attention_masks=False,
                return_projected_pooled=stream == "g",
            )
            table = "text_model.embeddings.token_embedding.weight"  # the host's has the whole vocabulary
            weights[table] = torch.cat((weights[table], torch.zeros(49408 - len(weights[table]), width)))
            missing, unexpected = model.transformer.load_state_dict(weights, strict=False)
            assert not unexpected and all("text_projection" in name for name in missing)
            setattr(self, f"clip_{stream}", model)


class TinyClip:
    """A CLIP of the host as far as the encoder of prompts asks."""

    def __init__(self, mode, ids):
        from types import SimpleNamespace

        self.cond_stage_model, self.ids, self.layer_idx = TinySDXL(mode), ids, None
        self.patcher = SimpleNamespace(load_device=torch.device("cpu"), get_attachment=lambda key: None)

    def load_model(self):
        pass

    def tokenize(self, text):
        return {stream: [[(int(token), 1.0) for token in self.ids[text]]] for stream in "lg"}

    def encode_from_tokens_scheduled(self, streams):
        from comfy.sdxl_clip import SDXLClipModel

        states, pooled = SDXLClipModel.encode_token_weights(self.cond_stage_model, streams)
        return [[states, {"pooled_output": pooled}]]


@pytest.mark.parametrize("mode", ["std", "wide"])
def test_mm_diffs_prompts_through_the_hosts_own_clip_classes(mode, monkeypatch):
    from support.prompt_fusions import FUSIONS
    from troupe.model_patches.adapter import Adapter, AdapterSpec, PromptSpec
    from troupe.model_patches.encoders.words import WordFusion
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt
    from troupe.model_patches.prompt import fusion
    from troupe.model_patches.prompt.token_positions import TokenPosition
    from troupe.model_patches.subjects import References, ReferenceSubject

    g, modules = golden("text"), {}
    for stream, which in (("l", "one"), ("g", "two")):
        weights = state(f"mm_fuse_{which}", mode)
        modules[stream] = WordFusion(**WordFusion.widths(weights))
        modules[stream].load_state_dict(weights)
    spec = AdapterSpec("mm_diff", "mm_diff.bin", 64, (PromptSpec(FUSIONS["word"], {"l": 24, "g": 40}),))
    adapter = host_adapter(Adapter(spec, None, None, fusion=torch.nn.ModuleDict(modules)))
    subjects = tuple(
        ReferenceSubject(
            str(i),
            None,
            None,
            words={"l": g["text.object_embeds.one"][i : i + 1], "g": g["text.object_embeds.two"][i : i + 1]},
        )
        for i in range(2)
    )
    positions = g["text.mask"][0].nonzero().flatten().tolist()
    monkeypatch.setattr(
        fusion,
        "_positions",
        lambda spec, references, prompt, *a: (prompt.text, [TokenPosition(0, p, (p,), "") for p in positions]),
    )
    clip = TinyClip(mode, {"": g["text.ids"][0], "yes": g["text.ids"][0], "no": g["text.neg_ids"][0]})
    (fused,), (plain,) = encode_prompt(clip, References(adapter, subjects, None), "yes")
    (negative,), _ = encode_prompt(clip, References(adapter, subjects, None), "no", quirks="official", places_of="yes")

    def close(found, name):
        expected = g[f"{name}.{mode}"]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))

    for which, rows in (("one", slice(0, 24)), ("two", slice(24, 64))):
        close(plain[0][..., rows], f"text.{which}.plain.penultimate")
        close(fused[0][..., rows], f"text.{which}.fused.penultimate")
        close(negative[0][..., rows], f"text.{which}.fused.neg_penultimate")
    close(plain[1]["pooled_output"], "text.two.plain.pooled")
    close(fused[1]["pooled_output"], "text.two.fused.pooled")
    assert (fused[0] - plain[0]).abs().max() > 0.05


class TinySD2:
    """A CLIP of the host as far as the encoder of prompts asks: SD2's text encoding, to the last layer, with the stored
    tiny encoder in it.
    """

    def __init__(self, mode, ids):
        from types import SimpleNamespace

        from comfy.sd1_clip import SDClipModel
        from support import golden_subject_diffusion

        config = dict(
            num_attention_heads=4,
            num_hidden_layers=2,
            hidden_size=32,
            intermediate_size=64,
            hidden_act="gelu",
            layer_norm_eps=1e-5,
            max_position_embeddings=16,
            eos_token_id=2,
        )
        model = SDClipModel(
            device="cpu",
            max_length=16,
            layer="last",
            textmodel_json_config=config,
            dtype=torch.float32,
            special_tokens={"start": 1, "end": 2, "pad": 0},
        )
        table, weights = "text_model.embeddings.token_embedding.weight", {}
        for name, tensor in model.transformer.state_dict().items():
            if name != "text_projection.weight":
                weights[name] = golden_subject_diffusion.parameter(
                    name, (100, 32) if name == table else tuple(tensor.shape), mode
                )
        # the host's has the whole vocabulary
        weights[table] = torch.cat((weights[table], torch.zeros(49408 - 100, 32)))
        model.transformer.load_state_dict(weights, strict=False)
        self.cond_stage_model, self.ids, self.layer_idx = SimpleNamespace(clip_h=model), ids, None
        self.patcher = SimpleNamespace(load_device=torch.device("cpu"), get_attachment=lambda key: None)

    def load_model(self):
        pass

    def tokenize(self, text):
        return {"h": [[(int(token), 1.0) for token in self.ids]]}

    def encode_from_tokens_scheduled(self, streams):
        states, pooled = self.cond_stage_model.clip_h.encode_token_weights(streams["h"])
        return [[states, {"pooled_output": pooled}]]


@pytest.mark.parametrize("mode", ["plain", "sharp"])
@pytest.mark.parametrize("row", [0, 1])
def test_subject_diffusions_prompts_through_the_hosts_own_clip_classes(row, mode, monkeypatch):
    from support import golden_subject_diffusion
    from support.prompt_fusions import FUSIONS
    from troupe.model_patches.adapter import Adapter, AdapterSpec, PromptSpec
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt
    from troupe.model_patches.prompt import fusion
    from troupe.model_patches.prompt.token_positions import TokenPosition
    from troupe.model_patches.subjects import References, ReferenceSubject

    g = golden_subject_diffusion.golden("text")
    spots = [(g["ids"][r] == 50).nonzero().flatten().tolist() for r in range(2)]
    vectors = g["cls"].split([len(s) for s in spots])[row]  # one for each placeholder, in reading order
    adapter = host_adapter(
        Adapter(
            AdapterSpec("subject_diffusion", "sd.bin", 32, (PromptSpec(FUSIONS["placeholder"], {"h": 32}),)),
            None,
            None,
        )
    )
    subjects = tuple(
        ReferenceSubject(str(i), None, None, words={"h": vector.unsqueeze(0)}) for i, vector in enumerate(vectors)
    )
    monkeypatch.setattr(
        fusion,
        "_positions",
        lambda spec, references, prompt, *a: (prompt.text, [TokenPosition(0, p, (p,), "") for p in spots[row]]),
    )
    (fused,), (plain,) = encode_prompt(TinySD2(mode, g["ids"][row]), References(adapter, subjects, None), "")
    for found, name in ((plain, "out_unreplaced"), (fused, "out_replaced")):
        torch.testing.assert_close(found[0][0], g[f"{name}.{mode}"][row], **golden_subject_diffusion.TOLERANCE)
    assert (fused[0] - plain[0]).abs().max() > 0.02


# ---- the four kinds on tiny encoders with the real vocabulary --------------------------------------------------------


def encode(kind, clips, text, **rest):
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt

    weights = rest.pop("weights", (1.0, 1.0))
    references = rest.pop("references", None) or references_of(kind, weights=weights)
    return encode_prompt(clips(KINDS[kind][0]), references, text, **rest)


@pytest.mark.parametrize(
    "text",
    ["a cat and a red fox in snow", "a (cat:1.3) beside a ((red fox)), night", "far " * 80 + "a cat and a red fox"],
    ids=["plain", "emphasis", "long"],
)
@pytest.mark.parametrize("kind", ["word", "pseudo", "postfuse"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.4, 1.7)], ids=["full", "weights"])
def test_each_kind_at_its_word(kind, text, weights, clips):
    clip, references = clips(KINDS[kind][0]), references_of(kind, weights=weights)
    (fused,), (plain,) = encode(kind, clips, text, references=references)
    rows = [position_of(clip, "l", text, "cat"), position_of(clip, "l", text, "fox")]
    (states, pooled), (text_states, text_pooled) = by_hand(
        kind, clip, references, text, rows, [min(w, 1.0) for w in weights]
    )
    torch.testing.assert_close(plain[0], text_states)
    torch.testing.assert_close(plain[1]["pooled_output"], text_pooled)
    torch.testing.assert_close(fused[0], states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused[1]["pooled_output"], pooled, rtol=1e-4, atol=1e-5)
    changed = (fused[0] - plain[0]).abs().amax(-1)[0] > 1e-6
    if kind == "word":
        assert changed[77 * rows[0][0] + rows[0][1]] and not changed[: 77 * rows[0][0] + rows[0][1]].any()
    else:
        assert changed.nonzero().flatten().tolist() == sorted(77 * c + p for c, p in rows)


def test_placeholders_of_subject_diffusion(clips):
    clip, references = clips("sd20"), references_of("placeholder")
    (fused,), (plain,) = encode("placeholder", clips, " a cat and a red fox ", references=references)
    text = "a cat and a red fox, the cat is sks, the red fox is sks"
    first = position_of(clip, "h", text, "sks")
    second = position_of(clip, "h", text, "sks", first[1])
    (states, pooled), (text_states, _) = by_hand("placeholder", clip, references, text, [first, second])
    torch.testing.assert_close(fused[0], states, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain[0], text_states)
    one = references_of("placeholder", weights=(0.0, 1.0))
    (only,), (said,) = encode("placeholder", clips, "a cat and a red fox", references=one)
    torch.testing.assert_close(
        said[0], clip.encode_from_tokens(clip.tokenize("a cat and a red fox, the red fox is sks"))
    )
    assert not torch.equal(only[0], said[0])


def test_several_pseudo_words_keep_both_passes_in_step(clips):
    """The word's last token stands k times in both, the pseudo words in its place in one; only those rows of the output
    differ.
    """
    clip, references = clips("sd15"), references_of("pseudo of three")
    (fused,), (plain,) = encode("pseudo of three", clips, "a cat and a red fox, snow", references=references)
    chunk = clip.tokenize("a cat and a red fox, snow")["l"][0]
    cat, fox = (
        position_of(clip, "l", "a cat and a red fox, snow", "cat")[1],
        position_of(clip, "l", "a cat and a red fox, snow", "fox")[1],
    )
    wide = [
        *chunk[: cat + 1],
        chunk[cat],
        chunk[cat],
        *chunk[cat + 1 : fox + 1],
        chunk[fox],
        chunk[fox],
        *chunk[fox + 1 :],
    ][:77]
    torch.testing.assert_close(plain[0], clip.encode_from_tokens({"l": [wide]}))
    rows = [cat, cat + 1, cat + 2, fox + 2, fox + 3, fox + 4]
    exchanged = list(wide)
    for k, row in enumerate(rows):
        exchanged[row] = (references.subjects[k // 3].words["l"][k % 3], 1.0)
    expected = plain[0].clone()
    expected[0, rows] = clip.encode_from_tokens({"l": [exchanged]})[0, rows]
    torch.testing.assert_close(fused[0], expected, rtol=1e-4, atol=1e-5)
    assert fused[0].shape == (1, 77, 768)


@pytest.mark.parametrize("kind", ["word", "pseudo", "placeholder", "postfuse"])
def test_nobody_in_it_is_the_hosts_own_encoding(kind, clips):
    from troupe.model_patches.subjects import References

    clip = clips(KINDS[kind][0])
    for references in (references_of(kind, weights=(0.0, 0.0)), References(references_of(kind).adapter, (), None)):
        found, plain = encode(
            kind,
            clips,
            "a (dog:1.2) in {snow}" if not references.subjects else "a (dog:1.2)",
            references=references,
            start_step=3,
        )
        text = "a (dog:1.2) in snow" if not references.subjects else "a (dog:1.2)"
        ((states, options),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        for ((mine, with_it),) in (found, plain):
            assert (
                torch.equal(mine, states)
                and torch.equal(with_it["pooled_output"], options["pooled_output"])
                and with_it.keys() == options.keys()
            )


def test_the_conditioning_carries_its_text_only_where_there_is_a_delay(clips):
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY

    text = "a cat and a red fox"
    (now,), _ = encode("word", clips, text)
    (later,), (plain,) = encode("word", clips, text, start_percent=0.3, start_step=4)
    assert PROMPT_KEY not in now[1] and torch.equal(now[0], later[0])
    record = later[1][PROMPT_KEY]
    assert (
        (record.start_percent, record.start_step) == (0.3, 4)
        and torch.equal(record.text, plain[0])
        and torch.equal(record.pooled, plain[1]["pooled_output"])
    )


def test_a_line_says_which_tokens_were_taken(clips, caplog):
    import logging

    with caplog.at_level(logging.INFO, "troupe"):
        encode("word", clips, "a cat and a red fox")
    assert "word.bin: 'cat' at token 2 ('cat'), 'red fox' at token 6 ('red fox')." in caplog.text


@pytest.mark.parametrize(
    ("kind", "other", "words"),
    [
        ("word", "sd15", "the CLIP of an SDXL checkpoint for word.bin, found one of SD1.5"),
        ("postfuse", "sdxl", "the CLIP of an SD1.5 checkpoint for postfuse.bin, found one of SDXL"),
    ],
)
def test_another_base_models_clip(kind, other, words, clips):
    from troupe.model_patches.errors import MismatchError
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt

    with pytest.raises(MismatchError, match=words):
        encode_prompt(clips(other), references_of(kind), "a cat and a red fox")


def test_references_that_do_not_belong_here(clips):
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.errors import MismatchError
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt

    words = (
        "found boxes.safetensors, GLIGEN text-image boxes .*Encode the prompt with CLIP Text Encode, and wire "
        "these references into Apply Gated Adapter"
    )
    with pytest.raises(MismatchError, match=words):
        encode_prompt(clips("sd15"), gated_stage().references(1), "a cat")


def test_an_embedding_longer_in_one_text_encoder_than_in_the_other(clips, tmp_path):
    import copy

    import safetensors.torch

    clip = clips("sdxl").clone()
    clip.tokenizer = copy.deepcopy(clip.tokenizer)
    clip.tokenizer.clip_l.embedding_directory = clip.tokenizer.clip_g.embedding_directory = str(tmp_path)
    vectors = {
        f"clip_{stream}": torch.randn(n, width, generator=torch.Generator().manual_seed(n)) * 0.1
        for stream, n, width in (("l", 4, 768), ("g", 2, 1280))
    }
    safetensors.torch.save_file(vectors, tmp_path / "style.safetensors")
    (fused,), (plain,) = encode("word", lambda kind: clip, "embedding:style a cat and a red fox")
    changed = (fused[0] - plain[0]).abs()[0]
    assert [int((part.amax(-1) > 1e-6).nonzero()[0]) for part in (changed[:, :768], changed[:, 768:])] == [6, 4]


def test_no_room_for_more_pseudo_words(clips):
    from troupe.model_patches.errors import SubjectError

    with pytest.raises(
        SubjectError,
        match="room for 2 more tokens for subject 2 .*'red fox'.*Shorten it to 75 tokens, or name the subject "
        "near its end",
    ):
        encode("pseudo of three", clips, "a cat and a red fox " + "far " * 150)
    with pytest.raises(SubjectError, match="room for 2 more tokens for subject 2 .*'red fox'.*Shorten the prompt"):
        encode("pseudo of three", clips, "a cat and a red fox " + "far " * 69)


@pytest.mark.parametrize("kind", ["word", "pseudo", "postfuse"])
def test_a_subject_at_weight_0_need_not_be_in_the_prompt(kind, clips):
    from troupe.model_patches.errors import SubjectError

    references = references_of(kind, ("zebra", "red fox"), (0.0, 1.0))
    (fused,), (plain,) = encode(kind, clips, "a red fox in snow", references=references)
    (states, _), _ = by_hand(kind, clips(KINDS[kind][0]), one_of(references, 1), "a red fox in snow", [(0, 3)], (1.0,))
    torch.testing.assert_close(fused[0], states, rtol=1e-4, atol=1e-5)
    assert not torch.equal(fused[0], plain[0])
    with pytest.raises(SubjectError, match="'zebra' in the prompt"):
        encode(kind, clips, "a red fox in snow", references=references_of(kind, ("zebra", "red fox")))


def one_of(references, i):
    from dataclasses import replace

    return replace(references, subjects=references.subjects[i : i + 1])


@pytest.mark.parametrize(
    ("kind", "layer", "usual"), [("word", -1, -2), ("pseudo", -2, -1), ("placeholder", -1, -2), ("postfuse", -2, -1)]
)
def test_clip_skip_is_told(kind, layer, usual, clips):
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt

    clip, said = clips(KINDS[kind][0]).clone(), []
    for chosen in (None, usual, layer):
        clip.layer_idx = chosen
        encode_prompt(clip, references_of(kind), "a cat and a red fox", warn=said.append)
    assert said == [
        f"Remove CLIP Set Last Layer, or set it to {usual}: {kind}.bin was trained with that layer; "
        f"with layer {layer} the subjects may not be recognisable."
    ]


@pytest.mark.parametrize("base", BASES.values(), ids=lambda base: base.name)
def test_each_base_has_its_own_layer(base):
    """In the rehearsal world it is the last."""
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import _prompt_warnings

    references = references_of("word")
    spec = replace(references.adapter.spec, context_dim=base.width)
    references = replace(references, adapter=SimpleNamespace(spec=spec, weights=Weights(), id="a"))
    layers = SimpleNamespace(patcher=None, layer_idx=base.clip_layer), SimpleNamespace(patcher=None, layer_idx=-5)
    usual, other = (_prompt_warnings(references, clip, True) for clip in layers)
    assert not usual and f"or set it to {base.clip_layer}: " in other[0]


@pytest.mark.parametrize("kind", ["postfuse", "pseudo", "word"])
def test_weights_of_the_adapter_that_are_not_there_are_told_in_one_sentence(kind, clips):
    """Of the text encoder where the CLIP lacks them, of the UNet where no node of the graph puts them on a MODEL; with
    Apply Adapter Weights there is none.

    An adapter that acts in the UNet too tells of the MODEL itself.
    """
    from dataclasses import replace

    from support.host import tiny_models
    from troupe.model_patches.adapter import ImageAttentionSpec, Weights
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    references, clip = references_of(kind), clips(KINDS[kind][0])
    if kind == "word":
        spec = references.adapter.spec
        spec = replace(spec, parts=(*spec.parts, ImageAttentionSpec("", (64,), 4, text_gain=False)))
        references = replace(references, adapter=replace(references.adapter, spec=spec))
    name = next(key for key in clip.patcher.model_state_dict() if key.endswith("self_attn.q_proj.weight"))
    text = {name.split("transformer.", 1)[1]: clip.patcher.model_state_dict()[name] + 1}

    def said(weights, clip, on_model):
        given, sentences = replace(references, adapter=replace(references.adapter, weights=weights)), []
        encode(kind, lambda _: clip, "a cat and a red fox", references=given, warn=sentences.append, on_model=on_model)
        return [
            sentence.split("needs its own weights on the ")[1].split(".")[0]
            for sentence in sentences
            if "its own weights" in sentence
        ]

    unet = {"input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}
    both = ["CLIP"] if kind == "word" else ["CLIP and MODEL"]
    assert said(Weights(unet=unet, text=text), clip, False) == both and said(
        Weights(unet=unet, text=text), clip, True
    ) == ["CLIP"]
    assert (
        said(Weights(unet=unet), clip, False) == ([] if kind == "word" else ["MODEL"])
        and said(Weights(), clip, False) == []
    )
    adapter = replace(references.adapter, weights=Weights(text=text))
    _, with_weights = apply_weights(tiny_models.micro_model("SD15", context_dim=64), adapter, clip=clip)
    assert said(Weights(unet=unet, text=text), with_weights, True) == []


def test_the_node_looks_for_apply_adapter_weights_in_its_graph(host):
    from types import SimpleNamespace

    from troupe.nodes.graph import used_from

    weights = {"class_type": "TroupeApplyWeights", "inputs": {"model": ["1", 0]}}
    sampler = {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": 1}}
    for graph, found in (
        (None, True),
        ({"2": weights, "3": sampler}, True),
        ({"2": weights}, False),
        ({"3": sampler}, False),
        ({"2": weights, "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1]}}}, False),
    ):
        assert used_from(SimpleNamespace(prompt=graph), "TroupeApplyWeights", 0) is found


def test_what_an_adapter_in_the_prompt_alone_cannot_follow(clips):
    from dataclasses import replace

    references, said = references_of("postfuse"), []
    cat, fox = references.subjects
    references = replace(references, subjects=(replace(cat, start_percent=0.2, region=torch.ones(4, 4)), fox))
    encode("postfuse", clips, "a cat and a red fox", references=references, warn=said.append)
    assert said == [
        "postfuse.bin only works in the prompt, from 'fuse_start_percent' on: it ignores a range of steps "
        "and a region of subject 1 ('cat')."
    ]
