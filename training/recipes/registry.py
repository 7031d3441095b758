"""Every recipe by its name."""

from __future__ import annotations

from typing import cast

from . import fastcomposer, ip_adapter, mip_adapter, mm_diff, subject_diffusion, umm_diffusion
from .recipe import Recipe

RECIPES = cast(
    "dict[str, Recipe]",
    {
        "ip_adapter": ip_adapter,
        "mip_adapter": mip_adapter,
        "umm_diffusion": umm_diffusion,
        "fastcomposer": fastcomposer,
        "mm_diff": mm_diff,
        "subject_diffusion": subject_diffusion,
    },
)


def options() -> dict[str, type]:
    """Return the dataclass of each recipe's options."""
    return {name: recipe.Options for name, recipe in RECIPES.items()}
