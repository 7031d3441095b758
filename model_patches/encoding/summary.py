"""One line about what a node has done, for the node in the front end."""

from __future__ import annotations

from ..subjects import References, ReferenceSubject


def summary(references: References) -> str:
    """Return who was encoded, with how many image and name tokens.

    '' for an empty cast, which has a warning of its own.
    """
    if not references.subjects:
        return ""
    return f"Encoded {who(references)}."


def who(references: References) -> str:
    """Return the subjects with their numbers of tokens: "2 subjects: 'cat' (4 image tokens, 1 name token), ..."."""
    return f"{counted(len(references.subjects), 'subject')}: {', '.join(map(_subject, references.subjects))}"


def counted(number: int, noun: str) -> str:
    """Return '1 subject', '2 subjects'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _subject(s: ReferenceSubject) -> str:
    tokens = [
        counted(len(found), kind)
        for found, kind in ((s.tokens, "image token"), (s.name_tokens, "name token"))
        if found is not None
    ]
    return f"'{s.name}'" + (f" ({', '.join(tokens)})" if tokens else "")
