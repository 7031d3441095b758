"""What a saved workflow has only in the browser: the tools read it as the front end runs it."""

import json
import zlib

import pytest
from PIL import Image, PngImagePlugin
from support.ipadapter_workflows import SOCKETS, OldWorkflow, stacked_by_preset, with_subgraph
from troupe_tools.errors import RunError
from troupe_tools.pack import ROOT
from troupe_tools.workflow.any_workflow import as_prompt, flatten_workflow, for_the_host
from troupe_tools.workflow.findings import broken_links, browser_packs
from troupe_tools.workflow.from_ipadapter import from_ipadapter
from troupe_tools.workflow.graph import Graph, Node
from troupe_tools.workflow.job import read_job
from troupe_tools.workflow.model_files import Places, file_values, wanted_files
from troupe_tools.workflow.workflow_files import read_workflow

EXTRA = {
    "SetNode": ((("*", "*"),), (), ("*",)),
    "GetNode": ((), (), ("*",)),
    "Reroute (rgthree)": ((("", "*"),), (), ("*",)),
    "Label (rgthree)": ((), (), ()),
    "Anything Everywhere": ((("anything", "*"),), (), ()),
    "Prompts Everywhere": ((("positive", "*"), ("negative", "*")), (), ()),
}


@pytest.fixture(autouse=True)
def sockets_of_more(monkeypatch) -> None:
    """The nodes of the browser, among those that OldWorkflow makes."""
    for kind, sockets in EXTRA.items():
        monkeypatch.setitem(SOCKETS, kind, sockets)


@pytest.fixture
def plain() -> OldWorkflow:
    """Checkpoint 1, prompts 2 and 3, latent 4, sampler 5, decoder 6, saver 7, with wires only where a test adds them:
    sampler's prompts and latent, and the picture's.
    """
    made = OldWorkflow()
    made.node("CheckpointLoaderSimple", "base.safetensors")
    made.node("CLIPTextEncode", "a cat", clip=(1, 1))
    made.node("CLIPTextEncode", "", clip=(1, 1))
    made.node("EmptyLatentImage", 512, 512, 1)
    made.node(
        "KSampler", 1, "fixed", 4, 5.0, "euler", "normal", 1.0, positive=(2, 0), negative=(3, 0), latent_image=(4, 0)
    )
    made.node("VAEDecode", samples=(5, 0))
    made.node("SaveImage", "x", images=(6, 0))
    return made


def fed(workflow: dict, target: object, name: str) -> tuple | None:
    """(node id, slot) behind an input of the flat graph."""
    graph = Graph(flatten_workflow(workflow))
    found = graph.source(graph.nodes[target], name)
    return (found[0].id, found[1]) if found else None


# ---- nodes that pass a wire on ---------------------------------------------------------------------------------------


def test_a_get_node_gives_what_the_set_node_of_its_name_takes(plain):
    plain.node("SetNode", "m")
    plain.wire((1, 0), 8, "*")
    plain.node("SetNode", "v")
    plain.wire((1, 2), 9, "*")
    plain.node("GetNode", "m")
    plain.node("GetNode", "v")
    plain.wire((10, 0), 5, "model")
    plain.wire((11, 0), 6, "vae")
    assert (fed(plain.saved, 5, "model"), fed(plain.saved, 6, "vae")) == ((1, 0), (1, 2))
    for id_ in (8, 10):
        plain.raw(id_)["mode"] = 2
        assert fed(plain.saved, 5, "model") == (1, 0), "virtual nodes pass their wire on when muted, as in the browser"
    plain.raw(8)["widgets_values"] = plain.raw(10)["widgets_values"] = [""]
    assert fed(plain.saved, 5, "model") is None, "a name that is empty is none"
    plain.raw(11)["widgets_values"] = ["elsewhere"]
    assert fed(plain.saved, 6, "vae") is None, "no Set node has that name"


