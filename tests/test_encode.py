"""From a cast to references, with an encoder small enough to compute by hand."""

from types import SimpleNamespace

import pytest
import torch
from troupe.model_patches.adapter import AdapterSpec, EncoderNeed, ImageAttentionSpec, PhotoSpec, Weights
from troupe.model_patches.encoding.interfaces import check_image_encoder
from troupe.model_patches.encoding.photos import prepare_photo
from troupe.model_patches.errors import MismatchError, SubjectError
from troupe.model_patches.families.encode import encode_subjects
from troupe.model_patches.subjects import Box, Cast, Photo, make_subject

D = 2048
POOLED, PENULTIMATE = EncoderNeed("pooled", 1024), EncoderNeed("penultimate", 1280)


def adapter(need=POOLED, tokens=4, context=D):
    parts = PhotoSpec(need), ImageAttentionSpec("ImageProj", (8,), tokens, text_gain=False)
    return SimpleNamespace(spec=AdapterSpec("ip_adapter", "plus_sdxl.safetensors", context, parts), weights=Weights())


class Images:
    """Features that depend on every pixel and on its place; remembers what it was asked."""

    size, hidden, pooled = 16, 1280, 1024

    def __init__(self):
        self.calls = []

    def encode(self, pictures, kind, blank):
        self.calls.append((len(pictures), kind, blank))
        if blank:
            pictures = torch.cat((pictures, torch.full((1, 16, 16, 3), 0.25)))  # stands for zero pixel values
        place = torch.linspace(1, 2, pictures[0].numel()) if len(pictures) else torch.zeros(768)
        sums = (pictures.flatten(1) * place).mean(1)
        return (
            sums[:, None].expand(-1, self.pooled)
            if kind == "pooled"
            else sums[:, None, None].expand(-1, 3, self.hidden)
        )


class Names:
    """One token for each letter; "" is 77 - 1 tokens of -1."""

    def __init__(self, width=D):
        self.width, self.calls = width, []

    def encode(self, names):
        self.calls.append(list(names))
        return [
            torch.arange(len(n), dtype=torch.float16)[:, None].expand(-1, self.width)
            if n
            else torch.full((76, self.width), -1.0)
            for n in names
        ]


def project(features):
    """[n, ...] -> [n, 4, D], bent so that a mean before it is not a mean after it."""
    return (features.flatten(1).mean(1) ** 3)[:, None, None].expand(-1, 4, D)


def photo(value, h=16, w=16, n=1):
    return torch.full((n, h, w, 3), float(value))


def cast_of(*subjects):
    cast = Cast()
    for i, (name, images, *rest) in enumerate(subjects):
        cast = cast.add(make_subject(name, images, number=i + 1, **(rest[0] if rest else {})))
    return cast


def encode(cast, need=POOLED, names=True, **kwargs):
    images = Images()
    return encode_subjects(adapter(need), cast, images, project, Names() if names else None, **kwargs), images


def warnings_of(cast, **kwargs):
    said = []
    encode(cast, warn=said.append, **kwargs)
    return said


PAIR = cast_of(("cat", [photo(0.2)]), ("dog", [photo(0.7)]))


# ---- photos ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need", [POOLED, PENULTIMATE])
def test_photos_of_one_subject_are_averaged_after_projection(need):
    batch, tall, wide = torch.cat((photo(0.1), photo(0.9))), photo(0.3, 40, 10), photo(0.5, 10, 40)
    references, _ = encode(cast_of(("cat", [batch, tall, wide]), ("dog", [photo(0.7)])), need)
    singles = [
        encode(cast_of(("cat", [one])), need)[0].subjects[0].tokens for one in (photo(0.1), photo(0.9), tall, wide)
    ]
    torch.testing.assert_close(references.subjects[0].tokens, torch.stack(singles).mean(0))
    torch.testing.assert_close(
        references.subjects[1].tokens, encode(cast_of(("dog", [photo(0.7)])), need)[0].subjects[0].tokens
    )


@pytest.mark.parametrize("need, blank", [(POOLED, False), (PENULTIMATE, True)])
def test_one_encoder_pass_for_all_photos(need, blank):
    _, images = encode(cast_of(("cat", [photo(0.1, n=3)]), ("dog", [photo(0.7), photo(0.5, 20, 20)])), need)
    assert images.calls == [(5, need.kind, blank)]


def test_uncond_tokens_of_a_pooled_adapter_project_a_zero_embedding():
    torch.testing.assert_close(encode(PAIR, POOLED)[0].uncond_tokens, project(torch.zeros(1, 1024))[0])


