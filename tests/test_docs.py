"""README and help pages say what the code says."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from itertools import product

import pytest
from troupe.model_patches.attention.merges import MERGES, NAMELESS
from troupe.model_patches.checkpoints.catalogue import (
    ADAPTERS,
    DEFAULT_ADAPTER,
    ENCODERS,
    GATED,
    PROJECTION_MATRIX,
    PROMPT,
    VIT_H,
)
from troupe.model_patches.checkpoints.refused import no_adapter
from troupe.model_patches.families.registry import labels
from troupe_tools.pack import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
TEXT = "\n".join([README, *DOCS.values()])
NODES = json.loads((ROOT / "tests" / "golden" / "node_contract.json").read_text())["nodes"]
PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))
# 'CLIP ViT-H/14 (...)' -> 'ViT-H'
SHORT = {encoder.name: encoder.name.split()[1].split("/")[0] for encoder in ENCODERS}


def section(title: str) -> str:
    """Text under a '## title' of the README or of docs."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S).group(1)


def table(name: str) -> list[list[str]]:
    """Cells of the table between '<!-- name' and '<!-- end of name -->', without its two head rows."""
    text = re.search(rf"<!-- {name}.*?-->(.*?)<!-- end of {name} -->", TEXT, re.S).group(1)
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.strip().splitlines()][2:]


# ---- models ----------------------------------------------------------------------------------------------------------


def test_the_adapter_table_is_the_catalogue():
    wanted = [[f"[{f.name}]({f.link})", f.size, f.base, SHORT[f.encoder], f.licence] for f in ADAPTERS]
    assert table("adapters") == wanted
    assert {f.folder for f in ADAPTERS} == {"ipadapter"} and "All of them go into `models/ipadapter`" in TEXT


def test_the_table_of_gated_adapters_is_the_catalogue():
    assert table("gated") == [
        [f"[{f.name}]({f.link})", f.size, f.base, SHORT.get(f.encoder, "none"), f.licence] for f in GATED
    ]
    assert {f.folder for f in (*GATED, PROJECTION_MATRIX)} == {
        "gligen"
    } and "All of these go into `models/gligen`" in TEXT
    assert f"[projection_matrix]({PROJECTION_MATRIX.link}) ({PROJECTION_MATRIX.size})" in TEXT


def test_the_table_of_prompt_adapters_is_the_catalogue():
    assert table("prompt") == [[f"[{f.name}]({f.link})", f.size, f.base, SHORT[f.encoder], f.licence] for f in PROMPT]
    assert {f.folder for f in PROMPT} == {
        "subject_adapters"
    } and "All of these go into `models/subject_adapters`" in TEXT


def test_the_encoder_table_is_the_catalogue():
    assert {f.encoder for f in (*ADAPTERS, *GATED)} - {""} == {e.name for e in ENCODERS}
    assert table("encoders") == [
        [f"{SHORT[e.name]}: {e.name}", f"[{e.file.name}]({e.file.link})", e.file.size, e.file.licence] for e in ENCODERS
    ]


def test_the_download_before_the_first_step_adds_up():
    gigabytes = {"GB": 1.0, "MB": 1e-3}
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) (GB|MB) \| `(\w+)` \|$", section("Models"), re.M)
    assert [folder for *_, folder in rows] == ["checkpoints", "ipadapter", "clip_vision"]
    total = sum(float(size) * gigabytes[unit] for _, size, unit, _ in rows)
    assert f"**{total:.1f} GB** together" in README
    for (what, size, unit, folder), file in zip(rows[1:], (DEFAULT_ADAPTER, VIT_H.file), strict=True):
        assert what.startswith(file.name) and f"{size} {unit}" == file.size and folder == file.folder


def test_every_file_the_dialog_cannot_fetch_has_its_line():
    for file in (*ADAPTERS, *GATED, PROJECTION_MATRIX, *PROMPT, *(e.file for e in ENCODERS)):
        if "/resolve/" not in file.link:  # a page
            continue
        if not file.link.endswith(".safetensors") or file.link.endswith("/model.safetensors"):
            assert f"curl -L -o models/{file.folder}/{file.name} {file.link}\n" in TEXT


# ---- commands --------------------------------------------------------------------------------------------------------


def test_the_options_of_run_py_are_explained():
    source = ast.parse((ROOT / "tools" / "troupe_tools" / "commands" / "run.py").read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
    ]
    options = {written(call.args[0], {})[0] for call in calls}
    rows = [line for line in section("Two commands").splitlines() if line.startswith("| `--")]
    assert {name for row in rows for name in re.findall(r"`(--[\w-]+)", row)} == options


# ---- messages --------------------------------------------------------------------------------------------------------


