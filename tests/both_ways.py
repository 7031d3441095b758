"""For tests of many drawn examples: nearly all refused, or nearly all accepted, would prove little."""
from __future__ import annotations

from collections.abc import Callable

ACCEPTED: list[bool] = []  # of the test that runs: whether each example was accepted


def both_ways(least: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A test that fails too where fewer than a share `least` of its examples were accepted, or fewer refused. The test appends to ACCEPTED."""

    def decorate(test: Callable[[], None]) -> Callable[[], None]:
        def checked() -> None:
            ACCEPTED.clear()
            test()
            share = sum(ACCEPTED) / len(ACCEPTED)
            assert least <= share <= 1 - least, f"{share:.0%} of {len(ACCEPTED)} examples were accepted"

        checked.__name__, checked.__doc__ = test.__name__, test.__doc__
        checked.pytestmark = list(getattr(test, "pytestmark", []))  # type: ignore[attr-defined]
        return checked

    return decorate
