"""Our heads, word fusion, LoRA image attention and photo preparation against the official MM-Diff and FastComposer
code's stored outputs.
"""

from dataclasses import replace

import pytest
import torch
from support.golden_mm_diff import MODES, SHAPES, close, golden, loaded, normal, state
from support.golden_prompts import StoredEncoder, fused, word
from support.whole_heads import image_attention
from torch import nn
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from troupe.model_patches.attention.decoupled import LayerTokens, image_delta
from troupe.model_patches.attention.lora import image_projection
from troupe.model_patches.attention.merges import NAMELESS, Mixing
from troupe.model_patches.encoders.lora import PAIRS, ImagePairs, LowRank
from troupe.model_patches.encoders.mlp import MLP
from troupe.model_patches.encoders.mm_diff import LoraLayer
from troupe.model_patches.encoders.projections import MisshapenTensor, PerceiverAttention
from troupe.model_patches.encoders.refiner import SERefiner, SubjectHead
from troupe.model_patches.encoders.words import PhotoToWords, Postfuse, WordFusion
from troupe.model_patches.encoding import framing
from troupe.model_patches.encoding.framing import black_square
from troupe.model_patches.hosts.diffusers import encoders
from troupe.model_patches.prompt.tokens import LENGTH

HEADS = 4  # of the attention and refiner goldens


def made(kind, prefix, mode, **widths):
    """A module of the sizes that its published tensors have."""
    tensors = state(prefix, mode)
    return loaded(kind(**kind.widths(tensors, **widths)), tensors)


# ---- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_word_fusion_is_the_official_one(mode):
    g = golden("heads")
    close(made(WordFusion, "mm_fuse_one", mode)(g["mlp.word"], g["mlp.image"]), g[f"mlp.out.{mode}"])
    residual = loaded(MLP(24, 24, 32, residual=True), state("mlp_residual", mode))
    close(residual(g["mlp.word"]), g[f"mlp_residual.out.{mode}"])


@pytest.mark.parametrize("mode", MODES)
def test_photo_to_words_is_the_official_one(mode):
    g = golden("heads")
    one, two = made(PhotoToWords, "obj_embeds_proj", mode)(g["proj.x"])
    close(one, g[f"proj.out1.{mode}"])
    close(two, g[f"proj.out2.{mode}"])


@pytest.mark.parametrize("mode", MODES)
def test_refiner_attention_is_the_official_one(mode):
    g = golden("heads")
    attention = loaded(PerceiverAttention(32, 32, 8, nn), state("se_attention", mode))
    close(attention(g["sea.dense"], g["sea.query"]), g[f"sea.out.{mode}"])


@pytest.mark.parametrize("mode", MODES)
def test_refiner_is_the_official_one(mode):
    g = golden("heads")
    close(made(SERefiner, "se_refiner", mode, head_width=8)(g["sea.query"], g["ser.dense"]), g[f"ser.out.{mode}"])


@pytest.mark.parametrize("mode", MODES)
def test_face_head_is_the_official_one(mode):
    g = golden("heads")
    head = made(SubjectHead, "face_embeds_proj", mode)
    assert (
        head.vector_dim,
        head.tokens,
        head.context_dim,
        len(head.refiner.layers),
        head.refiner.layers[0][0].heads,
    ) == (16, 4, 512, 4, 2)
    tolerance = 5e-5 if mode == "wide" else 2e-5
    close(head(g["face.id"], g["face.clip"]), g[f"face.out.{mode}"], tolerance)
    close(head(torch.zeros(3, 16), torch.zeros(3, 10, 24)), g[f"face.uncond.{mode}"], tolerance)


@pytest.mark.parametrize("vector_dim, faces", [(512, True), (768, False), (1024, False)])
def test_what_a_head_reads_is_known_by_its_first_width(vector_dim, faces):
    refiner = {"dim": 256, "depth": 2, "inner": 512, "ff_inner": 512, "embed_dim": 24, "out_dim": 256}
    head = SubjectHead(vector_dim, 32, 3, 256, refiner)
    again = SubjectHead(**SubjectHead.widths(head.state_dict()))
    loaded(again, head.state_dict())
    vectors, hidden = torch.randn(2, vector_dim), torch.randn(2, 7, 24)
    assert (
        again.reads_faces is faces
        and torch.equal(again(vectors, hidden), head(vectors, hidden))
        and again(vectors, hidden).shape == (2, 3, 256)
    )


