"""Subjects inside the prompt: the same text encoded plainly, and with each subject at its word. Host-free.

MM-Diff (arXiv 2403.15059) and Subject-Diffusion (arXiv 2307.11410) change word embeddings before the text encoder;
UMM-Diffusion (arXiv 2303.09319, our reconstruction) too, but keeps only the changed words' rows of the output;
FastComposer (arXiv 2305.10431) changes those rows after the encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..adapter import PromptSpec
from ..errors import MismatchError, SubjectError
from ..subjects import References, ReferenceSubject, called
from .markers import ParsedPrompt, parse_prompt
from .names import stands_in
from .template import template_positions
from .token_positions import TokenPosition, find_token_positions
from .tokens import EOS, LENGTH

# of one text encoder: tokens (ids or vectors) and their weights, BOS first, LENGTH of them each
Chunks = list[list[tuple[Any, float]]]
Streams = dict[str, Chunks]  # by the text encoder's name


@dataclass(frozen=True, eq=False)
class Encoded:
    """An encoded prompt: states [1, chunks * LENGTH, D]; pooled [1, E] or None; rest: what else the host gave with it,
    passed on as it is.
    """

    states: torch.Tensor
    pooled: torch.Tensor | None
    rest: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class FusedText:
    """A prompt with and without the subjects; `plain is fused` where nobody is in it."""

    plain: Encoded
    fused: Encoded


class PromptEncoder(Protocol):
    """A host's text encoders."""

    def tokenize(self, text: str) -> Streams:
        """Return the prompt in the host's own chunks, for each text encoder."""
        ...

    def embed(self, stream: str, tokens: Sequence[Any]) -> torch.Tensor:
        """Return word embeddings [n, d] float32 of tokens (ids, or vectors as they are), before positions are added."""
        ...

    def encode(self, prompts: Sequence[Streams]) -> list[list[Encoded]]:
        """Return the encoding of each prompt for sampling; several where the host schedules changes of the encoder over
        the run.
        """
        ...

    def fuse(self, stream: str, words: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """Return the adapter's fusion module of a text encoder: words [n, d], vectors [n, e] -> [n, d] float32."""
        ...


def fuse_prompt(
    references: References,
    text: str,
    encoder: PromptEncoder,
    places_of: str = "",
    warn: Callable[[str], None] = lambda sentence: None,
) -> tuple[list[FusedText], str]:
    """Encode a prompt with the subjects in it.

    Arguments:
        text: in the host's notation, with or without markers (`prompt.token_positions`).
        places_of: another prompt, whose positions of the subjects are taken in this text too: the published MM-Diff
            pipeline does so to the negative prompt. "" for the text's own.
        warn: receives one sentence for each thing that is allowed but probably not meant.
    Returns:
        One FusedText for each encoding of the host, and a line that says which tokens each subject took ("" if
        nobody is in it).
    Raises:
        SubjectError: a subject whose position is not found, a placeholder lost beyond the encoder's reach, no room for
            further vectors.
        MismatchError: text encoders of another base model.
    """
    return fuse_prompts([(references, text)], encoder, places_of, warn)[0]


def fuse_prompts(
    prompts: Sequence[tuple[References, str]],
    encoder: PromptEncoder,
    places_of: str = "",
    warn: Callable[[str], None] = lambda sentence: None,
) -> list[tuple[list[FusedText], str]]:
    """Encode several prompts, each as `fuse_prompt` does, and give all of them to the text encoders at once."""
    plans = [_planned(references, text, encoder, places_of, warn) for references, text in prompts]
    encoded = iter(encoder.encode([streams for plan in plans for streams in plan.encoded]))
    return [(plan.finish(*[next(encoded) for _ in plan.encoded]), plan.said) for plan in plans]


@dataclass(frozen=True, eq=False)
class _Plan:
    """A prompt whose subjects have their positions. encoded: what the text encoders are to read; finish: makes of their
    answers, in this order, what fuse_prompt returns; said: which tokens each subject took.
    """

    encoded: tuple[Streams, ...]
    finish: Callable[..., list[FusedText]]
    said: str = ""


def _planned(
    references: References, text: str, encoder: PromptEncoder, places_of: str, warn: Callable[[str], None]
) -> _Plan:
    spec = references.adapter.spec.part(PromptSpec)
    check_streams(references, encoder.tokenize(""))
    prompt = parse_prompt(text)
    located = parse_prompt(places_of) if places_of and not spec.fusion.in_suffix else prompt
    acting = [(s, min(s.weight, 1.0)) for s in references.subjects if s.weight > 0]
    if not acting:
        return _Plan((encoder.tokenize(prompt.text),), lambda plain: [FusedText(p, p) for p in plain])
    first, *others = spec.streams
    clean, positions = _positions(spec, references, located, encoder, first, warn)
    by_stream = {
        first: positions,
        **{
            stream: _positions(spec, references, located, encoder, stream, lambda sentence: None)[1]
            for stream in others
        },
    }
    streams = encoder.tokenize(clean if located is prompt else text)
    placed = {
        stream: [(s, at, w) for (s, w), at in zip(acting, positions, strict=True) if at.chunk < len(streams[stream])]
        for stream, positions in by_stream.items()
    }
    if spec.tokens > 1:
        streams, placed[first] = _widened(streams, placed[first], spec.tokens)
    said = ", ".join(
        f"'{s.name}' at token {at.position}{f' of chunk {at.chunk + 1}' if at.chunk else ''} ('{at.words}')"
        for s, at, _ in placed[first]
    )
    if spec.fusion.after_encoder:
        return _fused_after(streams, placed[first], encoder, said)
    return _fused_before(spec, streams, placed, encoder, said)


def _positions(
    spec: PromptSpec,
    references: References,
    prompt: ParsedPrompt,
    encoder: PromptEncoder,
    stream: str,
    warn: Callable[[str], None],
) -> tuple[str, list[TokenPosition]]:
    """The text to encode and the position of each subject whose weight is not 0, in one text encoder: an embedding may
    be longer in another.

    prompt: whose positions count.
    """

    def tokenize(text: str) -> list[list[Any]]:
        return [[token for token, *_ in chunk] for chunk in encoder.tokenize(text)[stream]]

    # who is not in the picture need not be in the prompt
    subjects = [s for s in references.subjects if s.weight > 0 or prompt.markers or stands_in(s.name, prompt.text)]
    if spec.fusion.in_suffix:
        clean, positions = template_positions(prompt, [s.name for s in subjects if s.weight > 0], tokenize)
        return clean, list(positions)
    found = find_token_positions(prompt, [s.name for s in subjects], tokenize, warn)
    return found.text, [at for at, s in zip(found.positions, subjects, strict=True) if s.weight > 0]


def check_streams(references: References, streams: Mapping[str, Any]) -> None:
    """Raise MismatchError unless the CLIP has the text encoders that the adapter acts in, and no others."""
    spec = references.adapter.spec
    if set(streams) != set(spec.part(PromptSpec).streams):
        kinds = {("l",): "SD1.5", ("h",): "SD2.x", ("g", "l"): "SDXL"}
        found = kinds.get(tuple(sorted(streams)), f"text encoders {', '.join(sorted(streams))}")
        remedy = "Wire the CLIP of the checkpoint that you sample with, through Apply Adapter Weights."
        raise MismatchError(f"the CLIP of an {spec.base} checkpoint for {spec.file}", f"one of {found}", remedy)


def _fused_before(
    spec: PromptSpec,
    streams: Streams,
    placed: Mapping[str, Sequence[tuple[ReferenceSubject, TokenPosition, float]]],
    encoder: PromptEncoder,
    said: str,
) -> _Plan:
    """Fused before the text encoder: the words' embeddings are exchanged."""
    exchanged = {}
    for stream, chunks in streams.items():
        chunks = [list(chunk) for chunk in chunks]
        for subject, at, weight in placed[stream]:
            spots = range(at.position, at.position + spec.tokens)
            tokens = [chunks[at.chunk][p][0] for p in spots]
            words, vectors = encoder.embed(stream, tokens), subject.words[stream].float()
            if weight == 1 and not spec.fusion.learned:
                words = words.detach()  # nothing of them is left: no gradient for the whole table
            if vectors.shape[-1] != words.shape[-1] and not spec.fusion.learned:
                raise _other_width(subject, stream, vectors, words)
            wanted = encoder.fuse(stream, words, vectors.to(words)) if spec.fusion.learned else vectors.to(words)
            for p, vector in zip(spots, torch.lerp(words, wanted, weight), strict=True):
                chunks[at.chunk][p] = (vector, *chunks[at.chunk][p][1:])
        exchanged[stream] = chunks
    rows = [at.row + k for _, at, _ in next(iter(placed.values())) for k in range(spec.tokens)]

    def finish(plain: list[Encoded], fused: list[Encoded]) -> list[FusedText]:
        if not spec.fusion.keeps_other_rows:
            return [FusedText(p, f) for p, f in zip(plain, fused, strict=True)]
        return [FusedText(p, _with_rows(p, rows, f.states[:, rows])) for p, f in zip(plain, fused, strict=True)]

    return _Plan((streams, exchanged), finish, said)


def _fused_after(
    streams: Streams, placed: Sequence[tuple[ReferenceSubject, TokenPosition, float]], encoder: PromptEncoder, said: str
) -> _Plan:
    """Fused after the text encoder.

    Emphasis is set aside before and applied after: it moves a row away from the empty prompt's.
    """
    ((stream, chunks),) = streams.items()
    rows = [at.row for _, at, _ in placed]
    emphasis = [chunks[at.chunk][at.position][1] for _, at, _ in placed]
    bare_and_empty: tuple[Streams, ...] = ()
    if any(weight != 1.0 for chunk in chunks for _, weight, *_ in chunk):
        bare: Streams = {stream: [[(token, 1.0) for token, *_ in chunk] for chunk in chunks]}
        bare_and_empty = (bare, encoder.tokenize(""))
    vectors, weights = torch.cat([s.words[stream] for s, _, _ in placed]).float(), torch.tensor([w for *_, w in placed])

    def finish(plain: list[Encoded], *others: list[Encoded]) -> list[FusedText]:
        return [fused(p, *found) for p, *found in zip(plain, *(others or (plain, plain)), strict=True)]

    def fused(p: Encoded, b: Encoded, e: Encoded) -> FusedText:
        words = b.states[0, rows].float()
        new = torch.lerp(
            words, encoder.fuse(stream, words, vectors.to(words)).to(words), weights.to(words).unsqueeze(-1)
        )
        if any(weight != 1 for weight in emphasis):
            nothing = e.states[0, [row % LENGTH for row in rows]].float()
            new = nothing + (new - nothing) * torch.tensor(emphasis).to(words).unsqueeze(-1)
        return FusedText(p, _with_rows(p, rows, new.unsqueeze(0)))

    return _Plan((streams, *bare_and_empty), finish, said)


def _with_rows(encoded: Encoded, rows: Sequence[int], new: torch.Tensor) -> Encoded:
    """A copy whose states have `new` [1, n, D] at these rows."""
    states = encoded.states.clone()
    states[:, list(rows)] = new.to(states)
    return Encoded(states, encoded.pooled, encoded.rest)


def _widened(
    streams: Streams, placed: Sequence[tuple[ReferenceSubject, TokenPosition, float]], tokens: int
) -> tuple[Streams, list[tuple[ReferenceSubject, TokenPosition, float]]]:
    """Each subject's last token as often as it has vectors, in place of padding, so that both passes have the same
    length.
    """
    wider = {stream: [list(chunk) for chunk in chunks] for stream, chunks in streams.items()}
    moved = list(placed)
    for i in sorted(range(len(moved)), key=lambda i: -moved[i][1].row):  # from the back, so that earlier places stay
        subject, at, weight = moved[i]
        for chunks in wider.values():
            chunk = chunks[at.chunk]
            # of the words
            end = (
                max(p for p, (token, *_) in enumerate(chunk) if not isinstance(token, int) or token not in (0, EOS)) + 1
            )
            if end + tokens > LENGTH:
                found = f"a prompt with room for {LENGTH - 1 - end} at '{subject.name}'"
                remedy = (
                    "Shorten the prompt by a few words."
                    if at.chunk == len(chunks) - 1
                    else f"Shorten it to {LENGTH - 2} tokens, or name the subject near its end."
                )
                raise SubjectError(
                    f"room for {tokens - 1} more tokens for {called(i + 1, subject.name)}", found, remedy
                )
            chunk[at.position + 1 : at.position + 1] = [chunk[at.position]] * (tokens - 1)
            del chunk[LENGTH:]
    for i, (subject, at, weight) in enumerate(moved):
        before = sum(p.chunk == at.chunk and p.position < at.position for _, p, _ in placed) * (tokens - 1)
        moved[i] = (subject, TokenPosition(at.chunk, at.position + before, at.rows, at.words), weight)
    return wider, moved


def _other_width(subject: ReferenceSubject, stream: str, vectors: torch.Tensor, words: torch.Tensor) -> MismatchError:
    found = f"size {vectors.shape[-1]} for '{subject.name}'"
    return MismatchError(
        f"vectors of size {words.shape[-1]} for text encoder '{stream}'",
        found,
        "Wire the CLIP of the checkpoint that the adapter was made for.",
    )
