"""Trainings of the published models in their sizes, without any numbers: the models on fake tensors, a batch of two
subjects a picture, and the recipe's own trainee.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from troupe.model_patches.hosts.diffusers.encoders import ClipImages, ClipTexts, Prompt
from troupe.model_patches.subjects import Photo
from troupe.training.config.schema import Config
from troupe.training.examples.draws import Draw
from troupe.training.examples.example import Example, ExampleSubject
from troupe.training.model.base import Base, pixel_functions
from troupe.training.model.features import Features, Patches
from troupe.training.recipes.recipe import Batch, PassSettings, Trainee
from troupe.training.recipes.registry import RECIPES
from troupe.training.run import settings_of

RECIPE_FILES = Path(__file__).resolve().parents[1] / "training" / "recipes"
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIGG = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SD15 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS = {"SD1.5": SD15, "SD2": SD2, "SDXL": SDXL}
BASES = {"stable-diffusion-v1-5": "SD1.5", "stable-diffusion-2-base": "SD2", "stable-diffusion-xl-base-1.0": "SDXL"}
VISION = {  # image encoder -> sizes
    "clip-vit-large-patch14": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "projection_dim": 768,
    },
    "CLIP-ViT-H-14-laion2B-s32B-b79K": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "projection_dim": 1024,
    },
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": {
        "hidden_size": 1664,
        "intermediate_size": 8192,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "projection_dim": 1280,
    },
}
NAMES = ("cat", "dog")  # of the subjects of every picture
CAPTION = "a photo of a cat and a dog on a beach"
HOLLOW = ("ip_adapter", "mip_adapter", "mm_diff", "subject_diffusion")  # built without numbers from the beginning
Ask = tuple[str, tuple[Any, ...]]  # method of `Features`, arguments


class AskedFeatures(Features):
    """Zeros of the sizes of real features. asked: what was asked for, to be asked of real ones."""

    def __init__(self, base: Base):
        super().__init__(base)
        self.asked: list[Ask] = []
        self._answers: list[tuple[str, int, int]] = []  # method, items, bytes

    def forget(self) -> None:
        """Forget what was asked for."""
        self.asked, self._answers = [], []

    def kept(self, subjects: int) -> int:
        """Return the bytes that a cache keeps of a picture with so many subjects, after one batch of it was asked for;
        without names, which pictures share.
        """
        of_subjects = ("photos", "patches")
        answers = [(name in of_subjects, items, size) for name, items, size in self._answers if name != "names"]
        return sum(size * subjects // items if theirs else size for theirs, items, size in answers if items)

    def latents(self, examples: Sequence[Example]) -> torch.Tensor:
        """See `Features`."""
        side = examples[0].pixels.shape[-1] // self.base.cell
        found = torch.zeros(len(examples), 4, side, side)
        self._note("latents", (examples,), [found])
        return found

    def prompts(self, captions: Sequence[str]) -> list[Prompt]:
        """See `Features`."""
        second = [tower.model.config.projection_dim for tower in self.base.texts.towers[1:]]
        pooled = torch.zeros(1, second[0]) if second else None
        found = [Prompt(torch.zeros(1, 77, self.base.context), pooled) for _ in captions]
        tensors = [tensor for prompt in found for tensor in (prompt.embeds, prompt.pooled) if tensor is not None]
        self._note("prompts", (captions,), tensors)
        return found

    def names(self, names: Sequence[str]) -> list[torch.Tensor]:
        """See `Features`."""
        found = [torch.zeros(1 if name else 76, self.base.context) for name in names]
        self._note("names", (names,), found)
        return found

    def photos(self, subjects: Sequence[ExampleSubject], kind: str, framing: str) -> list[torch.Tensor]:
        """See `Features`."""
        found = [self._photo(kind) for _ in subjects]
        self._note("photos", (subjects, kind, framing), found)
        return found

    def patches(self, subjects: Sequence[ExampleSubject], framing: str, inside: int) -> list[Patches]:
        """See `Features`."""
        images = self.images
        found = [(torch.zeros(images.patches, images.hidden), torch.zeros(images.pooled)) for _ in subjects]
        self._note("patches", (subjects, framing, inside), [tensor for pair in found for tensor in pair])
        return found

    def no_photo(self, kind: str) -> torch.Tensor:
        """See `Features`."""
        return self._photo(kind)

    def _photo(self, kind: str) -> torch.Tensor:
        images = self.images
        sizes = {"pooled": (images.pooled,), "penultimate": (images.patches + 1, images.hidden)}
        return torch.zeros(sizes.get(kind, (images.hidden,)))

    def _note(self, name: str, arguments: tuple[Any, ...], tensors: Sequence[torch.Tensor]) -> None:
        self.asked.append((name, arguments))
        self._answers.append((name, len(arguments[0]), sum(tensor.nbytes for tensor in tensors)))


@dataclass(frozen=True, eq=False)
class Training:
    """A training of published sizes. mode: the fake tensors of its models; base: name of its base model."""

    config: Config
    base: str
    trainee: Trainee
    mode: FakeTensorMode

    @property
    def features(self) -> AskedFeatures:
        """The zeros that batches are made of."""
        return cast(AskedFeatures, self.trainee.features)


def recipe_files() -> list[str]:
    """Return the names of the files in training/recipes for published models, without their endings."""
    return sorted(path.stem for path in RECIPE_FILES.glob("sd*.toml"))


def training(name: str) -> Training:
    """Return the training of a file in training/recipes; if it starts from a file, with new weights of that size.

    The UNet is in bfloat16, the VAE and what is trained in float32.
    """
    config = settings_of(RECIPE_FILES / f"{name}.toml")
    base = BASES[Path(config.base.folder).name]
    found = models(base, Path(config.base.image_encoder).name)
    recipe = RECIPES[config.name]
    certain = {field.name: 0.0 for field in fields(config.recipe) if field.name.startswith("drop_")}
    options = replace(config.recipe, **certain, **({"start": ""} if hasattr(config.recipe, "start") else {}))
    with torch.device("meta") if config.name in HOLLOW else nullcontext():
        trainee = recipe.build(found, AskedFeatures(found), PassSettings(), options)
    for module in trainee.modules_of_base():
        module.float()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    make_fake((trainee, *found.modules), mode)
    return Training(config, base, trainee, mode)


def models(base: str, encoder: str) -> Base:
    """Return a `Base` with the published sizes and no numbers, in bfloat16 (the VAE in float32)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNETS[base])
        first = CLIPTextModel(CLIPTextConfig(**(CLIP_H if base == "SD2" else CLIP_L)))
        texts, others = ClipTexts.sd2(first) if base == "SD2" else ClipTexts.sd15(first), [first]
        if base == "SDXL":
            second = CLIPTextModelWithProjection(CLIPTextConfig(**BIGG, projection_dim=1280))
            texts, others = ClipTexts.sdxl(first, second), [first, second]
        vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION[encoder], patch_size=14))
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    frozen = [unet, *others, vision]
    for module in frozen:
        module.eval().requires_grad_(False).to(torch.bfloat16)
    vae.eval().requires_grad_(False)  # stays float32
    return Base(unet, texts, ClipImages(vision), DDPMScheduler(), *pixel_functions(vae), (*frozen, vae))


