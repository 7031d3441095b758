"""Thumbnails of the template workflows: the references and the graph, drawn from the workflow's own node rectangles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from ..pack import ROOT, WORKFLOWS, load_pack
from ..workflow.job import PLACE, read_job
from ..workflow.photos import real_photos
from ..workflow.virtual import NOTES
from ..workflow.workflow_files import read_workflow
from .thumbnail_style import CARD, DIM, HEAD, INK, MARGIN, OURS, PAPER, SCALE, SIZE, font

WIRES = {
    "MODEL": (178, 157, 219),
    "CLIP": (255, 213, 0),
    "CONDITIONING": (255, 169, 49),
    "IMAGE": (100, 181, 246),
    "LATENT": (255, 156, 249),
    "VAE": (255, 110, 110),
}
TALLEST = 560  # of a node in the drawing, in the canvas's units
QUALITY = 88  # of the JPEG
TITLES = {  # part of a file's name -> what a title says instead
    "Research mm diff rehearsal": "Research: MM-Diff, a rehearsal",
    "mm diff": "with MM-Diff",
    "Research ip adapter rehearsal": "Research: IP-Adapter, a rehearsal",
    "Research fastcomposer rehearsal": "Research: FastComposer, a rehearsal",
    "Research subject diffusion rehearsal": "Research: Subject-Diffusion, a rehearsal",
    "Research umm rehearsal": "Research: UMM-Diffusion, a rehearsal",
    "Research umm": "Research: UMM",
    "Research subject diffusion": "Research: Subject-Diffusion",
    "Start here rehearsal": "Start here: a rehearsal",
    "Rehearsal compare": "Compare the merges",
    "Rehearsal keep best": "Keep the best of a batch",
    "illustrious": "on Illustrious",
    "Place subjects": "Place subjects: names in boxes",
}


@dataclass(frozen=True)
class PlacedBoxes:
    """Width by height of the picture, and each placed subject's name with its x, y, w, h in 0..1."""

    shape: float
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]


