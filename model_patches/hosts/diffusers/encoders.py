"""transformers' CLIP models behind the interfaces of `model_patches.encoding.interfaces`, reading photos, names and
prompts as ComfyUI does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch.func import functional_call
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from ...adapter import Adapter
from ...bases import SD2_BASE, SD15_BASE, SDXL_BASE, BaseModel
from ...encoding.interfaces import BATCH, ImageEncoder, NameEncoder, check_vision_weights
from ...families.encode import encode_subjects
from ...families.registry import read_adapter
from ...prompt.emphasis import PLAIN, weighted_parts
from ...prompt.fusion import Streams
from ...prompt.tokens import EOS, LENGTH, PADDING, name_too_long, word_embeddings
from ...subjects import Cast, References

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, RGB
STD = (0.26862954, 0.26130258, 0.27577711)
BOS = 49406
SPLIT_FROM = 8  # a part of at least so many tokens is cut where a chunk is full; a shorter one moves to the next chunk
PADDINGS = {"l": EOS, "g": PADDING, "h": PADDING}  # the token after EOS, of each text encoder by ComfyUI's name
SD2_LAYERS = 23  # of the published diffusers folders: the last layer, which SD2 does not read, is left out there

# tokens and their weights, BOS first, LENGTH of them with EOS; padding is not in it
TokenChunk = list[tuple[int, float]]


def load_adapter(path: str | Path) -> Adapter:
    """Load the adapter of a file, with the files that belong to it, in float32. Raises CheckpointError."""
    adapter = read_adapter(path)
    for module in (adapter.projection, adapter.layers, adapter.gated, adapter.fusion):
        if module is not None:
            module.float()
    return adapter


def encode_references(
    adapter: Adapter,
    cast: Cast,
    images: ImageEncoder | None,
    names: NameEncoder | None,
    framing: str = "auto",
    prompts: Sequence[str] = (),
    warn: Callable[[str], None] = lambda sentence: None,
) -> References:
    """Encode the references by `model_patches.families.encode.encode_subjects` with the adapter's own projection,
    results on the CPU.
    """

    def project(*features: torch.Tensor) -> Any:
        projection = adapter.projection
        if projection is None:
            raise ValueError(f"{adapter.spec.file}: expected a projection, found none")
        weight = next(projection.parameters())
        found = projection(*(f.to(weight) for f in features))
        return found.float().cpu() if isinstance(found, torch.Tensor) else tuple(f.float().cpu() for f in found)

    with torch.no_grad():
        return encode_subjects(adapter, cast, images, project, names, framing, prompts, warn)


class ClipImages:
    """A `interfaces.ImageEncoder` on CLIP ViT-H, ViT-bigG or ViT-L. weights: tensors that replace the model's own,
    which stays as it is.
    """

    def __init__(self, model: CLIPVisionModelWithProjection, weights: Mapping[str, torch.Tensor] | None = None):
        self._model, config = model.eval(), model.config
        self._weights = {name: value.to(model.device, model.dtype) for name, value in (weights or {}).items()}
        # CLIP's pictures are squares, of which transformers knows the side
        self.size, self.hidden, self.pooled = cast(int, config.image_size), config.hidden_size, config.projection_dim
        self.patches = (self.size // cast(int, config.patch_size)) ** 2

    @torch.no_grad()
    def encode(self, pictures: torch.Tensor, kind: str, blank: bool) -> torch.Tensor:
        """See `interfaces.ImageEncoder`; float32 on the CPU."""
        pixels = pixel_values(pictures)
        if blank:
            pixels = torch.cat((pixels, pixels.new_zeros(1, 3, self.size, self.size)))
        if not len(pixels):
            return torch.zeros(0, self.pooled)
        return torch.cat([self._read(part, kind) for part in pixels.split(BATCH)])

    @torch.no_grad()
    def encode_patches(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `interfaces.ImageEncoder`; float32 on the CPU."""
        found = [self._run(part) for part in pixel_values(pictures).split(BATCH)]
        return torch.cat([f.last_hidden_state[:, 1:].float().cpu() for f in found]), torch.cat(
            [f.image_embeds.float().cpu() for f in found]
        )

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> ClipImages:
        """See `interfaces.ImageEncoder`."""
        check_vision_weights(weights, self._model.state_dict())
        return ClipImages(self._model, {**self._weights, **weights})

    def _read(self, pixels: torch.Tensor, kind: str) -> torch.Tensor:
        found = self._run(pixels, output_hidden_states=kind == "penultimate")
        if kind == "penultimate":
            return found.hidden_states[-2].float().cpu()
        if kind == "pooled":
            return found.image_embeds.float().cpu()
        norm = self._model.vision_model.post_layernorm
        weights = {
            name.rpartition(".")[2]: value
            for name, value in self._weights.items()
            if name.startswith("vision_model.post_layernorm.")
        }
        return functional_call(norm, weights, (found.last_hidden_state[:, 0],)).float().cpu()

    def _run(self, pixels: torch.Tensor, **options: bool) -> Any:
        return functional_call(self._model, self._weights, (pixels.to(self._model.device, self._model.dtype),), options)


