"""COCO and OpenImages become records: masks and boxes of the annotations, names of the captions."""

import json

import numpy as np
import pytest
from PIL import Image
from support.dataset_scenes import needs_inflect
from troupe.model_patches.subjects import Box
from troupe.training.data.coco import coco_sources, decode
from troupe.training.data.engine import Plan, work
from troupe.training.data.journal import finish, read_journal
from troupe.training.data.making import Maker
from troupe.training.data.open_images import open_images_sources
from troupe.training.data.pictures import PictureFault
from troupe.training.data.records import DatasetError, read_records
from troupe.training.data.selection import Rules

masks = pytest.importorskip("pycocotools.mask")
pytestmark = needs_inflect
W, H = 100, 80
ALL = Rules(area=(0.01, 1), fill=0.1)


def rectangle(x, y, w, h):
    mask = np.zeros((H, W), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def polygon(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def runs(mask):
    found = masks.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def uncompressed(mask):
    counts, last = [0], 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": [H, W], "counts": counts}


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (W, H), "gray").save(tmp_path / f"{name}.jpg")
    return tmp_path


def annotation(picture, category, box, segmentation, **more):
    return {"id": 7, "image_id": picture, "category_id": category, "bbox": box, "segmentation": segmentation} | more


def write_coco(folder, annotations, captions, size=(W, H)):
    table = {
        "images": [
            {"id": i, "file_name": f"{name}.jpg", "width": size[0], "height": size[1]} for i, name in enumerate("abc")
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "couch"}],
        "annotations": annotations,
    }
    (folder / "i.json").write_text(json.dumps(table))
    texts = [{"image_id": i, "caption": text} for i, text in captions]
    (folder / "c.json").write_text(json.dumps({"annotations": texts}))
    return folder / "i.json", folder / "c.json"


def make(folder, sources, rules=ALL):
    out = folder / "set"
    work(out, sources, Maker(out, rules), Plan())
    finish(out)
    return out


def mask_of(subject):
    return np.asarray(Image.open(subject.mask)) > 127


def test_coco_becomes_records(folder):
    dog, man, couch = rectangle(10, 20, 30, 40), rectangle(60, 10, 20, 60), rectangle(5, 5, 50, 20)
    instances, captions = write_coco(
        folder,
        [
            annotation(0, 2, [10, 20, 30, 40], polygon(10, 20, 30, 40)),
            annotation(0, 1, [60, 10, 20, 60], runs(man)),
            annotation(0, 1, [0, 0, 90, 70], runs(couch), iscrowd=1),
            annotation(1, 3, [5, 5, 50, 20], uncompressed(couch)),
            annotation(1, 2, [0, 0, 50, 50], polygon(0, 0, 50, 50)),
            annotation(2, 2, [10, 20, 30, 40], polygon(10, 20, 30, 40)),
        ],
        [(0, "a park"), (0, "a Man walks\nhis dog"), (1, "an old sofa"), (2, "nothing that is known")],
    )
    out = make(folder, coco_sources(folder, instances, captions))
    first, second = read_records(out)
    assert first.caption == "a Man walks his dog" and [one.name for one in first.subjects] == ["Man", "dog"]
    assert (mask_of(first.subjects[0]) == man).all() and (mask_of(first.subjects[1]) == dog).all()
    assert first.subjects[1].box == Box(0.1, 0.25, 0.3, 0.5)
    assert [one.name for one in second.subjects] == ["sofa"] and (mask_of(second.subjects[0]) == couch).all()
    assert second.picture.read_bytes() == (folder / "b.jpg").read_bytes()
    notes = {key: [reason for reason, _ in entry.notes] for key, entry in read_journal(out).items()}
    assert notes["a.jpg"] == ["group of several"] and notes["b.jpg"] == ["caption without the name"]
    assert notes["c.jpg"] == ["caption without the name", "picture with too few subjects"]


def test_without_captions_the_names_are_joined(folder):
    boxes = [([10, 20, 30, 40], 2), ([60, 10, 20, 60], 1)]
    instances, _ = write_coco(folder, [annotation(0, kind, box, polygon(*box)) for box, kind in boxes], [])
    (record,) = read_records(make(folder, coco_sources(folder, instances)))
    assert record.caption in ("a dog and a person", "a person and a dog")
    assert {one.name for one in record.subjects} == {"dog", "person"}


def test_what_is_wrong_with_one_annotation_or_picture_stops_no_other(folder):
    good = annotation(0, 2, [10, 20, 30, 40], polygon(10, 20, 30, 40))
    wrong = [
        annotation(1, 2, [90, 20, 60, 40], polygon(10, 20, 30, 40)),
        annotation(1, 2, [10, 20, 30, 40], []),
        annotation(1, 2, [10, 20, 30, 40], runs(np.zeros((H, W), bool))),
        annotation(1, 2, [10, 20, 30, 40], {"size": [9, 9], "counts": "04"}),
        annotation(1, 9, [10, 20, 30, 40], polygon(10, 20, 30, 40)),
        annotation(1, 2, [10, 20, 30], polygon(10, 20, 30, 40)),
        annotation(2, 2, [10, 20, 30, 40], polygon(10, 20, 30, 40)),
    ]
    instances, captions = write_coco(folder, [good, *wrong], [(i, "a dog") for i in range(3)])
    (folder / "c.jpg").write_bytes(b"no picture")
    out = make(folder, coco_sources(folder, instances, captions))
    assert [record.picture.name[:1] for record in read_records(out)] == ["a"]
    notes = {key: sorted(reason for reason, _ in entry.notes) for key, entry in read_journal(out).items()}
    assert notes["b.jpg"] == [
        "annotation not usable",
        "annotation not usable",
        "box outside of the picture",
        "empty mask",
        "empty mask",
        "mask for another size",
        "picture with too few subjects",
    ]
    assert notes["c.jpg"] == ["picture does not open"]


