"""Names and prompts as artists write them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from troupe.model_patches.prompt.graph_text import MAX_NODES, literal_texts
from troupe.model_patches.prompt.names import duplicate_warnings, missing_warnings, plain_words, stands_in

words = st.lists(st.text("abcdefghij", min_size=1, max_size=6), min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize(
    "name, prompt",
    [
        ("cat", "a cat on a rug"),
        ("cat", "Cat"),
        ("cat", "two cats"),
        ("cat", "a (cat:1.3), masterpiece"),
        ("cat", "((cat))"),
        ("cat", "cat, dog"),
        ("cat", "a\ncat"),
        ("box", "boxes"),
        ("red-haired girl", "photo of a red-haired girl."),
        ("red haired girl", "red_haired_girl, 1boy"),
        ("red_haired_girl", "a red haired  girl"),
        ("(cat:1.2)", "a cat"),
        (r"rem \(re:zero\)", r"1girl, rem \(re:zero\), maid"),
        (r"rem \(re:zero\)", r"(rem \(re:zero\):1.2), maid"),
        (r"2b \(nier:automata\)", r"2b_\(nier:automata\), sword"),
        ("少女", "一个少女在跑步"),
        ("ネコ", "黒いネコと犬"),
        ("고양이", "고양이가 있다"),
        ("кошка", "белая кошка на ковре"),
        ("café", "a Café in Paris"),
        ("girl", "1girl, 1boy, classroom"),
        ("boy", "1girl, 1boy"),
        ("girls", "2girls, park"),
        ("1girl", "1girl, solo"),
        ("girl", "girl2 and girl3"),
        ("c++", "a c++ book"),
        ("cat", "cat's toy"),
        ("a very long name of many words", "x " * 3000 + "a very long name of many words"),
    ],
)
def test_a_name_that_stands_in_the_prompt_is_found(name, prompt):
    assert stands_in(name, prompt)


@pytest.mark.parametrize(
    "name, prompt",
    [
        ("cat", "a concatenation"),
        ("cat", "category"),
        ("cat", ""),
        ("girl", "boys"),
        ("red girl", "red-haired girl"),
        ("", "a cat"),
        ("()", "a cat"),
        ("кот", "котлета"),
        ("caf", "a café"),
        ("rem", "remarkable"),
        ("1girl", "11girl"),
        ("girl", "1girlish"),
        ("2", "12 cats"),
        ("mech 1", "mech 12"),
        (r"rem \(re:zero\)", "rem"),
        ("catss", "cat"),
        (".", "a cat"),
    ],
)
def test_a_name_that_is_not_in_the_prompt_is_not_found(name, prompt):
    assert not stands_in(name, prompt)


def test_accents_typed_in_two_ways_are_one_name():
    """macOS file names and some keyboards give letters and accents apart."""
    assert stands_in(unicodedata.normalize("NFD", "Renée"), "portrait of Renée, smiling")


@given(name=words, before=words, after=words)
def test_a_name_is_found_wherever_it_stands(name, before, after):
    assert stands_in(name, f"{before}, ({name}:1.1) {after}")


@given(st.text())
def test_any_text_can_be_read(text):
    plain_words(text)
    stands_in(text, text)
    missing_warnings([text], [text])
    duplicate_warnings([text, text], [False, False])


# ---- the same name twice ---------------------------------------------------------------------------------------------


def test_two_subjects_of_one_name_get_the_promised_sentence():
    assert duplicate_warnings(["girl", "girl"], [False, False]) == [
        "Give subjects 1 and 2 different names, as in the prompt, or a box or region each: they are both "
        "called 'girl', "
        "so relevance cannot tell them apart and each gets half of the picture everywhere."
    ]


def test_three_of_one_name_are_counted():
    (sentence,) = duplicate_warnings(["a", "girl", "girl", "girl"], [False] * 4)
    assert (
        sentence.startswith("Give subjects 2, 3 and 4 different names")
        and "all called 'girl'" in sentence
        and "1/3" in sentence
    )


@pytest.mark.parametrize("second", ["Girl", " girl ", "(girl:1.2)", "girl"])
def test_names_that_encode_alike_are_the_same(second):
    assert len(duplicate_warnings(["girl", second], [False, False])) == 1


def test_two_pairs_get_two_sentences():
    assert len(duplicate_warnings(["cat", "dog", "cat", "dog"], [False] * 4)) == 2


def test_boxes_and_regions_tell_the_same_names_apart():
    assert duplicate_warnings(["girl", "girl"], [True, True]) == []
    assert len(duplicate_warnings(["girl", "girl"], [True, False])) == 1


def test_different_names_and_empty_names_are_no_duplicates():
    assert duplicate_warnings(["girl", "boy", "", ""], [False] * 4) == []


# ---- names that are not in the prompt --------------------------------------------------------------------------------


def test_a_missing_name_is_named_with_the_prompt():
    (sentence,) = missing_warnings(["cat", "dog"], ["a cat on a rug"])
    assert sentence == "'dog' is not in your prompt (a cat on a rug): add it, or change the name of subject 2."


def test_a_name_in_any_of_the_prompts_is_enough():
    assert missing_warnings(["cat", "dog"], ["a cat", "a dog"]) == []


@pytest.mark.parametrize("prompts", [[], [""], ["  "]])
def test_nothing_is_said_where_no_prompt_is_known(prompts):
    assert missing_warnings(["cat"], prompts) == []


def test_a_long_prompt_is_shortened_in_the_sentence():
    (sentence,) = missing_warnings(["dog"], ["cat " * 500])
    assert len(sentence) < 400


# ---- texts in the graph ----------------------------------------------------------------------------------------------


def encoder(text, **more):
    return {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["ckpt", 1], **more}}


def test_the_text_of_the_encoder_is_found_behind_other_nodes():
    graph = {
        "ckpt": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
        "1": encoder("a cat"),
        "2": encoder("ugly"),
        "3": {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["1", 0], "width": 64}},
        "me": {"class_type": "TroupeApplyImageAttention", "inputs": {"positive": ["3", 0], "negative": ["2", 0]}},
    }
    assert literal_texts(graph, "me", ["positive"]) == ["a cat"]
    assert literal_texts(graph, "me", ["positive", "negative"]) == ["ugly", "a cat"]  # nearest first


def test_sdxl_encoders_have_two_texts():
    graph = {
        "1": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": "a cat", "text_l": "a dog", "width": 1024}},
        "me": {"class_type": "", "inputs": {"positive": ["1", 0]}},
    }
    assert literal_texts(graph, "me", ["positive"]) == ["a cat", "a dog"]


def test_a_text_that_comes_from_a_string_node_is_found():
    graph = {
        "s": {"class_type": "PrimitiveString", "inputs": {"value": "a cat"}},
        "1": encoder(["s", 0]),
        "me": {"class_type": "x", "inputs": {"positive": ["1", 0]}},
    }
    assert literal_texts(graph, "me", ["positive"]) == ["a cat"]


def behind(**nodes):
    """A graph whose prompt comes from node 's'."""
    return {"1": encoder(["s", 0]), "me": {"class_type": "x", "inputs": {"positive": ["1", 0]}}, **nodes}


def test_texts_that_core_nodes_put_together_are_known():
    joined = behind(
        s={
            "class_type": "StringConcatenate",
            "inputs": {"string_a": "a photo of a red", "string_b": ["t", 0], "delimiter": " "},
        },
        t={"class_type": "PrimitiveStringMultiline", "inputs": {"value": "cat and a dog"}},
    )
    assert literal_texts(joined, "me", ["positive"]) == ["a photo of a red cat and a dog"] and not missing_warnings(
        ["red cat"], literal_texts(joined, "me", ["positive"])
    )
    replaced = behind(
        s={
            "class_type": "StringReplace",
            "inputs": {"string": "photo of NAME and a dog", "find": "NAME", "replace": "an astronaut"},
        }
    )
    assert literal_texts(replaced, "me", ["positive"]) == ["photo of an astronaut and a dog"]
    trimmed = behind(s={"class_type": "StringTrim", "inputs": {"string": " a cat ", "mode": "Both"}})
    assert literal_texts(trimmed, "me", ["positive"]) == ["a cat"]


def test_a_prompt_with_a_part_made_at_run_time_is_unknown():
    wildcard = {
        "class_type": "ImpactWildcardProcessor",
        "inputs": {"wildcard_text": "__animal__", "populated_text": "a cat", "mode": True},
    }
    whole, part = (
        behind(s=wildcard),
        behind(
            s={
                "class_type": "StringConcatenate",
                "inputs": {"string_a": "masterpiece", "string_b": ["w", 0], "delimiter": ", "},
            },
            w=wildcard,
        ),
    )
    half = behind(s={"class_type": "StringConcatenate", "inputs": {"string_a": "masterpiece"}})
    gone = behind()
    assert [literal_texts(graph, "me", ["positive"]) for graph in (whole, part, half, gone)] == [[], [], [], []]


def test_texts_that_go_in_circles_or_part_and_join_end():
    circle = behind(s={"class_type": "PrimitiveString", "inputs": {"value": ["s", 0]}})
    assert literal_texts(circle, "me", ["positive"]) == []
    ladder = {
        f"t{i}": {
            "class_type": "StringConcatenate",
            "inputs": {"string_a": [f"t{i + 1}", 0], "string_b": [f"t{i + 1}", 0], "delimiter": ""},
        }
        for i in range(12)
    }
    ladder |= {
        "s": {"class_type": "PrimitiveString", "inputs": {"value": ["t0", 0]}},
        "t12": {"class_type": "PrimitiveString", "inputs": {"value": "x"}},
    }
    assert literal_texts(behind(**ladder), "me", ["positive"]) == ["x" * 2**12]


@pytest.mark.parametrize(
    "graph",
    [
        None,
        {},
        {"me": {"inputs": {}}},
        {"me": {"inputs": {"positive": ["gone", 0]}}},
        {"me": {"inputs": {"positive": "literal"}}},
    ],
)
def test_where_there_is_nothing_to_follow_there_is_no_text(graph):
    assert literal_texts(graph, "me", ["positive"]) == []
    assert literal_texts(graph, None, ["positive"]) == []


def test_a_circle_and_a_long_chain_end():
    circle = {
        "a": {"class_type": "x", "inputs": {"conditioning": ["b", 0]}},
        "b": {"class_type": "x", "inputs": {"conditioning": ["a", 0], "text": "t"}},
    }
    assert literal_texts(circle, "a", ["conditioning"]) == ["t"]
    chain = {str(i): {"class_type": "x", "inputs": {"conditioning": [str(i + 1), 0]}} for i in range(3 * MAX_NODES)}
    assert literal_texts(chain, "0", ["conditioning"]) == []


def test_node_ids_may_be_numbers():
    assert literal_texts(
        {"1": encoder("a cat"), "7": {"class_type": "x", "inputs": {"positive": ["1", 0]}}}, 7, ["positive"]
    ) == ["a cat"]
