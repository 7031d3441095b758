"""Whose a conditioning entry is: told by the guider's lists, whatever other nodes make of texts and entries in
the run.
"""

import dataclasses

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")


@pytest.fixture
def seen(monkeypatch):
    """(list index, role, area) of every row of every model call, in order."""
    from troupe.model_patches.hosts.comfyui.sampling.image_attention import ImageAttention

    rows, original = [], ImageAttention.apply_model

    def spy(self, executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        table = getattr(transformer_options["troupe"].get(self.id), "table", {})
        found = [
            (index, table.get((index, uuid)))
            for index, uuid in zip(transformer_options["cond_or_uncond"], transformer_options["uuids"], strict=True)
        ]
        rows.extend((index, chunk and chunk.role, chunk and chunk.area) for index, chunk in found)
        return original(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    monkeypatch.setattr(ImageAttention, "apply_model", spy)
    return rows


def in_area(conditioning, x=32, width=64):
    import nodes

    return nodes.ConditioningSetArea().append(conditioning, width, 64, x, 0, 1.0)[0]


def rewrites(model):
    """A clone whose texts are exchanged for equal ones at every prediction, as packs do that slice prompts by
    frames.
    """
    from comfy.patcher_extension import WrappersMP

    def rewrite(executor, model, conds, x, t, options):
        def renewed(entry):
            text = entry["model_conds"]["c_crossattn"]
            return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": text._copy_with(text.cond.clone())}}

        return executor(
            model,
            [None if entries is None else [renewed(entry) for entry in entries] for entries in conds],
            x,
            t,
            options,
        )

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "rewrites", rewrite)
    return model


@pytest.mark.parametrize("wired", [True, False], ids=["wired", "unwired"])
def test_one_text_encode_wired_to_both(wired, seen):
    """The positive is an area of the conditioning that is the negative too: the same as with equal copies of it."""
    from support.host.small_casts import ksample, settings, stage
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention

    st = stage()
    text, copied = st.positive, [[st.positive[0][0].clone(), dict(st.positive[0][1])]]
    found = []
    for negative in (text, copied):
        seen.clear()
        model, positive, given, _ = apply_image_attention(
            st.patcher, st.references(2), settings(weight=1.0), in_area(text), negative if wired else None
        )
        found.append(ksample(model, positive, given or negative, steps=1, size=(16, 16)))
        area = (8, 8, 0, 4)
        assert sorted(seen, key=str) == [(0, "cond", area), (1, "uncond", area), (1, "uncond", None)]
    assert torch.equal(*found)


@pytest.mark.parametrize("wired", [True, False], ids=["wired", "drop-in"])
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
def test_texts_that_another_pack_exchanges(first, wired):
    """Equal texts in new tensors, with areas that the host copies from list to list: bit-identical."""
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    st.positive = in_area(st.positive, 0) + in_area([[st.positive[0][0] * 0.5, {}]], 64)
    references, chosen = st.references(2), settings(weight=1.0)
    expected = ksample(*st.apply(references, chosen, wired), steps=1, size=(16, 16))
    plain = ksample(st.patcher, st.positive, st.negative, steps=1, size=(16, 16))
    if first:
        st.patcher = rewrites(st.patcher)
    model, positive, negative = st.apply(references, chosen, wired)
    found = ksample(model if first else rewrites(model), positive, negative, steps=1, size=(16, 16))
    assert torch.equal(found, expected) and (expected - plain).abs().max() > 1e-2


def test_exchanged_texts_of_a_delayed_prompt():
    """Each step has the same texts as without the other pack, in the area of the other list too."""
    from comfy.patcher_extension import WrappersMP
    from support.host import tiny_models
    from support.host.small_casts import ksample
    from support.host.small_prompt_casts import prompt
    from troupe.model_patches.hosts.comfyui.sampling.prompt_switch import PromptSwitch

    def texts(model, positive, negative):
        found = []

        def note(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
            found.append((float(t[0]), sorted(c_crossattn[:, 0, 0].tolist())))
            return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

        model = model.clone()
        PromptSwitch().attach(model)
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "note", note)
        ksample(model, positive, negative, size=(8, 8), steps=4)
        return found

    model = tiny_models.micro_model("SD15", context_dim=64)
    positive, negative = prompt(start_step=2)
    for lists in ((positive, negative), (positive, in_area(negative, 0, 32)), (in_area(positive, 0, 32), negative)):
        alone = texts(model, *lists)
        assert alone == texts(rewrites(model), *lists) and len({row for _, rows in alone for row in rows}) == 3


@pytest.mark.parametrize("wired", [True, False], ids=["wired", "drop-in"])
def test_perp_negs_empty_prompt_shows_no_subject(wired, seen):
    """The node on the MODEL wire makes an entry that is in no list of the guider; drop-in it gives the picture of
    Perp-Neg's guider.
    """
    import comfy.samplers
    from comfy_extras.nodes_perpneg import PerpNeg, PerpNegGuider
    from support.host import tiny_models
    from support.host.small_casts import ksample, noise_of, settings, stage

    st, empty = stage(), tiny_models.random_cond(77, 64, seed=5)
    model, positive, negative = st.apply(st.references(2), settings(weight=1.0), wired)
    found = ksample(PerpNeg.execute(model, empty, 1.0).result[0], positive, negative, steps=1)
    assert sorted(seen, key=str) == [(0, "cond", None), (0, "uncond", None), (1, "uncond", None)]
    if not wired:
        guider = PerpNegGuider.execute(model, positive, negative, empty, 5.0, 1.0).result[0]
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
        expected = guider.sample(
            noise_of(), torch.zeros(1, 4, 8, 8), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True
        )
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_without_a_run_the_first_list_is_the_positive():
    """A sampler that calls the prediction itself: entries copied from list to list are still told apart, by where they
    stand earliest.
    """
    from troupe.model_patches.hosts.comfyui.sampling.conditioning import Lists, Roles

    def entry(uuid, text, area=None):
        return {"uuid": uuid, "model_conds": {"c_crossattn": text}, **({"area": area} if area else {})}

    area = (4, 4, 0, 0)
    positive, negative = [entry("p", 1, area)], [entry("n", 2), entry("p", 2, area)]
    roles = {row: chunk.role for row, chunk in Roles("id", False, False, Lists()).table([positive, negative]).items()}
    assert roles == {(0, "p"): "cond", (1, "n"): "uncond", (1, "p"): "uncond"}
    (_, lent, _), (_, other, _) = Lists().split([positive, negative])
    assert lent == [] and [(entry["uuid"], source["uuid"]) for entry, source in other] == [("p", "n")]


def test_entries_that_another_pack_puts_into_the_guider_in_the_run():
    """Their list is looked up in the guider as it is now."""
    from troupe.model_patches.hosts.comfyui.sampling.conditioning import Lists, Roles

    @dataclasses.dataclass
    class Guider:
        conds: dict

    guider = Guider({"positive": [{"uuid": "a"}], "negative": [{"uuid": "b"}]})
    lists = Lists.of(guider)
    guider.conds = {"positive": [{"uuid": "new"}], "negative": [{"uuid": "b"}]}
    table = Roles("id", False, False, lists).table([[{"uuid": "new"}], [{"uuid": "b"}], [{"uuid": "nobody's"}]])
    assert {row: chunk.role for row, chunk in table.items()} == {
        (0, "new"): "cond",
        (1, "b"): "uncond",
        (2, "nobody's"): "uncond",
    }


# ---- model calls that another pack makes in another form -------------------------------------------------------------


def apart(apply_model, args):
    """The chunks of a call one after the other, in calls that still claim to hold all of them."""
    n, given = len(args["cond_or_uncond"]), args["c"]
    parts = [
        {key: value.chunk(n)[k] if isinstance(value, torch.Tensor) else value for key, value in given.items()}
        for k in range(n)
    ]
    return torch.cat(
        [
            apply_model(x, t, **part)
            for x, t, part in zip(args["input"].chunk(n), args["timestep"].chunk(n), parts, strict=True)
        ]
    )


def apart_in_tiles(apply_model, args):
    """The same, each chunk as two halves of the picture in one call: as many rows as the host's own call."""
    n, given, found = len(args["cond_or_uncond"]), args["c"], []
    for x, t, text in zip(
        args["input"].chunk(n), args["timestep"].chunk(n), given["c_crossattn"].chunk(n), strict=True
    ):
        halves = apply_model(torch.cat(x.chunk(2, -2)), t.repeat(2), **{**given, "c_crossattn": text.repeat(2, 1, 1)})
        found.append(torch.cat(halves.chunk(2), -2))
    return torch.cat(found)


@pytest.mark.parametrize("way", [apart, apart_in_tiles])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("kind", ["attention", "gated"])
def test_rows_that_run_apart_unsaid_are_left_alone_and_told(kind, batch, way, caplog):
    """Never the other's role: the picture without the node, and one warning."""
    from support.host.small_casts import ksample, settings, stage
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = stage() if kind == "attention" else gated_stage("text", "SD15")
    chosen = settings(weight=1.0) if kind == "attention" else GatedSettings()
    model, *conds = st.apply(st.references(2), chosen)
    wrapped, plain = model.clone(), st.patcher.clone()
    for patcher in (wrapped, plain):
        patcher.set_model_unet_function_wrapper(way)
    found = ksample(wrapped, *conds, batch=batch, steps=1)
    assert torch.equal(found, ksample(plain, st.positive, st.negative, batch=batch, steps=1)) and not torch.equal(
        found, ksample(model, *conds, batch=batch, steps=1)
    )
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "splits the batch of a model call, so rows cannot be matched to prompts" in said[0]


@pytest.mark.parametrize("batch", [1, 2])
def test_pictures_that_run_apart_with_one_role_keep_it(batch):
    """At cfg 1 a call has one chunk: whichever of its rows come, they are the positive's."""
    from support.host.small_casts import ksample, settings, stage

    def one_by_one(apply_model, args):
        rows = zip(args["input"].split(1), args["timestep"].split(1), args["c"]["c_crossattn"].split(1), strict=True)
        return torch.cat([apply_model(x, t, **{**args["c"], "c_crossattn": text}) for x, t, text in rows])

    st = stage()
    model, *conds = st.apply(st.references(2), settings(weight=1.0))
    wrapped = model.clone()
    wrapped.set_model_unet_function_wrapper(one_by_one)
    found, expected = (ksample(m, *conds, batch=batch, steps=1, cfg=1.0) for m in (wrapped, model))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