def test_a_set_node_hands_its_input_on_and_chains_are_followed(plain):
    plain.node("SetNode", "a")
    plain.wire((1, 0), 8, "*")
    plain.node("Reroute (rgthree)")
    plain.wire((8, 0), 9, "")
    plain.wire((9, 0), 5, "model")
    assert fed(plain.saved, 5, "model") == (1, 0)


def test_wires_that_run_in_a_circle_end_in_a_sentence(plain):
    plain.node("SetNode", "a")
    plain.node("GetNode", "a")
    plain.wire((9, 0), 8, "*")
    plain.wire((9, 0), 5, "model")
    with pytest.raises(RunError, match="form a loop"):
        fed(plain.saved, 5, "model")


def test_a_get_node_in_a_subgraph_takes_the_nearest_set_node(plain):
    """One of its own level before one outside; nothing from another subgraph."""
    workflow = with_subgraph()
    inner = workflow["definitions"]["subgraphs"][0]
    sampler = inner["nodes"][1]
    inner["nodes"].append(
        {"id": 5, "type": "GetNode", "inputs": [], "outputs": [{"name": "*", "type": "MODEL"}], "widgets_values": ["m"]}
    )
    inner["links"] = [link for link in inner["links"] if link["target_id"] != 2 or link["target_slot"] != 0]
    inner["links"].append(
        {"id": 20, "origin_id": 5, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "MODEL"}
    )
    sampler["inputs"][0]["link"] = 20
    workflow["nodes"].append(
        {
            "id": 8,
            "type": "SetNode",
            "inputs": [{"name": "MODEL", "type": "MODEL", "link": 30}],
            "outputs": [],
            "widgets_values": ["m"],
        }
    )
    workflow["links"].append([30, 1, 0, 8, 0, "MODEL"])
    assert fed(workflow, "3:2", "model") == (1, 0)
    inner["nodes"].append(
        {
            "id": 6,
            "type": "SetNode",
            "inputs": [{"name": "LATENT", "type": "LATENT", "link": None}],
            "outputs": [],
            "widgets_values": ["m"],
        }
    )
    assert fed(workflow, "3:2", "model") is None, "its own level's Set node has nothing"


# ---- Use Everywhere --------------------------------------------------------------------------------------------------


def test_broadcasts_are_wired_as_the_file_lists_them(plain):
    plain.node("Anything Everywhere")
    plain.wire((1, 0), 8, "anything")
    plain.saved["extra"]["ue_links"] = [
        {"downstream": 5, "downstream_slot": 0, "upstream": "1", "upstream_slot": 0, "controller": 8, "type": "MODEL"}
    ]
    assert fed(plain.saved, 5, "model") == (1, 0)
    assert fed(plain.saved, 6, "vae") is None, "nothing is broadcast that the list does not have"


def test_without_a_list_a_broadcast_reaches_every_free_socket_of_its_type(plain):
    plain.node("Anything Everywhere")
    plain.wire((1, 2), 8, "anything")
    plain.node("Anything Everywhere")
    plain.wire((1, 0), 9, "anything")
    assert (fed(plain.saved, 5, "model"), fed(plain.saved, 6, "vae"), fed(plain.saved, 6, "samples")) == (
        (1, 0),
        (1, 2),
        (5, 0),
    )


def test_prompts_everywhere_tells_positive_from_negative(plain):
    for slot in plain.raw(5)["inputs"][1:3]:
        slot["link"] = None
    plain.saved["links"] = [link for link in plain.saved["links"] if link[3] != 5 or link[4] not in (1, 2)]
    plain.node("Prompts Everywhere")
    plain.wire((2, 0), 8, "positive")
    plain.wire((3, 0), 8, "negative")
    assert (fed(plain.saved, 5, "positive"), fed(plain.saved, 5, "negative")) == ((2, 0), (3, 0))


# ---- folded nodes ----------------------------------------------------------------------------------------------------


