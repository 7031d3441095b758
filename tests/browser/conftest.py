"""A real ComfyUI in a process of its own, and Chromium on its page.

Without a host, Chromium or playwright these tests skip, or fail where TROUPE_REQUIRE_BROWSER=1. CHROMIUM names the
browser where it is not found. The host's own front end is tested, on its canvas; TROUPE_FRONTEND_ROOT (the `static`
folder of another comfyui-frontend-package) adds that one, on its canvas and with Nodes 2.0.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest
from support.browser.graph_page import GraphPage
from troupe_tools.engine.comfyui import Host, find_comfyui
from troupe_tools.engine.host_server import HostServer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

REQUIRED = os.environ.get("TROUPE_REQUIRE_BROWSER") == "1"
FRONT_END = os.environ.get("TROUPE_FRONTEND_ROOT", "")
SETTINGS = ["own canvas", *(["given canvas", "given nodes2"] if FRONT_END else [])]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """The browser's file, '' where there is none."""
    names = [os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), "")


def need(there: bool, what: str) -> None:
    if not there:
        (pytest.fail if REQUIRED else pytest.skip)(f"NO {what}: the box editor was not tested in a browser")


def pytest_collection_modifyitems(items):
    """These come last: playwright's event loop stays in the thread until the session ends, and others start one of
    their own.
    """
    items.sort(key=lambda item: HERE in Path(str(item.fspath)).parents)


def pytest_generate_tests(metafunc):
    if "setting" in metafunc.fixturenames:
        metafunc.parametrize("setting", SETTINGS, scope="session", ids=[name.replace(" ", "-") for name in SETTINGS])


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window."""
    need(importlib.util.find_spec("playwright") is not None, "PLAYWRIGHT (pip install playwright)")
    need(bool(chromium()), "CHROMIUM (CHROMIUM names its file)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def front_end(setting) -> str:
    """The folder of the front end, '' for the host's own."""
    return FRONT_END if setting.startswith("given") else ""


@pytest.fixture(scope="session")
def server(front_end, browser, tmp_path_factory):
    """ComfyUI with the pack in it."""
    path = find_comfyui()
    need(path is not None, "COMFYUI (COMFYUI_PATH, or ~/comfy/ComfyUI)")
    base = tmp_path_factory.mktemp("browser_base")
    (base / "input").mkdir()
    shutil.copy(HERE / "half_red.png", base / "input" / "half_red.png")
    arguments = ["--front-end-root", front_end] if front_end else []
    with HostServer(
        Host(path, sys.executable, gpu=False),
        base,
        {},
        lambda sentence: None,
        arguments=arguments,
    ) as running:
        yield running


@pytest.fixture(scope="session")
def loaded(setting, server, browser):
    """The host's page in one setting, loaded once."""
    page = GraphPage(browser, server, nodes2=setting.endswith("nodes2"))
    yield page
    page.close()


@pytest.fixture
def page(loaded):
    """The page with an empty graph. Afterwards: no error of ours, and nothing asked for outside of the host."""
    loaded.clear()
    yield loaded
    loaded.check()
