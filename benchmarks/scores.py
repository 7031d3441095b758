"""Compare the verdicts of Score Subjects, as a node of a ComfyUI, with the truth of the rehearsal world, and write
benchmarks/scores.json and the figures of the node's help page.

usage: python benchmarks/scores.py [--drawn N] [--painted N] [--limits N]

Drawn pictures: the truth is known. Painted ones: what `rehearsal/engine/verdict.py` says, where its two reads agree;
clear ones are those whose colours are exactly those of one reference. Limits: other pictures of both kinds, by which
`verdicts.FOREIGN` was chosen.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections import namedtuple
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent / "tools"))

from scores_page import PAGE, with_verdicts  # noqa: E402
from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

RESULTS = FOLDER / "scores.json"
THRESHOLD = 0.2  # the node's default
LIMITS = (0.14, 0.16, 0.18, 0.2, 0.22, 0.24, 0.26, 0.3)  # in place of verdicts.FOREIGN
PAINTED_FROM, LIMITS_FROM = 1000, 5000  # first seeds
ENCODERS = ("clip_vision", "colours")
CASTS = {"one class": True, "two classes": False}
INPUTS = ("masks", "segs", "bounding_boxes")
SEG = namedtuple("SEG", "cropped_mask confidence bbox label crop_region")  # as Impact Pack's detectors give it
Counts = dict[str, list[int]]  # of each kind or merge: verdicts that are true, and all


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Compare verdicts of Score Subjects with the truth.")
    parser.add_argument(
        "--drawn", type=int, default=30, help="drawings of each kind and cast (default: 30); 0: no new ones"
    )
    parser.add_argument(
        "--painted", type=int, default=40, help="pictures of each merge and cast (default: 40); 0: as above"
    )
    parser.add_argument("--limits", type=int, default=40, help="as many of each for the limits (default: 40)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        begin_host(base)
        found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        found["comfyui"] = host_version()
        for encoder, by in product(ENCODERS, INPUTS if arguments.drawn else ()):
            counts = {cast: drawn(encoder, cast, by, range(arguments.drawn)) for cast in CASTS}
            found.setdefault("drawn", {}).setdefault(encoder, {})[by] = counts
            print(encoder, by, counts, flush=True)
        if arguments.painted:
            found["painted"] = true_verdicts(arguments.painted)
            print(found["painted"], flush=True)
        if arguments.limits:
            found["limits"] = by_limit(arguments.limits)
            print(found["limits"], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_verdicts(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


def begin_host(base: str) -> None:
    """Load the host's modules, on the CPU, with `base` as the folder that its nodes write to. Ends the command where
    there is no ComfyUI.
    """
    from troupe_tools.engine.comfyui import find_comfyui

    host = find_comfyui()
    if host is None:
        sys.exit("No ComfyUI was found. Set COMFYUI_PATH to its folder.")
    sys.path.insert(0, str(host))
    hide_broken_torchaudio()
    sys.argv[1:] = ["--cpu", "--base-directory", base, "--disable-api-nodes"]
    import comfy.options

    comfy.options.enable_args_parsing()
    load_pack()
    logging.getLogger("troupe").setLevel(logging.ERROR)


def host_version() -> str:
    """Return the version of the ComfyUI that was begun."""
    import comfyui_version

    return comfyui_version.__version__


# ---- the node --------------------------------------------------------------------------------------------------------


@cache
def rehearsal_clip_vision() -> Any:
    """Return the rehearsal image encoder as the host's CLIP_VISION."""
    from troupe.model_patches.hosts.comfyui.loading.rehearsal_models import clip_vision

    return clip_vision()


def verdicts_of(encoder: str, figures: Any, picture: Any, wired: dict[str, Any]) -> list[str]:
    """Return the node's verdict on each subject of a cast in a picture [128, 128, 3]. wired: its inputs that say where
    the subjects are.
    """
    import torch
    from troupe.nodes.score_subjects import ScoreSubjects
    from troupe.rehearsal.engine.trials import cast_of

    vision = rehearsal_clip_vision() if encoder == "clip_vision" else None
    with torch.inference_mode():
        out = ScoreSubjects.PREPARE_CLASS_CLONE(None).execute(
            image=picture[None],
            encoder=encoder,
            threshold=THRESHOLD,
            prompt="",
            cast=cast_of(figures),
            clip_vision=vision,
            **wired,
        )
    [scored] = json.loads(out.result[0])["pictures"]
    return [subject["verdict"] for subject in scored["subjects"]]


