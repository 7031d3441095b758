"""The nodes as a real ComfyUI lists them after loading the pack from a link in custom_nodes, against the contract that
saved workflows depend on.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from troupe_tools.pack import ROOT

CONTRACT = json.loads((ROOT / "tests" / "golden" / "node_contract.json").read_text())["nodes"]
NODE_DEFS = ROOT / "locales" / "en" / "nodeDefs.json"


@pytest.fixture(scope="module")
def listed(host, base_folder):
    """{node id: what /object_info tells the front end}, for the pack linked into custom_nodes and loaded by the
    host.
    """
    import nodes

    link = Path(base_folder) / "custom_nodes" / "troupe"
    link.symlink_to(ROOT, target_is_directory=True)
    before = set(nodes.NODE_CLASS_MAPPINGS)
    assert asyncio.run(nodes.load_custom_node(str(link), module_parent="custom_nodes"))
    return {
        id: json.loads(json.dumps(nodes.NODE_CLASS_MAPPINGS[id].GET_NODE_INFO_V1()))
        for id in nodes.NODE_CLASS_MAPPINGS
        if id not in before
    }


def inputs_of(info: dict) -> dict[str, dict]:
    """{input id: {"type", "optional", its options}} of a listed node, required ones first as the front end
    shows them.
    """
    found = {}
    for group in ("required", "optional"):
        for id, (kind, *options) in info["input"].get(group, {}).items():
            found[id] = {"type": kind, "optional": group == "optional", **(options[0] if options else {})}
    return found


def test_the_hosts_own_nodes_module_is_not_hidden(host, listed):
    import nodes

    assert Path(nodes.__file__).resolve() == host / "nodes.py"


def test_the_pack_brings_these_nodes_and_no_other(listed):
    assert set(listed) == set(CONTRACT)


def test_the_menu_has_one_category(listed):
    assert {info["category"] for info in listed.values()} == {"Troupe"}


@pytest.mark.parametrize("id", CONTRACT)
def test_names(listed, id):
    assert listed[id]["display_name"] == CONTRACT[id]["display_name"]
    assert listed[id]["python_module"] == "custom_nodes.troupe"


@pytest.mark.parametrize("id", CONTRACT)
def test_input_order(listed, id):
    """Our order within required and within optional inputs; more inputs may follow, none may be renamed or moved."""
    promised = CONTRACT[id]["inputs"]
    for group, optional in (("required", False), ("optional", True)):
        wanted = [entry["id"] for entry in promised if entry.get("optional", False) == optional]
        found = list(listed[id]["input"].get(group, {}))
        assert found[: len(wanted)] == wanted
        if group == "required":
            assert found == wanted, "a new required input breaks every saved workflow"


@pytest.mark.parametrize("id", CONTRACT)
def test_widget_order(listed, id):
    """Widget values are saved by position: the widgets of the schema, in its order."""
    widgets = {"COMBO", "STRING", "FLOAT", "INT", "BOOLEAN"}
    wanted = [e["id"] for e in CONTRACT[id]["inputs"] if e["type"] in widgets and not e.get("forceInput")]
    found = [
        name
        for name, e in inputs_of(listed[id]).items()
        if (isinstance(e["type"], list) or e["type"] in widgets) and not e.get("forceInput")
    ]
    assert found[: len(wanted)] == wanted


@pytest.mark.parametrize("id", CONTRACT)
def test_inputs(listed, id):
    found = inputs_of(listed[id])
    for wanted in CONTRACT[id]["inputs"]:
        have = found[wanted["id"]]
        options = have["type"] if isinstance(have["type"], list) else have.get("options")
        assert ("COMBO" if isinstance(have["type"], list) else have["type"]) == wanted["type"], wanted["id"]
        assert have["optional"] == wanted.get("optional", False), wanted["id"]
        for key in {"default", "min", "max", "step", "forceInput"} & wanted.keys():
            assert have.get(key) == wanted[key], (wanted["id"], key)
        if "options" in wanted:
            assert options == wanted["options"], wanted["id"]
        if "starts_with" in wanted:
            assert options[: len(wanted["starts_with"])] == wanted["starts_with"], wanted["id"]
        if "shown_as" in wanted:
            assert have.get("display_name") == wanted["shown_as"], wanted["id"]


@pytest.mark.parametrize("id", CONTRACT)
def test_outputs(listed, id):
    found = [
        {"name": name, "type": kind} for name, kind in zip(listed[id]["output_name"], listed[id]["output"], strict=True)
    ]
    assert found[: len(CONTRACT[id]["outputs"])] == CONTRACT[id]["outputs"]


@pytest.mark.parametrize("id", CONTRACT)
def test_everything_is_explained(listed, id):
    assert len(listed[id]["description"]) > 40
    for name, entry in inputs_of(listed[id]).items():
        assert len(entry.get("tooltip") or "") > 10, f"{id}.{name} has no tooltip"


# ---- translations and help pages -------------------------------------------------------------------------------------


def node_defs(listed: dict) -> dict:
    """locales/<language>/nodeDefs.json of the listed nodes in their own words."""
    return {
        id: {
            "display_name": info["display_name"],
            "description": info["description"],
            "inputs": {
                name: {"name": entry.get("display_name") or name, "tooltip": entry["tooltip"]}
                for name, entry in inputs_of(info).items()
            },
            "outputs": {
                str(i): {"name": name, **({"tooltip": tip} if tip else {})}
                for i, (name, tip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
            },
        }
        for id, info in sorted(listed.items())
    }


def test_the_english_texts_are_in_step(listed):
    """TROUPE_UPDATE_LOCALES=1 writes the file again after a change of a tooltip or description."""
    current = node_defs(listed)
    if os.environ.get("TROUPE_UPDATE_LOCALES") == "1":
        NODE_DEFS.write_text(json.dumps(current, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert json.loads(NODE_DEFS.read_text(encoding="utf-8")) == current, (
        "run this test once with TROUPE_UPDATE_LOCALES=1"
    )


def test_the_host_merges_the_translations(listed):
    from app.custom_node_manager import CustomNodeManager

    translations = CustomNodeManager().build_translations()
    merged = translations["en"]
    assert {language: set(found["nodeDefs"]) for language, found in translations.items()} == dict.fromkeys(
        ("en", "ja", "ko", "ru", "zh"), set(CONTRACT)
    )
    assert merged["nodeCategories"] == {"Troupe": "Troupe"}
    types = {kind for info in listed.values() for kind in info["output"] if kind.startswith("TROUPE_")}
    assert types <= set(merged["dataTypes"])


@pytest.mark.parametrize("id", CONTRACT)
def test_the_host_serves_a_help_page(listed, id):
    import nodes

    assert (Path(nodes.EXTENSION_WEB_DIRS["troupe"]) / "docs" / f"{id}.md").is_file()


def test_the_host_reads_the_metadata(listed, base_folder):
    """ComfyUI's own parser of pyproject.toml, which swallows what it does not understand."""
    from comfy_config.config_parser import extract_node_configuration

    found = extract_node_configuration(str(Path(base_folder) / "custom_nodes" / "troupe"))
    assert (found.project.name, found.tool_comfy.display_name, found.tool_comfy.publisher_id) == (
        "troupe",
        "Troupe",
        "troupe-comfy",
    )
    assert found.project.supported_comfyui_version == ">=0.3.64"
    assert found.project.supported_os == ["OS Independent"]


