"""The nodes around a workflow's sampler: KSampler, or SamplerCustomAdvanced with Two-Strength Guider."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import RunError
from .graph import Graph, Node, active_upstream

SIMPLE, CUSTOM, GUIDER = "KSampler", "SamplerCustomAdvanced", "TroupeSubjectGuider"
SAVE = "SaveImage"
ELSEWHERE = "The embedded engine does not support this: run this workflow in ComfyUI."


@dataclass(frozen=True, eq=False)
class Sampling:
    """The nodes that set the sampling.

    node: the sampler, with `latent_image`; guided: has `model`, `positive`, `negative` and `cfg`; schedule: `steps`,
    `scheduler` and `denoise`;
    choice: `sampler_name`; seed: the node and widget of the noise's seed. With KSampler all are the same node.
    """

    node: Node
    guided: Node
    schedule: Node
    choice: Node
    seed: tuple[Node, str]


def find_sampling(graph: Graph) -> Sampling:
    """Return the sampler; where there are several, the one whose picture is saved. Raises RunError if there is none or
    there are several such, or its parts are others than these.
    """
    found = graph.of_type(SIMPLE, CUSTOM)
    if len(found) > 1:
        saved = {one.id for save in graph.of_type(SAVE) for one in active_upstream(graph, save)}
        found = [node for node in found if node.id in saved] or found
    if len(found) != 1:
        raise RunError(
            f"Expected one active KSampler or SamplerCustomAdvanced behind Save Image, found {len(found)}. "
            "Mute the others, or run it in ComfyUI."
        )
    (node,) = found
    if node.type == SIMPLE:
        return Sampling(node, node, node, node, (node, "seed"))
    kinds = {"guider": GUIDER, "sigmas": "BasicScheduler", "sampler": "KSamplerSelect", "noise": "RandomNoise"}
    guided, schedule, choice, noise = (feeding(graph, node, name, kind) for name, kind in kinds.items())
    return Sampling(node, guided, schedule, choice, (noise, "noise_seed"))


def source(graph: Graph, node: Node, name: str) -> tuple[Node, int]:
    """Return the node and output slot behind an input. Raises RunError if nothing is wired."""
    found = graph.source(node, name)
    if found is None:
        raise RunError(f"Nothing is wired into '{name}' of {node.label}. Wire it and save the workflow.")
    return found


def feeding(graph: Graph, node: Node, name: str, *kinds: str) -> Node:
    """Return the node behind an input. Raises RunError if it is of none of these classes."""
    found = source(graph, node, name)[0]
    if found.type not in kinds:
        raise RunError(
            f"'{name}' of {node.label} comes from {found.label}, where the embedded engine knows only "
            f"{' or '.join(kinds)}. Run this workflow in ComfyUI."
        )
    return found
