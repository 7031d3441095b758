"""Every setting of a training: one dataclass for each table of the TOML file, except `[recipe]`, whose keys are the
recipe's own (`recipes.registry`).

The comment after a setting is its documentation. Paths are relative to the folder in which the command is started.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .setting import setting


@dataclass(frozen=True)
class BaseConfig:
    """The frozen models: `[base]`."""

    kind: str = setting("rehearsal", choices=("rehearsal", "diffusers"))  # the small models that come with the pack, or
    folder: str = ""  # a folder in diffusers' layout (SD1.5, SD2.x, SDXL); for rehearsal "" is the shipped files
    image_encoder: str = ""  # folder of a CLIP vision model in transformers' layout; "" for recipes that need none


@dataclass(frozen=True)
class DataConfig:
    """The training pictures: `[data]`."""

    kind: str = setting("folder", choices=("folder", "rehearsal"))  # a folder with metadata.jsonl, or drawn pictures
    folder: str = ""  # of a training set (docs/training.md has the format); unused for drawn pictures
    resolution: int = setting(512, least=8)  # pixels of the square that is cut from the middle of each picture
    subjects: int = setting(4, least=1)  # at most so many of a picture's subjects get a reference
    # keep latents, text states and image embeddings in main memory: the encoders see each input once, those of a folder
    # before the first step, and what is not trained of them then leaves the GPU (the VAE stays for sheets)
    cache: bool = False
    check: str = setting("masks", choices=("headers", "masks", "pictures"))  # before the first step: that every file is
    # a picture, or also that no mask is black, or also that every picture can be read to its end
    workers: int = setting(0, least=0)  # processes that read pictures; 0: the training's own


@dataclass(frozen=True)
class TrainingConfig:
    """The optimisation: `[training]`. A step is one update of the weights."""

    steps: int = setting(1000, least=1)
    batch: int = setting(4, least=1)  # pictures of one pass, in each process
    accumulation: int = setting(1, least=1)  # passes a step
    lr: float = setting(1e-4, above=0.0)
    schedule: str = setting(
        "constant",
        choices=("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )  # of the learning rate, from diffusers
    warmup: int = setting(0, least=0)  # steps in which the learning rate rises from 0; not with schedule 'constant'
    optimizer: str = setting("adamw", choices=("adamw", "adamw8bit"))  # adamw8bit needs the package bitsandbytes
    beta1: float = setting(0.9, least=0.0)
    beta2: float = setting(0.999, least=0.0)
    weight_decay: float = setting(0.01, least=0.0)
    max_grad_norm: float = setting(0.0, least=0.0)  # longer gradients are scaled to this length; 0: never
    precision: str = setting("no", choices=("no", "fp16", "bf16"))  # of the passes; trained weights stay float32
    gradient_checkpointing: bool = False  # less memory, about a third more time
    noisier: float = setting(0.0, least=0.0)  # timestep t of T is drawn in proportion to (t / T) ** noisier; 0: evenly
    min_snr: float = setting(0.0, least=0.0)  # gamma of min-SNR weighting (arXiv 2303.09556), usually 5; 0: none
    ema: bool = False  # sheets and exports use an exponential moving average of the trained weights
    ema_decay: float = setting(0.9999, least=0.0)
    seed: int = 0


@dataclass(frozen=True)
class OutputConfig:
    """Files that are written: `[output]`."""

    folder: str = "output/training"  # checkpoints, sheets, logs and the exported adapter
    name: str = ""  # of the exported file without its ending; "" is the recipe's name
    half: bool = True  # export numbers as float16, as published files are
    save_every: int = setting(500, least=1)  # steps between checkpoints; there is always one at the end
    keep: int = setting(2, least=1)  # checkpoints that are kept, the newest
    resume: bool = (
        True  # go on from the newest checkpoint in the folder; false: begin anew, and rename the old ones' folder
    )
    log: str = setting("none", choices=("none", "tensorboard", "wandb"))  # curves
    log_every: int = setting(10, least=1)  # steps


@dataclass(frozen=True)
class SheetConfig:
    """The validation sheet: `[sheet]`. Pictures with, without and with exchanged references, always at one seed."""

    every: int = setting(0, least=0)  # steps; 0: no sheets
    rows: int = setting(4, least=1)  # training pictures whose captions and references are painted, from the first on
    size: int = setting(0, least=0)  # pixels; 0: the data's resolution
    steps: int = setting(20, least=1)
    cfg: float = setting(5.0, least=0.0)
    weight: float = setting(1.0, least=0.0)  # of the references, as in Apply Image Attention
    start_percent: float = setting(0.0, least=0.0, most=1.0)  # of the run without subjects in the prompt
    seed: int = 0


@dataclass(frozen=True)
class Config:
    """A whole training. recipe: the options of the chosen recipe, of its own dataclass."""

    name: str
    recipe: Any
    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    sheet: SheetConfig = field(default_factory=SheetConfig)