def make_fake(modules: Iterable[torch.nn.Module], mode: FakeTensorMode) -> None:
    """Replace every parameter and buffer by a fake tensor of its size; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    for module in (part for each in modules for part in each.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and not isinstance(tensor, torch._subclasses.FakeTensor):
                    made[id(tensor)] = made.get(id(tensor), _fake(tensor, mode))
                    tensors[name] = made[id(tensor)]


def fake(value: Any, mode: FakeTensorMode) -> Any:
    """Return a tensor, or a dataclass or sequence of some, with fake tensors of the same sizes."""
    if isinstance(value, torch.Tensor):
        return mode.from_tensor(value)
    if isinstance(value, (tuple, list)):
        return type(value)(fake(each, mode) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: fake(getattr(value, field.name), mode) for field in fields(value)})
    return value


def batch_of(training: Training, pictures: int, resolution: int) -> Batch:
    """Return a batch of one picture, repeated, with its features from `AskedFeatures`, on fake tensors."""
    example = _example(resolution, NAMES[: training.config.data.subjects])
    return fake(training.trainee.prepare([Draw(n, 0, example) for n in range(pictures)]), training.mode)


def loss_of(trainee: Trainee, batch: Batch) -> Callable[[], torch.Tensor]:
    """Return what computes the loss of a batch, as the loop does."""

    def forward() -> torch.Tensor:
        losses = trainee(batch)
        return torch.stack([trainee.weights[name] * loss.mean() for name, loss in losses.items()]).sum()

    return forward


def encode_all(trainee: Trainee, asked: Sequence[Ask], only: bool) -> Callable[[], None]:
    """Return what encodes asked features for real. only: the latents, else everything but them."""

    def run() -> None:
        features = Features(trainee.base)
        for name, arguments in asked:
            if (name == "latents") == only:
                getattr(features, name)(*arguments)

    return run


def _fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    with mode:
        found = torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.nn.Parameter(found, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else found


def _example(side: int, names: Sequence[str]) -> Example:
    found = []
    for i, name in enumerate(names):
        mask = torch.zeros(side, side)
        mask[side // 4 : side // 2, i * side // 2 : i * side // 2 + side // 3] = 1
        found.append(ExampleSubject(name, Photo(torch.zeros(224, 224, 3)), mask=mask))
    return Example("a picture", torch.zeros(3, side, side), CAPTION, tuple(found), original=(side, side))
