"""The pack as a thing to install: its metadata, and which room may import which."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest
import troupe
from support.module_imports import imports
from troupe_tools.pack import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings tomli there
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACK = sorted(
    [
        ROOT / "__init__.py",
        *(
            path
            for room in ("nodes", "model_patches", "training", "rehearsal", "evaluation")
            for path in (ROOT / room).rglob("*.py")
        ),
    ]
)
MODULES = {path.relative_to(ROOT).as_posix(): path for path in PACK}
COMES_WITH_COMFYUI = {"torch", "torchvision", "numpy", "einops", "safetensors", "transformers", "PIL"}
HOST_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "comfy_config",
    "folder_paths",
    "server",
    "nodes",
    "execution",
    "app",
    "utils",
    "node_helpers",
}

STDLIB = {*sys.stdlib_module_names, "tomllib"}  # of the newest Python: 3.10 has tomli in its place
# room -> rooms it may import; a room is the longest of these paths that a module lies under
MATHS = {"model_patches/errors", "model_patches/attention", "model_patches/encoders"}
VALUES = {
    *("model_patches/errors", "model_patches/bases", "model_patches/subjects"),
    *("model_patches/adapter", "model_patches/base_mismatch"),
}
ROOMS = {
    **{f"{package}/__init__": set() for package in ("model_patches", "model_patches/hosts")},
    "model_patches/errors": set(),
    "model_patches/bases": set(),
    "model_patches/subjects": {"model_patches/errors", "model_patches/adapter"},  # of the adapter only types
    "model_patches/attention": {"model_patches/errors"},
    "model_patches/encoders": {"model_patches/errors", "model_patches/attention"},
    "model_patches/checkpoints": {"model_patches/errors", "model_patches/encoders"},
    "model_patches/adapter": {"model_patches/bases", "model_patches/encoders", "model_patches/checkpoints"},
    "model_patches/base_mismatch": {
        *("model_patches/errors", "model_patches/bases", "model_patches/adapter", "model_patches/checkpoints"),
    },
    "model_patches/placement": {"model_patches/errors", "model_patches/bases", "model_patches/subjects"},
    "model_patches/relevance": {"model_patches/subjects", "model_patches/attention", "model_patches/placement"},
    "model_patches/prompt": VALUES,
    "model_patches/encoding": {*VALUES, "model_patches/encoders", "model_patches/checkpoints", "model_patches/prompt"},
    "model_patches/families": {
        *VALUES,
        "model_patches/encoders",
        "model_patches/checkpoints",
        "model_patches/encoding",
    },
    "model_patches/binding": {*VALUES, *MATHS},
    "model_patches/scores": {
        *VALUES,
        "model_patches/encoding",
        "model_patches/placement",
        "model_patches/relevance",
    },
}
BELOW_THE_HOSTS = set(ROOMS)
COMFYUI = "model_patches/hosts/comfyui"
ROOMS |= {
    "rehearsal": {"model_patches/errors", "model_patches/checkpoints"},
    f"{COMFYUI}/messages": set(),
    f"{COMFYUI}/loading": BELOW_THE_HOSTS | {"rehearsal"},
    f"{COMFYUI}/sampling": BELOW_THE_HOSTS | {f"{COMFYUI}/messages", f"{COMFYUI}/loading"},
    f"{COMFYUI}/prompting": BELOW_THE_HOSTS | {f"{COMFYUI}/messages", f"{COMFYUI}/loading", f"{COMFYUI}/sampling"},
    COMFYUI: BELOW_THE_HOSTS
    | {f"{COMFYUI}/messages", f"{COMFYUI}/loading", f"{COMFYUI}/sampling", f"{COMFYUI}/prompting"},
    "model_patches/hosts/diffusers": BELOW_THE_HOSTS,
    "rehearsal/engine": BELOW_THE_HOSTS | {"model_patches/hosts/diffusers", "rehearsal"},
    "training/__init__": set(),
    "training/losses": {"model_patches/attention"},
    "training/data": {"model_patches/errors", "model_patches/subjects"},
    "training/config": {"model_patches/errors"},
    "training/examples": {"model_patches/subjects", "model_patches/encoding", "training/data", "rehearsal"},
    "training/model": BELOW_THE_HOSTS
    | {"model_patches/hosts/diffusers", "training/examples", "rehearsal", "rehearsal/engine"},
    "rehearsal/training": BELOW_THE_HOSTS
    | {"model_patches/hosts/diffusers", "training/losses", "rehearsal", "rehearsal/engine"},
}
ROOMS["training/recipes"] = ROOMS["training/model"] | {"training/config", "training/model", "training/losses"}
ROOMS["training"] = {room for room in ROOMS if room.startswith("training/")} | {
    "model_patches/errors",
    "model_patches/subjects",
    "model_patches/adapter",
    "model_patches/encoding",
    "model_patches/binding",
    "model_patches/hosts/diffusers",
}
EVALUATION = BELOW_THE_HOSTS | {
    "model_patches/hosts/diffusers",
    "rehearsal",
    "rehearsal/engine",
    "training/config",  # tables of settings
    "training/data",  # pictures on disk, and models that annotate them
    "evaluation/tasks",
}
ROOMS |= {
    "evaluation/__init__": set(),
    "evaluation/tasks": set(),
    "evaluation/engines": EVALUATION,
    "evaluation/suites": EVALUATION,
    "evaluation/scores": EVALUATION | {"evaluation/suites"},
}
RAY = "evaluation/engines/ray_tasks"
ROOMS[RAY] = {"model_patches/errors", "evaluation/tasks", "evaluation/engines"}
ROOMS["evaluation"] = EVALUATION | {room for room in ROOMS if room.startswith("evaluation/")}
ROOMS |= {
    "nodes": {
        room
        for room in ROOMS
        if not room.startswith(("model_patches/hosts/diffusers", "training", "evaluation", "rehearsal/"))
    },
    "__init__": {"nodes", *(room for room in ROOMS if room.startswith(COMFYUI))},
}
OUTSIDE = {  # room -> packages it may import beside the standard library; the other rooms: COMES_WITH_COMFYUI
    "model_patches/attention": {
        "torch",
        "einops",
        "jaxtyping",
    },  # jaxtyping for type checkers only
    "model_patches/encoders": {"torch", "einops"},
    "model_patches/scores": {"torch"},
    "training/losses": {"torch"},
    "training/config": {"tomli"},
    "training/model": COMES_WITH_COMFYUI | {"diffusers"},
    "training/recipes": {"torch", "diffusers"},
    "training/data": COMES_WITH_COMFYUI | {"inflect", "pycocotools", "datasets"},  # only where they are used
    "training": {"torch", "PIL", "numpy", "safetensors", "diffusers", "accelerate", "tqdm"},
    "evaluation/tasks": set(),
    "evaluation": COMES_WITH_COMFYUI | {"filelock"},
    "evaluation/engines": COMES_WITH_COMFYUI | {"httpx"},
    RAY: {"numpy", "ray", "troupe_tools", "troupe"},  # the last two in the actor, which begins with no package
    **{room: COMES_WITH_COMFYUI | HOST_MODULES for room in ROOMS if room.startswith(COMFYUI)},
    "model_patches/hosts/diffusers": COMES_WITH_COMFYUI | {"diffusers", "open_clip", "accelerate"},
    "rehearsal/engine": COMES_WITH_COMFYUI | {"diffusers", "skimage"},
    "rehearsal/training": COMES_WITH_COMFYUI | {"diffusers", "skimage", "open_clip"},  # the last for its tokenizer
    "nodes": COMES_WITH_COMFYUI | HOST_MODULES,
}
TOOLS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tools").rglob("*.py"))
PACKAGE = "tools/troupe_tools"
BASE = {f"{PACKAGE}/errors", f"{PACKAGE}/pack"}
THEMES = {  # theme of the tools -> themes that it may import
    **{module: set() for module in (f"{PACKAGE}/__init__", *BASE)},
    f"{PACKAGE}/workflow": BASE,
    f"{PACKAGE}/engine": BASE | {f"{PACKAGE}/workflow"},
    f"{PACKAGE}/commands": BASE | {f"{PACKAGE}/workflow", f"{PACKAGE}/engine"},
    f"{PACKAGE}/dev": BASE | {f"{PACKAGE}/workflow", f"{PACKAGE}/engine"},
}

INTERFACES = {  # names that several modules of model_patches define, each for its own family or host
    *("LABELS", "matches", "load", "encode", "companions", "build"),  # a family
    *("KIND", "FORMAT", "FUSION", "MEMBERS"),  # what a family's files are called and hold
    *("recognised", "is_bundle", "member_of", "read_members"),
    *("load_adapter", "encode_references", "encode_prompt", "apply_gated"),  # a host
    *("ImageAttention", "GatedAdapter", "LayerDelta"),
}
# The evaluation, which ComfyUI never imports, asks servers that its user names. Nothing else of the pack talks.
TALKS = {"evaluation/engines/comfyui.py": {"httpx"}}
TEXT_NAME = re.compile(r"`([a-z_]+)\.([A-Z]\w*[a-z]\w*)`")


def room_of(module: str, rooms: Mapping[str, set[str]] = ROOMS) -> str:
    """The room of a module path without suffix, such as 'model_patches/attention/relevance'."""
    return max((room for room in rooms if module == room or module.startswith(f"{room}/")), key=len)


# ---- metadata --------------------------------------------------------------------------------------------------------


def test_the_registry_takes_the_name_and_version():
    name = PROJECT["name"]
    assert re.fullmatch(r"[A-Za-z](?:[A-Za-z0-9]|[-_.](?![-_.]))*", name) and len(name) < 100
    assert "comfyui" not in name.lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])


def test_the_registry_finds_what_it_asks_for():
    assert PROJECT["urls"]["Repository"].startswith("https://github.com/")
    assert PROJECT["license"] == {"file": "LICENSE"} and "GNU GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text()
    comfy = PYPROJECT["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] == "Troupe"
    assert comfy["requires-comfyui"] == ">=0.3.64"
    assert PROJECT["requires-python"] == ">=3.10"


def test_requirements_are_in_step():
    listed = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert [line for line in listed if line] == PROJECT["dependencies"]


def test_no_version_of_what_the_host_brings_is_pinned():
    every = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    assert not [line for line in every if re.search(r"[=<>~!]", line)]


def test_the_test_extra_holds_the_run_extra():
    extras = PROJECT["optional-dependencies"]
    assert f"{PROJECT['name']}[run]" in extras["test"]
    assert {"torch", "torchvision", "diffusers", "transformers", "scikit-image"} <= set(extras["run"])
    assert {"pytest", "pytest-xdist", "ruff", "hypothesis"} <= set(extras["test"])


def test_installing_puts_no_package_of_the_pack_on_the_path():
    """An importable `nodes` would hide the host's nodes.py from the whole environment."""
    assert PYPROJECT["tool"]["setuptools"] == {"packages": [], "py-modules": []}


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased" and headings[1] == PROJECT["version"]


