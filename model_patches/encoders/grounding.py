"""What is where, as object tokens for the gated layers: Subject-Diffusion's MLP and GroundingNet (arXiv
2307.11410), GLIGEN's PositionNets (arXiv 2301.07093). Published tensor names (see leaf_parameter.py), `operations` as
in projections.py.

Letters: B rows, N objects (slots), T patch tokens an object, E channels of a feature, D of an object token. Boxes are
left, top, right, bottom in 0..1 of the picture. Give float32 features where the weights allow it: these tokens are made
once a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..attention.fourier import FREQUENCIES, box_fourier
from .leaf_parameter import LeafParameter
from .mlp import MLP
from .projections import MisshapenTensor, StateDict, shape_of

TEXT_SPACE_NORM = 28.7  # length of CLIP ViT-L/14's pooled text vectors before their projection, on average
COORDINATES = 8  # sine and cosine of four


def to_text_space(embeds: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return GLIGEN's image features: `v = e P`, then `28.7 v / |v|` (CLIP's text projection, inverted).

    Arguments: embeds: [..., E] projected CLIP image embeddings (several photos of one subject: their mean); matrix: P
    [E, E], the published `projection_matrix`. Returns [..., E] in the embeddings' dtype, zeros for zeros.
    """
    return nn.functional.normalize(embeds @ matrix.to(embeds), dim=-1) * TEXT_SPACE_NORM


class TextSpace(nn.Module):
    """`to_text_space` with its matrix: what GLIGEN's text-image files read photos through.

    Arguments:
        width: E, size of the embeddings.
    """

    def __init__(self, width: int):
        super().__init__()
        self.matrix = LeafParameter(width, width)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        """Map [..., E] to [..., E]."""
        return to_text_space(embeds, self.matrix.weight)


@dataclass(frozen=True, eq=False)
class Objects:
    """The inputs of each slot that a net may read.

    boxes: [1, N, 4]; present: [1, N] bool; text: [1, N, E], image: [1, N, *image_shape], zeros where absent, with
    has_text and has_image [1, N] bool; use_bbox: see `GroundingNet.forward`.
    """

    boxes: torch.Tensor
    present: torch.Tensor
    text: torch.Tensor
    has_text: torch.Tensor
    image: torch.Tensor
    has_image: torch.Tensor
    use_bbox: bool


class ObjectNet(Protocol):
    """The interface of a net for gated layers. feature_dim: E; uncond_is_zero: whether the published uncond is tokens
    of zeros.
    """

    feature_dim: int
    uncond_is_zero: bool

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one subject's image features."""
        ...

    def tokens_of(self, objects: Objects) -> torch.Tensor:
        """Return object tokens [1, M, D]."""
        ...

    def uncond(self, slots: int, device: torch.device) -> torch.Tensor:
        """Return what rows of the negative prompt get, [1, M, D] float32, as published."""
        ...

    def per_token(self, per_slot: torch.Tensor) -> torch.Tensor:
        """Repeat a value of each slot [N] for each of its tokens [M]."""
        ...


