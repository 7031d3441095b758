"""Samplers that take an Apply node's prompts and a MODEL that has not passed it."""

from __future__ import annotations

import pytest
from troupe.model_patches.prompt.graph_wires import samplers_past


def node(type, **inputs):
    return {"class_type": type, "inputs": inputs}


def graph(**more):
    """A checkpoint, two prompts, an Apply node (5) and what is wired behind it."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="a"),
        "2": node("CLIPTextEncode", clip=["1", 1], text="a"),
        "3": node("CLIPTextEncode", clip=["1", 1], text="b"),
        "5": node("TroupeApplyImageAttention", model=["1", 0], positive=["2", 0], negative=["3", 0], weight=0.65),
        **more,
    }


def sampler(model, positive=("5", 1), negative=("5", 2), **more):
    return node("KSampler", model=list(model), positive=list(positive), negative=list(negative), seed=1, **more)


FINE = {
    "wired": {"9": sampler(("5", 0))},
    "through a LoRA": {"6": node("LoraLoaderModelOnly", model=["5", 0], lora_name="x"), "9": sampler(("6", 0))},
    "a second apply node": {
        "6": node("TroupeApplyImageAttention", model=["5", 0], positive=["5", 1], negative=["5", 2]),
        "9": sampler(("6", 0), ("6", 1), ("6", 2)),
    },
    "through a ControlNet": {
        "6": node("ControlNetApplyAdvanced", positive=["5", 1], negative=["5", 2]),
        "9": sampler(("5", 0), ("6", 0), ("6", 1)),
    },
    "a guider": {
        "6": node("CFGGuider", model=["5", 0], positive=["5", 1], negative=["5", 2]),
        "9": node("SamplerCustomAdvanced", guider=["6", 0]),
    },
    "another sampler without its prompts": {"9": sampler(("5", 0)), "10": sampler(("1", 0), ("2", 0), ("3", 0))},
    "model alone": {"9": sampler(("5", 0), ("2", 0), ("3", 0))},
    "nothing": {},
    "a circle": {"6": node("Odd", conditioning=["7", 0], also=["5", 1]), "7": node("Odd", conditioning=["6", 0])},
}
PAST = {
    "the checkpoint's model": ({"9": sampler(("1", 0))}, [("9", "KSampler")]),
    "the negative alone": ({"9": sampler(("1", 0), ("2", 0))}, [("9", "KSampler")]),
    "one of two samplers": ({"9": sampler(("5", 0)), "10": sampler(("1", 0))}, [("10", "KSampler")]),
    "a LoRA beside it": (
        {"6": node("LoraLoaderModelOnly", model=["1", 0]), "9": sampler(("6", 0))},
        [("9", "KSampler")],
    ),
    "through a ControlNet": (
        {
            "6": node("ControlNetApplyAdvanced", positive=["5", 1], negative=["5", 2]),
            "9": sampler(("1", 0), ("6", 0), ("6", 1)),
        },
        [("9", "KSampler")],
    ),
    "a guider": (
        {
            "6": node("CFGGuider", model=["1", 0], positive=["5", 1], negative=["3", 0]),
            "9": node("SamplerCustomAdvanced", guider=["6", 0]),
        },
        [("6", "CFGGuider")],
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_nothing_is_said_of_a_graph_that_is_wired_well(case):
    assert samplers_past(graph(**FINE[case]), "5") == []


@pytest.mark.parametrize("case", PAST)
def test_a_model_wired_past_the_node_is_found(case):
    more, expected = PAST[case]
    assert samplers_past(graph(**more), "5") == expected


@pytest.mark.parametrize("given", [(None, "5"), ({}, "5"), (graph(), None), (graph(), "77")])
def test_without_a_graph_nothing_is_said(given):
    assert samplers_past(*given) == []
