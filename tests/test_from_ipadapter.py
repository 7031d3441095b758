"""tools/check.py --from-ipadapter: stacked IPAdapter_plus nodes become Troupe's, the rest of the file stays, and what
cannot be carried is named.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from support.ipadapter_workflows import (
    ADVANCED,
    PLUS,
    OldWorkflow,
    Regional,
    stacked_before_2024,
    stacked_by_files,
    stacked_by_preset,
)
from troupe.model_patches.checkpoints.catalogue import published_file
from troupe_tools.commands import check as check_tool
from troupe_tools.errors import RunError
from troupe_tools.pack import ROOT
from troupe_tools.workflow.findings import broken_links
from troupe_tools.workflow.from_ipadapter import TITLE, from_ipadapter
from troupe_tools.workflow.graph import Graph, Node
from troupe_tools.workflow.guess_names import guess_names

CONTRACT = json.loads((ROOT / "tests" / "golden" / "node_contract.json").read_text())["nodes"]
ADD, APPLY, ENCODE, LOAD = "TroupeAddSubject", "TroupeApplyImageAttention", "TroupeEncodeSubjects", "TroupeLoadAdapter"
SKETCHES = {
    "preset": stacked_by_preset(),
    "preset, as saved in 2024": stacked_by_preset(named=False),
    "files": stacked_by_files(),
    "first version": stacked_before_2024(),
    "regions": Regional().saved,
    "regions, as saved in 2024": Regional(named=False).saved,
}


def kinds(workflow: dict) -> Counter:
    """How many nodes there are of each class."""
    return Counter(raw["type"] for raw in workflow["nodes"])


def of(workflow: dict, kind: str) -> list[Node]:
    """The nodes of a class."""
    return [Node(raw) for raw in workflow["nodes"] if raw["type"] == kind]


def widgets(node: Node) -> dict:
    """Values by name."""
    return {name: node.raw["widgets_values"][place] for name, place in node.widget_places().items()}


def feeds(workflow: dict, node: Node, name: str) -> tuple | None:
    """(class, output slot) of what is wired into an input."""
    found = Graph(workflow).source(node, name)
    return (found[0].type, found[1]) if found else None


def one_stacked(
    weight: float = 1.0, kind: str = "IPAdapterAdvanced", values: tuple = tuple(ADVANCED[1:]), preset: str = PLUS
) -> OldWorkflow:
    """Checkpoint 1, Unified Loader 2, photo 3, one IPAdapter node 4, and the sampling."""
    made = OldWorkflow()
    checkpoint = made.node("CheckpointLoaderSimple", "juggernautXL_v9.safetensors")
    loader = made.node("IPAdapterUnifiedLoader", preset, model=(checkpoint, 0))
    photo = made.node("LoadImage", "woman.png", "image")
    stacked = made.node(kind, weight, *values, model=(loader, 0), ipadapter=(loader, 1), image=(photo, 0))
    made.sampled(checkpoint, (stacked, 0))
    return made


# ---- what is carried -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SKETCHES)
def test_links_are_known_at_both_ends_and_ids_are_new(name):
    new = from_ipadapter(SKETCHES[name]).workflow
    ids = [raw["id"] for raw in new["nodes"]]
    assert len(set(ids)) == len(ids) and max(ids) == new["last_node_id"]
    assert (
        len({link[0] for link in new["links"]}) == len(new["links"])
        and max(link[0] for link in new["links"]) == new["last_link_id"]
    )
    nodes = {raw["id"]: raw for raw in new["nodes"]}
    for id_, source, out, target, into, kind in new["links"]:
        output, slot = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert id_ in output["links"] and slot["link"] == id_ and output["type"] == slot["type"] == kind
    wired = [slot["link"] for raw in new["nodes"] for slot in raw["inputs"] if slot["link"] is not None]
    given = [link for raw in new["nodes"] for output in raw["outputs"] for link in output["links"] or ()]
    assert sorted(wired) == sorted(given) == sorted(link[0] for link in new["links"])
    assert not broken_links(new)


@pytest.mark.parametrize("name", SKETCHES)
def test_new_nodes_have_the_contract_s_inputs_and_outputs(name):
    for raw in from_ipadapter(SKETCHES[name]).workflow["nodes"]:
        if raw["type"] in CONTRACT:
            wanted = CONTRACT[raw["type"]]
            assert {slot["name"] for slot in raw["inputs"]} == {entry["id"] for entry in wanted["inputs"]}
            assert [output["type"] for output in raw["outputs"]] == [entry["type"] for entry in wanted["outputs"]]


@pytest.mark.parametrize("name", SKETCHES)
def test_everything_else_stays_as_it_is(name):
    """The other nodes but for the ids of their links, the groups, and the file that was given."""
    before = SKETCHES[name]
    given = copy.deepcopy(before)
    new = from_ipadapter(before).workflow
    assert before == given
    nodes = {raw["id"]: raw for raw in new["nodes"]}
    gone = {raw["id"] for raw in before["nodes"]} - set(nodes)
    assert {raw["type"] for raw in before["nodes"] if raw["id"] in gone} <= {
        "IPAdapter",
        "IPAdapterAdvanced",
        "IPAdapterApply",
        "IPAdapterUnifiedLoader",
        "IPAdapterModelLoader",
        "CLIPVisionLoader",
        "PrepImageForClipVision",
        "Reroute",
        "IPAdapterFromParams",
        "IPAdapterCombineParams",
        "IPAdapterRegionalConditioning",
    }
    for raw in (raw for raw in before["nodes"] if raw["id"] not in gone):
        assert _without_links(nodes[raw["id"]]) == _without_links(raw)
    assert (
        new["groups"][: len(before["groups"])] == before["groups"] and len(new["groups"]) == len(before["groups"]) + 1
    )


def _without_links(raw: dict) -> dict:
    return {
        **raw,
        "inputs": [{**slot, "link": None} for slot in raw["inputs"]],
        "outputs": [{**output, "links": None} for output in raw["outputs"]],
    }


@pytest.mark.parametrize("named", [True, False], ids=["as saved now", "as saved in 2024"])
def test_a_stack_becomes_one_cast(named):
    result = from_ipadapter(stacked_by_preset(named))
    new = result.workflow
    assert result.carried == 2
    assert not [kind for kind in kinds(new) if kind.startswith(("IPAdapter", "Prep"))]
    assert [kinds(new)[kind] for kind in (LOAD, ADD, ENCODE, APPLY)] == [1, 2, 1, 1]
    [load], [woman, dog], [encode], [apply] = (of(new, kind) for kind in (LOAD, ADD, ENCODE, APPLY))
    assert widgets(load) == {"adapter_name": "ip-adapter-plus_sdxl_vit-h.safetensors", "clip_vision_name": "auto"}
    assert widgets(woman) == {"name": "woman", "weight": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    assert widgets(dog) == {"name": "dog", "weight": 0.5, "start_percent": 0.1, "end_percent": 0.75}
    assert widgets(encode) == {"framing": "center"}
    assert {
        name: widgets(apply)[name] for name in ("weight", "merge", "start_percent", "end_percent", "background")
    } == {"weight": 0.8, "merge": "add", "start_percent": 0.0, "end_percent": 1.0, "background": 1.0}
    graph = Graph(new)
    assert (
        graph.value(graph.source(woman, "image")[0], "image") == "woman.png"
        if named
        else feeds(new, woman, "image") == ("LoadImage", 0)
    )
    assert feeds(new, dog, "image") == ("LoadImage", 0) and feeds(new, dog, "region") == ("LoadImage", 1)
    assert (
        graph.source(dog, "image")[0].raw["widgets_values"][0] == "dog.png"
        and graph.source(dog, "region")[0].raw["widgets_values"][0] == "mask.png"
    )
    assert feeds(new, woman, "region") is None and feeds(new, woman, "cast") is None
    assert graph.source(dog, "cast")[0].id == woman.id and graph.source(encode, "cast")[0].id == dog.id
    assert (feeds(new, encode, "adapter"), feeds(new, encode, "clip")) == ((LOAD, 0), ("CheckpointLoaderSimple", 1))
    assert (feeds(new, apply, "model"), feeds(new, apply, "references")) == (("CheckpointLoaderSimple", 0), (ENCODE, 0))
    assert [feeds(new, sampler, "model") for sampler in of(new, "KSampler")] == [(APPLY, 0)]
    notes = [note.raw["widgets_values"][0] for note in of(new, "Note")]
    assert notes[0] == "my own note" and "2. Set 'merge' of Apply Image Attention to relevance." in notes[1]
    assert "Wire the checkpoint's CLIP" not in notes[1] and "- woman: from its file name" in notes[1]


def test_the_product_of_the_weights_is_the_old_weight():
    """Above the largest weight of Apply Image Attention, the subject takes the rest."""
    new = from_ipadapter(stacked_by_files()).workflow
    [apply] = of(new, APPLY)
    assert widgets(apply)["weight"] == 2.0
    assert [widgets(apply)["weight"] * widgets(subject)["weight"] for subject in of(new, ADD)] == [1.0, 2.5, 0.5]


def test_loaders_of_files_and_reroutes_between_go_too():
    new = from_ipadapter(stacked_by_files()).workflow
    [load] = of(new, LOAD)
    assert widgets(load) == {
        "adapter_name": "ip-adapter-plus_sd15.safetensors",
        "clip_vision_name": "my_vit_h.safetensors",
    }
    assert not {"IPAdapterModelLoader", "CLIPVisionLoader", "Reroute"} & set(kinds(new))
    assert len(of(new, ADD)) == 3


def test_the_file_brings_its_links():
    new = from_ipadapter(stacked_by_preset()).workflow
    [load] = of(new, LOAD)
    named = ["ip-adapter-plus_sdxl_vit-h.safetensors", "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"]
    assert (
        load.raw["properties"]["models"]
        == new["models"]
        == [
            {"name": name, "url": published_file(name).link, "directory": published_file(name).folder} for name in named
        ]
    )


def test_new_nodes_lie_on_nothing():
    new = from_ipadapter(stacked_by_preset()).workflow
    boxes = [(*raw["pos"], raw["pos"][0] + raw["size"][0], raw["pos"][1] + raw["size"][1]) for raw in new["nodes"]]
    for i, a in enumerate(boxes):
        assert not [b for b in boxes[:i] if a[0] < b[2] and b[0] < a[2] and a[1] - 30 < b[3] and b[1] - 30 < a[3]]
    *_, ours = (group["bounding"] for group in new["groups"])
    inside = [
        raw["type"]
        for raw, box in zip(new["nodes"], boxes, strict=True)
        if ours[0] <= box[0] and ours[1] <= box[1] and box[2] <= ours[0] + ours[2] and box[3] <= ours[1] + ours[3]
    ]
    assert sorted(inside) == sorted([LOAD, "Note", ADD, ADD, ENCODE, APPLY])


def test_a_model_wire_that_two_take_keeps_both_ways():
    """The first node alone feeds one sampler, both nodes feed the other: two Apply nodes, one after the other."""
    made = one_stacked(0.5)
    second = made.node("IPAdapter", 0.3, 0.0, 1.0, "standard", model=(4, 0), ipadapter=(2, 1), image=(3, 0))
    made.sampled(1, (second, 0))
    new = from_ipadapter(made.saved).workflow
    first, last = of(new, APPLY)
    assert (widgets(first)["weight"], widgets(last)["weight"]) == (0.5, 0.3)
    assert Graph(new).source(last, "model")[0].id == first.id
    assert [Graph(new).source(sampler, "model")[0].id for sampler in of(new, "KSampler")] == [first.id, last.id]
    assert kinds(new)[LOAD] == 1 and not broken_links(new)


def test_different_adapters_are_different_casts():
    made = OldWorkflow()
    model = (checkpoint, _) = (made.node("CheckpointLoaderSimple", "juggernautXL_v9.safetensors"), 0)
    photo = made.node("LoadImage", "woman.png", "image")
    for preset in (PLUS, "PLUS FACE (portraits)"):
        loader = made.node("IPAdapterUnifiedLoader", preset, model=(checkpoint, 0))
        model = (
            made.node("IPAdapter", 0.3, 0.0, 1.0, "standard", model=model, ipadapter=(loader, 1), image=(photo, 0)),
            0,
        )
    made.sampled(checkpoint, model)
    new = from_ipadapter(made.saved).workflow
    assert [widgets(load)["adapter_name"] for load in of(new, LOAD)] == [
        f"ip-adapter-plus{face}_sdxl_vit-h.safetensors" for face in ("", "-face")
    ]
    assert kinds(new)[APPLY] == 2 and "IPAdapterUnifiedLoader" not in kinds(new)


@pytest.mark.parametrize(
    ("preset", "checkpoint", "file"),
    [
        ("STANDARD (medium strength)", "v1-5-pruned.ckpt", "ip-adapter_sd15.safetensors"),
        ("STANDARD (medium strength)", "ponyDiffusionV6.safetensors", "ip-adapter_sdxl_vit-h.safetensors"),
        ("VIT-G (medium strength)", "sd15/some.safetensors", "ip-adapter_sd15_vit-G.safetensors"),
        ("VIT-G (medium strength)", "sdxl/some.safetensors", "ip-adapter_sdxl.safetensors"),
        ("PLUS FACE (portraits)", "some-1.5.safetensors", "ip-adapter-plus-face_sd15.safetensors"),
        (
            "FULL FACE - SD1.5 only (portraits stronger)",
            "unheard_of.safetensors",
            "ip-adapter-full-face_sd15.safetensors",
        ),
        ("LIGHT - SD1.5 only (low strength)", "unheard_of.safetensors", "ip-adapter_sd15_light.safetensors"),
        # by the picture's 1024 pixels
        ("PLUS (high strength)", "unheard_of.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors"),
    ],
)
def test_a_preset_is_a_file_and_a_guess_is_told(preset, checkpoint, file):
    made = one_stacked(preset=preset)
    made.raw(1)["widgets_values"] = [checkpoint]
    result = from_ipadapter(made.saved)
    [load] = of(result.workflow, LOAD)
    assert widgets(load)["adapter_name"] == f"{file}"
    because = "the picture is 1024 pixels wide" if "unheard" in checkpoint else f"the checkpoint is called {checkpoint}"
    assert [because in line and file in line for line in result.said] == ([] if "SD1.5 only" in preset else [True])


def test_a_weight_from_a_primitive_is_carried():
    made = one_stacked()
    primitive = made.node("Note", "0.35")
    made.raw(primitive).update(
        type="PrimitiveNode",
        outputs=[{"name": "FLOAT", "type": "FLOAT", "links": None}],
        widgets_values=[0.35, "fixed"],
    )
    made.wire((primitive, 0), 4, "weight")
    [apply] = of(from_ipadapter(made.saved).workflow, APPLY)
    assert widgets(apply)["weight"] == 0.35


def test_the_pack_s_first_version_is_carried():
    """IPAdapter Apply, which no version since March 2024 has."""
    result = from_ipadapter(stacked_before_2024())
    [load], [apply] = of(result.workflow, LOAD), of(result.workflow, APPLY)
    assert (result.carried, result.said, widgets(load)["clip_vision_name"], widgets(apply)["weight"]) == (
        2,
        (),
        "my_vit_h.safetensors",
        0.7,
    )
    assert [
        (round(0.7 * widgets(one)["weight"], 4), widgets(one)["end_percent"]) for one in of(result.workflow, ADD)
    ] == [(0.5, 0.6), (0.7, 1.0)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((0.7, 0.3, "original", 0.0, 1.0, False), "it has noise in its negative image"),
        ((0.7, 0.0, "original", 0.0, 1.0, True), "it uses another photo for every picture of a batch (unfold_batch)"),
        ((0.7, 0.0, "linear", 0.0, 1.0, False), "its weight_type is 'linear', which scales keys too"),
        ((1.0, 0.0, "channel penalty", 0.0, 1.0, False), "its weight_type is 'channel penalty'"),
        ((1.0, 0.0, "linear", 0.0, 1.0, False), ""),
    ],
)
def test_what_the_first_version_had_and_nothing_stands_for(values, sentence):
    result = from_ipadapter(stacked_before_2024(*values))
    told = [line for line in result.said if "(node 7, IPAdapterApply) stays: " in line]
    assert (result.carried, len(told)) == ((1, 1) if sentence else (2, 0)) and all(sentence in line for line in told)
    assert not broken_links(result.workflow)


# ---- prepared photos -------------------------------------------------------------------------------------------------


def prepared(*crops: tuple[str, float]) -> dict:
    """IPAdapter nodes whose photos go through Prep Image For ClipVision."""
    made = OldWorkflow()
    checkpoint = made.node("CheckpointLoaderSimple", "sd_xl_base_1.0.safetensors")
    loader = made.node("IPAdapterUnifiedLoader", PLUS, model=(checkpoint, 0))
    model = (loader, 0)
    for crop, sharpening in crops:
        prep = made.node(
            "PrepImageForClipVision", "LANCZOS", crop, sharpening, image=(made.node("LoadImage", "a.png", "image"), 0)
        )
        model = (
            made.node("IPAdapter", 0.7, 0.0, 1.0, "standard", model=model, ipadapter=(loader, 1), image=(prep, 0)),
            0,
        )
    return made.sampled(checkpoint, model)


@pytest.mark.parametrize(
    ("crops", "framing", "kept"),
    [
        ([("center", 0.0)], "center", 0),
        ([("pad", 0.0), ("pad", 0.0)], "pad", 0),
        ([("pad", 0.0), ("center", 0.0)], "center", 1),
        ([("top", 0.0), ("center", 0.0)], "center", 1),
        ([("center", 0.15)], "center", 1),
    ],
)
def test_a_prepared_photo(crops, framing, kept):
    """Seen through where the framing does the same; kept where it does not, and told."""
    result = from_ipadapter(prepared(*crops))
    [encode] = of(result.workflow, ENCODE)
    assert widgets(encode)["framing"] == framing
    assert kinds(result.workflow)["PrepImageForClipVision"] == kept
    assert sum("its photo still goes through" in line for line in result.said) == kept
    assert sum("were black and are white now" in line for line in result.said) == (framing == "pad")
    assert (
        sum(
            feeds(result.workflow, subject, "image")[0] == "PrepImageForClipVision"
            for subject in of(result.workflow, ADD)
        )
        == kept
    )
    assert not broken_links(result.workflow)


# ---- regions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [True, False], ids=["as saved now", "as saved in 2024"])
def test_regions_become_one_cast_with_masks_and_weights(named):
    made = Regional(named)
    result = from_ipadapter(made.saved)
    new = result.workflow
    assert (
        result.carried == 3
        and not [kind for kind in kinds(new) if kind.startswith("IPAdapter")]
        and not broken_links(new)
    )
    assert [kinds(new)[kind] for kind in (LOAD, ADD, ENCODE, APPLY)] == [1, 3, 1, 1]
    subjects, [encode], [apply], [load] = of(new, ADD), of(new, ENCODE), of(new, APPLY), of(new, LOAD)
    graph = Graph(new)
    for subject, name, weight, start in zip(
        subjects, ("knight", "owl", "moss"), (0.8, 0.4, 0.6), (0.0, 0.1, 0.2), strict=True
    ):
        assert graph.source(subject, "image")[0].id == made.ids[f"{name}'s photo"]
        assert graph.source(subject, "region")[0].id == made.ids[f"{name}'s mask"]
        assert widgets(apply)["weight"] * widgets(subject)["weight"] == pytest.approx(weight)
        assert widgets(subject)["start_percent"] == pytest.approx(start)
    assert [graph.source(subject, "cast") and graph.source(subject, "cast")[0].id for subject in subjects] == [
        None,
        subjects[0].id,
        subjects[1].id,
    ]
    assert widgets(load)["adapter_name"] == "ip-adapter-plus_sd15.safetensors" and widgets(apply)["merge"] == "add"
    assert [feeds(new, sampler, "model") for sampler in of(new, "KSampler")] == [(APPLY, 0)]
    assert feeds(new, apply, "model") == feeds(new, encode, "clip")[:1] + (0,) == ("CheckpointLoaderSimple", 0)


def test_prompts_of_regions_keep_their_masks_and_weights():
    """ComfyUI's own node limits them, in the place of the region."""
    made = Regional()
    new = from_ipadapter(made.saved).workflow
    graph = Graph(new)
    limited = {node.raw["title"]: node for node in of(new, "ConditioningSetMask")}
    assert list(limited) == [
        "Region of subject 1: positive",
        "Region of subject 1: negative",
        "Region of subject 2: positive",
    ]
    texts = [graph.value(graph.source(node, "conditioning")[0], "text") for node in limited.values()]
    assert texts == ["drawing of an old knight with a blue banner", "rust", "a painting of a (white owl:1.2), forest"]
    assert [widgets(node) for node in limited.values()] == [
        {"strength": strength, "set_cond_area": "default"} for strength in (1.5, 1.5, 1.0)
    ]
    assert [graph.source(node, "mask")[0].id for node in limited.values()] == [
        made.ids[f"{name}'s mask"] for name in ("knight", "knight", "owl")
    ]
    for name, wanted in (("positive", 2), ("negative", 1)):
        joined, found = (
            graph.source(Node(next(raw for raw in new["nodes"] if raw["id"] == made.ids["sampler"])), name)[0],
            [],
        )
        while joined.type == "ConditioningCombine":
            found.append(graph.source(joined, "conditioning_2")[0])
            joined = graph.source(joined, "conditioning_1")[0]
        assert [node.type for node in found] == ["ConditioningSetMask"] * wanted and joined.type == "CLIPTextEncode"


