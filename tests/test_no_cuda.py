"""Nothing in the pack is for CUDA alone: the host says where tensors live, and the pack takes what it is given."""

from __future__ import annotations

import ast

import pytest
from troupe_tools.pack import ROOT

MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for room in ("nodes", "model_patches", "training", "evaluation")
    for path in (ROOT / room).rglob("*.py")
)
BACKENDS = {"cuda", "cudnn", "mps", "xpu", "npu", "hip"}  # parts of torch that are there on some machines only
METHODS = {"cuda", "xpu", "npu", "pin_memory"}  # of tensors and modules
PACKAGES = {"triton", "xformers", "flash_attn", "sageattention", "bitsandbytes"}
ALLOWED: dict[str, set[str]] = {  # module -> what it may say, since a guard stands before it
    "training/attention.py": {"torch.backends.cuda"},  # the name of a switch that also acts on a CPU, its only use
}


def findings(source: str) -> set[str]:
    """Expressions in a module that only some devices can answer. Docstrings and comments do not count."""
    tree = ast.parse(source)
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (
            node.attr in METHODS or node.attr in BACKENDS and ast.unparse(node.value) in ("torch", "torch.backends")
        ):
            found.add(ast.unparse(node))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in told
            and "cuda" in node.value.lower()
        ):
            found.add(repr(node.value))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found |= {
                name
                for name in names
                if name.split(".")[0] in PACKAGES
                or name.startswith(("torch.cuda", "torch.backends", "torch.xpu", "torch.mps"))
            }
            found |= {
                f"torch.{alias.name}"
                for alias in node.names
                if getattr(node, "module", None) == "torch" and alias.name in BACKENDS
            }
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_for_one_kind_of_device(module):
    assert findings((ROOT / module).read_text(encoding="utf-8")) == ALLOWED.get(module, set())


def test_what_is_allowed_is_there():
    assert set(ALLOWED) <= set(MODULES) and len(MODULES) > 80


@pytest.mark.parametrize(
    "line, found",
    [
        ("import torch\ntorch.cuda.synchronize()", "torch.cuda"),
        ("x.cuda()", "x.cuda"),
        ("x.to('cuda')", "'cuda'"),
        ("x.to('CUDA:0')", "'CUDA:0'"),
        ("f'{kind}cuda'", "'cuda'"),
        ("torch.backends.cudnn.benchmark = True", "torch.backends.cudnn"),
        ("torch.backends.mps.is_available()", "torch.backends.mps"),
        ("from torch import cuda", "torch.cuda"),
        ("from torch.cuda import amp", "torch.cuda"),
        ("import torch.cuda.amp as amp", "torch.cuda.amp"),
        ("import triton.language as tl", "triton.language"),
        ("x.pin_memory()", "x.pin_memory"),
    ],
)
def test_the_search_finds(line, found):
    assert found in findings(line)


@pytest.mark.parametrize(
    "line", ['"""Works on cuda."""', "x.to(y.device)", "def f():\n    'cuda'", "# cuda", "device.type != 'cpu'"]
)
def test_the_search_lets_pass(line):
    assert not findings(line)
