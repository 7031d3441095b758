"""Loads the pack's folder once as package `troupe`, without putting the folder on sys.path (its `nodes/` would hide the host's `nodes.py`)."""
from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> ModuleType:
    """The package `troupe`; afterwards `import troupe.model_patches...` works."""
    if "troupe" not in sys.modules:
        spec = importlib.util.spec_from_file_location("troupe", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        module = importlib.util.module_from_spec(spec)
        sys.modules["troupe"] = module
        spec.loader.exec_module(module)
    return sys.modules["troupe"]