def wired_places(masks: Any, by: str, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Return masks [n, h, w], those of the subjects first, as the node's input `by`, as a detector gives it: boxes and
    segments with labels or without, and none for an empty mask.
    """
    from troupe.model_patches.encoding.framing import bounding_box
    from troupe.rehearsal.world import PIXELS

    if by == "masks":
        return {"masks": masks}
    scale, labels = PIXELS // masks.shape[-1], labels or [""] * len(masks)
    large = masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    found: list[Any] = []
    for mask, label in zip(large, labels, strict=True):
        edges = bounding_box(mask)
        if edges is None:
            found += [None] if by == "bounding_boxes" else []
            continue
        top, left, bottom, right = edges
        box = {"x": left, "y": top, "width": right - left, "height": bottom - top, "label": label}
        corners = (left, top, right, bottom)
        part = mask[top:bottom, left:right].numpy()
        found.append(box if by == "bounding_boxes" else SEG(part, 0.9, corners, label, corners))
    return {by: found if by == "bounding_boxes" else ((PIXELS, PIXELS), found)}


# ---- drawn -----------------------------------------------------------------------------------------------------------


def drawn(encoder: str, cast: str, by: str, seeds: Sequence[int], cases: Sequence[str] = ()) -> Counts:
    """Return how many verdicts on drawings are true, and of how many, by kind."""
    from drawn_cases import CASES, MORE_CASES, drawn_case

    counts: Counts = {}
    for case in cases or (*CASES, *MORE_CASES):
        pairs: list[tuple[str, str]] = []
        for seed in seeds:
            one = drawn_case(case, CASTS[cast], seed)
            words = verdicts_of(encoder, one.figures, one.picture, wired_places(one.masks, by))
            pairs += zip(words, one.verdicts, strict=True)
        counts[case] = [sum(word == truth for word, truth in pairs), len(pairs)]
    return counts


# ---- painted ---------------------------------------------------------------------------------------------------------


def true_verdicts(count: int) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Return how many verdicts on pictures that `relevance` and `add` painted are the truth's, and of how many, by
    encoder and what the places come from: of all where the two reads agree, of the clear ones, and of the clear ones
    that are in the picture.
    """
    found: dict[str, dict[str, dict[str, list[int]]]] = {}
    for picture, figures, truth, clear, places in painted_pictures(range(PAINTED_FROM, PAINTED_FROM + count)):
        for encoder, (by, wired) in product(ENCODERS, places.items()):
            words = verdicts_of(encoder, figures, picture, wired)
            tally = found.setdefault(encoder, {}).setdefault(by, {kind: [0, 0] for kind in ("all", "clear", "there")})
            for word, true, is_clear in zip(words, truth, clear, strict=True):
                counted = {"all": true is not None, "clear": is_clear, "there": is_clear and true != "missing"}
                for kind in (kind for kind, counts in counted.items() if counts and true is not None):
                    tally[kind][0] += word == true
                    tally[kind][1] += 1
    return found


def by_limit(count: int) -> dict[str, dict[str, list[int]]]:
    """Return for each of LIMITS how many verdicts of `colours` are true, and of how many, with the places of `segs`: on
    drawings of mixed looks, and of clear subjects in painted pictures.
    """
    from drawn_cases import drawn_case
    from troupe.model_patches.scores import verdicts

    seeds = range(LIMITS_FROM, LIMITS_FROM + count)
    mixed = [drawn_case("mixed", alike, seed) for alike, seed in product(CASTS.values(), seeds)]
    pictures = [(one.figures, one.picture, wired_places(one.masks, "segs"), one.verdicts) for one in mixed]
    clear = []
    for picture, figures, truth, is_clear, places in painted_pictures(seeds):
        wanted = [word if sure else None for word, sure in zip(truth, is_clear, strict=True)]
        clear.append((figures, picture, places["segs"], wanted))
    chosen, found = verdicts.FOREIGN, {}
    for limit in LIMITS:
        verdicts.FOREIGN = limit
        found[f"{limit:g}"] = {"mixed": _true(pictures), "clear": _true(clear)}
    verdicts.FOREIGN = chosen
    return found


def _true(cases: Sequence[tuple[Any, Any, Any, Sequence[str | None]]]) -> list[int]:
    """[true, all] of the verdicts with a truth. cases: (figures, picture, wired, truths)."""
    pairs = [
        pair
        for figures, picture, wired, truths in cases
        for pair in zip(verdicts_of("colours", figures, picture, wired), truths, strict=True)
        if pair[1] is not None
    ]
    return [sum(word == truth for word, truth in pairs), len(pairs)]


def painted_pictures(
    seeds: Sequence[int],
) -> Iterator[tuple[Any, Any, list[str | None], list[bool], dict[str, dict[str, Any]]]]:
    """Yield pictures [128, 128, 3], their casts, the truth on each subject (None where the reads differ), whether it is
    clear, and the node's inputs that say where the subjects are.
    """
    import torch
    from troupe.model_patches.hosts.diffusers.encoders import encode_references
    from troupe.model_patches.relevance.maps import RecordedRun
    from troupe.rehearsal.engine.paint import load_rehearsal, paint
    from troupe.rehearsal.engine.recogniser import load_recogniser, recognise
    from troupe.rehearsal.engine.trials import cast_of, judge, trial
    from troupe.rehearsal.engine.verdict import sighting_of

    models, recogniser = load_rehearsal(), load_recogniser()
    for cast, merge, seed in product(CASTS, ("relevance", "add"), seeds):
        one, record = trial(cast, seed), []
        references = encode_references(models.adapters["mip"], cast_of(one.figures), models.images, models.texts)
        picture = paint(models, one.scene.caption, one.seed, references, merge, record=record)[0]
        read, sightings = judge(recogniser, one, picture), recognise(recogniser, picture[None])[0]
        seen = sighting_of(one.figures, sightings)
        others = further_sightings(one.figures, sightings, seen)
        truth, clear = truth_of(one.figures, read, seen, others)
        cells = [None if s is None else s.mask for s in (*seen, *(s for _, s in others))]
        masks = torch.stack([torch.zeros(16, 16) if c is None else torch.from_numpy(c).float() for c in cells])
        labels = [*(figure.words for figure in one.figures), *(one.figures[i].words for i, _ in others)]
        places = {by: wired_places(masks, by, labels) for by in ("segs", "bounding_boxes")}
        places["record"] = {"record": SimpleNamespace(run=RecordedRun("all", (record[0],)))}
        yield picture.movedim(0, -1), one.figures, truth, clear, places


def further_sightings(figures: Any, sightings: Any, seen: Any) -> list[tuple[int, Any]]:
    """Return the sightings of the figures that are taken for none of them, with the number of the figure that each is
    of by class, and where two are of one class, by variant. seen: those that are taken for them, or None.
    """
    alike = len({figure.kind for figure in figures}) < len(figures)
    left = [one for one in sightings if not any(one is own for own in seen)]
    return [
        (i, one)
        for i, figure in enumerate(figures)
        for one in left
        if one.kind == figure.kind and (not alike or one.variant == figure.variant)
    ]


def truth_of(figures: Any, read: Any, seen: Any, others: Any) -> tuple[list[str | None], list[bool]]:
    """Return the truth on each figure of a painted picture, None where the two reads differ, and whether it is clear:
    the figure is missing, or the recogniser reads both colours of one reference. seen: the sighting of each, or None;
    others: further ones with the number of their figure. A figure that is right and is seen once more with its colours
    is cloned; once more with others, it is not clear.
    """
    looks = [_colours(figure) for figure in figures]
    truth: list[str | None] = []
    clear = []
    for i, (own, first, second) in enumerate(zip(seen, read.by_recogniser, read.by_colours, strict=True)):
        again = [_colours(one) for _, one in others]
        word = "cloned" if first == "right" and looks[i] in again else first
        truth.append(word if first == second else None)
        exact = own is None or _colours(own) in looks
        further = {_colours(one) for number, one in others if number == i}
        clear.append(exact and first != "mixed" and further <= {looks[i]})
    return truth, clear


def _colours(one: Any) -> tuple[str, str]:
    return one.look.body, one.look.accent


if __name__ == "__main__":
    main()