def test_a_region_without_a_mask_hands_its_prompt_on():
    made = Regional()
    slot = next(slot for slot in made.raw(made.ids["owl"])["inputs"] if slot["name"] == "mask")
    link = next(link for link in made.saved["links"] if link[0] == slot["link"])
    made.saved["links"].remove(link)
    made.raw(link[1])["outputs"][0]["links"] = slot["link"] = None
    new = from_ipadapter(made.saved).workflow
    assert (
        kinds(new)["ConditioningSetMask"] == 2
        and feeds(new, of(new, ADD)[1], "region") is None
        and not broken_links(new)
    )
    assert Counter(feeds(new, node, "conditioning_2")[0] for node in of(new, "ConditioningCombine")) == {
        "ConditioningSetMask": 2,
        "CLIPTextEncode": 1,
    }


def test_combined_parameters_are_combined_again():
    """Two levels: the order of the subjects is the order in which the pack adds them."""
    made = Regional()
    photo = made.node("LoadImage", "last.png", "image")
    more = made.node("IPAdapterRegionalConditioning", 0.2, 1.0, "linear", 0.0, 1.0, image=(photo, 0))
    outer = made.node("IPAdapterCombineParams", params_1=(made.ids["combined"], 0), params_2=(more, 0))
    made.raw(made.ids["combined"])["outputs"][0]["links"].pop(0)
    made.saved["links"].remove(
        next(link for link in made.saved["links"] if link[3] == made.ids["applied"] and link[5] == "IPADAPTER_PARAMS")
    )
    made.wire((outer, 0), made.ids["applied"], "ipadapter_params")
    result = from_ipadapter(made.saved)
    titles = [node.raw["title"] for node in of(result.workflow, ADD)]
    assert result.carried == 4 and [title.split("(")[1].split(")")[0] for title in titles] == [
        "photo_0.png",
        "photo_1.png",
        "photo_2.png",
        "last.png",
    ]
    assert not [kind for kind in kinds(result.workflow) if kind.startswith("IPAdapter")] and not broken_links(
        result.workflow
    )


