"""The stored predictions of the official Subject-Diffusion and GLIGEN models, through the host's own UNet and block
classes and our patches.
"""

import pytest
import torch
from support.golden_subject_diffusion import filled, golden, parameter

pytestmark = pytest.mark.usefixtures("host")
CONTEXT, TIMESTEP, GRIDS = 48, 501, ("8x8", "8x16")


def host_model(heads, names, linear):
    """A ModelPatcher around the host's UNetModel of the goldens' widths, with the generator's sharp weights. names: LDM
    name -> official name.
    """
    import comfy.model_management as mm
    import comfy.model_patcher
    import comfy.supported_models as sm

    config = dict(
        model_channels=32,
        context_dim=CONTEXT,
        in_channels=4,
        out_channels=4,
        image_size=32,
        use_spatial_transformer=True,
        legacy=False,
        channel_mult=[1, 2, 4, 4],
        num_res_blocks=[2] * 4,
        transformer_depth=[1] * 6 + [0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1,
        use_linear_in_transformer=linear,
        adm_in_channels=None,
        dtype=torch.float32,
    )

    class Golden(sm.SD15):
        unet_extra_config = heads

    chosen = Golden(config)
    chosen.set_inference_dtype(torch.float32, None)
    model = chosen.get_model({}, "", device="cpu")
    state = {}
    for name, tensor in model.diffusion_model.state_dict().items():
        shape = tuple(tensor.shape)
        if linear and name == "input_blocks.0.0.weight":
            state[name] = parameter("conv_in.weight", (shape[0], 5, *shape[2:]), "sharp")[:, :4]
        else:
            state[name] = parameter(names(name), shape, "sharp")
    model.diffusion_model.load_state_dict(state)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device()
    )


def adapter_with(patcher, kind, net, fuser_names, heads, mask=None, feature_dim=24, slots=5, tokens=2):
    """Our gated layers with the generator's weights in all sixteen places. fuser_names: LDM path of a block -> official
    name of its fuser.
    """
    from troupe.model_patches.adapter import Adapter, AdapterSpec, GatedSpec
    from troupe.model_patches.encoders.gated import GatedLayers
    from troupe.model_patches.hosts.comfyui.loading.adapters import host_adapter
    from troupe.model_patches.hosts.comfyui.sampling.blocks import attention_blocks

    places = {b.path.removesuffix(".attn2"): b.width for b in attention_blocks(patcher.model.diffusion_model)}
    assert len(places) == 16
    layers = GatedLayers(net, list(places.values()), CONTEXT, None if mask is None else 32)
    for fuser, (path, width) in zip(layers.fusers, places.items(), strict=True):
        filled(fuser, "sharp", f"{fuser_names(path)}.")
        fuser.heads = heads(width)
    if mask is not None:
        layers.mask_conv.weight.data.copy_(mask)
    spec = AdapterSpec("gligen", "golden", CONTEXT, (GatedSpec(kind, places, CONTEXT, feature_dim, slots, tokens),))
    return host_adapter(Adapter(spec, None, None, layers.eval().requires_grad_(False)))


def prediction(patcher, references, x, context, role="cond", strength=1.0):
    """The noise that the patched UNet predicts for x [1, 4, h, w] at the goldens' timestep, through the host's own
    prediction function.
    """
    import comfy.samplers
    from troupe.model_patches.binding.settings import GatedSettings
    from troupe.model_patches.hosts.comfyui.apply import apply_gated

    plain = [[context, {"pooled_output": torch.zeros(1, 8)}]]
    model, positive, negative, _ = apply_gated(patcher, references, GatedSettings(strength), plain, plain)
    caught = {}

    class Once(comfy.samplers.Sampler):
        def sample(
            self,
            model_wrap,
            sigmas,
            extra_args,
            callback,
            noise,
            latent_image=None,
            denoise_mask=None,
            disable_pbar=False,
        ):
            base = model_wrap.inner_model
            sigma = base.model_sampling.sigmas[TIMESTEP]
            noisy = x * (sigma**2 + 1) ** 0.5
            conds = [model_wrap.conds["positive"], None] if role == "cond" else [None, model_wrap.conds["negative"]]
            out = comfy.samplers.calc_cond_batch(base, conds, noisy, sigma.expand(len(x)), extra_args["model_options"])
            caught["eps"] = (noisy - out[0 if role == "cond" else 1]) / sigma
            return noise

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.sample(torch.zeros_like(x), torch.zeros_like(x), Once(), torch.tensor([1.0, 0.0]))
    return caught["eps"]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 * expected.abs().max().item())


