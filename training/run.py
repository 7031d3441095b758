"""From settings to an exported adapter: what the command does."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, release_memory, set_seed
from torch.nn import Module

from ..model_patches.errors import TroupeError
from .attention import two_products, two_products_are_faster
from .caching import keep_features, unneeded_encoders
from .config.reading import as_tables, read_config
from .config.schema import Config, DataConfig
from .examples.drawn import DrawnSet
from .examples.draws import Draws
from .examples.example import ExampleSet
from .examples.folder import FolderSet
from .export import write_export
from .loop import Ended, Loop, Painter
from .memory import memory_of
from .model.base import Base, load_base
from .model.features import Features
from .recipes.recipe import PassSettings, Trainee
from .recipes.registry import RECIPES, options
from .sheet import paint_sheet
from .stop import TrainingError
from .together import said_once, together

LOGGERS = {  # tracker -> packages of which one is needed
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
}
Say = Callable[[str], None]


def settings_of(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the settings of a training. Raises ConfigError."""
    return read_config(path, overrides, recipes=options())


def train(config: Config, say: Say = lambda sentence: None, cpu: bool = False, export_only: bool = False) -> Ended:
    """Train an adapter and export it; if a signal stops it, what there is.

    Arguments:
        say: takes sentences for the user, in the main process; cpu: use no GPU; export_only: only export the newest
            checkpoint.
    Raises:
        TroupeError: settings, models or pictures do not fit, or the training cannot go on.
        TrainingError: there is no checkpoint to export.
        OtherProcessError: the same, in all processes but the main one.
    """
    accelerator = make_accelerator(config, cpu)
    with said_once(accelerator):
        loop = make_loop(config, accelerator, say, encode=not export_only)
        if export_only:
            if not loop.resume():
                do = "Check 'folder' in [output], or train without --export."
                raise TrainingError(f"a checkpoint in {loop.output} to export", "none", do)
            ended = Ended(loop.step)
        else:
            ended = _run(loop)
        if accelerator.is_main_process:
            say(f"wrote {_export(loop)}, the weights of step {ended.step}")
    return ended


def _run(loop: Loop) -> Ended:
    loop.curves.start()
    try:
        with two_products(two_products_are_faster(loop.config, loop.accelerator.device)):
            ended = loop.run()
    except TroupeError as error:  # in all processes
        loop.curves.close()
        raise _with_adapter(loop, error) from error
    loop.curves.close()
    return ended


def _with_adapter(loop: Loop, error: TroupeError) -> TroupeError:
    """The error that ended a training. If its last steps have no checkpoint, it may still have an adapter: that file is
    much smaller.
    """
    if loop.saved == loop.step or not loop.accelerator.is_main_process:
        return error
    try:
        path = _export(loop)
    except TroupeError:
        return error
    return TrainingError(error.expected, error.found, f"{error.remedy} The adapter of step {loop.step} is in {path}.")


def _export(loop: Loop) -> Path:
    output = loop.config.output
    with loop.averaged():
        exported = loop.trainee.export()
    return write_export(exported, loop.output / f"{output.name or loop.config.name}.safetensors", output.half)


def make_loop(config: Config, accelerator: Accelerator, say: Say = lambda sentence: None, encode: bool = True) -> Loop:
    """Return a training that has not begun, with its models, pictures and an adapter on the device; see `train`.

    encode: whether pictures are encoded now if all are kept.
    """
    told: Say = say if accelerator.is_main_process else lambda sentence: None
    trainee, draws, painter = together(accelerator, lambda: _prepare(config, accelerator, told, encode))
    return Loop(config, trainee, draws, as_tables(config), accelerator, painter, told)


def _prepare(
    config: Config, accelerator: Accelerator, told: Say, encode: bool
) -> tuple[Trainee, Draws, Painter | None]:
    recipe = RECIPES[config.name]
    check_logger(config.output.log)
    set_seed(config.training.seed)  # of weights that begin with chance
    base = load_base(config.base.kind, config.base.folder, config.base.image_encoder)
    per_step = config.training.batch * config.training.accumulation * accelerator.num_processes
    passes = PassSettings(per_step, config.training.noisier, config.training.min_snr)
    trainee = recipe.build(base, Features(base, config.data.cache), passes, config.recipe)
    examples = example_set(config.data, base, trainee, told)
    check_count(examples, per_step)
    if isinstance(examples, FolderSet):
        examples.check(config.data.check, accelerator.process_index, accelerator.num_processes, told)
    encoders: Sequence[Module] = ()
    if config.data.cache and isinstance(examples, FolderSet):
        encoders = unneeded_encoders(trainee, config.sheet.every > 0)
        if encode:
            keep_all(base, trainee, examples, accelerator)
            told(f"{len(examples)} pictures are encoded and kept in memory; the GPU keeps only what steps need.")
    resident = [module for module in base.modules if module not in encoders]
    move(base, trainee, accelerator, resident)
    told(memory_of(trainee, resident, config.training).sentence())
    if config.training.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    draws = Draws(examples, config.training.seed)
    return trainee, draws, sheet_painter(config, draws) if config.sheet.every else None


