"""Every benchmark by its name in the settings, and reading one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...training.config.setting import setting
from .rehearsal import Models, rehearsal_suite
from .suite import Suite

SUITES: Mapping[str, str] = {  # name -> what its folder is
    "rehearsal": "nothing: its casts are drawn",
}


@dataclass(frozen=True)
class SuiteSettings:
    """What is painted: `[suite]`."""

    name: str = setting("rehearsal", choices=tuple(SUITES))
    folder: str = ""  # of the benchmark as it was published; unused for rehearsal
    seeds: int = setting(10, least=1)  # pictures of each case and method; for rehearsal the casts of each kind
    first_seed: int = setting(0, least=0)
    cases: int = setting(0, least=0)  # only the first so many; 0: all
    casts: str = "two classes, one class"  # rehearsal: kinds of casts, with commas

    @property
    def numbers(self) -> range:
        """Seeds of each case and method."""
        return range(self.first_seed, self.first_seed + self.seeds)


def read_suite(settings: SuiteSettings, drawn: Path, boxed: bool, models: Models | None) -> Suite:
    """Read the benchmark of the settings.

    Arguments:
        drawn: folder into which the rehearsal suite draws its references.
        boxed: whether a method works with boxes; models: makes the models that find them in the rehearsal suite.
    Raises:
        SuiteError: the benchmark's folder is missing, empty, or has another layout.
    """
    suite = rehearsal_suite(drawn, _listed(settings.casts), settings.numbers, boxed, models)
    return replace(suite, cases=suite.cases[: settings.cases]) if settings.cases else suite


def _listed(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
