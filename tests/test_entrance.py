"""Workflows, forms and the guide for contributors on GitHub say what pyproject.toml and the code say."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.windows_imports import absent_on_windows
from troupe_tools.pack import ROOT

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings tomli there
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GITHUB = ROOT / ".github"
PYTHON_ROOMS = ("nodes", "model_patches", "training", "rehearsal", "evaluation", "tools", "tests")
WORKFLOWS = ["tests", "tests_with_comfyui", "publish"]
FORMS = ["bug", "evaluation", "feature", "model_file"]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


on_ubuntu = pytest.mark.skipif(sys.platform == "win32" or not shutil.which("bash"), reason="the job runs on Ubuntu")


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def workflow(name: str) -> dict[Any, Any]:
    """A workflow; its `on` is the key True in YAML 1.1."""
    return read(GITHUB / "workflows" / f"{name}.yml")


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in workflow(name)["jobs"].values() for step in job.get("steps", ())]


def form(name: str) -> dict[str, Any]:
    return read(GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml")


# ---- workflows -------------------------------------------------------------------------------------------------------


def test_these_workflows_are_there():
    assert sorted(path.stem for path in (GITHUB / "workflows").iterdir()) == sorted(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_may_only_read(name):
    """Only the job that creates the release may write, and nothing but contents."""
    found = workflow(name)
    assert found["permissions"] == {"contents": "read"}
    wider = {job: given["permissions"] for job, given in found["jobs"].items() if "permissions" in given}
    assert wider == ({"release": {"contents": "write"}} if name == "publish" else {})


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned(name):
    """GitHub's to a major version, others to a commit."""
    used = [step["uses"] for step in steps(name) if "uses" in step]
    pinned = r"actions/[\w-]+@v\d+|[\w-]+/[\w-]+@[0-9a-f]{40}"
    assert used and all(re.fullmatch(pinned, action) for action in used), used


def test_no_two_workflows_share_a_concurrency_group():
    """`github.workflow` is the caller's name in a called workflow, which would then wait for itself."""
    groups = [workflow(name)["concurrency"]["group"] for name in WORKFLOWS]
    assert len(set(groups)) == len(groups) and not [group for group in groups if "github.workflow" in group]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_comes_from_outside_reaches_no_shell_as_code(name):
    """Branch names, titles and the like belong into environment variables."""
    assert not [step["run"] for step in steps(name) if re.search(r"\$\{\{\s*(github|inputs)\.", step.get("run", ""))]


def test_the_tests_run_on_three_systems_from_the_smallest_python_on():
    matrix = workflow("tests")["jobs"]["tests"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "windows", "macos"}
    assert f">={matrix['python'][0]}" == PYPROJECT["project"]["requires-python"] and len(matrix["python"]) >= 3


def test_the_tests_run_beside_the_oldest_supported_and_the_newest_comfyui():
    matrix = workflow("tests_with_comfyui")["jobs"]["tests"]["strategy"]["matrix"]
    oldest = PYPROJECT["tool"]["comfy"]["requires-comfyui"].removeprefix(">=")
    assert matrix["comfyui"] == [f"v{oldest}", "master"]
    required = workflow("tests_with_comfyui")["jobs"]["tests"]["env"]
    assert required["TROUPE_REQUIRE_HOST"] == required["TROUPE_REQUIRE_RAY"] == "1"
    [browser] = [step for step in steps("tests_with_comfyui") if "pytest tests/browser" in step.get("run", "")]
    assert browser["env"]["TROUPE_REQUIRE_BROWSER"] == "1" and "TROUPE_FRONTEND_ROOT" in browser["run"]


PYTHON = sorted(
    path.relative_to(ROOT).as_posix()
    for room in PYTHON_ROOMS
    for path in (ROOT / room).rglob("*.py")
    if "host" not in path.parts[len(ROOT.parts) :] and "browser" not in path.parts
)


