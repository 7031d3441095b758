"""Refusals of files: the form that their sentences have, and a file that would run code."""

import os

from troupe.model_patches.errors import CheckpointError
from troupe.model_patches.families.registry import read_adapter

from support.published_layouts import flat, layers
from support.side_effects import SLACK, outcome, starved, watched
from support.small_checkpoints import PLAIN


def checked(error, file):
    """The error's text, which must have its three parts and name the file."""
    assert error.expected and error.found and error.remedy
    text = str(error)
    assert (
        file in text and text.startswith("Expected ") and ", found " in text and text.rstrip().endswith((".", "name"))
    )
    assert "\n" not in text and "Traceback" not in text
    return text


class Bomb:
    """A pickle of it runs a command where pickles are allowed to."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch '{self.flag}'",)


STATE = flat(PLAIN, layers(16, (2, 4)))


def refused(path, read=read_adapter):
    """The text of the refusal of a file, within the watch's seconds and bytes; nothing ran."""
    with watched(reserve=SLACK + 4 * path.stat().st_size) as seen:
        _, error = outcome(lambda: read(path))
    assert type(error) is CheckpointError and not seen and not starved(error), (error, error and error.__cause__, seen)
    return checked(error, path.name)
