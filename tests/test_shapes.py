"""The shapes in the annotations of model_patches/attention hold at every call that the tests of the maths make."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from troupe_tools.pack import ROOT

pytest.importorskip("jaxtyping")
pytest.importorskip("beartype")
TESTS = ROOT / "tests"
MATHS = (
    "test_golden_mip.py",
    "test_golden_mm_diff.py",
    "test_golden_subject_diffusion.py",
    "test_limits.py",
    "test_relevance_maps.py",
)
WRONG = """
import pytest, torch
from support import checked_shapes
from troupe.model_patches.attention.decoupled import LayerTokens, image_delta
from troupe.model_patches.attention.heads import split_heads
from troupe.model_patches.attention.merges import Mixing
from troupe.model_patches.attention.relevance import background_gain
from jaxtyping import TypeCheckError

query, tokens = torch.zeros(1, 1, 6, 8), LayerTokens(torch.zeros(1, 4, 8), torch.zeros(1, 4, 8))
strengths, mixing = torch.ones(2), Mixing("add")
image_delta(query, tokens, strengths, 2, mixing, torch.ones(1, 1, 2, 6))
for wrong in (
    lambda: image_delta(query[0], tokens, strengths, 2, mixing),
    lambda: image_delta(query, tokens, strengths[None], 2, mixing),
    lambda: image_delta(query, tokens, strengths, 2, mixing, torch.ones(1, 1, 2, 5)),
    lambda: image_delta(query, tokens, strengths, 2, mixing, torch.ones(1, 1, 3, 6)),
    lambda: LayerTokens(torch.zeros(1, 4, 8), torch.zeros(1, 5, 8)),
    lambda: split_heads(torch.zeros(1, 4, 2, 4), 2),
    lambda: background_gain(torch.ones(6), 0.5),
):
    with pytest.raises(TypeCheckError):
        wrong()
"""


def run(*command: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join(map(str, (TESTS, ROOT / "tools")))
    environment = {**os.environ, "PYTHONPATH": paths}
    return subprocess.run([sys.executable, *command], cwd=TESTS, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_wrong_shapes_are_found():
    made = run("-c", WRONG)
    assert made.returncode == 0, made.stderr


@pytest.mark.slow
def test_the_maths_keeps_to_its_shapes():
    made = run("-m", "pytest", "-q", "-p", "support.checked_shapes", "-p", "no:cacheprovider", *MATHS)
    assert made.returncode == 0, made.stdout[-5000:]
