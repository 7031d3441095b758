"""The files that the Comfy registry ships: git's, minus those of .comfyignore."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from troupe_tools.pack import ROOT

GIT = shutil.which("git")
pytestmark = pytest.mark.skipif(GIT is None or not (ROOT / ".git").exists(), reason="no git checkout")
PAGES = ["README.md", *sorted(f"web/docs/{path.name}" for path in (ROOT / "web" / "docs").glob("*.md"))]


def listed(*options: str) -> set[str]:
    command = [GIT, "-c", "core.quotePath=false", "ls-files", "-z", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return {name for name in done.stdout.decode("utf-8").split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    return listed()


@pytest.fixture(scope="module")
def published(tracked) -> set[str]:
    return tracked - listed("-ci", "--exclude-from=.comfyignore")


def under(names: set[str], *folders: str) -> set[str]:
    return {name for name in names if name.startswith(tuple(f"{folder}/" for folder in folders))}


def test_everything_that_a_user_needs_is_shipped(tracked, published):
    tools = [f"tools/troupe_tools/{theme}" for theme in ("commands", "engine", "workflow")]
    pack = ["nodes", "model_patches", "rehearsal", "training", "evaluation", "web", "locales"]
    folders = [*pack, "workflows", "subgraphs", "samples", *tools]
    needed = under(tracked, *folders) - under(tracked, "rehearsal/training")
    needed |= {
        "__init__.py",
        "pyproject.toml",
        "requirements.txt",
        "tools/run.py",
        "tools/check.py",
        "tools/evaluate.py",
    }
    needed |= {"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md"}
    assert len(needed) > 150 and needed - published == set()
    assert len(under(published, "rehearsal/files")) >= 7


def test_what_only_developers_use_is_not_shipped(tracked, published):
    assert under(published, "tests", ".github", ".ci", "tools/troupe_tools/dev", "rehearsal/training") == set()
    assert {name for name in under(published, "benchmarks") if not name.endswith(".md")} == set()
    assert {name for name in published if name.startswith(".")} == set()
    assert len(under(tracked, "tests")) > 100  # that is, they are known to git


@pytest.mark.slow
def test_no_shipped_module_imports_one_that_is_not(published):
    """Relative imports, and those of the packages `troupe` and `troupe_tools`."""
    from support.module_imports import imports

    for name in sorted(name for name in published if name.endswith(".py")):
        source = (ROOT / name).read_text(encoding="utf-8")
        inside = {path for path in imports(ROOT / name)[1]}
        inside |= {found.replace(".", "/") for found in re.findall(r"\bfrom troupe\.([\w.]+) import", source)}
        tools = re.findall(r"\bfrom (troupe_tools[\w.]*) import", source)
        inside |= {f"tools/{found.replace('.', '/')}" for found in tools}
        files = {path: {f"{path}.py", f"{path}/__init__.py"} for path in inside}
        missing = {path for path, either in files.items() if not either & published and not under(published, path)}
        assert missing == set(), name


def modules_of(name: str) -> set[str]:
    """Modules that a file imports as paths without suffix: by relative imports, or from `troupe` and `troupe_tools`."""
    from support.module_imports import imports

    source = (ROOT / name).read_text(encoding="utf-8")
    return imports(ROOT / name)[1] | {
        f"{folder}{module.replace('.', '/')}{end}"
        for package, folder in (("troupe", ""), ("troupe_tools", "tools/troupe_tools/"))
        for module, names in re.findall(rf"\bfrom {package}\.([\w.]+) import ([\w ,]+)", source)
        for end in ("", *(f"/{inner.strip()}" for inner in names.split(",")))
    }


@pytest.mark.slow
def test_every_shipped_module_is_used_by_a_shipped_one(published):
    """What only tests, benchmarks or the training of the rehearsal models import lies with them."""
    modules = {name for name in published if name.endswith(".py") and not name.endswith("__init__.py")}
    used = {module for name in published if name.endswith(".py") for module in modules_of(name)}
    commands = {name for name in modules if Path(name).parent == Path("tools")}  # called by users
    assert {name for name in modules - commands if name.removesuffix(".py") not in used} == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_shipped_pages_are_shipped(page, published):
    path = ROOT / page
    for link in re.findall(r"\]\((?!https://|#)([^)\s#]+)", path.read_text(encoding="utf-8")):
        target = (path.parent / link).resolve().relative_to(ROOT).as_posix()
        assert target in published or under(published, target), link


def test_comfy_cli_reads_the_file_as_git_does(tracked, published):
    """comfy-cli matches with pathspec."""
    pathspec = pytest.importorskip("pathspec")
    lines = [line.strip() for line in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()]
    patterns = [line for line in lines if line and not line.startswith("#")]
    ignored = pathspec.PathSpec.from_lines("gitwildmatch", patterns)
    assert {name for name in tracked if not ignored.match_file(name)} == published


@pytest.fixture(scope="module")
def copy(published, tmp_path_factory) -> Path:
    """The published set, in a folder of its own."""
    place = tmp_path_factory.mktemp("published")
    for name in published:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    return place


@pytest.mark.slow
def test_the_published_pack_and_its_tools_can_be_imported(copy):
    """Without a host: the pack, and every module below the hosts and of the embedded engine."""
    script = f"""
import importlib, pathlib, sys
root = pathlib.Path({str(copy)!r})
sys.path.insert(0, str(root / "tools"))
from troupe_tools.pack import ROOT, hide_broken_torchaudio, load_pack
assert ROOT == root.resolve(), ROOT
hide_broken_torchaudio()
pack = load_pack()
assert pack.comfy_entrypoint and (root / pack.WEB_DIRECTORY).is_dir()
count = 0
for path in sorted([*(root / "model_patches").rglob("*.py"), *(root / "rehearsal").rglob("*.py")]):
    name = "troupe." + ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    if ".hosts.comfyui" not in name:
        importlib.import_module(name)
        count += 1
for path in sorted((root / "tools" / "troupe_tools").rglob("*.py")):
    if "helper_pack" not in path.parts:
        name = ".".join(path.relative_to(root / "tools").with_suffix("").parts).removesuffix(".__init__")
        importlib.import_module(name)
        count += 1
assert count > 100, count
here = pathlib.Path({str(ROOT)!r})
files = [pathlib.Path(getattr(module, "__file__", None) or "/") for module in sys.modules.values()]
own = [file for file in files if file.is_relative_to(here) and not file.is_relative_to(sys.prefix)]
assert not own, own
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=copy, timeout=300)
