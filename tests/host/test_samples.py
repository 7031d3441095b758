"""The sample photos of the templates: in the host's input folder after the start, and never over a file that is
there.
"""

import asyncio

import pytest
import troupe
from PIL import Image
from troupe_tools.pack import ROOT

SAMPLES = ["troupe_astronaut.jpg", "troupe_cat.jpg"]


@pytest.fixture
def inputs(host, tmp_path, monkeypatch):
    """An input folder that is empty."""
    import folder_paths

    folder = tmp_path / "input"
    folder.mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(folder))
    return folder


def start():
    return asyncio.run(troupe.comfy_entrypoint())


def test_the_photos_are_there_after_the_start_and_the_host_lists_them(inputs):
    from nodes import LoadImage

    start()
    assert (
        sorted(path.name for path in inputs.iterdir())
        == SAMPLES
        == sorted(path.name for path in (ROOT / "samples").glob("*.jpg"))
    )
    assert LoadImage.INPUT_TYPES()["required"]["image"][0] == SAMPLES
    for name in SAMPLES:
        assert (inputs / name).read_bytes() == (ROOT / "samples" / name).read_bytes()
        assert LoadImage.VALIDATE_INPUTS(name) is True
        picture, _ = LoadImage().load_image(name)
        assert picture.shape[-1] == 3 and picture.shape[1:3] == Image.open(ROOT / "samples" / name).size[::-1]


def test_a_file_of_that_name_is_kept(inputs):
    (inputs / SAMPLES[0]).write_bytes(b"the user's own")
    (inputs / SAMPLES[1]).symlink_to(inputs / "not_there.jpg")
    start()
    assert (inputs / SAMPLES[0]).read_bytes() == b"the user's own"
    assert not (inputs / "not_there.jpg").exists(), "nothing is written through a link"


def test_an_input_folder_that_is_missing_or_read_only_does_no_harm(inputs, monkeypatch):
    import shutil

    inputs.rmdir()
    start()
    assert not inputs.exists()
    inputs.mkdir()

    def refuse(*_, **__):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(shutil, "copyfile", refuse)
    start()
    assert list(inputs.iterdir()) == []