def test_uncond_tokens_of_a_plus_adapter_project_the_encoders_blank_row():
    blank = Images().encode(torch.zeros(0, 16, 16, 3), "penultimate", True)
    torch.testing.assert_close(encode(PAIR, PENULTIMATE)[0].uncond_tokens, project(blank)[0])


def test_the_adapters_own_framing_is_the_default():
    tall = cast_of(("cat", [photo(0.0, 32, 8)]))
    seen = {framing: encode(tall, framing=framing)[0].previews[0] for framing in ("auto", "pad", "center", "stretch")}
    assert torch.equal(seen["auto"], seen["pad"]) and not torch.equal(seen["pad"], seen["center"])
    assert seen["stretch"].max() == 0 and seen["pad"].max() == 1


def test_previews_show_every_photo_as_the_encoder_saw_it():
    mask = torch.zeros(1, 16, 16)
    mask[0, :8] = 1
    cast = cast_of(("cat", [photo(0.2, n=2)], {"mask": mask}), ("dog", [photo(0.7)]))
    previews = encode(cast)[0].previews
    assert [p.shape for p in previews] == [(16, 16, 3)] * 3
    assert torch.equal(previews[0], prepare_photo(Photo(photo(0.2)[0], mask[0]), 16, "pad"))


def test_what_the_artist_set_travels_with_the_subject():
    region = torch.ones(1, 4, 4)
    references, _ = encode(
        cast_of(
            (
                "cat",
                [photo(0.2)],
                {"region": region, "weight": -0.5, "start_percent": 0.1, "end_percent": 0.4, "box": Box(0, 0, 1, 1)},
            )
        )
    )
    subject = references.subjects[0]
    assert (subject.name, subject.weight, subject.start_percent, subject.end_percent, subject.box) == (
        "cat",
        -0.5,
        0.1,
        0.4,
        Box(0, 0, 1, 1),
    )
    assert torch.equal(subject.region, region[0])


def test_an_empty_cast_gives_references_without_subjects_and_says_so():
    for need in (POOLED, PENULTIMATE):
        references, _ = encode(Cast(), need)
        assert references.subjects == () and references.uncond_tokens.shape == (4, D)
    assert ["empty" in s for s in warnings_of(Cast())] == [True]


# ---- names -----------------------------------------------------------------------------------------------------------


def test_one_text_pass_for_all_names_and_the_empty_prompt():
    names = Names()
    encode_subjects(adapter(), PAIR, Images(), project, names)
    assert names.calls == [["cat", "dog", ""]]


def test_name_tokens_are_float32_and_as_long_as_the_names():
    references, _ = encode(cast_of(("cat", [photo(0.2)]), ("horse", [photo(0.7)])))
    assert [tuple(s.name_tokens.shape) for s in references.subjects] == [(3, D), (5, D)]
    assert {s.name_tokens.dtype for s in references.subjects} == {torch.float32} and references.named
    assert references.uncond_name_tokens.shape == (76, D)


def test_without_a_clip_there_are_no_names_and_none_are_asked_for():
    references, _ = encode(cast_of(("", [photo(0.2)]), ("dog", [photo(0.7)])), names=False)
    assert [s.name for s in references.subjects] == ["subject 1", "dog"]
    assert not references.named and references.subjects[1].name_tokens is None


@pytest.mark.parametrize("name", ["", "   ", "\n"])
def test_an_empty_name_is_asked_for_by_number(name):
    with pytest.raises(SubjectError, match="a name for subject 2, found an empty one"):
        encode(cast_of(("cat", [photo(0.2)]), (name, [photo(0.7)])))


def test_a_name_that_encodes_to_nothing_is_quoted():
    class Nothing(Names):
        def encode(self, names):
            return [torch.zeros(0, D)] * (len(names) - 1) + [torch.zeros(76, D)]

    with pytest.raises(SubjectError, match=r"words in it for subject 1, found '\(\)'"):
        encode_subjects(adapter(), cast_of(("()", [photo(0.2)])), Images(), project, Nothing())


@pytest.mark.parametrize("width, base", [(768, "SD1.5"), (1024, "SD2.x"), (4096, "4096-wide")])
def test_a_clip_of_another_base_model_is_refused(width, base):
    words = (
        f"found size {width}. Wire the CLIP"
        if width == 4096
        else f"is for SDXL, the connected CLIP is from an {base} checkpoint. Choose an {base} adapter"
    )
    with pytest.raises(MismatchError, match=f"plus_sdxl.safetensors .*{words}"):
        encode_subjects(adapter(), PAIR, Images(), project, Names(width))