def grouped(prefix: str = "workflow>") -> dict:
    """Checkpoint, two prompts, latent, and a group node that holds sampler and decoder."""
    sockets = [
        {"name": n, "type": t, "link": None}
        for n, t in (
            ("model", "MODEL"),
            ("positive", "CONDITIONING"),
            ("negative", "CONDITIONING"),
            ("latent_image", "LATENT"),
        )
    ]
    group = {
        "nodes": [
            {
                "type": "KSampler",
                "index": 0,
                "inputs": sockets,
                "outputs": [{"name": "LATENT", "type": "LATENT"}],
                "widgets_values": [1, "fixed", 20, 5.0, "euler", "normal", 1.0],
            },
            {
                "type": "VAEDecode",
                "index": 1,
                "inputs": [{"name": "samples", "type": "LATENT"}, {"name": "vae", "type": "VAE"}],
                "outputs": [{"name": "IMAGE", "type": "IMAGE"}],
                "widgets_values": [],
            },
        ],
        "links": [[0, 0, 1, 0, 1, "LATENT"]],
        "external": [],
    }
    made = OldWorkflow()
    for kind, values in (
        ("CheckpointLoaderSimple", ["base.safetensors"]),
        ("CLIPTextEncode", ["a"]),
        ("CLIPTextEncode", ["b"]),
        ("EmptyLatentImage", [512, 512, 1]),
    ):
        made.node(kind, *values)
    made.saved["extra"]["groupNodes"] = {"Sample": group}
    slots = [*[{**slot} for slot in sockets], {"name": "vae", "type": "VAE", "link": None}]
    made.saved["nodes"].append(
        {
            "id": 5,
            "type": f"{prefix}Sample",
            "mode": 0,
            "inputs": slots,
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": None}],
            "widgets_values": [7, "fixed", 4, 5.0, "euler", "normal", 1.0],
        }
    )
    made.saved["last_node_id"] = 5
    made.wire((1, 0), 5, "model")
    made.wire((2, 0), 5, "positive")
    made.wire((3, 0), 5, "negative")
    made.wire((4, 0), 5, "latent_image")
    made.wire((1, 2), 5, "vae")
    made.node("SaveImage", "x", images=(5, 0))
    return made.saved


@pytest.mark.parametrize("prefix", ["workflow/", "workflow>"])
def test_a_group_node_is_laid_open(prefix):
    workflow = grouped(prefix)
    assert [fed(workflow, "5:0", n) for n in ("model", "positive", "negative", "latent_image")] == [
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
    ]
    assert (fed(workflow, "5:1", "samples"), fed(workflow, "5:1", "vae"), fed(workflow, 6, "images")) == (
        ("5:0", 0),
        (1, 2),
        ("5:1", 0),
    )
    assert flatten_workflow(workflow)["nodes"][-2]["widgets_values"] == [7, "fixed", 4, 5.0, "euler", "normal", 1.0], (
        "the values that the group node shows"
    )


def test_a_group_of_an_older_file_is_read():
    """It has a whole node where newer ones have its place, and links from nowhere."""
    workflow = grouped()
    group = workflow["extra"]["groupNodes"]["Sample"]
    group["links"].append([None, 0, 1, 1, 4, "VAE"])
    group["external"] = [[{**group["nodes"][1]}, 0, "IMAGE"]]
    assert (fed(workflow, "5:1", "vae"), fed(workflow, 6, "images")) == ((1, 2), ("5:1", 0))


def test_inputs_of_one_name_in_a_group_have_their_nodes_titles():
    """As the front end names them: the second sampler's model is 'KSampler model'."""
    workflow = grouped()
    group = workflow["extra"]["groupNodes"]["Sample"]
    group["nodes"].append({**json.loads(json.dumps(group["nodes"][0])), "index": 2, "title": "Again"})
    outer = next(raw for raw in workflow["nodes"] if raw["id"] == 5)
    outer["inputs"].append({"name": "Again model", "type": "MODEL", "link": 99})
    workflow["links"].append([99, 1, 0, 5, 5, "MODEL"])
    assert (fed(workflow, "5:2", "model"), fed(workflow, "5:2", "positive")) == ((1, 0), None)


