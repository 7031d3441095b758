"""The structure of the pack in numbers, for a git revision or the working tree."""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence

from ..errors import RunError
from ..pack import ROOT

FOLDERS = ("nodes", "model_patches", "training", "evaluation", "rehearsal")
COLUMNS = 120


def imported(path: str, source: str, is_module: Callable[[str], bool]) -> set[str]:
    """Return the modules that one imports relatively, as paths without suffix, such as 'model_patches/errors'.

    Arguments:
        path: of the importing file, from the root, with forward slashes.
        is_module: whether a path without suffix is a module or package.
    Raises:
        RunError: an import reaches out of the root.
    """
    package, found = path.split("/")[:-1], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level > len(package) + 1:
                raise RunError(f"Expected imports from below the root in {path}, found {ast.unparse(node)}.")
            base = [*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ())]
            names = {"/".join([*base, alias.name]) for alias in node.names}
            found |= {name for name in names if is_module(name)} or {"/".join(base)}
    return found


def sources(folders: Sequence[str] = FOLDERS, revision: str | None = None) -> dict[str, str]:
    """Read the modules of some folders: their text by path from the root, of the working tree or of a git revision.

    Raises RunError if git does not know the revision, or the folders have no modules.
    """
    if revision is None:
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
        found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    else:
        found = _of_revision(folders, revision)
    if not found:
        raise RunError(f"Expected modules in {', '.join(folders)}, found none. Choose from {', '.join(FOLDERS)}.")
    return found


def _of_revision(folders: Sequence[str], revision: str) -> dict[str, str]:
    command = ["git", "archive", "--format=tar", revision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)  # noqa: S603 - git, with a developer's own words
    if done.returncode:
        raise RunError(f"Expected a git revision, found '{revision}': {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        inside = tuple(f"{folder}/" for folder in folders)
        members = [member for member in archive if member.name.startswith(inside) and member.name.endswith(".py")]
        return {member.name: file.read().decode("utf-8") for member in members if (file := archive.extractfile(member))}


def count(files: Mapping[str, str]) -> dict[str, str]:
    """Count what the modules of `sources` are like: what is counted, and its number or name."""
    modules = {path.removesuffix(".py").removesuffix("/__init__"): path for path in files}
    arrows = {
        name: {module for module in imported(path, files[path], modules.__contains__) if module in modules} - {name}
        for name, path in modules.items()
    }
    folders = {path.rpartition("/")[0] for path in files}
    crowded = {folder.rpartition("/")[0] for folder in folders}  # with a folder of modules inside

    def room(name: str) -> str:
        folder = name.rpartition("/")[0]
        return name if name in folders or folder in crowded else folder

    between = {(room(a), room(b)) for a in modules for b in arrows[a]}
    between = {(a, b) for a, b in between if a != b}
    lengths = {path: len(text.splitlines()) for path, text in files.items()}
    longest = max(lengths, key=lambda path: lengths[path])
    return {
        "modules": str(len(modules)),
        "rooms": str(len({room(name) for name in modules})),
        "arrows between rooms": str(len(between)),
        "mutual pairs of rooms": str(sum((b, a) in between for a, b in between) // 2),
        "import circles of modules": str(len(_circles(arrows))),
        f"lines over {COLUMNS} columns": str(
            sum(len(line) > COLUMNS for text in files.values() for line in text.splitlines())
        ),
        "longest module": f"{lengths[longest]} ({longest})",
    }


def _circles(arrows: Mapping[str, set[str]]) -> set[frozenset[str]]:
    """The largest sets of modules that all import each other, over whatever others."""
    reached: dict[str, set[str]] = {}
    for module in arrows:
        reached[module], todo = set(), [module]
        while todo:
            new = arrows[todo.pop()] - reached[module]
            reached[module] |= new
            todo += new
    return {frozenset(b for b in reached[a] if a in reached[b]) for a in arrows if a in reached[a]}


def main(arguments: list[str] | None = None) -> int:
    """Print the table of the named revisions, or of the working tree, and return the exit status."""
    parser = argparse.ArgumentParser(prog="structure.py", description="Print the structure of the pack in numbers.")
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="of git; without one, the working tree")
    parser.add_argument("--folders", nargs="+", default=FOLDERS, metavar="FOLDER", help=" ".join(FOLDERS))
    options = parser.parse_args(arguments)
    revisions = options.revisions
    try:
        tables = [count(sources(options.folders, revision)) for revision in revisions or [None]]
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    rows = [["", *(revisions or ["working tree"])], *([name, *(t[name] for t in tables)] for name in tables[0])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
