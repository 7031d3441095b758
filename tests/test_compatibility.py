"""The README's table of ComfyUI versions is what was run, and the tool that makes it reads what pytest writes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from troupe_tools.dev import compatibility
from troupe_tools.dev.markdown_pages import replace_passage

PAGE = compatibility.README.read_text(encoding="utf-8")
KEPT = json.loads(compatibility.RECORDS.read_text(encoding="utf-8"))
HOST = {
    "comfyui": "0.9.1",
    "frontend": "1.30.0",
    "python": "3.11.7",
    "torch": "2.9.0",
    "system": "Linux",
    "device": "cpu",
    "commit": "0123abcde",
}
TESTS = """
import pytest

@pytest.fixture(scope="session", autouse=True)
def host(record_testsuite_property):
    for name, value in {facts}.items():
        record_testsuite_property(name, value)

@pytest.fixture
def broken():
    yield
    raise ValueError

def test_good(): pass
@pytest.mark.parametrize("i", range(3))
def test_each(i): assert i
def test_skipped(): pytest.skip("no")
def test_not_cleared_away(broken): pass
def test_neither(broken): assert 0
"""


def record(files=None, **facts):
    return {
        **HOST,
        "date": "2026-11-21",
        "files": files or {"test_a": {"passed": 3, "failed": 0, "skipped": 1}},
        **facts,
    }


def test_the_table_is_made_of_the_records():
    made = replace_passage(PAGE, "compatibility", compatibility.table(KEPT))
    assert made == PAGE, "run: python tools/compatibility.py"


def test_the_oldest_version_is_one_of_the_records():
    oldest = re.search(r"^ComfyUI (\S+) or newer\.", PAGE, re.M)[1]
    assert oldest == min((kept["comfyui"] for kept in KEPT), key=lambda version: [int(n) for n in version.split(".")])


def test_records_tell_everything():
    for kept in KEPT:
        assert list(kept) == [*compatibility.FACTS, "date", "files"] and re.fullmatch(r"\d{4}-\d\d-\d\d", kept["date"])
        assert kept["files"] and all(
            list(counts) == list(compatibility.OUTCOMES) and sum(counts.values()) for counts in kept["files"].values()
        )


@pytest.mark.slow
def test_what_pytest_writes_is_read(tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS.format(facts=HOST))
    (tmp_path / "test_other.py").write_text("def test_one(): pass")
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=results.xml", "."],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    found = compatibility.read(tmp_path / "results.xml")
    assert found["files"] == {
        "test_other": {"passed": 1, "failed": 0, "skipped": 0},
        "test_some": {"passed": 3, "failed": 3, "skipped": 1},
    }
    assert {name: found[name] for name in HOST} == HOST and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_the_front_end_is_the_pinned_one(tmp_path):
    assert compatibility.pinned_frontend(tmp_path) == "none"
    (tmp_path / "requirements.txt").write_text(
        "torch\ncomfyui-frontend-package==1.49.6\ncomfyui-workflow-templates==0.9\n"
    )
    assert compatibility.pinned_frontend(tmp_path) == "1.49.6"


def test_a_host_that_does_not_say_what_it_is_is_refused(tmp_path):
    path = tmp_path / "results.xml"
    path.write_text(
        "<testsuites><testsuite><properties><property name='comfyui' "
        "value='1.0'/></properties></testsuite></testsuites>"
    )
    with pytest.raises(
        compatibility.ResultError, match="expected the host's frontend, python.*found no such property. Run"
    ):
        compatibility.read(path)
    for content in ("<testsuites", None):
        path.write_text(content) if content else path.unlink()
        with pytest.raises(
            compatibility.ResultError, match="expected the results of a pytest run .*found nothing that can be read"
        ):
            compatibility.read(path)


def test_one_commit_fills_up_and_another_begins_anew():
    other, more = (
        {"test_b": {"passed": 1, "failed": 0, "skipped": 0}},
        {"test_a": {"passed": 4, "failed": 0, "skipped": 0}},
    )
    (same,) = compatibility.merged([record()], [record(other)])
    assert same["files"] == record()["files"] | other
    (again,) = compatibility.merged([same], [record(more)])
    assert again["files"] == more | other
    for commit in ("abc+", "unknown"):
        (changed,) = compatibility.merged([record(commit=commit)], [record(other, commit=commit)])
        assert changed["files"] == other
    (new,) = compatibility.merged([same], [record(other, commit="fedcba987")])
    assert new["files"] == other and new["commit"] == "fedcba987"


def test_another_host_is_another_row_the_newest_first():
    versions = ["0.3.64", "0.10.0", "0.9.1"]
    found = compatibility.merged(
        [record(comfyui=versions[0])], [record(comfyui=version) for version in versions[1:]] + [record(torch="2.8.0")]
    )
    assert [(r["comfyui"], r["torch"]) for r in found] == [
        ("0.10.0", "2.9.0"),
        ("0.9.1", "2.9.0"),
        ("0.9.1", "2.8.0"),
        ("0.3.64", "2.9.0"),
    ]


def test_failures_are_named_in_the_table():
    files = {"test_a": {"passed": 3, "failed": 2, "skipped": 1}, "test_b": {"passed": 1, "failed": 0, "skipped": 0}}
    row = compatibility.table([record(files)]).splitlines()[2]
    assert (
        row == "| 0.9.1 | 1.30.0 | 3.11.7, 2.9.0 | Linux, cpu | 4 | 2 (test_a) | 1 | 2026-11-21, 2 test files, "
        "commit 0123abcde |"
    )
    assert "1 test file," in compatibility.table([record()])


def test_a_page_without_marks_is_refused(monkeypatch, tmp_path):
    page, records = tmp_path / "README.md", tmp_path / "records.json"
    page.write_text("no marks", encoding="utf-8")
    monkeypatch.setattr(compatibility, "README", page)
    monkeypatch.setattr(compatibility, "RECORDS", records)
    with pytest.raises(compatibility.ResultError, match="README.md: expected one pair of marks 'comp"):
        compatibility.main([])
    assert page.read_text(encoding="utf-8") == "no marks"
