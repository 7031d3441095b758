"""Values of TOML tables, checked against dataclasses whose fields are made by `setting`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

from ...model_patches.errors import TroupeError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}


class ConfigError(TroupeError):
    """Settings are not usable."""


def parse(path: Path, examples: str) -> dict[str, Any]:
    """Parse a TOML file into its tables. examples: a sentence that says where there are some. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"a settings file {path}", "none", examples) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} to be a TOML file", str(error), f"Correct it. {examples}") from error


def read_value(text: str) -> Any:
    """Read a value as TOML reads it; a text without quotes is itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def checked(sections: Mapping[str, type], section: str, key: str, value: Any, where: str) -> Any:
    """Return a value as its field's type.

    Arguments:
        sections: the dataclass of each table; where: the file, for messages.
    Raises:
        ConfigError: the table or key is unknown, or the value is of another type or out of range.
    """
    if section not in sections:
        raise ConfigError(f"a known table in {where}", f"'{section}'", meant(section, sections))
    known = {field.name: field for field in fields(sections[section])}
    if key not in known:
        elsewhere = [name for name, kind in sections.items() if any(field.name == key for field in fields(kind))]
        do = f"Move it to [{elsewhere[0]}]." if elsewhere else meant(key, known)
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
        raise ConfigError(f"one of {', '.join(choices)} as {what}", f"'{value}'", meant(str(value), choices))
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


def meant(text: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Return which known word is meant, as a sentence; all of them where none is near."""
    close = get_close_matches(text, list(known), 1, 0.5)
    return f"Did you mean '{close[0]}'?" if close else f"Known are {', '.join(dict.fromkeys(known))}."
