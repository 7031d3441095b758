"""The engines of an evaluation, from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ..training.config.tables import ConfigError
from .engines.comfyui import ComfyUIEngine
from .engines.embedded import EmbeddedEngine
from .engines.engine import Engine
from .engines.ray_tasks import ray_engines
from .settings import EngineSettings
from .tasks import Method


def make_engines(chosen: EngineSettings, folders: Mapping[str, Path], methods: Sequence[Method]) -> Sequence[Engine]:
    """Return the engines that paint. folders: of each suite, by its name.

    Raises:
        TroupeError: no server is named, ray or the workflow is missing, or the embedded engine cannot paint a method.
            What a server cannot paint shows when it is asked to.
    """
    if chosen.kind == "comfyui":
        return _servers(chosen, folders)
    embedded = EmbeddedEngine(folders)
    embedded.check(methods)
    if chosen.kind == "ray":
        whole = {suite: folder.resolve() for suite, folder in folders.items()}
        return ray_engines(partial(EmbeddedEngine, whole), chosen.actors, timeout=chosen.timeout)
    return [embedded]


def _servers(chosen: EngineSettings, folders: Mapping[str, Path]) -> list[Engine]:
    addresses = [address for part in chosen.servers.split(",") if (address := part.strip())]
    if not addresses:
        do = 'Write for example servers = "http://127.0.0.1:8188, http://127.0.0.1:8189".'
        raise ConfigError("the address of a ComfyUI server in [engine]", "none", do)
    template = Path(chosen.workflow) if chosen.workflow else None
    [folder] = folders.values()  # an evaluation has one suite
    return [
        ComfyUIEngine(address, folder, template=template, timeout=chosen.timeout, slots=chosen.slots)
        for address in addresses
    ]
