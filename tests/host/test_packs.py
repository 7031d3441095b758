"""Beside packs that also work in the cross-attention: IPAdapter_plus and three attention couples, each by its own
nodes.
"""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from support.host.other_packs import pack, part

pytestmark = pytest.mark.usefixtures("host")
KINDS = ["attention", "gated", "prompt"]
IPADAPTER = "TROUPE_IPADAPTER_PLUS", "ComfyUI_IPAdapter_plus"
COUPLE = "TROUPE_ATTENTION_COUPLE", "attention-couple-ComfyUI"
CGEM = "TROUPE_CGEM156", "cgem156-ComfyUI"
PROMPT_CONTROL = "TROUPE_PROMPT_CONTROL", "comfyui-prompt-control"
TOKENS, THEIR_WEIGHT = 4, 0.4


@pytest.fixture(scope="module")
def large_vision(host, tmp_path_factory):
    """A tiny CLIP vision encoder that takes the pictures of 224x224 which the pack makes."""
    from support.host import tiny_models
    from support.host.node_chains import HIDDEN, POOLED

    return tiny_models.tiny_clip_vision(
        hidden=HIDDEN, projection=POOLED, image_size=224, tmp=str(tmp_path_factory.mktemp("clip_vision") / "large.json")
    )


@pytest.fixture(scope="module", params=["SD15", "SDXL"])
def ip_adapter(request, base_folder, large_vision):
    """(Troupe on a model with the published blocks, the pack's nodes as a partner, what they know for the evaluation
    without hooks).
    """
    import safetensors.torch
    from support.host import tiny_models
    from support.host.node_chains import photo
    from support.host.partner_nodes import Troupe
    from support.host.small_casts import adapter_state

    nodes = pack(*IPADAPTER).NODE_CLASS_MAPPINGS
    with torch.inference_mode():
        place = Troupe(
            tiny_models.micro_model(
                request.param, model_channels=64, context_dim=64 if request.param == "SD15" else 2048, whole=True
            )
        )
        state, file = adapter_state(place.patcher, seed=77), f"theirs_{request.param}.safetensors"
        safetensors.torch.save_file(state, base_folder / "models" / "ipadapter" / file)
        loaded, picture = nodes["IPAdapterModelLoader"]().load_ipadapter_model(file)[0], photo(224, 224, seed=5)

    def partner(model, positive, negative, **rest):
        given = (
            dict(
                weight=THEIR_WEIGHT,
                weight_type="linear",
                combine_embeds="concat",
                start_at=0.0,
                end_at=1.0,
                embeds_scaling="V only",
            )
            | rest
        )
        return (
            nodes["IPAdapterAdvanced"]().apply_ipadapter(
                model, loaded, image=picture, clip_vision=large_vision, **given
            )[0],
            positive,
            negative,
        )

    return place, partner, (state, large_vision.encode_image(picture)["image_embeds"])


