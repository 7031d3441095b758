"""Photos cut to their subject as MIP-Adapter cuts them before it paints the pairs of CustomConcept101.

Its repository has `json_data/<concept>/<photo>.json` for each photo, whose `mask[1].box` (left, top, right, bottom) is
in pixels of the photo with a shorter side of 800, as it is stored: without the turn that EXIF data ask for. Fractions
of a pixel are cut off. The crop is fitted into 224 x 224 pixels on white, both resized bilinearly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from PIL import Image

from ...training.data.pictures import WHITE, PictureFault, open_picture, write_whole
from .suite import Case, Suite, SuiteError, existing_folder, read_json

SHORTER, SIDE = 800, 224  # pixels: of the photo that boxes are measured in, of the crop
WHAT, MASK = "MIP-Adapter's json_data", 1  # the second mask: the first is the background
FOLDER = "crops"
NOTE = "Painted from crops of the photos by the boxes of MIP-Adapter's repository, compared with the whole photos."
Corners = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def with_crops(suite: Suite, boxes: Path, made: Path) -> Suite:
    """Return the suite painted from crops and compared with what it was compared with before.

    Arguments:
        boxes: the folder `json_data`.
        made: folder into which crops are written that are not there yet.
    Raises:
        SuiteError: a box or a photo is missing, or damaged.
    """
    existing_folder(boxes, WHAT, "crops")
    crops: dict[str, str] = {}
    cases = []
    for case in suite.cases:
        for photo in (photo for subject in case.subjects for photo in subject.photos):
            if photo not in crops:
                crops[photo] = _made(suite.folder, photo, read_box(boxes, photo), made)
        cases.append(_from_crops(case, crops))
    return replace(suite, cases=tuple(cases), notes=(*suite.notes, NOTE), paint_folder=made)


def read_box(boxes: Path, photo: str) -> Corners:
    """Return the box of a photo `.../<concept>/<name>`. Raises SuiteError where there is none."""
    concept, name = PurePosixPath(photo).parts[-2:]
    path = boxes / concept / f"{name.split('.')[0]}.json"
    try:
        left, top, right, bottom = (int(value) for value in read_json(path, WHAT)["mask"][MASK]["box"])
        if right <= left or bottom <= top:
            raise ValueError(f"from {left}, {top} to {right}, {bottom}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise SuiteError(f"a box of {photo} in '{path}'", found, "Download it again.") from error
    return left, top, right, bottom


def cropped(picture: Image.Image, box: Corners) -> Image.Image:
    """Return the crop of a picture, 224 x 224 on white. box: see the module."""
    w, h = picture.size
    size = (SHORTER, int(SHORTER * h / w)) if w <= h else (int(SHORTER * w / h), SHORTER)
    crop = picture.resize(size, Image.Resampling.BILINEAR).crop(box)
    square = Image.new("RGB", (SIDE, SIDE), WHITE)
    w, h = fitted(crop.width, crop.height)
    square.paste(crop.resize((w, h), Image.Resampling.BILINEAR), ((SIDE - w) // 2, (SIDE - h) // 2))
    return square


def fitted(width: int, height: int) -> tuple[int, int]:
    """Return the size of a crop in the square: the longer side fills it, the other is rounded down."""
    ratio = width / height
    return (SIDE, max(1, int(SIDE / ratio))) if ratio > 1 else (max(1, int(SIDE * ratio)), SIDE)


def _made(folder: Path, photo: str, box: Corners, made: Path) -> str:
    """The path of a photo's crop relative to `made`. The box is in its name: another one makes another crop."""
    corners = "_".join(map(str, box))
    path = PurePosixPath(FOLDER, *PurePosixPath(photo).parts[-2:-1], f"{PurePosixPath(photo).name}.{corners}.png")
    if not (made / path).is_file():
        try:
            picture = open_picture(folder / photo, upright=False)
        except PictureFault as fault:
            raise SuiteError(f"the picture '{photo}'", f"{fault.reason}", "Download it again.") from fault
        write_whole(cropped(picture, box), made / path)
    return path.as_posix()


def _from_crops(case: Case, crops: dict[str, str]) -> Case:
    subjects = tuple(replace(one, photos=tuple(crops[photo] for photo in one.photos)) for one in case.subjects)
    return replace(case, subjects=subjects, compared=case.references)
