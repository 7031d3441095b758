"""Gated adapters on the real host: sampled latents equal an evaluation that uses no hook."""

import pytest
import torch
from support.host.independent_gated_runs import check

pytestmark = pytest.mark.usefixtures("host")


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("base", ["SD15", "SD20", "SDXL"])
def test_kinds_counts_and_bases(kind, count, base):
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind, base)
    check(st, st.references(count), GatedSettings())


@pytest.mark.parametrize("kind", ["text_image", "patches"])
@pytest.mark.parametrize("size", [(8, 8), (6, 10), (13, 21)])
def test_sizes_and_batches(kind, size):
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind)
    check(st, st.references(2), GatedSettings(), size, batch=4)


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_eight_heads_where_objects_are_768_wide(kind):
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind, context=768)
    check(st, st.references(2), GatedSettings(), (8, 8))


@pytest.mark.parametrize("kind", ["text", "text_image", "patches"])
def test_without_cfg_and_without_a_wired_negative(kind):
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind)
    check(st, st.references(2), GatedSettings(), cfg=1.0)
    check(st, st.references(2), GatedSettings(), negative=False)


@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_weights_and_ranges_of_subjects(kind):
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage(kind)
    check(st, st.references(3, weights=[1.0, 0.4, 1.7]), GatedSettings())
    check(st, st.references(3, weights=[1.0, 0.0, 1.7]), GatedSettings())
    check(st, st.references(2, ranges=[(0.0, 0.45), (0.2, 1.0)]), GatedSettings(), steps=5)


@pytest.mark.parametrize(("end", "decay"), [(0.3, 0.0), (0.0, 0.0), (0.25, 0.5), (0.5, 0.5), (0.0, 1.0)])
@pytest.mark.parametrize("kind", ["text_image", "patches"])
def test_scheduled_sampling(kind, end, decay):
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st, settings = gated_stage(kind), GatedSettings(0.8, end, decay)
    if end == decay == 0.0:
        assert torch.equal(
            ksample(*st.apply(st.references(2), settings), steps=5),
            ksample(st.patcher, st.positive, st.negative, steps=5),
        )
    else:
        check(st, st.references(2), settings, steps=5)


def test_features_that_are_not_there():
    from support.host.small_gated_casts import BOXES, gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage()
    check(
        st,
        st.references(4, boxes=[*BOXES, None], texts=[True, False, True, False], images=[True, True, False, True]),
        GatedSettings(),
    )
    check(st, st.references(2, boxes=[None, BOXES[0]]), GatedSettings())


@pytest.mark.parametrize("use_bbox", ["auto", "on", "off"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("placed", [True, False])
def test_use_bbox(use_bbox, count, placed):
    from support.host.small_gated_casts import BOXES, gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage("patches")
    check(
        st,
        st.references(count, boxes=[*BOXES[: count - 1], BOXES[0] if placed else None]),
        GatedSettings(use_bbox=use_bbox),
        (10, 12),
    )


def test_a_subject_of_weight_0_does_not_count_for_auto():
    """Two subjects of which one is switched off are a single one, whose photo tokens do not know their box."""
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import BOXES, gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage("patches")

    def picture(use_bbox, weights):
        return ksample(
            *st.apply(st.references(2, boxes=BOXES[:2], weights=weights), GatedSettings(use_bbox=use_bbox)),
            size=(10, 12),
            steps=1,
        )

    one = [1.0, 0.0]
    assert torch.equal(picture("auto", one), picture("off", one)) and not torch.equal(
        picture("auto", one), picture("on", one)
    )
    assert torch.equal(picture("auto", [1.0, 1.0]), picture("on", [1.0, 1.0]))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2"])
def test_decay_with_samplers_that_call_twice_a_step(sampler, monkeypatch):
    """The first call of a step has the step's own percent, further calls that of the next step."""
    import comfy.samplers
    from support.host.guider_schedules import percent_of
    from support.host.small_casts import ksample
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings
    from troupe.model_patches.hosts.comfyui.sampling.gated import GatedAdapter

    seen, original = [], GatedAdapter.strengths

    def spy(self, run, model_sampling, sigma):
        found = original(self, run, model_sampling, sigma)
        seen.append((float(sigma[0]), found.scale if found else 0.0))
        return found

    monkeypatch.setattr(GatedAdapter, "strengths", spy)
    st, (end, decay), steps = gated_stage(), (0.25, 0.5), 5
    ksample(*st.apply(st.references(2), GatedSettings(0.8, end, decay)), steps=steps, sampler=sampler)
    sigmas = comfy.samplers.KSampler(st.patcher, steps, "cpu", sampler, "normal", 1.0).sigmas.tolist()
    expected, step = [], 0
    for sigma, _ in seen:
        first = abs(sigma - sigmas[step]) < 1e-5 and not (expected and expected[-1][0] == step)
        at = step if first else step + 1
        expected.append((step, 0.8 * min(max(1.0 - (percent_of(st.patcher, sigmas[at]) - end) / decay, 0.0), 1.0)))
        step += 1 if not first or sampler == "euler" or step == steps - 1 else 0
    assert len(seen) == (steps if sampler == "euler" else 2 * steps - 1) and any(0 < scale < 0.8 for _, scale in seen)
    assert [scale for _, scale in seen] == pytest.approx([scale for _, scale in expected], abs=1e-4)


def test_thirty_slots():
    from support.host.small_gated_casts import gated_stage
    from troupe.model_patches.binding.settings import GatedSettings

    st = gated_stage()
    check(st, st.references(30), GatedSettings(), (8, 8))
