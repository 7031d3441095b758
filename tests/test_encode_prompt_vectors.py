"""What represents a subject in the prompt: which photos and faces the adapter's modules read, with encoders small
enough to compute by hand, and with tiny real ones.
"""

from types import SimpleNamespace

import pytest
import torch
from support.prompt_fusions import FUSIONS
from support.published_layouts import mm_diff_members
from troupe.model_patches.adapter import (
    Adapter,
    AdapterSpec,
    EncoderNeed,
    ImageAttentionSpec,
    PhotoSpec,
    PromptSpec,
    Weights,
)
from troupe.model_patches.encoding.faces import Faces
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.families.encode import encode_subjects
from troupe.model_patches.subjects import Cast, make_subject

SIDE, WIDTH, POOLED, TOKENS = 16, 6, 5, 2
STREAMS = {"l": 8, "g": 12}


class Images:
    """Features that tell pictures, kinds and the encoder itself apart; remembers what it was asked."""

    size, hidden, pooled = SIDE, WIDTH, POOLED

    def __init__(self, own=0.0):
        self.own, self.calls = own, []

    def encode(self, pictures, kind, blank):
        assert not blank
        self.calls.append((kind, self.own, len(pictures)))
        value = read(pictures) + self.own
        return (
            value[:, None].expand(-1, POOLED)
            if kind != "penultimate"
            else value[:, None, None].expand(-1, 3, WIDTH) * 10
        )

    def with_weights(self, weights):
        self.changed = Images(float(weights["own"]))
        return self.changed


def read(pictures):
    """[n]: one number of a picture that depends on every pixel and its place."""
    return (pictures.flatten(1) * torch.linspace(1, 2, pictures[0].numel())).mean(1)


def mm_diff(projection="FaceHead", own=100.0):
    parts = (
        PhotoSpec(EncoderNeed("pooled", POOLED), framing="black"),
        ImageAttentionSpec(projection, (8,), TOKENS, text_gain=False, merge="joint"),
        PromptSpec(FUSIONS["word"], STREAMS),
    )
    spec = AdapterSpec("mm_diff", "mm_diff.bin", 2048, parts)
    return SimpleNamespace(spec=spec, weights=Weights(vision={"own": torch.tensor(own)}))


def simple(kind, tokens=1, need="pooled"):
    family = {"pseudo": "umm", "postfuse": "fastcomposer"}[kind]
    photos = PhotoSpec(EncoderNeed(need, WIDTH if need == "unprojected" else POOLED))
    spec = AdapterSpec(family, "umm.safetensors", 768, (photos, PromptSpec(FUSIONS[kind], {"l": 8}, tokens)))
    return SimpleNamespace(spec=spec, weights=Weights())


def heads(pooled, who, looks):
    """MM-Diff's heads, as sums that can be read back: words for both encoders, image tokens [n, TOKENS, 4]."""
    tokens = torch.stack((who[:, :1].expand(-1, 4), looks[:, 0, :1].expand(-1, 4)), 1)
    return pooled[:, :1].expand(-1, 8), 2 * pooled[:, :1].expand(-1, 12), tokens


def photos(*values, h=20, w=10):
    g = torch.Generator().manual_seed(1)
    return [torch.rand(1, h, w, 3, generator=g) * 0.1 + value for value in values]


def faces(*values):
    vectors = torch.zeros(len(values), 512)
    vectors[:, 0] = torch.tensor(values)
    return Faces(vectors, torch.stack([torch.full((224, 224, 3), value) for value in values]))


def cast_of(*subjects):
    cast = Cast()
    for number, (name, pictures, found) in enumerate(subjects, 1):
        cast = cast.add(make_subject(name, pictures, number=number, faces=found))
    return cast


def prepared(picture, framing):
    from troupe.model_patches.encoding.photos import prepare_photo
    from troupe.model_patches.subjects import Photo

    return read(prepare_photo(Photo(picture[0]), SIDE, framing)[None])


ALICE, BOB = ("woman", photos(0.1, 0.3, 0.5), faces(0.2, 0.4, 0.6)), ("man", photos(0.7), faces(0.8))


