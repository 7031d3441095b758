"""The tables of docs/training_hardware.md, from the numbers in training_passes.json and from nothing else but the
files in training/recipes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from troupe.training.config.schema import Config
from troupe.training.memory import FLOAT32, STATES
from troupe.training.run import settings_of
from troupe_tools.dev.markdown_pages import markdown_table, replace_passage

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training_hardware.md"
GIGA, TERA, MILLION = 1e9, 1e12, 1e6
PICTURES = 10_000  # of which the cache is given
WORKSPACE = 1_000_000_000  # bytes: our allowance for the CUDA context, libraries' workspaces and fragmentation
SIZES = (12, 16, 24)  # GB of graphics cards
SMALL_SHEET = 512  # pixels
ENOUGH, MOST = 4, 16  # pictures of a pass: so many are tried first with every setting, and never more than these
SPEEDS = {  # card -> TFLOP/s in bfloat16 with float32 sums, without sparsity, by NVIDIA's data sheets
    "RTX 4090": 165.2,
    "RTX A6000": 154.8,
    "A100": 312.0,
    "H100 SXM": 989.4,
}
UTILISATION = 0.35  # our assumption: the part of that speed which a training reaches
TF32 = 0.5  # speed of the VAE, which is float32, as a part of bfloat16's
HOUR, DAY = 3600, 24 * 3600
Numbers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """Settings of one training. batch: pictures of a pass; accumulation: passes a step; sheet: pixels of its pictures,
    0 for the size of the training's; total: bytes.
    """

    batch: int
    accumulation: int
    checkpointing: bool
    optimizer: str
    sheet: int
    total: int = 0

    def settings(self) -> str:
        """Return the options of the command."""
        values = {
            "batch": self.batch,
            "accumulation": self.accumulation,
            "gradient_checkpointing": str(self.checkpointing).lower(),
            "optimizer": self.optimizer,
            **({"sheet.size": self.sheet} if self.sheet else {}),
        }
        return " ".join(f"--set {key}={value}" for key, value in values.items())


@dataclass(frozen=True)
class Published:
    """A training whose duration is known. pictures: of a step on one GPU; hours: of all steps; card: that it is
    computed for; name, note: for the table.
    """

    name: str
    file: str
    resolution: int
    pictures: int
    steps: int
    hours: float
    card: str
    note: str


PUBLISHED = (
    Published("MIP-Adapter, 12,000 steps", "sdxl_mip", 512, 4, 12_000, 5, "A100", "8 GPUs of unknown kind"),
    Published(
        "IP-Adapter for NoobAI, 3 x 400,000 steps", "sdxl_ip_plus", 1024, 2, 1_200_000, 408, "RTX A6000", "1 RTX A6000"
    ),
)


def write_page(numbers: Numbers) -> None:
    """Write the tables into the page."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), numbers), encoding="utf-8")


def with_tables(text: str, numbers: Numbers) -> str:
    """Return the page's text with the tables of these numbers."""
    tables = {
        "memory": memory_table(numbers),
        "activations": activation_table(numbers),
        "speed": speed_table(numbers),
        "published": published_table(numbers),
        **{f"{size} GB": card_table(numbers, size) for size in SIZES},
    }
    for name, table in tables.items():
        text = replace_passage(text, name, table)
    return text


def memory_table(numbers: Numbers) -> str:
    """Return what lies on the GPU beside a pass."""
    rows = []
    for name, found in numbers.items():
        trained, config = found["trained"], settings(name)
        resolution = str(config.data.resolution)
        totals = (found["frozen"] + trained_bytes(trained, optimizer) for optimizer in STATES)
        cache = PICTURES * found[resolution]["features"]["kept"]
        rows.append(
            (
                f"`{name}`",
                f"{trained / MILLION:.1f}",
                *map(giga, totals),
                giga(found["frozen"]),
                giga(found["resident"]),
                giga(cache),
            )
        )
    titles = ("file", "trained, million weights", "AdamW, GB", "8-bit AdamW, GB", "frozen, GB", "frozen with cache, GB")
    return markdown_table((*titles, f"cache, GB of main memory for {PICTURES:,} pictures"), rows)


def activation_table(numbers: Numbers) -> str:
    """Return what a pass keeps, and its peak."""
    rows = []
    for name, resolution, entry in entries(numbers):
        kept = (giga(entry[kind]["1"]["kept"]) for kind in ("plain", "checkpointing"))
        peaks = (giga(entry[kind][batch]["peak"]) for kind in ("plain", "checkpointing") for batch in ("1", "4"))
        rows.append((f"`{name}`", resolution, *kept, *peaks))
    titles = ("kept, 1 picture", "kept, 1, checkpointing", "peak, 1", "peak, 4", "peak, 1, checkpointing")
    return markdown_table(("file", "pixels", *titles, "peak, 4, checkpointing"), rows)


def speed_table(numbers: Numbers) -> str:
    """Return the operations of a picture, and the time of the steps of each file."""
    rows = []
    for name, resolution, entry in entries(numbers):
        config, features = settings(name), entry["features"]
        step = per_step(config) * weighed(entry, config.training.gradient_checkpointing, True)
        every = [picture_operations(entry, kind) / TERA for kind in ("plain", "checkpointing")]
        times = [computed_seconds(step, card) for card in SPEEDS]
        days = config.training.steps * times[0] / DAY
        rows.append(
            (
                f"`{name}`",
                resolution,
                *(f"{value:.1f}" for value in (*every, features["vae"] / TERA, features["encoders"] / TERA)),
                str(per_step(config)),
                *(f"{value:.2f}" for value in times),
                f"{days:.1f}",
            )
        )
    counted = ("TFLOP a picture", "with checkpointing", "VAE", "other encoders", "pictures a step")
    times = tuple(f"s a step, {card}" for card in SPEEDS)
    return markdown_table(
        ("file", "pixels", *counted, *times, f"days for the file's steps, {next(iter(SPEEDS))}"), rows
    )