def their_truth(place, state, embeds):
    """The pack's one picture as the evaluation without hooks is told of it. Its node names the middle block ("middle",
    1), which the host never asks for: nothing of it acts there."""
    from support.host.independent_evaluation import Truth
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    blocks = attention_blocks(place.patcher.model.diffusion_model)

    def projected(x):
        tokens = (x @ state["image_proj.proj.weight"].T + state["image_proj.proj.bias"]).view(TOKENS, -1)
        return torch.nn.functional.layer_norm(
            tokens, tokens.shape[-1:], state["image_proj.norm.weight"], state["image_proj.norm.bias"]
        )

    kv = [
        tuple(state[f"ip_adapter.{2 * j + 1}.{n}.weight"] * (block.key[0] != "middle") for n in ("to_k_ip", "to_v_ip"))
        + (None,)
        for j, block in enumerate(blocks)
    ]
    return Truth(
        [projected(embeds[0])], [], kv, projected(torch.zeros_like(embeds[0])), None, [1.0], THEIR_WEIGHT, "add"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_ip_adapter_plus(kind, ip_adapter):
    from support.host.both_packs import SAME, both_act
    from support.host.partner_nodes import four

    found = four(ip_adapter[0], kind, ip_adapter[1])
    both_act(found)
    assert found.order < SAME


def test_ip_adapter_plus_and_image_attention_add_up(ip_adapter):
    """Both against the evaluation without hooks: a layer holds exactly the sum of what each adds alone."""
    from support.host import independent_evaluation as independent
    from support.host.partner_nodes import SIZE, sampled
    from support.host.small_casts import error, noise_of, settings

    place, partner, known = ip_adapter
    st = place.stage
    ours, theirs = st.truth(st.references(2), settings(weight=0.2)), their_truth(place, *known)
    expected, *without = (
        independent.sample(st.patcher, truth, st.positive, st.negative, noise_of(SIZE))
        for truth in ([ours, theirs], [ours], [theirs])
    )
    for wires in (place.kinds["attention"](*partner(*place.plain)), partner(*place.kinds["attention"](*place.plain))):
        found = sampled(*wires, steps=2)
        assert max(error(found, expected, alone) for alone in without) < 1e-3


@pytest.fixture(scope="module")
def twins(host):
    """`twins("SD15")`: a model with the published blocks, and a UNet of diffusers with its weights."""
    from support.host import tiny_models
    from support.host.both_engines import twin_unet

    @cache
    def made(base):
        context = {"SD15": 768, "SDXL": 2048}[base]
        patcher = tiny_models.micro_model(base, model_channels=64, context_dim=context, whole=True)
        return patcher, twin_unet(patcher, base)

    return made


@pytest.mark.parametrize(
    "recipe, options, base",
    [
        ("ip_adapter", {}, "SD15"),
        ("ip_adapter", {"projection": "Resampler", "tokens": 16}, "SD15"),
        ("mip_adapter", {}, "SD15"),
        ("ip_adapter", {}, "SDXL"),
    ],
)
def test_ip_adapter_plus_predicts_with_a_trained_file_what_the_training_did(
    recipe, options, base, twins, large_vision, base_folder
):
    """In every call of a run, with its loader, projection and attention; of a MIP-Adapter as with a gain of 1, which
    the pack does not know. Nothing of the middle block acts in it (see `their_truth`), so the file has zeros there.
    """
    from support import tiny_training as small
    from support.host import tiny_models
    from support.host.both_engines import PIXELS, TOLERANCE, host_calls
    from support.host.node_chains import HIDDEN, POOLED, photo
    from troupe.model_patches.hosts.diffusers.encoders import Prompt
    from troupe.model_patches.hosts.diffusers.sampling import SamplingSettings, size_condition
    from troupe.training.export import write_export
    from troupe.training.recipes.ip_adapter import BatchPhotos

    nodes, (patcher, unet) = pack(*IPADAPTER).NODE_CLASS_MAPPINGS, twins(base)
    models = small.base(unet, images=small.images(POOLED, HIDDEN))
    trainee = small.changed(small.trainee(recipe, models, **options))
    for layer in trainee.layers.layers[-len(unet.mid_block.attentions[0].transformer_blocks) :]:
        layer.to_v_ip.weight.zero_()
    file = base_folder / "models" / "ipadapter" / f"trained_{recipe}_{base}.safetensors"
    write_export(trainee.export(), file, half=False)
    gains = [layer.text_to_weight.weight for layer in trainee.layers.layers if layer.text_to_weight is not None]
    assert bool(gains) == (recipe == "mip_adapter")
    for gain in gains:
        gain.zero_()

    picture, loaded = photo(224, 224, seed=5), nodes["IPAdapterModelLoader"]().load_ipadapter_model(file.name)[0]
    widgets = {"weight": 1.0, "weight_type": "linear", "combine_embeds": "concat", "embeds_scaling": "V only"}
    apply, given = nodes["IPAdapterAdvanced"]().apply_ipadapter, {"image": picture, "clip_vision": large_vision}
    model = apply(patcher, loaded, **given, start_at=0.0, end_at=1.0, **widgets)[0]
    texts = [tiny_models.random_cond(dim=models.context, seed=n, **PIXELS) for n in (1, 2)]
    calls = host_calls(patcher.model.diffusion_model, (model, *texts))
    prompts = [Prompt(states, more["pooled_output"]) for [[states, more]] in texts]
    seen, black = (large_vision.encode_image(x) for x in (picture, torch.zeros_like(picture)))
    rows = [seen["image_embeds"][0], torch.zeros(POOLED)]
    if options:  # "plus": what stands for no reference is a black picture in the pack
        rows = [each["penultimate_hidden_states"][0] for each in (seen, black)]
    references = trainee.references(BatchPhotos(torch.stack(rows), torch.ones(2, 1).bool(), True))
    for (x, t, *_), kwargs, expected in calls:
        order = kwargs["transformer_options"]["cond_or_uncond"]
        sizes = size_condition(unet, [prompts[i] for i in order], SamplingSettings(**PIXELS))
        text = {"encoder_hidden_states": kwargs["context"], "added_cond_kwargs": sizes}
        plain = unet(x, t, **text).sample
        trainee.attention.references = replace(references, tokens=references.tokens[order])
        found = unet(x, t, **text).sample
        trainee.finish()
        peak = expected.abs().max()
        assert (found - expected).abs().max() < TOLERANCE * peak
        assert (plain - expected).abs().max() > 100 * TOLERANCE * peak, "the file has no effect, so nothing is tested"
    assert len(calls) == 3


OTHER_WAYS = {
    "style transfer": dict(weight_type="style transfer"),
    "scaled keys": dict(embeds_scaling="K+mean(V) w/ C penalty", weight=2.0),
    "a part of the run": dict(end_at=0.5, weight=1.0),
    "a mask": dict(attn_mask=torch.ones(1, 64, 96).triu()),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_ip_adapter_plus_in_its_other_ways(way, ip_adapter):
    from support.host.both_packs import SAME, both_act
    from support.host.partner_nodes import four

    found = four(ip_adapter[0], "attention", partial(ip_adapter[1], **OTHER_WAYS[way]))
    both_act(found)
    assert found.order < SAME


def test_two_of_ip_adapter_plus_around_ours(ip_adapter):
    """One before and one after: the second finds the first, as without Troupe."""
    from support.host.partner_nodes import change, sampled

    place, partner, _ = ip_adapter
    around = sampled(*partner(*place.kinds["attention"](*partner(*place.plain))))
    behind = sampled(*place.kinds["attention"](*partner(*partner(*place.plain))))
    assert change(around, behind) < 1e-5
    assert change(around, sampled(*place.kinds["attention"](*partner(*place.plain)))) > 0.003


def halves():
    left = torch.zeros(1, 64, 96)
    left[..., :48] = 1
    return left, 1 - left


def other_prompt(dim=64):
    from support.host.small_casts import random

    return [[random(1, 77, dim, seed=6, gain=4.0), {"pooled_output": random(1, 1280, seed=6)}]]


def couple(model, positive, negative, other=None):
    """attention-couple-ComfyUI: a positive of two masked prompts becomes one, and the pack's own attention stands in
    attn2's replace slots.
    """
    import nodes

    left, right = halves()
    masked = [
        nodes.ConditioningSetMask().append(prompt, mask, "default", 1.0)[0]
        for prompt, mask in ((positive, left), (other or other_prompt(), right))
    ]
    return (
        pack(*COUPLE)
        .NODE_CLASS_MAPPINGS["Attention couple"]()
        .attention_couple(model, masked[0] + masked[1], negative, "Attention")
    )


def cgem156(model, positive, negative, other=None):
    """cgem156-ComfyUI's couple: rows of the positive repeated before attn2, folded back after it, and nobody told."""
    node = part(*CGEM, "scripts.attention_couple", ROOT_NAME="", SYMBOL="", NODE_SURFIX="").AttentionCouple
    left, right = halves()
    return (
        node().attention_couple_simple(model, left, cond_1=other or other_prompt(), mask_1=right)[0],
        positive,
        negative,
    )


COUPLES = {"attention-couple": couple, "cgem156": cgem156}


@pytest.mark.parametrize("kind", ["attention", "gated"])
@pytest.mark.parametrize("name", COUPLES)
def test_attention_couples(name, kind, couples_model):
    from support.host.both_packs import SAME, both_act
    from support.host.partner_nodes import four

    found = four(couples_model, kind, COUPLES[name], larger, larger)
    both_act(found)
    assert found.order < SAME


def larger(*wires):
    """Latents that stay whole at every level: the couples ask for that."""
    from support.host.partner_nodes import sampled

    return sampled(*wires, size=(16, 16))


@pytest.mark.parametrize("name", COUPLES)
def test_subjects_in_a_coupled_prompt(name, couples_model):
    """The fused prompt acts in its mask; cgem156 keeps the delay, attention-couple holds the fused text from the first
    step on.
    """
    from support.host.both_packs import VISIBLE
    from support.host.partner_nodes import change, fused

    place, partner = couples_model, COUPLES[name]
    delayed, text = partner(*fused(*place.plain)), partner(*place.plain)
    at_once = partner(place.patcher, [[fused(*place.plain)[1][0][0], {}]], place.plain[2])
    found, plain, early = larger(*delayed), larger(*text), larger(*at_once)
    assert change(found, plain) > VISIBLE and change(found, larger(*fused(*place.plain))) > VISIBLE
    assert (change(found, early) < 1e-5) == (name == "attention-couple")


@pytest.fixture(scope="module")
def couples_model(host):
    """A model with the published blocks, which some couples know by heart."""
    from support.host import tiny_models
    from support.host.partner_nodes import Troupe

    with torch.inference_mode():
        return Troupe(tiny_models.micro_model("SD15", model_channels=64, context_dim=64, whole=True))


@pytest.mark.parametrize("name", COUPLES)
def test_a_couple_holds_our_delta_once(name, couples_model, caplog):
    """Coupled with the same prompt on both sides nothing changes: the subjects are as strong as without it."""
    from support.host.partner_nodes import change

    wires = couples_model.kinds["attention"](*couples_model.plain)
    with caplog.at_level("WARNING", "troupe"):
        assert change(larger(*COUPLES[name](*wires, other=[[wires[1][0][0], {}]])), larger(*wires)) < 1e-4
    assert not caplog.records


@pytest.fixture(scope="module")
def prompt_control(clips):
    """(Troupe on a model as wide as the real text encoder, PCTextEncode as a function of a prompt)."""
    from support.host import tiny_models
    from support.host.partner_nodes import Troupe

    encode = part(*PROMPT_CONTROL, "prompt_control.nodes_base").PCTextEncode
    with torch.inference_mode():
        place = Troupe(tiny_models.micro_model("SD15", model_channels=64, context_dim=768, mult=(1, 2)))
        place.stage.positive[0][0] = encode.execute(clips("sd15"), "a red fox").result[0][0][0]
    return place, lambda text: encode.execute(clips("sd15"), text).result[0]


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_control_s_masks(kind, prompt_control):
    """Its COUPLE hangs on the conditioning as a hook, so Troupe's nodes stand before or after it as its
    encoding does.
    """
    from support.host.both_packs import VISIBLE
    from support.host.partner_nodes import change, sampled

    place, encode = prompt_control
    coupled = encode("a red fox COUPLE(0 0.5) a blue owl:3 in deep snow")
    assert coupled[0][1]["hooks"].hooks
    model, positive, negative = place.plain
    neither, partner, ours, both = (
        sampled(*wires)
        for wires in (
            place.plain,
            (model, coupled, negative),
            place.kinds[kind](*place.plain),
            place.kinds[kind](model, coupled, negative),
        )
    )
    assert change(partner, neither) > VISIBLE and change(ours, neither) > VISIBLE
    assert change(both, ours) > 0.3 * change(partner, neither) and change(both, partner) > 0.3 * change(ours, neither)


def test_prompt_control_holds_our_delta_once(prompt_control, caplog):
    from support.host.partner_nodes import change, sampled

    place, encode = prompt_control
    with caplog.at_level("WARNING", "troupe"):
        plain, coupled = (
            sampled(*place.kinds["attention"](place.patcher, encode(text), place.plain[2]))
            for text in ("a red fox", "a red fox COUPLE(0 0.5) a red fox")
        )
    assert change(coupled, plain) < 1e-4
    assert not any("another pack" in r.message for r in caplog.records)
