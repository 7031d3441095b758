"""One colour for each subject, the same in every picture that shows subjects."""

from __future__ import annotations

# Okabe and Ito's colours, which colour-blind people can tell apart, with a light grey in place of black.
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#dddddd")


def colour_of(index: int) -> str:
    """Return the colour of the subject at `index`, counted from 0; they repeat after eight."""
    return PALETTE[index % len(PALETTE)]


def ink_on(colour: str) -> str:
    """Return black or white, whichever is read better on '#rrggbb' (WCAG's contrast)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    light = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#ffffff"