def test_a_subgraph_that_feeds_itself_ends_in_a_sentence():
    links = [{"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "LATENT"}]
    graph = {"id": "A", "name": "A", "inputs": [{"name": "x"}], "nodes": [], "links": links}
    outer = {
        "id": 1,
        "type": "A",
        "inputs": [{"name": "x", "type": "LATENT", "link": 5}],
        "outputs": [{"name": "x", "type": "LATENT"}],
    }
    taker = {"id": 2, "type": "Odd", "inputs": [{"name": "x", "type": "LATENT", "link": 6}], "outputs": []}
    with pytest.raises(RunError, match="form a loop through its subgraphs"):
        flatten_workflow(
            {
                "nodes": [outer, taker],
                "links": [[5, 1, 0, 1, 0, "LATENT"], [6, 1, 0, 2, 0, "LATENT"]],
                "definitions": {"subgraphs": [graph]},
            }
        )


def test_a_bypassed_subgraph_passes_its_own_inputs_on():
    """By the rule for every node, on the sockets that the user sees, whatever lies inside."""
    workflow = with_subgraph()
    workflow["nodes"][3]["inputs"][0]["type"] = "LATENT"
    workflow["nodes"][2]["mode"] = 4
    assert fed(workflow, 4, "any") == (2, 0), "the latent goes by"
    workflow["nodes"][2]["mode"] = 2
    assert fed(workflow, 4, "any") is None, "a muted one gives nothing"


# ---- links -----------------------------------------------------------------------------------------------------------


def test_records_nulls_and_dead_links_read_like_lists_without_them(plain):
    plain.wire((1, 0), 5, "model")
    clean = Graph(flatten_workflow(plain.saved))
    wires = [(node.id, name, fed(plain.saved, node.id, name)) for node in clean.nodes.values() for name in node.inputs]
    records = json.loads(json.dumps(plain.saved))
    records["links"] = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
        for link in records["links"]
    ]
    plain.saved["links"] += [None, [900, 77, 0, 6, 1, "VAE"], [901, 5, 0, 78, 0, "LATENT"]]
    plain.raw(6)["inputs"][1]["link"] = 900
    for workflow in (records, plain.saved):
        assert [(node, name, fed(workflow, node, name)) for node, name, _ in wires] == wires


def test_what_an_input_says_counts_where_the_list_of_links_differs(plain):
    """The front end draws and runs the link that an input names."""
    plain.wire((1, 0), 5, "model")
    plain.saved["links"].append([900, 2, 0, 5, 0, "CONDITIONING"])
    assert fed(plain.saved, 5, "model") == (1, 0)


def test_a_link_lies_where_an_input_names_it(plain):
    """Not where the list says: the front end mends that when it loads the file. Nothing is told of it either."""
    plain.wire((1, 0), 5, "model")
    next(link for link in plain.saved["links"] if link[3] == 5 and link[5] == "MODEL")[4] = 1
    assert (fed(plain.saved, 5, "model"), fed(plain.saved, 5, "positive")) == ((1, 0), (2, 0))
    assert broken_links(plain.saved) == []


# ---- widgets ---------------------------------------------------------------------------------------------------------


def compressed(workflow: dict) -> dict:
    """As the front end writes it into pictures and exports: of the widgets only the wired ones are listed."""
    workflow = json.loads(json.dumps(workflow))
    for graph in (workflow, *(workflow.get("definitions") or {"subgraphs": []})["subgraphs"]):
        for raw in graph["nodes"]:
            raw["inputs"] = [slot for slot in raw["inputs"] if "widget" not in slot or slot.get("link") is not None]
    return workflow


@pytest.mark.parametrize("name", ["4_two_subjects", "7_place_subjects", "research_subject_diffusion"])
def test_templates_read_alike_without_their_list_of_widgets(name):
    saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text())
    assert read_job(compressed(saved)) == read_job(saved)
    places = Places(())
    whole, short = (wanted_files(Graph(flatten_workflow(workflow)), places) for workflow in (saved, compressed(saved)))
    assert short == whole and len(whole) >= 2