def test_ci_runs_the_command_of_the_readme():
    command = 'pip install -e ".[test]" && python -m pytest -n logical --maxprocesses 4'
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith(f"\n{command}")
    assert f"\n{command}\n" in (ROOT / "README.md").read_text()


DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image", "open_clip": "open_clip_torch", "comfy_cli": "comfy-cli"}


@pytest.mark.parametrize(
    "module", [*TOOLS, *(name for name in MODULES if name.startswith("model_patches/hosts/diffusers"))]
)
def test_the_run_extra_brings_what_the_embedded_engine_and_the_tools_import(module):
    outside, _ = imports(ROOT / module)
    ours = {"troupe", "troupe_tools"}
    # only where a ComfyUI is, which brings them; screenshots.py asks for playwright
    optional = {"yaml", "torchaudio", "playwright", "comfyui_version"} | HOST_MODULES
    needed = {DISTRIBUTIONS.get(name, name) for name in outside - STDLIB - ours - optional}
    assert needed <= set(PROJECT["optional-dependencies"]["run"])


# ---- who imports whom ------------------------------------------------------------------------------------------------


def test_the_drawn_rooms_are_in_the_order_of_their_imports():
    """The drawing of docs/architecture.md, read line by line from left to right."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    words = [line.split() for line in page.split("```text")[1].split("```")[0].split("\n")]
    drawn = [
        f"model_patches/{name.rstrip('/')}"
        for line in words
        for name in takewhile(lambda word: f"model_patches/{word.rstrip('/')}" in ROOMS, line)
    ]
    below = [room for room in drawn if not room.startswith("model_patches/hosts/")]
    assert sorted(below) == sorted(room for room in BELOW_THE_HOSTS if not room.endswith("__init__"))
    assert [(a, b) for i, a in enumerate(drawn) for b in drawn[:i] if b in ROOMS[a]] == []


def test_rooms_are_a_staircase():
    """No room may import one that may import it, over whatever other rooms."""
    list(TopologicalSorter({**ROOMS, **THEMES}).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    """nodes -> hosts -> the other rooms -> torch, never back up."""
    room = room_of(module.removesuffix(".py"))
    outside, inside = imports(MODULES[module])
    # not comfyui_version: what differs between hosts is asked of them by feature
    allowed = OUTSIDE.get(room, COMES_WITH_COMFYUI) | STDLIB
    assert outside <= allowed, f"{module} ({room}) may not import {sorted(outside - allowed)}"
    wrong = {path for path in inside if (place := room_of(path)) != room and place not in ROOMS[room]}
    assert not wrong, f"{module} ({room}) may not import {sorted(wrong)}"


@pytest.mark.parametrize("module", [name for name in TOOLS if name.startswith(f"{PACKAGE}/")])
def test_themes_of_the_tools_go_one_way(module):
    """commands, dev -> engine -> workflow, never back up."""
    theme = room_of(module.removesuffix(".py"), THEMES)
    outside, inside = imports(ROOT / module)
    wrong = {path for path in inside if (place := room_of(path, THEMES)) != theme and place not in THEMES[theme]}
    assert not wrong, f"{module} ({theme}) may not import {sorted(wrong)}"
    assert "troupe_tools" not in outside or "helper_pack" in module, (
        f"{module} may import its own package by relative paths only"
    )


@pytest.mark.slow
def test_modules_of_the_pack_do_not_import_each_other_in_a_circle():
    """Functions included, and names for type checkers too: an import that is put off is no way out."""
    graph = {module.removesuffix(".py").removesuffix("/__init__"): imports(MODULES[module])[1] for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def test_a_family_imports_no_other_family():
    """What two of them need is in `checkpoints`, `encoders` or `encoding`; only the registry knows all."""
    folder = "model_patches/families/"
    shared = {"registry", "family", "encode"}
    for module in (name for name in MODULES if name.startswith(folder)):
        own = module.removeprefix(folder).removesuffix(".py").split("/")[0]
        inner = {path.removeprefix(folder).split("/")[0] for path in imports(MODULES[module])[1] if folder in path}
        assert own in shared or inner <= {own, "family"}, module


@pytest.mark.slow
def test_modules_of_the_tools_do_not_import_each_other_in_a_circle():
    """Functions included: an import inside one is no way out."""
    inner = [module for module in TOOLS if module.startswith(f"{PACKAGE}/")]
    graph = {module.removesuffix(".py"): imports(ROOT / module)[1] for module in inner}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("module", [name for name in TOOLS if not name.startswith(f"{PACKAGE}/")])
def test_a_command_only_calls_the_package(module):
    tree = ast.parse((ROOT / module).read_text())
    called = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert called in ([f"troupe_tools.{top}.{Path(module).stem}"] for top in ("commands", "dev"))
    assert imports(ROOT / module)[0] <= {"sys", "troupe_tools"}


@pytest.mark.slow
def test_no_tool_is_imported_under_a_bare_name():
    """One package is all that tools/ adds to what can be imported: `graph`, `report` or `job` may be anybody's."""
    bare = {Path(module).stem for module in TOOLS} - {"__init__"}
    paths = [path for folder in ("tools", "tests", "benchmarks", "rehearsal") for path in (ROOT / folder).rglob("*.py")]
    assert {str(path): found for path in paths if (found := imports(path)[0] & bare)} == {}