class GroundingNet(nn.Module):
    """Subject-Diffusion: an object's patch tokens, each with its box, through one MLP.

    Absent objects are learned null tokens.

    Arguments:
        feature_dim: E, size of a patch token.
        out_dim: D, size of an object token.
        hidden_dim: of the MLP.
        tokens: T, patch tokens of an object.
        frequencies: F of the box's sines and cosines.
        boxed: False for a net that was trained without boxes: every object has the null position.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    uncond_is_zero = True

    def __init__(
        self,
        feature_dim: int,
        out_dim: int,
        hidden_dim: int,
        tokens: int,
        frequencies: int = FREQUENCIES,
        boxed: bool = True,
        operations: Any = nn,
    ):
        super().__init__()
        self.tokens, self.feature_dim, self.frequencies, self.boxed = tokens, feature_dim, frequencies, boxed
        position_dim = frequencies * COORDINATES
        self.linears_image = MLP(feature_dim + position_dim, out_dim, hidden_dim, operations=operations)
        self.null_image_feature = LeafParameter(1, 1, tokens, feature_dim)
        self.null_position_feature = LeafParameter(1, 1, tokens, position_dim)

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from `null_image_feature` [1, 1, T, E], `null_position_feature` [1, 1,
        T, 8 F] and the MLP.
        """
        _, _, tokens, feature_dim = shape_of(state, "null_image_feature", 4)
        frequencies = _frequencies(state, shape_of(state, "null_position_feature", 4)[-1])
        hidden_dim, _ = shape_of(state, "linears_image.fc1.weight", 2)
        out_dim, _ = shape_of(state, "linears_image.fc2.weight", 2)
        return {
            "feature_dim": feature_dim,
            "out_dim": out_dim,
            "hidden_dim": hidden_dim,
            "tokens": tokens,
            "frequencies": frequencies,
        }

    def forward(
        self, patches: torch.Tensor, present: torch.Tensor, boxes: torch.Tensor, use_bbox: bool = True
    ) -> torch.Tensor:
        """Patch tokens and boxes -> object tokens.

        Arguments:
            patches: [B, N, T, E], the encoder's last hidden state without CLS, before its final norm; present: [B, N]
                bool.
            boxes: [B, N, 4], zeros where absent.
            use_bbox: True: absent objects have the null position. False (published for one subject): all have the null
                position where at most one is present, and where more are, all have their boxes, absent ones the
                embedding of zeros.
        Returns:
            [B, N * T, D], object by object.
        """
        present = present.bool()[..., None, None]  # B, N, 1, 1
        features = torch.where(present, patches, self.null_image_feature.weight.to(patches))
        placed = self.boxed & (present if use_bbox else present.sum(1, keepdim=True) > 1)
        position = box_fourier(boxes, self.frequencies).unsqueeze(2).to(patches)  # B, N, 1, 8 F
        position = torch.where(placed, position, self.null_position_feature.weight.to(patches))  # B, N, T, 8 F
        return self.linears_image(torch.cat((features, position), -1).flatten(1, 2))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[T, E]."""
        return self.tokens, self.feature_dim

    def tokens_of(self, objects: Objects) -> torch.Tensor:
        """See `ObjectNet`."""
        return self(objects.image, objects.present, objects.boxes, objects.use_bbox)

    def uncond(self, slots: int, device: torch.device) -> torch.Tensor:
        """Return zeros [1, N * T, D]."""
        return torch.zeros(1, slots * self.tokens, self.linears_image.fc2.out_features, device=device)

    def per_token(self, per_slot: torch.Tensor) -> torch.Tensor:
        """Repeat [N] to [N * T], object by object."""
        return per_slot.repeat_interleave(self.tokens)


class PositionMLP(nn.Sequential):
    """A feature with its box through three Linears with SiLU between.

    Arguments:
        feature_dim: E, size of the feature.
        position_dim: size of the encoded box.
        out_dim: D, size of the result.
        hidden_dim: size between the Linears.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    def __init__(self, feature_dim: int, position_dim: int, out_dim: int, hidden_dim: int, operations: Any = nn):
        widths = (feature_dim + position_dim, hidden_dim, hidden_dim, out_dim)
        first, second, third = (operations.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))
        super().__init__(first, nn.SiLU(), second, nn.SiLU(), third)