def pixel_values(pictures: torch.Tensor) -> torch.Tensor:
    """Convert pictures [n, S, S, 3] in 0..1 to [n, 3, S, S], rounded to 8 bit and normalised as CLIP was trained."""
    steps = (pictures.float() * 255).clamp(0, 255).round() / 255
    return ((steps - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, 1).contiguous()


@dataclass(frozen=True, eq=False)
class TextTower:
    """One text encoder and the output that the base model reads.

    stream: ComfyUI's name of it, 'l', 'g' or 'h'; layer: index into the hidden states, -1 last, -2 penultimate;
    final_norm: whether the final LayerNorm follows; padding: token after EOS.
    """

    stream: str
    model: CLIPTextModel | CLIPTextModelWithProjection
    layer: int
    final_norm: bool
    padding: int

    def embed(self, tokens: Sequence[Any]) -> torch.Tensor:
        """Return word embeddings [n, d] of tokens (ids, or vectors as they are), before positions are added; float32,
        CPU.
        """
        table = cast(torch.nn.Module, self.model.get_input_embeddings())
        return word_embeddings(tokens, lambda ids: table(torch.tensor(ids, device=self.model.device)).float().cpu())

    def encode(self, chunks: Sequence[Sequence[Any]]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encode chunks of tokens (ids, or vectors [d] in their place) -> [n, LENGTH, D] states and [n, E] projected
        pooled outputs (None if the model has no projection), float32, CPU.
        """
        found = self._run(chunks, output_hidden_states=True)
        states = found.hidden_states[self.layer]
        if self.final_norm:
            norm = getattr(self.model, "text_model", self.model).final_layer_norm
            states = cast(torch.nn.LayerNorm, norm)(states)
        pooled = getattr(found, "text_embeds", None)
        return states.float().cpu(), None if pooled is None else pooled.float().cpu()

    def pooled(self, chunks: Sequence[Sequence[int]], projected: bool) -> torch.Tensor:
        """Return the pooled outputs [n, E] at each chunk's EOS, after the final norm, or also projected;
        float32, CPU.
        """
        found = self._run(chunks)
        if projected:
            return found.text_embeds.float().cpu()
        ends = torch.tensor([chunk.index(EOS) for chunk in chunks], device=self.model.device)
        return found.last_hidden_state[torch.arange(len(chunks), device=ends.device), ends].float().cpu()

    def _run(self, chunks: Sequence[Sequence[Any]], **options: bool) -> Any:
        vectors = {
            (n, i): token
            for n, chunk in enumerate(chunks)
            for i, token in enumerate(chunk)
            if not isinstance(token, int)
        }
        rows = [
            [0 if (n, i) in vectors else token for i, token in enumerate(chunk)]
            + [self.padding] * (LENGTH - len(chunk))
            for n, chunk in enumerate(chunks)
        ]
        with embeddings_replaced(self.model, vectors):
            return self.model(torch.tensor(rows, device=self.model.device), **options)


@contextmanager
def embeddings_replaced(model: Any, vectors: Mapping[tuple[int, int], torch.Tensor]) -> Iterator[None]:
    """Replace a text model's word embeddings at (row, position) by these vectors [d] while the context is open, before
    positions are added.
    """

    def put(table: torch.nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for place, vector in vectors.items():
            output[place] = vector.to(output)
        return output

    hook = model.get_input_embeddings().register_forward_hook(put) if vectors else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@dataclass(frozen=True, eq=False)
class Prompt:
    """An encoded prompt: embeds [1, chunks * LENGTH, D]; pooled [1, E], or None if the base model has none.

    before: what is sampled with in its place until `start_percent` of the run (ComfyUI's) or, unless -1, until
    `start_step`; None: nothing.
    """

    embeds: torch.Tensor
    pooled: torch.Tensor | None = None
    before: Prompt | None = None
    start_percent: float = 0.0
    start_step: int = -1


class ClipTexts:
    """The text encoders of one base model: a `interfaces.NameEncoder`, and the prompt encoder for sampling."""

    def __init__(self, *towers: TextTower):
        self.towers = towers
        for tower in towers:
            tower.model.eval()

    @classmethod
    def sd15(cls, model: CLIPTextModel) -> ClipTexts:
        """Return the text encoder of SD1.5, CLIP-L."""
        return cls.of(SD15_BASE, model)

    @classmethod
    def sd2(cls, model: CLIPTextModel) -> ClipTexts:
        """Return the text encoder of SD2, OpenCLIP-H; published folders hold the model without its last layer."""
        return cls.of(SD2_BASE, model, left_out=int(model.config.num_hidden_layers == SD2_LAYERS))

    @classmethod
    def sdxl(cls, clip_l: CLIPTextModel, clip_g: CLIPTextModelWithProjection) -> ClipTexts:
        """Return the text encoders of SDXL, CLIP-L and OpenCLIP-bigG; pooled from bigG."""
        return cls.of(SDXL_BASE, clip_l, clip_g)

    @classmethod
    def of(cls, base: BaseModel, *models: CLIPTextModel | CLIPTextModelWithProjection, left_out: int = 0) -> ClipTexts:
        """Return the text encoders of a base model, in the order of its streams. left_out: how many of their last
        layers the models lack.
        """
        layer = base.clip_layer + left_out
        each = zip(base.streams, models, strict=True)
        return cls(*(TextTower(name, model, layer, base.final_norm, PADDINGS[name]) for name, model in each))

    @torch.no_grad()
    def encode(self, names: Sequence[str]) -> list[torch.Tensor]:
        """See `interfaces.NameEncoder`."""
        chunks = _name_chunks(names)
        states = torch.cat([tower.encode(chunks)[0] for tower in self.towers], -1)
        return [
            row[1:] if not name.strip() else row[1 : 1 + chunk[1:].index(EOS)]
            for name, chunk, row in zip(names, chunks, states, strict=True)
        ]

    @torch.no_grad()
    def pooled(self, names: Sequence[str]) -> list[torch.Tensor | None]:
        """See `interfaces.NameEncoder`."""
        chunks = _name_chunks(names)
        vectors = torch.cat([tower.pooled(chunks, projected=tower is not self.towers[0]) for tower in self.towers], -1)
        return [None if chunk == [BOS, EOS] else vector for vector, chunk in zip(vectors, chunks, strict=True)]

    def tokenize(self, prompt: str) -> Streams:
        """Return the prompt's chunks for each text encoder, padded to LENGTH."""
        chunks = prompt_chunks(prompt)
        return {
            tower.stream: [[*chunk, *[(tower.padding, PLAIN)] * (LENGTH - len(chunk))] for chunk in chunks]
            for tower in self.towers
        }

    def encode_each(self, prompts: Sequence[Streams]) -> list[Prompt]:
        """Return each prompt's tokens for the UNet, all of them from one pass of each text encoder.

        A token of weight w becomes `empty + w * (token - empty)`, `empty` the same place of the empty prompt. Gradients
        reach vectors among the tokens.
        """
        states, pooled = [], None
        for tower in self.towers:
            chunks = [chunk for prompt in prompts for chunk in prompt[tower.stream]]
            weights = torch.tensor([[weight for _, weight in chunk] for chunk in chunks]).unsqueeze(-1)
            found, pooled = tower.encode([*([token for token, _ in chunk] for chunk in chunks), [BOS, EOS]])
            states.append(torch.where(weights == PLAIN, found[:-1], found[-1:] + weights * (found[:-1] - found[-1:])))
        lengths = [len(prompt[self.towers[0].stream]) for prompt in prompts]
        firsts = [None] * len(prompts) if pooled is None else [rows[:1] for rows in pooled[:-1].split(lengths)]
        each = torch.cat(states, -1).split(lengths)
        return [Prompt(rows.flatten(0, 1).unsqueeze(0), first) for rows, first in zip(each, firsts, strict=True)]

    def encode_prompt(self, prompt: str) -> Prompt:
        """Return the prompt for the UNet."""
        return self.encode_prompts([prompt])[0]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> list[Prompt]:
        """Return each of several prompts for the UNet, all of them from one pass of each text encoder."""
        return self.encode_each([self.tokenize(prompt) for prompt in prompts])


def _name_chunks(names: Sequence[str]) -> list[list[int]]:
    """Each name's tokens with BOS and EOS, emphasis dropped. Raises SubjectError for a name over one chunk."""
    chunks = []
    for name in names:
        found = prompt_chunks(name)
        if len(found) > 1:
            raise name_too_long(name)
        chunks.append([token for token, _ in found[0]])
    return chunks


def prompt_chunks(prompt: str) -> list[TokenChunk]:
    """Return a prompt in ComfyUI's notation as chunks of at most LENGTH weighted tokens; there is always one."""
    chunks: list[TokenChunk] = [[]]
    room = LENGTH - 2
    for text, weight in weighted_parts(prompt):
        tokens = [(token, weight) for token in _tokenizer().encode(text)]
        divisible = len(tokens) >= SPLIT_FROM
        while len(tokens) + len(chunks[-1]) > room:
            take = room - len(chunks[-1]) if divisible else 0
            chunks[-1] += tokens[:take]
            tokens = tokens[take:]
            chunks.append([])
        chunks[-1] += tokens
    return [[(BOS, PLAIN), *chunk, (EOS, PLAIN)] for chunk in chunks]


@lru_cache(maxsize=1)
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()
