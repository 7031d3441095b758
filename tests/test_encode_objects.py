"""From a cast to the features of gated layers: phrases, photos, patch tokens, and what is said about places."""

from types import SimpleNamespace

import pytest
import torch
from support.golden_subject_diffusion import filled, golden, normal
from torch.nn.functional import normalize
from troupe.model_patches.adapter import AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec, Weights
from troupe.model_patches.binding.layer_tokens import COND, UNCOND
from troupe.model_patches.binding.object_tokens import Group, object_tokens
from troupe.model_patches.encoders.grounding import GroundingNet, to_text_space
from troupe.model_patches.encoders.mlp import MLP
from troupe.model_patches.encoding.photos import prepare_photo
from troupe.model_patches.errors import MismatchError, SubjectError
from troupe.model_patches.families.encode import encode_subjects
from troupe.model_patches.subjects import Box, Cast, Photo, make_subject

SIZE, PATCHES, HIDDEN, POOLED = 16, 4, 12, 6
E, WORD = 6, 10
NEEDS = {"text_image": EncoderNeed("pooled", POOLED), "patches": EncoderNeed("last", HIDDEN)}
WIDTHS = {"text": (768, E, 1), "text_image": (768, E, 2), "patches": (WORD, HIDDEN, PATCHES)}
FAMILY = {"text": "gligen", "text_image": "gligen", "patches": "subject_diffusion"}
HALF = Box(0, 0, 0.5, 1)


def adapter(kind, vision=None, framing="center"):
    context, feature, tokens = WIDTHS[kind]
    gated = GatedSpec(kind, {"middle_block.1.transformer_blocks.0": 8}, context, feature, 30, tokens)
    photos = (PhotoSpec(NEEDS[kind], framing),) if kind in NEEDS else ()
    spec = AdapterSpec(FAMILY[kind], f"{kind}.safetensors", context, (gated, *photos))
    return SimpleNamespace(spec=spec, weights=Weights(vision=vision or {}))


