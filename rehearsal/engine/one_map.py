"""A rival to measure against, in the manner of Conceptrol (arXiv 2503.06568): one layer's map of a subject's name is
the mask of its image attention in every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch.nn.functional import interpolate

from ...model_patches.attention.heads import split_heads
from ...model_patches.attention.relevance import relevance_of_heads
from ...model_patches.binding.layer_tokens import name_segments, project_names
from ...model_patches.hosts.diffusers.image_attention import ImageAttention

LAYER = 2  # the first cross-attention layer on the way up: 8 x 8 positions


class OneMap(ImageAttention):
    """Image attention whose limits are the map of LAYER, A_i / max_p A_i, from the last time that layer ran; 1
    everywhere before.
    """

    def __enter__(self) -> OneMap:
        super().__enter__()
        place = self._layers[LAYER]
        names = project_names(
            (layer.attention.to_k for layer in self._layers), self.references, self._unet.device, self._unet.dtype
        )[LAYER]
        segments, heads = name_segments(self.references, self._unet.device), place.attention.heads
        keys = split_heads(names[-1:] * (names.shape[-1] // heads) ** -0.5, heads)
        self._map: torch.Tensor | None = None

        def see(module: torch.nn.Module, args: tuple[Any, ...], query: torch.Tensor) -> None:
            cond = query.chunk(len(self.roles))[-1]  # B, N, C
            # B, M, N
            a = relevance_of_heads(split_heads(cond.flatten(0, 1)[None], heads), keys, segments[-1:], len(cond))[0]
            self._map = (a / a.amax(-1, keepdim=True)).unflatten(-1, self._grids[place.transformer])

        self._hooks.append(place.attention.to_q.register_forward_hook(see))
        return self

    def limits(self, transformer: Transformer2DModel, positions: int, pictures: int) -> torch.Tensor | None:
        """Return the map at this transformer's grid, [1, B, M, N], for a batch of `pictures`."""
        if self._map is None:
            return None
        return interpolate(self._map, self._grids[transformer], mode="bilinear").flatten(2)[None]
