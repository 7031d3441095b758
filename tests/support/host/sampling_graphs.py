"""Graphs that sample with subjects, one for each way in which they act, on the host's own executor; and faults in the
middle of a run. Needs the host.
"""

from __future__ import annotations

from contextlib import contextmanager

import comfy.model_management as mm
import comfy.utils
import server
import torch
from troupe.model_patches.subjects import References
from troupe.nodes import NODES

import nodes

from . import small_casts as stage
from . import tiny_models
from .host_executor import Server, Studio
from .recorded_runs import WIDGETS
from .small_gated_casts import gated_stage
from .small_prompt_casts import references_of

KINDS = ("image", "gated", "prompt")
NAMES = ("cat", "red fox", "owl", "wolf")  # subject 0 of a cast is one of the first three
TEXT = "a cat, a red fox, an owl and a wolf in snow"
STEPS = 4
CONTEXT = 768  # as the tiny CLIP's


class Set:
    """A model, an adapter, prompts and four subjects of one kind, always with the same numbers."""

    def __init__(self, kind: str, clips):
        patcher = tiny_models.micro_model("SD15", model_channels=64, context_dim=CONTEXT)
        self.kind, self.clip, self.patcher = kind, clips("sd15"), patcher
        if kind == "prompt":
            whole = references_of("postfuse", NAMES, (1.0,) * 4)
            self.positive, self.negative = (tiny_models.random_cond(77, CONTEXT, seed=seed) for seed in (1, 2))
        else:
            st = (
                stage.stage(patcher=patcher, text_gain=True)
                if kind == "image"
                else gated_stage(patcher=patcher, context=CONTEXT)
            )
            whole, self.positive, self.negative = st.references(4), st.positive, st.negative
        self.whole = whole
        self.adapter = whole.adapter
        self.module = {
            "image": self.adapter.layers_patcher,
            "gated": self.adapter.gated_patcher,
            "prompt": self.adapter.fusion_patcher,
        }[kind].model

    def cast(self, who: int) -> References:
        """Subjects `who` and the one after it."""
        w = self.whole
        return References(w.adapter, w.subjects[who : who + 2], w.uncond_tokens, w.uncond_name_tokens)


class Cast:
    """Test node: a MODEL, references of two subjects, prompts, and what else the kinds need."""

    RETURN_TYPES, FUNCTION, CATEGORY = (
        ("MODEL", "TROUPE_REFERENCES", "CONDITIONING", "CONDITIONING", "CLIP", "TROUPE_ADAPTER"),
        "make",
        "test",
    )
    set: Set
    made: list = []  # called with all references that were made

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"who": ("INT", {})}}

    def make(self, who):
        references = self.set.cast(who)
        for look in self.made:
            look(references)
        return self.set.patcher, references, self.set.positive, self.set.negative, self.set.clip, self.set.adapter


class KeepLatent:
    """Test node: the end of the graph; the last latent that reached it."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "keep", "test", True
    last = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"latent": ("LATENT",)}}

    def keep(self, latent):
        type(self).last = latent["samples"].clone()
        return {"ui": {}, "result": ()}


def graph(kind: str, who: int = 0, seed: int = 1, how: float | None = None) -> dict:
    """A KSampler's run with a cast; how: the Apply node's weight or strength, or where fusing begins."""
    cast = {"model": ["cast", 0], "references": ["cast", 1], "positive": ["cast", 2], "negative": ["cast", 3]}
    made = {"cast": {"class_type": "Cast", "inputs": {"who": who}}}
    if kind == "image":
        made["apply"] = {
            "class_type": "TroupeApplyImageAttention",
            "inputs": {**cast, **WIDGETS, **({} if how is None else {"weight": how})},
        }
    elif kind == "gated":
        made["apply"] = {
            "class_type": "TroupeApplyGated",
            "inputs": {**cast, "strength": how or 1.0, "end_percent": 0.7, "decay_percent": 0.2, "use_bbox": "auto"},
        }
    else:
        made["apply"] = {
            "class_type": "TroupeApplyWeights",
            "inputs": {"model": ["cast", 0], "adapter": ["cast", 5], "strength_model": 1.0, "strength_clip": 1.0},
        }
        made["prompt"] = {
            "class_type": "TroupeEncodePrompt",
            "inputs": {
                "clip": ["cast", 4],
                "references": ["cast", 1],
                "text": TEXT,
                "quirks": "clean",
                "fuse_start_percent": how or 0.0,
                "fuse_start_step": 1 if how is None else -1,
            },
        }
    positive, negative = (["prompt", 0], ["cast", 3]) if kind == "prompt" else (["apply", 1], ["apply", 2])
    return made | {
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["apply", 0],
                "seed": seed,
                "steps": STEPS,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
                "positive": positive,
                "negative": negative,
                "latent_image": ["latent", 0],
            },
        },
        "keep": {"class_type": "KeepLatent", "inputs": {"latent": ["sampler", 0]}},
    }


def with_record(made: dict) -> dict:
    """The same with Record and Preview Relevance on its MODEL."""
    made["record"] = {"class_type": "TroupeRecordRelevance", "inputs": {"model": ["apply", 0], "blocks": "all"}}
    made["sampler"]["inputs"]["model"] = ["record", 0]
    made["preview"] = {
        "class_type": "TroupePreviewRelevance",
        "inputs": {"record": ["record", 1], "latent": ["sampler", 0]},
    }
    made["look"] = {"class_type": "Look", "inputs": {"maps": ["preview", 0], "report": ["preview", 1], "called": ""}}
    return made


class SamplingStudio(Studio):
    """A host that stays up, with one kind's set on its Cast node."""

    def __init__(self, base, set_: Set):
        super().__init__(base, Server())
        self.set, Cast.set = set_, set_
        server.PromptServer.instance = self.server

    def latent(self, made: dict) -> torch.Tensor:
        """What a run that goes well gives."""
        server.PromptServer.instance, Cast.set, KeepLatent.last = self.server, self.set, None
        assert self.run(made) is None
        return KeepLatent.last


def register(patch) -> None:
    """Our nodes and the test nodes, and the host's web server replaced, until the patch is undone."""
    from .recorded_runs import Look

    for cls in NODES:
        patch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.GET_SCHEMA().node_id, cls)
    for cls in (Cast, KeepLatent, Look):
        patch.setitem(nodes.NODE_CLASS_MAPPINGS, cls.__name__, cls)
    patch.setattr(server.PromptServer, "instance", None, raising=False)

    def progress(value, total, preview, **context):
        mm.throw_exception_if_processing_interrupted()  # as main.py's does

    patch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", progress)


@contextmanager
def at_call(patcher, number: int, remedy):
    """Runs `do` deep in the UNet, behind its last cross-attention, in the model call of this number (1 is the
    first).
    """
    calls = []
    last = [
        module for name, module in patcher.model.diffusion_model.named_modules() if name.endswith("attn2.to_out.0")
    ][-1]

    def hook(module, inputs):
        calls.append(1)
        if len(calls) == number:
            remedy()

    handle = last.register_forward_pre_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()
        assert len(calls) >= number, "the fault never came"


def out_of_memory(*args, **kwargs):
    """What torch raises on a full GPU."""
    raise mm.OOM_EXCEPTION("CUDA out of memory. Tried to allocate 2.00 GiB.")


def loaded(module) -> int:
    """How often the host has this module in its list of loaded models."""
    return sum(found.model is not None and found.model.model is module for found in mm.current_loaded_models)
