"""Random files of adapters that act in the prompt, in the layouts of the published ones: MM-Diff, UMM-Diffusion,
Subject-Diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..pack import load_pack
from .random_models import VISION, randomise, save_tensors

load_pack()

from troupe.model_patches.checkpoints.gated_tensors import gated_names  # noqa: E402
from troupe.model_patches.encoders.gated import GatedLayers  # noqa: E402
from troupe.model_patches.encoders.grounding import GroundingNet  # noqa: E402
from troupe.model_patches.encoders.mlp import MLP  # noqa: E402
from troupe.model_patches.encoders.mm_diff import MMDiffHeads  # noqa: E402
from troupe.model_patches.encoders.pseudo_words import PseudoWords  # noqa: E402
from troupe.model_patches.encoders.words import WordFusion  # noqa: E402
from troupe.model_patches.families.mm_diff.layout import MEMBERS as MM_DIFF  # noqa: E402

State = dict[str, torch.Tensor]
RANK = 2
FACE, TOKENS, INNER = 512, 4, 256  # of an ArcFace vector; image tokens a face; width inside the refiner's attention
TEXT_LAYERS = 2  # of a text encoder that an adapter changes
PATCHES = (VISION["image_size"] // VISION["patch_size"]) ** 2


def write_mm_diff(path: Path, widths: Sequence[int], text: Mapping[str, int], seed: int = 9) -> Path:
    """Write the three files, of which `path` is one.

    widths: of SDXL's 70 cross-attention layers in the order down, up, middle; text: width of each text encoder, by
    stream.
    """
    context, pooled = sum(text.values()), VISION["projection_dim"]
    draw = _drawing(seed)
    unet: State = {}
    for i in range(2 * len(widths)):
        width = widths[i // 2]
        for pair in (
            "to_q_lora",
            "to_k_lora",
            "to_v_lora",
            "to_out_lora",
            *(("to_k_lora_image", "to_v_lora_image") if i % 2 else ()),
        ):
            into = context if i % 2 and pair.startswith(("to_k", "to_v")) else width
            unet |= {f"{i}.{pair}.down.weight": draw(RANK, into), f"{i}.{pair}.up.weight": draw(width, RANK)}
    loras: State = {}
    for encoder, width in zip(("text_encoder", "text_encoder_2"), text.values(), strict=True):
        for layer in range(TEXT_LAYERS):
            for part in ("q", "k", "v", "out"):
                name = f"{encoder}.text_model.encoder.layers.{layer}.self_attn.{part}_proj.lora_linear_layer"
                loras |= {f"{name}.down.weight": draw(RANK, width), f"{name}.up.weight": draw(width, RANK)}
    one, two = text.values()
    refiner = {
        "dim": context,
        "depth": 1,
        "inner": INNER,
        "ff_inner": 2 * context,
        "embed_dim": VISION["hidden_size"],
        "out_dim": context,
    }
    head = {"vector_dim": FACE, "hidden_dim": 16, "tokens": TOKENS, "context_dim": context, "refiner": refiner}
    heads = MMDiffHeads({"embed_dim": pooled, "hidden_dim": pooled, "one_dim": one, "two_dim": two}, head)
    sections = {
        "obj_embeds_proj": heads.words,
        "face_embeds_proj": heads.head,
        "mm_fuse_one": WordFusion(2 * one, one, one),
        "mm_fuse_two": WordFusion(2 * two, two, two),
    }
    custom = {
        name: _half(randomise(module, seed + i).state_dict()) for i, (name, module) in enumerate(sections.items(), 1)
    }
    custom["image_encoder"] = {"visual_projection.weight": draw(pooled, VISION["hidden_size"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, state in zip(MM_DIFF, (unet, loras, custom), strict=True):
        torch.save(state, path.parent / f"{name}{path.suffix}")
    return path


def write_umm(path: Path, pooled: int, text: int, seed: int = 9) -> Path:
    """Write a mapping of two layers from the image encoder's pooled vector to one word."""
    mapping = randomise(PseudoWords((pooled, 32, text)), seed)
    return save_tensors(
        {f"mapping.{name}": value.detach().contiguous() for name, value in mapping.state_dict().items()}, path
    )


def write_subject_diffusion(
    path: Path, places: Mapping[str, int], channels: int, text: Mapping[str, torch.Tensor], width: int, seed: int = 9
) -> Path:
    """Write all modules in one file.

    places: as in `GatedSpec`; channels: that the UNet's first convolution gives; text: a text encoder's tensors, of
    which the weights of the attention are changed; width: of the text.
    """
    draw = _drawing(seed)
    net = GroundingNet(VISION["hidden_size"], width, 40, PATCHES)
    layers = randomise(GatedLayers(net, list(places.values()), width, None), seed)
    for name, parameter in layers.named_parameters():
        if "alpha" in name:
            parameter.data.fill_(0.5)
    state = {
        published: layers.state_dict()[name]
        for name, published in gated_names(layers, list(places), "unet.", "proj.").items()
    }
    for place, own in places.items():
        state |= {f"unet.{place}.attn2.to_{kv}.weight": draw(own, width) for kv in "kv"}
    state |= {"unet.conv_in.weight": draw(channels, 5, 3, 3), "unet.conv_in.bias": torch.zeros(channels)}
    mlp = randomise(MLP(VISION["projection_dim"], width, 16), seed + 1)
    state |= {f"mlp.{name}": value for name, value in mlp.state_dict().items()}
    state |= {
        f"clip_text.{name}": draw(*value.shape) if ".self_attn.v_proj.weight" in name else value
        for name, value in text.items()
    }
    return save_tensors({name: value.detach().half().contiguous() for name, value in state.items()}, path)


def clip_text(width: int, inner: int, vocabulary: int = 49408) -> State:
    """Return a random text encoder, by transformers' names, of TEXT_LAYERS layers."""
    embeddings = nn.ModuleDict(
        {"token_embedding": nn.Embedding(vocabulary, width), "position_embedding": nn.Embedding(77, width)}
    )
    layers = nn.ModuleList()
    for _ in range(TEXT_LAYERS):
        attention = nn.ModuleDict({f"{name}_proj": nn.Linear(width, width) for name in ("q", "k", "v", "out")})
        mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})
        layers.append(
            nn.ModuleDict(
                {
                    "self_attn": attention,
                    "mlp": mlp,
                    "layer_norm1": nn.LayerNorm(width),
                    "layer_norm2": nn.LayerNorm(width),
                }
            )
        )
    whole = nn.ModuleDict(
        {
            "embeddings": embeddings,
            "encoder": nn.ModuleDict({"layers": layers}),
            "final_layer_norm": nn.LayerNorm(width),
        }
    )
    return {f"text_model.{name}": value for name, value in randomise(whole, seed=3).state_dict().items()}


def _drawing(seed: int) -> Callable[..., torch.Tensor]:
    """Draws tensors [out, in, ...] whose rows have a length of 0.5 on average."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.5 / (torch.Size(shape[1:]).numel() or 1) ** 0.5).half()

    return draw


def _half(state: Mapping[str, torch.Tensor]) -> State:
    return {name: value.half() for name, value in state.items()}
