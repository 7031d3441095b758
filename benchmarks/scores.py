"""Compare the verdicts of Score Subjects with the truth of the rehearsal world, and print the figures of its help page.

usage: python benchmarks/scores.py [--drawn N] [--painted N]

Drawn pictures: the truth is known. Painted ones: what `rehearsal/engine/verdict.py` says, where its two reads agree.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))

from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

THRESHOLD = 0.2  # the node's default


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compare verdicts of Score Subjects with the truth.")
    parser.add_argument("--drawn", type=int, default=30, help="drawings of each kind and cast (default: 30)")
    parser.add_argument("--painted", type=int, default=40, help="pictures of each merge and cast (default: 40)")
    arguments = parser.parse_args()
    hide_broken_torchaudio()
    load_pack()
    drawn(arguments.drawn)
    if arguments.painted:
        painted(arguments.painted)


def drawn(count: int) -> None:
    """Print the agreement on drawn pictures, by encoder, cast, and what the places come from."""
    from troupe.rehearsal.engine.drawn import CASES, drawn_case

    for encoder, one_class, by in product(encoders(), (True, False), ("masks", "boxes")):
        found = []
        for case in CASES:
            tally: Counter[bool] = Counter()
            for seed in range(count):
                one = drawn_case(case, one_class, seed)
                places = places_of_masks(one.masks, by == "masks")
                words = judged(encoder, one.figures, one.picture, places)
                tally.update(word == truth for word, truth in zip(words, one.verdicts, strict=True))
            found.append(f"{case} {tally[True]}/{tally.total()}")
        cast = "one class" if one_class else "two classes"
        print(f"drawn, {encoder.name}, {cast}, {by}: {', '.join(found)}", flush=True)


def painted(count: int) -> None:
    """Print the agreement on pictures that `relevance` and `add` painted, by encoder, merge, and what the places
    come from.
    """
    import torch
    from troupe.model_patches.hosts.diffusers.encoders import encode_references
    from troupe.model_patches.scores.places import place_of_map
    from troupe.rehearsal.engine.paint import load_rehearsal, paint
    from troupe.rehearsal.engine.recogniser import load_recogniser, recognise
    from troupe.rehearsal.engine.trials import cast_of, judge, trial
    from troupe.rehearsal.engine.verdict import sighting_of

    models, recogniser, both = load_rehearsal(), load_recogniser(), encoders()
    agreed: Counter[tuple[str, str, str]] = Counter()
    asked: Counter[tuple[str, str, str]] = Counter()
    for cast in ("one class", "two classes"):
        for merge in ("relevance", "add"):
            for seed in range(1000, 1000 + count):
                one, record = trial(cast, seed), []
                references = encode_references(
                    models.adapters["mip"], cast_of(one.figures), models.images, models.texts
                )
                picture = paint(models, one.scene.caption, one.seed, references, merge, record=record)[0]
                read = judge(recogniser, one, picture)
                seen = sighting_of(one.figures, recognise(recogniser, picture[None])[0])
                masks = torch.stack(
                    [torch.zeros(16, 16) if s is None else torch.from_numpy(s.mask).float() for s in seen]
                )
                maps = [m.values for m in record[0].subjects]
                found = {
                    "segments": places_of_masks(masks, True),
                    "boxes": places_of_masks(masks, False),
                    "maps": [None if m is None else place_of_map(m) for m in maps],
                }
                for encoder, by in product(both, found):
                    words = judged(encoder, one.figures, picture.movedim(0, -1), found[by])
                    for word, first, second in zip(words, read.by_recogniser, read.by_colours, strict=True):
                        if first == second:
                            asked[encoder.name, merge, by] += 1
                            agreed[encoder.name, merge, by] += word == first
    for key in asked:
        print(f"painted, {', '.join(key)}: {agreed[key]}/{asked[key]}", flush=True)


def encoders() -> list[Any]:
    """Return the PictureEncoders to compare: the rehearsal image encoder and the colours."""
    from troupe.model_patches.hosts.diffusers.encoders import ClipImages
    from troupe.model_patches.scores.colours import ColourPictures
    from troupe.model_patches.scores.scoring import ClipPictures
    from troupe.rehearsal.engine.load import load_image_encoder

    return [ClipPictures(ClipImages(load_image_encoder())), ColourPictures()]


def places_of_masks(masks: Any, cut_out: bool) -> list[Any]:
    """Return a place for each mask, None for an empty mask. cut_out: pixels outside the mask do not count."""
    from troupe.model_patches.scores.places import place_of_mask

    return [place_of_mask(mask, "mask", cut_out) for mask in masks]


def judged(encoder: Any, figures: Any, picture: Any, places: list[Any]) -> list[str]:
    """Return the verdict on each subject of a cast in a picture [128, 128, 3]."""
    from troupe.model_patches.scores.scoring import looks_of_cast, score_pictures
    from troupe.rehearsal.engine.trials import cast_of

    looks = looks_of_cast(cast_of(figures), encoder)
    scores = score_pictures(picture[None], looks, [places], encoder, THRESHOLD)
    return [verdict.word for verdict in scores.pictures[0].verdicts]


if __name__ == "__main__":
    main()
