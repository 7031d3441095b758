"""Measure what the warning after a third of the steps is worth, and what its remedies do, in the rehearsal world, and
write benchmarks/OVERLAP_CHECK.md and the figures of docs/settings.md.

usage: python benchmarks/overlap_check.py [--casts NAME ...] [--trials N] [--minutes M]

Trials with the merge `relevance`. The overlap of every trial is measured after a third of its steps. Those that a rule
names, and one in `SAMPLE` of all, are painted to the end; the named ones with the remedies too. Thresholds of rules
that are no warning come from the trials in `CHOOSING` alone, which are not counted. Results are kept trial by trial in
benchmarks/overlap_check.json, so a run that was stopped goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent / "tools"))

import contextlib  # noqa: E402
from unittest import mock  # noqa: E402

from confusion import fingerprint  # noqa: E402
from overlap_check_counts import (  # noqa: E402
    AS_IT_IS,
    CASTS,
    CHOOSING,
    FIRST,
    LEAST,
    MOST_SEEDS,
    ONE_PLACE,
    SAMPLE,
    chosen,
    named_by_rule,
    thresholds,
)
from overlap_check_page import write_pages  # noqa: E402
from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

RESULTS = FOLDER / "overlap_check.json"
USED = ("unet", "text_encoder", "image_encoder", "rehearsal_mip_adapter", "recogniser")  # model files
OTHER_SEED = 100_000  # added to a trial's seed for another one
EVERY = 60  # seconds between two writes
CONTACT = "contact"  # a merge for this measurement only


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Measure what the look at the subjects' places is worth.")
    parser.add_argument("--casts", nargs="+", default=list(CASTS), choices=CASTS)
    parser.add_argument("--trials", type=int, default=1000, help=f"of each cast, from seed {FIRST} on (default: 1000)")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long; the next run goes on")
    options = parser.parse_args()
    hide_broken_torchaudio()
    load_pack()
    import torch

    torch.set_num_threads(1)
    results = of_today(json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {})
    trials, painter = results["trials"], Painter()
    end, saved = time.monotonic() + 60 * options.minutes, time.monotonic()
    counted = range(FIRST, FIRST + options.trials)
    for seed in (*CHOOSING, *counted):
        limits = {} if seed in CHOOSING else thresholds(trials)
        for cast in CASTS if seed in CHOOSING else options.casts:
            if str(seed) not in trials.setdefault(cast, {}):
                trials[cast][str(seed)] = measured(painter, cast, seed, limits)
        if time.monotonic() > saved + EVERY:
            save(results)
            saved = time.monotonic()
        if time.monotonic() > end:
            break
    save(results)
    if chosen(trials):
        write_pages(RESULTS)


def of_today(results: dict[str, Any]) -> dict[str, Any]:
    """Return the results if they are those of the shipped models, else none."""
    models = {name: sha for name, sha in fingerprint().items() if name.removesuffix(".safetensors") in USED}
    return results if results.get("models") == models else {"models": models, "trials": {}}


def save(results: dict[str, Any]) -> None:
    """Write the results, a line a trial, casts and seeds in order; an interrupted write leaves the last ones."""
    casts = []
    for cast in (cast for cast in CASTS if cast in results["trials"]):
        found = results["trials"][cast]
        lines = (f'"{seed}": {json.dumps(found[seed], separators=(",", ":"))}' for seed in sorted(found, key=int))
        casts.append(f'"{cast}": {{\n' + ",\n".join(lines) + "\n}")
    models = json.dumps(results["models"], indent=1)
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(f'{{"models": {models},\n"trials": {{\n{",".join(casts)}\n}}}}\n', encoding="utf-8")
    partial.replace(RESULTS)


def measured(painter: Painter, cast: str, seed: int, limits: dict[str, float]) -> dict[str, Any]:
    """Return what is seen of a trial after a third of its steps, and its pictures, if it is finished: as it is, and
    with each remedy if a rule names a subject. limits: threshold of each rule, none for a trial of `CHOOSING`.
    """
    from troupe.rehearsal.engine.trials import places_drawn, trial

    one, found = trial(cast, seed), {}  # what is seen first, then the pictures

    def finished(seen: dict[str, Any]) -> bool:
        found.update(seen)
        return seed not in CHOOSING and (seed % SAMPLE == 0 or is_named(found, limits))

    latent = painter.watched(one, finished)
    if latent is None:
        return found
    pictures = found["pictures"] = {AS_IT_IS: painter.read(one, latent)}
    if not is_named(found, limits):
        return found
    ways: dict[str, dict[str, Any]] = {"a box for each": {"places": places_drawn(one)}}
    if named_by_rule(found, ONE_PLACE, limits[ONE_PLACE]):
        ways |= {"sharpness 3": {"sharpness": 3.0}, "sharpness 3 only where the two meet": {"merge": CONTACT}}
    pictures |= {way: painter.read(one, painter.sampled(one, **how)) for way, how in ways.items()}
    pictures["another seed"], found["begun"] = another_seed(painter, one, limits[ONE_PLACE])
    return found


def is_named(seen: dict[str, Any], limits: dict[str, float]) -> bool:
    """Return whether a rule names any subject."""
    return any(named_by_rule(seen, rule, limits[rule]) for rule in limits)


def another_seed(painter: Painter, one: Any, limit: float) -> tuple[dict[str, Any], int]:
    """Return what is read from the first picture of another seed that is not warned of, or from the last one that is
    tried, and how many were begun. limit: overlap from which it is warned of.
    """
    for begun in range(1, MOST_SEEDS):
        seed = one.seed + begun * OTHER_SEED
        latent = painter.watched(one, lambda seen: not named_by_rule(seen, ONE_PLACE, limit), seed=seed)
        if latent is not None:
            return painter.read(one, latent), begun
    return painter.read(one, painter.sampled(one, seed=one.seed + MOST_SEEDS * OTHER_SEED)), MOST_SEEDS


class LookedEnoughError(Exception):
    """The end of a run of which no more is wanted."""


class Painter:
    """The rehearsal models, and the ways to paint a trial with them."""

    def __init__(self) -> None:
        from troupe.rehearsal.engine.paint import load_rehearsal
        from troupe.rehearsal.engine.recogniser import load_recogniser

        self.models, self.recogniser = load_rehearsal(), load_recogniser()

    def watched(self, one: Any, finished: Callable[[dict[str, Any]], bool], **how: Any) -> Any:
        """Return the latent of a trial, or None if it is not to be finished. finished: gets `seen_in` of the maps
        after a third of the steps; how: see `sampled`.
        """
        from troupe.model_patches.hosts.diffusers.image_attention import ImageAttention

        class Watched(ImageAttention):
            def overlaps_seen(self) -> list[str]:
                look, self._look = self._look, None
                if look is not None and not finished(seen_in(look.check)):
                    raise LookedEnoughError
                return []

        with contextlib.suppress(LookedEnoughError):
            return self.sampled(one, attention=Watched, warn=lambda sentence: None, **how)
        return None

    def read(self, one: Any, latent: Any) -> dict[str, Any]:
        """Return what the recogniser sees in a finished picture: the latent cells of every part of each subject's
        class, largest first, and the verdicts on their looks, by itself and by colours.
        """
        from troupe.rehearsal import codec
        from troupe.rehearsal.engine.trials import judge
        from troupe.rehearsal.engine.verdict import LETTERS

        picture = (codec.decode(latent)[0] / 2 + 0.5).clamp(0, 1)
        judgement = judge(self.recogniser, one, picture)
        reads = (judgement.by_recogniser, judgement.by_colours)
        return {
            "cells": [parts_of(self.recogniser, picture, figure.kind) for figure in one.figures],
            "looks": ["".join(LETTERS[verdict] for verdict in read) for read in reads],
        }

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
        from troupe.model_patches.attention.merges import MERGES, MergeRule, Mixing
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
        with mock.patch.dict(MERGES, {CONTACT: MergeRule(_contact, records_weights=True)}):
            applied = [(references, ImageAttentionSettings(1.0, Mixing(merge, sharpness)))]
            return sample(models.unet, scheduler(), *prompts, settings, applied, **more)


def seen_in(check: Any) -> dict[str, Any]:
    """Return what rules are made of. check: `OverlapCheck` of one picture.

    overlaps: of every pair, in the order of combinations; own: of each subject, the part of its relevance at positions
    where no other subject's is larger; apart: the root mean square distance of its relevance from its middle, in
    sides of the picture.
    """
    from itertools import combinations

    import torch

    overlaps, maps = check.overlaps()[0], check.total[0]
    maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-12)
    pairs = [float(overlaps[pair]) for pair in combinations(range(len(maps)), 2)]
    own = (maps * (maps == maps.amax(0))).sum(-1)
    (h, w), spread = check.grid, torch.zeros(len(maps))
    for place in ((torch.arange(h * w) // w + 0.5) / h, (torch.arange(h * w) % w + 0.5) / w):
        middle = (maps * place).sum(-1, keepdim=True)
        spread += (maps * (place - middle).square()).sum(-1)
    return {"overlaps": rounded(pairs), "own": rounded(own.tolist()), "apart": rounded(spread.sqrt().tolist())}


def rounded(values: Sequence[float]) -> list[float]:
    """Return the values with four decimals."""
    return [round(value, 4) for value in values]


def parts_of(recogniser: Any, picture: Any, kind: str) -> list[int]:
    """Return how many latent cells each connected part of a class has in a picture [3, 128, 128], largest first."""
    import torch
    from skimage.measure import label
    from troupe.rehearsal.world import CLASSES

    cells = torch.nn.functional.avg_pool2d(picture[None].float(), 4) * 2 - 1
    with torch.no_grad():
        kinds = recogniser(cells)["kind"][0].argmax(0).numpy()
    labelled: Any = label(kinds == CLASSES.index(kind) + 1, background=0, connectivity=1, return_num=True)
    parts, count = labelled
    sizes = sorted((int((parts == part).sum()) for part in range(1, count + 1)), reverse=True)
    return [size for size in sizes if size >= LEAST]


def _contact(relevance: Any, limits: Any, sharpness: float) -> Any:
    """Shares of sharpness 3 where two names are more relevant than on average, else of sharpness 1."""
    import torch
    from troupe.model_patches.attention.relevance import shares

    meeting = (relevance * relevance.shape[-1] > 1).sum(-2, keepdim=True) > 1
    return torch.where(meeting, shares(relevance, limits, 3.0), shares(relevance, limits, 1.0))


if __name__ == "__main__":
    main()
