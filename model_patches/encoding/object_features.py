"""Subjects for gated layers (GLIGEN, Subject-Diffusion): their phrases and photos as features, and what to say about their places. Host-free."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..adapter import AdapterSpec
from ..errors import MismatchError
from ..subjects import Cast, ObjectFeatures, called
from .interfaces import OWN_CLIP, ImageEncoder, NameEncoder, Projector, check_clip_width, check_named, without_words

Words = Mapping[str, torch.Tensor]
SD2 = "h"  # the host's name of the text encoder of SD2, OpenCLIP-H


def object_features(spec: AdapterSpec, cast: Cast, pictures: Sequence[torch.Tensor], images: ImageEncoder | None, project: Projector,
                    names: NameEncoder | None) -> list[tuple[ObjectFeatures, Words]]:
    """What the adapter's net will see of each subject, and what will stand for it in the prompt.

    Arguments:
        pictures: the photos of all subjects in order, [size, size, 3] each; images: their encoder, None for a file that reads none.
        project: GLIGEN: mean photo embeddings [n, E] into the space of the phrases [n, E]; Subject-Diffusion: pooled photos [n, F] to the
            vectors that stand for them in the prompt [n, D].
        names: the text encoder, or None.
    Raises:
        SubjectError: a file of phrases and boxes has a subject without a name, or a name encodes to nothing.
        MismatchError: such a file without a text encoder, one of another base model, an image encoder with another number of patches.
    """
    if not cast.subjects:
        return []
    kind, counts = spec.gated.kind, [len(s.photos) for s in cast.subjects]
    if kind == "patches":
        return _patches(spec, torch.stack(list(pictures)), counts, images, project)
    texts = _phrases(spec, cast, names)
    photos = _embeddings(torch.stack(list(pictures)), counts, images, project) if kind == "text_image" else [None] * len(counts)
    return [(ObjectFeatures(text, image), {}) for text, image in zip(texts, photos, strict=True)]


def object_doubts(spec: AdapterSpec, cast: Cast, features: Sequence[ObjectFeatures], named: bool) -> list[str]:
    """A sentence for each thing that is allowed but probably not meant. named: whether a text encoder was given."""
    kind, sentences = spec.gated.kind, []
    if kind == "text":
        sentences.append(f"To use the photos, load a GLIGEN text-image file: {spec.file} only uses names and boxes.")
    if kind == "text_image" and not named and any(s.name for s in cast.subjects):
        sentences.append(f"{OWN_CLIP} into 'clip': without it {spec.file} gets no names, and a photo without a box sets the style of the picture.")
    numbered = list(enumerate(cast.subjects, 1))
    regions = [called(i, s.name) for i, s in numbered if s.region is not None]
    if regions:
        sentences.append(f"Use a box (Place Subjects) instead of the region of {_listed(regions)}: regions only limit Apply Image Attention, gated layers use boxes.")
    style = [kind == "text_image" and f.text is None for f in features]  # published: a photo with neither phrase nor box
    alone = kind == "patches" and len(cast.subjects) == 1  # published: one subject has no position
    unplaced = [called(i, s.name) for i, s in numbered if s.box is None and not style[i - 1] and not alone]
    if unplaced:
        sentences.append(f"Add a box for {_listed(unplaced)} with Place Subjects: without one, the box is the whole picture.")
    return sentences


def _phrases(spec: AdapterSpec, cast: Cast, names: NameEncoder | None) -> list[torch.Tensor | None]:
    """[E] of each subject's name; None where it has none and its photo can stand alone, or no text encoder was given and photos can."""
    needed = spec.gated.kind == "text"
    if names is None:
        if needed:
            raise MismatchError(f"a CLIP for {spec.base}, which encodes the names for {spec.file}", "none", f"{OWN_CLIP} into 'clip'.")
        return [None] * len(cast.subjects)
    for number, subject in enumerate(cast.subjects, 1):
        if needed:
            check_named(number, subject.name)
    named = [(number, s.name) for number, s in enumerate(cast.subjects) if s.name]
    found: list[torch.Tensor | None] = [None] * len(cast.subjects)
    for (number, name), vector in zip(named, names.pooled([name for _, name in named]) if named else [], strict=True):
        if vector is None:
            raise without_words(number + 1, name)
        check_clip_width(spec, len(vector), spec.gated.feature_dim)
        found[number] = vector.float()
    return found


def _embeddings(pictures: torch.Tensor, counts: Sequence[int], images: ImageEncoder, project: Projector) -> list[torch.Tensor]:
    """GLIGEN: [E] of each subject, projected from the mean of its photos' embeddings, each of length 1 (the published form), so that every
    photo counts the same; the projection then gives every subject the same length."""
    unit = torch.nn.functional.normalize(images.encode(pictures, "pooled", blank=False).float(), dim=-1)
    return list(project(torch.stack([mine.mean(0) for mine in unit.split(list(counts))])).float())


def _patches(spec: AdapterSpec, pictures: torch.Tensor, counts: Sequence[int], images: ImageEncoder, project: Projector) -> list[tuple[ObjectFeatures, Words]]:
    """Subject-Diffusion: patch tokens [T, E] and the vector for the prompt [D], each the mean over a subject's photos, the vector after the
    projection as image attention's tokens are. Published is one photo a subject."""
    patches, pooled = images.encode_patches(pictures)
    if patches.shape[1] != spec.gated.tokens:
        found, do = f"one with {patches.shape[1]}", "Disconnect 'clip_vision' and set 'clip_vision_name' to auto."
        raise MismatchError(f"{spec.encoder.describe()} with {spec.gated.tokens} patches for {spec.file}", found, do)
    split = list(counts)
    words = project(pooled).float().split(split)
    return [(ObjectFeatures(image=mine.mean(0)), {SD2: word.mean(0, keepdim=True)}) for mine, word in zip(patches.float().split(split), words, strict=True)]


def _listed(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