def test_a_region_that_another_node_needs_stays():
    made = Regional()
    second = made.node(
        "IPAdapterFromParams",
        "concat",
        "K+V",
        model=(made.ids["loader"], 0),
        ipadapter=(made.ids["loader"], 1),
        ipadapter_params=(made.ids["knight"], 0),
    )
    made.sampled(made.ids["checkpoint"], (second, 0))
    result = from_ipadapter(made.saved)
    assert (
        result.carried == 3
        and kinds(result.workflow)["IPAdapterRegionalConditioning"] == 1
        and not broken_links(result.workflow)
    )
    assert [
        line
        for line in result.said
        if line.startswith(f"'IPAdapterFromParams' (node {second}")
        and "Set it to 'V only' and convert the old workflow again." in line
    ]
    assert [
        line
        for line in result.said
        if line.startswith(f"'IPAdapterRegionalConditioning' (node {made.ids['knight']}")
        and line.endswith(" needs it.")
    ]


def _widget(name: str, place: int, value):
    return lambda made: made.raw(made.ids[name])["widgets_values"].__setitem__(place, value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            _widget("owl", 2, "style transfer"),
            "which feeds it, its weight_type is 'style transfer', which weighs the layers differently; "
            "Troupe weighs all alike. Set it to 'linear'",
        ),
        (
            _widget("owl", 0, -0.5),
            "which feeds it, its weight is -0.5; Troupe's weights begin at 0. Keep IPAdapter_plus",
        ),
        (_widget("applied", 1, "K+V"), "its embeds_scaling is 'K+V'; Troupe scales V only. Set it to 'V only'"),
        (
            lambda made: made.raw(made.ids["applied"]).update(mode=4),
            "it is muted or bypassed. Activate it and convert the old workflow again, or delete it.",
        ),
        (
            lambda made: made.raw(made.ids["combined"]).update(type="SomebodysParams"),
            "its parameters come from 'SomebodysParams'",
        ),
        (
            lambda made: [made.raw(made.ids[name]).update(mode=2) for name in ("knight", "owl", "moss")],
            "no photo reaches it. Delete it, or wire its photos.",
        ),
    ],
)
def test_regions_that_cannot_be_carried_stay_with_what_to_do(change, sentence):
    made = Regional()
    change(made)
    before = copy.deepcopy(made.saved)
    result = from_ipadapter(made.saved)
    assert (result.carried, result.workflow) == (0, before)
    assert [
        line
        for line in result.said
        if line.startswith(f"'IPAdapterFromParams' (node {made.ids['applied']}") and sentence in line
    ]


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "files", "prompts", "names"),
    [
        (
            ["drawing of an old knight with a banner", "a painting of a (white owl:1.2), forest"],
            ["", ""],
            [],
            ["knight", "owl"],
        ),
        (
            ["a blonde woman with a hat", "photo of the young woman, smiling"],
            ["", ""],
            [],
            ["blonde woman", "young woman"],
        ),
        (["a woman", "a woman"], ["", ""], [], ["subject 1", "subject 2"]),
        (["1girl, red hair", "1boy"], ["", ""], [], ["1girl", "1boy"]),
        (["red fox", "masterpiece, best quality, of great beauty"], ["", ""], [], ["fox", "subject 2"]),
        (["", ""], ["my_woman_2.png", "IMG_0412.jpg"], ["a woman and a dog"], ["woman", "subject 2"]),
        (["", ""], ["cat 1.png", "cat 2.png"], ["a cat"], ["subject 1", "subject 2"]),
        (["a cat", ""], ["", "cat.png"], ["a cat"], ["cat", "subject 2"]),
        (["a photo", "a scene"], ["", ""], [], ["subject 1", "subject 2"]),
    ],
)
def test_names_are_guessed_from_the_prompt_and_differ(own, files, prompts, names):
    guesses = guess_names(own, files, prompts)
    assert [guess.name for guess in guesses] == names
    assert [bool(guess.source) for guess in guesses] == [not name.startswith("subject") for name in names]


