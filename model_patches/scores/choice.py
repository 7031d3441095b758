"""The best of several pictures, by the scores of Score Subjects or by numbers of any node."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import MismatchError, SubjectError

FROM_SCORES = "Connect 'scores' of Score Subjects, or a FLOAT for each picture."


def numbers_of(scores: Sequence[Any]) -> list[float]:
    """Return one number for each picture, from JSON of `report.to_json` (with as many as it has pictures), numbers, or
    lists of these.

    Raises SubjectError for anything else.
    """
    found: list[float] = []
    for value in scores:
        if isinstance(value, (list, tuple)):
            found += numbers_of(value)
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found.append(float(value))
        else:
            found += _of_json(value)
    return found


def _of_json(value: Any) -> list[float]:
    expected = "scores in 'scores'"
    try:
        pictures = json.loads(value)["pictures"]
        found = [float(picture["score"]) for picture in pictures]
    except (TypeError, ValueError, KeyError):
        text = value if isinstance(value, str) else type(value).__name__
        raise SubjectError(expected, f"'{text:.40}'", FROM_SCORES) from None
    if not all(map(math.isfinite, found)):
        raise SubjectError(expected, "a number that is not finite", FROM_SCORES)
    return found


def best(scores: Sequence[float], keep: int) -> list[int]:
    """Return the indices of the `keep` best scores, the best first; of equal ones the earlier."""
    return sorted(range(len(scores)), key=lambda i: -scores[i])[: max(keep, 1)]


def single_pictures(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the pictures [H, W, C] of batches [n, H, W, C]."""
    return [picture for batch in images for picture in batch]


def chosen_pictures(pictures: Sequence[torch.Tensor], indices: Sequence[int]) -> torch.Tensor:
    """Return the chosen pictures as one batch.

    Raises MismatchError where their sizes differ.
    """
    sizes = {tuple(pictures[i].shape) for i in indices}
    if len(sizes) > 1:
        found = " and ".join(f"{w}x{h}" for h, w, _ in sorted(sizes))
        raise MismatchError("pictures of one size", found, "Set 'keep' to 1, or scale the pictures to one size.")
    return torch.stack([pictures[i] for i in indices])


def chosen_latents(latents: Sequence[dict[str, Any]], indices: Sequence[int], count: int) -> dict[str, Any]:
    """Return the latents of the chosen pictures, with what belongs to each of them (noise_mask, batch_index).

    Raises MismatchError where there is not one latent for each of `count` pictures, or their sizes differ.
    """
    singles = [(latent, i) for latent in latents for i in range(len(latent["samples"]))]
    do = "Connect the latent that was decoded into these pictures, or disconnect 'latent'."
    if len(singles) != count:
        raise MismatchError(f"a latent for each of the {count} pictures in 'latent'", f"{len(singles)}", do)
    chosen = [singles[i] for i in indices]
    if len({tuple(latent["samples"].shape[1:]) for latent, _ in chosen}) > 1:
        raise MismatchError("latents of one size", "several sizes", "Set 'keep' to 1.")
    found: dict[str, Any] = {
        **chosen[0][0],
        "samples": torch.cat([latent["samples"][i : i + 1] for latent, i in chosen]),
    }
    if "noise_mask" in found:
        masks = [(latent.get("noise_mask"), i, len(latent["samples"])) for latent, i in chosen]
        kept = [mask[i : i + 1] if len(mask) == n else mask[:1] for mask, i, n in masks if mask is not None]
        found["noise_mask"] = torch.cat(kept) if len(kept) == len(chosen) else kept[0]
    if "batch_index" in found:
        found["batch_index"] = [latent.get("batch_index", list(range(i + 1)))[i] for latent, i in chosen]
    return found


@dataclass(frozen=True, eq=False)
class Kept:
    """The best pictures [n, H, W, C] and their latents, indices and scores, the best first."""

    pictures: torch.Tensor
    latent: dict[str, Any] | None
    indices: list[int]
    scores: list[float]

    @property
    def sentence(self) -> str:
        """What was kept."""
        which = ", ".join(f"{i + 1} ({score:.2f})" for i, score in zip(self.indices, self.scores, strict=True))
        return f"Kept picture {which}." if len(self.indices) == 1 else f"Kept pictures {which}."


def keep_best(
    images: Sequence[torch.Tensor], scores: Sequence[Any], keep: int, latents: Sequence[dict[str, Any]] | None = None
) -> Kept:
    """Return the `keep` best of all pictures in batches [n, H, W, C].

    Raises:
        SubjectError: scores that are none.
        MismatchError: another number of scores or latents than of pictures, or pictures of different sizes are kept.
    """
    pictures, numbers = single_pictures(images), numbers_of(scores)
    if len(numbers) != len(pictures) or not pictures:
        do = "Connect the same pictures to Score Subjects and Keep Best."
        raise MismatchError(f"a score for each of the {len(pictures)} pictures", f"{len(numbers)}", do)
    indices = best(numbers, keep)
    latent = None if not latents else chosen_latents(latents, indices, len(pictures))
    return Kept(chosen_pictures(pictures, indices), latent, indices, [numbers[i] for i in indices])