@pytest.mark.parametrize(
    "name, shape",
    [
        ("proj.2.weight", (1000, 32)),
        ("layer_norm.weight", (1, 512)),
        ("refiner.layers.0.0.to_q.weight", (300, 512)),
        ("refiner.proj_in.weight", (256, 24)),
        ("refiner.proj_out.weight", (256, 512)),
    ],
)
def test_a_head_of_the_wrong_shape_is_told_by_the_tensor(name, shape):
    tensors = {**state("face_embeds_proj", "std"), name: torch.zeros(shape)}
    with pytest.raises(MisshapenTensor) as error:
        SubjectHead.widths(tensors)
    assert (error.value.name, error.value.shape) == (name, shape)


def test_word_fusion_for_another_width_is_refused():
    with pytest.raises(MisshapenTensor, match="80 columns"):
        WordFusion.widths({"fc1.weight": torch.zeros(40, 79), "fc2.weight": torch.zeros(40, 40)})
    with pytest.raises(MisshapenTensor, match="more than 24 columns"):
        Postfuse.widths({"mlp1.fc1.weight": torch.zeros(24, 24), "mlp2.fc1.weight": torch.zeros(24, 24)})


# ---- FastComposer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_postfuse_is_the_official_one(mode):
    """The first `num_objects` embeddings of each row go to the marked positions, in order."""
    g, module = golden("fastcomposer"), made(Postfuse, "postfuse_module", mode)
    for row, text in enumerate(g["fc.text"]):
        places = g["fc.mask"][row].nonzero().flatten().tolist()
        photos = [photo for photo in g["fc.object_embeds"][row][: g["fc.num_objects"][row]]]
        assert len(places) == len(photos) > 0
        padded = torch.nn.functional.pad(text, (0, 0, 0, LENGTH - len(text)))[None]
        found = fused(
            "postfuse",
            StoredEncoder(lambda tokens, padded=padded: (padded, None), fusion=module),
            len(text) - 1,
            places,
            photos,
        )
        close(found.fused.states[0, : len(text)], g[f"fc.postfuse.{mode}"][row])
        others = ~torch.nn.functional.pad(g["fc.mask"][row], (0, LENGTH - len(text)))
        assert torch.equal(found.fused.states[0, others], padded[0, others]) and torch.equal(found.plain.states, padded)


def test_each_photo_goes_to_its_own_word():
    """In any order, and nothing else changes, neither the sequence that was given."""
    text, photos = normal("text", 1, LENGTH, 3).float(), normal("photos", 3, 1, 3).float()
    before, places = text.clone(), [4, 2, 1]
    encoder = StoredEncoder(lambda tokens: (text, None), fusion=lambda words, photos: words + 10 * photos)
    expected = before.clone()
    for place, photo in zip(places, photos, strict=True):
        expected[0, place] += 10 * photo[0]
    assert torch.equal(fused("postfuse", encoder, 5, places, photos).fused.states, expected) and torch.equal(
        text, before
    )


def test_a_weight_draws_a_word_to_its_photo():
    words, photos = normal("words", 1, LENGTH, 3).float(), normal("photos", 4, 1, 3).float()
    encoder = StoredEncoder(lambda tokens: (words, None), fusion=lambda words, photos: photos)
    states = fused("postfuse", encoder, 4, [1, 2, 3, 4], photos, [0.0, 0.25, 1.0, 3.0]).fused.states[0]
    assert torch.equal(states[1], words[0, 1]) and torch.equal(states[3:5], photos[2:, 0])
    torch.testing.assert_close(states[2], 0.75 * words[0, 2] + 0.25 * photos[1, 0])


# ---- words in front of the text encoders -----------------------------------------------------------------------------


