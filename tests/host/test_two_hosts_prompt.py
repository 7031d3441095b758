"""ComfyUI and the embedded engine check each other where subjects are in the prompt: the same prompts, and the same
whole jobs.
"""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from support.host import both_engines
from support.host.both_engines import PIXELS, SIZE, TOLERANCE, close, schedule, twin_unet
from troupe.model_patches.adapter import PromptSpec

pytestmark = pytest.mark.usefixtures("host")
STREAMS = {"sdxl": {"l": 768, "g": 1280}, "sd15": {"l": 768}, "sd20": {"h": 1024}}
BASES = {"sdxl": "SDXL", "sd15": "SD15", "sd20": "SD20"}
NAMES, TEXT, NEGATIVE = ("cat", "red fox"), "a (cat:1.3) beside a red fox in the snow", "ugly, (blurry:1.2)"
STEPS, SEED, CFG = 4, 6, 5.0


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def texts(host):
    """`texts("sd15")`: the host's CLIP and our ClipTexts. The last ones are kept, so cases are ordered by base."""
    return lru_cache(maxsize=1)(both_engines.texts)


@pytest.fixture(scope="module")
def models(host):
    """`models("sd15")`: the host's model and CLIP and their twins here, without a patch of the test before; as `texts`,
    but in float32.
    """
    return lru_cache(maxsize=1)(make_models)


@pytest.fixture
def jobs(models):
    import comfy.model_management

    yield models
    comfy.model_management.unload_all_models()


def draw(*shape, seed, gain=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * gain


def prompt_adapter(kind, base, tokens=1, layers=None, weights=None, merge="relevance"):
    """An adapter that acts in the prompt, with random fusion modules, on plain torch."""
    from support.prompt_fusions import FUSIONS
    from troupe.model_patches.adapter import Adapter, AdapterSpec, ImageAttentionSpec, PromptSpec, Weights
    from troupe.model_patches.encoders.words import Postfuse, WordFusion

    torch.manual_seed(5)
    made = {"word": lambda w: WordFusion(2 * w, w, w), "postfuse": lambda w: Postfuse(w, w, 32, 32)}.get(kind)
    fusion = torch.nn.ModuleDict({s: made(w) for s, w in STREAMS[base].items()}).requires_grad_(False) if made else None
    context = sum(STREAMS[base].values())
    attention = () if layers is None else (ImageAttentionSpec("", layers.widths, 4, text_gain=False, merge=merge),)
    parts = PromptSpec(FUSIONS[kind], STREAMS[base], tokens), *attention
    spec = AdapterSpec("mm_diff", f"{kind}.bin", context, parts)
    return Adapter(spec, None, layers, weights=weights or Weights(), fusion=fusion)


def references_of(adapter, count, photos=(), tokens=1, **each):
    """Subjects with words for the prompt, and where photos are given four image tokens for each of them."""
    from troupe.model_patches.subjects import References, ReferenceSubject

    spec, made = adapter.spec, []
    for i in range(count):
        words = {
            s: draw(tokens, w, seed=70 + 10 * i + w % 7, gain=0.3) for s, w in spec.part(PromptSpec).streams.items()
        }
        image = draw(4 * photos[i], spec.context_dim, seed=90 + i) if photos else None
        made.append(
            ReferenceSubject(NAMES[i], image, None, words=words, **{key: values[i] for key, values in each.items()})
        )
    return References(adapter, tuple(made), None)


def on_host(references):
    """The same references with the adapter under the host's memory management."""
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter

    return replace(references, adapter=host_adapter(references.adapter))


# ---- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, base, tokens",
    [
        ("word", "sdxl", 1),
        ("placeholder", "sd20", 1),
        ("pseudo", "sd15", 1),
        ("pseudo", "sd15", 3),
        ("placeholder", "sd15", 1),
        ("postfuse", "sd15", 1),
    ],
)
def test_prompts(kind, base, tokens, texts):
    """Emphasis on a subject and elsewhere, weights between 0 and 1, one subject and two, both in the second chunk."""
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt as host_prompt
    from troupe.model_patches.hosts.diffusers.prompt import encode_prompt

    clip, ours = texts(base)
    adapter = prompt_adapter(kind, base, tokens)
    far = "very, (very) calm " * (5 if kind == "placeholder" else 20) + "and a (cat:1.2) by a red fox"
    for count, weights, text in ((1, (1.0,), TEXT), (2, (1.0, 0.4), TEXT), (2, (0.0, 2.0), TEXT), (2, (0.7, 1.0), far)):
        references = references_of(adapter, count, tokens=tokens, weight=weights)
        (fused,), (plain,) = host_prompt(clip, on_host(references), text)
        found, alone = encode_prompt(ours, references, text)
        for mine, (states, rest) in ((found, fused), (alone, plain)):
            close(mine.embeds, states)
            if base == "sdxl":
                close(mine.pooled, rest["pooled_output"])
        assert (
            found.embeds - alone.embeds
        ).abs().max() > 100 * TOLERANCE * found.embeds.abs().max() and found.before is None


