"""Recorded runs, their maps evaluated from the formulas alone, and graphs with Record Relevance: what its tests share.

Needs the host.
"""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate
from troupe.model_patches.hosts.comfyui.sampling.record import record_relevance

from .independent_evaluation import cell_means, relevance_of
from .small_casts import ksample, noise_of, settings, stage  # noqa: F401


def sampled(set_up, references, given=None, blocks="all", before=False, record=True, **rest):
    """(latent, Record) of a run; the recorder stands before or after Apply Image Attention."""
    given = given or settings()
    if before:
        patcher, (set_up.patcher, kept) = set_up.patcher, record_relevance(set_up.patcher, blocks)
        try:
            model, positive, negative = set_up.apply(references, given)
        finally:
            set_up.patcher = patcher
    else:
        model, positive, negative = set_up.apply(references, given)
        model, kept = record_relevance(model, blocks) if record else (model, None)
    return ksample(model, positive, negative, **rest), kept


def maps_of(record):
    """[M, h, w] of the only Apply node."""
    (applied,) = record.run.applied
    return torch.stack([subject.values for subject in applied.subjects])


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


class Captured:
    """Hidden states [rows, N, C] that enter every cross-attention layer, by the host's own patch list; evaluates maps
    from them in float64.
    """

    def __init__(self, set_up):
        self.looks, self.unet, self.patcher = [], set_up.patcher.model.diffusion_model, set_up.patcher.clone()
        self.patcher.set_model_attn2_patch(self.see)

    def __deepcopy__(self, memo):
        return self  # the host copies what is on a MODEL

    def see(self, n, context, value, options):
        rows = len(n) // len(options["cond_or_uncond"])
        pictures = [n[i * rows : (i + 1) * rows] for i, which in enumerate(options["cond_or_uncond"]) if which == 0]
        if pictures:
            part, number = options["block"]
            blocks = {
                "input": self.unet.input_blocks,
                "output": self.unet.output_blocks,
                "middle": [self.unet.middle_block],
            }[part][number]
            transformer = next(layer for layer in blocks if hasattr(layer, "transformer_blocks"))
            attn = transformer.transformer_blocks[options["block_index"]].attn2
            step = float(options["sigmas"][0])
            self.looks.append((attn, torch.cat(pictures).double(), tuple(options["activations_shape"][-2:]), step))
        return n, context, value

    def maps(self, references, limits=None, sharpness=1.0, grids=None, acting=None):
        """Mean over looks and pictures of share times limit; limits: per subject a mask [H, W] or None; acting(subject,
        sigma) -> bool.
        """
        count = len(references.subjects)
        finest = max(
            (grid for _, _, grid, _ in self.looks if grids is None or grid in grids), key=lambda grid: grid[0] * grid[1]
        )
        total, looks = torch.zeros(count, *finest, dtype=torch.float64), [0] * count
        for attn, hidden, grid, sigma in self.looks:
            if grids is not None and grid not in grids:
                continue
            limit = [
                torch.ones(grid[0] * grid[1], dtype=torch.float64) if m is None else cell_means(m, *grid)
                for m in limits or [None] * count
            ]
            mean = torch.zeros(count, grid[0] * grid[1], dtype=torch.float64)
            for row in hidden:
                q = row @ attn.to_q.weight.double().T
                a = [
                    m * relevance_of(q, s.name_tokens.double() @ attn.to_k.weight.double().T, attn.heads) ** sharpness
                    for s, m in zip(references.subjects, limit, strict=True)
                ]
                whole = sum(a) if count > 1 else a[0].max()
                mean += torch.stack(
                    [
                        torch.where(whole > 0, m * x / whole, 0 * x) if count > 1 else x / whole
                        for x, m in zip(a, limit, strict=True)
                    ]
                ) / len(hidden)
            large = interpolate(mean.view(1, count, *grid), finest, mode="bilinear")[0]
            for i in range(count):
                if acting is None or acting(i, sigma):
                    total[i] += large[i]
                    looks[i] += 1
        return torch.stack([t / max(n, 1) for t, n in zip(total, looks, strict=True)])


def captured(set_up, references, given=None, **rest):
    """(maps as recorded, Captured) of one run."""
    seen, patcher = Captured(set_up), set_up.patcher
    set_up.patcher = seen.patcher
    try:
        _, record = sampled(set_up, references, given, **rest)
    finally:
        set_up.patcher = patcher
    return maps_of(record), seen


# ---- graphs ----------------------------------------------------------------------------------------------------------


class Scene:
    """Test node: a MODEL, references of two subjects, and prompts; made once."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "TROUPE_REFERENCES", "CONDITIONING", "CONDITIONING"), "make", "test"
    set_up = None

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return self.set_up.patcher, self.set_up.references(2), self.set_up.positive, self.set_up.negative


class Plain:
    """Test node: a grey IMAGE, `after` a latent is there."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "make", "test"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"grey": ("FLOAT", {})}, "optional": {"after": ("LATENT",)}}

    def make(self, grey, after=None):
        return (torch.full((1, 16, 16, 3), grey),)


class Look:
    """Test node: what the previews gave."""

    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "look", "test", True
    got: dict = {}

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"maps": ("IMAGE",), "report": ("STRING", {"forceInput": True}), "called": ("STRING", {})}}

    def look(self, maps, report, called):
        self.got.setdefault(called, []).append((maps, report))
        return {"ui": {}, "result": ()}


WIDGETS = {
    "weight": 0.65,
    "merge": "relevance",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "box_strength": 1.0,
    "box_end_percent": 1.0,
    "box_feather": 0.05,
    "sharpness": 1.0,
    "background": 1.0,
}


def branch(made, called="", seed=1, image=None, recorded=True, size=128):
    """Adds Record, sampler, preview and Look to a graph; names end in `called`."""
    made |= {
        f"record{called}": {"class_type": "TroupeRecordRelevance", "inputs": {"model": ["apply", 0], "blocks": "all"}},
        f"latent{called}": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": size, "height": size, "batch_size": 1},
        },
        f"sampler{called}": {
            "class_type": "KSampler",
            "inputs": {
                "model": [f"record{called}" if recorded else "apply", 0],
                "seed": seed,
                "steps": 1,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "positive": ["apply", 1],
                "negative": ["scene", 3],
                "latent_image": [f"latent{called}", 0],
                "denoise": 1.0,
            },
        },
        f"preview{called}": {
            "class_type": "TroupePreviewRelevance",
            "inputs": {"record": [f"record{called}", 1], "latent": [f"sampler{called}", 0]},
        },
        f"look{called}": {
            "class_type": "Look",
            "inputs": {"maps": [f"preview{called}", 0], "report": [f"preview{called}", 1], "called": called},
        },
    }
    if image is not None:
        made[f"image{called}"] = {"class_type": "Plain", "inputs": {"grey": image}}
        made[f"preview{called}"]["inputs"]["image"] = [f"image{called}", 0]
    return made


def graph(**rest):
    scene = {
        "scene": {"class_type": "Scene", "inputs": {}},
        "apply": {
            "class_type": "TroupeApplyImageAttention",
            "inputs": {"model": ["scene", 0], "references": ["scene", 1], "positive": ["scene", 2], **WIDGETS},
        },
    }
    return branch(scene, **rest)
