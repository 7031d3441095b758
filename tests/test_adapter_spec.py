"""The description of an adapter: parts that are asked for by type."""

import pytest
from support.prompt_fusions import FUSIONS
from troupe.model_patches.adapter import (
    AdapterSpec,
    EncoderNeed,
    GatedSpec,
    ImageAttentionSpec,
    PhotoSpec,
    PromptSpec,
)

PARTS = {
    PhotoSpec: PhotoSpec(EncoderNeed("pooled", 1024), framing="center"),
    ImageAttentionSpec: ImageAttentionSpec("Resampler", (8, 16, 16), 4, text_gain=True, merge="joint"),
    GatedSpec: GatedSpec("text", {"middle_block.1.transformer_blocks.0": 64}, 768, 768, 30, 1),
    PromptSpec: PromptSpec(FUSIONS["word"], {"l": 768, "g": 1280}),
}
EXPECTED = {
    PhotoSpec: "a file that reads photos",
    ImageAttentionSpec: "a file with image attention",
    GatedSpec: "a file with gated layers",
    PromptSpec: "a file that acts in the prompt",
}


def spec(*kinds, label="My Adapter"):
    return AdapterSpec("mine", "my.bin", 768, tuple(PARTS[kind] for kind in kinds), label)


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_is_found_by_its_type(kind):
    whole = spec(*PARTS)
    assert whole.has(kind) and whole.part(kind) is PARTS[kind]
    others = spec(*(other for other in PARTS if other is not kind))
    assert not others.has(kind) and all(others.part(other) is PARTS[other] for other in PARTS if other is not kind)


@pytest.mark.parametrize("kind", PARTS)
def test_a_missing_part_is_named_in_a_sentence(kind):
    other, described = (
        (PromptSpec, "(subjects in the prompt)") if kind is not PromptSpec else (GatedSpec, "(1 gated layers)")
    )
    with pytest.raises(ValueError) as raised:
        spec(other).part(kind)
    assert str(raised.value) == f"my.bin: expected {EXPECTED[kind]}, found My Adapter for SD1.5 {described}"


@pytest.mark.parametrize("kind", PARTS)
def test_two_parts_of_one_type_are_refused(kind):
    """Equal or not, beside each other or not."""
    other = next(other for other in PARTS if other is not kind)
    with pytest.raises(ValueError) as raised:
        spec(kind, other, kind)
    assert str(raised.value) == f"my.bin: expected one part of a type, found two of {kind.__name__}"


def test_the_order_of_parts_has_no_meaning():
    assert spec(*PARTS) == spec(*reversed(PARTS)) != spec(PhotoSpec)


@pytest.mark.parametrize(
    ("kinds", "node", "in_prompt_only", "acts_in", "described"),
    [
        (
            (PhotoSpec, ImageAttentionSpec),
            "Apply Image Attention",
            False,
            (3, "cross-attention layers"),
            "(Resampler, 3 layers)",
        ),
        (
            (PromptSpec, ImageAttentionSpec),
            "Apply Image Attention",
            False,
            (3, "cross-attention layers"),
            "(Resampler, 3 layers)",
        ),
        ((PromptSpec, GatedSpec), "Apply Gated Adapter", False, (1, "gated layers"), "(1 gated layers)"),
        (
            (PhotoSpec, PromptSpec),
            "Encode Prompt with Subjects",
            True,
            (2, "text encoders"),
            "(subjects in the prompt)",
        ),
    ],
)
def test_what_is_said_of_an_adapter_follows_from_its_parts(kinds, node, in_prompt_only, acts_in, described):
    found = spec(*kinds)
    assert (found.node, found.acts_in_prompt_only, found.acts_in) == (node, in_prompt_only, acts_in)
    assert found.describe() == f"My Adapter for SD1.5 {described}"
    assert spec(*kinds, label="").describe() == f"mine for SD1.5 {described}"


def test_one_text_encoder_is_one():
    alone = AdapterSpec("mine", "my.bin", 768, (PromptSpec(FUSIONS["pseudo"], {"l": 768}),))
    assert alone.acts_in == (1, "text encoder")
