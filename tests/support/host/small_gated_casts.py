"""Small gated adapters with random weights on the host's micro models, and the same told to the independent
evaluation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from troupe.model_patches.adapter import Adapter, AdapterSpec, EncoderNeed, GatedSpec, PhotoSpec
from troupe.model_patches.binding.settings import GatedSettings
from troupe.model_patches.encoders.gated import GatedLayers
from troupe.model_patches.encoders.grounding import GroundingNet, TextImagePositionNet, TextPositionNet
from troupe.model_patches.encoders.leaf_parameter import module_name
from troupe.model_patches.hosts.comfyui.apply import apply_gated
from troupe.model_patches.hosts.comfyui.loading import adapters
from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks
from troupe.model_patches.subjects import Box, ObjectFeatures, References, ReferenceSubject

from . import tiny_models
from .independent_gated_evaluation import GatedTruth
from .small_casts import random

LABELS = {"text": "GLIGEN text boxes", "text_image": "GLIGEN text-image boxes", "patches": "Subject-Diffusion"}
CONTEXT, FEATURES, PATCHES = 64, 24, 6
BOXES = ((0.1, 0.2, 0.3, 0.6), (0.5, 0.25, 0.4, 0.5), (0.0, 0.7, 1.0, 0.3))


@dataclass
class GatedStage:
    """A model, a gated adapter on it, and random prompts."""

    patcher: object
    adapter: adapters.HostAdapter
    positive: list
    negative: list

    def references(self, count, boxes=None, weights=None, ranges=None, texts=None, images=None) -> References:
        """Subjects 0, 1, ... with random features; a False in texts or images leaves that feature out."""
        spec, found = self.adapter.spec.part(GatedSpec), []
        for i in range(count):
            text = (
                random(spec.feature_dim, seed=4000 + i)
                if spec.kind != "patches" and (texts is None or texts[i])
                else None
            )
            shape = (spec.tokens, spec.feature_dim) if spec.kind == "patches" else (spec.feature_dim,)
            image = random(*shape, seed=5000 + i) if spec.kind != "text" and (images is None or images[i]) else None
            box = BOXES[i % 3] if boxes is None else boxes[i]
            start, end = (ranges or [(0.0, 1.0)] * count)[i]
            place = None if box is None else Box(*box)
            found.append(
                ReferenceSubject(
                    f"subject {i}",
                    None,
                    None,
                    (weights or [1.0] * count)[i],
                    start,
                    end,
                    box=place,
                    features=ObjectFeatures(text, image),
                )
            )
        return References(self.adapter, tuple(found), None)

    def truth(self, references: References, settings: GatedSettings) -> GatedTruth:
        """The same for the independent evaluation."""
        module, spec = self.adapter.gated_patcher.model, self.adapter.spec.part(GatedSpec)
        net, fusers = (published(m.state_dict()) for m in (module.net, module.fusers))
        per_layer = [
            {k.split(".", 1)[1]: v for k, v in fusers.items() if k.split(".", 1)[0] == str(i)}
            for i in range(len(spec.block_widths))
        ]
        s = references.subjects
        boxes = [None if x.box is None else (x.box.x, x.box.y, x.box.x + x.box.w, x.box.y + x.box.h) for x in s]
        bbox = settings.use_bbox == "on" or (settings.use_bbox == "auto" and sum(x.weight > 0 for x in s) > 1)
        return GatedTruth(
            spec.kind,
            net,
            per_layer,
            boxes,
            [x.features.text for x in s],
            [x.features.image for x in s],
            [x.weight for x in s],
            max(spec.slots, len(s)),
            strength=settings.strength,
            end=settings.end_percent,
            decay=settings.decay_percent,
            ranges=[(x.start_percent, x.end_percent) for x in s],
            mask_conv=None if module.mask_conv is None else module.mask_conv.weight,
            use_bbox=bbox,
        )

    def apply(self, references, settings, negative=True):
        """(model, positive, negative) after Apply Gated Adapter."""
        model, positive, wired, _ = apply_gated(
            self.patcher, references, settings, self.positive, self.negative if negative else None
        )
        return model, positive, wired if negative else self.negative


def published(state: dict) -> dict:
    """Tensors of our modules by the names that published files give them."""
    return {
        bare if module_name(bare := name.removesuffix(".weight")) == name else name: tensor
        for name, tensor in state.items()
    }


def gated_adapter(
    patcher,
    kind: str = "text_image",
    seed: int = 21,
    slots: int | None = None,
    zero_gates: bool = False,
    hidden: int = 32,
    features: int = FEATURES,
) -> adapters.HostAdapter:
    """Random gated layers for every transformer block of the model."""
    import comfy.ops

    blocks = attention_blocks(patcher.model.diffusion_model)
    places, context, ops = (
        {b.path.removesuffix(".attn2"): b.width for b in blocks},
        blocks[0].context_dim,
        comfy.ops.manual_cast,
    )
    tokens = {"text": 1, "text_image": 2, "patches": PATCHES}[kind]
    spec = GatedSpec(kind, places, context, features, slots or (2 if kind == "patches" else 30), tokens)
    if kind == "patches":
        net = GroundingNet(features, context, 40, PATCHES, operations=ops)
    else:
        net = (TextPositionNet if kind == "text" else TextImagePositionNet)(features, context, hidden, operations=ops)
    width = patcher.model.diffusion_model.input_blocks[0][0].out_channels
    layers = GatedLayers(net, list(places.values()), context, width if kind == "patches" else None, ops)
    with torch.no_grad():
        for i, (name, parameter) in enumerate(layers.named_parameters()):
            if name.endswith(("norm1.weight", "norm2.weight", "layernorm.weight")):
                parameter.copy_(1 + random(*parameter.shape, seed=seed + i, gain=0.1))
            elif "alpha" in name:
                parameter.fill_(0.0 if zero_gates else 0.8 + 0.1 * (i % 3))
            else:
                parameter.copy_(
                    random(
                        *parameter.shape,
                        seed=seed + i,
                        gain=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1,
                    )
                )
    need = EncoderNeed("last" if kind == "patches" else "pooled", features)
    photos = () if kind == "text" else (PhotoSpec(need),)
    family = "subject_diffusion" if kind == "patches" else "gligen"
    whole = AdapterSpec(family, "boxes.safetensors", context, (spec, *photos), LABELS[kind])
    return adapters.host_adapter(Adapter(whole, None, None, layers.eval().requires_grad_(False)))


def gated_stage(
    kind: str = "text_image", base: str = "SD15", context: int = CONTEXT, patcher=None, **rest
) -> GatedStage:
    """A micro model of a family with a random gated adapter."""
    patcher = patcher or tiny_models.micro_model(base, model_channels=64, context_dim=context)
    adapter = gated_adapter(patcher, kind, **rest)
    return GatedStage(
        patcher, adapter, tiny_models.random_cond(77, context, seed=1), tiny_models.random_cond(77, context, seed=2)
    )