def thumbnail(workflow: dict[str, Any], photos: list[Image.Image], title: str) -> Image.Image:
    """Draw an 800x600 picture: the title, the references with their names, and the graph below."""
    canvas = Image.new("RGB", (SIZE[0] * SCALE, SIZE[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN * SCALE, 20 * SCALE), title, INK, font(34))
    names = subject_names(workflow)
    side = 236
    boxes, left = placed_boxes(workflow), MARGIN
    if reads_photos(workflow):
        spread = [MARGIN + i * (side + 20) for i in range(len(names))]
        for x, photo, name in zip(spread, photos, names, strict=False):
            _photo(canvas, draw, photo, name, (x, 80, side))
        _arrow(draw, (spread[-1] + side + 14, 80 + side // 2))
        left = spread[-1] + side + 76
    _promise(draw, (left, 80, SIZE[0] - MARGIN, 80 + side), workflow, boxes)
    _graph(canvas, draw, workflow, photos, boxes, (MARGIN, 356, SIZE[0] - MARGIN, SIZE[1] - 24))
    return canvas.resize(SIZE, Image.Resampling.LANCZOS)


def subject_names(workflow: dict[str, Any]) -> list[str]:
    """Return the names of the subjects, in the order of the cast."""
    return [subject.name for subject in read_job(workflow).subjects]


def reads_photos(workflow: dict[str, Any]) -> bool:
    """Return whether the adapter makes something of the photos: all but GLIGEN's text boxes."""
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import GATED, published_file

    known = published_file(read_job(workflow).encoded[0].adapter)
    return known not in GATED or bool(known.encoder)


def placed_boxes(workflow: dict[str, Any]) -> PlacedBoxes | None:
    """Return where the workflow's Place Subjects puts the subjects; None if it has no such node."""
    load_pack()
    from troupe.model_patches.placement.placing import place_subjects
    from troupe.model_patches.subjects import Cast, Subject

    apply = read_job(workflow).encoded[0]
    if not apply.places:
        return None
    cast = Cast(tuple(Subject(subject.name, ()) for subject in apply.subjects))
    place = apply.places[-1]
    subjects = place_subjects(cast, place.width, place.height, place.boxes, place.layout)[0].subjects
    return PlacedBoxes(
        place.width / place.height, tuple((s.name, (s.box.x, s.box.y, s.box.w, s.box.h)) for s in subjects if s.box)
    )


def _box(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    fill: Any,
    radius: float,
    outline: Any = None,
    width: int = 1,
) -> None:
    draw.rounded_rectangle([value * SCALE for value in box], radius * SCALE, fill, outline, width * SCALE)


def _photo(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, photo: Image.Image, name: str, place: tuple[int, int, int]
) -> None:
    """A square crop with rounded corners and the subject's name on it."""
    x, y, side = place
    square = _square(photo, side)
    mask = Image.new("L", square.size)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, *square.size), 14 * SCALE, 255)
    canvas.paste(square, (x * SCALE, y * SCALE), mask)
    text = font(26)
    wide = draw.textlength(name, text) / SCALE + 28
    _box(draw, (x + 12, y + side - 54, x + 12 + wide, y + side - 12), HEAD, 10)
    draw.text(((x + 26) * SCALE, (y + side - 33) * SCALE), name, INK, text, anchor="lm")


def _square(photo: Image.Image, side: int) -> Image.Image:
    """The middle of a photo as a square of `side` pixels (times SCALE)."""
    short = min(photo.size)
    left, top = (photo.width - short) // 2, (photo.height - short) // 2
    return photo.crop((left, top, left + short, top + short)).resize(
        (side * SCALE, side * SCALE), Image.Resampling.LANCZOS
    )


def _arrow(draw: ImageDraw.ImageDraw, at: tuple[float, float]) -> None:
    x, y = at
    _box(draw, (x, y - 5, x + 30, y + 5), OURS, 5)
    draw.polygon(
        [(value[0] * SCALE, value[1] * SCALE) for value in ((x + 26, y - 18), (x + 50, y), (x + 26, y + 18))], OURS
    )


def _promise(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    workflow: dict[str, Any],
    boxes: PlacedBoxes | None,
) -> None:
    """An empty picture frame with what will be in it, or with the boxes."""
    _box(draw, box, (30, 31, 36), 14, OURS, 3)
    middle = (box[0] + box[2]) / 2 * SCALE
    if boxes is not None:
        _boxes(draw, boxes, (box[0] + 8, box[1] + 8, box[2] - 8, box[3] - 56), 17)
        draw.text((middle, (box[3] - 42) * SCALE), "one picture", INK, font(20), anchor="mm")
        draw.text((middle, (box[3] - 18) * SCALE), base_model(workflow), DIM, font(15), anchor="mm")
        return
    lines = [
        ("one picture", 26, INK),
        *[(name, 22, OURS) for name in subject_names(workflow)],
        (base_model(workflow), 16, DIM),
    ]
    step = (box[3] - box[1] - 40) / len(lines)
    for i, (line, size, colour) in enumerate(lines):
        draw.text((middle, (box[1] + 20 + step * (i + 0.5)) * SCALE), line, colour, font(size), anchor="mm")


def _boxes(
    draw: ImageDraw.ImageDraw, places: PlacedBoxes, box: tuple[float, float, float, float], size: int = 0
) -> None:
    """The picture with its boxes, in their colours of the editor, as large as it can be in the middle of `box`; names
    where `size` is not 0.
    """
    from troupe.model_patches.placement.palette import colour_of, ink_on

    wide = min(box[2] - box[0], (box[3] - box[1]) * places.shape)
    high = wide / places.shape
    left, top = (box[0] + box[2] - wide) / 2, (box[1] + box[3] - high) / 2
    _box(draw, (left, top, left + wide, top + high), CARD, 4)
    for i, (name, (x, y, w, h)) in enumerate(places.boxes):
        corner = (left + x * wide, top + y * high)
        _box(draw, (*corner, corner[0] + w * wide, corner[1] + h * high), colour_of(i), 3)
        fits = next((s for s in range(size, 8, -1) if draw.textlength(name, font(s)) < (w * wide - 4) * SCALE), 0)
        if fits:
            draw.text(
                ((corner[0] + w * wide / 2) * SCALE, (corner[1] + h * high / 2) * SCALE),
                name,
                ink_on(colour_of(i)),
                font(fits),
                anchor="mm",
            )


def base_model(workflow: dict[str, Any]) -> str:
    """Return 'SDXL', 'SD1.5', 'SD2' or 'Illustrious', from the checkpoint's name."""
    name = next(str(n["widgets_values"][0]) for n in workflow["nodes"] if n["type"] == "CheckpointLoaderSimple")
    return next(
        (
            base
            for part, base in (("illustrious", "Illustrious"), ("v1-5", "SD1.5"), ("v2-1", "SD2"))
            if part in name.lower()
        ),
        "SDXL",
    )


def _graph(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    workflow: dict[str, Any],
    photos: list[Image.Image],
    boxes: PlacedBoxes | None,
    box: tuple[float, float, float, float],
) -> None:
    """The nodes and links, scaled into the box; notes are left out, and the tall preview of the result is cut short."""
    nodes = {
        n["id"]: {**n, "size": (n["size"][0], min(n["size"][1], TALLEST))}
        for n in workflow["nodes"]
        if n["type"] not in NOTES
    }
    left, top = min(n["pos"][0] for n in nodes.values()), min(n["pos"][1] for n in nodes.values()) - 30
    right, bottom = (max(n["pos"][a] + n["size"][a] for n in nodes.values()) for a in (0, 1))
    scale = min((box[2] - box[0]) / (right - left), (box[3] - box[1]) / (bottom - top))
    dx, dy = (
        box[0] + (box[2] - box[0] - (right - left) * scale) / 2,
        box[1] + (box[3] - box[1] - (bottom - top) * scale) / 2,
    )

    def place(x: float, y: float) -> tuple[float, float]:
        return dx + (x - left) * scale, dy + (y - top) * scale

    for _, source, out, target, into, kind in workflow["links"]:
        a, b = nodes[source], nodes[target]
        start, end = (
            place(a["pos"][0] + a["size"][0], a["pos"][1] + 14 + 20 * out),
            place(b["pos"][0], b["pos"][1] + 14 + 20 * into),
        )
        _wire(draw, start, end, WIRES.get(kind, OURS if kind.startswith("TROUPE") else DIM))
    for n in nodes.values():
        ours = n["type"].startswith("Troupe")
        x0, y0 = place(n["pos"][0], n["pos"][1] - 30)
        x1, y1 = place(n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1])
        _box(draw, (x0, y0, x1, y1), (44, 74, 64) if ours else CARD, 4, OURS if ours else None, 2 if ours else 0)
        _label(draw, n.get("title") or n["type"], (x0, y0, x1, y1), INK if ours else DIM)
    for n, photo in zip((n for n in nodes.values() if n["type"] == "LoadImage"), photos, strict=False):
        (x0, y0), (x1, y1) = (
            place(n["pos"][0], n["pos"][1] + 90),
            place(n["pos"][0] + n["size"][0], n["pos"][1] + n["size"][1]),
        )
        small = _square(photo, int(min(x1 - x0, y1 - y0) - 6))
        canvas.paste(small, (int((x0 + x1) / 2 * SCALE - small.width / 2), int((y1 - 3) * SCALE - small.height)))
    for n in nodes.values():
        if n["type"] == PLACE and boxes is not None:
            x, y, (wide, high) = *n["pos"], n["size"]
            _boxes(draw, boxes, (*place(x + 20, y + high / 2), *place(x + wide - 20, y + high - 20)))


