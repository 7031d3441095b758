"""The error for an adapter and a checkpoint of different base models, the mistake that is made most."""

from __future__ import annotations

from .adapter import AdapterSpec, GatedSpec
from .bases import BASES, REHEARSAL_BASE, base_name
from .checkpoints.catalogue import ADAPTERS, GATED
from .errors import MismatchError

MOST_LINKS = 2


class BaseMismatchError(MismatchError):
    """An adapter for one base model beside a checkpoint of another.

    Arguments:
        file: label of the adapter's file; adapter_base, model_base: names of the base models.
        remedy: what to do; clip: whether the connected CLIP shows the other base model, and not the MODEL.
    """

    def __init__(self, file: str, adapter_base: str, model_base: str, remedy: str, clip: bool):
        super().__init__(f"a checkpoint for {adapter_base}", f"one for {model_base}", remedy)
        yours = (
            f"the connected CLIP is from {_article(model_base)} checkpoint"
            if clip
            else f"your checkpoint is {model_base}"
        )
        self.args = (f"The adapter {file} is for {adapter_base}, {yours}. {remedy}",)


def base_mismatch(spec: AdapterSpec, context_dim: int, clip: bool = False) -> BaseMismatchError | None:
    """Return the error if the text width `context_dim` of a model, or of its CLIP, is that of another known base than
    the adapter's, else None. clip: the width is the CLIP's.
    """
    needed = spec.part(GatedSpec).object_dim if spec.has(GatedSpec) else spec.context_dim
    if context_dim == needed or context_dim not in BASES or needed not in BASES:
        return None
    base = base_name(context_dim)
    if base == REHEARSAL_BASE.name:
        remedy = "The rehearsal models go with their own adapters only: choose one whose name begins with 'rehearsal/'."
    else:
        links = [
            file.link
            for file in (GATED if spec.has(GatedSpec) else ADAPTERS)
            if base in file.base and file.link.endswith(".safetensors")
        ][:MOST_LINKS]
        choose = f"Choose {_article(base)} adapter{': ' + ' or '.join(links) if links else ''}."
        if base_name(needed) == REHEARSAL_BASE.name:
            remedy = f"{choose} Or use Load Rehearsal Models."
        elif clip:
            remedy = f"{choose} Or, with {_article(base_name(needed))} checkpoint, wire its own CLIP."
        else:
            remedy = f"{choose} Or load {_article(base_name(needed))} checkpoint."
    return BaseMismatchError(spec.file, base_name(needed), base, remedy, clip)


def _article(base: str) -> str:
    return base if base == REHEARSAL_BASE.name else f"an {base}"
