"""The ways in which the families fuse subjects with a prompt, by name."""

from troupe.model_patches.families import fastcomposer, umm
from troupe.model_patches.families.mm_diff import layout as mm_diff
from troupe.model_patches.families.subject_diffusion import layout as subject_diffusion

FUSIONS = {
    "word": mm_diff.FUSION,
    "pseudo": umm.FUSION,
    "placeholder": subject_diffusion.FUSION,
    "postfuse": fastcomposer.FUSION,
}
