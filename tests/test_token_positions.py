"""Subjects' positions in prompts, on the embedded engine's tokenizer; tests/host/test_token_positions_host.py has the
same prompts on the host's own.
"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.token_position_cases import BOS, CASES, EOS, GLUED, rendered
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.hosts.diffusers.encoders import prompt_chunks
from troupe.model_patches.prompt.markers import parse_prompt
from troupe.model_patches.prompt.token_positions import find_token_positions

GOLDEN = Path(__file__).parent / "golden"


def tokenize(text):
    return [[token for token, _ in chunk] for chunk in prompt_chunks(text)]


def rows(text):
    """Rows of all tokens that are words."""
    return [
        c * 77 + i for c, chunk in enumerate(tokenize(text)) for i, token in enumerate(chunk) if token not in (BOS, EOS)
    ]


def ids(text):
    return [token for chunk in tokenize(text) for token in chunk if token not in (BOS, EOS)]


def error(text, *names):
    with pytest.raises(SubjectError) as caught:
        find_token_positions(parse_prompt(text), names, tokenize)
    return str(caught.value)


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, names, expected", CASES)
def test_the_rows_hold_the_subjects_words(text, names, expected):
    warnings = []
    found = find_token_positions(parse_prompt(text), names, tokenize, warnings.append)
    assert rendered(tokenize(found.text), found.positions) == expected
    assert warnings == []


@pytest.mark.parametrize("text, names, expected", GLUED)
def test_a_marker_inside_a_word_is_told_and_the_word_is_cut(text, names, expected):
    warnings = []
    found = find_token_positions(parse_prompt(text), names, tokenize, warnings.append)
    assert rendered(tokenize(found.text), found.positions) == expected
    assert len(warnings) == 1


def test_there_are_enough_prompts():
    assert len(CASES) + len(GLUED) >= 60


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "mm_diff" / "prompts.json").read_text()), ids=lambda case: case["prompt"]
)
def test_the_official_positions(case):
    """Subjects without a name: all by marker.

    The official code takes BOS for a marker at the start, here that is an error.
    """
    names = [""] * len(case["token_index"])
    if 0 in case["token_index"]:
        assert "at the very start of the prompt" in error(case["prompt"], *names)
        return
    found = find_token_positions(parse_prompt(case["prompt"]), names, tokenize)
    assert [at.row for at in found.positions] == case["token_index"]
    assert [at.chunk for at in found.positions] == [0] * len(names)
    assert tokenize(found.text) == [case["clean_ids"]]


def test_the_markers_do_not_reach_the_text_encoder():
    found = find_token_positions(
        parse_prompt("a man<|subj|>, an {old dog} and \\{more\\} cats <|subj|> (here:1.2)"),
        ["", "old dog", ""],
        tokenize,
    )
    assert found.text == "a man, an old dog and {more} cats (here:1.2)"


# ---- chunks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 1, 72, 73, 74, 75, 76, 148, 149, 150, 199])
@pytest.mark.parametrize("written", ["red fox", "{red fox}", "red fox<|subj|>"])
def test_long_prompts(before, written):
    """75 words fill a chunk; a name that begins at its end goes on in the next one."""
    (at,) = find_token_positions(
        parse_prompt("tall " * before + written + " tall" * (200 - before)), ["red fox"], tokenize
    ).positions
    assert (at.chunk, at.position) == ((before + 1) // 75, (before + 1) % 75 + 1)
    red = before // 75 * 77 + before % 75 + 1
    assert at.rows == ((at.row,) if written.endswith("|>") else (red, at.row))


def test_a_name_over_the_border_of_two_chunks():
    found = find_token_positions(parse_prompt("x " * 74 + "red fox"), ["red fox"], tokenize)
    assert found.positions[0].rows == (75, 78) and found.positions[0].words == "red fox"
    assert rendered(tokenize(found.text), found.positions) == "x " * 74 + "[1:red | fox]"


@pytest.mark.parametrize("written", ["(a red fox:1.2)", "(a {red fox}:1.2)", "(a red fox<|subj|>:1.2)"])
def test_a_short_emphasis_moves_to_the_next_chunk_as_a_whole(written):
    """A marker is longer than the room it leaves: the host's own chunks of the prompt without it count."""
    found = find_token_positions(parse_prompt("x " * 73 + written), ["red fox"], tokenize)
    assert [(at.chunk, at.position) for at in found.positions] == [(1, 3)]
    found = find_token_positions(parse_prompt("x " * 72 + written), ["red fox"], tokenize)
    assert [(at.chunk, at.position) for at in found.positions] == [(0, 75)]


