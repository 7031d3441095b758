"""Subjects' places in prompts on the host's own tokenizers, and what stands at them when the host encodes."""

import pytest
import torch
from support.host import tiny_models
from support.token_position_cases import CASES, GLUED, rendered
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.prompt.markers import parse_prompt
from troupe.model_patches.prompt.template import PLACEHOLDER_ID, template_positions
from troupe.model_patches.prompt.token_positions import find_token_positions

pytestmark = pytest.mark.usefixtures("host")
WIDTHS = {"sd15": {"l": 768}, "sd2": {"h": 1024}, "sdxl": {"l": 768, "g": 1280}}
VECTORS = 3  # of the embedding 'style'


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """A folder with an embedding of three vectors for each encoder, and one of a single vector."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("embeddings")
    for name, count in (("style", VECTORS), ("face", 1)):
        save_file(
            {"clip_l": torch.randn(count, 768), "clip_g": torch.randn(count, 1280), "clip_h": torch.randn(count, 1024)},
            folder / f"{name}.safetensors",
        )
    return str(folder)


@pytest.fixture(scope="module")
def tokenizers(host, embeddings):
    """The host's tokenizer of each base model."""
    from comfy.sd1_clip import SD1Tokenizer
    from comfy.sdxl_clip import SDXLTokenizer
    from comfy.text_encoders.sd2_clip import SD2Tokenizer

    return {"sd15": SD1Tokenizer(embeddings), "sd2": SD2Tokenizer(embeddings), "sdxl": SDXLTokenizer(embeddings)}


@pytest.fixture(params=[(base, stream) for base, streams in WIDTHS.items() for stream in streams], ids="-".join)
def tokenize(tokenizers, request):
    base, stream = request.param
    return lambda text: [
        [token for token, _ in chunk] for chunk in tokenizers[base].tokenize_with_weights(text)[stream]
    ]


def test_the_rows_hold_the_subjects_words(tokenize):
    for text, names, expected in CASES:
        warnings = []
        found = find_token_positions(parse_prompt(text), names, tokenize, warnings.append)
        assert (rendered(tokenize(found.text), found.positions), warnings) == (expected, []), text


def test_a_marker_inside_a_word_is_told_and_the_word_is_cut(tokenize):
    for text, names, expected in GLUED:
        warnings = []
        found = find_token_positions(parse_prompt(text), names, tokenize, warnings.append)
        assert (rendered(tokenize(found.text), found.positions), len(warnings)) == (expected, 1), text


@pytest.mark.parametrize(
    "text, names, expected",
    [
        ("embedding:style a man<|subj|> here", ["x"], "* * * a [1:man] here"),
        ("a photo embedding:style, of a man", ["man"], "a photo * * * , of a [1:man]"),
        ("(embedding:style:1.2) a {man}", ["man"], "* * * a [1:man]"),
        ("an embedding:face man, a embedding:face dog", ["dog", "man"], "an * [2:man] , a * [1:dog]"),
        ("a man embedding:style", ["man"], "a [1:man] * * *"),
        ("a man<|subj|> embedding:style", ["x"], "a [1:man] * * *"),
        ("a embedding:style<|subj|>, here", ["x"], "a [1:* * *] , here"),
        ("(embedding:face<|subj|>:1.2) here", ["x"], "[1:*] here"),
        ("a embedding:nowhere man", ["man"], "a [1:man]"),
    ],
)
def test_embeddings_in_the_prompt(tokenize, text, names, expected):
    found = find_token_positions(parse_prompt(text), names, tokenize)
    assert rendered(tokenize(found.text), found.positions) == expected


@pytest.mark.parametrize(
    "text, told",
    [
        ("a embedding:nowhere<|subj|>", "'embedding:nowhere', which the text encoder cannot read"),
        ("a embedding:style,<|subj|> man", "found ','"),
        ("embedding:man", "Expected subject 1 'man'"),
        (
            "a embedding:face here",
            "Expected subject 2 'embedding:face' in the prompt, found 'a embedding:face here'. Embeddings "
            "are not found by name: write <|subj|> right after it.",
        ),
    ],
)
def test_embeddings_that_are_no_subjects(tokenize, text, told):
    names = ["here", "embedding:face"] if "face" in text else ["man"]
    with pytest.raises(SubjectError) as caught:
        find_token_positions(parse_prompt(text), names, tokenize)
    assert told in str(caught.value)


@pytest.mark.parametrize("before", [0, 70, 71, 72, 73, 74, 75, 150, 199])
def test_long_prompts_with_an_embedding(tokenize, before):
    found = find_token_positions(
        parse_prompt("x " * before + "embedding:style (old red fox<|subj|>:1.1) " + "x " * (200 - before)),
        ["red fox"],
        tokenize,
    )
    told = rendered(tokenize(found.text), found.positions)
    assert told.replace(" |", "").split() == [
        *"x" * before,
        "*",
        "*",
        "*",
        "old",
        "red",
        "[1:fox]",
        *"x" * (200 - before),
    ]


def test_both_encoders_of_sdxl_agree(tokenizers):
    def stream(name):
        return lambda text: [
            [token for token, _ in chunk] for chunk in tokenizers["sdxl"].tokenize_with_weights(text)[name]
        ]

    for text, names, _ in CASES + GLUED + [("x " * 73 + "embedding:style (a man<|subj|>:1.2)", ["x"], "")]:
        assert find_token_positions(parse_prompt(text), names, stream("l")) == find_token_positions(
            parse_prompt(text), names, stream("g")
        )


def test_placeholders(tokenize):
    prompt, positions = template_positions(parse_prompt("a (dog:1.2) and a cat"), ["(dog:1.2)", "cat"], tokenize)
    assert prompt == "a (dog:1.2) and a cat, the dog is sks, the cat is sks"
    assert [tokenize(prompt)[0][at.row] for at in positions] == [PLACEHOLDER_ID] * 2
    with pytest.raises(SubjectError, match="found the placeholder of subject 1 'dog' at token 77"):
        template_positions(parse_prompt("x " * 69 + "embedding:style"), ["dog"], tokenize)


@pytest.mark.parametrize("text", ["a red fox<|subj|> in the snow", "x " * 90 + "(a fox<|subj|>:1.3), night"])
def test_a_vector_at_the_place_changes_the_encoding_from_its_row_on(text):
    """CLIP is causal within a chunk: rows before the place stay."""
    clip = tiny_models.tiny_clip("sd15")

    def tokens(prompt):
        return clip.tokenize(prompt)["l"]

    found = find_token_positions(
        parse_prompt(text), ["fox"], lambda prompt: [[token for token, _ in chunk] for chunk in tokens(prompt)]
    )
    (at,) = found.positions
    plain = clip.encode_from_tokens({"l": tokens(found.text)})
    edited = [list(chunk) for chunk in tokens(found.text)]
    edited[at.chunk][at.position] = (torch.ones(768), edited[at.chunk][at.position][1])
    changed = (clip.encode_from_tokens({"l": edited}) - plain).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(at.row, (at.chunk + 1) * 77))