def test_values_of_an_unknown_class_are_not_guessed(plain):
    """Of two values one name is known: whose it is the file does not say."""
    node = Node(
        {
            "id": 1,
            "type": "Odd",
            "inputs": [{"name": "second", "widget": {"name": "second"}, "link": 5}],
            "widgets_values": ["a", 2],
        }
    )
    assert node.widget_places() == {}


def test_a_subgraph_shows_its_values_also_where_inner_widgets_are_not_listed():
    graph = Graph(flatten_workflow(compressed(with_subgraph())))
    assert (
        graph.value(graph.nodes["3:2"], "steps"),
        graph.value(graph.nodes["3:2"], "seed"),
        graph.value(graph.nodes["3:1"], "text"),
    ) == (30, 1, "a dog")


def test_a_subgraph_that_says_which_widget_is_whose_is_taken_at_its_word():
    workflow = with_subgraph()
    outer = workflow["nodes"][2]
    outer["properties"], outer["widgets_values"] = (
        {"proxyWidgets": [["-1", "text"], ["2", "seed"], ["-1", "steps"]]},
        ["a fox", 99, 12],
    )
    for proxies in (outer["properties"]["proxyWidgets"], json.dumps(outer["properties"]["proxyWidgets"])):
        outer["properties"]["proxyWidgets"] = proxies
        graph = Graph(flatten_workflow(workflow))
        assert (
            graph.value(graph.nodes["3:2"], "steps"),
            graph.value(graph.nodes["3:1"], "text"),
            graph.value(graph.nodes["3:2"], "seed"),
        ) == (12, "a fox", 1)


def test_a_value_goes_through_two_subgraphs():
    def holder(id_: str, inner: dict) -> dict:
        links = [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": inner["id"], "target_slot": 0, "type": "COMBO"}
        ]
        return {"id": id_, "name": id_, "inputs": [{"name": "ckpt_name"}], "nodes": [inner], "links": links}

    slot = {"name": "ckpt_name", "type": "COMBO", "widget": {"name": "ckpt_name"}, "link": 1}
    loader = {
        "id": 1,
        "type": "CheckpointLoaderSimple",
        "inputs": [{**slot}],
        "outputs": [],
        "widgets_values": ["innermost.safetensors"],
    }
    middle = {"id": 2, "type": "A", "inputs": [{**slot}], "outputs": [], "widgets_values": ["middle.safetensors"]}
    outer = {
        "id": 3,
        "type": "B",
        "inputs": [{**slot, "link": None}],
        "outputs": [],
        "widgets_values": ["outer.safetensors"],
    }
    workflow = {"nodes": [outer], "links": [], "definitions": {"subgraphs": [holder("A", loader), holder("B", middle)]}}
    graph = Graph(flatten_workflow(workflow))
    assert graph.value(graph.nodes["3:2:1"], "ckpt_name") == "outer.safetensors"


# ---- for the host ----------------------------------------------------------------------------------------------------


def test_the_host_gets_no_virtual_node_and_every_wire(plain):
    plain.node("SetNode", "m")
    plain.wire((1, 0), 8, "*")
    plain.node("GetNode", "m")
    plain.wire((9, 0), 5, "model")
    plain.node("Label (rgthree)")
    plain.node("Anything Everywhere")
    plain.wire((1, 2), 11, "anything")
    graph = Graph(for_the_host(flatten_workflow(plain.saved)))
    assert sorted(graph.nodes) == [1, 2, 3, 4, 5, 6, 7]
    ends = {(link[3], link[4]): (link[1], link[2]) for link in graph.links.values()}
    assert (ends[5, 0], ends[6, 1]) == ((1, 0), (1, 2))
    for id_, source, slot, _, _, _ in graph.links.values():
        assert id_ in graph.nodes[source].raw["outputs"][slot]["links"]