def test_exclamation_marks_are_no_padding():
    """'!' is token 0, with which some encoders pad."""

    def padded(text):
        return [[*chunk, *[0] * (77 - len(chunk))] for chunk in tokenize(text)]

    assert (
        rendered(
            padded("! a man ! a !"), find_token_positions(parse_prompt("! a man<|subj|>! a !"), [""], padded).positions
        )
        == "! a [1:man] ! a !"
    )
    found = find_token_positions(parse_prompt("x " * 73 + "! (a red fox:1.2)"), ["red fox"], padded)
    assert [(at.chunk, at.position) for at in found.positions] == [(1, 3)]


# ---- whatever stands around ------------------------------------------------------------------------------------------

words = st.lists(st.text("bcdghjk", min_size=1, max_size=7), max_size=90)
emphasis = st.sampled_from(["{}", "{}", "{}", "({})", "({}:1.3)", "(({}:0.8))", "[{}]", "{},", "{} !?", "\\({}\\)"])
sides = st.lists(st.tuples(words, emphasis), max_size=3)
NAME = "red fox"
OPENING, CLOSING = ["", ",", "!", '"', "-", "..."], ["", ",", "!", '"', "-x", "...", "'s"]


def side(parts):
    """A text in the host's notation and what the encoder reads of it."""
    told = [(" ".join(found), notation) for found, notation in parts if found]
    plain = [
        notation.format(text).replace("\\", "") if notation in ("{},", "{} !?", "[{}]", "\\({}\\)") else text
        for text, notation in told
    ]
    return " ".join(notation.format(text) for text, notation in told), " ".join(plain)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    before=sides,
    after=sides,
    opening=st.sampled_from(OPENING),
    closing=st.sampled_from(CLOSING),
    written=st.sampled_from(["{}", "({}:1.2)", "(({}))", "(b {}:0.7)"]),
    marked=st.sampled_from(
        [NAME, "{" + NAME + "}", NAME + "<|subj|>", NAME + " <|subj|>", "(red:1.2) {fox}", "(red:1.2) fox"]
    ),
)
def test_the_right_row_whatever_stands_around(before, after, opening, closing, written, marked):
    (text_before, plain_before), (text_after, _) = side(before), side(after)
    text = f"{text_before} {opening}{written.replace('{}', marked)}{closing} {text_after}"
    found = find_token_positions(parse_prompt(text), [NAME], tokenize)
    # up to the name, without emphasis
    read = f"{plain_before} {opening}{'b ' if 'b ' in written else ''}{NAME}".replace("(", "\\(").replace(")", "\\)")
    (at,) = found.positions
    assert at.row == rows(found.text)[len(ids(read)) - 1]
    assert at.row == at.chunk * 77 + at.position == at.rows[-1]
    assert [tokenize(found.text)[row // 77][row % 77] for row in at.rows] == ids(NAME)[-len(at.rows) :]


@settings(max_examples=60, deadline=None)
@given(gaps=st.lists(words.map(" ".join), min_size=1, max_size=5), marked=st.booleans())
def test_the_nth_subject_of_a_name_has_its_nth_occurrence(gaps, marked):
    text = " ".join(f"{gap} girl{'<|subj|>' if marked else ''}," for gap in gaps)
    found = find_token_positions(parse_prompt(text), ["girl"] * len(gaps), tokenize)
    every = [
        c * 77 + i
        for c, chunk in enumerate(tokenize(found.text))
        for i, token in enumerate(chunk)
        if [token] == ids("girl")
    ]
    assert [at.row for at in found.positions] == every


pieces = st.sampled_from(
    ["<|subj|>", "{", "}", "\\{", "\\}", "cat", " ", ",", "(", ")", ":1.2", "\\", "\n", "\\(", "少", "🦊", "'s"]
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.lists(pieces, max_size=14).map("".join))
def test_any_text_with_markers_is_read_or_refused_in_a_sentence(text):
    try:
        parsed = parse_prompt(text)
        found = find_token_positions(parsed, [""] * len(parsed.markers), tokenize)
    except SubjectError as refused:
        assert str(refused).startswith("Expected ")
        return
    taken = rows(found.text)
    assert "<|subj|>" not in parsed.text and len(found.positions) == len(parsed.markers)
    assert all(at.row in taken for at in found.positions)
    assert len({at.row for at in found.positions}) == len(parsed.markers)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, names, told",
    [
        (
            "a dog on a rug",
            ["dog", "cat"],
            "Expected subject 2 'cat' in the prompt, found 'a dog on a rug'. Write the name in the prompt",
        ),
        ("", ["cat"], "Expected subject 1 'cat' in the prompt, found ''."),
        ("a concatenation", ["cat"], "Expected subject 1 'cat' in the prompt"),
        ("agent 47", ["agent 4"], "Expected subject 1 'agent 4' in the prompt"),
        (
            "cats",
            ["cats", "cat", "x"],
            "Expected 'cat' once in the prompt for each of its subjects, subject 2 'cat' too, found it only "
            "in the names of other subjects",
        ),
        (
            "a red girl",
            ["girl", "red girl"],
            "subject 1 'girl' too, found it only in the names of other subjects (a red girl).",
        ),
        (
            "a girl",
            ["girl", "Girl"],
            "subject 2 'Girl' too, found 1 for 2 subjects of that name (a girl). Write it again",
        ),
        ("two girls", ["girl", "girl"], "found 1 for 2 subjects of that name"),
        ("a girl and girls", ["girl", "girl"], "found 1 for 2 subjects of that name"),
        ("a cat", [""], "Expected a name for subject 1, found none."),
        (
            "一个少女在跑步",
            ["少女"],
            "Put spaces around the name, or write <|subj|> right after it: CLIP reads it as one word "
            "together with the text beside it.",
        ),
        ("a c++, book", ["c++"], "CLIP reads it as one word together with the text beside it"),
        (
            "a man<|subj|> and a dog<|subj|>",
            ["man"],
            "Expected at most as many markers as subjects (1), found 2 in the prompt.",
        ),
        ("a man<|subj|>", [], "Expected at most as many markers as subjects (0), found 1 in the prompt."),
        (
            "a man<|subj|> and a dog",
            ["man", "dog"],
            "Expected a marker for every subject, found 1 for 2 subjects, so that subject 2 'dog' has none.",
        ),
        ("a {dog} and a {man}", ["dog", "Bob", "Alice"], "found 2 for 3 subjects, so that subject 3 'Alice' has none."),
        (
            "<|subj|> leads",
            ["man"],
            "Expected a word before the marker of subject 1 'man', found the marker at the very start of the prompt.",
        ),
        ("(<|subj|>man:1.2)", ["man"], "found '('."),
        ("a man, <|subj|>", ["man"], "Expected a word before the marker of subject 1 'man', found ','."),
        ("a man.<|subj|>", ["man"], "found '.'."),
        (r"\(man\)<|subj|>", ["man"], "found ')'."),
        ("man)<|subj|>", ["man"], "found ')'."),
        ("a {,}", ["man"], "Expected the subject's words between braces, found '{,}' in the prompt."),
        ("a {} man", ["man"], "Expected the subject's words between braces, found '{}' in the prompt."),
        ("a { } man", ["man"], "found '{ }' in the prompt."),
        (
            "a {man<|subj|>}",
            ["man", "dog"],
            "Expected one marker for a word, found a second one after 'man', for subject 1 'man'.",
        ),
        ("a man<|subj|><|subj|>", ["man", "dog"], "found a second one after 'man', for subject 2 'dog'."),
        (
            "(man:1.2<|subj|>) here",
            ["man"],
            "found it inside other notation ((man:1.2) here). Write it before the number of an emphasis",
        ),
    ],
)
def test_errors_say_whose_and_what_to_do(text, names, told):
    assert told in error(text, *names)


def test_a_long_prompt_is_shortened_in_an_error():
    assert len(error("cat " * 500, "dog")) < 400
