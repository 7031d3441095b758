"""MM-Diff's image attention on the real host: the whole layer as published, on a UNet whose LoRA is merged by hand."""

import pytest
from support.host.small_mm_diff import CONTEXT, make, references_of
from troupe.model_patches.attention.merges import MERGES

pytestmark = pytest.mark.usefixtures("host")


def merged_by_hand(adapter, strength):
    """The same tiny UNet with every pair added to its weight, and each layer's image matrices from the weights without
    them.
    """
    from support.host import tiny_models
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    patcher = tiny_models.micro_model("SDXL", model_channels=64, context_dim=CONTEXT)
    unet, kv = patcher.model.diffusion_model, []
    for block, layer in zip(attention_blocks(unet), adapter.layers_patcher.model.layers, strict=True):
        base = (unet.get_submodule(f"{block.path}.to_{x}").weight.clone() for x in "kv")
        pairs = (layer.to_k_lora_image, layer.to_v_lora_image)
        kv.append((*(w + pair.up.weight @ pair.down.weight for w, pair in zip(base, pairs, strict=True)), None))
    for path, pair in adapter.weights.unet_lora.items():
        unet.get_submodule(path.removesuffix(".weight")).weight.data.add_(strength * pair.up @ pair.down)
    return patcher, kv


CASTS = {
    "one": ([1], None),
    "two": ([1, 1], None),
    "three, one with two photos": ([2, 1, 1], None),
    "weights": ([3, 1], [0.6, 1.4]),
    "an absent one": ([1, 2, 1], [1.0, 0.0, 0.7]),
}
CASES = [(cast, merge, 1.0) for cast in CASTS for merge in MERGES] + [
    ("two", "joint", 0.0),
    ("two", "joint", 0.6),
]


@pytest.mark.parametrize(("cast", "merge", "strength"), CASES)
def test_the_published_layer(cast, merge, strength):
    from support.host import independent_evaluation as independent
    from support.host import tiny_models
    from support.host.independent_evaluation import Truth
    from support.host.small_casts import error, ksample, noise_of, settings
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    counts, weights = CASTS[cast]
    patcher, adapter = make()
    references, chosen = references_of(adapter, counts, weights), settings(merge, 0.8)
    prompts = [tiny_models.random_cond(77, CONTEXT, seed=i) for i in (1, 2)]
    model, _ = apply_weights(patcher, adapter, strength)
    model, positive, negative, _ = apply_image_attention(model, references, chosen, *prompts)
    naive, kv = merged_by_hand(adapter, strength)
    s = references.subjects
    absent = [i for i, x in enumerate(s) if x.weight == 0] if MERGES[merge].one_softmax else []
    truth = Truth(
        [x.tokens for x in s],
        [x.name_tokens for x in s],
        kv,
        None,
        references.uncond_name_tokens,
        [x.weight for x in s],
        0.8,
        merge,
        absent=absent,
    )
    noise = noise_of((8, 12), 2)
    expected = independent.sample(naive, truth, *prompts, noise)
    without = independent.sample(naive, None, *prompts, noise)
    assert error(ksample(model, positive, negative, size=(8, 12), batch=2), expected, without) < 1e-3


def test_a_users_lora_on_the_same_weights_is_in_both_paths():
    """Keys of text and of image tokens are made with the host's own `to_k`, so that what other nodes put there acts in
    both.
    """
    from support.host import independent_evaluation as independent
    from support.host import tiny_models
    from support.host.independent_evaluation import Truth
    from support.host.small_casts import error, ksample, noise_of, random, settings
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    patcher, adapter = make()
    references, chosen = references_of(adapter, [1, 1]), settings("joint", 0.8)
    prompts = [tiny_models.random_cond(77, CONTEXT, seed=i) for i in (1, 2)]
    naive, kv = merged_by_hand(adapter, 1.0)
    diffs = {}
    for i, path in enumerate(p for p in adapter.weights.unet_lora if ".attn2.to_k" in p or ".attn2.to_v" in p):
        weight = naive.model.diffusion_model.get_submodule(path.removesuffix(".weight")).weight
        diffs[f"diffusion_model.{path}"] = random(*weight.shape, seed=9000 + i, gain=0.5 * weight.shape[1] ** -0.5)
        weight.data.add_(diffs[f"diffusion_model.{path}"])
    kv = [
        tuple(w + diffs[f"diffusion_model.{b}.to_{x}.weight"] for w, x in zip(pair[:2], "kv", strict=True)) + (None,)
        for b, pair in zip(paths_of(naive), kv, strict=True)
    ]
    user = patcher.clone()
    user.add_patches({key: ("diff", (tensor,)) for key, tensor in diffs.items()})
    model, _ = apply_weights(user, adapter)
    model, positive, negative, _ = apply_image_attention(model, references, chosen, *prompts)
    s, noise = references.subjects, noise_of((8, 8))
    truth = Truth(
        [x.tokens for x in s],
        [x.name_tokens for x in s],
        kv,
        None,
        references.uncond_name_tokens,
        [1.0, 1.0],
        0.8,
        "joint",
    )
    expected, without = (independent.sample(naive, t, *prompts, noise) for t in (truth, None))
    assert error(ksample(model, positive, negative, size=(8, 8)), expected, without) < 1e-3


def paths_of(patcher):
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    return [block.path for block in attention_blocks(patcher.model.diffusion_model)]


@pytest.mark.parametrize("scheduler", ["normal", "karras"])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_image_attention_begins_with_the_prompt(sampler, scheduler):
    """As published: before the step at which the subjects enter the prompt, they do not act in the picture either.

    Its LoRA stays on.
    """
    from dataclasses import replace

    from support.host import tiny_models
    from support.host.small_casts import ksample, settings
    from support.prompt_fusions import FUSIONS
    from troupe.model_patches.adapter import PromptSpec
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.sampling import image_attention
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PROMPT_KEY, FusedPrompt
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights

    patcher, adapter = make()
    parts = *adapter.spec.parts, PromptSpec(FUSIONS["word"], {"l": 768, "g": 1280})
    adapter = replace(adapter, spec=replace(adapter.spec, parts=parts))
    ((fused, options),) = tiny_models.random_cond(77, CONTEXT, seed=1)
    ((text, _),) = tiny_models.random_cond(77, CONTEXT, seed=3)
    delayed = [[fused, {**options, PROMPT_KEY: FusedPrompt(fused, text, options["pooled_output"], start_step=2)}]]
    model, _ = apply_weights(patcher, adapter)
    model, positive, negative, _ = apply_image_attention(
        model, references_of(adapter, [1, 1]), settings("joint"), delayed, tiny_models.random_cond(77, CONTEXT, seed=2)
    )
    seen, original = [], image_attention.layer_delta
    sigmas = []

    def note(executor, x, t, *args, **kwargs):
        sigmas.append((float(t[0]), kwargs.get("transformer_options", args[-1] if args else {})["sample_sigmas"]))
        before = len(seen)
        found = executor(x, t, *args, **kwargs)
        acted.append(len(seen) > before)
        return found

    from comfy.patcher_extension import WrappersMP

    acted = []
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "note", note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_attention, "layer_delta", lambda *a, **k: (seen.append(1), original(*a, **k))[1])
        ksample(model, positive, negative, size=(8, 8), steps=5, sampler=sampler, scheduler=scheduler)
    border = float(sigmas[0][1][2])
    assert acted == [sigma <= border * (1 + 1e-5) for sigma, _ in sigmas] and True in acted and False in acted
