"""Machines without CUDA, also those with a driver that must not be woken: nothing of ours asks for it."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("host")


@pytest.mark.parametrize("kind", ["text_to_weight", "mm_diff", "text_image", "patches"])
def test_sampling_starts_no_cuda(kind, monkeypatch):
    from support.host.applied_kinds import applied, micro
    from support.host.small_casts import ksample
    from troupe.model_patches.hosts.comfyui.sampling.record import record_relevance

    asked = []

    def wake():
        asked.append(kind)
        raise AssertionError("CUDA was started")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "_lazy_init", wake)
    model, positive, negative, *_ = applied(kind, micro(kind))
    if kind == "text_to_weight":
        model, _ = record_relevance(model, "all")
    assert torch.isfinite(ksample(model, positive, negative, size=(8, 8))).all() and not asked
