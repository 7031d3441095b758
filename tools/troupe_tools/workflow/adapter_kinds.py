"""The kind of adapter of a file, by its folder and name alone."""

from __future__ import annotations

import re

IP_ADAPTER, GLIGEN, MM_DIFF, UMM, SUBJECT_DIFFUSION = "ip_adapter", "gligen", "mm_diff", "umm", "subject_diffusion"


def kind_of(adapter: str) -> str:
    """Return the kind that a combo value says: IP_ADAPTER where nothing says another."""
    name = adapter.replace("\\", "/").lower()
    signs = {
        GLIGEN: "gligen",
        SUBJECT_DIFFUSION: "subject[_-]diffusion",
        UMM: "(?<![a-z])umm(?![a-z])",  # not 'summer' or 'dummy'
        MM_DIFF: "mm[_-]diff|adapter_weights|custom_weights",
    }
    return next((kind for kind, sign in signs.items() if re.search(sign, name)), IP_ADAPTER)
