"""What a node says when it refuses something."""

from __future__ import annotations


def sentence(text, *words):
    """Our three-part sentence with these words in it, and no traceback."""
    assert text is not None, "nothing went wrong"
    assert (
        text.removeprefix("validation: ").startswith("Expected ") and ", found " in text and "Traceback" not in text
    ), text
    for word in words:
        assert word in text, text