def test_mm_diff_takes_words_from_first_photos_and_tokens_from_the_faces_of_all():
    """The words with the adapter's own image encoder, in the published framing; the faces with the untouched one."""
    images = Images()
    found = encode_subjects(mm_diff(), cast_of(ALICE, BOB), images, heads, None)
    for subject, (_, pictures, face) in zip(found.subjects, (ALICE, BOB), strict=True):
        word = prepared(pictures[0], "black") + 100
        torch.testing.assert_close(subject.words["l"], word[:, None].expand(1, 8))
        torch.testing.assert_close(subject.words["g"], 2 * word[:, None].expand(1, 12))
        looks = 10 * read(face.crops)
        expected = torch.stack((face.vectors[:, :1].expand(-1, 4), looks[:, None].expand(-1, 4)), 1).flatten(0, 1)
        torch.testing.assert_close(subject.tokens, expected)
        assert subject.tokens.dtype == subject.words["l"].dtype == torch.float32
    assert images.changed.calls == [("pooled", 100.0, 2)] and images.calls == [("penultimate", 0.0, 4)]
    assert (
        [len(s.tokens) for s in found.subjects] == [3 * TOKENS, TOKENS]
        and found.uncond_tokens is None
        and len(found.previews) == 4
    )


@pytest.mark.parametrize(("kind", "reads"), [("ObjectHead", "pooled"), ("CLSHead", "unprojected")])
def test_a_head_for_objects_reads_the_photos_themselves(kind, reads):
    """Framed with white, as the published figure shows them, by the untouched encoder; faces are not asked for."""
    images = Images()
    found = encode_subjects(mm_diff(kind), cast_of((*ALICE[:2], None), (*BOB[:2], None)), images, heads, None)
    for subject, (_, pictures, _) in zip(found.subjects, (ALICE, BOB), strict=True):
        looks = torch.cat([prepared(picture, "pad") for picture in pictures])
        expected = torch.stack((looks[:, None].expand(-1, 4), 10 * looks[:, None].expand(-1, 4)), 1).flatten(0, 1)
        torch.testing.assert_close(subject.tokens, expected)
        torch.testing.assert_close(subject.words["l"], prepared(pictures[0], "black")[:, None].expand(1, 8) + 100)
    assert sorted(images.calls) == sorted([("penultimate", 0.0, 4), (reads, 0.0, 4)])
    assert (prepared(ALICE[1][0], "pad") - prepared(ALICE[1][0], "black")).abs() > 0.1


@pytest.mark.parametrize("tokens", [1, 3])
def test_pseudo_words_are_the_mean_over_a_subjects_photos(tokens):
    """The mean of what the mapping makes of each photo, not the mapping of the mean."""

    def project(embeds):
        return (embeds[:, :1] ** 2)[:, None].expand(-1, tokens, 8) * torch.arange(1, tokens + 1)[:, None]

    found = encode_subjects(
        simple("pseudo", tokens), cast_of((*ALICE[:2], None), (*BOB[:2], None)), Images(), project, None
    )
    for subject, (_, pictures, _) in zip(found.subjects, (ALICE, BOB), strict=True):
        squares = torch.cat([prepared(picture, "pad") for picture in pictures]) ** 2
        assert list(subject.words) == ["l"] and subject.tokens is None
        torch.testing.assert_close(
            subject.words["l"], squares.mean() * torch.arange(1.0, tokens + 1)[:, None].expand(tokens, 8)
        )


def test_fastcomposer_takes_the_embeddings_as_they_are():
    """No projection is called; several photos are their mean; the kind of embedding is the adapter's."""
    for need in ("pooled", "unprojected"):
        images = Images()
        found = encode_subjects(simple("postfuse", need=need), cast_of((*ALICE[:2], None)), images, None, None)
        expected = torch.cat([prepared(picture, "pad") for picture in ALICE[1]]).mean()
        torch.testing.assert_close(found.subjects[0].words["l"], expected.expand(1, POOLED))
        assert images.calls == [(need, 0.0, 3)]


