"""Our attention math and projections against the official MIP-Adapter code's stored outputs."""

import pytest
import torch
from support.golden_mip import FOLDER, LAYERS, Layer, fill, layer, normal, projections
from support.whole_heads import image_attention, relevance
from torch.nn.functional import linear, scaled_dot_product_attention
from troupe.model_patches.attention.decoupled import LayerTokens, image_delta
from troupe.model_patches.attention.merges import Mixing
from troupe.model_patches.attention.relevance import shares, text_gain
from troupe.model_patches.encoders.projections import FaceMLP, ImageProj, Resampler, resampler_module_name

HEADS = 3


def grouped(tensor: torch.Tensor) -> torch.Tensor:
    """[rows, ...] -> [rows, 1, ...]: every row is a group of its own, since `_batch2` gives every sample its own image
    tokens.
    """
    return tensor.unsqueeze(1)


def layer_tokens(g: Layer) -> LayerTokens:
    """Keys, values and name keys of a stored case, made with the stored weights."""
    ip, lengths = g["ip"], g.meta["token_lens"]
    entity = g["entity"].repeat_interleave(len(ip) // 2, 0)  # rows, M, 10, 40
    names = torch.cat([entity[:, i, 1 : 1 + n] for i, n in enumerate(lengths)], 1)  # rows, L, 40
    segments = torch.zeros(len(ip), len(lengths), sum(lengths))
    for i, n in enumerate(lengths):
        segments[:, i, sum(lengths[:i]) : sum(lengths[: i + 1])] = 1 / n
    keys, values = (linear(ip, fill(f"ip_adapter.1.{name}.weight", 24, 40)) for name in ("to_k_ip", "to_v_ip"))
    return LayerTokens(keys, values, linear(names, fill("attn2.to_k.weight", 24, 40)), segments)


def gain_logits(text: torch.Tensor) -> torch.Tensor:
    return linear(text, fill("ip_adapter.1.text_to_weight.weight", 1, 24)).squeeze(-1)


def merged(
    g: Layer, merge: str, trained: bool, dtype: torch.dtype = torch.float32, subjects: int | None = None
) -> torch.Tensor:
    """Z_text plus our delta, [rows, N, 24]; `subjects` keeps only the first few."""
    tokens, q, text = layer_tokens(g), grouped(g["q"]), grouped(g["z_text"])
    m = g.meta["objects"] if subjects is None else subjects
    each = tokens.keys.shape[1] // g.meta["objects"]
    kept = LayerTokens(
        tokens.keys[:, : m * each].to(dtype),
        tokens.values[:, : m * each].to(dtype),
        tokens.name_keys.to(dtype),
        tokens.segments[:, :m],
    )
    scale = g.meta["scale"]
    delta = image_delta(
        q.to(dtype),
        kept,
        torch.full((m,), scale),
        HEADS,
        Mixing(merge),
        None,
        text.to(dtype),
        gain_logits(text).to(dtype) if trained else None,
    )
    return (text + delta.float().flatten(-2)).flatten(0, 1)


def test_generator_matches_the_golden_files():
    import hashlib
    import json

    expected = json.loads((FOLDER / "index.json").read_text())["_fill_check"]
    assert hashlib.sha256(normal("ip_adapter.1.to_k_ip.weight", 8).numpy().tobytes()).hexdigest() == expected


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "free"])
def test_merged_output_is_the_official_one(name, trained):
    g = layer(name)
    kind = "trained" if trained else "free"
    torch.testing.assert_close(merged(g, "relevance", trained), g[f"{kind}.merged"], **g.tolerance)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "free"])