def text_encoder(which, mode):
    g = golden("text")
    width = g[f"text.object_embeds.{which}"].shape[-1]
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        max_position_embeddings=12,
        projection_dim=width,
        hidden_act="quick_gelu" if which == "one" else "gelu",
        bos_token_id=98,
        eos_token_id=99,
        pad_token_id=99,
    )
    model, tensors = (
        (CLIPTextModel if which == "one" else CLIPTextModelWithProjection)(config),
        state(f"text_encoder_{which}", mode),
    )
    ours = model.state_dict().keys()  # newer transformers have no `text_model.` in a model without projection
    return loaded(
        model, {name if name in ours else name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    )


def encoded(model, ids, replace=lambda embeddings: embeddings):
    """(embeddings with positions, penultimate states, pooled) with the token embeddings changed before the position
    embedding is added.
    """
    embeddings = getattr(model, "text_model", model).embeddings
    hook = embeddings.token_embedding.register_forward_hook(lambda module, args, output: replace(output))
    try:
        found = model(ids, output_hidden_states=True)
        pooled = found.text_embeds if hasattr(found, "text_embeds") else found.pooler_output
        return found.hidden_states[0], found.hidden_states[-2], pooled
    finally:
        hook.remove()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("which", ["one", "two"])
def test_fused_words_in_a_text_encoder_are_the_official_ones(which, mode):
    g = golden("text")
    model, fusion = text_encoder(which, mode), made(WordFusion, f"mm_fuse_{which}", mode)
    places = g["text.mask"][0].nonzero().flatten().tolist()
    vectors = list(g[f"text.object_embeds.{which}"].split(1))
    table = getattr(model, "text_model", model).embeddings.token_embedding.weight.detach()

    def through(ids, *given, **rest):
        """The prompt whose words have these ids, and what the encoder makes of it: (embeddings with positions,
        penultimate states, pooled).
        """
        seen = []

        def states(tokens):
            def replace(embeddings):
                rows = [(i, token) for i, token in enumerate(tokens[: ids.shape[1]]) if isinstance(token, torch.Tensor)]
                return (
                    embeddings.index_put(
                        (torch.tensor(0), torch.tensor([i for i, _ in rows])), torch.stack([t for _, t in rows])
                    )
                    if rows
                    else embeddings
                )

            seen.append(encoded(model, ids, replace))
            return seen[-1][1], seen[-1][2]

        fused("word", StoredEncoder(states, table[ids[0]], fusion), *given, **rest)
        return seen

    length = g["text.ids"].shape[1] - 1
    plain, changed = through(g["text.ids"], length, places, vectors)
    close(plain[1], g[f"text.{which}.plain.penultimate.{mode}"])
    close(plain[2], g[f"text.{which}.plain.pooled.{mode}"])
    close(changed[0], g[f"text.{which}.fused.embeddings.{mode}"])
    close(changed[1], g[f"text.{which}.fused.penultimate.{mode}"])
    close(changed[2], g[f"text.{which}.fused.pooled.{mode}"])
    negative = through(
        g["text.neg_ids"],
        length,
        places,
        vectors,
        text=" ".join(map(word, range(1, length + 1))),
        places_of=" ".join(map(word, range(1, length + 1))),
    )
    close(negative[1][1], g[f"text.{which}.fused.neg_penultimate.{mode}"])


# ---- photos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["wide", "tall", "square"])
def test_the_black_square_is_the_official_one(tag):
    g = golden("data")
    found = black_square(g[f"object.{tag}.image_u8"].movedim(0, -1).float() / 255, 224)
    torch.testing.assert_close(
        found.movedim(-1, 0)[:, ::8, ::8], g[f"object.{tag}.out_every8"], rtol=0, atol=1 / 255 + 1e-6
    )
    assert torch.equal((found * 255).round() / 255, found)


@pytest.mark.parametrize("h, w", [(20, 20), (20, 10), (10, 21), (56, 30)])
def test_a_black_square_holds_the_whole_photo_in_the_middle(h, w):
    found = black_square(torch.ones(h, w, 3), 28)
    seen = found[..., 0] > 0.5
    rows, columns = seen.any(1).nonzero().flatten().tolist(), seen.any(0).nonzero().flatten().tolist()
    assert found.shape == (28, 28, 3)
    for places, side in ((rows, h), (columns, w)):
        assert abs(len(places) - 28 * side / max(h, w)) <= 1
        assert abs(places[0] - (27 - places[-1])) <= 1


def test_a_black_square_has_no_moire():
    """One white pixel in four, four of them to one of the result: a quarter of white, and not whatever is met by
    chance.
    """
    found = black_square((torch.arange(112) % 4 == 0).float().view(1, -1, 1).expand(112, 112, 3), 28)
    torch.testing.assert_close(found[:, 2:-2], torch.full((28, 24, 3), 0.25), rtol=0, atol=0.01)


def test_a_black_square_of_a_long_strip_is_no_huge_one(monkeypatch):
    sides, pad = [], framing.pad
    monkeypatch.setattr(framing, "LONGEST_SIDE", 64)
    monkeypatch.setattr(framing, "pad", lambda *args: sides.append(pad(*args).shape[-2:]) or pad(*args))
    found = black_square(torch.ones(400, 100, 3), 28)
    assert sides == [(64, 64)] and found[..., 0].sum(1).allclose(torch.tensor(7.0), atol=0.1)


@pytest.mark.parametrize("mode", MODES)
def test_the_image_encoder_gives_what_the_official_one_reads(mode, monkeypatch):
    """Pooled and projected without normalisation for the words, the penultimate layer with CLS for the faces.

    Pixels there are no 8-bit steps.
    """
    g = golden("image")
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        image_size=28,
        patch_size=14,
        projection_dim=32,
        hidden_act="quick_gelu",
    )
    images = encoders.ClipImages(loaded(CLIPVisionModelWithProjection(config), state("image_encoder", mode)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoders.MEAN, encoders.STD))
    monkeypatch.setattr(encoders, "pixel_values", lambda pictures: pictures)
    photos = (interpolate(g["image.pixels"][0], size=(28, 28), mode="bilinear", antialias=True) - mean) / std
    close(images.encode(photos, "pooled", blank=False), g[f"image.object_embeds.{mode}"][0])
    close(images.encode(g["image.face_pixels"], "penultimate", blank=False), g[f"image.bak_hidden.{mode}"])