# ---- the image encoder -----------------------------------------------------------------------------------------------

H, BIGG, L = (
    SimpleNamespace(hidden=1280, pooled=1024),
    SimpleNamespace(hidden=1664, pooled=1280),
    SimpleNamespace(hidden=1024, pooled=768),
)
FITTING = [
    ("penultimate", 1280, H),
    ("pooled", 1024, H),
    ("penultimate", 1664, BIGG),
    ("pooled", 1280, BIGG),
    ("penultimate", 1024, L),
    ("pooled", 768, L),
]
NAMES = {id(H): "ViT-H", id(BIGG): "ViT-bigG", id(L): "ViT-L"}


@pytest.mark.parametrize("kind, width, right", FITTING)
def test_only_the_encoder_of_the_right_widths_is_taken(kind, width, right):
    """1280 is ViT-H's hidden and bigG's pooled width, 1024 is ViT-L's hidden and ViT-H's pooled: the kind decides."""
    spec = adapter(EncoderNeed(kind, width)).spec
    for encoder in (H, BIGG, L):
        if encoder is right:
            check_image_encoder(spec, encoder)
            continue
        with pytest.raises(MismatchError) as caught:
            check_image_encoder(spec, encoder)
        assert NAMES[id(right)] in caught.value.expected and "plus_sdxl.safetensors" in caught.value.expected
        assert NAMES[id(encoder)] in caught.value.found and str(encoder.hidden) in caught.value.found
        assert "https://huggingface.co/" in caught.value.remedy and "models/clip_vision/" in caught.value.remedy


def test_no_encoder_at_all_says_where_one_belongs():
    with pytest.raises(MismatchError) as caught:
        check_image_encoder(adapter().spec, None)
    assert (
        "ViT-H" in caught.value.expected
        and "models/clip_vision" in caught.value.found
        and "https://huggingface.co/h94/" in caught.value.remedy
    )


def test_an_encoder_nobody_published_is_described_by_its_widths():
    with pytest.raises(MismatchError) as caught:
        check_image_encoder(adapter(EncoderNeed("pooled", 999)).spec, SimpleNamespace(hidden=7, pooled=8))
    assert (
        "999" in caught.value.expected
        and "hidden size 7 and projection size 8" in caught.value.found
        and "publisher" in caught.value.remedy
    )


def test_a_wrong_encoder_is_refused_before_any_work():
    images, names = Images(), Names()
    with pytest.raises(MismatchError):
        encode_subjects(adapter(EncoderNeed("pooled", 1280)), PAIR, images, project, names)
    assert images.calls == [] and names.calls == []


# ---- what is allowed and probably not meant --------------------------------------------------------------------------


def test_a_proper_cast_is_encoded_without_a_word():
    assert warnings_of(PAIR, prompts=["a cat and a dog"]) == []
    assert warnings_of(PAIR) == []


def test_two_of_one_name_are_warned_about_in_the_promised_words():
    assert warnings_of(cast_of(("girl", [photo(0.2)]), ("girl", [photo(0.7)]))) == [
        "Give subjects 1 and 2 different names, as in the prompt, or a box or region each: they are both "
        "called 'girl', "
        "so relevance cannot tell them apart and each gets half of the picture everywhere."
    ]


def test_regions_make_equal_names_harmless():
    left, right = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    left[..., 0] = 1
    assert (
        warnings_of(cast_of(("girl", [photo(0.2)], {"region": left}), ("girl", [photo(0.7)], {"region": right}))) == []
    )


def test_a_name_that_is_not_in_the_prompt_is_warned_about():
    (sentence,) = warnings_of(PAIR, prompts=["a cat"])
    assert "'dog' is not in your prompt" in sentence


def test_names_do_not_matter_where_they_are_not_encoded():
    assert warnings_of(cast_of(("girl", [photo(0.2)]), ("girl", [photo(0.7)])), names=False, prompts=["a boat"]) == []


def test_a_region_that_is_black_everywhere_is_warned_about():
    """Load Image gives a black mask for a photo without transparency."""
    (sentence,) = warnings_of(cast_of(("cat", [photo(0.2)]), ("dog", [photo(0.7)], {"region": torch.zeros(1, 64, 64)})))
    assert "region of subject 2 ('dog')" in sentence