class Images:
    """A one-layer encoder of random weights that remembers how often it was asked."""

    size, hidden, pooled = SIZE, HIDDEN, POOLED

    def __init__(self, weights=None, patches=PATCHES):
        g = torch.Generator().manual_seed(3)
        self.weights = {
            "patch": torch.randn(SIZE * SIZE * 3 // patches, HIDDEN, generator=g) / 8,
            "head": torch.randn(SIZE * SIZE * 3, POOLED, generator=g) / 16,
        } | (weights or {})
        self.patches, self.calls = patches, []

    def encode(self, pictures, kind, blank):
        assert kind == "pooled" and not blank
        self.calls.append(len(pictures))
        return pictures.flatten(1) @ self.weights["head"]

    def encode_patches(self, pictures):
        self.calls.append(len(pictures))
        return pictures.reshape(len(pictures), self.patches, -1) @ self.weights["patch"], pictures.flatten(
            1
        ) @ self.weights["head"]

    def with_weights(self, weights):
        return Images(dict(weights), self.patches)


class Names:
    """A vector from a name's letters; brackets are nothing."""

    def __init__(self, width=E):
        self.width, self.calls = width, []

    def vector(self, name):
        return torch.randn(
            self.width, generator=torch.Generator().manual_seed(sum(map(ord, name))), dtype=torch.float64
        )

    def pooled(self, names):
        self.calls.append(list(names))
        return [self.vector(name) if name.strip("()") else None for name in names]


MATRIX = torch.randn(POOLED, POOLED, generator=torch.Generator().manual_seed(1))
torch.manual_seed(2)
CLS_MLP = MLP(POOLED, WORD, WORD).requires_grad_(False)
PROJECT = {"text": None, "text_image": lambda embeds: to_text_space(embeds, MATRIX), "patches": CLS_MLP}


def photos(count, seed=0, h=SIZE, w=SIZE):
    return torch.rand(count, h, w, 3, generator=torch.Generator().manual_seed(seed))


def subject(name="cat", images=None, **rest):
    return make_subject(name, [photos(1) if images is None else images], **rest)


def encode(kind, *subjects, images=None, names=None, vision=None, **options):
    """References, the image encoder, the sentences."""
    said = []
    images = images or (None if kind == "text" else Images())
    return (
        encode_subjects(
            adapter(kind, vision), Cast(subjects), images, PROJECT[kind], names, warn=said.append, **options
        ),
        images,
        said,
    )


def features(kind, *subjects, **options):
    return [s.features for s in encode(kind, *subjects, **options)[0].subjects]


# ---- GLIGEN's text boxes ---------------------------------------------------------------------------------------------


def test_a_text_file_reads_each_name_as_its_phrase_and_no_photo():
    names = Names()
    references, _, _ = encode("text", subject("cat", box=HALF), subject("red fox", box=HALF), names=names)
    for found, name in zip(references.subjects, ("cat", "red fox"), strict=True):
        torch.testing.assert_close(found.features.text, names.vector(name).float())
        assert (
            found.features.text.dtype == torch.float32
            and found.features.image is None
            and found.tokens is None
            and found.name_tokens is None
        )
    assert names.calls == [["cat", "red fox"]] and references.previews == () and references.uncond_tokens is None


def test_a_text_file_says_once_which_file_reads_photos():
    _, _, said = encode("text", subject("cat", photos(3), box=HALF), subject("dog", box=HALF), names=Names())
    assert said == ["To use the photos, load a GLIGEN text-image file: text.safetensors only uses names and boxes."]


def test_a_text_file_needs_a_clip_and_names():
    with pytest.raises(MismatchError, match="a CLIP for SD1.5.*text.safetensors, found none. .*into 'clip'"):
        encode("text", subject(box=HALF))
    with pytest.raises(SubjectError, match="a name for subject 2, found an empty one"):
        encode("text", subject(), subject(""), names=Names())


@pytest.mark.parametrize("kind", ["text", "text_image"])
def test_a_name_without_words_and_the_clip_of_another_base_are_refused(kind):
    with pytest.raises(SubjectError, match=r"words in it for subject 2, found '\(\)'"):
        encode(kind, subject("cat"), subject("()"), names=Names())
    with pytest.raises(
        MismatchError,
        match=rf"{kind}.safetensors is for SD1.5, the connected CLIP is from an SDXL checkpoint. Choose an "
        rf"SDXL adapter",
    ):
        encode(kind, subject("cat"), names=Names(2048))


# ---- GLIGEN's text-image boxes ---------------------------------------------------------------------------------------


def test_a_text_image_file_reads_phrase_and_photo():
    names, images = Names(), Images()
    (found,) = features("text_image", subject("cat", photos(1, 5), box=HALF), names=names)
    embed = images.encode(photos(1, 5), "pooled", False)[0]
    expected = embed @ MATRIX
    torch.testing.assert_close(found.image, 28.7 * expected / expected.norm())
    torch.testing.assert_close(found.text, names.vector("cat").float())


def test_photos_of_one_subject_count_the_same_and_are_averaged_before_the_projection():
    """A dark photo has a short embedding: without the unit length it would hardly count.

    The mean has the published length again.
    """
    both = torch.cat((photos(1, 5), 0.05 * photos(1, 6)))
    found, other = features("text_image", subject("cat", both), subject("dog", photos(1, 7)), names=Names())
    bright, dark = (normalize(Images().encode(one.unsqueeze(0), "pooled", False)[0], dim=0) for one in both)
    expected = (bright + dark) / 2 @ MATRIX
    torch.testing.assert_close(found.image, 28.7 * expected / expected.norm())
    torch.testing.assert_close(found.image.norm(), torch.tensor(28.7))
    torch.testing.assert_close(
        other.image, features("text_image", subject("dog", photos(1, 7)), names=Names())[0].image
    )
    after = (to_text_space(bright, MATRIX) + to_text_space(dark, MATRIX)) / 2
    assert not torch.allclose(found.image, after, rtol=1e-2)


def test_the_photo_is_framed_as_published_and_cut_out_where_a_mask_is_given():
    mask = torch.zeros(1, 20, 40)
    mask[:, 5:15, 8:30] = 1
    photo = photos(1, 5, 20, 40)
    references, _, _ = encode("text_image", make_subject("cat", [photo], mask=mask), names=Names())
    assert torch.equal(references.previews[0], prepare_photo(Photo(photo[0], mask[0]), SIZE, "center"))
    assert not torch.equal(references.previews[0], prepare_photo(Photo(photo[0]), SIZE, "center"))


def test_a_subject_without_a_name_acts_by_its_photo():
    nameless, named = features("text_image", subject("", box=HALF), subject("dog", box=HALF), names=Names())
    assert nameless.text is None and nameless.image is not None and named.text is not None


def test_without_a_clip_photos_act_alone_and_one_sentence_says_so():
    references, _, said = encode("text_image", subject("cat", box=HALF), subject("dog", box=HALF))
    assert all(s.features.text is None and s.features.image is not None for s in references.subjects) and len(said) == 1
    assert "without it text_image.safetensors gets no names" in said[0] and "into 'clip'" in said[0]


@pytest.mark.parametrize("names", [None, Names()])
def test_a_style_reference_has_neither_name_nor_box_and_nothing_is_said(names):
    references, _, said = encode("text_image", subject(""), names=names)
    assert said == [] and references.subjects[0].features.text is None and references.subjects[0].box is None


# ---- Subject-Diffusion -----------------------------------------------------------------------------------------------


def test_patch_tokens_and_the_word_come_from_one_pass():
    images = Images()
    references, images, _ = encode("patches", subject("cat", photos(2, 5)), subject("", photos(1, 6)), images=images)
    tokens, pooled = Images().encode_patches(torch.cat((photos(2, 5), photos(1, 6))))
    assert images.calls == [3]
    (cat, word), (other, another) = ((s.features, s.words["h"]) for s in references.subjects)
    torch.testing.assert_close(cat.image, tokens[:2].mean(0))
    torch.testing.assert_close(word[0], CLS_MLP(pooled[:2]).mean(0))
    torch.testing.assert_close(other.image, tokens[2])
    torch.testing.assert_close(another, CLS_MLP(pooled[2:]))
    assert cat.image.shape == (PATCHES, HIDDEN) and word.shape == (1, WORD) and cat.text is None
    assert [s.name for s in references.subjects] == ["cat", "subject 2"]


def test_the_adapters_own_vision_weights_act_in_this_encoding_alone():
    mine, images = {"patch": torch.ones(SIZE * SIZE * 3 // PATCHES, HIDDEN)}, Images()
    (found,) = features("patches", subject("cat", photos(1, 5)), vision=mine, images=images)
    torch.testing.assert_close(found.image, Images(mine).encode_patches(photos(1, 5))[0][0])
    (plain,) = features("patches", subject("cat", photos(1, 5)), images=images)
    torch.testing.assert_close(plain.image, Images().encode_patches(photos(1, 5))[0][0])


def test_the_cut_out_is_cropped_as_published_for_subject_diffusion_alone():
    mask = torch.zeros(1, 20, 40)
    mask[:, 2:18, 3:30] = 1
    whole = make_subject("cat", [photos(1, 5, 20, 40)], mask=mask)
    seen = {kind: encode(kind, whole, names=Names())[0].previews[0] for kind in ("patches", "text_image")}
    assert torch.equal(seen["text_image"], prepare_photo(whole.photos[0], SIZE, "center"))
    assert torch.equal(seen["patches"], prepare_photo(whole.photos[0], SIZE, "center", inside=1)) and not torch.equal(
        *seen.values()
    )


def test_an_encoder_with_another_number_of_patches_is_refused():
    with pytest.raises(MismatchError, match="with 4 patches for patches.safetensors, found one with 16"):
        encode("patches", subject(), images=Images(patches=16))


class Published:
    """The golden run's stand-in for CLIP ViT-H: two fixed matrices on the normalised pixels, pooled to 8x8."""

    size, hidden, pooled = 224, 40, 32

    def encode_patches(self, pictures):
        mean, std = (
            torch.tensor((0.48145466, 0.4578275, 0.40821073)),
            torch.tensor((0.26862954, 0.26130258, 0.27577711)),
        )
        pixels = torch.nn.functional.adaptive_avg_pool2d(((pictures - mean) / std).movedim(-1, 1), 8).flatten(1)
        return (pixels @ (0.1 * normal("input:clip.B", 192, 160))).reshape(-1, 4, 40), pixels @ (
            0.1 * normal("input:clip.A", 192, 32)
        )


@pytest.mark.parametrize("count, boxes", [(1, [None]), (2, [(50, 100, 200, 400), (300, 100, 500, 400)])])
def test_object_tokens_are_those_of_the_official_run(count, boxes):
    """From 8-bit photos with their masks, through cut-out, framing, encoder and GroundingNet; the official test run
    reads one subject without its box. The stored tokens are in half precision."""
    g = golden("pipeline")
    gated = GatedSpec("patches", {}, 32, 40, 2, 4)
    spec = AdapterSpec("subject_diffusion", "golden", 32, (PhotoSpec(EncoderNeed("last", 40), "center"), gated))
    placed = [
        None if box is None else Box(box[0] / 512, box[1] / 512, (box[2] - box[0]) / 512, (box[3] - box[1]) / 512)
        for box in boxes
    ]
    cast = Cast(
        tuple(
            make_subject(f"p{i}", [g[f"ref_p{i}.rgb"][None] / 255], mask=g[f"ref_p{i}.mask"][None], box=placed[i])
            for i in range(count)
        )
    )
    mlp, net = filled(MLP(32, 32, 32), "sharp", "mlp."), filled(GroundingNet(40, 32, 32, 4), "sharp", "proj.")
    references = encode_subjects(SimpleNamespace(spec=spec, weights=Weights()), cast, Published(), mlp, None)
    found = [
        object_tokens(SimpleNamespace(net=net), references, Group(role, (1.0,) * count), "off")[0]
        for role in (COND, COND, UNCOND)
    ]
    torch.testing.assert_close(
        torch.stack(found), g[f"{'one' if count == 1 else 'two'}.objs_3branch"].float(), rtol=0, atol=4e-3
    )


# ---- places ----------------------------------------------------------------------------------------------------------


def unplaced(kind, *subjects):
    return [s for s in encode(kind, *subjects, names=Names())[2] if s.startswith("Add a box for")]


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_subjects_without_a_box_are_named(kind):
    rest = "with Place Subjects: without one, the box is the whole picture."
    assert unplaced(kind, subject("cat"), subject("dog", box=HALF)) == [f"Add a box for subject 1 ('cat') {rest}"]
    assert unplaced(kind, subject("cat"), subject("dog", box=HALF), subject("fox")) == [
        f"Add a box for subject 1 ('cat') and subject 3 ('fox') {rest}"
    ]
    assert unplaced(kind, subject("cat", box=HALF), subject("dog", box=HALF)) == []
    # published: one subject of Subject-Diffusion has no position
    assert bool(unplaced(kind, subject("cat"))) == (kind != "patches")


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_regions_are_said_to_do_nothing(kind):
    _, _, said = encode(
        kind, subject("cat", box=HALF), subject("dog", box=HALF, region=torch.ones(1, 4, 4)), names=Names()
    )
    (sentence,) = [s for s in said if "region" in s]
    assert sentence.startswith("Use a box (Place Subjects) instead of the region of subject 2 ('dog')")


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_what_the_artist_set_travels_with_the_subject(kind):
    region = torch.ones(1, 4, 4)
    references, _, _ = encode(
        kind, subject("cat", region=region, weight=0.5, start_percent=0.1, end_percent=0.4, box=HALF), names=Names()
    )
    (found,) = references.subjects
    assert (found.name, found.weight, found.start_percent, found.end_percent, found.box) == ("cat", 0.5, 0.1, 0.4, HALF)
    assert torch.equal(found.region, region[0])


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_an_empty_cast_gives_references_without_subjects_and_says_so(kind):
    references, _, said = encode(kind, names=Names())
    assert (
        references.subjects == () and references.previews == () and ["the cast is empty" in s for s in said] == [True]
    )


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_photos_need_their_encoder(kind):
    with pytest.raises(MismatchError, match=f"{kind}.safetensors.*none connected"):
        encode_subjects(adapter(kind), Cast((subject(),)), None, PROJECT[kind], Names())
