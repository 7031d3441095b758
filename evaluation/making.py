"""The engines of an evaluation, from its settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from ..training.config.tables import ConfigError
from .engines.comfyui import ComfyUIEngine
from .engines.comfyui_graph import WORKFLOW, read_template, workflow_of
from .engines.embedded import EmbeddedEngine
from .engines.engine import Engine
from .engines.ray_tasks import ray_engines
from .settings import EngineSettings
from .tasks import Method


def make_engines(
    chosen: EngineSettings, folders: Mapping[str, Path], methods: Sequence[Method], counts: Iterable[int] = (1,)
) -> Sequence[Engine]:
    """Return the engines that paint.

    Arguments:
        folders: of each suite, by its name.
        counts: numbers of subjects for which each method needs a workflow, if it has its own.
    Raises:
        TroupeError: no server is named, ray or a workflow is missing, or the embedded engine cannot paint a method.
            What a server cannot paint shows when it is asked to.
    """
    if chosen.kind == "comfyui":
        for path in workflows(chosen, methods, counts):
            read_template(path)
        return _servers(chosen, folders)
    embedded = EmbeddedEngine(folders)
    embedded.check(methods)
    if chosen.kind == "ray":
        whole = {suite: folder.resolve() for suite, folder in folders.items()}
        return ray_engines(partial(EmbeddedEngine, whole), chosen.actors, timeout=chosen.timeout)
    return [embedded]


def workflows(chosen: EngineSettings, methods: Sequence[Method], counts: Iterable[int]) -> list[Path]:
    """Return the files of the workflows that servers get, sorted."""
    if chosen.kind != "comfyui":
        return []
    settings = [{**_common(chosen), **method.settings} for method in methods]
    found = {workflow_of(one, count) for one in settings for count in counts}
    return sorted(path for path in found if path is not None)


def _common(chosen: EngineSettings) -> dict[str, str]:
    """Settings of every method."""
    return {WORKFLOW: chosen.workflow} if chosen.workflow else {}


def _servers(chosen: EngineSettings, folders: Mapping[str, Path]) -> list[Engine]:
    addresses = [address for part in chosen.servers.split(",") if (address := part.strip())]
    if not addresses:
        do = 'Write for example servers = "http://127.0.0.1:8188, http://127.0.0.1:8189".'
        raise ConfigError("the address of a ComfyUI server in [engine]", "none", do)
    [folder] = folders.values()  # an evaluation has one suite
    return [
        ComfyUIEngine(address, folder, settings=_common(chosen), timeout=chosen.timeout, slots=chosen.slots)
        for address in addresses
    ]
