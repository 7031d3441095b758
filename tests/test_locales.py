"""The locales beside English: the same entries, nothing lost on the way, and a list of what is to be translated again.

`TROUPE_UPDATE_LOCALES=1 python -m pytest tests/host/test_contract.py tests/test_locales.py` brings them in step:
missing entries get the English text, entries that English has no more go, and what somebody has translated since is
stamped with the English it was made from (locales/<language>/stamps.json).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from troupe_tools.pack import ROOT

LOCALES = ROOT / "locales"
UPDATING = os.environ.get("TROUPE_UPDATE_LOCALES") == "1"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir() if path.is_dir() and path.name != "en")
STAMPS = "stamps.json"  # of the four names that the host reads none
CONTRACT = json.loads((ROOT / "tests" / "golden" / "node_contract.json").read_text())["nodes"]
OPTIONS = {option for node in CONTRACT.values() for entry in node["inputs"] for option in entry.get("options", [])}
# words in capitals that a translation may turn: emphasis, a node that the front end translates itself, a title
NOT_NAMES = {"ONE", "PICTURE", "CFGGuider", "Two-Strength"}
Texts = dict[str, str]  # 'nodeDefs.TroupeFaces.inputs.pick.tooltip' -> text


def flat(value: Any, path: str) -> Texts:
    if isinstance(value, str):
        return {path: value}
    return {key: text for name, child in value.items() for key, text in flat(child, f"{path}.{name}").items()}


def filled(pattern: Any, path: str, texts: Texts) -> Any:
    """`pattern` with the texts of `texts` in place of its own."""
    return (
        texts[path]
        if isinstance(pattern, str)
        else {name: filled(child, f"{path}.{name}", texts) for name, child in pattern.items()}
    )


def files(folder: Path) -> dict[str, Any]:
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
        if path.name != STAMPS
    }


def texts_of(folder: Path) -> Texts:
    return {key: text for name, content in files(folder).items() for key, text in flat(content, name).items()}


def stamps_of(folder: Path) -> dict[str, str]:
    """'path' -> 'mark of the English text, mark of the translation'; no English mark: not translated yet."""
    return json.loads((folder / STAMPS).read_text()) if (folder / STAMPS).is_file() else {}


def mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def to_translate(english: Texts, stamps: dict[str, str]) -> list[str]:
    """Entries that were never translated, or from another English text than today's."""
    return [key for key, text in english.items() if stamps.get(key, " ").split(" ")[0] != mark(text)]


