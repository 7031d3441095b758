"""No code of the pack is there for tests alone: parameters with a default are given by some call of the pack."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from troupe_tools.pack import ROOT

CALLERS = ("nodes", "model_patches", "training", "evaluation", "rehearsal", "tools", "benchmarks")
HELD = ("model_patches", "training")
HOST_GIVES = {"disable_dynamic"}  # ComfyUI to the function that makes a patcher again
EVERY = 1000  # arguments of a call whose number is not known


class Given(NamedTuple):
    """What a call gives: how many arguments by their order, and which names. A None in them is `**`."""

    count: int
    names: frozenset[str | None]


def given_in(tree: ast.AST) -> Iterator[tuple[str, Given]]:
    """Yield (name of the function, what it gets) of every call, and of every `partial`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            names = frozenset(keyword.arg for keyword in node.keywords)
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            yield name_of(node.func), Given(EVERY if starred else len(node.args), names)
            if name_of(node.func) == "partial":
                yield name_of(node.args[0]), Given(EVERY, names)


def name_of(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def optional(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[int, str]]:
    """Yield (number, name) of the parameters with a default; EVERY is the number of those that have only a name."""
    ordered, count = [*function.args.posonlyargs, *function.args.args], len(function.args.defaults)
    yield from ((i, one.arg) for i, one in enumerate(ordered) if i >= len(ordered) - count)
    for one, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if default is not None:
            yield EVERY, one.arg


def never_given(module: ast.Module, calls: dict[str, set[Given]]) -> list[str]:
    """Optional parameters of a module's functions that no call of a function of that name gives."""
    return [
        f"{function.name}({name})"
        for function in module.body
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for i, name in optional(function)
        if name not in HOST_GIVES
        and not any(call.count > i or {name, None} & call.names for call in calls.get(function.name, ()))
    ]


def collected(trees: list[ast.Module]) -> dict[str, set[Given]]:
    calls: dict[str, set[Given]] = {}
    for tree in trees:
        for name, given in given_in(tree):
            calls.setdefault(name, set()).add(given)
    return calls


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    paths = [path for folder in CALLERS for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


@pytest.mark.slow
def test_every_optional_parameter_is_given_somewhere_in_the_pack(trees):
    calls = collected(list(trees.values()))
    found = {name: never_given(tree, calls) for name, tree in trees.items() if name.startswith(HELD)}
    assert len(found) > 200 and {name: parameters for name, parameters in found.items() if parameters} == {}


@pytest.mark.parametrize(
    ("call", "missing"),
    [
        ("f(1)", ["f(b)", "f(c)"]),
        ("f(1, 2)", ["f(c)"]),
        ("f(1, c=3)", ["f(b)"]),
        ("f(*x, c=3)", []),
        ("f(1, **x)", []),
        ("partial(f, 1, c=2)", []),
        ("g(1, 2, 3)", ["f(b)", "f(c)"]),
    ],
)
def test_what_nobody_gives_is_found(call, missing):
    module = ast.parse(f"def f(a, b=1, *, c=2): pass\n{call}")
    assert never_given(module, collected([module])) == missing