@pytest.mark.slow
def test_only_few_tests_import_another_test():
    """What several use is in `support`, under a name that says what it is."""
    importing = {
        path.name
        for path in (ROOT / "tests").rglob("test_*.py")
        if any(name.startswith("test_") for name in imports(path)[0])
    }
    assert importing == {"test_entrance.py", "test_replaced_files.py"}  # the table of rooms, and fixtures


@pytest.mark.slow
def test_what_tests_share_imports_no_test():
    for path in (ROOT / "tests" / "support").rglob("*.py"):
        assert not [name for name in imports(path)[0] if name.startswith("test_")], path


@pytest.mark.slow
def test_commands_leave_no_bare_name_of_the_tools_behind():
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
from troupe_tools.commands import check, run
from troupe_tools.engine import embedded_models, on_comfyui, rehearsing
files = {{name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}}
ours = {{name for name, file in files.items() if file.startswith({str(ROOT / "tools")!r})}}
assert len(ours) > 20 and all(name.split(".")[0] == "troupe_tools" for name in ours), ours
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT / "tests")


@pytest.mark.slow
def test_classes_that_texts_name_are_where_they_say():
    """`module.Class` in a docstring or comment, for modules of the pack."""
    own = {}
    for path in MODULES.values():
        tree = ast.parse(path.read_text())
        classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        aliases = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        own.setdefault(path.stem, set()).update(classes | aliases)
    named = [(path, *found) for path in MODULES.values() for found in TEXT_NAME.findall(path.read_text())]
    assert len(named) > 10
    assert [f"{path.name}: {module}.{name}" for path, module, name in named if name not in own.get(module, ())] == []


