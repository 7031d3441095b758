"""Subjects for adapters that act in the prompt (MM-Diff, UMM-Diffusion, FastComposer): what stands for them there, and MM-Diff's image tokens.
Host-free."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..adapter import AdapterSpec
from ..errors import SubjectError
from ..subjects import Cast, Subject, called
from .faces import Faces
from .interfaces import ImageEncoder, check_named

OBJECTS = {"ObjectHead": "pooled", "CLSHead": "unprojected"}  # heads that make MM-Diff's image tokens of photos -> what they read; others read faces
Project = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True, eq=False)
class InPrompt:
    """One subject: words, by text encoder, [K, D] float32; tokens [T, C] float32 for image attention, or None."""

    words: Mapping[str, torch.Tensor]
    tokens: torch.Tensor | None = None


def subjects_in_prompt(spec: AdapterSpec, cast: Cast, pictures: Sequence[torch.Tensor], framed: Callable[[str], Sequence[torch.Tensor]],
                       images: ImageEncoder, untouched: ImageEncoder, project: Project) -> list[InPrompt]:
    """What an adapter's modules make of the photos.

    MM-Diff: the first photo for the words, as published; the faces of all photos (or, with a head for objects, which is our reconstruction, the
    photos themselves) for the image tokens, one photo's behind another's. UMM-Diffusion, FastComposer: the mean over a subject's photos, of the
    pseudo words or of the embeddings; published is one photo.

    Arguments:
        pictures: the photos of all subjects in order, [size, size, 3], framed as the adapter was published.
        framed: gives them in another framing.
        images: the encoder with the adapter's own weights in it; untouched: without them.
        project: the adapter's projection, on one or several tensors, giving one or several.
    Raises:
        SubjectError: a subject without a name, or without the faces that the adapter reads.
    """
    for number, subject in enumerate(cast.subjects, 1):
        check_named(number, subject.name)
    if not cast.subjects:
        return []
    counts, kind = [len(s.photos) for s in cast.subjects], spec.encoder.kind
    if spec.prompt.kind == "word":
        return _mm_diff(spec, cast, pictures, framed, images, untouched, project)
    embeds = images.encode(torch.stack(list(pictures)), kind, blank=False)
    (stream,) = spec.prompt.streams
    vectors = (embeds.unsqueeze(1) if spec.prompt.kind == "postfuse" else project(embeds)).float()  # n, K, D
    return [InPrompt({stream: mine.mean(0)}) for mine in vectors.split(counts)]


def _mm_diff(spec: AdapterSpec, cast: Cast, pictures: Sequence[torch.Tensor], framed: Callable[[str], Sequence[torch.Tensor]], images: ImageEncoder,
             untouched: ImageEncoder, project: Project) -> list[InPrompt]:
    counts = [len(s.photos) for s in cast.subjects]
    firsts = torch.stack([pictures[sum(counts[:i])] for i in range(len(counts))])
    pooled = images.encode(firsts, spec.encoder.kind, blank=False)
    if spec.projection not in OBJECTS:
        faces = [_faces_of(number, subject) for number, subject in enumerate(cast.subjects, 1)]
        who, looks = torch.cat([f.vectors for f in faces]), torch.cat([f.crops for f in faces])
    else:
        looks = torch.stack(list(framed("pad")))
        who = untouched.encode(looks, OBJECTS[spec.projection], blank=False)
    one, two, tokens = project(pooled, who, untouched.encode(looks, "penultimate", blank=False))
    first, second = spec.prompt.streams
    words = zip(one.float().split(1), two.float().split(1), tokens.float().split(counts), strict=True)
    return [InPrompt({first: a, second: b}, mine.flatten(0, 1)) for a, b, mine in words]


def _faces_of(number: int, subject: Subject) -> Faces:
    if subject.faces is None:
        do = "Connect its photos to Prepare Faces, and 'faces' of that node to 'faces' of Add Subject."
        raise SubjectError(f"prepared faces for {called(number, subject.name)}, which this adapter needs", "none", do)
    return subject.faces
