"""The cast's silhouettes: ten classes of pixel art, drawn as text.

Each sprite has 10 x 10 cells: `.` transparent, `#` body (its pattern goes here), `o` accent, `x` dark, `w` white.
`small` leaves two rows and two columns out, `tall` repeats four rows; every variant has even sides, so that a sprite
lies on whole latent cells.
"""

from __future__ import annotations

from dataclasses import dataclass

SIDE = 10


@dataclass(frozen=True)
class Sprite:
    """Drawing of a class. rows: the drawing; dropped_rows, dropped_columns: left out by `small`; repeated: rows doubled
    by `tall`; band: the row of a ribbon; badge: top left cell of a 2 x 2 badge.
    """

    rows: tuple[str, ...]
    dropped_rows: tuple[int, int]
    dropped_columns: tuple[int, int]
    repeated: tuple[int, int, int, int]
    band: int
    badge: tuple[int, int]


SPRITES: dict[str, Sprite] = {
    "robot": Sprite(
        (
            "...####...",
            "..######..",
            "..#xxxx#..",
            "..######..",
            "#########o",
            "o#######.o",
            "o.######.o",
            "..######..",
            "..##..##..",
            "..oo..oo..",
        ),
        (3, 7),
        (3, 6),
        (4, 5, 6, 8),
        4,
        (5, 4),
    ),
    "cat": Sprite(
        (
            "##...##..o",
            "#######..#",
            "#x##x##..#",
            "#######..#",
            "##oo###.##",
            "#########.",
            "#########.",
            ".########.",
            ".##..###..",
            ".oo..ooo..",
        ),
        (3, 8),
        (3, 8),
        (3, 5, 6, 7),
        5,
        (6, 4),
    ),
    "fish": Sprite(
        (
            "....ooo...",
            "...ooo....",
            "..#####..o",
            ".#######oo",
            "#x######oo",
            "########oo",
            "########oo",
            ".#######oo",
            "..#####..o",
            "...oo.....",
        ),
        (3, 7),
        (2, 6),
        (3, 5, 6, 7),
        6,
        (4, 4),
    ),
    "house": Sprite(
        (
            "....oo....",
            "...oooo...",
            "..oooooo..",
            ".oooooooo.",
            "oooooooooo",
            ".########.",
            ".#ww#####.",
            ".#ww#xx##.",
            ".####xx##.",
            ".####xx##.",
        ),
        (1, 2),
        (4, 8),
        (5, 6, 7, 8),
        5,
        (5, 6),
    ),
    "car": Sprite(
        (
            "..........",
            "...#####..",
            "..#ww#w##.",
            "..#ww#w##.",
            "##########",
            "##########",
            "o########o",
            "##########",
            ".xx....xx.",
            ".xx....xx.",
        ),
        (3, 7),
        (3, 7),
        (3, 4, 5, 7),
        4,
        (5, 4),
    ),
    "tree": Sprite(
        (
            "...####...",
            ".########.",
            "##########",
            "##########",
            "##########",
            ".########.",
            "...####...",
            "....oo....",
            "....oo....",
            "...oooo...",
        ),
        (2, 8),
        (3, 6),
        (2, 4, 7, 8),
        3,
        (4, 4),
    ),
    "mug": Sprite(
        (
            "..........",
            "oooooooo..",
            "########..",
            "########oo",
            "########.o",
            "########.o",
            "########.o",
            "########oo",
            "########..",
            ".######...",
        ),
        (6, 8),
        (1, 6),
        (4, 5, 6, 8),
        7,
        (4, 3),
    ),
    "bird": Sprite(
        (
            "......###.",
            ".....#x##o",
            ".....#####",
            "#...#####.",
            "##.ooo###.",
            "####ooo##.",
            ".########.",
            "..######..",
            "....o..o..",
            "...oo.oo..",
        ),
        (2, 5),
        (3, 7),
        (2, 6, 7, 8),
        6,
        (6, 5),
    ),
    "rocket": Sprite(
        (
            "....oo....",
            "...oooo...",
            "..######..",
            "..##ww##..",
            "..##ww##..",
            "..######..",
            ".o######o.",
            "oo######oo",
            "oo######oo",
            "o..x..x..o",
        ),
        (1, 5),
        (3, 6),
        (2, 5, 6, 7),
        6,
        (7, 4),
    ),
    "ghost": Sprite(
        (
            "...####...",
            ".########.",
            ".########.",
            "##xx##xx##",
            "##xx##xx##",
            "##########",
            "####oo####",
            "##########",
            "##########",
            "##..##..##",
        ),
        (2, 5),
        (1, 8),
        (1, 2, 5, 8),
        7,
        (7, 4),
    ),
}
CLASSES = tuple(SPRITES)
# worn on top, in the dark colour with a band of the accent
HAT = ("...xxxx...", "...xxxx...", "...oooo...", ".xxxxxxxx.")
