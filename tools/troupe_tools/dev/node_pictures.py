"""The small picture on each node's help page: the node with its sockets and widgets, and what is usually wired to it.

A drawing, not a screenshot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from typing import Any

from ..pack import ROOT

CONTRACT = ROOT / "tests" / "golden" / "node_contract.json"
DOCS = ROOT / "web" / "docs"
WIDGETS = {"COMBO", "STRING", "FLOAT", "INT"}
COLOURS = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "CONDITIONING": "#ffa931",
    "IMAGE": "#64b5f6",
    "LATENT": "#ff9cf9",
    "MASK": "#81c784",
    "CLIP_VISION": "#a8dadc",
    "GUIDER": "#66ffff",
    "VAE": "#ff6e6e",
}
OTHER = "#9a9a9a"  # the front end's colour of types that it does not know
# one for each socket; of all others one node for all sockets below each other
EACH = {"Load Image", "CLIP Text Encode", "Add Subject"}
ROW, HEAD, SIDE, NODE, WIRE, MARGIN = 22, 28, 176, 280, 36, 6  # pixels
USUAL = {  # what each socket is usually wired to; a socket that is not named is usually free
    "TroupeQuickSubjects": (
        {
            "model": "Load Checkpoint",
            "clip": "Load Checkpoint",
            "image_1": "Load Image",
            "image_2": "Load Image",
            "positive": "CLIP Text Encode",
            "negative": "CLIP Text Encode",
        },
        {"model": "KSampler", "positive": "KSampler", "negative": "KSampler"},
    ),
    "TroupeLoadAdapter": ({}, {"adapter": "Encode Subject References"}),
    "TroupeApplyWeights": (
        {"model": "Load Checkpoint", "clip": "Load Checkpoint", "adapter": "Load Subject Adapter"},
        {"model": "Apply Image Attention", "clip": "Encode Prompt with Subjects"},
    ),
    "TroupeFaces": ({"image": "Load Image", "analysis": "IPAdapter InsightFace Loader"}, {"faces": "Add Subject"}),
    "TroupeAddSubject": ({"image": "Load Image", "cast": "Add Subject"}, {"cast": "Encode Subject References"}),
    "TroupePlaceSubjects": (
        {"cast": "Add Subject"},
        {"cast": "Encode Subject References", "width": "Empty Latent Image", "height": "Empty Latent Image"},
    ),
    "TroupeEncodeSubjects": (
        {"adapter": "Load Subject Adapter", "cast": "Add Subject", "clip": "Load Checkpoint"},
        {"references": "Apply Image Attention"},
    ),
    "TroupeEncodePrompt": (
        {"clip": "Apply Adapter Weights", "references": "Encode Subject References"},
        {"conditioning": "Apply Image Attention", "text_only": "Two-Strength Guider"},
    ),
    "TroupeApplyImageAttention": (
        {
            "model": "Load Checkpoint",
            "references": "Encode Subject References",
            "positive": "CLIP Text Encode",
            "negative": "CLIP Text Encode",
        },
        {"model": "KSampler", "positive": "KSampler", "negative": "KSampler"},
    ),
    "TroupeApplyGated": (
        {
            "model": "Load Checkpoint",
            "references": "Encode Subject References",
            "positive": "CLIP Text Encode",
            "negative": "CLIP Text Encode",
        },
        {"model": "KSampler", "positive": "KSampler", "negative": "KSampler"},
    ),
    "TroupeSubjectGuider": (
        {"model": "Apply Gated Adapter", "positive": "Apply Gated Adapter", "negative": "Apply Gated Adapter"},
        {"guider": "SamplerCustomAdvanced"},
    ),
    "TroupeRecordRelevance": ({"model": "Apply Image Attention"}, {"model": "KSampler", "record": "Preview Relevance"}),
    "TroupeRehearsal": (
        {},
        {
            "model": "Apply Image Attention",
            "clip": "CLIP Text Encode",
            "vae": "VAE Decode",
            "adapter": "Encode Subject References",
            "image_1": "Add Subject",
            "image_2": "Add Subject",
        },
    ),
    "TroupePreviewRelevance": (
        {"record": "Record Relevance", "latent": "KSampler", "image": "VAE Decode"},
        {"maps": "Save Image"},
    ),
    "TroupeScoreSubjects": (
        {
            "image": "VAE Decode",
            "references": "Encode Subject References",
            "cast": "Place Subjects",
            "bounding_boxes": "a detector",
        },
        {"scores": "Keep Best", "matrix": "Save Image"},
    ),
    "TroupeKeepBest": (
        {"image": "VAE Decode", "scores": "Score Subjects", "latent": "KSampler"},
        {"image": "Save Image"},
    ),
}


@dataclass(frozen=True)
class Socket:
    """A socket's label, type, and the node that it is usually wired to ('' for none)."""

    label: str
    type: str
    wired: str = ""

    @property
    def colour(self) -> str:
        """Of the socket and its wire."""
        return COLOURS.get(self.type, OTHER)


