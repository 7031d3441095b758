"""The rehearsal world: pictures drawn by rule, in which it is known exactly who is where and who looks like what.

A picture has 32 x 32 cells of 4 pixels. One to three subjects are side by side in front of a background. A subject's
class, size and hat are in the caption. Its look (two colours, pattern, accessory) is not: it is what a reference
picture must show.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .sprites import CLASSES, HAT, SIDE, SPRITES

CELLS = 32  # of a picture's side
CELL = 4  # pixels of a cell's side
PIXELS = CELLS * CELL
MOST = 3  # subjects in a picture
GAP = 2  # cells between two subjects, where there is room

Colour = tuple[int, int, int]
COLOURS: dict[str, Colour] = {
    "red": (225, 45, 55),
    "orange": (250, 150, 30),
    "yellow": (255, 230, 60),
    "lime": (150, 220, 50),
    "green": (20, 130, 75),
    "cyan": (60, 210, 225),
    "blue": (45, 85, 215),
    "purple": (125, 55, 175),
    "pink": (255, 135, 190),
    "brown": (135, 80, 45),
}
DARK: Colour = (30, 25, 40)
WHITE: Colour = (250, 250, 250)
PATTERNS = ("plain", "stripes", "dots", "half")
ACCESSORIES = ("none", "ribbon", "badge")
PLACES = ("on grass", "on sand", "in the snow", "at night", "in a room", "by the sea")
VARIANTS = ("", "small", "tall", "with a hat")  # "": nothing said, ten by ten cells, no hat
PAPER: Colour = (255, 255, 255)  # behind a reference


@dataclass(frozen=True)
class Look:
    """Look of an individual, which no caption mentions: body and accent (keys of COLOURS), pattern (of PATTERNS),
    accessory (of ACCESSORIES).
    """

    body: str
    accent: str
    pattern: str
    accessory: str

    @property
    def held_out(self) -> bool:
        """Whether this look is for tests: one in five pairs of colours is, whichever is the body's, with every pattern
        and accessory. No reference of one is trained on.
        """
        names = list(COLOURS)
        return (names.index(self.body) + names.index(self.accent)) % 5 == 0


@dataclass(frozen=True)
class Figure:
    """One subject: class (of CLASSES), look, variant (of VARIANTS)."""

    kind: str
    look: Look
    variant: str = ""

    @property
    def words(self) -> str:
        """Its noun phrase in a caption, without the article: 'tall cat', 'cat with a hat'."""
        return (
            f"{self.kind} {self.variant}" if self.variant.startswith("with") else f"{self.variant} {self.kind}".strip()
        )


@dataclass(frozen=True)
class PlacedFigure:
    """A figure in a picture: column and row of its top left cell."""

    figure: Figure
    column: int
    row: int


@dataclass(frozen=True)
class Scene:
    """Drawn scene. place: of PLACES; subjects from left to right; mentioned: their order in the caption; decoration:
    seed of clouds, stars and the like.
    """

    place: str
    subjects: tuple[PlacedFigure, ...]
    mentioned: tuple[int, ...]
    decoration: int = 0
    plain: bool = True

    @property
    def caption(self) -> str:
        """Ordinary English: 'a small cat and a robot on grass'."""
        return caption([self.subjects[i].figure.words for i in self.mentioned], self.place, self.plain)


def caption(names: Sequence[str], place: str, plain: bool = True) -> str:
    """Return the caption. names: noun phrases without article.

    'a cat and a robot on grass', 'a cat, a fish and a robot on grass'; with 'a picture of' where not plain.
    """
    nouns = [f"a {name}" for name in names]
    listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    return f"{'' if plain else 'a picture of '}{listed} {place}"


# ---- drawing -------------------------------------------------------------------


def figure_cells(figure: Figure, colours: Mapping[str, Colour] = COLOURS) -> tuple[np.ndarray, np.ndarray]:
    """Return ([h, w, 3] uint8 colours, [h, w] bool of cells that are drawn).

    Sides are even: 10 x 10, small 8 x 8, tall 14 x 10, with a hat 14 x 10.
    """
    sprite, look = SPRITES[figure.kind], figure.look
    grid = np.array([list(row) for row in sprite.rows])
    coloured = {"#": colours[look.body], "o": colours[look.accent], "x": DARK, "w": WHITE, ".": PAPER}
    rows, columns = list(range(SIDE)), list(range(SIDE))
    if figure.variant == "small":
        rows = [row for row in rows if row not in sprite.dropped_rows]
        columns = [column for column in columns if column not in sprite.dropped_columns]
    elif figure.variant == "tall":
        rows = sorted(rows + list(sprite.repeated))
    letters = grid[np.ix_(rows, columns)]
    body = letters == "#"
    y, x = np.indices(letters.shape)
    pattern = {
        "plain": np.zeros_like(body),
        "stripes": y % 2 == 1,
        "dots": (x % 2 == 1) & (y % 2 == 1),
        "half": x >= letters.shape[1] // 2,
    }[look.pattern]
    picture = np.zeros((*letters.shape, 3), np.uint8)
    for letter, colour in coloured.items():
        picture[letters == letter] = colour
    picture[body & pattern] = colours[look.accent]
    if look.accessory == "ribbon":
        row = rows.index(sprite.band)
        picture[row][body[row]] = WHITE
    elif look.accessory == "badge":
        top, left = rows.index(sprite.badge[0]), columns.index(sprite.badge[1])
        picture[top : top + 2, left : left + 2] = WHITE
    drawn = letters != "."
    if figure.variant == "with a hat":
        hat = np.array([list(row) for row in HAT])
        above = np.zeros((*hat.shape, 3), np.uint8)
        for letter, colour in coloured.items():
            above[hat == letter] = colour
        picture, drawn = np.concatenate([above, picture]), np.concatenate([hat != ".", drawn])
    return picture, drawn


def background_cells(place: str, decoration: int = 0) -> np.ndarray:
    """Draw the background, [32, 32, 3] uint8. The horizon lies at row 18; `decoration` moves clouds, stars, window and
    sails.
    """
    upper, lower = {
        "on grass": ((150, 205, 255), (95, 175, 75)),
        "on sand": ((255, 225, 180), (225, 190, 120)),
        "in the snow": ((190, 215, 240), (240, 245, 250)),
        "at night": ((25, 25, 65), (55, 50, 85)),
        "in a room": ((230, 210, 195), (160, 115, 85)),
        "by the sea": ((185, 225, 250), (50, 120, 190)),
    }[place]
    picture = np.empty((CELLS, CELLS, 3), np.uint8)
    picture[:18], picture[18:] = upper, lower
    chance = random.Random(decoration)
    column = 2 * chance.randrange(13)
    if place == "on grass":
        picture[2:4, column : column + 6] = WHITE
    elif place == "on sand":
        picture[2:6, column : column + 4] = (255, 190, 90)
    elif place == "in the snow":
        for _ in range(6):
            picture[2 * chance.randrange(8), 2 * chance.randrange(16)] = WHITE
    elif place == "at night":
        for _ in range(6):
            picture[2 * chance.randrange(8), 2 * chance.randrange(16)] = (255, 240, 170)
    elif place == "in a room":
        picture[2:8, column : column + 6] = (150, 205, 255)
    else:
        picture[26:] = (225, 190, 120)
    return picture


def enlarge(cells: np.ndarray, size: int = CELL) -> np.ndarray:
    """Enlarge [h, w, ...] to [h * size, w * size, ...], every cell a square of pixels."""
    return cells.repeat(size, 0).repeat(size, 1)


def draw_cells(scene: Scene) -> np.ndarray:
    """Draw a scene as cells, [32, 32, 3] uint8."""
    picture = background_cells(scene.place, scene.decoration)
    for subject in scene.subjects:
        cells, drawn = figure_cells(subject.figure)
        h, w = drawn.shape
        picture[subject.row : subject.row + h, subject.column : subject.column + w][drawn] = cells[drawn]
    return picture


def draw(scene: Scene) -> np.ndarray:
    """Draw a scene as pixels, [128, 128, 3] uint8."""
    return enlarge(draw_cells(scene))


def masks(scene: Scene) -> np.ndarray:
    """Return [subjects, 32, 32] bool: the cells that each subject covers. No subject hides another."""
    found = np.zeros((len(scene.subjects), CELLS, CELLS), bool)
    for mask, subject in zip(found, scene.subjects, strict=True):
        _, drawn = figure_cells(subject.figure)
        h, w = drawn.shape
        mask[subject.row : subject.row + h, subject.column : subject.column + w] = drawn
    return found


def boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    """Return x, y, w, h of each subject, 0..1, origin top left."""
    found = []
    for subject in scene.subjects:
        h, w = figure_cells(subject.figure)[1].shape
        found.append((subject.column / CELLS, subject.row / CELLS, w / CELLS, h / CELLS))
    return found


def reference_cells(
    figure: Figure, shift: tuple[int, int] = (0, 0), flip: bool = False, colours: Mapping[str, Colour] = COLOURS
) -> np.ndarray:
    """Draw [32, 32, 3] uint8: the figure at twice its size on white paper, moved by `shift` (rows, columns) from the
    middle.
    """
    cells, drawn = figure_cells(figure, colours)
    cells = enlarge(np.where(drawn[..., None], cells, np.uint8(255)), 2)
    if flip:
        cells = cells[:, ::-1]
    h, w = cells.shape[:2]
    picture = np.full((CELLS, CELLS, 3), PAPER, np.uint8)
    top, left = (CELLS - h) // 2 + shift[0], (CELLS - w) // 2 + shift[1]
    top, left = min(max(top, 0), CELLS - h), min(max(left, 0), CELLS - w)
    picture[top : top + h, left : left + w] = cells
    return picture


def reference(figure: Figure) -> np.ndarray:
    """Draw [128, 128, 3] uint8: the picture of a figure that an artist would choose as reference."""
    return enlarge(reference_cells(replace(figure, variant="")))


# ---- chance --------------------------------------------------------------------


def all_looks(held_out: bool) -> list[Look]:
    """Return every look of one half of the split."""
    every = [
        Look(body, accent, pattern, accessory)
        for body in COLOURS
        for accent in COLOURS
        if body != accent
        for pattern in PATTERNS
        for accessory in ACCESSORIES
    ]
    return [look for look in every if look.held_out == held_out]


ALONE = 0.3  # part of the drawn pictures with one subject
TRAINING_LOOKS, TEST_LOOKS = all_looks(False), all_looks(True)
ALL_LOOKS = TRAINING_LOOKS + TEST_LOOKS


def random_figures(
    chance: random.Random, count: int, same_class: bool = False, choice: Sequence[Look] = TRAINING_LOOKS
) -> tuple[Figure, ...]:
    """Draw `count` figures of different looks and bodies; of one class they differ in their variant, which the words
    then say.
    """
    looks: list[Look] = []
    while len(looks) < count:
        look = chance.choice(choice)
        if all(look.body != other.body for other in looks):
            looks.append(look)
    if same_class:
        kinds, variants = [chance.choice(CLASSES)] * count, chance.sample(VARIANTS[1:], count)
    else:
        kinds, variants = (
            chance.sample(CLASSES, count),
            [chance.choice(("", "", "", *VARIANTS[1:])) for _ in range(count)],
        )
    return tuple(Figure(*parts) for parts in zip(kinds, looks, variants, strict=True))


def place_figures(chance: random.Random, figures: Sequence[Figure]) -> Scene:
    """Make a scene with the figures in an order and at places of chance, on even cells."""
    order = list(range(len(figures)))
    chance.shuffle(order)
    widths = [figure_cells(figures[i])[1].shape[1] for i in order]
    gap = GAP if sum(widths) + GAP * (len(order) - 1) <= CELLS else 0
    spare = (CELLS - sum(widths) - gap * (len(order) - 1)) // 2
    cuts = sorted(chance.randint(0, spare) for _ in order)
    subjects, column = [], 0
    for nth, (i, width) in enumerate(zip(order, widths, strict=True)):
        height = figure_cells(figures[i])[1].shape[0]
        left = column + 2 * (cuts[nth] - (cuts[nth - 1] if nth else 0))
        subjects.append(PlacedFigure(figures[i], left, 2 * chance.randint(12, 15) - height))
        column = left + width + gap
    mentioned = tuple(order.index(i) for i in range(len(figures)))
    return Scene(chance.choice(PLACES), tuple(subjects), mentioned, chance.randrange(1 << 30), chance.random() < 0.5)


def random_scene(chance: random.Random, choice: Sequence[Look] = TRAINING_LOOKS, alone: float = ALONE) -> Scene:
    """Draw a scene: one subject in a part `alone` of the pictures; of the others half have two of different classes,
    three in ten two of one class, two in ten three.
    """
    number = (chance.random() - alone) / (1 - alone)
    count, same = (
        (1, False) if number < 0 else (2, False) if number < 0.5 else (2, True) if number < 0.8 else (3, False)
    )
    return place_figures(chance, random_figures(chance, count, same, choice))