def test_names_are_asked_for_in_one_place_and_the_file_opens_there():
    """One titled group has the note and all names; a name that was not found is yellow and told."""
    result = from_ipadapter(Regional().saved)
    new = result.workflow
    subjects = of(new, ADD)
    assert [widgets(subject)["name"] for subject in subjects] == ["knight", "owl", "subject 3"]
    assert [subject.raw.get("bgcolor") for subject in subjects] == [None, None, "#653"]
    assert [subject.raw["title"].endswith(": write its name") for subject in subjects] == [False, False, True]
    assert [line for line in result.said if "no name was found for its photo" in line and "'subject 3'" in line]
    [note] = [note.raw["widgets_values"][0] for note in of(new, "Note")]
    assert (
        "- knight: from the prompt of its region" in note
        and "- subject 3: only a placeholder" in note
        and "unplug 'region'" in note
    )
    group = new["groups"][-1]
    assert group["title"] == TITLE
    scale, (x, y) = new["extra"]["ds"]["scale"], new["extra"]["ds"]["offset"]
    left, top, width, height = group["bounding"]
    assert (
        (left + x) * scale >= 0
        and (top + y) * scale >= 0
        and (left + x + width) * scale <= 1280
        and (top + y + height) * scale <= 800
    )
    assert 0.5 < scale <= 1.0  # the names can be read