def test_a_prompt_with_a_delay_carries_the_plain_one(texts):
    from troupe.model_patches.hosts.diffusers.prompt import encode_prompt

    _, ours = texts("sd15")
    references = references_of(prompt_adapter("pseudo", "sd15"), 1)
    for delay in ({"start_step": 2}, {"start_percent": 0.3}, {"start_step": 0, "start_percent": 0.3}):
        found, alone = encode_prompt(ours, references, TEXT, **delay)
        assert (found.before is alone) == ("start_step" not in delay or delay["start_step"] > 0)


# ---- whole jobs ------------------------------------------------------------------------------------------------------


def make_models(base):
    """The host's model and CLIP and their twins here, of one size of text.

    The UNet attends sharply, so that a word that changes shows.
    """
    from support.host.tiny_models import micro_model

    clip, ours = both_engines.texts(base)
    clip.cond_stage_model.float()  # what is added to half precision would be rounded again
    patcher = micro_model(BASES[base], model_channels=64, context_dim=sum(STREAMS[base].values()))
    for name, weight in patcher.model.diffusion_model.named_parameters():
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            weight.mul_(4.0)
    return patcher, clip, twin_unet(patcher, BASES[base]), ours


def conditioned(clip, text):
    """CLIP Text Encode, for a picture of PIXELS."""
    states, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[states, {"pooled_output": pooled, **PIXELS}]]


def sized(conditioning):
    return [[states, {**rest, **PIXELS}] for states, rest in conditioning]


def settings(**rest):
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings

    return SamplingSettings(**PIXELS, steps=STEPS, cfg=rest.pop("cfg", CFG), seed=SEED, batch=2)