@pytest.mark.slow
def test_windows_can_import_everything():
    """A test that cannot be imported there stops the whole run of its job, before any mark is read."""
    found = {name: absent_on_windows((ROOT / name).read_text(encoding="utf-8")) for name in PYTHON}
    assert len(found) > 300 and {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("import fcntl", "fcntl"),
        ("from os import fork, path", "os.fork"),
        ("import signal\nSIGNALS = [signal.SIGKILL]", "signal.SIGKILL"),
        ("@mark(signal.SIGALRM)\ndef test(): ...", "signal.SIGALRM"),
        ("def ask(how=os.getuid): ...", "os.getuid"),
        ("class Pool:\n    how = os.uname()", "os.uname"),
        ("try:\n    import resource\nexcept ValueError:\n    pass", "resource"),
        ("def ask():\n    import resource", ""),
        ("try:\n    import resource\nexcept ImportError:\n    resource = None", ""),
        ("if sys.platform != 'win32':\n    how = signal.SIGKILL", ""),
        ("how = lambda: os.fork()", ""),
    ],
)
def test_what_windows_lacks_is_found_where_it_is_asked_for_at_import(source, asked):
    assert [line.partition(": ")[2] for line in absent_on_windows(source)] == [asked] * bool(asked)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no git checkout")
def test_a_checkout_has_the_same_bytes_on_every_system():
    """Git for Windows writes carriage returns otherwise, and hashes of files would differ."""
    command = [shutil.which("git"), "ls-files", "--eol"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode("utf-8").splitlines()
    files = [re.fullmatch(r"i/(\S+) +w/\S* +attr/(.*?) *\t(.+)", line).groups() for line in listed]
    binary = {name for kind, _, name in files if kind == "-text"}
    assert len(binary) > 40 and binary == {name for _, attributes, name in files if attributes == "-text"}
    text = {(kind, attributes) for kind, attributes, name in files if name not in binary}
    assert text == {("lf", "text=auto eol=lf"), ("none", "text=auto eol=lf")}


@pytest.mark.parametrize("name", ["tests", "tests_with_comfyui"])
def test_pip_is_cached(name):
    pythons = [step for step in steps(name) if step.get("uses", "").startswith("actions/setup-python@")]
    assert [step["with"]["cache"] for step in pythons] == ["pip"]


def test_nothing_is_published_before_the_tests_are_green():
    found = workflow("publish")
    assert found[True] == {"push": {"tags": ["v*"]}}
    jobs = found["jobs"]
    for name in ("tests", "tests_with_comfyui"):
        assert jobs[name] == {"uses": f"./.github/workflows/{name}.yml"}
        assert "workflow_call" in workflow(name)[True]
    assert jobs["registry"]["needs"] == ["tests", "tests_with_comfyui"] and jobs["release"]["needs"] == "registry"
    assert not [job for job in ("registry", "release") if "always()" in str(jobs[job].get("if", ""))]


def test_only_a_tag_that_is_the_version_is_published():
    script = next(step["run"] for step in steps("publish") if step.get("name", "").startswith("The tag is"))
    assert script == 'grep -qFx "version = \\"${TAG#v}\\"" pyproject.toml'
    assert f'\nversion = "{PYPROJECT["project"]["version"]}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script as GitHub does."""
    command = [shutil.which("bash"), "-e", "-c", script]
    variables = {"PATH": "/usr/bin:/bin", **environment}
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)


@on_ubuntu
@pytest.mark.parametrize(
    ("changelog", "works"),
    [
        ("## [Unreleased]\n\n## [1.2.0] - 2026-03-31\n\n### Added\n\n- one\n", True),
        ("## [1.2.0] - 2026-03-31\n\n- one\n", True),
        ("## [Unreleased]\n\n## [1.2.0] - not released yet\n\n- one\n", False),
        ("## [Unreleased]\n\n### Added\n\n- two\n\n## [1.2.0] - 2026-03-31\n\n- one\n", False),
        ("## [Unreleased]\n\n## [1.2.1] - 2026-03-31\n\n- one\n", False),
    ],
    ids=["a date", "no unreleased", "no date", "unreleased lines", "another version"],
)
def test_only_a_dated_version_with_nothing_unreleased_is_published(changelog, works, tmp_path):
    [script] = [
        step["run"] for step in workflow("publish")["jobs"]["registry"]["steps"] if "awk" in step.get("run", "")
    ]
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    assert (shell(script, tmp_path, TAG="v1.2.0").returncode == 0) == works


