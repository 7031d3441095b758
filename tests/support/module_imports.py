"""What a module of the pack imports, read from its source."""

from __future__ import annotations

import ast
from pathlib import Path

from troupe_tools.dev.structure import imported
from troupe_tools.pack import ROOT


def imports(path: Path) -> tuple[set[str], set[str]]:
    """(top-level packages that a file imports from outside, modules of the pack that it imports as paths without
    suffix).
    """
    outside, source = set(), path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add((node.module or "").split(".")[0])
    return outside, imported(path.relative_to(ROOT).as_posix(), source, _is_module)


def _is_module(path: str) -> bool:
    place = ROOT / path
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