def sockets(id: str, node: dict[str, Any]) -> tuple[list[Socket], list[Socket], list[tuple[str, str]]]:
    """Return inputs, outputs, and widgets with their defaults, of one node of the contract."""
    before, after = USUAL[id]
    free = [e for e in node["inputs"] if e["type"] not in WIDGETS or e.get("forceInput")]
    inputs = [Socket(e.get("shown_as", e["id"]), e["type"], before.get(e["id"], "")) for e in free]
    outputs = [Socket(e["name"], e["type"], after.get(e["name"], "")) for e in node["outputs"]]
    widgets = [(e["id"], f"{e.get('default', '')}") for e in node["inputs"] if e not in free]
    return inputs, outputs, widgets


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = "#dddddd", weight: str = "normal") -> str:
    """Return one line of words at x, on the line y."""
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}">{escape(words)}</text>'
    )


def box(x: float, y: float, w: float, h: float, fill: str, radius: float) -> str:
    """Return a rounded rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" fill="{fill}"/>'


def neighbours(found: list[Socket], top: float, x: float, end: float, edge: float) -> list[str]:
    """Return the nodes that sockets are wired to, one card for each run of sockets (see `EACH`), with wires from `end`
    of the card to the node's `edge`.
    """
    drawn, row = [], 0
    while row < len(found):
        last = row
        while last + 1 < len(found) and found[last + 1].wired == found[row].wired and found[row].wired not in EACH:
            last += 1
        if found[row].wired:
            drawn.append(box(x, top + ROW * row + 1, SIDE, ROW * (last - row + 1) - 2, "#4a4a52", 5))
            drawn.append(text(x + SIDE / 2, top + ROW * (row + last + 1) / 2 + 4, found[row].wired, "middle"))
            for i in range(row, last + 1):
                y = top + ROW * (i + 0.5)
                drawn.append(f'<path d="M{end:g} {y:g}H{edge:g}" stroke="{found[i].colour}" stroke-width="2.5"/>')
        row = last + 1
    return drawn


def picture(id: str, node: dict[str, Any]) -> str:
    """Draw the SVG of one node."""
    inputs, outputs, widgets = sockets(id, node)
    rows, left = max(len(inputs), len(outputs)), MARGIN + SIDE + WIRE
    right, top = left + NODE, MARGIN + HEAD
    tall = HEAD + ROW * (rows + len(widgets)) + 8
    drawn = [box(left, MARGIN, NODE, tall, "#35353b", 8), box(left, MARGIN, NODE, HEAD - 2, "#26272b", 8)]
    drawn.append(text(left + 12, MARGIN + 18, node["display_name"], weight="bold", fill="#ffffff"))
    drawn += neighbours(inputs, top, MARGIN, MARGIN + SIDE, left) + neighbours(
        outputs, top, right + WIRE, right + WIRE, right
    )
    for side, x, inward, anchor in ((inputs, left, 12, "start"), (outputs, right, -12, "end")):
        for i, socket in enumerate(side):
            y = top + ROW * (i + 0.5)
            drawn += [
                f'<circle cx="{x:g}" cy="{y:g}" r="5" fill="{socket.colour}"/>',
                text(x + inward, y + 4, socket.label, anchor),
            ]
    for i, (name, value) in enumerate(widgets, rows):
        y = top + ROW * i
        drawn += [
            box(left + 10, y + 2, NODE - 20, ROW - 4, "#1f2023", 9),
            text(left + 22, y + 15, name, fill="#a5a7b0"),
            text(right - 22, y + 15, value, "end"),
        ]
    wide, high = right + WIRE + SIDE + MARGIN, tall + 2 * MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" '
        'font-family="sans-serif" font-size="12" fill="none" role="img">'
    )
    return "\n".join([head, f"<title>{escape(node['display_name'])}</title>", *drawn, "</svg>"]) + "\n"


def pictures() -> dict[str, str]:
    """Return {file name: SVG} of every node in the contract."""
    return {
        f"{id}.svg": picture(id, node) for id, node in json.loads(CONTRACT.read_text(encoding="utf-8"))["nodes"].items()
    }


def main() -> None:
    """Write web/docs/<NodeId>.svg for every node."""
    for name, drawing in pictures().items():
        (DOCS / name).write_text(drawing, encoding="utf-8")
