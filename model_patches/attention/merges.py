"""The ways to merge several subjects at a position, in a table: what the code asks about each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import MismatchError, quoted
from .relevance import mean_relevance, shares

if TYPE_CHECKING:
    from jaxtyping import Float

WeightFunction = Callable[[torch.Tensor, torch.Tensor | None, float], torch.Tensor]


@dataclass(frozen=True)
class MergeRule:
    """The properties of a merge.

    Attributes:
        weights: (relevance [G, B, M, N], limits or None, sharpness) -> weights [G, B, M, N], in float32; None if the
            weights do not depend on the relevance, so that no names are needed. Without `above_one` they sum to 1 over
            M, or are 0 where all limits are 0. The caller multiplies by the limits and strengths afterwards; a subject
            of strength 0 keeps its share. In unconditional rows all names of the same length are equally relevant, so
            that a merge that chooses subjects must break ties by their order.
        records_weights: the weights of several subjects, times the limits, are what `limited_shares` returns, so that a
            recording needs no second computation.
        lone_needs_names: `weights` also applies to a single subject, which otherwise weighs 1.
        share_one: without relevance, each subject weighs 1 instead of an equal share.
        one_softmax: one softmax over the tokens of all subjects, instead of one per subject.
        background: `background_gain` applies.
        gain_on_text: `text_gain` multiplies the text attention instead of the subjects.
        above_one: weights can be as large as N, which float16 cannot hold.
    """

    weights: WeightFunction | None = None
    records_weights: bool = False
    lone_needs_names: bool = False
    share_one: bool = False
    one_softmax: bool = False
    background: bool = True
    gain_on_text: bool = False
    above_one: bool = False

    @property
    def needs_names(self) -> bool:
        """Whether several subjects need their names encoded."""
        return self.weights is not None

    def equal_weights(
        self, subjects: Float[Tensor, "1 1 M 1"], limits: Float[Tensor, "#G #B M N"] | None
    ) -> Float[Tensor, "#G #B M #N"]:
        """Return the weights without relevance. subjects: ones, [1, 1, M, 1]; result: broadcastable to [G, B, M, N]."""
        return subjects if self.share_one else shares(subjects, limits)


def _paper(relevance: torch.Tensor, limits: torch.Tensor | None, sharpness: float) -> torch.Tensor:
    return mean_relevance(relevance, sharpness)


MERGES: Mapping[str, MergeRule] = {
    "relevance": MergeRule(shares, records_weights=True),  # MIP-Adapter's published code: shares of the relevance
    "paper": MergeRule(_paper, lone_needs_names=True, gain_on_text=True, above_one=True),  # the paper's formula
    "uniform": MergeRule(background=False),  # equal shares
    "joint": MergeRule(share_one=True, one_softmax=True),  # all photos as one reference
    "add": MergeRule(share_one=True),  # weight 1 each, as stacked IP-Adapters
}
NAMELESS = tuple(name for name, rule in MERGES.items() if not rule.needs_names)


@dataclass(frozen=True)
class Mixing:
    """The settings by which several subjects share a position.

    merge: a name of `MERGES`; sharpness: power on the relevance, > 0; background: 0..1, see `background_gain`.
    Raises MismatchError for an unknown merge.
    """

    merge: str = "relevance"
    sharpness: float = 1.0
    background: float = 1.0

    def __post_init__(self) -> None:
        if self.merge not in MERGES:
            raise MismatchError(f"one of {', '.join(MERGES)} as 'merge'", quoted(self.merge), "Choose one of them.")

    @property
    def rule(self) -> MergeRule:
        """The row of `MERGES`."""
        return MERGES[self.merge]

    def needs_relevance(self, subjects: int) -> bool:
        """Return whether that many subjects need the relevance of their names, for the merge or the background."""
        rule = self.rule
        if rule.needs_names and (subjects > 1 or rule.lone_needs_names):
            return True
        return rule.background and self.background < 1.0
