"""Faces of a subject's photos: from an analyser of another pack, or as given."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from troupe.model_patches.encoding.alignment import TEMPLATE
from troupe.model_patches.encoding.faces import DETECTION_SIDE, Faces, analyser_in, prepare_faces
from troupe.model_patches.errors import SubjectError
from troupe.model_patches.subjects import make_subject

UPRIGHT = np.array(TEMPLATE, dtype=np.float32) * 2  # where the points are in a crop


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def photo(h=300, w=280, seed=0, channels=3):
    """One picture as Load Image makes it: 8-bit steps."""
    return (rand(1, h, w, channels, seed=seed) * 255).round() / 255


def vector(seed, length=1.0):
    v = np.random.RandomState(seed).standard_normal(512).astype(np.float32)
    return v / np.linalg.norm(v) * length


class Face:
    """A face as InsightFace tells it, upright, its crop's corner at (x, y) of the picture; None for what it does not
    know.
    """

    def __init__(self, seed=1, x=20.0, y=30.0, side=50.0, **known):
        self.kps, self.bbox = (
            UPRIGHT + np.array([x, y], dtype=np.float32),
            np.array([x, y, x + side, y + side], dtype=np.float32),
        )
        self.embedding, self.normed_embedding = vector(seed, 20.0), vector(seed)
        for name, value in known.items():
            setattr(self, name, value)


class Analyser:
    """Gives each picture the next list of faces, and remembers the pictures."""

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def get(self, picture):
        self.seen.append(picture)
        return self.answers[len(self.seen) - 1]


def wrong(*args, **kwargs):
    """The message of a refusal."""
    with pytest.raises(SubjectError) as caught:
        prepare_faces(*args, **kwargs)
    assert caught.value.expected and caught.value.found and caught.value.remedy
    return str(caught.value)


# ---- with an analyser ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [photo(), rand(1, 300, 280, 3), rand(1, 3, 280, 300).permute(0, 3, 2, 1)],
    ids=["8-bit", "decoded", "another order in memory"],
)
def test_the_analyser_sees_blue_green_red_in_bytes(image):
    analyser = Analyser([Face()])
    prepare_faces([image], analyser)
    (picture,) = analyser.seen
    assert picture.dtype == np.uint8 and picture.shape == (300, 280, 3) and picture.flags.c_contiguous
    np.testing.assert_array_equal(picture, (image[0].numpy()[..., ::-1] * 255).round().astype(int))


def test_an_upright_face_of_the_crops_size_is_cut_out_of_the_photo():
    image = photo()
    faces = prepare_faces([image], Analyser([Face(x=20, y=30)]))
    assert faces.crops.shape == (1, 224, 224, 3) and faces.crops.dtype == torch.float32
    torch.testing.assert_close(faces.crops[0], image[0, 30:254, 20:244], rtol=0, atol=1e-4)


def test_the_vector_is_the_analysers_of_length_one():
    for known in ({}, {"normed_embedding": None}, {"embedding": None}):
        faces = prepare_faces([photo()], Analyser([Face(seed=4, **known)]))
        assert faces.vectors.dtype == torch.float32
        torch.testing.assert_close(faces.vectors, torch.from_numpy(vector(4))[None], rtol=0, atol=1e-7)


def test_every_photo_of_every_size_has_its_face_in_order():
    images = [
        torch.cat((photo(seed=1), photo(seed=2))),
        None,
        photo(400, 260, seed=3),
        photo(260, 330, seed=4, channels=4),
    ]
    analyser = Analyser(*([Face(seed=i, x=i, y=2 * i)] for i in range(4)))
    faces = prepare_faces(images, analyser)
    assert [p.shape[:2] for p in analyser.seen] == [(300, 280), (300, 280), (400, 260), (260, 330)]
    for i, image in enumerate((images[0][0], images[0][1], images[2][0])):
        torch.testing.assert_close(faces.crops[i], image[2 * i : 2 * i + 224, i : i + 224], rtol=0, atol=1e-4)
        torch.testing.assert_close(faces.vectors[i], torch.from_numpy(vector(i)), rtol=0, atol=1e-7)
    assert len(faces.vectors) == len(faces.crops) == 4


def test_transparent_parts_are_white_and_grey_is_a_colour():
    clear = photo(channels=4)
    clear[..., 3] = 0
    analyser = Analyser([Face()], [Face()])
    faces = prepare_faces([clear, photo(channels=1)], analyser)
    assert (analyser.seen[0] == 255).all() and (analyser.seen[1] == analyser.seen[1][..., :1]).all()
    assert faces.crops[0].min() > 0.999 and torch.equal(faces.crops[1, ..., 0], faces.crops[1, ..., 2])


@pytest.mark.parametrize("pick, seed", [("largest", 2), ("first", 1)])
def test_which_of_several_faces(pick, seed):
    shown = [Face(1, side=50), Face(2, side=90), Face(3, side=70), Face(4, side=90)]
    shown[0].bbox = np.array([0, 0, 200, 40])  # wide, and of less area than the second
    faces = prepare_faces([photo()], Analyser(shown), pick=pick)
    torch.testing.assert_close(faces.vectors[0], torch.from_numpy(vector(seed)), rtol=0, atol=1e-7)


def test_a_face_that_fills_the_photo_is_found_within_a_border():
    image, border = photo(230, 260), 130
    analyser = Analyser([], [Face(seed=5, x=20 + border, y=3 + border)])
    faces = prepare_faces([image], analyser)
    plain, wide = analyser.seen
    assert wide.shape == (230 + 2 * border, 260 + 2 * border, 3)
    np.testing.assert_array_equal(wide[border:-border, border:-border], plain)
    assert wide.sum() == plain.sum(dtype=wide.sum().dtype), "the border is black"
    torch.testing.assert_close(faces.crops[0], image[0, 3:227, 20:244], rtol=0, atol=1e-4)


@pytest.mark.parametrize("nothing", [[], None, ()])
def test_a_photo_without_a_face_is_named(nothing):
    text = wrong([torch.cat((photo(), photo()))], Analyser([Face()], nothing, nothing))
    assert (
        text == "Expected a face in photo 2, found none. Use a photo that shows the face larger and from the front, "
        "or crop it to head and shoulders."
    )


@pytest.mark.parametrize(
    "missing, told",
    [
        ({"embedding": None, "normed_embedding": None}, "a face vector of photo 1 from the analyser"),
        ({"kps": None}, "five points (eyes, nose, mouth) of the face in photo 1"),
    ],
)
def test_an_analyser_without_a_part_is_told_so(missing, told):
    assert told in wrong([photo()], Analyser([Face(**missing)]))


def test_rectangles_are_needed_for_a_choice_only():
    assert len(prepare_faces([photo()], Analyser([Face(bbox=None)])).vectors) == 1
    assert len(prepare_faces([photo()], Analyser([Face(bbox=None), Face(bbox=None)]), pick="first").vectors) == 1
    assert "a rectangle around each face of photo 1" in wrong([photo()], Analyser([Face(bbox=None), Face(bbox=None)]))


@pytest.mark.parametrize("points", [np.zeros((5, 2)), np.full((5, 2), np.nan), np.zeros((3, 2))])
def test_points_that_make_no_face_name_the_photo(points):
    text = wrong([torch.cat((photo(), photo()))], Analyser([Face()], [Face(kps=points)]))
    assert "in photo 2" in text and "five" in text


@pytest.mark.parametrize(
    "broken, told",
    [
        (np.full(512, np.nan), "a face vector of photo 1 to be finite"),
        (np.zeros(512), "zeros only"),
        (np.ones(128), "a face vector of photo 1 to have 512 numbers, found 128"),
    ],
)
def test_a_vector_that_is_none_names_the_photo(broken, told):
    assert told in wrong([photo()], Analyser([Face(normed_embedding=broken)]))


def test_the_same_photo_gives_the_same_faces():
    one, two = (prepare_faces([photo()], Analyser([Face()])) for _ in range(2))
    assert torch.equal(one.vectors, two.vectors) and torch.equal(one.crops, two.crops)


# ---- an analyser that other nodes use too ----------------------------------------------------------------------------


class Detector:
    input_size = (256, 256)  # as a node that searched in smaller and smaller sizes leaves it


class Shared(Analyser):
    def __init__(self, *answers):
        super().__init__(*answers)
        self.det_model, self.sizes = Detector(), []

    def get(self, picture):
        self.sizes.append(self.det_model.input_size)
        return super().get(picture)


def test_it_searches_in_the_published_size_and_is_left_as_it_was():
    analyser = Shared([Face()])
    prepare_faces([photo()], analyser)
    assert analyser.sizes == [(DETECTION_SIDE, DETECTION_SIDE)] == [(640, 640)] and analyser.det_model.input_size == (
        256,
        256,
    )


def test_it_is_left_as_it_was_after_an_error_too():
    analyser = Shared()  # fails at the first picture
    with pytest.raises(IndexError):
        prepare_faces([photo()], analyser)
    assert analyser.sizes == [(640, 640)] and analyser.det_model.input_size == (256, 256)


ONE = Analyser()


class Wrapper:
    face_analysis = ONE


@pytest.mark.parametrize(
    "made",
    [
        ONE,
        {"provider": "CPU", "model": ONE},
        {"insightface": {"model": ONE}, "clipvision": {"file": None}},
        [None, ONE],
        ("CPU", {"a": ONE}),
        Wrapper(),
        {"library": "insightface", "detector": Wrapper()},
    ],
)
def test_an_analyser_is_found_in_what_packs_make(made):
    assert analyser_in(made) is ONE


@pytest.mark.parametrize("made", [{}, {"provider": "CPU", "model": None}, [], "buffalo_l", 5, torch.zeros(2), [["a"]]])
def test_something_else_is_no_analyser(made):
    assert analyser_in(made) is None
    text = wrong([photo()], made)
    assert (
        f"InsightFace-type analyser in 'analysis', found a {type(made).__name__}" in text
        and "IPAdapter InsightFace Loader" in text
    )


class Model:
    def __init__(self, file):
        self.model_file = file


@pytest.mark.parametrize(
    "file, warned",
    [
        ("/models/insightface/models/buffalo_l/w600k_r50.onnx", False),
        ("C:\\models\\antelopev2\\glintr100.onnx", True),
        (None, False),
    ],
)
def test_vectors_of_another_kind_are_warned_of(file, warned):
    analyser, said = Analyser([Face()], [Face()]), []
    analyser.models = {"detection": Model("det_10g.onnx"), "recognition": Model(file)}
    prepare_faces([photo()], analyser, warn=said.append)
    assert [("'glintr100'" in sentence and "buffalo_l" in sentence) for sentence in said] == [True] * warned
    prepare_faces([photo()], analyser, embeds=torch.ones(512), warn=said.append)
    assert len(said) == warned, "the analyser's vectors were not taken"


# ---- given vectors and crops -----------------------------------------------------------------------------------------

GIVEN = np.stack((vector(7, 3.0), vector(8, 0.01)))
UNIT = torch.from_numpy(np.stack((vector(7), vector(8))))
PAIR = torch.cat((photo(seed=5), photo(seed=6)))
FORMS = {
    "tensor": torch.from_numpy(GIVEN),
    "with an axis": torch.from_numpy(GIVEN)[:, None],
    "batch in front": torch.from_numpy(GIVEN)[None],
    "half": torch.from_numpy(GIVEN).half(),
    "array": GIVEN,
    "list of vectors": [GIVEN[0], torch.from_numpy(GIVEN[1])],
    "list of batches": [torch.from_numpy(GIVEN[:1])[None], GIVEN[1:]],
    "numbers": GIVEN.tolist(),
    "dict": {"name": "fox", "embeds": GIVEN},
    "dict with more": {
        "hidden": torch.zeros(2, 257, 1024),
        "cond": torch.from_numpy(GIVEN)[:, None],
        "uncond": torch.zeros(2, 1, 512),
    },
    "faces": [{"bbox": np.zeros(4), "embedding": row, "age": 30} for row in GIVEN],
    "tuple with None": (None, GIVEN),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_vectors(form):
    faces = prepare_faces([PAIR], embeds=FORMS[form], crops=rand(2, 224, 224, 3))
    assert faces.vectors.shape == (2, 512) and faces.vectors.dtype == torch.float32
    torch.testing.assert_close(faces.vectors, UNIT, rtol=0, atol=2e-4 if form == "half" else 1e-7)
    torch.testing.assert_close(faces.vectors.norm(dim=-1), torch.ones(2), rtol=0, atol=1e-6)


def spoilt(value):
    broken = torch.from_numpy(GIVEN).clone()
    broken[1, 9] = value
    return broken


@pytest.mark.parametrize(
    "embeds, told",
    [
        (torch.zeros(2, 768), "of 512 numbers in 'embeds', found 768"),
        (torch.rand(1, 512), "each of the 2 photos, found 1"),
        (torch.rand(2, 4, 512), "each of the 2 photos, found 8"),
        (spoilt(float("nan")), "vector 2 in 'embeds' to be finite"),
        (spoilt(float("inf")), "vector 2 in 'embeds' to be finite"),
        (
            torch.eye(2, 512) * torch.tensor([[1.0], [0.0]]),
            "vector 2 in 'embeds' to be the vector of a face, found zeros only",
        ),
        ("a name", "found a str without any"),
        ({}, "found a dict without any"),
        ([None], "found a list without any"),
        (torch.tensor(3.0), "found a Tensor without any"),
        (torch.zeros(0, 512), "each of the 2 photos, found 0"),
        (np.array(["x"] * 512), "found a ndarray without any"),
        ([torch.rand(512), torch.rand(511)], "found 511"),
    ],
)
def test_vectors_that_are_none(embeds, told):
    assert told in wrong([PAIR], embeds=embeds, crops=rand(2, 224, 224, 3))


def test_crops_of_the_right_size_are_taken_as_they_are():
    crops = rand(2, 224, 224, 3, seed=3)
    assert torch.equal(prepare_faces([PAIR], embeds=GIVEN, crops=crops).crops, crops)


def test_larger_crops_are_made_smaller_without_aliasing():
    stripes = (torch.arange(672) % 2).float().expand(2, 672, 672)[..., None].expand(2, 672, 672, 3)
    crops = prepare_faces([PAIR], embeds=GIVEN, crops=stripes).crops
    assert crops.shape == (2, 224, 224, 3) and (crops - 0.5).abs().max() < 0.12


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side", [8, 112, 225])
def test_crops_of_any_size_and_channels(side, channels):
    crops = prepare_faces([PAIR], embeds=GIVEN, crops=torch.full((2, side, side, channels), 1.0).half()).crops
    assert crops.shape == (2, 224, 224, 3) and crops.dtype == torch.float32
    torch.testing.assert_close(crops, torch.ones(2, 224, 224, 3))


@pytest.mark.parametrize(
    "crops, told",
    [
        (rand(2, 224, 200, 3), "square faces in 'crops', found 200x224"),
        (rand(3, 224, 224, 3), "each of the 2 photos, found 3"),
        (torch.full((2, 224, 224, 3), float("nan")), "face 1 in 'crops' to be a picture of finite numbers"),
        (rand(2, 224, 224, 5), "face 1 in 'crops' to have 3 colour channels"),
    ],
)
def test_crops_that_are_none(crops, told):
    assert told in wrong([PAIR], embeds=GIVEN, crops=crops)


# ---- what is wired ---------------------------------------------------------------------------------------------------


def test_given_ones_win_and_only_the_rest_is_asked_for():
    analyser, crops = Analyser([Face(seed=1, x=9)], [Face(seed=2, x=11)]), rand(2, 224, 224, 3, seed=8)
    both = prepare_faces([PAIR], analyser, GIVEN, crops)
    assert not analyser.seen and torch.equal(both.crops, crops)
    vectors_given = prepare_faces([PAIR], analyser, embeds=GIVEN)
    torch.testing.assert_close(vectors_given.vectors, UNIT, rtol=0, atol=1e-7)
    torch.testing.assert_close(vectors_given.crops[1], PAIR[1, 30:254, 11:235], rtol=0, atol=1e-4)
    crops_given = prepare_faces([PAIR], Analyser([Face(seed=1, kps=None)], [Face(seed=2, kps=None)]), crops=crops)
    assert torch.equal(crops_given.crops, crops)
    torch.testing.assert_close(crops_given.vectors[1], torch.from_numpy(vector(2)), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "given, found",
    [({}, "none"), ({"embeds": GIVEN}, "only 'embeds'"), ({"crops": rand(2, 224, 224, 3)}, "only 'crops'")],
)
def test_without_an_analyser_both_are_needed(given, found):
    text = wrong([PAIR], **given)
    assert (
        f"both face vectors in 'embeds' and aligned faces in 'crops', found {found}." in text
        and "ComfyUI_IPAdapter_plus" in text
    )


@pytest.mark.parametrize(
    "images, told",
    [
        ([None], "at least one photo"),
        ([rand(2, 4, 90, 3)], "photo 1 to be at least 8x8"),
        ([PAIR, torch.full((1, 9, 9, 3), float("nan"))], "photo 3 to be a picture"),
    ],
)
def test_unusable_photos(images, told):
    assert told in wrong(images, Analyser([Face()], [Face()]))


def test_what_was_given_stays_as_it_was():
    embeds, image = torch.from_numpy(GIVEN).clone(), photo()
    before = copy.deepcopy((embeds, image))
    prepare_faces([image], Analyser([Face()]))
    prepare_faces([PAIR], embeds=embeds, crops=PAIR[:, :224, :224])
    assert torch.equal(embeds, before[0]) and torch.equal(image, before[1])


def test_faces_are_frozen_and_counted():
    said = []
    faces = prepare_faces([PAIR], embeds=GIVEN, crops=PAIR[:, :224, :224], done=said.append)
    assert said == ["2 faces prepared."]
    with pytest.raises(dataclasses.FrozenInstanceError):
        faces.vectors = faces.crops


# ---- a subject's faces -----------------------------------------------------------------------------------------------


def some(count):
    return Faces(torch.eye(count, 512), torch.zeros(count, 224, 224, 3))


def test_a_subject_keeps_its_faces():
    faces = some(3)
    assert make_subject("woman", [PAIR, None, photo(20, 30)], faces=faces).faces is faces
    assert make_subject("woman", [PAIR]).faces is None


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_subject_has_as_many_faces_as_photos(count):
    with pytest.raises(
        SubjectError,
        match=f"one prepared face for each of the 3 photos of subject 2 .'woman'., found {count}\\. Connect the "
        "same photos to Prepare Faces",
    ):
        make_subject("woman", [PAIR, photo(20, 30)], number=2, faces=some(count))
