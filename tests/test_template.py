"""Subject-Diffusion's prompt with its placeholders, against the official code's."""

from pathlib import Path

import pytest
from safetensors import safe_open
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.hosts.diffusers.encoders import prompt_chunks
from troupe.model_patches.prompt.markers import parse_prompt
from troupe.model_patches.prompt.template import PLACEHOLDER_ID, subject_template, template_positions

GOLDEN = Path(__file__).parent / "golden" / "subject_diffusion"
TEMPLATES = {"one": ["duck toy"], "two": ["dog", "cat"], "three": ["dog", "cat", "bird"]}


def tokenize(text):
    return [[token for token, _ in chunk] for chunk in prompt_chunks(text)]


@pytest.mark.parametrize("case", TEMPLATES)
def test_the_official_template(case):
    """The official code keeps two slots: 0 where there is none, the last two of more."""
    with safe_open(GOLDEN / "text.safetensors", "pt") as file:
        text, wanted, slots = (file.get_tensor(f"template.{case}.{part}") for part in ("text", "ids", "idx"))
    official = bytes(text.tolist()).decode()
    prompt, places = template_positions(
        parse_prompt(f" {official.split(', the ' + TEMPLATES[case][0] + ' is sks')[0]}\n"), TEMPLATES[case], tokenize
    )
    assert prompt == official
    (chunk,) = tokenize(prompt)
    assert [*chunk, *[0] * (77 - len(chunk))] == wanted[0].tolist()
    assert [place.row for place in places][-2:] == [slot for slot in slots.tolist() if slot]
    assert [place.row for place in places] == [i for i, token in enumerate(chunk) if token == PLACEHOLDER_ID]


@pytest.mark.parametrize(
    "text, names, expected",
    [
        ("a fox", ["(fox:1.2)"], "a fox, the fox is sks"),
        (r"rem \(re:zero\), maid", [r"rem \(re:zero\)"], r"rem \(re:zero\), maid, the rem \(re:zero\) is sks"),
        ("a {fox} and a cat<|subj|>", ["fox", " red  cat "], "a fox and a cat, the fox is sks, the red cat is sks"),
        ("", ["fox"], ", the fox is sks"),
        ("a fox", [], "a fox"),
    ],
)
def test_templates(text, names, expected):
    assert subject_template(parse_prompt(text), names) == expected
    prompt, places = template_positions(parse_prompt(text), names, tokenize)
    assert [tokenize(prompt)[place.chunk][place.position] for place in places] == [PLACEHOLDER_ID] * len(names)


@pytest.mark.parametrize(
    "text, names, told",
    [
        ("a sks dog", ["dog"], "Expected no 'sks' in the prompt, found 'a sks dog'."),
        ("a (SKS:1.2), dog", ["dog"], "Expected no 'sks' in the prompt"),
        ("a dog", ["cat", "sks dog"], "Expected no 'sks' in the name of subject 2, found 'sks dog'."),
        ("a dog", [" "], "Expected a name for subject 1, found none."),
    ],
)
def test_template_errors(text, names, told):
    with pytest.raises(SubjectError) as caught:
        template_positions(parse_prompt(text), names, tokenize)
    assert told in str(caught.value)


def test_a_placeholder_that_the_published_encoder_would_lose_is_an_error():
    """70 words and ', the dog is sks' fill the 75 places; sks as the last token is kept."""
    prompt, (place,) = template_positions(parse_prompt("x " * 70), ["dog"], tokenize)
    assert place.row == 75 and tokenize(prompt)[0][75] == PLACEHOLDER_ID
    with pytest.raises(
        SubjectError, match=r"found the placeholder of subject 1 'dog' at token 76. Shorten the prompt."
    ):
        template_positions(parse_prompt("x " * 71), ["dog"], tokenize)
    with pytest.raises(SubjectError, match="found the placeholder of subject 2 'cat' at token 76"):
        template_positions(parse_prompt("x " * 66), ["dog", "cat"], tokenize)
