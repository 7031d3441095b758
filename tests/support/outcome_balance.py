"""For tests of many drawn examples: nearly all refused, or nearly all accepted, would prove little."""

from __future__ import annotations

from collections.abc import Callable

ACCEPTED: list[bool] = []  # of the test that runs: whether each example was accepted


def both_ways(accepted: float, refused: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A test that fails too where less than these shares of its examples were accepted, or refused.

    The test appends to ACCEPTED.
    """

    def decorate(test: Callable[[], None]) -> Callable[[], None]:
        def checked() -> None:
            ACCEPTED.clear()
            test()
            share = sum(ACCEPTED) / len(ACCEPTED)
            assert accepted <= share <= 1 - refused, f"{share:.0%} of {len(ACCEPTED)} examples were accepted"

        checked.__name__, checked.__doc__ = test.__name__, test.__doc__
        checked.pytestmark = list(getattr(test, "pytestmark", []))  # type: ignore[attr-defined]
        return checked

    return decorate
