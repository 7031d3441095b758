"""Where the pack lies, and loading its folder once as package `troupe`, without putting it on sys.path (its `nodes/`
would hide the host's `nodes.py`).
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"


def load_pack() -> ModuleType:
    """Load the package `troupe`; afterwards `import troupe.model_patches...` works.

    Raises ImportError if the folder is no package.
    """
    if "troupe" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "troupe", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(f"{ROOT} cannot be loaded as a package", name="troupe")
        module = importlib.util.module_from_spec(spec)
        sys.modules["troupe"] = module
        spec.loader.exec_module(module)
    return sys.modules["troupe"]


def hide_broken_torchaudio() -> None:
    """Put an empty module in place of a torchaudio that is installed but cannot be imported, for this process.

    pip readily pairs torch with a torchaudio built for another CUDA (ComfyUI's requirements name it); transformers
    imports it if it is installed and would fail with it, though nothing here needs sound.
    """
    if "torchaudio" in sys.modules or importlib.util.find_spec("torchaudio") is None:
        return
    import torch  # noqa: F401 outside the try: a torch whose first import failed ends the process at the second

    try:
        import torchaudio  # noqa: F401
    except Exception:  # RuntimeError at the first attempt, ImportError at later ones
        sys.modules["torchaudio"] = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("torchaudio", None))
