"""The warning of two subjects in one place, while the real host samples the rehearsal world."""

from __future__ import annotations

import logging

import pytest
import torch
from support.overlap_runs import CALM, ON_BOTH, run
from troupe_tools.pack import ROOT

WARNING = "in the same place"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(host):
    """(MODEL, CLIP, image encoder, adapter) of the shipped files."""
    from support.host.node_chains import run as run_node
    from troupe.nodes.rehearsal import LoadRehearsalModels
    from troupe.rehearsal import files

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(files, "FOLDER", ROOT / "rehearsal" / "files")
        model, clip, _, _, adapter, *_ = run_node(
            LoadRehearsalModels, adapter="mip_adapter", subject_1="cat", subject_2="robot", subject_3="bird"
        )
    return model, clip, adapter


def sampled(models, seed, sampler="euler", steps=20, latent=None, denoise=1.0, batch=1, **widgets):
    """The latent of a trial."""
    from support.host.node_chains import run as run_node
    from troupe.model_patches.attention.merges import Mixing
    from troupe.model_patches.binding.settings import ImageAttentionSettings
    from troupe.model_patches.hosts.comfyui.apply import apply_image_attention
    from troupe.nodes.encode_subjects import EncodeSubjects
    from troupe.rehearsal.engine.paint import CFG
    from troupe.rehearsal.engine.trials import cast_of, trial

    import nodes

    model, clip, adapter = models
    one = trial("two classes", seed)
    references = run_node(EncodeSubjects, adapter=adapter, cast=cast_of(one.figures), framing="auto", clip=clip)[0]
    prompts = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in (one.scene.caption, "")]
    settings = ImageAttentionSettings(1.0, Mixing(widgets.pop("merge", "relevance")), **widgets)
    model, positive, negative, _ = apply_image_attention(model, references, settings, *prompts)
    latent = latent or nodes.EmptyLatentImage().generate(128, 128, batch)[0]
    return nodes.common_ksampler(
        model, seed, steps, CFG, sampler, "simple", positive, negative, latent, denoise=denoise
    )[0]


@pytest.fixture
def said(caplog):
    """A function that returns the sentences about places since it was last called."""

    def sentences() -> list[str]:
        found = [record.message for record in caplog.records if WARNING in record.message]
        caplog.clear()
        return found

    with caplog.at_level(logging.WARNING, "troupe"):
        yield sentences


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_two_in_one_place_are_warned_of_once_a_run(models, said, sampler):
    sampled(models, ON_BOTH, sampler)
    [sentence] = said()
    assert "'small mug'" in sentence and "'small tree'" in sentence


def test_two_apart_are_not(models, said):
    sampled(models, CALM)
    assert said() == []


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_warning_comes_as_soon_as_the_next_step_begins(sampler, models, said, monkeypatch):
    """While there is time to stop the run, and not between two calls of one step."""
    from troupe.model_patches.hosts.comfyui.sampling.run import Run

    steps, original = [], Run.say

    def say(self, sentence, *args):
        if WARNING in sentence:
            steps.append(self.clock.finished)
        original(self, sentence, *args)

    monkeypatch.setattr(Run, "say", say)
    sampled(models, ON_BOTH, sampler)
    assert steps == [7]


def test_both_engines_see_the_same_overlap(models, monkeypatch):
    from troupe.model_patches.relevance.overlap_check import OverlapCheck
    from troupe.rehearsal.engine.paint import load_rehearsal

    seen, original = [], OverlapCheck.overlaps

    def overlaps(self):
        seen.append(original(self))
        return seen[-1]

    monkeypatch.setattr(OverlapCheck, "overlaps", overlaps)
    sampled(models, ON_BOTH)
    run(load_rehearsal(ROOT / "rehearsal" / "files"), ON_BOTH, lambda *told: None)
    ours, embedded = seen
    assert ours[0, 0, 1] > 0.8
    torch.testing.assert_close(ours, embedded, atol=1e-3, rtol=0)


def test_a_run_that_keeps_a_layout_is_not_looked_at(models, said):
    """An img2img run of low denoise: its layout is that of the picture."""
    latent = sampled(models, ON_BOTH)
    said()
    sampled(models, ON_BOTH, latent=latent, denoise=0.4)
    assert said() == []


def test_a_merge_that_computes_no_relevance_is_not_looked_at(models, said):
    sampled(models, ON_BOTH, merge="add")
    assert said() == []


def test_a_node_that_ends_before_the_third_is_not_looked_at(models, said):
    sampled(models, ON_BOTH, end_percent=0.1)
    assert said() == []


def test_a_batch_names_its_pictures(models, said):
    sampled(models, ON_BOTH, batch=2)
    found = said()
    assert any("in picture 1 of the batch" in sentence for sentence in found) and len(found) <= 2


def test_the_latent_stays_the_same(models, said, monkeypatch):
    from troupe.model_patches.hosts.comfyui.sampling import image_attention

    watched = sampled(models, ON_BOTH)["samples"]
    monkeypatch.setattr(image_attention, "check_of_call", lambda *args: None)
    assert torch.equal(watched, sampled(models, ON_BOTH)["samples"]) and len(said()) == 1
