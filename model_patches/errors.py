"""The pack's own exceptions. Every message is for an artist: what was expected, what was found, what to do."""

from __future__ import annotations

LONGEST_QUOTE = 60


def quoted(text: object) -> str:
    """Return a text from a file for a message: in quotes, on one line, cut where it is long."""
    plain = ascii(str(text)) if not str(text).isprintable() else f"'{text}'"
    return plain if len(plain) <= LONGEST_QUOTE else f"{plain[: LONGEST_QUOTE - 4]}...'"


class TroupeError(Exception):
    """The base class of Troupe's errors. `str(error)` is one paragraph that can be shown as it is.

    The classes claim to be built in: hosts show an exception's type with its module's path, which means nothing to an
    artist.

    Arguments: expected and found end in no full stop; remedy: what to do, whole sentences.
    """

    __module__ = "builtins"

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.__module__ = "builtins"

    def __init__(self, expected: str, found: str, remedy: str):
        self.expected, self.found, self.remedy = expected, found, remedy
        super().__init__(f"Expected {expected}, found {found}. {remedy}")


class CheckpointError(TroupeError):
    """An error about a model file that is missing, unreadable, of another kind, or incomplete."""


class SubjectError(TroupeError):
    """An error about a subject's photo, mask, name or number that is not usable."""


class MismatchError(TroupeError):
    """An error about two things that were wired together and do not belong together (encoder, CLIP, base model, adapter
    kind).
    """
