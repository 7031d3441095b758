"""ComfyUI's prompt notation.

The expected values are the host's own (tests/host/test_two_hosts.py compares with it at random).
"""

import pytest
from troupe.model_patches.prompt.emphasis import weighted_parts


@pytest.mark.parametrize(
    "prompt, parts",
    [
        ("", []),
        ("a red fox", [("a red fox", 1.0)]),
        ("(cat:1.2)", [("cat", 1.2)]),
        ("a (cat) here", [("a ", 1.0), ("cat", 1.1), (" here", 1.0)]),
        ("((cat))", [("cat", pytest.approx(1.21))]),
        ("((cat:1.5))", [("cat", 1.5)]),
        ("(a (cat) b:0.5)", [("a ", 0.5), ("cat", pytest.approx(0.55)), (" b", 0.5)]),
        ("(ratio 16:9:1.3)", [("ratio 16:9", 1.3)]),
        ("(note: red)", [("note: red", 1.1)]),
        (r"fox \(red\)", [("fox (red)", 1.0)]),
        (r"(fox \(red\):1.4)", [("fox (red)", 1.4)]),
        ("(never closed", [("(never closed", 1.0)]),
        ("closed) twice", [("closed) twice", 1.0)]),
        ("a:1.2", [("a:1.2", 1.0)]),
        ("()", []),
    ],
)
def test_parts_and_weights(prompt, parts):
    assert weighted_parts(prompt) == parts