def test_without_a_clip_in_the_file_the_note_asks_for_it():
    made = one_stacked()
    for raw in made.saved["nodes"]:
        if raw["type"] == "CLIPTextEncode":
            raw["inputs"][0]["link"] = None
    made.saved["links"] = [link for link in made.saved["links"] if link[5] != "CLIP"]
    new = from_ipadapter(made.saved).workflow
    [encode] = of(new, ENCODE)
    assert feeds(new, encode, "clip") is None
    assert (
        "2. Wire the checkpoint's CLIP into 'clip' of Encode Subject References."
        in of(new, "Note")[0].raw["widgets_values"][0]
    )


# ---- the pack's own examples -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def examples() -> Path:
    """The pack's examples, from a checkout."""
    place = Path(os.environ.get("TROUPE_IPADAPTER_PLUS") or "/nowhere") / "examples"
    if not place.is_dir():
        pytest.skip(
            "COMFYUI_IPADAPTER_PLUS IS NOT THERE: set TROUPE_IPADAPTER_PLUS to the folder of its checkout; "
            "its own examples were not converted"
        )
    return place


def test_every_example_of_the_pack_is_converted_or_explained(examples):
    """No broken links; each of the pack's nodes that is left has a line that says why, and what to do or who
    needs it.
    """
    files = sorted(examples.glob("*.json"))
    assert len(files) > 15
    for path in files:
        result = from_ipadapter(json.loads(path.read_text(encoding="utf-8")))
        assert not broken_links(result.workflow), path.name
        left = [
            node for node in map(Node, result.workflow["nodes"]) if node.type.startswith(("IPAdapter", "IPAAdapter"))
        ]
        for node in left:
            lines = [line for line in result.said if line.startswith(f"{node.label} stays: ")]
            assert len(lines) == 1 and (lines[0].endswith(" needs it.") or lines[0].count(". ") >= 1), (
                path.name,
                node.label,
                lines,
            )