def test_an_api_prompt_whose_wire_ends_in_nothing_has_no_value_there():
    graph = Graph(flatten_workflow({"1": {"class_type": "Two", "inputs": {"model": ["9", 0], "steps": 3}}}))
    assert (
        graph.nodes["1"].inputs["model"] == {"name": "model", "type": "*", "link": None}
        and graph.value(graph.nodes["1"], "steps") == 3
    )


def test_an_api_prompt_comes_back_as_it_was():
    """Also where a value beside a seed looks like the widget that a saved workflow has there."""
    prompt = {
        "1": {"class_type": "Odd", "inputs": {"seed": 5, "mode": "fixed", "text": ["2", 1]}},
        "2": {"class_type": "Two", "inputs": {}},
    }
    assert as_prompt(flatten_workflow(prompt)) == prompt


@pytest.mark.parametrize("lost", [{}, {"class_type": None}])
def test_a_node_that_was_lost_in_an_export_is_named(lost):
    prompt = {
        "1": {"class_type": "Two", "inputs": {}},
        "5": {"inputs": {"model": ["1", 0]}, "_meta": {"title": "Apply IPAdapter"}, **lost},
    }
    with pytest.raises(
        RunError, match=r"'Apply IPAdapter' \(node 5\): its pack was missing when the file was exported. Install"
    ):
        flatten_workflow(prompt)


def test_packs_of_the_browser_alone_are_a_note_where_the_host_has_none_of_their_nodes(plain):
    plain.node("GetNode", "m")
    plain.node("Label (rgthree)")
    graph = Graph(flatten_workflow(plain.saved))
    bare = {"KSampler": {"python_module": "nodes"}}
    assert browser_packs(graph, bare) == ["comfyui-kjnodes", "rgthree-comfy"]
    assert (
        browser_packs(
            graph,
            {
                **bare,
                "X": {"python_module": "custom_nodes.ComfyUI-KJNodes"},
                "Y": {"python_module": "custom_nodes.rgthree-comfy"},
            },
        )
        == []
    )


# ---- the converter ---------------------------------------------------------------------------------------------------


def behind(workflow: dict, kind: str, name: str) -> tuple | None:
    """(class, slot) behind an input of the only node of a class."""
    graph = Graph(flatten_workflow(workflow))
    [node] = graph.of_type(kind)
    found = graph.source(node, name)
    return (found[0].type, found[1]) if found else None


def one_adapter() -> OldWorkflow:
    """Checkpoint 1, Unified Loader 2, photo 3, IPAdapter 4 without an adapter, and the sampling."""
    made = OldWorkflow()
    made.node("CheckpointLoaderSimple", "juggernautXL_v9.safetensors")
    made.node("IPAdapterUnifiedLoader", "PLUS (high strength)", model=(1, 0))
    made.node("LoadImage", "woman.png", "image")
    made.node("IPAdapterAdvanced", 1.0, "linear", "concat", 0.0, 1.0, "V only", model=(2, 0), image=(3, 0))
    made.sampled(1, (4, 0))
    return made


def test_an_adapter_over_set_and_get_is_found_and_both_are_taken_out():
    made = one_adapter()
    setter, getter = made.node("SetNode", "ipa"), made.node("GetNode", "ipa")
    made.wire((2, 1), setter, "*")
    made.wire((getter, 0), 4, "ipadapter")
    new = from_ipadapter(made.saved)
    assert new.carried == 1 and behind(new.workflow, "TroupeAddSubject", "image") == ("LoadImage", 0)
    assert {"SetNode", "GetNode", "IPAdapterUnifiedLoader"}.isdisjoint(raw["type"] for raw in new.workflow["nodes"])