def guided(model, positive, negative, middle, method, cfg, **widgets):
    """SamplerCustomAdvanced with Two-Strength Guider, on the host's normal schedule."""
    import comfy.samplers
    from support.host.small_casts import noise_of
    from troupe.model_patches.binding.two_strengths import Guidance
    from troupe.model_patches.hosts.comfyui.prompting.guider import subject_guider

    guider = subject_guider(model, positive, negative, middle, Guidance(method, **widgets), cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    noise = noise_of(SIZE, 2, SEED)
    return guider.sample(
        noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True
    )


def alike(patcher, expected, found, without):
    """found is the host's latent, which `without` (the subjects, or a part of what they do) is far from."""
    expected = patcher.model.process_latent_in(expected)
    peak = expected.abs().max()
    assert (without - expected).abs().max() > 100 * TOLERANCE * peak
    assert (found - expected).abs().max() < TOLERANCE * peak


@pytest.mark.parametrize("count, delay", [(1, {}), (2, {"start_step": 1}), (2, {"start_percent": 0.3})])
@pytest.mark.parametrize("second, second_end", [(0.5, 0.5), (0.2, 1.0)])
def test_umms_job(count, delay, second, second_end, jobs):
    from troupe.model_patches.binding.two_strengths import Guidance
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt as host_prompt
    from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
    from troupe.model_patches.hosts.diffusers.sampling import sample

    patcher, clip, unet, ours = jobs("sd15")
    references, widgets = (
        references_of(prompt_adapter("pseudo", "sd15"), count),
        {"second": second, "second_end": second_end, "end_percent": 0.8},
    )
    positive, middle = host_prompt(clip, on_host(references), TEXT, **delay)
    expected = guided(patcher, positive, conditioned(clip, NEGATIVE), middle, "umm", cfg=CFG, **widgets)
    positive, middle = encode_prompt(ours, references, TEXT, **delay)
    negative = ours.encode_prompt(NEGATIVE)
    found = sample(unet, schedule(), positive, negative, settings(), middle=middle, guidance=Guidance("umm", **widgets))
    alike(patcher, expected, found, sample(unet, schedule(), middle, negative, settings()))


def subject_diffusion(patcher, base, count):
    """(the host's references, the same for the embedded engine): fusers, mask channel, prompt, UNet and text encoder
    weights.
    """
    from support.host.both_engines import embedded_gated
    from support.host.small_gated_casts import GatedStage, gated_adapter
    from support.prompt_fusions import FUSIONS
    from troupe.model_patches.adapter import GatedSpec, PromptSpec, Weights

    ((stream, width),) = STREAMS[base].items()
    made = gated_adapter(patcher, "patches")
    state = patcher.model.diffusion_model.state_dict()
    names = [f"{place}.attn2.to_{kv}.weight" for place in made.spec.part(GatedSpec).block_widths for kv in "kv"] + [
        "input_blocks.0.0.weight",
        "input_blocks.0.0.bias",
    ]
    text = {
        f"text_model.encoder.layers.{i}.self_attn.v_proj.weight": draw(width, width, seed=300 + i, gain=0.03)
        for i in range(2)
    }
    weights = Weights(
        {
            name: state[name] + draw(*state[name].shape, seed=200 + i, gain=0.3 * state[name].std().item() + 0.05)
            for i, name in enumerate(names)
        },
        {**text, "text_model.final_layer_norm.bias": draw(width, seed=310, gain=0.2)},
    )
    parts = *made.spec.parts, PromptSpec(FUSIONS["placeholder"], STREAMS[base])
    adapter = replace(made, spec=replace(made.spec, family="subject_diffusion", parts=parts), weights=weights)
    host = GatedStage(patcher, adapter, None, None).references(count)
    words = [{stream: draw(1, width, seed=80 + i, gain=0.3)} for i in range(count)]
    host = replace(
        host,
        subjects=tuple(
            replace(s, name=name, words=w) for s, name, w in zip(host.subjects, NAMES[:count], words, strict=True)
        ),
    )
    ours = embedded_gated(host)
    return host, replace(ours, adapter=replace(ours.adapter, weights=weights))


@pytest.mark.parametrize("base, count, delay", [("sd15", 2, {}), ("sd20", 1, {}), ("sd20", 2, {"start_step": 1})])
def test_subject_diffusions_job(base, count, delay, jobs):
    """Retrained UNet and text encoder, prompt, fusers, mask channel, and image guidance that ends early."""
    from troupe.model_patches.binding.settings import GatedSettings
    from troupe.model_patches.binding.two_strengths import Guidance
    from troupe.model_patches.hosts.comfyui.apply import apply_gated
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt as host_prompt
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights
    from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
    from troupe.model_patches.hosts.diffusers.sampling import sample
    from troupe.model_patches.hosts.diffusers.weights import text_encoder_weights

    patcher, clip, unet, ours = jobs(base)
    host, references = subject_diffusion(patcher, base, count)
    widgets, gated = {"second": 1.5, "second_end": 2.5, "end_percent": 0.8}, GatedSettings(0.9)
    model, patched = apply_weights(patcher, host.adapter, clip=clip)
    positive, _ = host_prompt(patched, host, TEXT, **delay)
    model, positive, negative, _ = apply_gated(model, host, gated, positive, conditioned(patched, NEGATIVE))
    expected = guided(model, positive, negative, None, "subject_diffusion", cfg=CFG, **widgets)
    with text_encoder_weights(ours, references.adapter.weights):
        positive, plain = encode_prompt(ours, references, TEXT, **delay)
        negative = ours.encode_prompt(NEGATIVE)
    guidance, weights = Guidance("subject_diffusion", **widgets), [(references.adapter, 1.0)]
    found = sample(
        unet, schedule(), positive, negative, settings(), [(references, gated)], guidance=guidance, weights=weights
    )
    alike(
        patcher,
        expected,
        found,
        sample(
            unet, schedule(), plain, negative, settings(), [(references, gated)], guidance=guidance, weights=weights
        ),
    )
    alike(
        patcher,
        expected,
        found,
        sample(unet, schedule(), positive, negative, settings(), guidance=guidance, weights=weights),
    )
    alike(
        patcher,
        expected,
        found,
        sample(unet, schedule(), positive, negative, settings(), [(references, gated)], guidance=guidance),
    )


def mm_diff(patcher, merge="joint"):
    """Pairs for every attention of the UNet and of the text encoders, image pairs, and word fusion."""
    from troupe.model_patches.adapter import LoraPair, Weights
    from troupe.model_patches.encoders.mm_diff import LoraLayers
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    unet, blocks, pairs = patcher.model.diffusion_model, attention_blocks(patcher.model.diffusion_model), {}

    def pair(out, into, seed, rank=5):
        return LoraPair(
            draw(rank, into, seed=seed, gain=0.4 * into**-0.5),
            draw(out, rank, seed=seed + 1, gain=0.4 * rank**-0.5),
            None if seed % 4 else 10.0,
        )

    for i, block in enumerate(blocks):
        for j, name in enumerate(
            f"{attn}.{part}.weight" for attn in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")
        ):
            path = f"{block.path.removesuffix('attn2')}{name}"
            pairs[path] = pair(
                *unet.get_submodule(path.removesuffix(".weight")).weight.shape,
                seed=1001 + 20 * i + 2 * j if "attn2.to_" in path else 1000 + 20 * i + 2 * j,
            )
    layers = LoraLayers(
        blocks[0].context_dim, [b.width for b in blocks], [6] * len(blocks), [5] * len(blocks)
    ).requires_grad_(False)
    for i, (layer, block) in enumerate(zip(layers.layers, blocks, strict=True)):
        for kv in "kv":
            text, image = getattr(layer, f"to_{kv}_lora"), getattr(layer, f"to_{kv}_lora_image")
            text.down.weight.copy_(pairs[f"{block.path}.to_{kv}.weight"].down)
            text.up.weight.copy_(pairs[f"{block.path}.to_{kv}.weight"].up)
            for part in (image.down, image.up):
                part.weight.copy_(
                    draw(
                        *part.weight.shape,
                        seed=3000 + 10 * i + ord(kv) + len(part.weight),
                        gain=1.5 * part.weight.shape[1] ** -0.5,
                    )
                )
    loras = {
        s: {
            f"text_model.encoder.layers.{i}.self_attn.{m}_proj.weight": pair(w, w, 5000 + w + 10 * i + j)
            for i in range(2)
            for j, m in enumerate(("q", "k", "v", "out"))
        }
        for s, w in STREAMS["sdxl"].items()
    }
    return prompt_adapter("word", "sdxl", layers=layers, weights=Weights(unet_lora=pairs, text_lora=loras), merge=merge)


@pytest.mark.parametrize(
    "photos, delay, strength, each",
    [
        ((1,), {}, 1.0, {}),
        ((2, 1), {"start_step": 1}, 1.0, {}),
        ((1, 1), {"start_percent": 0.3}, 0.6, {"weight": (0.5, 1.0)}),
        ((3, 1), {}, 0.0, {"weight": (1.0, 0.0)}),
    ],
)
def test_mm_diffs_job(photos, delay, strength, each, jobs):
    """LoRAs of UNet and text encoders, words, image tokens of several photos, a delay of the words and of the tokens;
    one subject and two.
    """
    from support.host.small_casts import ksample
    from troupe.model_patches.attention.merges import Mixing
    from troupe.model_patches.binding.settings import ImageAttentionSettings
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.model_patches.hosts.comfyui.prompting.encode_prompt import encode_prompt as host_prompt
    from troupe.model_patches.hosts.comfyui.sampling.weights import apply_weights
    from troupe.model_patches.hosts.diffusers.prompt import encode_prompt
    from troupe.model_patches.hosts.diffusers.sampling import sample
    from troupe.model_patches.hosts.diffusers.weights import text_encoder_weights

    patcher, clip, unet, ours = jobs("sdxl")
    references = references_of(mm_diff(patcher), len(photos), photos, **each)
    adapter, host, chosen = (
        references.adapter,
        on_host(references),
        ImageAttentionSettings(0.8, Mixing("joint"), start_percent=0.3 if delay else 0.0),
    )
    model, patched = apply_weights(patcher, host.adapter, strength, strength, clip)
    positive, _ = host_prompt(patched, host, TEXT, **delay)
    model, positive, negative, _ = apply_image_attention(
        model, host, chosen, sized(positive), conditioned(patched, NEGATIVE)
    )
    expected = ksample(model, positive, negative, SIZE, 2, STEPS, CFG, SEED)
    with text_encoder_weights(ours, adapter.weights, strength):
        positive, plain = encode_prompt(ours, references, TEXT, **delay)
        negative = ours.encode_prompt(NEGATIVE)
    found = sample(
        unet, schedule(), positive, negative, settings(), [(references, chosen)], weights=[(adapter, strength)]
    )
    alike(
        patcher,
        expected,
        found,
        sample(unet, schedule(), plain, negative, settings(), [(references, chosen)], weights=[(adapter, strength)]),
    )
    alike(
        patcher,
        expected,
        found,
        sample(unet, schedule(), positive, negative, settings(), weights=[(adapter, strength)]),
    )
    if strength:
        alike(
            patcher, expected, found, sample(unet, schedule(), positive, negative, settings(), [(references, chosen)])
        )
