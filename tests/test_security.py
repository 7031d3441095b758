"""What SECURITY.md says that the pack never does, looked for in its source."""

from __future__ import annotations

import ast
import re

import pytest
from troupe_tools.pack import ROOT

PACK = sorted(
    [
        ROOT / "__init__.py",
        *(ROOT / "nodes").rglob("*.py"),
        *(ROOT / "model_patches").rglob("*.py"),
        # not its training, which writes what it trained
        *(ROOT / "rehearsal").glob("*.py"),
        *(ROOT / "rehearsal" / "engine").glob("*.py"),
    ]
)
NEVER = {
    "urllib",
    "http",
    "socket",
    "ssl",
    "ftplib",
    "requests",
    "httpx",
    "aiohttp",
    "huggingface_hub",
    "subprocess",
    "multiprocessing",
    "ctypes",
    "marshal",
    "shelve",
    "pip",
    "omegaconf",
}
# module -> all it may use
PICKLE = {
    "files.py": {"pickle.UnpicklingError"},
    "pickles.py": {"pickle.UnpicklingError", "pickle._Unpickler", "pickle._Unpickler.dispatch"},
}
# as SECURITY.md says: the empty adapter folders in ComfyUI's models folder, and the sample photos in its input folder
WRITTEN = {
    ("adapters.py", "os.makedirs(usual, exist_ok=True)"),
    ("samples.py", "shutil.copyfile(photo, target)"),
}
# as SECURITY.md says: a DINO from a folder on this machine; tests/host/test_score_subjects.py refuses it a network
LOCAL = {
    (
        "dino.py",
        "AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)",
    )
}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "system",
    "popen",
    "startfile",
    "write_text",
    "write_bytes",
    "mkdir",
    "makedirs",
    "unlink",
    "rename",
    "rmtree",
    "save_file",
    "urlopen",
    "from_pretrained",
    "hf_hub_download",
    "download_url_to_file",
    "copyfile",
    "copy2",
    "copytree",
    "copyfileobj",
    "move",
}


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def outer(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("path", PACK, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_pack_reaches_for_no_network_program_or_code(path):
    """diffusers' side is a part of the tools, and has the same rules."""
    for node in ast.walk(tree_of(path)):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
        assert not {outer(name) for name in names} & NEVER, ast.unparse(node)
        assert "pickle" not in names or path.name in PICKLE, "only for what PICKLE says"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            plain = isinstance(node.func, ast.Name)
            assert called not in (BUILT_IN if plain else CALLS) or (path.name, ast.unparse(node)) in WRITTEN | LOCAL, (
                ast.unparse(node)
            )
            if called == "open":
                mode = (
                    node.args[1] if plain and len(node.args) > 1 else node.args[0] if not plain and node.args else None
                )
                member = ast.unparse(node.func) == "archive.open"  # of a zip archive, itself opened to be read
                assert mode is None or member or ast.literal_eval(mode) in ("r", "rb"), ast.unparse(node)
            if called == "load" and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.literal_eval(k.value) is True for k in node.keywords), (
                    ast.unparse(node)
                )


@pytest.mark.parametrize("file", PICKLE)
def test_pickle_is_there_for_an_error_and_a_look_that_makes_nothing(file):
    names = [
        ast.unparse(node)
        for node in ast.walk(tree_of(ROOT / "model_patches" / "checkpoints" / file))
        if isinstance(node, ast.Attribute)
    ]
    # opcodes aside
    assert {name for name in names if outer(name) == "pickle" and not name.removeprefix("pickle.").isupper()} == PICKLE[
        file
    ]


@pytest.mark.slow
def test_the_tools_load_tensors_only():
    calls = [
        node
        for path in (ROOT / "tools").rglob("*.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
    ]
    loads = [node for node in calls if ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads")]
    assert all(
        any(k.arg == "weights_only" and ast.literal_eval(k.value) is True for k in node.keywords) for node in loads
    )


def test_the_front_end_loads_nothing_and_writes_no_html_but_its_icons():
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "web").rglob("*.js")))
    assert re.findall(
        r".*(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment).*", code
    ) == ['    button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`;']
    links = (
        r"const ADDRESS = /(https:\/\/(?:huggingface\.co|github\.com)\/\S*[^\s.,;:)])/;"  # of messages, to model files
    )
    assert code.count(links) == 1
    code = code.replace(links, "")
    assert not re.search(
        r"\b(?:eval|fetch|fetchApi|importScripts|XMLHttpRequest|WebSocket|EventSource|sendBeacon)\s*\(|new "
        r"Function|https?:",
        code,
    )
    assert all(
        name.startswith((".", "/", "../")) for name in re.findall(r"""(?:from|import)\s*\(?\s*["']([^"']+)["']""", code)
    )
