"""From a TOML file and `--set` overrides to a checked `Config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from .schema import Config
from .tables import ConfigError, checked, meant, parse, read_value

SECTIONS = {
    name: hint for name, hint in get_type_hints(Config).items() if is_dataclass(hint)
}  # table -> its dataclass; [recipe] is added by the recipe's name
RECIPE = "recipe"
EXAMPLES = "training/recipes has examples."


def read_config(path: Path, overrides: Sequence[str] = (), *, recipes: Mapping[str, type]) -> Config:
    """Read a training's settings.

    Arguments:
        path: the TOML file.
        overrides: `key=value` each, value as in TOML or a text without quotes; key as `training.lr`, or `lr` alone if
            only one table has it.
        recipes: the options' dataclass of each recipe.
    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value is of another type or out of range. The
            message names the file and the key.
    """
    tables = parse(path, EXAMPLES)
    where = str(path)
    name = _override_of_recipe(overrides) or _recipe_of(tables, where, recipes)
    if name not in recipes:
        raise ConfigError(f"a recipe from {', '.join(recipes)} in {where}", f"'{name}'", meant(name, recipes))
    sections = {RECIPE: recipes[name], **SECTIONS}
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for section, table in tables.items():
        if section not in sections or not isinstance(table, dict):
            known = [f"[{known}]" for known in sections]
            raise ConfigError(f"only tables {', '.join(known)} in {where}", f"'{section}'", meant(section, sections))
        for key, value in table.items():
            if (section, key) == (RECIPE, "name"):
                continue
            values[section][key] = checked(sections, section, key, value, where)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError("--set key=value", f"--set {override}", "Write for example --set lr=1e-4.")
        if key.strip() in (f"{RECIPE}.name", "name") and text.strip().strip("\"'") == name:
            continue
        section, key = _place(key.strip(), sections)
        values[section][key] = checked(sections, section, key, read_value(text.strip()), f"--set {override}")
    made = {section: kind(**values[section]) for section, kind in sections.items()}
    return Config(name=name, **made)


def as_tables(config: Config) -> dict[str, dict[str, Any]]:
    """Return the settings as nested plain values, `recipe.name` included."""
    tables = {section: asdict(getattr(config, section)) for section in (RECIPE, *SECTIONS)}
    return {**tables, RECIPE: {"name": config.name, **tables[RECIPE]}}


def _override_of_recipe(overrides: Sequence[str]) -> str:
    names = [text for key, _, text in (o.partition("=") for o in overrides) if key.strip() == f"{RECIPE}.name"]
    return names[-1].strip().strip("\"'") if names else ""


def _recipe_of(tables: Mapping[str, Any], where: str, recipes: Mapping[str, type]) -> str:
    table = tables.get(RECIPE)
    name = table.get("name") if isinstance(table, dict) else None
    if not isinstance(name, str):
        found = "none" if name is None else repr(name)
        raise ConfigError(f"'name' in [{RECIPE}] of {where}", found, f"Write one of {', '.join(recipes)}.")
    return name


def _place(key: str, sections: Mapping[str, type]) -> tuple[str, str]:
    """The table and key that a key of an override means."""
    section, dot, leaf = key.partition(".")
    if dot:
        return section, leaf
    having = [name for name, kind in sections.items() if any(field.name == key for field in fields(kind))]
    if len(having) == 1:
        return having[0], key
    if having:
        options = " or ".join(f"{name}.{key}" for name in having)
        raise ConfigError(f"one meaning of '{key}' in --set", f"it in {len(having)} tables", f"Write {options}.")
    every = [field.name for kind in sections.values() for field in fields(kind)]
    raise ConfigError("a known key in --set", f"'{key}'", meant(key, every))
