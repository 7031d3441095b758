r"""ComfyUI's prompt notation.

`(word)` weighs 1.1, `(word:1.3)` weighs 1.3, brackets nest, `\(` and `\)` are brackets to be read.
"""

from __future__ import annotations

from contextlib import suppress

PLAIN = 1.0
BRACKETS = 1.1
ESCAPED = {"\\(": "\1", "\\)": "\2"}


def weighted_parts(prompt: str) -> list[tuple[str, float]]:
    """Return the prompt as texts with their weights, in order, notation removed; no part is empty.

    Nested brackets multiply (1.1 * 1.1) unless the inner ones name a number, which then replaces the product. Brackets
    that do not close are text.
    """
    for written, kept in ESCAPED.items():
        prompt = prompt.replace(written, kept)
    return [(text.replace("\1", "(").replace("\2", ")"), w) for text, w in _weigh(prompt, PLAIN)]


def _weigh(prompt: str, weight: float) -> list[tuple[str, float]]:
    parts: list[tuple[str, float]] = []
    for piece in _top_level(prompt):
        if len(piece) < 2 or piece[0] != "(" or piece[-1] != ")":
            parts.append((piece, weight))
            continue
        inner, own = piece[1:-1], weight * BRACKETS
        words, colon, number = inner.rpartition(":")
        if colon and words:
            with suppress(ValueError):  # a colon that belongs to the text
                own = float(number)
                inner = words
        parts += _weigh(inner, own)
    return parts


def _top_level(prompt: str) -> list[str]:
    """The prompt cut before each outermost `(` and after the `)` that closes it."""
    pieces, start, depth = [], 0, 0
    for i, letter in enumerate(prompt):
        if letter == "(":
            if depth == 0:
                pieces.append(prompt[start:i])
                start = i
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                pieces.append(prompt[start : i + 1])
                start = i + 1
    return [piece for piece in (*pieces, prompt[start:]) if piece]