WANTED = (
    "ip adapter",
    "ipadapter",
    "reference",
    "character",
    "consistent character",
    "person",
    "face",
    "region",
    "mask",
    "multiple characters",
    "photo",
    "box",
    "gligen",
    "two characters",
)


def test_artists_words_find_the_nodes_where_the_host_reads_aliases(listed):
    """Every word leads to a node of ours; research nodes come with no word of a beginner."""
    from comfy_api.latest import io

    found = {id_: node.get("search_aliases") for id_, node in listed.items() if id_.startswith("Troupe")}
    if "search_aliases" not in io.Schema.__dataclass_fields__:
        assert not any(found.values())
        return
    assert all(found.values())
    for word in WANTED:
        assert any(word in words for words in found.values()), word
    assert not set(found["TroupeSubjectGuider"]) & set(WANTED)
    assert set(WANTED[:2]) <= set(found["TroupeQuickSubjects"]) & set(found["TroupeLoadAdapter"]) & set(
        found["TroupeApplyImageAttention"]
    )


def test_what_beginners_never_touch_is_folded_where_the_host_can(listed):
    """Weight, merge, end and sharpness stay in sight on Apply Image Attention; hosts without the option show
    everything.
    """
    import inspect

    from comfy_api.latest import io

    folded = {
        id_: {name for name, given in inputs_of(node).items() if given.get("advanced")} for id_, node in listed.items()
    }
    if "advanced" not in inspect.signature(io.Float.Input.__init__).parameters:
        assert not any(folded.values())
        return
    assert folded["TroupeApplyImageAttention"] == {
        "start_percent",
        "box_strength",
        "box_end_percent",
        "box_feather",
        "background",
        "in_crops",
    }
    assert folded["TroupeAddSubject"] == {"start_percent", "end_percent"} and not folded["TroupeQuickSubjects"]
    assert not any(folded[id_] for id_ in ("TroupeLoadAdapter", "TroupePlaceSubjects", "TroupeRehearsal"))
