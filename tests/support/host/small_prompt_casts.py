"""Small adapters that act in the prompt, and references for them, on the host's tiny text encoders."""

import torch

KINDS = {  # kind -> CLIP, widths of its streams, tokens of a subject
    "word": ("sdxl", {"l": 768, "g": 1280}, 1),
    "pseudo": ("sd15", {"l": 768}, 1),
    "pseudo of three": ("sd15", {"l": 768}, 3),
    "placeholder": ("sd20", {"h": 1024}, 1),
    "postfuse": ("sd15", {"l": 768}, 1),
}


def adapter_of(kind, streams, tokens=1):
    """An adapter in the prompt with random layers. streams: text encoder -> width; tokens: of a subject."""
    from troupe.model_patches.adapter import Adapter, AdapterSpec, PromptSpec
    from troupe.model_patches.encoders.words import Postfuse, WordFusion
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter

    from support.prompt_fusions import FUSIONS

    torch.manual_seed(5)
    fusion = None
    if kind == "word":
        fusion = torch.nn.ModuleDict({s: WordFusion(2 * w, w, w) for s, w in streams.items()}).requires_grad_(False)
    if kind == "postfuse":
        fusion = torch.nn.ModuleDict({s: Postfuse(w, w, 32, 32) for s, w in streams.items()}).requires_grad_(False)
    context = {"l": 768, "h": 1024, "gl": 2048}["".join(sorted(streams))]
    prompt = PromptSpec(FUSIONS[kind], streams, tokens)
    return host_adapter(
        Adapter(
            AdapterSpec("mm_diff", f"{kind}.bin", context, (prompt,)),
            None,
            None,
            fusion=fusion,
        )
    )


def references_of(kind, names=("cat", "red fox"), weights=(1.0, 1.0)):
    """References of a kind of KINDS with a subject for each name."""
    from troupe.model_patches.subjects import References, ReferenceSubject

    _, streams, tokens = KINDS[kind]
    made = []
    for i, (name, weight) in enumerate(zip(names, weights, strict=True)):
        words = {
            s: torch.randn(tokens, w, generator=torch.Generator().manual_seed(70 + i)) * 0.3 for s, w in streams.items()
        }
        made.append(ReferenceSubject(name, None, None, weight, words=words))
    return References(adapter_of(kind.split()[0], streams, tokens), tuple(made), None)


TEXT, FUSED, NEGATIVE = 1.0, 2.0, 5.0  # told apart by their first value


def prompt(base="SD15", start_percent=0.0, start_step=-1, dim=64):
    """A fused conditioning whose plain version is all TEXT, and a negative; for SDXL with pooled outputs to match."""
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY, FusedPrompt

    def filled(value, *shape):
        return torch.full(shape, value)

    pooled = {v: filled(v, 1, 1280) for v in (TEXT, FUSED, NEGATIVE)}
    texts = (pooled[TEXT], pooled[FUSED]) if base == "SDXL" else (None, None)
    record = FusedPrompt(
        filled(FUSED, 1, 77, dim), filled(TEXT, 1, 77, dim), texts[0], start_percent, start_step, texts[1]
    )
    return [[filled(FUSED, 1, 77, dim), {"pooled_output": pooled[FUSED], PROMPT_KEY: record}]], [
        [filled(NEGATIVE, 1, 77, dim), {"pooled_output": pooled[NEGATIVE]}]
    ]
