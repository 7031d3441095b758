"""Nodes of a graph that overlap."""

from itertools import combinations


def overlaps(found):
    """(title, title, width, height) of each part that two nodes share."""
    shared = []
    for a, b in combinations(found, 2):
        width, height = (
            min(a[at] + a[size], b[at] + b[size]) - max(a[at], b[at]) for at, size in (("x", "w"), ("y", "h"))
        )
        if min(width, height) > 1:  # a pixel for the front end's rounding
            shared.append((a["title"], b["title"], round(width), round(height)))
    return shared