def written(node: ast.AST, names: dict[str, list[str]]) -> list[str]:
    """What a string expression can read like, with … for everything that is put in at run time; `names`: local
    variables that hold strings.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return ["".join(parts) for parts in product(*(written(part, {}) for part in node.values))]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [left + right for left, right in product(written(node.left, names), written(node.right, names))]
    if isinstance(node, ast.IfExp):
        return written(node.body, names) + written(node.orelse, names)
    return names.get(node.id, ["…"]) if isinstance(node, ast.Name) else ["…"]


@cache
def messages() -> list[str]:
    """All strings of the pack's code, and its errors put together as errors.TroupeError does."""
    found = [str(no_adapter("…", "…", "…", labels()))]
    for path in [*(ROOT / "nodes").rglob("*.py"), *(ROOT / "model_patches").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [
            text
            for node in ast.walk(tree)
            if isinstance(node, (ast.Constant, ast.JoinedStr))
            for text in written(node, {})
        ]
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            names: dict[str, list[str]] = {}
            for node in ast.walk(function):
                if isinstance(node, ast.Assign):
                    left, right = node.targets[0], node.value
                    both = isinstance(left, ast.Tuple) and isinstance(right, ast.Tuple)
                    for name, value in zip(left.elts, right.elts, strict=True) if both else [(left, right)]:
                        if isinstance(name, ast.Name):
                            names.setdefault(name.id, []).extend(written(value, names))
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Call)
                    and getattr(node.func, "id", "").endswith("Error")
                    and len(node.args) == 3
                ):
                    found += [
                        f"Expected {expected}, found {got}. {remedy}"
                        for expected, got, remedy in product(*(written(a, names) for a in node.args))
                    ]
    return [re.sub("…+", "…", message) for message in found]


QUOTED = re.findall(r"^## `(.+)`$", DOCS["troubleshooting"], re.M)


@pytest.mark.parametrize("quote", QUOTED)
def test_a_quoted_message_exists(quote):
    assert len(quote.replace("…", "")) > 20
    assert any(quote in message or (quote.endswith("…") and quote[:-1] in message) for message in messages()), (
        "no code says this"
    )


def test_messages_are_quoted_at_all():
    assert len(QUOTED) >= 15


@pytest.mark.parametrize("name", ["TroupeError", "CheckpointError", "SubjectError", "MismatchError"])
def test_the_readme_shows_no_class_names(name):
    """Artists search for the sentence, which is what ComfyUI shows."""
    assert name not in TEXT


# ---- help pages ------------------------------------------------------------------------------------------------------


def test_every_node_has_a_page_and_no_page_is_left_over():
    assert {page.stem for page in PAGES} == set(NODES)


@pytest.mark.parametrize("id", NODES)
def test_a_page_explains_every_input(id):
    text = (ROOT / "web" / "docs" / f"{id}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {NODES[id]['display_name']}\n")
    assert "## Common mistakes\n" in text
    inputs = re.search(r"^## Inputs\n(.*?)^##", text, re.M | re.S).group(1)
    explained = [
        name
        for names in re.findall(r"^- ((?:`\w+`, )*`\w+`): \S", inputs, re.M)
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert sorted(explained) == sorted(entry["id"] for entry in NODES[id]["inputs"])


@pytest.mark.parametrize("id", NODES)
def test_a_page_has_no_table(id):
    """ComfyUI's help panel is narrow and cuts tables."""
    assert not [
        line
        for line in (ROOT / "web" / "docs" / f"{id}.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]


@pytest.mark.parametrize("id", NODES)
def test_the_table_of_nodes_links_every_page(id):
    assert f"[{NODES[id]['display_name']}](../web/docs/{id}.md)" in DOCS["nodes"]


# ---- links -----------------------------------------------------------------------------------------------------------

LINKS = [
    (page.name, link, page.parent / link.split("#")[0])
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")), *PAGES]
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    if not re.match(r"https://|#", link)
]


@pytest.mark.parametrize(("page", "link", "target"), LINKS, ids=[f"{page}:{link}" for page, link, _ in LINKS])
def test_a_link_leads_somewhere(page, link, target):
    assert target.resolve().is_relative_to(ROOT) and target.exists()


def test_a_link_that_shows_a_path_leads_there():
    shown = [(text, link) for text, link in re.findall(r"\[([\w./]+/[\w./]+)\]\((?!https://)([^)#\s]+)\)", TEXT)]
    shown = [(text, link.removeprefix("../")) for text, link in shown]
    assert len(shown) > 5
    assert not [(text, link) for text, link in shown if text != link and not link.startswith(f"{text}/")]


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{name}.md" for name in DOCS)])
def test_a_link_to_a_heading_finds_it(page):
    path = ROOT / page
    for target, anchor in re.findall(r"\]\((?!https://)([^)#\s]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        headings = re.findall(
            r"^#+ (.+)$", (path.parent / target if target else path).read_text(encoding="utf-8"), re.M
        )
        assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}, (
            f"{target}#{anchor}"
        )


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_readme_begins_with_a_picture():
    assert re.match(r"# Troupe\n\n!\[.+\]\(web/docs/two_subjects_graph\.jpg\)\n", README)


def test_the_page_explains_every_merge_and_the_tooltip_names_it():
    page = (ROOT / "web" / "docs" / "TroupeApplyImageAttention.md").read_text(encoding="utf-8")
    explained = re.search(r"^### merge\n(.*?)^##", page, re.M | re.S).group(1)
    assert re.findall(r"^- `(\w+)`: ", explained, re.M) == ["auto", *MERGES]
    tooltips = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    tooltip = tooltips["TroupeApplyImageAttention"]["inputs"]["merge"]["tooltip"]
    missing = [name for name in ("auto", *MERGES) if f"{name}: " not in tooltip]
    update = "TROUPE_UPDATE_LOCALES=1 python -m pytest tests/host/test_contract.py"
    assert not missing, f"write it in the tooltip in nodes/apply_image_attention.py, then: {update}"


@pytest.mark.parametrize(
    "place", ["docs/troubleshooting.md", "web/docs/TroupeEncodeSubjects.md", "locales/en/nodeDefs.json"]
)
def test_pages_name_the_merges_without_names(place):
    text = (ROOT / place).read_text(encoding="utf-8").replace("`", "")
    assert f"merge {', '.join(NAMELESS[:-1])} or {NAMELESS[-1]}" in text
