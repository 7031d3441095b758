"""A picture depends on its prompt alone, not on what was run before it."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))


def at_once(*numbers: int):
    """Some of the benchmark's edits as one: a fresh start for each would take a minute."""
    import rerun

    chosen = [rerun.EDITS[number] for number in numbers]
    return ", ".join(said for said, _ in chosen), lambda prompt: [edit(prompt) for _, edit in chosen]


def test_edits_and_re_runs_are_bit_for_bit_those_of_a_fresh_start(host, tmp_path):
    """Through the host's own server, two Apply nodes on one MODEL; newer hosts no longer copy what hangs on a MODEL
    when it is cloned. All ten edits: the second node's weight and the seed alone, the others at once, each set back.
    """
    import rerun
    from troupe_tools.engine.comfyui import usable_host
    from troupe_tools.errors import RunError

    try:
        usable = usable_host(host)
    except RunError as error:
        pytest.skip(str(error))
    edits = [*rerun.EDITS[:4], at_once(4, 6, 8), at_once(5, 7, 9)]
    base = tmp_path / "base"
    found = rerun.rerun(rerun.Stage(usable, base), rerun.ours(), edits)
    shutil.rmtree(base)
    assert len(rerun.EDITS) == 10 and [one.edit for one in found] == [said for said, _ in edits]
    assert min(one.effect for one in found) > 1e-3, "an edit changes nothing, so nothing is tested"
    assert {one.edit: one.difference for one in found if one.difference} == {}
