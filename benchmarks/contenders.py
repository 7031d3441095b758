"""What is timed: our nodes and others', each wired onto the same MODEL with random weights in the published layouts.

A name says what it is: `relevance 2x4` is two subjects of four image tokens each, `+regions` or `+masks` gives each its
half or strip of the picture.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from bases import prompts
from live import Wired

NAME_TOKENS = 3
POOLED, HIDDEN = 1024, 1280  # of CLIP ViT-H


class Contenders:
    """Factory of the runs for one base model. folder: where adapter files are written; rival: a checkout of
    ComfyUI_IPAdapter_plus, or None.
    """

    def __init__(self, patcher: Any, dtype: torch.dtype, folder: Path, rival: Path | None = None):
        from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

        self.patcher, self.dtype, self.folder, self.rival_folder = patcher, dtype, folder, rival
        self.positive, self.negative = prompts(patcher)
        self.blocks = attention_blocks(patcher.model.diffusion_model)
        self.context = self.blocks[0].context_dim
        self._made: dict[Any, Any] = {}

    def wired(self, name: str) -> Wired:
        """Return the run with this name: MODEL, positive and negative. Raises ValueError for an unknown kind of run."""
        kind, _, rest = name.partition(" ")
        sizes, _, extra = rest.partition("+")
        numbers = [int(n) for n in sizes.split("x") if n]
        makers = {
            "text": self._text,
            "relevance": self._relevance,
            "add": self._add,
            "gated": self._gated,
            "core-gligen": self._core_gligen,
            "ipadapter-plus": self._rival,
        }
        if kind not in makers:
            raise ValueError(f"a run to time: expected one of {', '.join(makers)}, found '{name}'")
        return makers[kind](*numbers, **({"apart": True} if extra else {}))

    def forget(self) -> None:
        """Let go of what runs share, as far as no run holds it."""
        self._made.clear()

    # ---- ours --------------------------------------------------------------------------------------------------------

    def _text(self) -> Wired:
        return self.patcher.clone(), self.positive, self.negative

    def _relevance(self, subjects: int, tokens: int, apart: bool = False, merge: str = "relevance") -> Wired:
        from troupe.model_patches.attention.merges import Mixing
        from troupe.model_patches.binding.settings import ImageAttentionSettings
        from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
        from troupe.model_patches.subjects import References, ReferenceSubject

        adapter = self._once(("adapter", tokens), lambda: self.image_adapter(tokens, text_gain=True))
        cast = tuple(
            ReferenceSubject(
                f"subject {i}",
                self._random(tokens),
                self._random(NAME_TOKENS),
                region=strip(i, subjects) if apart else None,
            )
            for i in range(subjects)
        )
        references = References(adapter, cast, self._random(tokens), self._random(76))
        model, positive, negative, _ = apply_image_attention(
            self.patcher, references, ImageAttentionSettings(0.65, Mixing(merge)), self.positive, self.negative
        )
        return model, positive, negative

    def _add(self, subjects: int, tokens: int) -> Wired:
        return self._relevance(subjects, tokens, merge="add")

    def _gated(self, subjects: int) -> Wired:
        from troupe.model_patches.binding.settings import GatedSettings
        from troupe.model_patches.hosts.comfyui.apply import apply_gated
        from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter
        from troupe.model_patches.subjects import Box, ObjectFeatures, References, ReferenceSubject

        adapter = self._once("gated", lambda: host_adapter(self._read(self._gligen_file())))
        boxes = [Box(i / subjects, 0.2, 1 / subjects, 0.6) for i in range(subjects)]
        cast = tuple(
            ReferenceSubject(f"subject {i}", None, None, box=box, features=ObjectFeatures(self._random(1)[0]))
            for i, box in enumerate(boxes)
        )
        model, positive, negative, _ = apply_gated(
            self.patcher, References(adapter, cast, None), GatedSettings(), self.positive, self.negative
        )
        return model, positive, negative

    def image_adapter(self, tokens: int, text_gain: bool) -> Any:
        """Return a random IP-Adapter for the base, with or without MIP-Adapter's text gain, under the host's memory
        management.
        """
        import comfy.ops
        from troupe.model_patches.families.ip_adapter import build
        from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter

        return host_adapter(build(self._image_state(tokens, text_gain), "random.safetensors", comfy.ops.manual_cast))

    def _read(self, file: Path) -> Any:
        import comfy.ops
        from troupe.model_patches.families.registry import read_adapter

        return read_adapter(file, file.name, comfy.ops.manual_cast)

    # ---- others' -----------------------------------------------------------------------------------------------------

    def _core_gligen(self, subjects: int) -> Wired:
        import comfy.sd

        loaded = self._once("core-gligen", lambda: comfy.sd.load_gligen(str(self._gligen_file())))
        side = 64
        places = [
            (self._random(1), side * 6 // 10, side // subjects, side * 2 // 10, side * i // subjects)
            for i in range(subjects)
        ]
        positive = [[tensor, {**rest, "gligen": ("position", loaded, places)}] for tensor, rest in self.positive]
        return self.patcher.clone(), positive, self.negative

    def _rival(self, references: int, tokens: int, apart: bool = False) -> Wired:
        """One Apply node of IPAdapter_plus for each reference, stacked: its only way to give each a weight or a mask of
        its own.
        """
        pack, adapter, model = self.rival_pack(), self.rival_adapter(tokens), self.patcher
        for i in range(references):
            shape = (1, POOLED) if tokens == 4 else (1, 257, HIDDEN)
            found, blank = torch.randn(shape), torch.zeros(shape)
            mask = strip(i, references).unsqueeze(0) if apart else None
            model, _ = pack.IPAdapterEmbeds().apply_ipadapter(
                model, adapter, found, 0.65, "linear", 0.0, 1.0, blank, mask
            )
        return model, self.positive, self.negative

    def rival_adapter(self, tokens: int) -> dict[str, dict[str, torch.Tensor]]:
        """Return a random adapter in the format of the other pack's loader."""
        state = self._image_state(tokens, text_gain=False)
        return {
            part: {name.split(".", 1)[1]: t for name, t in state.items() if name.startswith(part)}
            for part in ("image_proj", "ip_adapter")
        }

    def rival_pack(self) -> ModuleType:
        """Return the module with the other pack's nodes, loaded as the host loads packs, once per process."""
        if "ipadapter_plus" not in sys.modules:
            spec = spec_from_file_location(
                "ipadapter_plus", self.rival_folder / "__init__.py", submodule_search_locations=[str(self.rival_folder)]
            )
            sys.modules["ipadapter_plus"] = pack = module_from_spec(spec)
            spec.loader.exec_module(pack)
        return sys.modules["ipadapter_plus.IPAdapterPlus"]

    # ---- their parts -------------------------------------------------------------------------------------------------

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _random(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, self.context)

    def _image_state(self, tokens: int, text_gain: bool) -> dict[str, torch.Tensor]:
        from support import published_layouts as published

        widths = [block.width for block in self.blocks]
        inner = {768: 768, 2048: 1280}[self.context]
        projection = (
            published.image_proj(self.context, POOLED, tokens)
            if tokens == 4
            else published.resampler(self.context, HIDDEN, inner, inner, tokens, depth=4)
        )
        return {
            n: t.to(self.dtype)
            for n, t in published.flat(projection, published.layers(self.context, widths, text_gain)).items()
        }

    def _gligen_file(self) -> Path:
        from troupe_tools.engine.random_models import write_gligen

        def write() -> Path:
            places = {block.path.removesuffix(".attn2"): block.width for block in self.blocks}
            return write_gligen(
                self.folder / "gligen" / "random_text_boxes.safetensors", places, self.context, self.context
            )

        return self._once("file", write)


def strip(i: int, parts: int, side: int = 64) -> torch.Tensor:
    """Return a mask of the i-th of `parts` equal vertical strips of the picture, [side, side]: 1 inside, 0 outside."""
    mask = torch.zeros(side, side)
    mask[:, side * i // parts : side * (i + 1) // parts] = 1
    return mask
