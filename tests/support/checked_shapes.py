"""Load the modules of model_patches/attention with their shapes checked at every call: a pytest plugin, for
`python -m pytest -p support.checked_shapes`. It must be loaded before the pack.

jaxtyping and beartype are no dependencies of the pack, which imports them for type checkers only.
"""

from __future__ import annotations

import importlib
import pkgutil
import typing

import beartype  # noqa: F401 (what modules import is loaded before TYPE_CHECKING is True)
import einops  # noqa: F401
import torch.nn.functional  # noqa: F401
from jaxtyping import install_import_hook
from troupe_tools.pack import load_pack

load_pack()
import troupe.model_patches.attention as attention  # noqa: E402

typing.TYPE_CHECKING = True
try:
    with install_import_hook(attention.__name__, "beartype.beartype"):
        for module in pkgutil.iter_modules(attention.__path__):
            importlib.import_module(f"{attention.__name__}.{module.name}")
finally:
    typing.TYPE_CHECKING = False
