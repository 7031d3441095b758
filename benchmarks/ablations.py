"""Train variants of a recipe in the rehearsal world on the same pictures, measure them on held-out looks, and write
benchmarks/ABLATIONS.md.

usage: python benchmarks/ablations.py --folder FOLDER [--only NAME ...]

One variant at a time, on one thread. A training that was stopped goes on where it ended; a measured variant is kept in
benchmarks/ablations.json, unless its settings have changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER.parent / "tools"))

from ablations_page import write_page  # noqa: E402
from troupe_tools.pack import hide_broken_torchaudio, load_pack  # noqa: E402

hide_broken_torchaudio()
load_pack()

from wrong_names import COMPARED, KEPT, WRONG, QualityFiltered, WrongNames, share_of_wrong  # noqa: E402

RESULTS, PAGE = FOLDER / "ablations.json", FOLDER / "ABLATIONS.md"
START = FOLDER.parent / "rehearsal" / "files" / "rehearsal_ip_adapter.safetensors"
PICTURES, TRIALS, BATCH = 1920, 100, 32  # held-out: of the loss, of the verdicts; pictures of a pass
SEED = 20261129  # of the held-out pictures
CAST = "two classes"
NAMES = {"wrong": {"wrong": WRONG}, "filtered": {"wrong": WRONG, "kept": KEPT, "compared": COMPARED}}


@dataclass(frozen=True)
class Variant:
    """A training. recipe: file in training/recipes; adapter: key of `trials.METHODS_OF`; changed: what differs from the
    group's first; method: name of `METHODS_OF[adapter]` that its trials are painted with; trained: False measures what
    the training begins with; names: of `NAMES`.
    """

    recipe: str
    adapter: str
    method: str
    changed: tuple[str, ...] = ()
    trained: bool = True
    names: str = ""


@dataclass(frozen=True)
class Group:
    """Variants that are compared. settings: common to all."""

    settings: tuple[str, ...]
    variants: dict[str, Variant]


IP, MIP, SUBJECT = "rehearsal_ip.toml", "rehearsal_mip.toml", "rehearsal_subject_diffusion.toml"
GATED = "in the prompt and gated layers, with boxes"
MIP_START = (f"recipe.start={START}", "training.steps=400", "training.warmup=40", "training.lr=5e-4")
GROUPS = {
    "IP-Adapter": Group(
        (
            "training.steps=2000",
            "training.warmup=100",
            "training.ema_decay=0.998",
            "output.save_every=100",
            "sheet.every=0",
        ),
        {
            "as in the recipe, a tenth of its steps": Variant(IP, "ip", "relevance"),
            "not trained: the file that comes with the pack": Variant(
                IP, "ip", "relevance", (f"recipe.start={START}",), trained=False
            ),
        },
    ),
    "MIP-Adapter": Group(
        (*MIP_START, "training.ema_decay=0.98", "output.save_every=100", "sheet.every=0"),
        {
            "as in the recipe": Variant(MIP, "mip", "relevance"),
            "not trained: the IP-Adapter it begins with": Variant(MIP, "mip", "relevance", trained=False),
            "without text gain": Variant(MIP, "mip", "relevance", ("recipe.text_gain=false",)),
            "trained with merge uniform": Variant(MIP, "mip", "relevance", ("recipe.merge=uniform",)),
            "trained and painted with merge uniform": Variant(MIP, "mip", "uniform", ("recipe.merge=uniform",)),
            "with wrong names in half of the pictures with several subjects": Variant(
                MIP, "mip", "relevance", names="wrong"
            ),
            "the same with the object quality filter": Variant(MIP, "mip", "relevance", names="filtered"),
        },
    ),
    "Subject-Diffusion": Group(
        (
            "training.steps=800",
            "training.warmup=100",
            "training.ema_decay=0.99",
            "output.save_every=100",
            "sheet.every=0",
        ),
        {
            "as in the recipe": Variant(SUBJECT, "subject", GATED),
            "without box embedding": Variant(SUBJECT, "subject", GATED, ("recipe.box_embedding=false",)),
            "without localization loss": Variant(SUBJECT, "subject", GATED, ("recipe.localization=0",)),
            "without photos in the prompt": Variant(SUBJECT, "subject", GATED, ("recipe.photo_in_prompt=false",)),
        },
    ),
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Train and measure variants of a recipe in the rehearsal world.")
    parser.add_argument("--folder", type=Path, required=True, help="of the trainings")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="of these variants")
    options = parser.parse_args()
    unknown = set(options.only) - {name for _, name, _ in every()}
    if unknown:
        parser.error(f"no variant is called {', '.join(sorted(unknown))}")
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    wanted = {key(group, name): settings_of(group, variant) for group, name, variant in every()}
    results = {name: cell for name, cell in before.items() if cell["settings"] == wanted.get(name)}
    for group, name, variant in every():
        is_first = name == next(iter(GROUPS[group].variants))  # which the others are compared with
        if options.only and name not in options.only and not is_first:
            continue
        this = key(group, name)
        if this not in results:
            results[this] = {"settings": wanted[this], **in_a_process(group, variant, options.folder)}
            results = {name: results[name] for name in wanted if name in results}
            RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
            write_page(RESULTS, PAGE)
            print(f"measured: {this}", flush=True)


def in_a_process(group: str, variant: Variant, folder: Path) -> dict[str, Any]:
    """Return `measured` of a process of its own: a process can train in one precision only."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(train_and_measure, group, variant, folder).result()


def every() -> Iterator[tuple[str, str, Variant]]:
    """Yield every variant with its group."""
    for group, found in GROUPS.items():
        for name, variant in found.variants.items():
            yield group, name, variant