def check_logger(log: str) -> None:
    """Raise TrainingError if the package of a logger is missing."""
    needed = LOGGERS.get(log, ())
    if needed and not any(find_spec(package) for package in needed):
        do = f'Run pip install {needed[0]}, or set log = "none" in [output].'
        raise TrainingError(f'the package {needed[0]} for log = "{log}"', "none", do)


def make_accelerator(config: Config, cpu: bool = False) -> Accelerator:
    """Return accelerate's part of a training."""
    log, unused = config.output.log, not RECIPES[config.name].uses_every_parameter
    return Accelerator(
        gradient_accumulation_steps=config.training.accumulation,
        mixed_precision=config.training.precision,
        log_with=None if log == "none" else log,
        project_dir=config.output.folder,
        cpu=cpu,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)] if unused else None,
    )


def example_set(config: DataConfig, base: Base, trainee: Trainee, say: Say = lambda sentence: None) -> ExampleSet:
    """Return the training pictures.

    Raises DatasetError, and TrainingError where the resolution does not fit the base.
    """
    if config.kind == "rehearsal":
        return DrawnSet(config.subjects)
    multiple = base.cell * 2 ** (len(base.unet.config["block_out_channels"]) - 1)
    if config.resolution % multiple:
        nearest = max(round(config.resolution / multiple), 1) * multiple
        raise TrainingError(
            f"a multiple of {multiple} as data.resolution for this base model",
            f"{config.resolution}",
            f"Set resolution = {nearest}.",
        )
    found = FolderSet(Path(config.folder), config.resolution, config.subjects, trainee.needs_subjects, say)
    if trainee.needs_boxes:
        check_boxes(found)
    if trainee.in_prompt:
        check_token_positions(found, trainee)
    return found


def check_boxes(examples: FolderSet) -> None:
    """Raise TrainingError for a subject with neither mask nor box."""
    for record in examples.records:
        for subject in record.subjects:
            if subject.box is None and subject.mask is None:
                found = f"'{subject.name}' in {record.picture} without either"
                do = "Add one to that line of the metadata, or take the subject out of it."
                raise TrainingError("a mask or a box for every subject, which this recipe needs", found, do)


def check_token_positions(examples: FolderSet, trainee: Trainee) -> None:
    """Raise TrainingError for a picture with a subject that has no position in its caption."""
    for record in examples.records:
        try:
            trainee.token_positions(record.caption, [subject.name for subject in record.subjects])
        except TroupeError as error:
            found = f"another caption for {record.picture} ({error})"
            raise TrainingError(
                "each subject's name as a word of its caption", found, "Correct that line of the metadata."
            ) from error


def sheet_painter(config: Config, draws: Draws) -> Painter:
    """Return what paints the sheets of a training, always of the same pictures."""
    sheet, count = config.sheet, len(draws.examples)
    rows = min(sheet.rows, count) if count else sheet.rows
    examples = [draws.examples.get(i, random.Random(f"sheet {i}")) for i in range(rows)]

    def paint(trainee: Trainee, step: int) -> None:
        path = Path(config.output.folder) / "sheets" / f"step-{step:08}.png"
        paint_sheet(trainee, examples, sheet, sheet.size or examples[0].pixels.shape[-1], path)

    return paint


def check_count(examples: ExampleSet, per_step: int) -> None:
    """Raise TrainingError for a finite set with fewer pictures than a step takes."""
    count = len(examples)
    if 0 < count < per_step:
        raise TrainingError(
            f"at least as many pictures as a step takes, {per_step}",
            f"{count} in the training set",
            "Add pictures, or lower batch and accumulation in [training].",
        )


def keep_all(base: Base, trainee: Trainee, examples: FolderSet, accelerator: Accelerator) -> None:
    """Encode a training set with the encoders on the device, without the UNet, and take them back to the CPU."""
    encoders = [module for module in base.modules if module is not base.unet]
    move(base, trainee, accelerator, encoders)
    keep_features(trainee, examples, accelerator.is_local_main_process)
    for module in encoders:
        module.to(torch.device("cpu"), torch.float32)  # in which sheets use those that stay there
    release_memory()


def move(base: Base, trainee: Trainee, accelerator: Accelerator, modules: Sequence[Module] | None = None) -> None:
    """Put frozen models, None for all, on the device, in the precision of the passes."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    base.to(accelerator.device, dtype, trainee.modules_of_base(), modules)