@on_ubuntu
@pytest.mark.parametrize(("tag", "works"), [(f"v{PYPROJECT['project']['version']}", True), ("v99.0.0", False)])
def test_the_release_has_the_section_of_the_changelog(tag, works, tmp_path):
    """Its links lead to the files of the tag."""
    script = next(step["run"] for step in steps("publish") if "gh release create" in step.get("run", ""))
    pretended = "gh() { printf '%s\\n' \"$*\"; }\n"
    done = shell(pretended + script, ROOT, RUNNER_TEMP=str(tmp_path), TAG=tag, GITHUB_REPOSITORY="troupe-comfy/troupe")
    assert (done.returncode == 0) == works == done.stdout.startswith(f"release create {tag} ")
    if works:
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        section = re.search(rf"^## \[{re.escape(tag[1:])}\].*?\n(.*?)(?=^## \[|\Z)", changelog, re.M | re.S).group(1)
        base = f"](https://github.com/troupe-comfy/troupe/blob/{tag}/"
        assert f"{base}docs/training.md)" in (notes := (tmp_path / "notes.md").read_text(encoding="utf-8"))
        assert notes.replace(base, "](") == section


# ---- forms -----------------------------------------------------------------------------------------------------------


def test_these_forms_are_there():
    assert {path.stem for path in (GITHUB / "ISSUE_TEMPLATE").iterdir()} == {*FORMS, "config"}
    assert form("config")["blank_issues_enabled"] is False


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_one_that_github_takes(name):
    found = form(name)
    assert found["name"] and found["description"] and found["body"]
    ids = [field["id"] for field in found["body"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z_]+", id) for id in ids)
    for field in found["body"]:
        assert field["type"] in ("input", "textarea") and field["attributes"]["label"]
        assert set(field["attributes"]) <= {"label", "description", "placeholder", "value", "render"}


@pytest.mark.parametrize("name", ["bug", "model_file"])
def test_what_a_report_needs_is_asked_for(name):
    fields = form(name)["body"]
    required = {field["id"] for field in fields if field.get("validations", {}).get("required")}
    versions = {"comfyui", "frontend", "troupe", "gpu", "workflow"} if name == "bug" else {"versions", "link", "keys"}
    assert {"log", *versions} <= required
    text = yaml.safe_dump(fields)
    assert "'Troupe:'" in text.replace("''", "'")
    assert all(word in text for word in ("ComfyUI", "front end", "Troupe", "orkflow"))


def test_a_pull_request_about_a_run_has_what_a_report_has():
    template = (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8")
    _, begin, rest = template.partition("If it changes what a run does or says")
    asked = re.findall(r"^- (?!\[ \])(.+):$", rest.partition("Checked:")[0], re.M)
    assert begin and [line.split()[0] for line in asked] == ["Workflow,", "Versions", "Log"]
    assert all(word in asked[1] for word in ("ComfyUI", "front end", "Troupe", "GPU")) and "'Troupe:'" in asked[2]


def test_links_of_the_forms_lead_into_the_repository():
    base = f"{PYPROJECT['project']['urls']['Repository']}/blob/main/"
    links = [link["url"] for link in form("config")["contact_links"]]
    links += re.findall(r"\]\((https://[^)#]+)", (GITHUB / "PULL_REQUEST_TEMPLATE.md").read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (ROOT / link.removeprefix(base)).is_file()]


# ---- pages for contributors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "page"), [("CONTRIBUTING.md", CONTRIBUTING), ("docs/architecture.md", ARCHITECTURE)])
def test_files_that_a_page_names_exist(name, page):
    """Paths in backticks; <...> and * are place holders."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.S | re.M)
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*(?:::[\w.]+)?|[\w-]+\.(?:md|toml|py))`", text)
    paths = {path.partition("::")[0] for path in named}
    assert len(paths) > 20
    missing = {path for path in paths if not any((ROOT / room / path).exists() for room in ("", "model_patches"))}
    assert missing == set()


@pytest.mark.parametrize(("name", "page"), [("CONTRIBUTING.md", CONTRIBUTING), ("docs/architecture.md", ARCHITECTURE)])
def test_functions_that_a_page_names_exist(name, page):
    """`path.py::name` and `path.py::Class.name`."""
    named = re.findall(r"`((?:[\w.-]+/)*[\w-]+\.py)::([\w.]+)`", page)
    assert named
    for path, function in named:
        file = next(place for room in ("", "model_patches") if (place := ROOT / room / path).is_file())
        source = file.read_text(encoding="utf-8")
        for part in function.split("."):
            assert re.search(rf"^\s*(?:(?:async )?def |class )?{part}\b[\s:(=]", source, re.M), f"{path}::{function}"


def table_of_tests() -> tuple[set[str], dict[str, set[str]]]:
    """(what changes, {folder of tests: its files or patterns}) of the table in the guide."""
    table = CONTRIBUTING.partition("### Which tests after which change")[2].partition("\n## ")[0]
    head, _, *rows = [line[1:-1].split("|") for line in table.splitlines() if line.startswith("|")]
    columns = [set(re.findall(r"`([^`]+)`", " ".join(cells))) for cells in zip(*rows, strict=True)]
    return columns[0], {folder.strip(" `"): names for folder, names in zip(head[1:], columns[1:], strict=True)}


def test_every_room_has_its_tests():
    from test_packaging import ROOMS, THEMES

    changes, _ = table_of_tests()
    assert [path for path in changes if not (ROOT / path).exists()] == []
    folders = {"web", "locales", "samples", "workflows", "subgraphs", "benchmarks", ".github"}
    named = {path.removesuffix(".py") for path in changes}
    rooms = {room.removesuffix("/__init__") for room in (*ROOMS, *THEMES)} - {"model_patches", "model_patches/hosts"}
    lost = {room for room in rooms | folders if not any(f"{room}/".startswith(f"{path}/") for path in named)}
    assert lost == set()


@pytest.mark.parametrize("folder", ["tests", "tests/host", "tests/browser"])
def test_every_test_is_found_from_a_change(folder):
    files = {path.stem for path in (ROOT / folder).glob("test_*.py")}
    named = table_of_tests()[1][folder]
    assert [name for name in named if not fnmatch.filter(files, name)] == []
    assert folder == "tests/browser" or "test_*" not in named, "that says nothing"
    assert {file for file in files if not any(fnmatch.fnmatch(file, name) for name in named)} == set()


def test_the_guide_has_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "[CONTRIBUTING.md](CONTRIBUTING.md)" in readme and "(docs/architecture.md)" in readme
    assert 'pip install -e ".[test]"' in CONTRIBUTING and "--cov" in CONTRIBUTING


def test_hooks_before_a_commit_use_the_tools_of_the_environment():
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "pyright"}
    assert all(hook["language"] == "system" for hook in hooks)
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert {"ruff", "pyright"} <= {re.split(r"[\[=]", name)[0] for name in extras["test"]}
    assert {"pre-commit", "troupe[test]"} <= set(extras["dev"])


def test_coverage_is_measured_only_when_asked_for():
    assert "cov" not in PYPROJECT["tool"]["pytest"]["ini_options"]["addopts"]
    assert "pytest-cov" in PYPROJECT["project"]["optional-dependencies"]["test"]
    assert all((ROOT / source).is_dir() for source in PYPROJECT["tool"]["coverage"]["run"]["source"])
    assert [step["run"] for step in steps("tests_with_comfyui") if "--cov " in step.get("run", "")]


@on_ubuntu
def test_coverage_is_shown_on_the_page_of_a_run(tmp_path):
    [step] = [step for step in steps("tests_with_comfyui") if "GITHUB_STEP_SUMMARY" in step.get("run", "")]
    pretended = 'python() { case "$*" in *total) echo 87;; *markdown) echo "| nodes | 91% |";; esac; }\n'
    summary = tmp_path / "summary.md"
    done = shell(pretended + step["run"], tmp_path, TITLE="Coverage", GITHUB_STEP_SUMMARY=str(summary))
    assert done.stdout == "::notice title=Coverage::87 %\n"
    assert summary.read_text() == "### Coverage: 87 %\n\n| nodes | 91% |\n"
    assert "*Tests with ComfyUI*" in CONTRIBUTING and workflow("tests_with_comfyui")["name"] == "Tests with ComfyUI"
