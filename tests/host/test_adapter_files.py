"""The choices of `adapter_name` and `clip_vision_name`: file names as in the folders, values of older workflows, and
folders in which nothing is yet.
"""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from support import published_layouts as published
from troupe.model_patches.errors import CheckpointError

BIGG, H = (1664, 1280), (1280, 1024)


@pytest.fixture
def folders(host, tmp_path, monkeypatch):
    """A models folder that is empty, with the host's lists over it."""
    import folder_paths
    import troupe.nodes  # noqa: F401 - registers the folders of the other tests, which must not happen in the lists below
    from troupe.model_patches.hosts.comfyui.loading import adapters

    kept = {
        name: value
        for name, value in folder_paths.folder_names_and_paths.items()
        if name not in (*adapters.FOLDERS, "clip_vision")
    }
    monkeypatch.setattr(
        folder_paths,
        "folder_names_and_paths",
        {**kept, "clip_vision": ([str(tmp_path / "clip_vision")], set(folder_paths.supported_pt_extensions))},
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    (tmp_path / "clip_vision").mkdir()
    adapters.register_folders()
    return tmp_path


def put(path: Path, state=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state or {"x": torch.zeros(1)}, path)
    return path


def test_the_folders_are_there_after_the_first_start(folders):
    assert sorted(path.name for path in folders.iterdir()) == ["clip_vision", "gligen", "ipadapter", "subject_adapters"]


def test_a_models_folder_that_cannot_be_written_to_does_no_harm(folders, monkeypatch):
    import os

    from troupe.model_patches.hosts.comfyui.loading import adapters

    def refuse(*_, **__):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(os, "makedirs", refuse)
    adapters.register_folders()


def test_an_empty_list_says_what_to_download(folders):
    from troupe.model_patches.hosts.comfyui.loading import adapters
    from troupe.nodes.load_adapter import LoadAdapter

    first = adapters.adapter_names()[0]
    assert first == "(no adapter file yet)"
    sentence = LoadAdapter.validate_inputs(first, "auto")
    assert sentence.startswith("Expected an adapter file, found none in models/ipadapter")
    assert (
        "https://huggingface.co/h94/IP-Adapter/resolve/main/sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"
        in sentence
        and "press R" in sentence
    )
    assert "template 1" in sentence, "the way to a picture without a download"
    put(folders / "ipadapter" / "a.safetensors")
    assert adapters.adapter_names()[0] == "a.safetensors"
    assert LoadAdapter.validate_inputs(first, "auto").endswith("Choose one in 'adapter_name'."), (
        "the front end keeps the value when the list is filled"
    )


def test_choices_are_paths_in_their_folder_and_older_values_are_read(folders):
    from troupe.model_patches.hosts.comfyui.loading import adapters

    places = (
        "ipadapter/a.safetensors",
        "ipadapter/mine/b.safetensors",
        "gligen/c.safetensors",
        "subject_adapters/a.safetensors",
    )
    paths = [put(folders / place) for place in places]
    listed = [name for name in adapters.adapter_names() if not name.startswith("rehearsal/")]
    assert listed == ["a.safetensors", "mine/b.safetensors", "c.safetensors", "subject_adapters/a.safetensors"]
    names = {
        "a.safetensors": 0,
        "mine/b.safetensors": 1,
        "mine\\b.safetensors": 1,
        "c.safetensors": 2,  # as listed
        # as saved before
        "ipadapter/a.safetensors": 0,
        "ipadapter\\mine\\b.safetensors": 1,
        "gligen/c.safetensors": 2,
        "subject_adapters/a.safetensors": 3,
    }
    for name, place in names.items():
        assert Path(adapters.adapter_path(name)) == paths[place] and adapters.invalid_names(name) is None
    assert adapters.fingerprint("a.safetensors") == adapters.fingerprint("ipadapter/a.safetensors"), (
        "the same file is the same adapter"
    )
    anywhere = "Put it into models/ipadapter, models/gligen or models/subject_adapters, or"
    for name, advice in (
        ("gligen/a.safetensors", "Put it into models/gligen, or"),
        ("umm_mapping.safetensors", anywhere),
    ):
        with pytest.raises(CheckpointError, match=advice):
            adapters.adapter_path(name)


def test_folders_within_folders_are_no_riddle(folders):
    """Each file has one value, and a value of an older workflow is the file that it was."""
    from troupe.model_patches.hosts.comfyui.loading import adapters

    places = (
        "ipadapter/x.safetensors",
        "ipadapter/ipadapter/x.safetensors",
        "gligen/x.safetensors",
        "ipadapter/gligen/x.safetensors",
    )
    paths = {place: put(folders / place) for place in places}
    names = [name for name in adapters.adapter_names() if not name.startswith("rehearsal/")]
    assert len(names) == 4 and {Path(adapters.adapter_path(name)) for name in names} == set(paths.values())
    assert all(Path(adapters.adapter_path(place)) == path for place, path in paths.items())


def encoder(adapters, name):
    """The file that an adapter for ViT-H's penultimate states would read with this choice."""
    from unittest import mock

    from troupe.model_patches.adapter import AdapterSpec, EncoderNeed, PhotoSpec

    read = AdapterSpec("ip_adapter", "x", 768, (PhotoSpec(EncoderNeed("penultimate", 1280)),))
    with (
        mock.patch.object(adapters.rehearsal_models, "is_read_by", lambda spec: False),
        mock.patch.object(adapters, "check_image_encoder"),
        mock.patch.object(adapters, "_load_clip_vision", lambda path, *_: Path(path).name),
    ):
        return adapters.HostAdapter(read, "x", None, None, name).clip_vision()


def test_a_published_encoder_is_read_under_whatever_name_it_was_saved(folders):
    """The name that the templates have is what front ends offer for download; who has the file under another name needs
    no second one.
    """
    from troupe.model_patches.hosts.comfyui.loading import adapters

    name = "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors"
    assert adapters.invalid_names(None, name) is None and encoder(adapters, name) is None
    put(folders / "clip_vision" / "bigG.safetensors", {k: v.half() for k, v in published.vision_encoder(*BIGG).items()})
    put(folders / "clip_vision" / "model.safetensors", {k: v.half() for k, v in published.vision_encoder(*H).items()})
    assert encoder(adapters, name) == encoder(adapters, "auto") == "model.safetensors"
    put(folders / "clip_vision" / name, {k: v.half() for k, v in published.vision_encoder(*H).items()})
    put(folders / "clip_vision" / "a.safetensors", {k: v.half() for k, v in published.vision_encoder(*H).items()})
    assert encoder(adapters, name) == encoder(adapters, "auto") == name, "a published name first"
    assert encoder(adapters, "a.safetensors") == "a.safetensors"
    assert "no 'gone.safetensors'" in adapters.invalid_names(None, "gone.safetensors")
    adapter, encoder_line = adapters.invalid_names("lost.safetensors", "gone.safetensors").splitlines()
    assert "adapter file 'lost.safetensors'" in adapter and "no 'gone.safetensors'" in encoder_line


def test_quick_subjects_hands_on_its_encoder(folders, monkeypatch):
    from unittest import mock

    from troupe.model_patches.hosts.comfyui import quick
    from troupe.nodes.quick_subjects import QuickSubjects

    put(folders / "ipadapter" / "a.safetensors")
    loaded, clip = mock.Mock(side_effect=lambda name, vision: mock.Mock(vision=vision)), mock.Mock()
    monkeypatch.setattr(quick, "load_adapter", loaded)
    monkeypatch.setattr(quick, "encode_references", lambda adapter, *_, **__: adapter.vision)
    for name in ("auto", "none", "none", "auto"):
        assert quick.quick_references(clip, "a.safetensors", [], None, print, name) == name
    assert loaded.call_count == 3, "another choice is another adapter, the same is remembered"
    assert "no 'gone.safetensors'" in QuickSubjects.validate_inputs("a.safetensors", "gone.safetensors")
