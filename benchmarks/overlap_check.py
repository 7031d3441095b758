"""Measure what the look at the subjects' places after a third of the steps is worth, and print the figures of
docs/settings.md.

usage: python benchmarks/overlap_check.py [--seeds N] [--calm N] [--casts NAME ...]

Trials of the rehearsal world with the merge `relevance`. Of those whose subjects lie apart only the first ones are
painted to the end. A picture lacks a subject if the recogniser finds none of its class and size.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

import contextlib

from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

OTHER_SEED = 100_000  # added to a trial's seed for another one
GROUPS = (0.0, 0.65, 0.75)  # lowest overlap of a group of pictures


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure what the look at the subjects' places is worth.")
    parser.add_argument("--seeds", type=int, default=400, help="trials of a cast, from seed 6000 on (default: 400)")
    parser.add_argument("--calm", type=int, default=120, help="calm trials that are painted (default: 120)")
    parser.add_argument("--casts", nargs="+", default=["two classes", "three subjects"])
    arguments = parser.parse_args()
    hide_broken_torchaudio()
    load_pack()
    for cast in arguments.casts:
        print_figures(cast, measure(cast, range(6000, 6000 + arguments.seeds), arguments.calm))


def measure(cast: str, seeds: Sequence[int], calm: int) -> list[tuple[float, dict[str, list[str]]]]:
    """Return, for every trial, the largest overlap of two subjects, and the verdicts with each remedy; none for calm
    trials after the first ones.
    """
    from troupe.rehearsal.engine.trials import trial
    from troupe.rehearsal.world import boxes

    painter, found = Painter(), []
    for seed in seeds:
        one = trial(cast, seed)
        overlap, verdicts = painter.overlap(one), {}
        if overlap >= GROUPS[1] or calm > 0:
            calm -= overlap < GROUPS[1]
            drawn = boxes(one.scene)
            verdicts = {
                "as it is": painter.verdicts(one),
                "sharpness 3": painter.verdicts(one, sharpness=3.0),
                "sharpness 3 where two names meet": painter.verdicts(one, merge="contact"),
                "boxes": painter.verdicts(one, places=[drawn[i] for i in one.scene.mentioned]),
                "another seed": painter.verdicts(one, seed=seed + OTHER_SEED),
            }
        found.append((overlap, verdicts))
    return found


def print_figures(cast: str, found: Sequence[tuple[float, dict[str, list[str]]]]) -> None:
    """Print a Markdown table of a cast."""
    print(f"\n{cast}: {len(found)} trials\n\n| overlap | trials | remedy | painted | lack a subject | all right |")
    print("| --- | --- | --- | --- | --- | --- |")
    for low, high in zip(GROUPS, (*GROUPS[1:], 2.0), strict=True):
        group = [verdicts for overlap, verdicts in found if low <= overlap < high]
        by_remedy: dict[str, list[list[str]]] = defaultdict(list)
        for verdicts in group:
            for remedy, words in verdicts.items():
                by_remedy[remedy].append(words)
        for remedy, pictures in by_remedy.items():
            lacking = sum("missing" in words for words in pictures)
            right = sum(all(word == "right" for word in words) for words in pictures)
            print(
                f"| {low:g} to {min(high, 1):g} | {len(group)} | {remedy} | {len(pictures)} | {lacking} | {right} |",
                flush=True,
            )


class LookedEnoughError(Exception):
    """The end of a run of which no more than the overlap is wanted."""


class Painter:
    """The rehearsal models, and the ways to paint a trial with them."""

    def __init__(self) -> None:
        from troupe.model_patches.attention import merges
        from troupe.rehearsal.engine.paint import load_rehearsal
        from troupe.rehearsal.engine.recogniser import load_recogniser

        merges.MERGES["contact"] = merges.MergeRule(_contact, records_weights=True)  # for this measurement only
        self.models, self.recogniser = load_rehearsal(), load_recogniser()

    def overlap(self, one: Any) -> float:
        """Return the largest overlap of two subjects' relevance after a third of the steps."""
        from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention

        seen: list[float] = []

        class Watched(ImageAttention):
            def overlaps_seen(self) -> list[str]:
                if self._look is not None:
                    overlaps = self._look.check.overlaps()[0]
                    seen.append(float((overlaps - overlaps.diag().diag()).max()))
                    raise LookedEnoughError
                return []

        with contextlib.suppress(LookedEnoughError):
            self.sampled(one, attention=Watched, warn=lambda sentence: None)
        return seen[0]

    def verdicts(self, one: Any, **how: Any) -> list[str]:
        """Return the recogniser's verdict on each subject of a finished picture. how: see `sampled`."""
        from troupe.rehearsal import codec
        from troupe.rehearsal.engine.trials import judge

        picture = (codec.decode(self.sampled(one, **how))[0] / 2 + 0.5).clamp(0, 1)
        return judge(self.recogniser, one, picture).by_recogniser

    def sampled(
        self,
        one: Any,
        merge: str = "relevance",
        sharpness: float = 1.0,
        places: Any = None,
        seed: int | None = None,
        **more: Any,
    ) -> Any:
        """Return the latent of a trial. places: boxes; more: of `sample`."""
        from troupe.model_patches.attention.merges import Mixing
        from troupe.model_patches.binding.settings import ImageAttentionSettings
        from troupe.model_patches.hosts.diffusers.encoders import encode_references
        from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, sample
        from troupe.rehearsal.engine.paint import CFG, STEPS, scheduler
        from troupe.rehearsal.engine.trials import cast_of
        from troupe.rehearsal.world import PIXELS

        models = self.models
        cast = cast_of(one.figures, places)
        references = encode_references(models.adapters["mip"], cast, models.images, models.texts)
        prompts = [models.texts.encode_prompt(text) for text in (one.scene.caption, "")]
        settings = SamplingSettings(PIXELS, PIXELS, STEPS, CFG, one.seed if seed is None else seed)
        applied = [(references, ImageAttentionSettings(1.0, Mixing(merge, sharpness)))]
        return sample(models.unet, scheduler(), *prompts, settings, applied, **more)


def _contact(relevance: Any, limits: Any, sharpness: float) -> Any:
    """Shares of sharpness 3 where two names are more relevant than on average, else of sharpness 1."""
    import torch
    from troupe.model_patches.attention.relevance import shares

    meeting = (relevance * relevance.shape[-1] > 1).sum(-2, keepdim=True) > 1
    return torch.where(meeting, shares(relevance, limits, 3.0), shares(relevance, limits, 1.0))


if __name__ == "__main__":
    main()
