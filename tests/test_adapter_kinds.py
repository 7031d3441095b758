"""What the tools take a file for by its name, where they have no file to look into."""

import pytest
from troupe_tools.workflow.adapter_kinds import GLIGEN, IP_ADAPTER, MM_DIFF, SUBJECT_DIFFUSION, UMM, kind_of


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("ip-adapter-plus_sdxl_vit-h.safetensors", IP_ADAPTER),
        ("summer_ip.safetensors", IP_ADAPTER),
        ("dummy.safetensors", IP_ADAPTER),
        ("umm_diffusion.safetensors", UMM),
        ("my_UMM.pt", UMM),
        ("rehearsal/rehearsal_umm_diffusion.safetensors", UMM),
        ("portrait_generation\\unet_adapter_weights.bin", MM_DIFF),
        ("rehearsal/rehearsal_mm_diff.safetensors", MM_DIFF),
        ("subject-diffusion.pt", SUBJECT_DIFFUSION),
        ("gligen_sd14_textbox_pruned.safetensors", GLIGEN),
    ],
)
def test_a_kind_is_a_word_of_the_name(value, kind):
    assert kind_of(value) == kind