# ---- attention -------------------------------------------------------------------------------------------------------


class Layer:
    """One attention layer of the UNet with its low-rank pairs; `merged` puts the text pairs into its weights, as a host
    does.
    """

    def __init__(self, name, mode, scale=1.0, alpha=None, merged=False):
        host, tensors = state(name, mode), state("self_proc" if name == "attn1" else "cross_proc", mode)
        self.scale, self.merged, self.bias = scale, merged, host["to_out.0.bias"]
        self.base = {
            part: host[f"to_{part}.weight" if part != "out" else "to_out.0.weight"] for part in ("q", "k", "v", "out")
        }
        self.pairs = {
            part: self.pair(
                {n.split(".", 1)[1]: t for n, t in tensors.items() if n.startswith(f"to_{part}_lora.")}, alpha
            )
            for part in self.base
        }
        if name == "attn2":
            self.image = loaded(
                LoraLayer(**LoraLayer.widths(tensors), alpha=alpha),
                {n: t for n, t in tensors.items() if n.split(".")[0] in PAIRS},
            )
            for pair in (self.image.to_k_lora_image, self.image.to_v_lora_image):
                pair.factor *= scale

    @staticmethod
    def pair(tensors, alpha):
        return loaded(LowRank(**LowRank.widths(tensors), alpha=alpha), tensors)

    def project(self, part, x):
        pair, bias = self.pairs[part], self.bias if part == "out" else None
        if self.merged:
            return linear(x, self.base[part] + self.scale * pair.factor * pair.up.weight @ pair.down.weight, bias)
        return linear(x, self.base[part], bias) + self.scale * pair(x)

    def attend(self, x, context, image=lambda q: 0.0):
        q, k, v = self.project("q", x), self.project("k", context), self.project("v", context)
        b, n, c = q.shape
        heads = (y.view(b, -1, HEADS, c // HEADS).transpose(1, 2) for y in (q, k, v))
        return self.project("out", scaled_dot_product_attention(*heads).transpose(1, 2).reshape(b, n, c) + image(q))

    def image_tokens(self, tokens):
        """Keys and values by the identity that takes the text pairs out of the merged weights again."""
        keys = self.image.keys(tokens, lambda c: self.project("k", c), self.scale)
        return LayerTokens(keys, self.image.values(tokens, lambda c: self.project("v", c), self.scale))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("merged", [False, True], ids=["pairs", "merged"])
@pytest.mark.parametrize(
    "case, options",
    [("8x8", {}), ("6x10", {}), ("6x10.scale06", {"scale": 0.6}), ("6x10.alpha4", {"alpha": 4})],
    ids=["8x8", "6x10", "scale", "alpha"],
)
def test_self_attention_with_pairs_is_the_official_one(case, options, merged, mode):
    g = golden("attention")
    x = g[f"attn.x.{case.split('.')[0]}"]
    close(Layer("attn1", mode, merged=merged, **options).attend(x, x), g[f"self.{case}.out.{mode}"])


CROSS = sorted(
    name.removeprefix("cross.").removesuffix(".out.std")
    for name in golden("attention")
    if name.startswith("cross.") and name.endswith(".std")
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("merged", [False, True], ids=["pairs", "merged"])
@pytest.mark.parametrize("case", CROSS)
def test_image_attention_with_pairs_is_the_official_one(case, merged, mode):
    """Text attention plus 0.8 of one softmax over the tokens of all present subjects; both rows of the batch have a set
    of their own.
    """
    g = golden("attention")
    size, who, *variant = case.split(".")
    options = {"scale06": {"scale": 0.6}, "alpha4": {"alpha": 4}}.get("".join(variant), {})
    layer, strength = Layer("attn2", mode, merged=merged, **options), 0.0 if variant == ["fuse0"] else 0.8
    present = g["attn.mask.s1"].expand(-1, 3) if who == "refs3" else g[f"attn.mask.{who}"]
    m = present.shape[1]
    tokens = replace(layer.image_tokens(g[f"attn.image.{m}"]), valid_tokens=valid_tokens_of(present))

    def image(q):
        return (
            image_delta(q.unsqueeze(1), tokens, torch.full((m,), strength), HEADS, Mixing("joint"))
            .squeeze(1)
            .flatten(-2)
        )

    close(layer.attend(g[f"attn.x.{size}"], g["attn.text"], image), g[f"cross.{case}.out.{mode}"])


def valid_tokens_of(present, tokens=4):
    """[G, M] bool -> [G, S] bool: which image tokens are there."""
    return present.bool().repeat_interleave(tokens, 1)


def random_subjects(groups=3, subjects=3, tokens=4, width=16):
    query, keys, values = (
        normal("q", groups, 2, 5, width),
        normal("k", groups, subjects * tokens, width),
        normal("v", groups, subjects * tokens, width),
    )
    return query, keys, values, normal("w", groups, 2, subjects, 5).abs()


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "each"])
def test_absent_subjects_are_as_if_never_given(joint):
    query, keys, values, weights = random_subjects()
    present = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    found = image_attention(query, keys, values, weights, HEADS, joint, valid_tokens_of(present))
    keep = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    without = image_attention(query[:1], keys[:1, keep], values[:1, keep], weights[:1, :, [0, 2]], HEADS, joint)
    torch.testing.assert_close(found[:1], without)
    assert found[1].eq(0).all()
    torch.testing.assert_close(found[2:], image_attention(query[2:], keys[2:], values[2:], weights[2:], HEADS, joint))


@pytest.mark.parametrize("merge", NAMELESS)
@pytest.mark.parametrize("limited", [True, False], ids=["boxes", "free"])
def test_an_absent_subject_leaves_its_share_to_the_others(merge, limited):
    query, keys, values, _ = random_subjects()
    present, strengths = torch.tensor([[True, False, True]]).expand(3, -1), torch.tensor([0.5, 1.0, 0.7])
    limits = normal("m", 1, 1, 3, 5).abs().clamp(max=1).float() if limited else None
    found = image_delta(
        query, LayerTokens(keys, values, valid_tokens=valid_tokens_of(present)), strengths, HEADS, Mixing(merge), limits
    )
    keep = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    kept = image_delta(
        query,
        LayerTokens(keys[:, keep], values[:, keep]),
        strengths[[0, 2]],
        HEADS,
        Mixing(merge),
        None if limits is None else limits[:, :, [0, 2]],
    )
    torch.testing.assert_close(found, kept)


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "each"])
@pytest.mark.parametrize("many", [False, True], ids=["fused", "one by one"])
def test_subjects_with_fewer_tokens_than_others(joint, many, monkeypatch):
    """Padded tokens are as if they were not there, for one softmax over all and for one a subject."""
    from troupe.model_patches.attention import decoupled

    monkeypatch.setattr(decoupled, "MANY_TOKENS", 1 if many else 64)
    query, keys, values, weights = random_subjects()
    counts, columns = (4, 1, 3), torch.tensor([[True] * 4 + [True] + [False] * 3 + [True] * 3 + [False]])
    found = image_attention(query, keys, values, weights, HEADS, joint, columns)
    if joint:
        logits = (
            query.unflatten(-1, (HEADS, -1)).movedim(-2, 2)
            @ keys[:, columns[0]].unflatten(-1, (HEADS, -1)).permute(0, 2, 3, 1)[:, None]
        ) * (16 // HEADS) ** -0.5
        factors = torch.cat(
            [weights[:, :, i : i + 1].expand(-1, -1, c, -1) for i, c in enumerate(counts)], 2
        ).transpose(2, 3)[:, :, None]
        expected = (
            ((logits.softmax(-1) * factors) @ values[:, columns[0]].unflatten(-1, (HEADS, -1)).transpose(1, 2)[:, None])
            .movedim(2, -2)
            .flatten(-2)
        )
    else:
        parts = [slice(4 * i, 4 * i + c) for i, c in enumerate(counts)]
        expected = sum(
            image_attention(query, keys[:, part], values[:, part], weights[:, :, i : i + 1], HEADS)
            for i, part in enumerate(parts)
        )
    torch.testing.assert_close(found, expected)


def test_half_precision_and_nobody_is_zero_not_nan():
    query, keys, values, weights = (x.half() for x in random_subjects())
    found = image_attention(query, keys, values, weights, HEADS, True, torch.zeros(3, 12, dtype=torch.bool))
    assert found.dtype == torch.float16 and found.eq(0).all()


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_without_a_merged_text_pair_only_the_image_pair_is_added():
    tokens, weight = normal("c", 2, 3, 8).float(), normal("w", 6, 8).float()
    image = normal("i", 6, 8).float()

    def untouched(x):
        raise AssertionError("a text pair that is not merged was called")

    found = image_projection(lambda c: linear(c, weight), tokens, lambda c: linear(c, image), untouched, merged=0.0)
    torch.testing.assert_close(found, linear(tokens, weight + image))


def test_corrections_are_made_in_float32():
    """A text pair that fills the half-precision weights and is taken out again: what it leaves is one rounding of the
    layer's own result.
    """
    tokens, seen = normal("c", 1, 3, 8).half(), []

    def pair(x):
        seen.append(x.dtype)
        return x * 1000

    found = image_projection(lambda c: c * 3, tokens, lambda c: pair(c) * 1.001, pair)
    assert seen == [torch.float32] * 2 and found.dtype == torch.float16
    exact = (tokens * 3).float() - 1000 * tokens.float() + 1001 * tokens.float()
    torch.testing.assert_close(found, exact.half(), rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    "pair, name, shape",
    [
        ("to_v_lora", "up.weight", (64, 7)),
        ("to_k_lora_image", "down.weight", (8, 95)),
        ("to_v_lora_image", "down.weight", (8,)),
    ],
)
def test_pairs_of_the_wrong_shape_are_told_by_the_tensor(pair, name, shape):
    tensors = {**state("cross_proc", "std"), f"{pair}.{name}": torch.zeros(shape)}
    with pytest.raises(MisshapenTensor) as error:
        ImagePairs.widths(tensors)
    assert error.value.name.startswith("to_") and error.value.name.split(".", 1)[1] in ("up.weight", "down.weight")


def test_ranks_of_text_and_image_pairs_may_differ():
    layer = ImagePairs(24, 16, rank=3, text_rank=5)
    assert ImagePairs.widths(layer.state_dict()) == {"context_dim": 24, "width": 16, "rank": 3, "text_rank": 5}


def test_every_published_name_has_a_module_here():
    """The prefixes whose tensors the tests above load strictly; what is left belongs to the host's own models."""
    ours = {
        "mm_fuse_one",
        "mm_fuse_two",
        "mlp_residual",
        "obj_embeds_proj",
        "se_attention",
        "se_refiner",
        "face_embeds_proj",
        "postfuse_module",
        "self_proc",
        "cross_proc",
    }
    theirs = {"attn1", "attn2", "text_encoder_one", "text_encoder_two", "image_encoder"}
    assert {name.split(".")[0] for name in SHAPES} == ours | theirs