def published_table(numbers: Numbers) -> str:
    """Return computed times beside published ones."""
    rows = []
    for each in PUBLISHED:
        step = each.pictures * weighed(numbers[each.file][str(each.resolution)], False, False)
        hours = each.steps * computed_seconds(step, each.card) / HOUR
        part = UTILISATION * hours / each.hours
        computed, published = f"{hours:.1f} h on {each.card}", f"{each.hours:g} h on {each.note}"
        rows.append((each.name, published, computed, f"{each.hours / hours:.1f}", f"{part:.0%}"))
    titles = ("training", "published", "computed", "published / computed", "utilisation at which both are equal")
    return markdown_table(titles, rows)


def card_table(numbers: Numbers, size: int) -> str:
    """Return the settings with which each file fits a card of `size` GB."""
    rows = []
    for name, resolution, _ in entries(numbers):
        cell, config = first_that_fits(numbers, name, int(resolution), size), settings(name)
        other = "" if config.data.resolution == int(resolution) else f" --set resolution={resolution}"
        given = f"`{cell.settings()}{other}`" if cell else "does not fit"
        least = smallest(numbers, name, int(resolution))
        rows.append((f"`{name}`", resolution, given, giga(cell.total) if cell else f"{giga(least.total)} at least"))
    return markdown_table(("file", "pixels", "settings", "GB"), rows)


def first_that_fits(numbers: Numbers, name: str, resolution: int, size: int) -> Cell | None:
    """Return the first settings that fit a card of `size` GB, None if none do.

    AdamW without gradient checkpointing, then with it, then 8-bit AdamW, then small sheets too; with `ENOUGH` pictures
    of a pass if a step has as many, else with fewer; then as many of a pass as fit. A step keeps its pictures.
    """
    choices = candidates(numbers, name, resolution)
    enough = min(ENOUGH, per_step(settings(name)))
    fits = [cell for cell in choices if cell.total <= size * GIGA]
    return next((cell for cell in fits if cell.batch >= enough), max(fits, key=lambda cell: cell.batch, default=None))


def smallest(numbers: Numbers, name: str, resolution: int) -> Cell:
    """Return the settings with the least memory."""
    return min(candidates(numbers, name, resolution), key=lambda cell: cell.total)


def candidates(numbers: Numbers, name: str, resolution: int) -> list[Cell]:
    """Return every choice of settings with its memory, those preferred first."""
    pictures = per_step(settings(name))
    batches = [b for b in (16, 8, 4, 2, 1) if b <= MOST and pictures % b == 0]
    kinds = ((False, "adamw", 0), (True, "adamw", 0), (True, "adamw8bit", 0), (True, "adamw8bit", SMALL_SHEET))
    cells = (
        Cell(b, pictures // b, checkpointing, optimizer, sheet)
        for checkpointing, optimizer, sheet in kinds
        for b in batches
        if sheet < resolution
    )
    return [replace(cell, total=total_bytes(numbers, name, resolution, cell)) for cell in cells]


def total_bytes(numbers: Numbers, name: str, resolution: int, cell: Cell) -> int:
    """Return the memory of a training with `cache = true`: of a step, of a sheet or of encoding before, whichever is
    the most.
    """
    found = numbers[name]
    entry, trained = found[str(resolution)], found["trained"]
    one, four = (entry["checkpointing" if cell.checkpointing else "plain"][batch]["peak"] for batch in ("1", "4"))
    activations = one + (cell.batch - 1) * (four - one) // 3  # memory is linear in the number of pictures
    update = FLOAT32 * trained if cell.optimizer == "adamw" else 0  # what PyTorch's AdamW makes for all weights at once
    most = max(activations, update, found[str(cell.sheet or resolution)]["features"]["decode"])
    step = found["resident"] + trained_bytes(trained, cell.optimizer) + most
    return WORKSPACE + max(step, found["encoding"] + entry["features"]["peak"])


def trained_bytes(trained: int, optimizer: str) -> int:
    """Return the memory of trained weights, their gradients and the optimiser's moments."""
    return (2 * FLOAT32 + STATES[optimizer]) * trained


def weighed(entry: Mapping[str, Any], checkpointing: bool, cached: bool) -> float:
    """Return the operations of a picture in bfloat16, those of the VAE as the bfloat16 ones that take as long."""
    features = entry["features"]
    encoders = 0 if cached else features["encoders"] + features["vae"] / TF32
    return picture_operations(entry, "checkpointing" if checkpointing else "plain") + encoders


def picture_operations(entry: Mapping[str, Any], kind: str) -> int:
    """Return the operations of a picture, forward and backward."""
    return sum(entry[kind]["operations"].values())


def computed_seconds(count: float, card: str) -> float:
    """Return the computed time of operations on a card."""
    return count / (SPEEDS[card] * TERA * UTILISATION)


def entries(numbers: Numbers) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield the name, resolution and numbers of every counted training."""
    for name, found in numbers.items():
        for key, entry in found.items():
            if key.isdecimal():
                yield name, key, entry


def settings(name: str) -> Config:
    """Return the settings of a file in training/recipes."""
    return settings_of(ROOT / "training" / "recipes" / f"{name}.toml")


def per_step(config: Config) -> int:
    """Return the pictures of a step on one GPU."""
    return config.training.batch * config.training.accumulation


def giga(count: int) -> str:
    """Return bytes in GB."""
    return f"{count / GIGA:.1f}"