def _label(draw: ImageDraw.ImageDraw, text: str, box: tuple[float, float, float, float], colour: Any) -> None:
    """The title, broken into lines that fit the node; what does not fit is left out."""
    size = 12
    wide, lines = (box[2] - box[0] - 8) * SCALE, [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = lines[:-1] + [longer] if draw.textlength(longer, font(size)) <= wide else lines + [word]
    lines = [line for line in lines if line]
    room = max(1, int((box[3] - box[1]) // (size + 2)))
    y = box[1] + 3 if len(lines) < room else (box[1] + box[3] - (size + 1) * min(len(lines), room)) / 2
    for i, line in enumerate(lines[:room]):
        if draw.textlength(line, font(size)) <= wide + 8 * SCALE:
            draw.text(((box[0] + 5) * SCALE, (y + i * (size + 2)) * SCALE), line, colour, font(size))


def _wire(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: Any) -> None:
    """A cubic curve that leaves and arrives level, as on the canvas."""
    bend = max(12.0, abs(end[0] - start[0]) * 0.4)
    points = []
    for i in range(25):
        t = i / 24
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        xs, ys = (start[0], start[0] + bend, end[0] - bend, end[0]), (start[1], start[1], end[1], end[1])
        points.append(
            (
                sum(w * x for w, x in zip(weights, xs, strict=True)) * SCALE,
                sum(w * y for w, y in zip(weights, ys, strict=True)) * SCALE,
            )
        )
    draw.line(points, colour, 2 * SCALE, joint="curve")


def title_of(name: str) -> str:
    """Return the title of a template: 'Research: UMM fused guidance' for research_umm_fused_guidance, 'Place subjects'
    for 7_place_subjects.
    """
    title = name.lstrip("0123456789_").replace("_", " ").capitalize()
    for written, said in TITLES.items():
        title = title.replace(written, said)
    return title


def draw_thumbnail(name: str, workflow: dict[str, Any], photos: list[Image.Image]) -> Image.Image:
    """Draw the thumbnail of a template by its name."""
    from .best_thumbnail import best_thumbnail
    from .prompt_thumbnail import prompt_thumbnail
    from .rehearsal_thumbnails import rehearsal_thumbnail

    title = title_of(name)
    if "rehearsal" not in name:
        return thumbnail(workflow, photos, title)
    types = {node["type"] for node in workflow["nodes"]}
    if "TroupeEncodePrompt" in types:
        return prompt_thumbnail(workflow, title)
    return (best_thumbnail if "TroupeScoreSubjects" in types else rehearsal_thumbnail)(workflow, title)


def main(names: list[str]) -> None:
    """Write workflows/<name>.jpg for the named templates, or for all."""
    photos = [Image.open(path).convert("RGB") for path in real_photos()]
    for path in sorted(WORKFLOWS.glob("*.json")):
        if not names or path.stem in names:
            target = path.with_suffix(".jpg")
            draw_thumbnail(path.stem, read_workflow(path), photos).save(target, quality=QUALITY)
            print(f"{target.relative_to(ROOT)}")
