"""What a user reads is plain technical English: words and phrases that give away another style stay out.

Read are the nodes' texts, the help pages, README, docs, SECURITY, CHANGELOG, the pages beside the models and
measurements, the notes of templates, and the strings and docstrings of the code.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from troupe_tools.pack import ROOT

BANNED = {  # what it is -> pattern, without regard to case
    "rests: is skipped, is disabled": r"\brest(s|ed)\b(?! on)|, and rest\b",
    "told: reported, shown": r"\btold\b(?! apart)|\btells whoever\b",
    "owns: affects, has a share of": r"\bown(s|ed)\b",
    "stands: is": r"\bstand(s|ing)?\b(?!ard)|\bstood\b",
    "a width in words: of size": r"(\d|\}|…|\bthan|\bas) wide\b|-wide text\b|\bwide (inside|for|from|and)\b",
    "wherever, whoever, whatever it is called": r"\b(wherever|whoever)\b|\bwhatever it is called\b",
    "of ours": r"\bof ours\b|\bof our own\b",
    "mended: fixed": r"\bmend(s|ed|ing)?\b",
    "a doubt: a warning": r"\bdoubts?\b",
    "the likes of": r"\bthe likes? of\b",
    "for as long as": r"\bfor as long as\b",
    "which it has not": r"\b(which|that) it has not\b|\bhas no place for\b",
    "is looked at most: is relevant": r"\b(is|are) (not )?looked at\b|\blooked at most\b",
    "everybody, nobody: every subject, no subject": r"\beverybody everywhere\b|\bnobody('s| else)\b|\bnobody knows\b",
    "switches the node off: disables": r"\bswitch(es)? the node off\b",
    "more say: more influence": r"\b(more|equal) say\b",
    "welcome: works with": r"\bpatches welcome\b",
    "changes no pixel: the picture is unchanged": r"\bchanges no pixel\b|\bcosts? next to nothing\b",
    "a way that cannot be followed": r"\bcannot be followed\b|\bruns the rows\b",
    "the node does no harm": r"\b(does|do) no harm\b",
    "brings weights along: includes": r"\bbr(ings|ing|ought) (\w+ ){0,4}(weights|along)\b|\bcarry along\b",
    "a straight line to: interpolated linearly": r"\bin a straight line\b",
    "which were not right": r"\bnot right\b",
    "before you expect wonders": r"\bwonders\b",
}
PAGES = [
    *(
        ROOT / name
        for name in (
            "README.md",
            "SECURITY.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "benchmarks/CONFUSION.md",
            "benchmarks/RESULTS.md",
            "benchmarks/ABLATIONS.md",
            "rehearsal/files/MODEL_CARD.md",
            "locales/README.md",
            "samples/LICENSES.md",
        )
    ),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "web" / "docs").glob("*.md")),
]
CODE = [
    path
    for folder in ("nodes", "model_patches", "training", "evaluation", "rehearsal", "tools", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
SCRIPTS = sorted((ROOT / "web").rglob("*.js"))
GRAPHS = sorted((*(ROOT / "workflows").glob("*.json"), *(ROOT / "subgraphs").glob("*.json")))


def faults(text: str) -> dict[str, list[str]]:
    """What is wrong with a text -> the passages."""
    found = {
        what: [
            text[max(match.start() - 30, 0) : match.end() + 30] for match in re.finditer(pattern, text, re.IGNORECASE)
        ]
        for what, pattern in BANNED.items()
    }
    return {what: passages for what, passages in found.items() if passages}


def node_texts() -> list[str]:
    def flat(value):
        return [value] if isinstance(value, str) else [text for child in value.values() for text in flat(child)]

    return flat(json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8")))


def strings(path: Path) -> list[str]:
    """The strings of a module in which words are, without its docstrings; what is put in at run time is shown as …."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            silent.add(node.body[0].value)
        if isinstance(node, ast.JoinedStr):
            silent |= {part for part in node.values if isinstance(part, ast.Constant)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in silent:
            found.append(node.value)
    return [text for text in found if text.strip().count(" ") >= 1]


def docstrings(path: Path) -> list[str]:
    """The docstrings of a module, in one line each."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [" ".join(text.split()) for text in texts]


def without_code(page: str) -> str:
    """A page without code blocks, code in a line, and the targets of links."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`\n]*`", "…", re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)))


def test_the_texts_of_the_nodes():
    texts = node_texts()
    assert len(texts) > 200
    assert {text: found for text in texts if (found := faults(text))} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page(page):
    assert faults(without_code(page.read_text(encoding="utf-8"))) == {}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_strings_of_a_module(path):
    assert {text: found for text in strings(path) if (found := faults(text))} == {}


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_docstrings_of_a_module(path):
    assert {text: found for text in docstrings(path) if (found := faults(without_code(text)))} == {}


def notes(graph: Any) -> Iterator[str]:
    """What a saved graph says: titles, notes, and descriptions of subgraphs."""
    for key, value in graph.items() if isinstance(graph, dict) else enumerate(graph):
        if isinstance(value, (dict, list)):
            yield from notes(value)
        elif isinstance(value, str) and key in ("title", "name", "label", "description"):
            yield value
    if isinstance(graph, dict) and graph.get("type") in ("Note", "MarkdownNote"):
        yield from (text for text in graph["widgets_values"] if isinstance(text, str))


@pytest.mark.parametrize("path", GRAPHS, ids=lambda path: path.name)
def test_the_notes_of_a_graph(path):
    texts = list(notes(json.loads(path.read_text(encoding="utf-8"))))
    assert len(texts) > 5 and {text: found for text in texts if (found := faults(without_code(text)))} == {}
    assert not [text for text in texts if "@" in text], "a place that was to be filled in"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_strings_of_a_script(path):
    texts = re.findall(
        r"\"([^\"\n]* [^\"\n]*)\"|`([^`]* [^`]*)`",
        re.sub(r"^\s*(//|\*|/\*).*$", "", path.read_text(encoding="utf-8"), flags=re.M),
    )
    assert {text: found for pair in texts for text in pair if (found := faults(text))} == {}


@pytest.mark.parametrize(
    "sentence",
    [
        "it rests there rather than guess",
        "boxes cannot be placed in them, and the node rests",
        "another pack has turned 4 rows into 6 in a way that cannot be followed",
        "text 768 wide",
        "an encoder 1280 wide inside and 1024 at its output",
        "it has no place for 'x', which it has not",
        "for as long as the question takes",
        "which does no harm",
        "0 switches the node off",
        "LoRAs and other patches welcome",
        "the prompt has more say",
        "each subject owned a part of the picture",
        "as it stands in the prompt",
        "five that were not right, which are mended",
        "everybody everywhere at full strength",
        "before you expect wonders",
        "Notes which part it owns. It changes no pixel",
        "a small model of our own",
        "the adapter brings weights of the model",
        "where its name is looked at most",
        "whoever uses it is told",
        "goes in a straight line to second_end",
    ],
)
def test_the_test_can_fail(sentence):
    assert faults(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "standard terms, and the rest of the run",
        "its own box, of its own",
        "a wide table",
        "16 blocks of size 768",
        "Understanding outstanding issues",
        "bypass or disable the node",
    ],
)
def test_plain_words_pass(sentence):
    assert not faults(sentence)


def test_strings_are_found(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""It rests."""\ndef f(x):\n    """It owns."""\n    return f"the {x} stands here" + "it is " "told" + "one"\n',
        encoding="utf-8",
    )
    assert strings(module) == ["the … stands here", "it is told"]
    assert docstrings(module) == ["It rests.", "It owns."]