@pytest.mark.parametrize("grid", GRIDS)
def test_gligens_unet(grid):
    from troupe.model_patches.encoders.grounding import TextImagePositionNet
    from troupe.model_patches.subjects import Box, ObjectFeatures, References, ReferenceSubject

    g = golden("gligen")
    patcher = host_model(dict(num_heads=8, num_head_channels=-1), lambda name: name, linear=False)
    net = filled(TextImagePositionNet(24, CONTEXT), "sharp", "position_net.")
    adapter = adapter_with(patcher, "text_image", net, lambda path: f"{path}.fuser", lambda width: 8)
    x, context = g[f"unet.{grid}.x"], g[f"unet.{grid}.context"]
    for row in range(len(x)):
        masks = [g[f"small.{name}"][row].bool() for name in ("masks", "text_masks", "image_masks")]
        if bool((masks[1] & ~masks[0]).any() or (masks[2] & ~masks[0]).any()):
            pytest.fail("the stored features belong to absent objects, which the node cannot say")
        subjects = []
        for i, (left, top, right, bottom) in enumerate(g["small.boxes"][row].tolist()):
            features = ObjectFeatures(
                *(
                    g[f"small.{name}"][row, i] if mask[i] else None
                    for name, mask in (("text", masks[1]), ("image", masks[2]))
                )
            )
            subjects.append(
                ReferenceSubject(
                    str(i),
                    None,
                    None,
                    float(masks[0][i]),
                    box=Box(left, top, right - left, bottom - top),
                    features=features,
                )
            )
        references = References(adapter, tuple(subjects), None)
        assert_same(
            prediction(patcher, references, x[row : row + 1], context[row : row + 1]),
            g[f"unet.{grid}.out.alpha1"][row : row + 1],
        )
        assert_same(
            prediction(patcher, references, x[row : row + 1], context[row : row + 1], strength=0.0),
            g[f"unet.{grid}.out.alpha0"][row : row + 1],
        )


class Given(torch.nn.Module):
    """In the place of a GroundingNet with four tokens of one channel a slot: the stored object tokens."""

    uncond_is_zero, feature_dim, image_shape = True, 1, (4, 1)

    def __init__(self, tokens):
        super().__init__()
        self.tokens = torch.nn.Parameter(tokens, requires_grad=False)

    def tokens_of(self, objects):
        return self.tokens

    def uncond(self, slots, device):
        return torch.zeros_like(self.tokens)

    def per_token(self, per_slot):
        return per_slot.repeat_interleave(4)


@pytest.mark.parametrize("grid", GRIDS)
def test_subject_diffusions_unet(grid, monkeypatch):
    import comfy.utils
    from troupe.model_patches.binding import run_objects
    from troupe.model_patches.subjects import Box, ObjectFeatures, References, ReferenceSubject

    g = golden("unet")
    config = dict(
        channel_mult=[1, 2, 4, 4],
        num_res_blocks=[2] * 4,
        transformer_depth=[1] * 6 + [0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1,
    )
    official = {ldm: diffusers for diffusers, ldm in comfy.utils.unet_to_diffusers(config).items()}
    blocks = {
        ldm.split(".transformer_blocks.0.")[0]: diffusers.split(".transformer_blocks.0.")[0]
        for ldm, diffusers in official.items()
        if ".transformer_blocks.0." in ldm
    }
    patcher = host_model(dict(num_heads=-1, num_head_channels=32), official.__getitem__, linear=True)
    conv_in = parameter("conv_in.weight", (32, 5, 3, 3), "sharp")
    x, context, objects = (g[f"{grid}.{name}"] for name in ("x", "context", "objs"))
    for row, role in enumerate(("cond", "cond", "uncond")):
        adapter = adapter_with(
            patcher,
            "patches",
            Given(objects[row : row + 1]),
            lambda path: f"{blocks[path.removesuffix('.transformer_blocks.0')]}.transformer_blocks.0.fuser",
            lambda width: width // 32,
            conv_in[:, 4:],
            feature_dim=1,
            slots=2,
            tokens=4,
        )
        monkeypatch.setattr(
            run_objects, "mask_channel", lambda references, strengths, size, row=row: x[row : row + 1, 4]
        )
        subjects = tuple(
            ReferenceSubject(str(i), None, None, box=Box(0, 0, 1, 1), features=ObjectFeatures(image=torch.zeros(4, 1)))
            for i in range(2)
        )
        found = prediction(
            patcher, References(adapter, subjects, None), x[row : row + 1, :4], context[row : row + 1], role
        )
        assert_same(found, g[f"{grid}.out.sharp"][row : row + 1])
    assert (x[2, 4] == 0).all() and (objects[2] == 0).all()


@pytest.mark.parametrize(
    ("official", "grid"), [("subject_diffusion", (8, 8)), ("subject_diffusion", (6, 10)), ("gligen", (6, 10))]
)
def test_the_hosts_block(official, grid):
    from comfy.ldm.modules.attention import BasicTransformerBlock
    from troupe.model_patches.encoders.fuser import GatedFuser
    from troupe.model_patches.hosts.comfyui.sampling.conditioning import ConditioningChunk
    from troupe.model_patches.hosts.comfyui.sampling.gated import GatedLayer, GatedPatch

    g, name = golden("block"), f"{grid[0]}x{grid[1]}"
    block = BasicTransformerBlock(64, 2, 32, context_dim=CONTEXT)
    block.load_state_dict({n: parameter(n, tuple(t.shape), "sharp") for n, t in block.state_dict().items()})
    fuser = filled(GatedFuser(64, CONTEXT, 2), "sharp", "fuser.")
    chunks = [ConditioningChunk("cond", None), ConditioningChunk("cond", None)]
    patch = GatedPatch(None, chunks, {("input", 1, 0): GatedLayer(fuser, fuser.project(g[f"{name}.objs"]))}, 1.0)
    options = {
        "patches": {"middle_patch": [patch]},
        "block": ("input", 1),
        "block_index": 0,
        "cond_or_uncond": [0, 1],
        "activations_shape": [2, 64, *grid],
    }
    expected = golden("gligen")["block.6x10.out.sharp"] if official == "gligen" else g[f"{name}.out.sharp"]
    with torch.no_grad():
        torch.testing.assert_close(
            block(g[f"{name}.x"], context=g[f"{name}.context"], transformer_options=options),
            expected,
            rtol=1e-4,
            atol=2e-5,
        )