def test_paper_merge_is_the_papers_formula(name, trained):
    g = layer(name)
    kind = "trained" if trained else "free"
    torch.testing.assert_close(merged(g, "paper", trained), g[f"{kind}.paper_merged"], **g.tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_relevance_is_made_in_float32(dtype):
    """Over many positions a half precision softmax would lose most of its sum, and small shares their digits."""
    chance = torch.Generator().manual_seed(2)
    query, names = (torch.randn(1, *shape, 32, generator=chance).to(dtype) for shape in ((1, 16384), (3,)))
    a = relevance(query, names, torch.eye(3)[None], 2)
    logits = torch.einsum(
        "nhd,lhd->hln", query[0, 0].double().view(-1, 2, 16), (names[0].double() * 16**-0.5).view(-1, 2, 16)
    )
    assert a.dtype == torch.float32 and (a.sum(-1) - 1).abs().max() < 1e-4
    torch.testing.assert_close(a[0, 0].double(), logits.softmax(-1).mean(0), rtol=0.05, atol=1e-7)


@pytest.mark.parametrize("name", LAYERS)
def test_relevance_shares_and_text_gain(name):
    g = layer(name)
    tokens = layer_tokens(g)
    a = relevance(grouped(g["q"]), tokens.name_keys, tokens.segments, HEADS)
    torch.testing.assert_close(a.flatten(0, 1), g["relevance"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(a.sum(-1), torch.ones_like(a.sum(-1)))
    torch.testing.assert_close(shares(a).flatten(0, 1), g["share"], **g.tolerance)
    gain = text_gain(gain_logits(g["z_text"]))
    torch.testing.assert_close(gain, g["text_weight"], **g.tolerance)
    torch.testing.assert_close(gain.mean(-1), torch.ones(len(gain)))


@pytest.mark.parametrize("name", LAYERS)
def test_plain_ip_adapter_oracles(name):
    """One reference alone is plain IP-Adapter; `joint` is plain IP-Adapter with all tokens in one softmax."""
    g = layer(name)
    torch.testing.assert_close(merged(g, "add", False, subjects=1), g["ipa_first.merged"], **g.tolerance)
    torch.testing.assert_close(merged(g, "relevance", False, subjects=1), g["ipa_first.merged"], **g.tolerance)
    torch.testing.assert_close(merged(g, "joint", False), g["ipa_concat.merged"], **g.tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_add_and_uniform_are_sums_of_the_stored_image_branches(name):
    g = layer(name)
    total = g["z_img"].sum(1) * g.meta["scale"]
    torch.testing.assert_close(merged(g, "add", False), g["z_text"] + total, **g.tolerance)
    torch.testing.assert_close(merged(g, "uniform", False), g["z_text"] + total / g.meta["objects"], **g.tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [n for n in LAYERS if "sharp" not in n])
def test_half_precision_stays_close(name, dtype):
    g = layer(name)
    for kind in ("trained", "free"):
        found, expected = merged(g, "relevance", kind == "trained", dtype), g[f"{kind}.merged"]
        assert (found - expected).norm() / (expected - g["z_text"]).norm() < 2e-2


def test_text_attention_of_the_goldens_is_plain_attention():
    """The stored q, k_text, v_text are what a cross-attention patch receives: plain attention on them is z_text."""
    g = layer("layer_m2_6x10")
    q, k, v = (g[n].unflatten(-1, (HEADS, 8)).transpose(1, 2) for n in ("q", "k_text", "v_text"))
    torch.testing.assert_close(
        scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), g["z_text"], rtol=1e-4, atol=1e-4
    )


PROJECTIONS = {
    "image_proj_small": (lambda: ImageProj(64, 48, 4), (3, 64), 1e-4),
    "mlp_proj_small": (lambda: FaceMLP(64, 48), (2, 9, 64), 1e-4),
    "resampler_small": (
        lambda: Resampler(
            dim=64, depth=2, inner=64, tokens=6, embed_dim=56, context_dim=48, ff_inner=256, head_width=16
        ),
        (2, 33, 56),
        1e-4,
    ),
    "image_proj_sdxl": (lambda: ImageProj(1280, 2048, 4), (2, 1280), 1e-3),
    "resampler_sdxl": (
        lambda: Resampler(dim=1280, depth=4, inner=1280, tokens=16, embed_dim=1280, context_dim=2048, ff_inner=5120),
        (1, 257, 1280),
        1e-3,
    ),
    "resampler_sd15": (
        lambda: Resampler(dim=768, depth=4, inner=768, tokens=16, embed_dim=1280, context_dim=768, ff_inner=3072),
        (1, 257, 1280),
        1e-3,
    ),
}


@pytest.mark.parametrize("tag", PROJECTIONS)
def test_projection_is_the_official_one(tag):
    make, shape, tolerance = PROJECTIONS[tag]
    golden, module = projections(), make()
    published = {resampler_module_name(k): k for k in ["latents"]}
    state = {}
    for name, parameter in module.state_dict().items():
        original = published.get(name, name)
        value = fill(f"{tag}.{original}", *parameter.shape)
        state[name] = 1 + value if original.endswith("weight") and parameter.ndim == 1 else value
    module.load_state_dict(state)
    x = normal(f"{tag}/input", *shape)
    if f"{tag}.in" in golden:
        torch.testing.assert_close(x, golden[f"{tag}.in"])
    with torch.no_grad():
        torch.testing.assert_close(module(x), golden[f"{tag}.out"], rtol=tolerance, atol=tolerance)
        if f"{tag}.out_zero" in golden:
            torch.testing.assert_close(
                module(torch.zeros_like(x[:1])), golden[f"{tag}.out_zero"], rtol=tolerance, atol=tolerance
            )


def test_subjects_with_many_tokens_are_attended_to_one_by_one(monkeypatch):
    """Full-face files have 257 tokens a subject: the same sum, without a map of all positions times all tokens."""
    from troupe.model_patches.attention import decoupled

    g, b, n, m, each, c = 2, 3, 10, 3, 257, 24
    query, keys, values, weights = (
        torch.randn(g, b, n, c),
        torch.randn(g, m * each, c),
        torch.randn(g, m * each, c),
        torch.rand(g, b, m, n),
    )
    one_by_one = image_attention(query, keys, values, weights, HEADS)
    expected = torch.zeros(g, b, n, c)
    for i in range(m):
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(-3, -2)
            for x in (query, keys[:, None, i * each : (i + 1) * each], values[:, None, i * each : (i + 1) * each])
        )
        expected += (
            scaled_dot_product_attention(q, k.expand(-1, b, -1, -1, -1), v.expand(-1, b, -1, -1, -1))
            .transpose(-3, -2)
            .flatten(-2)
            * weights[:, :, i, :, None]
        )
    torch.testing.assert_close(one_by_one, expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(decoupled, "MANY_TOKENS", 10 * each)
    torch.testing.assert_close(image_attention(query, keys, values, weights, HEADS), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "matmul", None)  # the fused form
    torch.testing.assert_close(image_attention(query, keys, values, weights, HEADS), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("joint", [False, True], ids=["each", "joint"])
@pytest.mark.parametrize("columns", [None, torch.tensor([[True, True, True, False, True, False]])], ids=["all", "some"])
def test_a_large_map_is_computed_in_parts(joint, columns, monkeypatch):
    """On a CPU, where it would leave the cache: parts of 7 positions, the last of 2, give what the whole gives."""
    from troupe.model_patches.attention import decoupled

    query, keys, values, weights = (
        torch.randn(2, 3, 10, 24),
        torch.randn(2, 6, 24),
        torch.randn(2, 6, 24),
        torch.rand(2, 3, 2, 10),
    )
    whole, maps, matmul = image_attention(query, keys, values, weights, HEADS, joint, columns), [], torch.matmul
    monkeypatch.setattr(decoupled, "MAP", 2 * HEADS * 6 * 7)
    monkeypatch.setattr(torch, "matmul", lambda a, b: maps.append(matmul(a, b)) or maps[-1])
    torch.testing.assert_close(image_attention(query, keys, values, weights, HEADS, joint, columns), whole)
    assert [tuple(m.shape[-2:]) for m in maps[::2]] == [(6, 7)] * 4 + [(6, 2)]


def test_prepared_tokens_are_split_into_heads_once(monkeypatch):
    """Keys, values and names before the first step, in float32 and for one group of rows likewise; in every step the
    query alone.
    """
    from troupe.model_patches.attention import decoupled

    calls, original = [], decoupled.split_heads
    monkeypatch.setattr(decoupled, "split_heads", lambda x, heads: calls.append(tuple(x.shape)) or original(x, heads))
    tokens = decoupled.LayerTokens(
        torch.randn(2, 8, 24), torch.randn(2, 8, 24), torch.randn(2, 3, 24), torch.rand(2, 2, 3)
    )
    prepared = tokens.prepared(HEADS)
    for each in (lambda t: t, lambda t: t.float(), lambda t: t.group(1)):
        query = torch.randn(len(each(tokens).keys), 1, 10, 24)
        calls.clear()
        found = decoupled.image_delta(query, each(prepared), torch.ones(2), HEADS, Mixing())
        assert calls == [(len(query), 10, 24)]
        torch.testing.assert_close(found, decoupled.image_delta(query, each(tokens), torch.ones(2), HEADS, Mixing()))