def test_a_set_node_that_others_use_stays():
    made = one_adapter()
    setter, getter, other = made.node("SetNode", "ipa"), made.node("GetNode", "ipa"), made.node("GetNode", "ipa")
    made.wire((2, 1), setter, "*")
    made.wire((getter, 0), 4, "ipadapter")
    made.node("IPAdapterTiled", 1.0, "linear", model=(1, 0))
    made.wire((other, 0), made.saved["last_node_id"], "ipadapter")
    left = [
        raw["id"]
        for raw in from_ipadapter(made.saved).workflow["nodes"]
        if raw["type"] in ("SetNode", "GetNode", "IPAdapterUnifiedLoader")
    ]
    assert left == [2, setter, other]


@pytest.mark.parametrize("listed", [True, False])
def test_a_photo_and_an_adapter_that_are_broadcast_are_wired(listed):
    made = one_adapter()
    everywhere = made.node("Anything Everywhere")
    made.wire((2, 1), everywhere, "anything")
    if listed:
        made.saved["extra"]["ue_links"] = [
            {
                "downstream": 4,
                "downstream_slot": 1,
                "upstream": "2",
                "upstream_slot": 1,
                "controller": everywhere,
                "type": "IPADAPTER",
            },
            {
                "downstream": 4,
                "downstream_slot": 2,
                "upstream": "3",
                "upstream_slot": 0,
                "controller": everywhere,
                "type": "IMAGE",
            },
        ]
        made.raw(4)["inputs"][2]["link"] = None
        made.saved["links"] = [link for link in made.saved["links"] if link[3] != 4 or link[4] != 2]
    new = from_ipadapter(made.saved)
    assert new.carried == 1 and behind(new.workflow, "TroupeAddSubject", "image") == ("LoadImage", 0)


def test_a_set_node_that_a_subgraph_uses_stays():
    made = one_adapter()
    setter, getter = made.node("SetNode", "ipa"), made.node("GetNode", "ipa")
    made.wire((2, 1), setter, "*")
    made.wire((getter, 0), 4, "ipadapter")
    inner = {
        "id": 1,
        "type": "GetNode",
        "mode": 0,
        "inputs": [],
        "outputs": [{"name": "*", "type": "*"}],
        "widgets_values": ["ipa"],
    }
    made.saved["definitions"] = {"subgraphs": [{"id": "abc", "name": "Faces", "nodes": [inner], "links": []}]}
    made.saved["nodes"].append(
        {"id": 60, "type": "abc", "pos": [0, 0], "mode": 0, "inputs": [], "outputs": [], "widgets_values": []}
    )
    assert {"SetNode", "IPAdapterUnifiedLoader"} <= {
        raw["type"] for raw in from_ipadapter(made.saved).workflow["nodes"]
    }


def test_a_broadcast_of_the_rewritten_node_comes_from_the_new_one():
    made = one_adapter()
    made.wire((2, 1), 4, "ipadapter")
    everywhere = made.node("Anything Everywhere")
    sampler = next(raw for raw in made.saved["nodes"] if raw["type"] == "KSampler")
    link = sampler["inputs"][0]["link"]
    sampler["inputs"][0]["link"] = None
    made.saved["links"] = [one for one in made.saved["links"] if one[0] != link]
    made.wire((4, 0), everywhere, "anything")
    made.saved["extra"]["ue_links"] = [
        {
            "downstream": sampler["id"],
            "downstream_slot": 0,
            "upstream": "4",
            "upstream_slot": 0,
            "controller": everywhere,
            "type": "MODEL",
        }
    ]
    assert behind(from_ipadapter(made.saved).workflow, "KSampler", "model") == ("TroupeApplyImageAttention", 0)


def test_values_by_name_are_converted_too():
    made = one_adapter()
    made.wire((2, 1), 4, "ipadapter")
    for raw in made.saved["nodes"]:
        names = [slot["name"] for slot in raw["inputs"] if "widget" in slot]
        raw["widgets_values"] = dict(zip(names, raw["widgets_values"], strict=False))
    made.saved["groups"] = None
    assert from_ipadapter(made.saved).carried == 1