def test_the_pack_s_regional_example_is_converted(examples):
    old = json.loads((examples / "ipadapter_regional_conditioning.json").read_text(encoding="utf-8"))
    regions = [Node(raw) for raw in old["nodes"] if raw["type"] == "IPAdapterRegionalConditioning"]
    result = from_ipadapter(old)
    new, graph = result.workflow, Graph(old)
    assert result.carried == len(regions) == 3 and not [kind for kind in kinds(new) if kind.startswith("IPAdapter")]
    strength = widgets(of(new, APPLY)[0])["weight"]
    assert [round(strength * widgets(one)["weight"], 4) for one in of(new, ADD)] == [
        round(region.raw["widgets_values"][0], 4) for region in regions
    ]
    names = [widgets(one)["name"] for one in of(new, ADD)]
    texts = [
        graph.value(source[0], "text") if (source := graph.source(region, "positive")) else ""
        for region in sorted(regions, key=lambda node: node.id)
    ]
    assert (
        len(set(names)) == 3
        and all(name in text for name, text in zip(names, texts, strict=True) if text)
        and names[2] == "subject 3"
    )
    assert all(feeds(new, one, "region") for one in of(new, ADD)) and kinds(new)["ConditioningSetMask"] == 4
    assert feeds(new, of(new, ENCODE)[0], "clip") == ("CheckpointLoaderSimple", 1)
    # ready for relevance: one note has the switch and every name with where it is from
    [note] = [text for one in of(new, "Note") if "relevance" in (text := one.raw["widgets_values"][0])]
    assert "Set 'merge' of Apply Image Attention to relevance." in note and widgets(of(new, APPLY)[0])["merge"] == "add"
    assert [line.partition(":")[0] for line in note.split("\n") if line.startswith("- ")] == [
        f"- {name}" for name in names
    ]


