"""A real ComfyUI in this process, on the CPU, with a base folder of its own.

No host: these tests skip, or fail where TROUPE_REQUIRE_HOST=1.
"""

import functools
import gc
import importlib
import logging
import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


def find_comfyui() -> Path | None:
    """COMFYUI_PATH; two levels up when the pack lies in custom_nodes; ~/comfy/ComfyUI."""
    root = HERE.parent.parent
    above = root.parent.parent if root.parent.name == "custom_nodes" else None
    for place in (os.environ.get("COMFYUI_PATH"), above, Path.home() / "comfy" / "ComfyUI"):
        if place and (Path(place) / "comfy" / "model_patcher.py").is_file():
            return Path(place).resolve()
    return None


COMFYUI = find_comfyui()
NO_HOST = "NO COMFYUI FOUND (COMFYUI_PATH, or ~/comfy/ComfyUI): nothing that concerns the real host was tested"


def start_host(base: Path) -> None:
    """Import the host once, with `base` as its models, input and output folder.

    It takes PyTorch's attention, as on most GPUs; a host that a test starts takes its own default on a CPU.
    """
    sys.path.insert(0, str(COMFYUI))
    options = ["--cpu", "--use-pytorch-cross-attention", "--base-directory", str(base), "--disable-api-nodes"]
    arguments, sys.argv = sys.argv, ["comfyui", *options]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = arguments
    # nodes.py last: it puts <host>/comfy first on sys.path, where utils.py hides the package
    for name in ("utils.install_util", "server", "nodes"):
        importlib.import_module(name)
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("troupe").setLevel(logging.INFO)


def freeze_what_is_there() -> None:
    """Let the garbage collector pass over the host's modules too."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    if COMFYUI is None:
        for item in items:
            if HERE in Path(str(item.fspath)).parents:
                item.add_marker(pytest.mark.skipif(os.environ.get("TROUPE_REQUIRE_HOST") != "1", reason=NO_HOST))


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """The host's base folder; `models/...` in it is what the host lists."""
    base = tmp_path_factory.mktemp("comfyui_base")
    for folder in (
        "models/ipadapter",
        "models/gligen",
        "models/subject_adapters",
        "models/clip_vision",
        "models/checkpoints",
        "input",
        "output",
        "custom_nodes",
        "user",
    ):
        (base / folder).mkdir(parents=True)
    return base


@pytest.fixture(scope="session")
def host(base_folder, record_testsuite_property):
    """The running host; every test of this folder uses it, directly or through another fixture.

    A results file of the run says which host it was.
    """
    if COMFYUI is None:
        pytest.fail(NO_HOST)
    start_host(base_folder)
    from troupe_tools.dev.compatibility import facts_of_host

    for name, value in facts_of_host().items():
        record_testsuite_property(name, value)
    freeze_what_is_there()
    return COMFYUI


@pytest.fixture(scope="session")
def clips(host):
    """`clips("sd15")`: a tiny CLIP of a family with the real tokenizer, made once."""
    from support.host import tiny_models

    return functools.cache(tiny_models.tiny_clip)


@pytest.fixture(scope="session")
def vision(host, tmp_path_factory):
    """A tiny CLIP_VISION of the host: 32x32 pixels in 16 patches."""
    from support.host import tiny_models
    from support.host.node_chains import HIDDEN, POOLED

    return tiny_models.tiny_clip_vision(
        hidden=HIDDEN, projection=POOLED, tmp=str(tmp_path_factory.mktemp("clip_vision") / "tiny.json")
    )


@pytest.fixture(autouse=True)
def no_dead_models():
    """A MODEL that went in a garbage collection together with the one it was made from stays in the host's list for
    good: as long as it is there, the host collects garbage before each sampling, of later tests too.
    """
    yield
    if management := sys.modules.get("comfy.model_management"):
        loaded = management.current_loaded_models
        loaded[:] = [one for one in loaded if not one.is_dead()]


@pytest.fixture(autouse=True)
def no_gradients():
    """The host runs nodes without gradients."""
    import torch

    with torch.inference_mode():
        yield