def test_a_file_with_records_gets_records_back():
    workflow = stacked_by_preset()
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    expected = from_ipadapter(json.loads(json.dumps(workflow)))
    workflow["links"] = [{**dict(zip(names, link, strict=True)), "parentId": 5} for link in workflow["links"]]
    workflow["version"] = 1
    new = from_ipadapter(workflow).workflow
    assert [[link[name] for name in names] for link in new["links"]] == expected.workflow["links"]
    assert any(link.get("parentId") == 5 for link in new["links"]), "what the front end keeps in a link stays"
    assert new["state"]["lastLinkId"] == max(link["id"] for link in new["links"])


def test_nodes_out_of_sight_stay_with_a_sentence():
    workflow = stacked_by_preset()
    inner = {"id": 50, "type": "IPAdapterAdvanced", "mode": 0, "inputs": [], "outputs": [], "widgets_values": []}
    workflow["definitions"] = {"subgraphs": [{"id": "abc", "name": "Faces", "nodes": [inner], "links": []}]}
    workflow["nodes"].append({"id": 51, "type": "abc", "mode": 0, "inputs": [], "outputs": [], "widgets_values": []})
    new = from_ipadapter(workflow)
    assert new.carried == 2 and any("lies inside 'Faces'; unpack that" in line for line in new.said)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_workflow_in_a_picture_is_read(tmp_path):
    workflow = stacked_by_preset()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "{}")
    texts.add_text("workflow", json.dumps(workflow))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=texts)
    entries = Image.Exif()
    entries[0x0110], entries[0x010F] = "prompt:{}", f"workflow:{json.dumps(workflow)}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=entries)
    assert read_workflow(tmp_path / "a.png") == read_workflow(tmp_path / "a.webp") == workflow


def test_a_picture_without_a_workflow_is_told(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(RunError, match="a picture without a workflow. Take the file that ComfyUI saved"):
        read_workflow(tmp_path / "a.png")
    (tmp_path / "b.webp").write_bytes(b"RIFF and nothing more")
    with pytest.raises(RunError, match="no picture that can be read"):
        read_workflow(tmp_path / "b.webp")


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"comf", b"workflow\0")],
        [(b"iTXt", b"workflow\0\0\0\0\0")],
        [(b"tEXt", b"Workflow\0")],
        [(b"tEXt", b"workflow\0{ cut off"), (b"tEXt", b"prompt\0")],
    ],
    ids=["animated", "international", "a capital", "a cut one, and a prompt"],
)
def test_chunks_of_pictures_are_read_as_the_browser_reads_them(chunks, tmp_path):
    """Names beyond Latin; no pixels are looked at, however many there would be. The last chunk has the workflow."""
    said = json.dumps({"1": {"class_type": "Note", "inputs": {"text": "猫"}}}, ensure_ascii=False).encode()
    head = chunk(b"IHDR", (60000).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0)))
    *first, (kind, key) = chunks
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*one) for one in first) + chunk(kind, key + said) + b"cut"
    )
    assert read_workflow(tmp_path / "a.png") == json.loads(said)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("sdxl/my model v2.safetensors", True),
        ("a cat, in the manner of old.safetensors", False),
        ("https://example.org/a.safetensors", False),
        ("this here is what I wrote about my favourite old.safetensors", False),
    ],
)
def test_a_text_that_ends_in_a_files_name_is_no_file(value, found):
    node = Node({"id": 1, "type": "Odd", "inputs": [], "widgets_values": [value]})
    assert list(file_values(node)) == ([value] if found else [])


def test_a_socket_or_a_host_says_what_is_a_text():
    node = Node(
        {
            "id": 1,
            "type": "Odd",
            "inputs": [{"name": "text", "type": "STRING", "widget": {"name": "text"}}],
            "widgets_values": ["old.safetensors"],
        }
    )
    assert list(file_values(node)) == []
    node = Node({"id": 1, "type": "Odd", "inputs": [], "widgets_values": ["old.safetensors", "base.safetensors"]})
    assert list(
        file_values(node, {"input": {"required": {"note": ["STRING", {}], "name": [["base.safetensors"]]}}})
    ) == ["base.safetensors"]