def test_a_picture_of_another_size_is_dropped(folder):
    instances, captions = write_coco(folder, [], [(0, "a dog")], size=(50, 50))
    out = folder / "set"
    work(out, coco_sources(folder, instances, captions), Maker(out, ALL), Plan())
    assert {note for entry in read_journal(out).values() for note, _ in entry.notes} == {"picture of another size"}


def test_a_picture_that_exif_turns_is_written_as_annotated(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (H, W, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg", exif=exif)
    instances, captions = write_coco(
        folder, [annotation(0, 2, [10, 20, 30, 40], polygon(10, 20, 30, 40))], [(0, "dog")]
    )
    (record,) = read_records(make(folder, coco_sources(folder, instances, captions)))
    with Image.open(record.picture) as found:
        assert found.size == (W, H) and not found.getexif()


@pytest.mark.parametrize("segmentation", [{"counts": "04"}, 3, [["x"] * 6]])
def test_a_segmentation_that_is_none(segmentation):
    with pytest.raises(PictureFault, match="mask does not open"):
        decode(segmentation, (W, H), "dog", (W, H))


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "no file"),
        ("{", "JSON"),
        ("[]", "no images"),
        ('{"images": []}', "no annotations"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "'width'"),
    ],
)
def test_an_annotation_file_that_is_none(folder, text, said):
    if text is not None:
        (folder / "i.json").write_text(text)
    with pytest.raises(DatasetError) as error:
        coco_sources(folder, folder / "i.json")
    assert said in str(error.value)
    with pytest.raises(DatasetError, match="no folder"):
        coco_sources(folder / "gone", folder / "i.json")


# ---- OpenImages ------------------------------------------------------------------------------------------------------

BOX_HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf,IsDepiction,IsInside\n"
MASK_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks\n"


def write_open_images(folder, boxes, segmentations, header="LabelName,DisplayName\n"):
    rows = [f"{picture},x,{label},1,{sides},{flags}\n" for picture, label, sides, flags in boxes]
    (folder / "boxes.csv").write_text(BOX_HEADER + "".join(rows))
    (folder / "classes.csv").write_text(header + "/m/dog,Dog\n/m/couch,Couch\n")
    (folder / "png").mkdir()
    rows = []
    for number, (picture, label, sides, mask) in enumerate(segmentations):
        Image.fromarray(mask.astype(np.uint8) * 255).convert("1").save(folder / "png" / f"{number}.png")
        rows.append(f"{number}.png,{picture},{label},b,{sides},0.9,\n")
    (folder / "masks.csv").write_text(MASK_HEADER + "".join(rows))
    return folder / "boxes.csv", folder / "classes.csv", folder / "masks.csv", folder / "png"


@pytest.mark.parametrize("header", ["LabelName,DisplayName\n", ""])
def test_open_images_becomes_records(folder, header):
    dog, couch = rectangle(10, 20, 30, 40), rectangle(50, 20, 40, 40)
    half = dog[::2, ::2]  # masks may be smaller than their pictures
    found = write_open_images(
        folder,
        [
            ("a", "/m/dog", "0.1,0.4,0.25,0.75", "0,0,0"),
            ("a", "/m/couch", "0.5,0.9,0.25,0.75", "0,0,0"),
            ("a", "/m/dog", "0.6,0.9,0.25,0.75", "0,0,0"),
            ("b", "/m/dog", "0.1,0.4,0.25,0.75", "1,0,0"),
            ("gone", "/m/dog", "0.1,0.4,0.25,0.75", "0,0,0"),
        ],
        [("a", "/m/dog", "0.1,0.4,0.25,0.75", half), ("a", "/m/couch", "0.501,0.9,0.25,0.75", couch)],
        header,
    )
    out = make(folder, open_images_sources(folder, *found))
    (record,) = read_records(out)
    assert record.caption in ("a couch and a dog", "a dog and a couch")
    subjects = {one.name: one for one in record.subjects}
    assert (mask_of(subjects["dog"]) == dog).all() and (mask_of(subjects["couch"]) == couch).all()
    notes = {key: [reason for reason, _ in entry.notes] for key, entry in read_journal(out).items()}
    assert notes["a.jpg"] == ["no mask"]
    assert notes["b.jpg"] == ["group of several", "picture with too few subjects"]


def test_open_images_with_captions_and_without_masks(folder):
    boxes, classes, _, _ = write_open_images(folder, [("a", "/m/couch", "0.1,0.4,0.25,0.75", "0,0,0")], [])
    (folder / "captions.jsonl").write_text(json.dumps({"image_id": "a", "caption": "In this picture I see a sofa."}))
    (record,) = read_records(
        make(folder, open_images_sources(folder, boxes, classes, captions=folder / "captions.jsonl"))
    )
    assert [one.name for one in record.subjects] == ["sofa"] and record.subjects[0].mask is None


def test_open_images_files_that_are_not(folder):
    boxes, classes, segmentations, png = write_open_images(folder, [], [])
    for arguments, said in (
        ((folder / "gone.csv", classes), "no file"),
        ((classes, classes), "ImageID"),
        ((boxes, boxes), "class-descriptions"),
        ((boxes, classes, boxes, png), "no MaskPath"),
        ((boxes, classes, segmentations, folder / "gone"), "no folder"),
    ):
        with pytest.raises(DatasetError) as error:
            open_images_sources(folder, *arguments)
        assert said in str(error.value)
    with pytest.raises(DatasetError, match="pictures below"):
        open_images_sources(png, boxes, classes)
