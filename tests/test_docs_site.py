"""The documentation site is built from the same files as GitHub shows, and every link of it leads somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from troupe_tools.dev.site_links import on_page_markdown
from troupe_tools.pack import ROOT

CONFIG = ROOT / "docs" / "mkdocs.yml"
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] + [
    path.relative_to(ROOT).as_posix()
    for folder in ("docs", "web/docs", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.md"))
]


class Links(HTMLParser):
    """Links and anchors of one page; `loaded` are scripts, styles and pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        given = dict(attributes)
        self.anchors.add(given.get("id") or given.get("name"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        elif given.get("src") or tag == "link" and given.get("rel") in ("stylesheet", "icon"):
            self.loaded.append(given.get("src") or given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning of the build is an error."""
    if importlib.util.find_spec("material") is None:
        pytest.skip("NO MKDOCS-MATERIAL (pip install mkdocs-material): the documentation site was not built")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(CONFIG), "-d", str(place)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "excluded from the built site" not in done.stderr and "WARNING" not in done.stderr, done.stderr
    return place


def built(site: Path, page: str) -> Path:
    """The file of a page of the repository."""
    return site / (f"{page.removesuffix('.md')}.html" if page != "README.md" else "index.html")


@pytest.mark.slow
def test_every_page_is_in_the_site_and_in_its_navigation(site):
    start = Links(built(site, "README.md").read_text(encoding="utf-8"))
    for page in PAGES:
        assert built(site, page).is_file(), page
        assert page == "README.md" or f"{page.removesuffix('.md')}.html" in start.links, page


def test_every_link_and_picture_of_the_site_is_there(site):
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES)
    for path, found in pages.items():
        for link in (*found.links, *found.loaded):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (path.relative_to(site), link)
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].anchors, (path.relative_to(site), link)


def test_the_site_loads_nothing_from_elsewhere(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not [link for link in Links(text).loaded if urlsplit(link).netloc], path
        assert 'data-md-component="source"' not in text, path  # it asks GitHub for stars


def test_links_to_other_files_of_the_repository_lead_to_github(site):
    links = Links(built(site, "docs/evidence.md").read_text(encoding="utf-8")).links
    outside = [link for link in links if "/blob/main/tests/" in link]
    assert len(outside) > 5
    for link in outside:
        assert (ROOT / urlsplit(link).path.split("/blob/main/")[1]).is_file(), link


@pytest.mark.parametrize("page", PAGES)
def test_every_link_on_github_is_there(page):
    """The same Markdown, where it lies."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(link)
        if not parts.scheme and parts.path:
            assert (ROOT / page).parent.joinpath(unquote(parts.path)).exists(), link


@pytest.mark.parametrize(
    ("link", "becomes"),
    [
        ("../tools/check.py", "https://host/us/pack/blob/main/tools/check.py"),
        ("../tools", "https://host/us/pack/tree/main/tools"),
        (
            "../tests/golden/mip_adapter/README.md#a",
            "https://host/us/pack/blob/main/tests/golden/mip_adapter/README.md#a",
        ),
        ("models.md", "models.md"),
        ("models.md#links", "models.md#links"),
        ("../no/such/file.py", "../no/such/file.py"),
        ("#here", "#here"),
        ("../../outside.py", "../../outside.py"),
        ("https://example.org/x", "https://example.org/x"),
    ],
)
def test_only_links_past_the_site_are_changed(link, becomes):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="docs/nodes.md"))
    included = SimpleNamespace(inclusion=SimpleNamespace(is_included=lambda: True))
    files = SimpleNamespace(get_file_from_path=lambda path: included if path == "docs/models.md" else None)
    config = SimpleNamespace(docs_dir=str(ROOT), extra={"repository": "https://host/us/pack"})
    assert on_page_markdown(f"See [this]({link}).", page, config, files) == f"See [this]({becomes})."