class TextPositionNet(nn.Module):
    """GLIGEN's text boxes: one token an object from its phrase and its box.

    Arguments:
        feature_dim: E, size of a phrase's embedding.
        out_dim: D, size of an object token.
        hidden_dim: of the MLP.
        frequencies: F of the box's sines and cosines.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    uncond_is_zero = False

    def __init__(
        self,
        feature_dim: int,
        out_dim: int,
        hidden_dim: int = 512,
        frequencies: int = FREQUENCIES,
        operations: Any = nn,
    ):
        super().__init__()
        self.feature_dim, self.frequencies = feature_dim, frequencies
        position_dim = frequencies * COORDINATES
        self.linears = PositionMLP(feature_dim, position_dim, out_dim, hidden_dim, operations)
        self.null_positive_feature = LeafParameter(feature_dim)
        self.null_position_feature = LeafParameter(position_dim)

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from the published names, without `position_net.`."""
        return _position_widths(state, "null_positive_feature", "linears")

    def forward(self, boxes: torch.Tensor, masks: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Encode phrases and boxes as object tokens.

        Arguments: boxes: [B, N, 4]; masks: [B, N] bool, whether the object is there; text: [B, N, E], pooled CLIP text
        vectors before their projection. Returns [B, N, D].
        """
        position = _or_null(masks, box_fourier(boxes, self.frequencies).to(text), self.null_position_feature)
        return self.linears(torch.cat((_or_null(masks, text, self.null_positive_feature), position), -1))

    def null(self, like: torch.Tensor) -> torch.Tensor:
        """Return the tokens where every object is absent (the published uncond), [B, N, D]. like: [B, N, E], of which
        values do not matter.
        """
        absent = like.new_zeros(like.shape[:2], dtype=torch.bool)
        return self(like.new_zeros((*like.shape[:2], 4)), absent, like)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[E]."""
        return (self.feature_dim,)

    def tokens_of(self, objects: Objects) -> torch.Tensor:
        """See `ObjectNet`."""
        return self(objects.boxes, objects.present, objects.text)

    def uncond(self, slots: int, device: torch.device) -> torch.Tensor:
        """Return the null tokens of all slots, [1, M, D]."""
        return self.null(torch.zeros(1, slots, self.feature_dim, device=device))

    def per_token(self, per_slot: torch.Tensor) -> torch.Tensor:
        """Return [N] unchanged: one token per object."""
        return per_slot


class TextImagePositionNet(nn.Module):
    """GLIGEN's text-image boxes: two tokens an object, from its phrase and from its photo, each with its box.

    Arguments:
        feature_dim: E, size of a phrase's and a photo's embedding.
        out_dim: D, size of an object token.
        hidden_dim: of both MLPs.
        frequencies: F of the box's sines and cosines.
        operations: `torch.nn`, or a host's module with the same classes.
    """

    uncond_is_zero = False

    def __init__(
        self,
        feature_dim: int,
        out_dim: int,
        hidden_dim: int = 512,
        frequencies: int = FREQUENCIES,
        operations: Any = nn,
    ):
        super().__init__()
        self.feature_dim, self.frequencies = feature_dim, frequencies
        position_dim = frequencies * COORDINATES
        self.linears_text = PositionMLP(feature_dim, position_dim, out_dim, hidden_dim, operations)
        self.linears_image = PositionMLP(feature_dim, position_dim, out_dim, hidden_dim, operations)
        self.null_text_feature = LeafParameter(feature_dim)
        self.null_image_feature = LeafParameter(feature_dim)
        self.null_position_feature = LeafParameter(position_dim)

    @classmethod
    def widths(cls, state: StateDict) -> dict[str, int]:
        """Return the constructor arguments, read from the published names, without `position_net.`."""
        return _position_widths(state, "null_text_feature", "linears_text")

    def forward(
        self,
        boxes: torch.Tensor,
        masks: torch.Tensor,
        text_masks: torch.Tensor,
        image_masks: torch.Tensor,
        text: torch.Tensor,
        image: torch.Tensor,
    ) -> torch.Tensor:
        """Encode phrases, photos and boxes as object tokens.

        Arguments:
            boxes: [B, N, 4]; masks: [B, N] bool, whether the box counts; text_masks, image_masks: [B, N] bool, which
                features are there.
            text: [B, N, E], as in TextPositionNet; image: [B, N, E], from `to_text_space`.
        Returns:
            [B, 2 N, D], all objects' text tokens, then all objects' image tokens.
        """
        position = _or_null(masks, box_fourier(boxes, self.frequencies).to(text), self.null_position_feature)
        text, image = (
            _or_null(text_masks, text, self.null_text_feature),
            _or_null(image_masks, image, self.null_image_feature),
        )
        return torch.cat(
            (self.linears_text(torch.cat((text, position), -1)), self.linears_image(torch.cat((image, position), -1))),
            1,
        )

    def null(self, like: torch.Tensor) -> torch.Tensor:
        """Return the tokens where every object is absent (the published uncond), [B, 2 N, D]. like: [B, N, E], of which
        values do not matter.
        """
        absent = like.new_zeros(like.shape[:2], dtype=torch.bool)
        return self(like.new_zeros((*like.shape[:2], 4)), absent, absent, absent, like, like)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """[E]."""
        return (self.feature_dim,)

    def tokens_of(self, objects: Objects) -> torch.Tensor:
        """See `ObjectNet`."""
        return self(
            objects.boxes,
            objects.present,
            objects.present & objects.has_text,
            objects.present & objects.has_image,
            objects.text,
            objects.image,
        )

    def uncond(self, slots: int, device: torch.device) -> torch.Tensor:
        """Return the null tokens of all slots, [1, M, D]."""
        return self.null(torch.zeros(1, slots, self.feature_dim, device=device))

    def per_token(self, per_slot: torch.Tensor) -> torch.Tensor:
        """Repeat [N] to [2 N]: all objects' text tokens, then all objects' image tokens."""
        return per_slot.repeat(2)


def _or_null(masks: torch.Tensor, features: torch.Tensor, null: LeafParameter) -> torch.Tensor:
    """[B, N] and [B, N, E] -> [B, N, E], the learned null feature [E] where the mask is 0."""
    return torch.where(masks.bool().unsqueeze(-1), features, null.weight.to(features))


def _position_widths(state: StateDict, feature: str, linears: str) -> dict[str, int]:
    (feature_dim,) = shape_of(state, feature, 1)
    frequencies = _frequencies(state, shape_of(state, "null_position_feature", 1)[-1])
    hidden_dim, out_dim = shape_of(state, f"{linears}.0.weight", 2)[0], shape_of(state, f"{linears}.4.weight", 2)[0]
    return {"feature_dim": feature_dim, "out_dim": out_dim, "hidden_dim": hidden_dim, "frequencies": frequencies}


def _frequencies(state: StateDict, position_dim: int) -> int:
    if position_dim % COORDINATES:
        raise MisshapenTensor(
            "null_position_feature",
            f"a last axis in a multiple of {COORDINATES}",
            tuple(state["null_position_feature"].shape),
        )
    return position_dim // COORDINATES
