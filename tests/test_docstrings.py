"""Docstrings: what a function does in the imperative, what a class is as a noun phrase."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from troupe_tools.pack import ROOT

FOLDERS = ("nodes", "model_patches", "training", "evaluation", "rehearsal", "tools/troupe_tools", "benchmarks")
MODULES = sorted(path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# the words in use; ruff's D401 lets nouns pass, and takes some verbs for nouns
VERBS = set(
    re.findall(
        r"\w+",
        """
        Add Annotate Append Apply Begin Bind Build Change Check Choose Clone Close Complete Convert Copy Count
        Cut Decide Decode Disable Do Draw Drop Encode End Enlarge Execute Fill Find Flatten Forget Fuse Give Go Join
        Keep Lay Let Limit Link Load Log Make Map Move Note Open Paint Parse Patch Prepare Print Project Put Raise
        Read Record Remove Repeat Replace Resize Return Rewire Rewrite Run Sample Save Say Score See Set Show
        Stack Start Store Take Train Turn Use Warn Wire Write Yield
        """,
    )
)
QUESTIONS = {"What", "How", "Which", "Who", "Whose", "Where", "When", "Whether"}
# methods that ComfyUI calls, which says what they are for
HOST_METHODS = {
    *("define_schema", "execute", "validate_inputs", "fingerprint_inputs", "as_dict", "get_node_list"),
    *("model_type", "inpaint_model"),
}


def public(
    node: ast.AST, name: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """(dotted name, node) of every public class and function in a module or class."""
    for inner in getattr(node, "body", []):
        if isinstance(inner, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not inner.name.startswith("_"):
            yield f"{name}{inner.name}", inner
            if isinstance(inner, ast.ClassDef):
                yield from public(inner, f"{name}{inner.name}.")


def fault(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """What is wrong with a docstring, '' for nothing."""
    text = ast.get_docstring(node)
    marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
    if "overload" in marks:
        return ""
    if text is None:
        return "" if node.name in HOST_METHODS else "no docstring"
    first = text.split()[0].strip(",.;:")
    if isinstance(node, ast.ClassDef):
        named = first[:1].isupper() or first[:1] in "`'[" or first.split("'")[0] == "diffusers"
        asked = first in QUESTIONS or first in {"Return", "Raise"} or first in {f"{verb}s" for verb in VERBS - {"Map"}}
        return "" if named and not asked else f"a class is a noun phrase: {first} ..."
    if marks & {"property", "cached_property"}:
        return f"a property is a noun phrase: {first} ..." if first in {"Return", "Returns", "Get"} else ""
    return "" if first in VERBS else f"a function is an imperative: {first} ..."


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_say_what_it_does_or_is(module):
    found = {name: fault(node) for name, node in public(ast.parse((ROOT / module).read_text(encoding="utf-8")))}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


ROOMS = ("nodes", "model_patches", "training", "evaluation", "rehearsal")
SAME_AS = re.compile(r"as\s+in\s+`(\w+)`")


def classes_of(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def explained(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The words in the docstrings of a class and of its constructor, and of the classes that they refer to."""
    texts = [ast.get_docstring(one) or "" for one in (node, constructor(node)) if one is not None]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    others = {name for text in texts for name in SAME_AS.findall(text)} & classes.keys() - {node.name}
    return words.union(*(explained(classes[name], classes) for name in others))


def constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)


def unexplained(node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> set[str]:
    """Parameters of a class's own constructor that no docstring names."""
    made = constructor(node)
    if made is None or node.name.startswith("_"):
        return set()
    every = (*made.args.posonlyargs, *made.args.args, *made.args.kwonlyargs)
    return {one.arg for one in every[1:]} - explained(node, classes)


@pytest.mark.slow
def test_constructors_explain_their_parameters():
    """Nets above all: which size is which, and what `operations` is."""
    found = {module: classes_of(module) for module in MODULES if module.startswith(ROOMS)}
    every = {name: node for inner in found.values() for name, node in inner.items()}
    wrong = {f"{m}: {name}": unexplained(node, every) for m, inner in found.items() for name, node in inner.items()}
    assert len(wrong) > 200 and {name: missing for name, missing in wrong.items() if missing} == {}


@pytest.mark.parametrize(
    ("text", "missing"),
    [("a: one; b: two.", set()), ("a: one.", {"b"}), ("Arguments as in `Other`.", {"b"}), ("ab.", {"a", "b"})],
)
def test_parameters_that_are_not_explained_are_found(text, missing):
    source = f"class C:\n  '''{text}'''\n  def __init__(self, a, *, b=1): pass\nclass Other:\n  'a: one.'"
    classes = {node.name: node for node in ast.parse(source).body}
    assert unexplained(classes["C"], classes) == missing


def raised(node: ast.AST) -> Iterator[str]:
    """Names of the classes that a function's own statements raise and do not handle."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Raise) and isinstance(inner.exc, ast.Call) and isinstance(inner.exc.func, ast.Name):
            if inner.exc.func.id[0].isupper():
                yield inner.exc.func.id
        elif isinstance(inner, ast.Try) and inner.handlers:
            for part in (*inner.handlers, *inner.orelse, *inner.finalbody):
                yield from raised(part)
        elif not isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            yield from raised(inner)


def unnamed(node: ast.AST) -> set[str]:
    """Errors that a public function raises and its docstring does not name."""
    text = (ast.get_docstring(node) or "") if isinstance(node, ast.FunctionDef) else ""
    return {name for name in raised(node) if name not in text} if text and not text.startswith("See ") else set()


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_name_the_errors(module):
    found = {name: unnamed(node) for name, node in public(ast.parse((ROOT / module).read_text(encoding="utf-8")))}
    assert {name: errors for name, errors in found.items() if errors} == {}


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ("raise ValueError('no')", {"ValueError"}),
        ("if x: raise KeyError(x)", {"KeyError"}),
        ("try: raise ValueError(x)\n  except ValueError: pass", set()),
        ("def inner(): raise ValueError(x)", set()),
        ("raise MyError(x)", set()),
    ],
)
def test_errors_without_a_name_are_found(body, errors):
    function = ast.parse(f'def f(x):\n  """Do it. Raises MyError."""\n  {body}').body[0]
    assert unnamed(function) == errors


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ('def f(): """Return one."""', ""),
        ('def f(): """The one."""', "a function is an imperative: The ..."),
        ("def f(): pass", "no docstring"),
        ('class C: """A thing."""', ""),
        ('class C: """Makes a thing."""', "a class is a noun phrase: Makes ..."),
        ('class C: """What makes a thing."""', "a class is a noun phrase: What ..."),
    ],
)
def test_wrong_docstrings_are_found(source, wrong):
    assert fault(ast.parse(source).body[0]) == wrong
