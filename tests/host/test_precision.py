"""UNets in the dtypes that people keep them in: what the references add is what they add to the same weights in
float32.
"""

import pytest
import torch
from support.host.applied_kinds import ATTENTION, BRAIN, E4M3, E5M2, FULL, GATED, HALF, applied, micro

pytestmark = pytest.mark.usefixtures("host")
RUN = dict(size=(8, 8), steps=2)


def in_float32(kind, model, adapter):
    """A float32 model of the very weights with which a patcher has sampled, and what the nodes left on it."""
    whole = micro(kind)
    whole.model.diffusion_model.load_state_dict(
        {name: tensor.float() for name, tensor in model.model.diffusion_model.state_dict().items()}
    )
    if kind == "mm_diff":
        whole.set_attachments("troupe_weights", {adapter.id: 1.0})
    return whole


@pytest.mark.parametrize(
    "dtype, compute",
    [(E4M3, FULL), (E5M2, FULL), (HALF, FULL), (BRAIN, FULL), (E4M3, BRAIN), (E5M2, HALF), (BRAIN, None), (HALF, None)],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)
@pytest.mark.parametrize("kind", ATTENTION + GATED)
def test_weights_of_any_dtype_with_and_without_a_cast(kind, dtype, compute):
    """Computed in float32: the same picture.

    In 16 bits: no further from it than twice what the host's own rounding makes of the plain picture.
    """
    from support.host.small_casts import error, ksample

    model, positive, negative, plain, adapter = applied(kind, micro(kind, dtype, compute))
    assert next(model.model.diffusion_model.parameters()).dtype == dtype
    found, lone = ksample(model, positive, negative, **RUN), ksample(plain, positive, negative, **RUN)
    model.patch_model()
    exact, positive, negative, whole, _ = applied(kind, in_float32(kind, model, adapter), adapter)
    model.unpatch_model()
    expected, without = ksample(exact, positive, negative, **RUN), ksample(whole, positive, negative, **RUN)
    assert torch.isfinite(found).all()
    if compute == FULL:
        assert error(found, expected, without) < 1e-4
    else:
        assert 0 < (found - expected).abs().max() < 2 * (lone - without).abs().max() < (expected - without).abs().max()


@pytest.fixture(scope="module")
def unet_file(host, base_folder):
    """A UNet in models/diffusion_models, 320 channels wide as all that the host knows."""
    import safetensors.torch
    from support.host import tiny_models

    path = base_folder / "models" / "diffusion_models" / "tiny.safetensors"
    path.parent.mkdir(exist_ok=True)
    state = {k.removeprefix("model.diffusion_model."): v for k, v in tiny_models.build_unet_sd("sd15").items()}
    safetensors.torch.save_file(state, path)
    return path.name, state


def float32_model(state):
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(
        {k: v.float() for k, v in state.items()}, model_options={"dtype": FULL}
    )


@pytest.mark.parametrize(
    "weight_dtype, dtype", [("fp8_e4m3fn", E4M3), ("fp8_e4m3fn_fast", E4M3), ("fp8_e5m2", E5M2), ("default", HALF)]
)
def test_the_hosts_loader_of_diffusion_models(weight_dtype, dtype, unet_file):
    from support.host.small_casts import error, ksample

    import nodes

    name, state = unet_file
    (small,) = nodes.UNETLoader().load_unet(name, weight_dtype)
    stored = small.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2.to_k.weight.dtype
    assert stored == dtype or weight_dtype == "default"
    whole = float32_model({k: v.to(dtype) for k, v in state.items()})
    without = ksample(whole, *applied("text_to_weight", whole)[1:3], **RUN)
    for kind in ("text_to_weight", "text_image", "patches"):
        model, positive, negative, _, adapter = applied(kind, small)
        found = ksample(model, positive, negative, **RUN)
        exact, positive, negative, *_ = applied(kind, whole, adapter)
        assert error(found, ksample(exact, positive, negative, **RUN), without) < 1e-3


def test_scaled_float8_weights(unet_file):
    """Files that keep a scale beside each weight of a Linear: it counts for the names' keys too."""
    import comfy.sd
    from support.host.small_casts import error, ksample

    _, state = unet_file
    scaled = {"scaled_fp8": torch.zeros(0, dtype=E4M3)}
    for key, tensor in state.items():
        scaled[key] = tensor
        if tensor.ndim == 2:
            scale = tensor.float().abs().max() / 448
            scaled[key], scaled[key.replace(".weight", ".scale_weight")] = (tensor / scale).to(E4M3), scale
    small = comfy.sd.load_diffusion_model_state_dict(dict(scaled))
    unet, exact = small.model.diffusion_model, {}
    for key, tensor in state.items():
        module = unet.get_submodule(key.rpartition(".")[0])
        exact[key] = getattr(module, key.rpartition(".")[2]).float()
        if tensor.ndim == 2:  # what the layer does, however the host keeps it
            exact[key] = (module(torch.eye(tensor.shape[1])) - (0.0 if module.bias is None else module.bias.float())).T
            torch.testing.assert_close(
                exact[key], scaled[key].float() * scaled[key.replace(".weight", ".scale_weight")], rtol=1e-5, atol=1e-6
            )
    whole = float32_model(exact)
    for kind in ("text_to_weight", "patches"):
        model, positive, negative, _, adapter = applied(kind, small)
        found = ksample(model, positive, negative, **RUN)
        fine, positive, negative, *_ = applied(kind, whole, adapter)
        assert error(found, ksample(fine, positive, negative, **RUN), ksample(whole, positive, negative, **RUN)) < 1e-3
