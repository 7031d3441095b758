"""tools/make_dataset.py: from pictures to a filtered set with references, and a sentence for what is wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from support import tiny_annotators
from support.dataset_scenes import needs_inflect, write_scenes
from support.start_methods import needs_fork
from troupe.training.data.records import read_records
from troupe_tools.commands.make_dataset import COMMANDS, main
from troupe_tools.pack import ROOT

pytestmark = needs_inflect
LOOSE = ["--min-area", "0", "--max-area", "1", "--min-aspect", "0", "--max-aspect", "99", "--min-fill", "0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("grounding_dino", "sam2", "blip", "clip"):
        getattr(tiny_annotators, f"save_{name}")(folder / name)
    return folder


def build(folder, models, *more):
    given = ["--detector", f"{models}/grounding_dino", "--segmenter", f"{models}/sam2", "--device", "cpu"]
    return main(["build", f"{folder}/in", "--out", f"{folder}/set", *given, *LOOSE, *more])


@pytest.mark.slow
def test_from_pictures_to_a_filtered_set(tmp_path, models, capsys):
    for individual in ("rex", "tom"):
        write_scenes(tmp_path / "in" / individual, 3)
        for i, path in enumerate(sorted((tmp_path / "in" / individual).glob("*.png"))):
            noise = np.random.default_rng([i, individual == "rex"]).integers(0, 255, (96, 96, 3), np.uint8)
            Image.fromarray(noise).save(path)
            path.with_suffix(".txt").write_text("a mushroom and a cat on grass")
    (tmp_path / "in" / "rex" / "01.txt").unlink()  # BLIP
    (tmp_path / "in" / "broken.jpg").write_bytes(b"broken")
    assert build(tmp_path, models, "--captioner", f"{models}/blip", "--min-score", "0.05") == 0
    said = capsys.readouterr().out
    assert "7 pictures of this run, 7 in all" in said and "1 x picture does not open: broken.jpg" in said
    records = read_records(tmp_path / "set")
    assert len(records) >= 4 and all(one.mask for record in records for one in record.subjects)

    assert build(tmp_path, models, "--captioner", f"{models}/blip", "--min-score", "0.05") == 0
    assert "0 pictures of this run" in capsys.readouterr().out
    assert build(tmp_path, models, "--captioner", f"{models}/blip", "--min-score", "0.06") == 1
    assert "score 0.05 instead of 0.06" in capsys.readouterr().err

    assert main(["references", f"{tmp_path}/set", "--least-difference", "0"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 individuals: ") and "0 with a cut-out of their own picture" in said
    given = ["quality", f"{tmp_path}/set", "--clip", f"{models}/clip", "--device", "cpu"]
    assert main([*given, "--keep", "3"]) == 0
    assert "3 of " in capsys.readouterr().out
    kept = read_records(tmp_path / "set")
    assert len(kept) == 3 and all(one.quality is not None for record in kept for one in record.subjects)
    assert any(one.references for record in kept for one in record.subjects)
    assert main(["references", f"{tmp_path}/set"]) == 1
    assert "Run references before quality" in capsys.readouterr().err
    assert main([*given, "--threshold", "5"]) == 1
    assert "the best has" in capsys.readouterr().err

    assert main(["report", f"{tmp_path}/set"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 pictures, ") and "7 pictures read" in said
    assert {path.name for path in (tmp_path / "set" / "report").iterdir()} == {
        "made.txt",
        "references.txt",
        "quality.txt",
        "quality.png",
        "set.txt",
        "set.png",
    }


@pytest.mark.slow
def test_shards_and_their_merge(tmp_path, models, capsys):
    write_scenes(tmp_path / "in", 4)
    for path in (tmp_path / "in").glob("*.txt"):
        path.write_text("a cat")
    for shard in ("0/2", "1/2"):
        assert build(tmp_path, models, "--min-score", "0", "--shard", shard) == 0
        said = capsys.readouterr().out
        assert "2 pictures of this run, 4 in all" in said and "merge" in said
        assert not (tmp_path / "set" / "metadata.jsonl").exists()
    assert main(["merge", f"{tmp_path}/set"]) == 0
    assert capsys.readouterr().out.startswith("4 pictures read, ")
    given = ["quality", f"{tmp_path}/set", "--clip", f"{models}/clip", "--device", "cpu"]
    count = len(read_records(tmp_path / "set"))
    assert main([*given, "--shard", "0/2"]) == 0
    assert "After all shards, run quality without --shard" in capsys.readouterr().out
    assert main(given) == 0 and f"{count} of {count} pictures kept" in capsys.readouterr().out


def coco(folder, captions):
    (folder / "in").mkdir()
    Image.new("RGB", (100, 80), "gray").save(folder / "in" / "a.jpg")
    table = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 2, "name": "dog"}],
        "annotations": [
            {
                "id": 3,
                "image_id": 1,
                "category_id": 2,
                "bbox": [10, 20, 30, 40],
                "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]],
            }
        ],
    }
    (folder / "i.json").write_text(json.dumps(table))
    (folder / "c.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": text} for text in captions]}))
    given = ["--instances", f"{folder}/i.json", "--captions", f"{folder}/c.json", "--out", f"{folder}/set"]
    return ["coco", f"{folder}/in", *given]


def test_a_set_of_one_picture(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    assert main(coco(tmp_path, ["two dogs"])) == 0
    said = capsys.readouterr().out
    assert "1 kept with 1 subjects" in said and "warning: one picture is not enough" in said
    assert main(["references", f"{tmp_path}/set", "--self-references"]) == 0
    said = capsys.readouterr().out
    assert "1 with a cut-out of their own picture" in said and "teach a model to copy" in said
    assert read_records(tmp_path / "set")[0].subjects[0].references


def test_a_set_of_nothing(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    assert main(coco(tmp_path, ["a beach"])) == 1
    error = capsys.readouterr().err
    assert "a picture with a usable subject" in error and "1 x caption without the name: dog in a.jpg" in error


@pytest.mark.slow
@needs_fork
def test_processes_without_models(tmp_path, capsys):
    pytest.importorskip("pycocotools")
    pytest.importorskip("datasets")
    assert main([*coco(tmp_path, ["a dog"]), "--processes", "2", "--device", "cuda"]) == 0
    assert "1 kept" in capsys.readouterr().out
    boxes = "ImageID,LabelName,XMin,XMax,YMin,YMax\na,/m/dog,0.1,0.4,0.2,0.8\nb,/m/dog,0.1,0.4,0.2,0.8\n"
    (tmp_path / "boxes.csv").write_text(boxes)
    (tmp_path / "classes.csv").write_text("/m/dog,Dog")
    Image.new("RGB", (50, 50)).save(tmp_path / "in" / "b.jpg")
    given = ["--boxes", f"{tmp_path}/boxes.csv", "--classes", f"{tmp_path}/classes.csv", "--out", f"{tmp_path}/other"]
    assert main(["open-images", f"{tmp_path}/in", *given, "--processes", "2"]) == 0
    assert "2 kept with 2 subjects" in capsys.readouterr().out


def test_processes_do_not_share_a_gpu(tmp_path, models, capsys):
    write_scenes(tmp_path / "in", 1)
    assert build(tmp_path, models, "--processes", "2", "--device", "cuda") == 1
    assert "one command per GPU" in capsys.readouterr().err


@pytest.mark.slow
@needs_fork
def test_errors_of_processes(tmp_path, models, capsys):
    pytest.importorskip("datasets")
    write_scenes(tmp_path / "in", 4)
    assert build(tmp_path, models, "--processes", "2", "--detector", f"{models}/gone") == 1
    error = capsys.readouterr().err
    assert "Expected the model " in error and "Traceback" not in error


def test_a_gpu_that_is_too_small(tmp_path, monkeypatch, capsys):
    def fail(options):
        raise RuntimeError(message)

    monkeypatch.setitem(COMMANDS, "report", fail)
    message = "CUDA out of memory. Tried to allocate"
    assert main(["report", f"{tmp_path}"]) == 1 and "--batch" in capsys.readouterr().err
    message = "another"
    with pytest.raises(RuntimeError, match="another"):
        main(["report", f"{tmp_path}"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["build", "gone", "--out", "set"], "no folder gone"),
        (["build", "empty", "--out", "set"], "below empty, found none"),
        (["build", "in", "--out", "set", "--captions", "gone.jsonl"], "no file gone.jsonl"),
        (["build", "in", "--out", "set", "--vocabulary", "gone.txt"], "one noun per line"),
        (["build", "in", "--out", "set", "--vocabulary", "in/00.png.txt"], "without full stops"),
        (["build", "in", "--out", "set", "--shard", "2/2"], "shard i/n"),
        (["open-images", "in", "--boxes", "latin.csv", "--classes", "latin.csv", "--out", "set"], "could not be read"),
        (["coco", "in", "--instances", "gone.json", "--out", "set"], "no file gone.json"),
        (["open-images", "in", "--boxes", "b.csv", "--classes", "gone.csv", "--out", "set"], "no file gone.csv"),
        (["references", "gone"], "metadata.jsonl"),
        (["quality", "gone"], "metadata.jsonl"),
        (["report", "gone"], "metadata.jsonl"),
        (["merge", "set", "gone"], "journal"),
        (["merge", "gone"], "usable subject"),
    ],
)
def test_a_sentence_for_what_is_wrong(tmp_path, monkeypatch, capsys, arguments, said):
    pytest.importorskip("pycocotools")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_scenes(tmp_path / "in", 1)
    (tmp_path / "in" / "00.png.txt").write_text("cat.")
    (tmp_path / "latin.csv").write_bytes("/m/x,Bär".encode("latin-1"))
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(("Expected ", "A file ")) and said in error and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments", [[], ["build"], ["quality", "x", "--keep", "0"], ["quality", "x", "--threshold", "nan"]]
)
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: make_dataset.py" in capsys.readouterr().err


def test_help_needs_no_torch():
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
for name in ("torch", "transformers"):
    sys.modules[name] = None
from troupe_tools.commands.make_dataset import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for command in ("coco", "open-images", "build", "merge", "references", "quality", "report"):
        assert f"    {command}" in done.stdout
