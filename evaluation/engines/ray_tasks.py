"""Engines of this pack as actors of a Ray cluster, where ray is installed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...model_patches.errors import TroupeError
from ..tasks import Task
from .engine import Engine, EngineLostError

PACK = Path(__file__).resolve().parents[2]


class RayMissingError(TroupeError):
    """An error about ray, which is not installed."""


class ActorError(TroupeError):
    """An error that an engine in a Ray actor reports about one task, in its own words."""


def ray_engines(
    factory: Callable[[], Engine],
    count: int,
    *,
    options: dict[str, Any] | None = None,
    timeout: float | None = None,
    pack: Path = PACK,
) -> Sequence[Engine]:
    """Return engines that each run in an actor of the Ray cluster that ray.init has joined, or of a local one.

    factory: makes an engine inside an actor; a module of the pack or of the workers has it, or it is a function with
    all that it needs. options: of the actors, e.g. {"num_gpus": 1}. timeout: seconds for one picture, the making of the
    engine included. pack: the pack's folder on every machine of the cluster. An actor that is lost is made anew at the
    next task.
    Raises:
        RayMissingError: ray is not installed.
    """
    try:
        import ray
        from ray.cloudpickle import cloudpickle
    except ImportError:
        raise RayMissingError("the package ray", "none", "Run: pip install ray. Or use another engine.") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    made = cloudpickle.dumps(factory)
    actor = ray.remote(**{"num_cpus": 1, **(options or {})})(_painter())
    return [_RayEngine(f"ray {n}", lambda: actor.remote(str(pack), made), timeout) for n in range(1, count + 1)]


class _RayEngine:
    """One actor, made when it is first needed."""

    def __init__(self, name: str, make: Callable[[], Any], timeout: float | None):
        self.name, self._make, self._timeout = name, make, timeout
        self._actor: Any = None

    def paint(self, task: Task) -> np.ndarray:
        import ray
        from ray.exceptions import RayError

        try:
            if self._actor is None:
                self._actor = self._make()
            kind, value = ray.get(self._actor.paint.remote(pickle.dumps(task)), timeout=self._timeout)
        except RayError as error:
            if self._actor is not None:
                ray.kill(self._actor)  # one that is only late would hold its place in the cluster
            self._actor = None
            reason = str(error).strip().splitlines()
            found = f"{type(error).__name__}: {reason[0] if reason else ''}"
            raise EngineLostError(f"a picture from {self.name}", found, "Look at the Ray cluster.") from error
        if kind == "lost":
            raise EngineLostError(f"a picture from {self.name}", value, "Look at the engine in the Ray actor.")
        if kind == "failed":
            raise ActorError(*value)
        return np.array(value)  # what Ray hands over may not be written to


def _painter() -> type:
    """The actor's class. Ray sends a class that is made in a function as it is, so that a worker needs no module of the
    pack before it has loaded the pack.
    """

    class Painter:
        def __init__(self, pack: str, made: bytes):
            import pickle
            import sys

            sys.path.append(f"{pack}/tools")
            from troupe_tools.pack import hide_broken_torchaudio, load_pack

            hide_broken_torchaudio()
            load_pack()
            self.engine = pickle.loads(made)()  # noqa: S301 (of the run that has started this actor)

        def paint(self, task: bytes) -> tuple[str, Any]:
            import pickle

            from troupe.evaluation.engines.engine import EngineLostError
            from troupe.model_patches.errors import TroupeError

            try:
                return "picture", self.engine.paint(pickle.loads(task))  # noqa: S301 (of the same run)
            except EngineLostError as error:
                return "lost", str(error)
            except TroupeError as error:
                return "failed", (error.expected, error.found, error.remedy)
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
                return "failed", (
                    "a picture from the engine in the Ray actor",
                    found,
                    "This is a mistake in the engine.",
                )

    return Painter