def test_missing_faces_are_a_sentence_about_the_subject():
    with pytest.raises(
        SubjectError, match=r"prepared faces for subject 2 \('man'\).*found none.*Prepare Faces.*'faces' of Add Subject"
    ):
        encode_subjects(mm_diff(), cast_of(ALICE, (*BOB[:2], None)), Images(), heads, None)


@pytest.mark.parametrize(
    "adapter", [mm_diff(), simple("pseudo"), simple("postfuse")], ids=["word", "pseudo", "postfuse"]
)
def test_missing_names_are_a_sentence_about_the_subject(adapter):
    with pytest.raises(SubjectError, match="a name for subject 2.*empty.*as in the prompt"):
        encode_subjects(adapter, cast_of(ALICE, ("", *BOB[1:])), Images(), heads, None)


def test_an_empty_cast_encodes_nothing():
    told, images = [], Images()
    found = encode_subjects(mm_diff(), Cast(), images, heads, None, warn=told.append)
    assert found.subjects == () and images.calls == [] and "the cast is empty" in told[0]


def test_weights_names_and_places_come_along():
    cast = Cast((make_subject("cat", photos(0.2), faces=faces(0.1), weight=0.5, start_percent=0.2, end_percent=0.9),))
    (subject,) = encode_subjects(mm_diff(), cast, Images(), heads, None).subjects
    assert (subject.name, subject.weight, subject.start_percent, subject.end_percent) == ("cat", 0.5, 0.2, 0.9)


# ---- with tiny real encoders -----------------------------------------------------------------------------------------


def test_mm_diff_on_tiny_real_modules():
    """CLIP's own classes and the published heads: the pieces put together by hand."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    from troupe.model_patches.encoders.mm_diff import MMDiffHeads
    from troupe.model_patches.encoders.refiner import SubjectHead
    from troupe.model_patches.encoding.photos import prepare_photo
    from troupe.model_patches.hosts.diffusers.encoders import ClipImages, encode_references, pixel_values
    from troupe.model_patches.subjects import Photo

    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=32,
        image_size=224,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=3,
        patch_size=56,
        projection_dim=24,
    )
    model, changed = (CLIPVisionModelWithProjection(config).eval().requires_grad_(False) for _ in range(2))
    name = "visual_projection.weight"
    changed.load_state_dict({**model.state_dict(), name: torch.randn(24, 32)})
    state = {
        name.removeprefix("face_embeds_proj."): tensor
        for name, tensor in mm_diff_members(40, (8, 8), (8, 12), 24, patches=32)["custom_weights"].items()
    }
    head = SubjectHead.widths(
        {name: tensor for name, tensor in state.items() if name.startswith(("proj.", "layer_norm.", "refiner."))}
    )
    modules = MMDiffHeads({"embed_dim": 24, "hidden_dim": 16, "one_dim": 8, "two_dim": 12}, head).requires_grad_(False)
    parts = (
        PhotoSpec(EncoderNeed("pooled", 24), framing="black"),
        ImageAttentionSpec("FaceHead", (8,), 4, text_gain=False, merge="joint"),
        PromptSpec(FUSIONS["word"], STREAMS),
    )
    spec = AdapterSpec("mm_diff", "mm_diff.bin", 40, parts)
    adapter = Adapter(spec, modules, None, weights=Weights(vision={name: changed.state_dict()[name]}))
    with torch.no_grad():
        found = encode_references(adapter, cast_of(ALICE, BOB), ClipImages(model), None)
        for subject, (_, pictures, face) in zip(found.subjects, (ALICE, BOB), strict=True):
            photo = pixel_values(prepare_photo(Photo(pictures[0][0]), 224, "black")[None])
            dense = model(pixel_values(face.crops), output_hidden_states=True).hidden_states[-2]
            one, two, tokens = modules(changed(photo).image_embeds, face.vectors, dense)
            for mine, expected in (
                (subject.words["l"], one),
                (subject.words["g"], two),
                (subject.tokens, tokens.flatten(0, 1)),
            ):
                torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    assert not torch.equal(model.state_dict()[name], changed.state_dict()[name]), (
        "the encoder that was given stays as it was"
    )