def key(group: str, name: str) -> str:
    """Return the key of a variant in the results, 'group | name'."""
    return f"{group} | {name}"


def config_of(group: str, variant: Variant, folder: Path) -> Any:
    """Return the settings of a variant's training."""
    from troupe.training.run import settings_of as read_settings

    overrides = [*GROUPS[group].settings, *variant.changed, f"output.folder={folder}"]
    return read_settings(FOLDER.parent / "training" / "recipes" / variant.recipe, overrides)


def settings_of(group: str, variant: Variant) -> dict[str, Any]:
    """Return the settings that a variant is trained and measured with, without paths, as JSON data. If they change, an
    earlier result of the variant is no longer valid.
    """
    from troupe.training.config.reading import as_tables

    tables = json.loads(json.dumps(as_tables(config_of(group, variant, Path()))))
    del tables["output"], tables["data"]["check"]  # which change no training
    tables["recipe"]["start"] = sha256(START.read_bytes()).hexdigest() if tables["recipe"].get("start") else ""
    measures = {"method": variant.method, "cast": CAST, "seed": SEED, "pictures": PICTURES, "trials": TRIALS}
    settings = {"trained": variant.trained, "training": tables, "measured with": measures}
    return settings | ({"names": NAMES[variant.names]} if variant.names else {})


def train_and_measure(group: str, variant: Variant, folder: Path) -> dict[str, Any]:
    """Train a variant in a folder of its own, and measure it."""
    import torch
    from troupe.model_patches.families.registry import read_adapter
    from troupe.rehearsal.engine.trials import METHODS_OF
    from troupe.training.export import write_export
    from troupe.training.run import make_accelerator, make_loop

    torch.set_num_threads(1)
    given = settings_of(group, variant)
    # of the training: variants that are only painted in another way share one
    training = json.dumps([given["training"], variant.trained, *given.get("names", {}).items()], sort_keys=True)
    place = folder / sha256(training.encode()).hexdigest()[:12]
    config = config_of(group, variant, place)
    loop, told = make_loop(config, make_accelerator(config, cpu=True), print), {}
    if variant.names:
        loop.draws.examples = examples = with_mistakes(loop.draws.examples, variant.names)
        told["wrong"] = share_of_wrong(examples)
    if variant.trained:
        loop.run()
    with loop.averaged():
        losses = held_out_losses(loop.trainee, METHODS_OF[variant.adapter][variant.method].merge)
        path = write_export(loop.trainee.export(), place / "adapter.safetensors", half=False)
    pictures = loop.step * config.training.batch
    return {"pictures": pictures, **told, "losses": losses, "verdicts": verdicts(read_adapter(path), variant)}


def with_mistakes(examples: Any, names: str) -> Any:
    """Return the drawn pictures with wrong names among them, and filtered if that is asked for."""
    wrong = WrongNames(examples)
    return wrong if names == "wrong" else QualityFiltered(wrong)


def held_out_losses(trainee: Any, merge: str | None) -> list[list[float]]:
    """Return each held-out picture's diffusion loss [own, exchanged]: with its subjects' references, and with each
    subject's from the next one, at the same noise. The trainee cannot be trained on afterwards.

    merge: of an image attention.
    """
    import torch
    from troupe.model_patches.attention.merges import Mixing
    from troupe.rehearsal.world import MOST, TEST_LOOKS
    from troupe.training.examples.drawn import DrawnSet
    from troupe.training.examples.draws import Draws

    drops = [field.name for field in fields(trainee.options) if field.name.startswith("drop_")]
    trainee.options = replace(trainee.options, **dict.fromkeys(drops, 0.0))
    trainee.settings = replace(trainee.settings, total=BATCH, noisier=0.0, min_snr=0.0)  # all noise levels alike
    if merge is not None:
        trainee.attention.mixing = Mixing(merge)
    draws, found = Draws(DrawnSet(MOST, TEST_LOOKS, alone=0.0), SEED), []
    with torch.no_grad():
        for first in range(0, PICTURES, BATCH):
            own = [draws[number] for number in range(first, first + BATCH)]
            exchanged = [replace(draw, example=exchanged_in(draw.example)) for draw in own]
            losses = [trainee(trainee.prepare(given))["diffusion"] for given in (own, exchanged)]
            trainee.finish()
            found += torch.stack(losses, 1).tolist()
    return [[round(value, 6) for value in row] for row in found]


def exchanged_in(example: Any) -> Any:
    """Return the picture with each subject's reference replaced by that of the next subject."""
    photos = [subject.photo for subject in example.subjects]
    pairs = zip(example.subjects, photos[1:] + photos[:1], strict=True)
    return replace(example, subjects=tuple(replace(subject, photo=photo) for subject, photo in pairs))


def verdicts(adapter: Any, variant: Variant) -> dict[str, str]:
    """Return the verdicts of trials by seed, a letter a subject, as in confusion.json."""
    from troupe.rehearsal.engine.paint import load_rehearsal
    from troupe.rehearsal.engine.recogniser import load_recogniser
    from troupe.rehearsal.engine.trials import METHODS_OF, judge, paint_trial, places_drawn, trial
    from troupe.rehearsal.engine.verdict import LETTERS

    models, recogniser, way = load_rehearsal(), load_recogniser(), METHODS_OF[variant.adapter][variant.method]
    models.adapters["measured"] = adapter
    found = {}
    for seed in range(TRIALS):
        one = trial(CAST, seed)
        places = places_drawn(one) if way.drawn else None
        judgement = judge(recogniser, one, paint_trial(models, "measured", way, one, places=places))
        found[str(seed)] = "".join(LETTERS[verdict] for verdict in judgement.by_recogniser)
    return found


if __name__ == "__main__":
    main()