HOMES = {"troupe": ROOT, "troupe_tools": ROOT / "tools" / "troupe_tools", "support": ROOT / "tests" / "support"}


@cache
def given_by(path: Path) -> set[str]:
    """The names that an import may ask a module or package for."""
    module = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    inner = {one.stem for one in path.iterdir()} if path.is_dir() else set()
    if not module.is_file():
        return inner
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            inner.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            inner |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return inner


@pytest.mark.slow
def test_what_tests_import_is_there():
    """Inside of functions too, which run with a host or a browser alone."""
    absent, found = [], 0
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            home, *rest = (getattr(node, "module", None) or "").split(".")
            if isinstance(node, ast.ImportFrom) and not node.level and home in HOMES:
                names = given_by(HOMES[home].joinpath(*rest))
                absent += [f"{path.name}:{node.lineno} {one.name}" for one in node.names if one.name not in names]
                found += len(node.names)
    assert found > 1000 and absent == []


def names_of(module: str) -> Iterator[tuple[str, str]]:
    """(name, its definition) of every constant, function and class at the top of a module."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, ast.dump(node)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                values = getattr(node.value, "elts", ()) if isinstance(target, ast.Tuple) else ()
                if isinstance(target, ast.Tuple) and len(values) == len(target.elts):
                    pairs = zip(target.elts, values, strict=True)
                else:
                    pairs = [(element, node.value) for element in getattr(target, "elts", [target])]
                yield from ((ast.unparse(element), ast.dump(value)) for element, value in pairs)


@pytest.mark.slow
def test_a_name_means_one_thing():
    """No two modules of model_patches give a name at their top to different things, except the interfaces."""
    meanings: dict[str, dict[str, list[str]]] = {}
    for module in (name for name in MODULES if name.startswith("model_patches/")):
        for name, definition in names_of(module):
            meanings.setdefault(name, {}).setdefault(definition, []).append(module)
    double = {name: modules for name, found in meanings.items() if len(modules := [*found.values()]) > 1}
    assert {name: modules for name, modules in double.items() if name not in INTERFACES} == {}
    assert sorted(INTERFACES - double.keys()) == [], "no longer defined twice: take them out of INTERFACES"


RECIPES = {"Options", "build"}  # of every module in training/recipes


@pytest.mark.parametrize("room", ["training", "evaluation"])
def test_a_function_or_class_of_a_room_means_one_thing(room):
    """Constants may differ: most are a module's own."""
    defined: dict[str, list[str]] = {}
    for module in (name for name in MODULES if name.startswith(f"{room}/")):
        for node in ast.parse(MODULES[module].read_text()).body:
            aliased = isinstance(node, ast.Assign) and isinstance(node.value, (ast.Subscript, ast.BinOp))
            names = [ast.unparse(one) for one in node.targets] if aliased else [getattr(node, "name", "_")]
            for name in (name for name in names if not name.startswith("_") and not name.isupper()):
                defined.setdefault(name, []).append(module)
    assert {name: found for name, found in defined.items() if len(found) > 1 and name not in RECIPES} == {}


