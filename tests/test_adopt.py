"""Adapters that the trainer made for the rehearsal world: they are added to the shipped files and to their card."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from troupe.model_patches.checkpoints.files import read_state
from troupe.model_patches.errors import CheckpointError
from troupe.rehearsal import files
from troupe.rehearsal.training.adopt import ABOUT, adopt
from troupe.rehearsal.training.card import CARD, hash_lines, kept_rows
from troupe_tools.pack import ROOT

SHIPPED = ROOT / "rehearsal" / "files"


@pytest.fixture
def output(tmp_path):
    """The folder of a finished training of UMM-Diffusion."""
    save_file(
        {"mapping.layers.0.weight": torch.full((2, 2), 0.1)}, tmp_path / "umm_diffusion.safetensors", {"base": "x"}
    )
    ended(tmp_path, 500)
    (tmp_path / "umm_diffusion.safetensors").touch()
    return tmp_path


def ended(folder, step, of=500, processes=1):
    about = folder / "checkpoints" / f"step-{step:08}" / "training.json"
    about.parent.mkdir(parents=True)
    settings = {"recipe": {"name": "umm_diffusion"}, "training": {"steps": of, "batch": 2, "accumulation": 2}}
    about.write_text(json.dumps({"step": step, "processes": processes, "settings": settings}))


@pytest.fixture
def folder(tmp_path):
    """Shipped files: a card and two models."""
    found = tmp_path / "files"
    found.mkdir()
    (found / CARD).write_text((SHIPPED / CARD).read_text(encoding="utf-8"), encoding="utf-8")
    for name in (files.UNET, files.TEXTS):
        (found / name).write_bytes(name.encode())
    return found


def test_the_file_is_copied_in_half_precision_with_its_metadata(output, folder):
    path, _ = adopt(output, 12.0, folder)
    assert path.name == files.PROMPT_ADAPTERS["umm"]
    assert load_file(path)["mapping.layers.0.weight"].dtype == torch.float16
    with safe_open(path, "pt") as file:
        about = file.metadata()
    assert about["base"] == "x" and about["licence"] == "CC0-1.0" and "UMM-Diffusion" in about["about"]


def test_a_whole_unet_is_stored_as_int8_and_a_table_without_its_empty_rows(output, folder):
    (output / "umm_diffusion.safetensors").rename(output / "fastcomposer.safetensors")
    state = {"unet.conv_in.weight": torch.randn(4, 3, 3, 3), "postfuse_module.mlp.weight": torch.randn(4, 4)}
    table = f"clip_text.{files.TABLE}"
    save_file(state | {table: torch.eye(8, 5)}, output / "fastcomposer.safetensors")
    about = output / "checkpoints" / "step-00000500" / "training.json"
    about.write_text(about.read_text().replace("umm_diffusion", "fastcomposer"))
    (output / "fastcomposer.safetensors").touch()
    path, _ = adopt(output, 12.0, folder)
    stored, found = load_file(path), read_state(path)
    assert stored["unet.conv_in.weight"].dtype == torch.int8 and stored[table].shape == (5, 5)
    assert stored["postfuse_module.mlp.weight"].dtype == torch.float16
    assert torch.equal(found[table], torch.eye(8, 5).half())
    torch.testing.assert_close(found["unet.conv_in.weight"].float(), state["unet.conv_in.weight"], rtol=0, atol=0.02)


def test_the_card_lists_it_once_and_has_todays_hashes(output, folder):
    for minutes in (3.0, 12.0):
        path, card = adopt(output, minutes, folder)
    text = card.read_text(encoding="utf-8")
    [row] = [line for line in text.split("\n") if line.startswith(f"| {path.name} |")]
    assert row.endswith("| 2,000 | 12 |") and row in kept_rows(card)
    hashes = text.split("```\n")[1].strip().split("\n")
    assert hashes == hash_lines(folder) and len(hashes) == 3
    assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in hashes
    before = (SHIPPED / CARD).read_text(encoding="utf-8")
    assert text.split("## Accuracy")[1].split("## sha256")[0] == before.split("## Accuracy")[1].split("## sha256")[0]


def test_the_pictures_of_all_processes_count(output, folder):
    ended(output, 501, of=501, processes=2)
    (output / "umm_diffusion.safetensors").touch()
    assert "| 4,008 | 12 |" in adopt(output, 12.0, folder)[1].read_text(encoding="utf-8")


@pytest.mark.parametrize("case", ["no checkpoint", "not ended", "no file", "older file", "another recipe"])
def test_what_is_not_finished_is_refused(output, folder, case):
    if case == "no checkpoint":
        (output / "checkpoints" / "step-00000500" / "training.json").unlink()
    elif case == "not ended":
        ended(output, 600, of=900)
    elif case == "older file":  # of a run that was stopped
        os.utime(output / "umm_diffusion.safetensors", (1, 1))
    elif case == "no file":
        (output / "umm_diffusion.safetensors").unlink()
    else:
        about = output / "checkpoints" / "step-00000500" / "training.json"
        about.write_text(about.read_text().replace("umm_diffusion", "mm_diff"))
    with pytest.raises(CheckpointError, match="a finished training of ip_adapter or mip_adapter"):
        adopt(output, 1.0, folder)
    assert sorted(path.name for path in folder.iterdir()) == [CARD, files.TEXTS, files.UNET]


def test_the_shipped_card_lists_every_shipped_file():
    text = (SHIPPED / CARD).read_text(encoding="utf-8")
    assert text.split("```\n")[1].strip().split("\n") == hash_lines(SHIPPED)
    for path in SHIPPED.rglob("*.safetensors"):
        assert f"| {path.relative_to(SHIPPED).as_posix()} | " in text
    assert {kind for kind, _, _ in ABOUT.values()} == set(files.EVERY_ADAPTER)


def test_the_world_stays_small():
    """At most 40 MB (of 2^20 bytes)."""
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 40 * 2**20
