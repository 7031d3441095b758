"""What the tools raise for a user's mistake."""

from __future__ import annotations


class RunError(Exception):
    """Something the user can fix; `str(error)` is the sentence to show."""