def bring_in_step(english_folder: Path, folder: Path) -> None:
    english, texts, stamps = texts_of(english_folder), texts_of(folder), stamps_of(folder)
    new = {}
    for key, text in english.items():
        if key not in texts:
            new[key] = f" {mark(text)}"
        elif key in stamps and stamps[key].split(" ")[1] == mark(texts[key]):
            new[key] = stamps[key]
        else:  # somebody translated it
            new[key] = f"{mark(text)} {mark(texts[key])}"
    for name, pattern in files(english_folder).items():
        (folder / f"{name}.json").write_text(
            json.dumps(filled(pattern, name, {**english, **texts}), indent=2, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
    (folder / STAMPS).write_text(json.dumps(new, indent=0) + "\n")


def lost(english: str, translation: str) -> set[str]:
    """What of a text must stay as it is, and did not: numbers, identifiers, quoted ids, folders, file names, names in
    capitals, options of a combo.
    """
    numbers = r"\d+(?:\.\d+)?"
    english = re.sub(r"\[\{.*?\]", "", english)  # an example in JSON may be told otherwise
    gone = set(re.findall(numbers, english)) - set(re.findall(numbers, translation))
    words = {
        *re.findall(r"(?<!\w)'([a-z_]+)'(?!\w)", english),
        *re.findall(r"\b\w+_\w+\b", english),
        *re.findall(r"[\w/-]+(?:/|\.safetensors)[\w/]*", english),
    }
    # at the start of a sentence: "when it starts to apply:" is prose
    words |= {word for word in re.findall(r"(?:^|[.;:] )(?:For )?(\w+):", english) if word in OPTIONS}
    words |= {
        re.sub(r"s$", "", name)
        for name in re.findall(r"[\w-]*[A-Z][\w-]*[A-Z][\w-]*", english)
        if name not in NOT_NAMES
    }
    return gone | {word for word in words if word not in translation}


@pytest.fixture(scope="module", autouse=True)
def in_step():
    for language in LANGUAGES if UPDATING else []:
        bring_in_step(LOCALES / "en", LOCALES / language)


@pytest.fixture(scope="module")
def english() -> Texts:
    return texts_of(LOCALES / "en")


@pytest.fixture(scope="module")
def current(english) -> dict[str, Texts]:
    """Of each language, the entries that were translated from today's English."""
    again = {language: set(to_translate(english, stamps_of(LOCALES / language))) for language in LANGUAGES}
    return {
        language: {key: text for key, text in texts_of(LOCALES / language).items() if key not in again[language]}
        for language in LANGUAGES
    }


# ---- the files -------------------------------------------------------------------------------------------------------


def test_these_languages_are_there():
    assert LANGUAGES == ["ja", "ko", "ru", "zh"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_locale_has_the_entries_of_english(language, english):
    texts, stamps = texts_of(LOCALES / language), stamps_of(LOCALES / language)
    if again := to_translate(english, stamps):
        warnings.warn(f"locales/{language}: to be translated (again): {', '.join(again)}", stacklevel=1)
    assert set(texts) == set(stamps) == set(english), "run this test once with TROUPE_UPDATE_LOCALES=1"


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_empty(language):
    assert not [key for key, text in texts_of(LOCALES / language).items() if not text.strip() or text != text.strip()]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_locale_says_who_has_read_it(language):
    """Machine-made is said, not hidden."""
    row = re.search(rf"^\| `{language}` \|(.+)\|(.+)\|$", (LOCALES / "README.md").read_text(encoding="utf-8"), re.M)
    assert row and all(cell.strip() for cell in row.groups())


# ---- the texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_that_must_stay_is_translated(language, english, current):
    """Labels may be translated as a whole."""
    assert {
        key: gone
        for key, text in current[language].items()
        if not key.endswith(".name") and (gone := lost(english[key], text))
    } == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_have_one_name(language, english, current):
    """A node of ours that a text names is called there what its title says."""
    titles = {
        english[key]: texts for key, texts in texts_of(LOCALES / language).items() if key.endswith(".display_name")
    }
    named = {
        key: [theirs for ours, theirs in titles.items() if ours in english[key] and theirs not in text]
        for key, text in current[language].items()
    }
    assert {key: missing for key, missing in named.items() if missing} == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_one_label_is_one_word(language, english, current):
    """Sockets that are wired to each other are called the same."""
    labels = {}
    for key, text in current[language].items():
        if key.endswith(".name") and english[key] in {
            "model",
            "clip",
            "positive",
            "negative",
            "second positive",
            "references",
            "adapter",
            "cast",
            "faces",
            "record",
        }:
            labels.setdefault(english[key], set()).add(text)
    assert len(labels) == 10 and {name: words for name, words in labels.items() if len(words) > 1} == {}


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_front_end_shows_a_text_as_it_stands(language):
    """Its translator takes these characters for placeholders, plurals and links, and throws or leaves text out."""
    assert {key for key, text in texts_of(LOCALES / language).items() if re.search(r"[{}|@]", text)} == set()


# ---- stamps ----------------------------------------------------------------------------------------------------------


def write(folder: Path, content: dict) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "main.json").write_text(json.dumps(content))
    return folder


def test_entries_come_go_and_are_stamped(tmp_path):
    english, other = (
        write(tmp_path / "en", {"a": "one", "b": {"c": "two", "d": "three"}}),
        write(tmp_path / "xx", {"b": {"d": "drei", "old": "weg"}, "a": "eins"}),
    )
    bring_in_step(english, other)
    assert json.loads((other / "main.json").read_text()) == {"a": "eins", "b": {"c": "two", "d": "drei"}}
    assert to_translate(texts_of(english), stamps_of(other)) == ["main.b.c"]

    write(english, {"a": "ONE", "b": {"c": "two", "d": "three"}})
    write(other, {"a": "eins", "b": {"c": "zwei", "d": "drei"}})
    for _ in range(2):  # nothing is forgotten when it is done again
        bring_in_step(english, other)
        assert to_translate(texts_of(english), stamps_of(other)) == ["main.a"]
    write(other, {"a": "EINS", "b": {"c": "zwei", "d": "drei"}})
    bring_in_step(english, other)
    assert to_translate(texts_of(english), stamps_of(other)) == []


@pytest.mark.parametrize(
    ("text", "translation", "gone"),
    [
        ("Up to 0.65 of 'cast'.", "Bis 0.6 von Besetzung.", {"0.65", "cast"}),
        ("auto: as the others", "selbst: wie die anderen", {"auto"}),
        ("Which part. auto: all. skip: none", "Welcher Teil. auto: alles. keiner", {"skip"}),
        ("When it starts to apply: 0 is the first step", "Ab wann: 0 ist der erste Schritt", set()),
        ("A file in models/gligen: x-y_z.safetensors", "Eine Datei", {"models/gligen", "x-y_z.safetensors", "y_z"}),
        ("LoRAs and a CLIP_VISION for SDXL", "LoRA und Bildleser", {"CLIP_VISION", "SDXL"}),
        ("ONE subject's photo, 3 at most", "Foto EINES Motivs, höchstens 3", set()),
    ],
)
def test_what_counts_as_lost(text, translation, gone):
    assert lost(text, translation) == gone