@pytest.mark.slow
def test_a_class_means_one_thing():
    """Over all rooms, except the interfaces of both hosts and every recipe's `Options`."""
    defined: dict[str, list[str]] = {}
    for module in (*MODULES, *TOOLS):
        for node in ast.parse((ROOT / module).read_text()).body:
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name, []).append(module)
    allowed = INTERFACES | RECIPES
    assert {name: found for name, found in defined.items() if len(found) > 1 and name not in allowed} == {}


@pytest.mark.parametrize("module", [*MODULES, *TOOLS])
def test_a_module_has_one_idea(module):
    assert len((ROOT / module).read_text().splitlines()) <= 400


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_the_registry_refuses(module):
    """No eval, no exec, no subprocess, no download: the pack is what it says."""
    outside, _ = imports(MODULES[module])
    refused = {"subprocess", "urllib", "requests", "socket", "http", "httpx", "aiohttp", "websocket", "websockets"}
    assert not outside & (refused - TALKS.get(module, set()))
    called = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"eval", "exec", "__import__", "print"}


def test_the_pack_is_imported_without_a_host_and_without_torch():
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
from troupe_tools.pack import load_pack
pack = load_pack()
assert pack.comfy_entrypoint and pack.WEB_DIRECTORY
assert not {{"torch", "comfy", "comfy_api", "nodes", "folder_paths"}} & set(sys.modules), "something heavy was imported"
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT / "tests")


@pytest.mark.slow
def test_everything_below_the_hosts_is_imported_without_a_host():
    below = [
        module
        for module in MODULES
        if module.startswith("model_patches/") and not module.startswith("model_patches/hosts/")
    ]
    names = [module.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for module in below]
    assert len(names) > 10
    script = f"""
import importlib, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
for name in {sorted(HOST_MODULES | {"diffusers", "open_clip", "jaxtyping"})!r}:
    sys.modules[name] = None  # importing it raises
from troupe_tools.pack import load_pack
load_pack()
for name in {names!r}:
    importlib.import_module("troupe." + name)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT / "tests")


def test_the_entry_point_is_what_the_host_calls():
    assert inspect.iscoroutinefunction(troupe.comfy_entrypoint)
    assert (ROOT / troupe.WEB_DIRECTORY / "docs").is_dir()


@pytest.mark.slow
def test_the_linter_finds_nothing():
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_the_type_checker_finds_nothing():
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_everything_is_formatted():
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout
