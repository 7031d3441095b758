"""A picture depends on its prompt alone, not on what was run before it."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))


def test_ten_edits_and_re_runs_are_bit_for_bit_those_of_a_fresh_start(host, tmp_path):
    """Through the host's own server, two Apply nodes on one MODEL; newer hosts no longer copy what hangs on a MODEL
    when it is cloned.
    """
    import rerun
    from troupe_tools.engine.comfyui import usable_host
    from troupe_tools.errors import RunError

    try:
        usable = usable_host(host)
    except RunError as error:
        pytest.skip(str(error))
    base = tmp_path / "base"
    found = rerun.rerun(rerun.Stage(usable, base), rerun.ours())
    shutil.rmtree(base)
    assert len(found) == len(rerun.EDITS) == 10
    assert min(one.effect for one in found) > 1e-3, "an edit changes nothing, so nothing is tested"
    assert {one.edit: one.difference for one in found if one.difference} == {}
