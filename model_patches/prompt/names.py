"""Comparing a subject's name with a prompt, as an artist reads them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

WEIGHT = re.compile(r":\s*[-+]?\d*\.?\d+\s*(?=\)|$)")


# scripts that write no spaces, or join particles to a noun
SPACELESS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def plain_words(text: str) -> str:
    """Return lower case words with single spaces: emphasis and its numbers gone, escaped brackets kept as brackets,
    underscores as spaces.
    """
    kept = unicodedata.normalize("NFC", text).replace("\\(", "\0").replace("\\)", "\1")
    kept = re.sub(r"[()]", " ", WEIGHT.sub(" ", kept))
    kept = kept.replace("\0", "(").replace("\1", ")").replace("_", " ")
    return " ".join(kept.lower().split())


def stands_in(name: str, prompt: str) -> bool:
    """Return whether the prompt holds the name as whole words, a plural s or es allowed.

    Digits and letters are words of their own, as for CLIP: 'girl' is in '1girl'.
    """
    words = plain_words(name)
    if not words:
        return False
    before = rf"(?<!{_letter_class(words[0])})" if _bounded(words[0]) else ""
    after = rf"(?:e?s)?(?!{_letter_class(words[-1])})" if _bounded(words[-1]) else ""
    return re.search(before + re.escape(words) + after, plain_words(prompt)) is not None


def _letter_class(letter: str) -> str:
    """What may not be beside this letter at the edge of a word: digits beside a digit, letters beside a letter."""
    return r"\d" if letter.isdigit() else r"[^\W\d_]"


def _bounded(letter: str) -> bool:
    """Whether a word that begins or ends with this letter is separate from the letters beside it."""
    return re.match(r"\w", letter) is not None and SPACELESS.match(letter) is None


def duplicate_warnings(names: Sequence[str], placed: Sequence[bool]) -> list[str]:
    """Return one sentence for each group of subjects with the same name, where not all of them have a box or region of
    their own.
    """
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names, 1):
        if name.strip():
            groups.setdefault(plain_words(name), []).append(number)
    sentences = []
    for numbers in groups.values():
        if len(numbers) < 2 or all(placed[n - 1] for n in numbers):
            continue
        listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
        both, part = ("both", "half") if len(numbers) == 2 else ("all", f"1/{len(numbers)}")
        sentences.append(
            f"Give subjects {listed} different names, as in the prompt, or a box or region each: they are "
            f"{both} called '{names[numbers[0] - 1]}', "
            f"so relevance cannot tell them apart and each gets {part} of the picture everywhere."
        )
    return sentences


def missing_warnings(names: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Return one sentence for each name that is in none of the prompts; none if no prompt is known."""
    if not any(p.strip() for p in prompts):
        return []
    shown = " / ".join(" ".join(p.split())[:120] for p in prompts if p.strip())
    return [
        f"'{name}' is not in your prompt ({shown}): add it, or change the name of subject {n}."
        for n, name in enumerate(names, 1)
        if name.strip() and not any(stands_in(name, p) for p in prompts)
    ]