# ---- what is not carried ---------------------------------------------------------------------------------------------


def _set(place: int, value) -> callable:
    return lambda made: made.raw(4)["widgets_values"].__setitem__(place, value)


def _from(kind: str, combined: str):
    """The picture comes from another node, so that it may be a batch."""

    def change(made: OldWorkflow) -> None:
        made.raw(4)["widgets_values"][2] = combined
        made.raw(3)["type"] = kind

    return change


REFUSED = {
    "weight type": (_set(1, "ease in"), "its weight_type is 'ease in', which weighs the layers differently"),
    "style": (_set(1, "style transfer"), "its weight_type is 'style transfer'"),
    "scaling": (_set(5, "K+V"), "its embeds_scaling is 'K+V'; Troupe scales V only"),
    "negative weight": (_set(0, -0.5), "its weight is -0.5; Troupe's weights begin at 0"),
    "empty range": (_set(3, 1.0), "its range from 1 to 1 is empty"),
    "sum of a batch": (
        _from("ImageScale", "add"),
        "its combine_embeds is 'add' and its image may be a batch; Troupe averages several photos of one subject",
    ),
    "batch side by side": (
        _from("ImageBatch", "concat"),
        "its combine_embeds is 'concat' and its image may be a batch",
    ),
    "negative image": (lambda made: made.wire((3, 0), 4, "image_negative"), "it has a negative image"),
    "bypassed": (lambda made: made.raw(4).update(mode=4), "it is muted or bypassed"),
    "weight over a wire": (lambda made: made.wire((3, 0), 4, "weight"), "its 'weight' comes over a wire"),
    "preset": (
        lambda made: made.raw(2).update(widgets_values=["FACEID"]),
        "its preset 'FACEID' is not one that Troupe knows",
    ),
    "loader": (
        lambda made: made.raw(2).update(type="IPAdapterUnifiedLoaderFaceID"),
        "its adapter comes from 'IPAdapterUnifiedLoaderFaceID' (node 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_stays_with_a_sentence(name):
    change, sentence = REFUSED[name]
    made = one_stacked()
    change(made)
    before = copy.deepcopy(made.saved)
    result = from_ipadapter(made.saved)
    assert (result.carried, result.workflow) == (0, before)
    assert [
        line
        for line in result.said
        if line.startswith("'IPAdapterAdvanced' (node 4, IPAdapterAdvanced) stays:")
        and sentence in line
        and line.endswith(".")
    ]


@pytest.mark.parametrize(
    ("kind", "combined", "told"), [("LoadImage", "add", 0), ("ImageBatch", "average", 0), ("ImageScale", "concat", 1)]
)
def test_one_photo_and_averages_are_carried(kind, combined, told):
    made = one_stacked()
    _from(kind, combined)(made)
    result = from_ipadapter(made.saved)
    assert (
        result.carried == 1 and sum("is a batch, its photos are averaged now" in line for line in result.said) == told
    )


def test_a_loader_that_somebody_else_needs_stays():
    """A tiled node after the carried one: it and the loader stay, and the model goes through both."""
    made = one_stacked(0.6)
    tiled = made.node("IPAdapterTiled", 0.5, "linear", model=(4, 0), ipadapter=(2, 1), image=(3, 0))
    made.sampled(1, (tiled, 0))
    result = from_ipadapter(made.saved)
    assert result.carried == 1
    [left], [apply] = of(result.workflow, "IPAdapterTiled"), of(result.workflow, APPLY)
    assert feeds(result.workflow, left, "model") == (APPLY, 0) and feeds(result.workflow, left, "ipadapter") == (
        "IPAdapterUnifiedLoader",
        1,
    )
    assert feeds(result.workflow, apply, "model") == ("IPAdapterUnifiedLoader", 0)
    assert [
        line
        for line in result.said
        if line == "'IPAdapterTiled' (node 11, IPAdapterTiled) stays: it cuts the photo into tiles. "
        "Keep IPAdapter_plus for it: both packs can patch the same MODEL."
    ]
    assert [
        line
        for line in result.said
        if line == "'IPAdapterUnifiedLoader' (node 2, IPAdapterUnifiedLoader) stays: 'IPAdapterTiled' (node 11, "
        "IPAdapterTiled) needs it."
    ]
    assert not broken_links(result.workflow)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_saves_beside_the_old_file(tmp_path, capsys):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(stacked_by_preset()))
    assert check_tool.main(["--from-ipadapter", str(old)]) == 0
    assert json.loads((tmp_path / "old_troupe.json").read_text()) == from_ipadapter(stacked_by_preset()).workflow
    assert json.loads(old.read_text()) == stacked_by_preset()
    *remarks, last = capsys.readouterr().out.splitlines()
    assert last == f"2 IPAdapter nodes rewritten, saved {tmp_path / 'old_troupe.json'}" and len(remarks) == 1
    assert (
        check_tool.main(["--from-ipadapter", str(old), "-o", str(tmp_path / "other.json")]) == 0
        and (tmp_path / "other.json").is_file()
    )


def test_the_old_file_is_never_written(tmp_path, capsys):
    old = tmp_path / "old.json"
    old.write_text(json.dumps(stacked_by_preset()))
    assert check_tool.main(["--from-ipadapter", str(old), "-o", str(old)]) == 1
    assert "Expected another file" in capsys.readouterr().err and json.loads(old.read_text()) == stacked_by_preset()


def test_nothing_to_carry_saves_nothing(tmp_path, capsys):
    assert (
        check_tool.main(
            ["--from-ipadapter", str(ROOT / "workflows" / "4_two_subjects.json"), "-o", str(tmp_path / "new.json")]
        )
        == 1
    )
    assert "found none; nothing was saved" in capsys.readouterr().err and not (tmp_path / "new.json").exists()


def test_an_api_prompt_cannot_be_rewritten():
    with pytest.raises(RunError, match="found an API prompt"):
        from_ipadapter({"1": {"class_type": "IPAdapter", "inputs": {}}})
