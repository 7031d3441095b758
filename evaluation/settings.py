"""Settings of an evaluation: a TOML file with `[suite]`, `[engine]`, `[scores]`, `[output]`, and `[[methods]]` for each
method.

The comment after a setting is its documentation. Paths are relative to the folder in which the command is started.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..training.config.setting import setting
from ..training.config.tables import ConfigError, checked, meant, parse, read_value
from .scores.making import ScoreSettings
from .suites.registry import SuiteSettings
from .tasks import Method

EXAMPLES = "evaluation/rehearsal.toml is an example."
METHODS = "methods"


@dataclass(frozen=True)
class EngineSettings:
    """The engine: `[engine]`."""

    # embedded: the rehearsal models in this process; comfyui: servers; ray: the embedded engine in Ray actors
    kind: str = setting("embedded", choices=("embedded", "comfyui", "ray"))
    servers: str = "http://127.0.0.1:8188"  # comfyui: addresses, separated by commas
    # comfyui: a workflow in API format with placeholders, in place of the pack's graph, for methods without their own;
    # in its name {subjects} is the number of subjects
    workflow: str = ""
    slots: int = setting(1, least=1)  # comfyui: tasks that a server gets at once
    timeout: float = setting(600.0, above=0.0)  # seconds for one picture
    actors: int = setting(2, least=1)  # ray: how many
    retries: int = setting(2, least=0)  # further attempts at a task that fails


@dataclass(frozen=True)
class OutputSettings:
    """Files that are written: `[output]`."""

    folder: str = "output/evaluation"
    zip: bool = False  # also a .zip of everything but the painted pictures, to attach to an issue
    sheet_rows: int = setting(12, least=1)  # cases on the contact sheet


@dataclass(frozen=True)
class EvaluationSettings:
    """A whole evaluation. methods: compared with each other, in the report's order."""

    methods: tuple[Method, ...]
    suite: SuiteSettings = field(default_factory=SuiteSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    scores: ScoreSettings = field(default_factory=ScoreSettings)
    output: OutputSettings = field(default_factory=OutputSettings)


SECTIONS: dict[str, type] = {
    "suite": SuiteSettings,
    "engine": EngineSettings,
    "scores": ScoreSettings,
    "output": OutputSettings,
}


def read_settings(path: Path, overrides: Sequence[str] = ()) -> EvaluationSettings:
    """Read the settings of an evaluation. overrides: `table.key=value` each.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value is of another type or out of range, or
            there is no method.
    """
    tables = parse(path, EXAMPLES)
    methods = _methods(tables.pop(METHODS, []), str(path))
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for section, table in tables.items():
        if section not in SECTIONS or not isinstance(table, dict):
            known = ", ".join(f"[{name}]" for name in SECTIONS)
            raise ConfigError(
                f"only tables {known} and [[{METHODS}]] in {path}",
                f"'{section}'",
                meant(section, [*SECTIONS, METHODS]),
            )
        for key, value in table.items():
            values[section][key] = checked(SECTIONS, section, key, value, str(path))
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise ConfigError("--set table.key=value", f"--set {override}", "Write for example --set suite.seeds=20.")
        values[section][key] = checked(SECTIONS, section, key, read_value(text.strip()), f"--set {override}")
    return EvaluationSettings(methods, **{section: kind(**values[section]) for section, kind in SECTIONS.items()})


def _methods(tables: Any, where: str) -> tuple[Method, ...]:
    expected = f"a [[{METHODS}]] table with a name for each method in {where}"
    if not isinstance(tables, list) or not tables:
        raise ConfigError(expected, "none", EXAMPLES)
    methods = []
    for table in tables:
        name = table.get("name") if isinstance(table, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(expected, "one without a name", EXAMPLES)
        settings = {key: value for key, value in table.items() if key != "name"}
        for key, value in settings.items():
            if not isinstance(value, (str, int, float, bool)):
                raise ConfigError(f"plain values in the method '{name}'", f"{key} = {value!r}", EXAMPLES)
        methods.append(Method(name, settings))
    names = [method.name for method in methods]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"different names of methods in {where}", f"'{twice[0]}' twice", "Rename one of them.")
    return tuple(methods)


def as_plain(settings: EvaluationSettings) -> Mapping[str, Any]:
    """Return the settings as nested plain values, without what servers' addresses have before an @: passwords."""
    tables = {section: asdict(getattr(settings, section)) for section in SECTIONS}
    tables["engine"]["servers"] = re.sub(r"(?<=//)[^/,\s]*@", "", settings.engine.servers)
    methods = [{"name": method.name, **method.settings} for method in settings.methods]
    return {**tables, METHODS: methods}
