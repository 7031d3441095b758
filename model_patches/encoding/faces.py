"""The faces in a subject's photos, for adapters that read faces: who it is as a vector, how it looks as an upright
crop.

No detector is in this pack: an analyser of another pack finds the faces, or vectors and crops are given. Host-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from ..encoders.refiner import FACE_WIDTH
from ..errors import SubjectError
from ..subjects import Image, check_photo
from .alignment import CROP, align_face
from .framing import flatten_alpha
from .summary import counted

PICKS = ("largest", "first")  # which face of a photo with several; the published script takes the first
DETECTION_SIDE = 640  # pixels: photos are searched in this size, as the published script does
RECOGNITION = "w600k_r50"  # buffalo_l's, whose vectors MM-Diff's face head was trained on
WRAPPED = "face_analysis"  # where ComfyUI_FaceAnalysis keeps the analyser in its own object


@dataclass(frozen=True, eq=False)
class Faces:
    """One face for each photo of a subject, in the photos' order, on the CPU.

    vectors: [n, 512] float32 of length 1, ArcFace's; crops: [n, 224, 224, 3] float32, 0..1, eyes, nose and mouth on
    ArcFace's template.
    """

    vectors: torch.Tensor
    crops: torch.Tensor


def prepare_faces(
    images: list[Image | None],
    analysis: Any = None,
    embeds: Any = None,
    crops: Image | None = None,
    pick: str = PICKS[0],
    warn: Callable[[str], None] | None = None,
    done: Callable[[str], None] = lambda sentence: None,
) -> Faces:
    """Return the faces of a subject's photos: those given in `embeds` and `crops`, and the analyser's for the rest.

    Arguments:
        images: the photos as in `subjects.make_subject`: batches [n, H, W, 1, 3 or 4] of several sizes, None entries
            are skipped.
        analysis: an InsightFace-type analyser, or a dict, list or object that holds one (`analyser_in`).
        embeds: face vectors (`given_vectors`).
        crops: aligned faces, [n, s, s, 1, 3 or 4].
        pick: 'largest' (area of its rectangle) or 'first' (as the analyser lists them), where a photo shows several
            faces.
        warn: receives a sentence when the analyser's vectors are of another kind than published; done: one about the
            faces that were prepared.
    Raises:
        SubjectError: nothing to take vectors or crops from, a photo without a face, numbers that do not match, unusable
            values.
    """
    photos = [photo for batch in images if batch is not None for photo in batch]
    if not photos:
        raise SubjectError("at least one photo", "none", "Wire the subject's photo into 'image'.")
    for i, photo in enumerate(photos, 1):
        check_photo(photo, f"photo {i}")
    vectors = None if embeds is None else given_vectors(embeds, len(photos))
    squares = None if crops is None else given_crops(crops, len(photos))
    if vectors is None or squares is None:
        analyser = _needed_analyser(analysis, vectors is not None, squares is not None)
        found = [find_face(analyser, photo, i, pick) for i, photo in enumerate(photos, 1)]
        if squares is None:
            squares = torch.stack(
                [
                    _crop(photo, face, border, i)
                    for i, (photo, (face, border)) in enumerate(zip(photos, found, strict=True), 1)
                ]
            )
        if vectors is None:
            vectors = torch.cat([_vector(face, i) for i, (face, _) in enumerate(found, 1)])
            other = recognition(analyser)
            if warn and other not in ("", RECOGNITION):
                warn(
                    f"Choose buffalo_l in the loader of the face analyser: its vectors come from '{other}', "
                    f"but MM-Diff needs '{RECOGNITION}' and would see another person."
                )
    done(f"{counted(len(photos), 'face')} prepared.")
    return Faces(vectors, squares)


# ---- the analyser ----------------------------------------------------------------------------------------------------


def analyser_in(value: Any) -> Any | None:
    """Return the first object with a callable `get` in what another pack made (the object, a dict, list or tuple with
    it, its wrapper), or None.
    """
    if isinstance(value, (Mapping, list, tuple)):  # a dict has a `get` of its own
        inside = value.values() if isinstance(value, Mapping) else value
        return next((found for item in inside if (found := analyser_in(item)) is not None), None)
    if callable(getattr(value, "get", None)):
        return value
    inner = getattr(value, WRAPPED, None)
    return None if inner is None else analyser_in(inner)


def _needed_analyser(analysis: Any, vectors: bool, crops: bool) -> Any:
    """The analyser; `vectors` and `crops` say what was given and is not asked of it."""
    if analysis is None:
        have = "only 'embeds'" if vectors else "only 'crops'" if crops else "none"
        raise SubjectError(
            "an analyser in 'analysis', or both face vectors in 'embeds' and aligned faces in 'crops'",
            have,
            "Wire IPAdapter InsightFace Loader of the pack ComfyUI_IPAdapter_plus (model buffalo_l) into "
            "'analysis', or connect face vectors and crops from another node.",
        )
    analyser = analyser_in(analysis)
    if analyser is None:
        raise SubjectError(
            "an InsightFace-type analyser in 'analysis'",
            f"a {type(analysis).__name__} that finds no faces",
            "Wire IPAdapter InsightFace Loader of the pack ComfyUI_IPAdapter_plus, or another loader of "
            "InsightFace's FaceAnalysis.",
        )
    return analyser


def recognition(analyser: Any) -> str:
    """Return the name of the model that makes an analyser's vectors, '' if the analyser does not provide it."""
    models = getattr(analyser, "models", None)
    model = models.get("recognition") if isinstance(models, Mapping) else None
    return PurePath(str(getattr(model, "model_file", None) or "").replace("\\", "/")).stem


