"""From a TOML file and `--set` overrides to a checked `Config`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from ...model_patches.errors import TroupeError
from .schema import Config

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

SECTIONS = {
    name: hint for name, hint in get_type_hints(Config).items() if is_dataclass(hint)
}  # table -> its dataclass; [recipe] is added by the recipe's name
RECIPE = "recipe"
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


class ConfigError(TroupeError):
    """A training's settings are not usable."""


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
    tables = _parsed(path)
    where = str(path)
    name = _override_of_recipe(overrides) or _recipe_of(tables, where, recipes)
    if name not in recipes:
        raise ConfigError(f"a recipe from {', '.join(recipes)} in {where}", f"'{name}'", _meant(name, recipes))
    sections = {RECIPE: recipes[name], **SECTIONS}
    values: dict[str, dict[str, Any]] = {section: {} for section in sections}
    for section, table in tables.items():
        if section not in sections or not isinstance(table, dict):
            known = [f"[{known}]" for known in sections]
            raise ConfigError(f"only tables {', '.join(known)} in {where}", f"'{section}'", _meant(section, sections))
        for key, value in table.items():
            if (section, key) == (RECIPE, "name"):
                continue
            values[section][key] = _checked(sections, section, key, value, where)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError("--set key=value", f"--set {override}", "Write for example --set lr=1e-4.")
        if key.strip() in (f"{RECIPE}.name", "name") and text.strip().strip("\"'") == name:
            continue
        section, key = _place(key.strip(), sections)
        values[section][key] = _checked(sections, section, key, _value(text.strip()), f"--set {override}")
    made = {section: kind(**values[section]) for section, kind in sections.items()}
    return Config(name=name, **made)


def as_tables(config: Config) -> dict[str, dict[str, Any]]:
    """Return the settings as nested plain values, `recipe.name` included."""
    tables = {section: asdict(getattr(config, section)) for section in (RECIPE, *SECTIONS)}
    return {**tables, RECIPE: {"name": config.name, **tables[RECIPE]}}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"a settings file {path}", "none", "training/recipes has examples.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path} to be a TOML file", str(error), "Correct it; training/recipes has examples."
        ) from error


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
    raise ConfigError("a known key in --set", f"'{key}'", _meant(key, every))


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(sections: Mapping[str, type], section: str, key: str, value: Any, where: str) -> Any:
    """The value as the field's type. Raises ConfigError."""
    if section not in sections:
        raise ConfigError(f"a known table in {where}", f"'{section}'", _meant(section, sections))
    known = {field.name: field for field in fields(sections[section])}
    if key not in known:
        elsewhere = [name for name, kind in sections.items() if any(field.name == key for field in fields(kind))]
        do = f"Move it to [{elsewhere[0]}]." if elsewhere else _meant(key, known)
        raise ConfigError(f"known keys in [{section}] of {where}", f"'{key}'", do)
    kind = get_type_hints(sections[section])[key]
    what = f"'{section}.{key}' in {where}"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{KINDS[kind]} as {what}", repr(value), f"The default is {_toml(known[key])}.")
    _check_range(known[key], value, what)
    return value


def _check_range(field: Field[Any], value: Any, what: str) -> None:
    allowed = field.metadata
    choices = allowed.get("choices")
    if choices and value not in choices:
        raise ConfigError(f"one of {', '.join(choices)} as {what}", f"'{value}'", _meant(str(value), choices))
    least, above, most = allowed.get("least"), allowed.get("above"), allowed.get("most")
    wanted = (
        "a finite number"
        if isinstance(value, float) and not math.isfinite(value)
        else f"at least {least}"
        if least is not None and value < least
        else f"more than {above}"
        if above is not None and value <= above
        else f"at most {most}"
        if most is not None and value > most
        else ""
    )
    if wanted:
        raise ConfigError(f"{wanted} as {what}", f"{value}", f"The default is {_toml(field)}.")


def _toml(field: Field[Any]) -> str:
    """A field's default as in TOML."""
    default = None if field.default is MISSING else field.default
    return f'"{default}"' if isinstance(default, str) else str(default).lower()


def _meant(text: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = get_close_matches(text, list(known), 1, 0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known are {', '.join(dict.fromkeys(known))}."
