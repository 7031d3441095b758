"""A region with several masks: picture i of a batch keeps to mask i, whole batches and parts of them."""

import inspect

import pytest
import torch
from troupe.model_patches.attention.merges import MERGES

pytestmark = pytest.mark.usefixtures("host")
HALF = torch.zeros(32, 32)
HALF[:, :16] = 1
MASKS = torch.stack([HALF, 1 - HALF, HALF.T])


def sampled(regions, batch, merge="uniform", change=None, seed=1):
    from support.host.small_casts import ksample, settings, stage

    st = stage()
    model, positive, negative = st.apply(st.references(len(regions), regions=regions), settings(merge, weight=1.0))
    if change is not None:
        model = change(model.clone())
    return ksample(model, positive, negative, batch=batch, seed=seed)


@pytest.mark.parametrize("merge", MERGES)
def test_each_picture_keeps_to_its_own_mask(merge):
    """The same as the picture of that mask alone, beside a subject with one mask for all and one without."""
    others = [HALF, None]
    found = sampled([MASKS, *others], 3, merge)
    for i, mask in enumerate(MASKS):
        alone = sampled([mask, *others], 3, merge)
        assert (found[i] - alone[i]).abs().max() < 1e-4 * alone.abs().max()
        assert all(
            (found[i] - sampled([wrong, *others], 3, merge)[i]).abs().max() > 1e-2
            for j, wrong in enumerate(MASKS)
            if j != i
        )


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_another_number_of_pictures_gets_the_union_and_is_told(batch, caplog):
    found = sampled([MASKS, None], batch)
    assert torch.equal(found, sampled([MASKS.amax(0), None], batch))
    said = [r.message for r in caplog.records if r.levelname == "WARNING"]
    pictures = "1 picture" if batch == 1 else f"{batch} pictures"
    assert said == [
        "Troupe: connect one mask for all pictures, or one for each: "
        f"the region of subject 1 ('subject 0') has 3 masks for a batch of {pictures}, so every picture "
        "gets their union."
    ]


class Windows:
    """A context handler, as the host asks it: a part of the batch in each prediction, said in AnimateDiff-Evolved's or
    in the host's own way.
    """

    def __init__(self, way):
        self.way = way

    def __call__(self, model):
        model.model_options["context_handler"] = self
        return model

    def should_use_context(self, *args):
        return True

    def execute(self, calculate, model, conds, x, t, options):
        from comfy.context_windows import IndexListContextWindow

        parts = []
        for numbers in ([2], [0, 1]):
            total = (
                {"total_frames": 3} if "total_frames" in inspect.signature(IndexListContextWindow).parameters else {}
            )
            said = (
                {"ad_params": {"sub_idxs": numbers}}
                if self.way == "AnimateDiff-Evolved"
                else {"context_window": IndexListContextWindow(numbers, dim=0, **total)}
            )
            part = {**options, "transformer_options": {**options["transformer_options"], **said}}
            parts.append(calculate(model, conds, x[numbers], t[numbers], part))
        return [torch.cat((rest, last)) for last, rest in zip(*parts, strict=True)]


@pytest.mark.parametrize("way", ["AnimateDiff-Evolved", "the host"])
def test_a_window_over_the_batch_takes_the_masks_of_its_pictures(way):
    whole = sampled([MASKS, None], 3)
    found = sampled([MASKS, None], 3, change=Windows(way))
    assert (found - whole).abs().max() < 1e-4 * whole.abs().max()


def test_pictures_that_another_pack_repeats_get_the_union(caplog):
    """Rows repeated inside the layers, as attention couple does: whose is whose is no longer told."""

    def couple(model):
        def more(q, k, v, options):
            return tuple(t.repeat_interleave(2, 0) for t in (q, k, v))

        def fewer(out, options):
            return out[::2]

        model.set_model_attn2_patch(more)
        model.set_model_attn2_output_patch(fewer)
        return model

    found = sampled([MASKS, None], 3, change=couple)
    assert torch.equal(found, sampled([MASKS.amax(0), None], 3, change=couple))
    assert sum("repeated the pictures of the batch" in r.message for r in caplog.records) == 1