@contextmanager
def _published_search(analyser: Any) -> Iterator[None]:
    """Search in the published size: other nodes that share the analyser change it and leave it changed, and a result
    would depend on them.
    """
    detector = getattr(analyser, "det_model", None)
    size = getattr(detector, "input_size", None)
    if detector is None or size is None:
        yield
        return
    detector.input_size = (DETECTION_SIDE, DETECTION_SIDE)
    try:
        yield
    finally:
        detector.input_size = size


def find_face(analyser: Any, photo: torch.Tensor, number: int, pick: str) -> tuple[Any, int]:
    """Find the face of a photo: return it as the analyser describes it, and the black border in pixels that was added.

    photo: [H, W, 1, 3 or 4]; number: of the photo, for messages. A face that fills the photo is often missed, so a
    photo in which none was found is searched once more within a border of half its longer side. Raises SubjectError
    where there is none then.
    """
    # blue, green, red, as InsightFace wants it
    picture = (_rgb(photo).flip(-1) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    with _published_search(analyser):
        for border in (0, max(picture.shape[:2]) // 2):
            found = analyser.get(np.ascontiguousarray(np.pad(picture, ((border, border), (border, border), (0, 0)))))
            faces = [] if found is None else list(found)
            if faces:
                return (
                    max(faces, key=lambda face: _area(face, number))
                    if pick == "largest" and len(faces) > 1
                    else faces[0]
                ), border
    remedy = "Use a photo that shows the face larger and from the front, or crop it to head and shoulders."
    raise SubjectError(f"a face in photo {number}", "none", remedy)


def _area(face: Any, number: int) -> float:
    left, top, right, bottom, *_ = (
        _reported(face, "bbox", f"a rectangle around each face of photo {number}").flatten().tolist()
    )
    return (right - left) * (bottom - top)


def _crop(photo: torch.Tensor, face: Any, border: int, number: int) -> torch.Tensor:
    points = _reported(face, "kps", f"five points (eyes, nose, mouth) of the face in photo {number}") - border
    try:
        return align_face(_rgb(photo).float().cpu(), points, CROP).clamp(0, 1)
    except SubjectError as problem:
        raise SubjectError(f"{problem.expected} in photo {number}", problem.found, problem.remedy) from None


def _vector(face: Any, number: int) -> torch.Tensor:
    """[1, 512]"""
    what = f"a face vector of photo {number}"
    name = "normed_embedding" if getattr(face, "normed_embedding", None) is not None else "embedding"
    return _unit(_reported(face, name, what).reshape(1, -1), [what])


def _reported(face: Any, name: str, what: str) -> torch.Tensor:
    """A field of a face in numbers, float64. Raises SubjectError if the analyser does not tell it."""
    value = getattr(face, name, None)
    if value is None:
        raise SubjectError(
            f"{what} from the analyser",
            "none",
            "Wire an analyser that has its detection and recognition models, such as InsightFace's buffalo_l.",
        )
    return _numbers(value)


# ---- what is given ---------------------------------------------------------------------------------------------------


def given_vectors(embeds: Any, count: int) -> torch.Tensor:
    """Return vectors [count, 512] float32 of length 1 from a tensor or array [n, 512], [n, 1, 512] or [512], a list of
    such, or a dict with one.

    Raises SubjectError: no numbers in it, another width or number, NaN, a vector of zeros.
    """
    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in _tensors(embeds)]
    if not rows:
        raise SubjectError(
            "face vectors in 'embeds'",
            f"a {type(embeds).__name__} without any",
            f"Wire ArcFace vectors, {FACE_WIDTH} numbers for each photo, or an analyser into 'analysis'.",
        )
    for row in rows:
        if row.shape[-1] != FACE_WIDTH:
            raise SubjectError(
                f"face vectors of {FACE_WIDTH} numbers in 'embeds'",
                f"{row.shape[-1]}",
                "Connect ArcFace vectors from InsightFace, not the output of a CLIP vision encoder or of "
                "another adapter.",
            )
    vectors = torch.cat(rows)
    if len(vectors) != count:
        raise SubjectError(
            f"one face vector in 'embeds' for each of the {count} photos",
            f"{len(vectors)}",
            "Give as many vectors as photos, in the same order.",
        )
    return _unit(vectors, [f"vector {i} in 'embeds'" for i in range(1, count + 1)])


def given_crops(crops: Image, count: int) -> torch.Tensor:
    """Return crops [count, 224, 224, 3] float32, 0..1, from squares of any size.

    Raises SubjectError: not square, another number, not pictures.
    """
    if len(crops) != count:
        raise SubjectError(
            f"one aligned face in 'crops' for each of the {count} photos",
            f"{len(crops)}",
            "Give as many faces as photos, in the same order.",
        )
    for i, crop in enumerate(crops, 1):
        check_photo(crop, f"face {i} in 'crops'")
    h, w = crops.shape[1:3]
    if h != w:
        raise SubjectError(
            "square faces in 'crops'",
            f"{w}x{h}",
            "Wire faces that were aligned to a square, or an analyser into 'analysis' instead.",
        )
    pixels = flatten_alpha(crops).float().cpu().movedim(-1, 1)  # n, 3, s, s
    if h != CROP:
        pixels = interpolate(pixels, size=(CROP, CROP), mode="bilinear", antialias=True)
    return pixels.movedim(1, -1).clamp(0, 1)


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in what another pack made, in order, float64.

    Of a dict, which also holds other things, the first of a vector's width.
    """
    if isinstance(value, Mapping):
        found = [tensor for item in value.values() for tensor in _tensors(item)]
        return [next((tensor for tensor in found if tensor.shape[-1] == FACE_WIDTH), found[0])] if found else []
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, (int, float)) for item in value):
            return [_numbers(value)]
        return [tensor for item in value for tensor in _tensors(item)]
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiu"):
        return [_numbers(value)] if value.ndim and value.shape[-1] else []
    return []


def _numbers(value: Any) -> torch.Tensor:
    """A tensor, array or list as float64 on the CPU."""
    return (
        value.detach().cpu().double()
        if isinstance(value, torch.Tensor)
        else torch.from_numpy(np.array(value, dtype=np.float64))
    )


def _unit(vectors: torch.Tensor, names: list[str]) -> torch.Tensor:
    """vectors [n, W] float64 -> the same of length 1, float32; names: of the vectors, for messages."""
    remedy = "Take another photo, or make the vectors again with an analyser that works (in fp32)."
    for vector, name in zip(vectors, names, strict=True):
        if len(vector) != FACE_WIDTH:
            raise SubjectError(
                f"{name} to have {FACE_WIDTH} numbers",
                f"{len(vector)}",
                "Wire an analyser that makes ArcFace vectors, such as InsightFace's buffalo_l.",
            )
        if not bool(torch.isfinite(vector).all()):
            raise SubjectError(f"{name} to be finite numbers", "NaN or infinite ones", remedy)
        if not bool(vector.any()):
            raise SubjectError(f"{name} to be the vector of a face", "zeros only", remedy)
    return (vectors / vectors.norm(dim=-1, keepdim=True)).float()


def _rgb(photo: torch.Tensor) -> torch.Tensor:
    """One photo [H, W, 1, 3 or 4] -> [H, W, 3], on white."""
    return flatten_alpha(photo.unsqueeze(0))[0]
