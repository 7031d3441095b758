"""Same shape is not same file: what the loader says about a file's origin."""

import hashlib
import os

from troupe.model_patches.checkpoints import catalogue, hashes


def test_a_file_is_the_published_one_by_its_sha256_only(tmp_path, monkeypatch):
    file = tmp_path / "renamed.bin"
    file.write_bytes(b"weights" * 1000)
    row = catalogue.PublishedFile(
        "model_sdxl.bin",
        "ipadapter",
        "link",
        "7 kB",
        "SDXL",
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        family="mip_adapter",
    )
    monkeypatch.setattr(catalogue, "ADAPTERS", (row,))
    assert catalogue.identity(file, "mip_adapter") == "the published model_sdxl.bin"
    other = tmp_path / "model_sdxl.bin"
    other.write_bytes(b"weights" * 999)
    assert catalogue.identity(other, "mip_adapter") == "known by its shapes only"


def test_families_without_a_published_sha256_are_not_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "sha256_of", lambda *a: 1 / 0)
    file = tmp_path / "a.safetensors"
    file.touch()
    assert catalogue.identity(file, "ip_adapter") == "known by its shapes only"


def test_a_file_is_hashed_once_for_each_state(tmp_path, monkeypatch):
    file, opened = tmp_path / "a.safetensors", []

    def noted(*given):
        opened.append(given)
        return open(*given)

    monkeypatch.setattr(hashes, "open", noted, raising=False)
    file.write_bytes(b"weights")
    assert {hashes.sha256_of(file), hashes.sha256_of(str(file))} == {hashlib.sha256(b"weights").hexdigest()}
    assert len(opened) == 1
    file.write_bytes(b"changed")
    os.utime(file, ns=(1, 1))
    assert hashes.sha256_of(file) == hashlib.sha256(b"changed").hexdigest()
    file.write_bytes(b"longer than before")
    os.utime(file, ns=(1, 1))
    assert hashes.sha256_of(file) == hashlib.sha256(b"longer than before").hexdigest()
