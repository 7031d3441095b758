"""Every benchmark by its name in the settings, and reading one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...training.config.setting import setting
from . import concept101, dreambench, dreambench_plus, rehearsal, xverse
from .crops import with_crops
from .rehearsal import Models
from .suite import Suite, SuiteError

SUITES: Mapping[str, str] = {  # name -> what its folder is
    rehearsal.NAME: "not needed: its casts are drawn",
    dreambench.SINGLE: "the folder `dataset` of google/dreambooth",
    dreambench.PAIRS: "the same",
    concept101.NAME: "CustomConcept101: `dataset_multiconcept.json`, `prompts`, `benchmark_dataset`",
    dreambench_plus.NAME: "DreamBench++: `images`, `captions`",
    xverse.SINGLE: "the repository bytedance/XVerse with the pictures of XVerseBench",
    xverse.MULTI: "the same",
}


@dataclass(frozen=True)
class SuiteSettings:
    """The pictures to paint: `[suite]`."""

    name: str = setting("rehearsal", choices=tuple(SUITES))
    folder: str = ""  # of the benchmark as it was published; unused for rehearsal
    seeds: int = setting(10, least=1)  # pictures of each case and method; for rehearsal the casts of each kind
    first_seed: int = setting(0, least=0)
    cases: int = setting(0, least=0)  # only the first so many; 0: all
    casts: str = "two classes, one class"  # rehearsal: kinds of casts, with commas
    pairs: str = ""  # dreambench_pairs: a text file with two subjects a line; "": pairs that Troupe chooses
    crops: str = ""  # concept101: the folder json_data of hqhQAQ/MIP-Adapter, to paint from crops as it does
    keep_wrong_sofa: bool = True  # concept101: the pair that calls a chair's photos a sofa, as in published figures

    @property
    def numbers(self) -> range:
        """Seeds of each case and method."""
        return range(self.first_seed, self.first_seed + self.seeds)


def read_suite(settings: SuiteSettings, drawn: Path, boxed: bool, models: Models | None) -> Suite:
    """Read the benchmark of the settings.

    Arguments:
        drawn: folder into which the rehearsal suite draws its references, and into which crops are written.
        boxed: whether a method works with boxes; models: makes the models that find them in the rehearsal suite.
    Raises:
        SuiteError: the benchmark's folder is missing, empty, or has another layout, or crops are asked for that are
            not published.
    """
    if settings.crops and settings.name != concept101.NAME:
        found = f"'crops' for {settings.name}"
        raise SuiteError(f"'crops' in [suite] for {concept101.NAME} only", found, "Remove it.")
    suite = _read(settings, drawn, boxed, models)
    if settings.cases:
        suite = replace(suite, cases=suite.cases[: settings.cases])
    if suite.name == concept101.NAME:
        if settings.crops:
            return with_crops(suite, Path(settings.crops), drawn)
        return replace(suite, notes=(*suite.notes, concept101.WHOLE))
    return suite


def _read(settings: SuiteSettings, drawn: Path, boxed: bool, models: Models | None) -> Suite:
    name = settings.name
    if name == rehearsal.NAME:
        return rehearsal.rehearsal_suite(drawn, _listed(settings.casts), settings.numbers, boxed, models)
    if not settings.folder:
        raise SuiteError(f"'folder' in [suite] for {name}", "none", f"It is {SUITES[name]}.")
    folder = Path(settings.folder)
    if name == dreambench.SINGLE:
        return dreambench.dreambench(folder)
    if name == dreambench.PAIRS:
        return dreambench.dreambench_pairs(folder, Path(settings.pairs) if settings.pairs else None)
    if name == concept101.NAME:
        return concept101.concept101(folder, settings.keep_wrong_sofa)
    if name == dreambench_plus.NAME:
        return dreambench_plus.dreambench_plus(folder)
    return xverse.xverse(folder, name)


def _listed(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
