"""Other people's packs, loaded as the host does from a checkout that an environment variable names; without it their
tests skip and say so.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from functools import cache
from pathlib import Path

import pytest


def folder_of(variable: str, what: str) -> Path:
    """The checkout, or a skip that says which variable to set."""
    place = os.environ.get(variable)
    if not place or not (Path(place) / "__init__.py").is_file():
        pytest.skip(f"{what} IS NOT THERE: set {variable} to the folder of its checkout; nothing beside it was tested")
    return Path(place)


@cache
def pack(variable: str, what: str) -> types.ModuleType:
    """The pack's module."""
    place = folder_of(variable, what)
    return _loaded(str(place).replace(".", "_x_"), place)


@cache
def part(variable: str, what: str, inner: str, **given: str) -> types.ModuleType:
    """A module inside a pack whose `__init__` imports more than the host or this machine has; given: names that it
    takes from there.
    """
    place = folder_of(variable, what)
    name = str(place).replace(".", "_x_") + "_part"
    if name not in sys.modules:
        parent = types.ModuleType(name)
        parent.__path__ = [str(place)]
        vars(parent).update(given)
        sys.modules[name] = parent
    return importlib.import_module(f"{name}.{inner}")


def _loaded(name: str, place: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
