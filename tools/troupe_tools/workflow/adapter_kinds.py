"""The kind of adapter of a file, by its folder and name alone."""

from __future__ import annotations

IP_ADAPTER, GLIGEN, MM_DIFF, UMM, SUBJECT_DIFFUSION = "ip_adapter", "gligen", "mm_diff", "umm", "subject_diffusion"


def kind_of(adapter: str) -> str:
    """Return the kind that a combo value says: IP_ADAPTER where nothing says another."""
    name = adapter.replace("\\", "/").lower()
    signs = {
        GLIGEN: ("gligen",),
        SUBJECT_DIFFUSION: ("subject_diffusion", "subject-diffusion"),
        UMM: ("umm",),
        MM_DIFF: ("mm_diff", "mm-diff", "adapter_weights", "custom_weights"),
    }
    return next((kind for kind, parts in signs.items() if any(part in name for part in parts)), IP_ADAPTER)
