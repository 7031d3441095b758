"""Troupe's nodes in the place of one row of IPAdapter_plus's nodes, with a note that says what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, cast

from ..pack import load_pack
from .graph import Graph, values_of
from .guess_names import Guess, guess_names
from .ipadapter_nodes import Choice, Stacked
from .ipadapter_regions import origin_of, own_prompt, prompts_of, region_of
from .job import ADD, APPLY, ENCODE, LOAD
from .node_layout import GAP, HEAD, leftmost, put_in_group
from .rewire import Origin, Wiring

MOST = 2.0  # of Apply Image Attention's weight
WIDE = 370  # pixels of the note
COLUMN = 2  # Add Subject nodes below one another
TITLE = "Subjects: check the names, then set merge to relevance"
TO_FILL_IN = {"color": "#432", "bgcolor": "#653"}  # the front end's yellow
NOTE = """These nodes replace {n} IPAdapter node{s} and do the same, as closely as possible: each photo acts {where} at its own strength (merge: add).

To give each photo to its own subject:
{steps}

Names:
{names}

With relevance, weights of 0.5 to 0.65 work better than higher ones.{more}"""
CHECK = (
    "Check 'name' in every Add Subject node. It must be the word for this subject in your prompt, and no two "
    "may be the same."
)
WIRE_CLIP = "Wire the checkpoint's CLIP into 'clip' of Encode Subject References."
SWITCH = "Set 'merge' of Apply Image Attention to relevance."
OVERLAP = (
    "\n\nWhere regions do not overlap, relevance changes nothing: unplug 'region' of a subject to let its name decide."
)


class Columns:
    """A layout that puts new nodes below one another, column by column; `nodes` are all of them."""

    def __init__(self, wiring: Wiring, top: float):
        self.wiring, self.top, self.nodes = wiring, top, []
        self._x, self._y, self._width = leftmost(wiring.workflow), top, 0.0

    def put(
        self, kind: str, title: str, values: dict[str, Any] | str, size: tuple[float, float] | None = None
    ) -> dict[str, Any]:
        """Return a new node; its class's usual size if none is given."""
        node = self.wiring.add(kind, title, values, (self._x, self._y))
        node["size"] = list(size or node["size"])
        self.nodes.append(node)
        self._y, self._width = self._y + node["size"][1] + HEAD, max(self._width, node["size"][0])
        return node

    def next(self) -> None:
        """Begin a new column."""
        self._x, self._y, self._width = self._x + self._width + GAP, self.top, 0.0


def write_chain(
    wiring: Wiring, graph: Graph, chain: Sequence[Stacked], loaders: dict[tuple[str, str], dict[str, Any]], top: float
) -> tuple[float, list[Guess]]:
    """Put in the nodes of one cast, in a group of their own below everything else: the note and the loader, the
    subjects, and what takes them.

    Returns where the next group may begin, and the subjects' names.
    """
    columns = Columns(wiring, top)
    choice, framing = chain[0].choice, framing_of(chain)
    prompts, clip = prompts_of(wiring, graph, chain)
    photos = [_photo(wiring, graph, one, framing) for one in chain]
    guesses = guess_names(
        [own_prompt(graph, one) for one in chain], [_file_of(wiring, photo) for photo in photos], prompts
    )
    note = _note(guesses, [region_of(wiring, graph, one) is not None for one in chain], has_clip=clip is not None)
    columns.put("Note", "From IPAdapter to Troupe", note, (WIDE, _height_of(note)))
    loader = loaders.get((choice.adapter, choice.vision))
    if loader is None:
        values = {"adapter_name": choice.adapter, "clip_vision_name": choice.vision}
        loader = loaders[choice.adapter, choice.vision] = columns.put(LOAD, "Load Subject Adapter", values)
        _record_models(wiring.workflow, loader, choice)
    columns.next()
    strength = min(max(one.weight for one in chain), MOST)
    last = _write_subjects(columns, graph, chain, strength, photos, guesses)
    columns.next()
    encode = columns.put(ENCODE, "Encode Subject References", {"framing": framing})
    apply = columns.put(APPLY, "Apply Image Attention", {"weight": round(strength, 4), "merge": "add"})
    model = origin_of(wiring, graph, chain[0].node, "model")
    wiring.hand_over((chain[-1].node.id, 0), (apply["id"], 0))
    for origin, target, name in (
        ((loader["id"], 0), encode, "adapter"),
        ((last["id"], 0), encode, "cast"),
        (clip, encode, "clip"),
        (choice.wired, encode, "clip_vision"),
        (model, apply, "model"),
        ((encode["id"], 0), apply, "references"),
    ):
        if origin is not None:
            wiring.connect(origin, target, name)
    return put_in_group(wiring.workflow, columns.nodes, TITLE), guesses


def _write_subjects(
    columns: Columns,
    graph: Graph,
    chain: Sequence[Stacked],
    strength: float,
    photos: Sequence[Origin],
    guesses: Sequence[Guess],
) -> dict[str, Any]:
    """Put in an Add Subject for each photo, chained; returns the last. strength: Apply Image Attention's weight."""
    wiring = columns.wiring
    subjects: list[dict[str, Any]] = []
    for number, (one, photo, guess) in enumerate(zip(chain, photos, guesses, strict=True), 1):
        if number > 1 and number % COLUMN == 1:
            columns.next()
        file = _file_of(wiring, photo)
        title = f"Subject {number}{f' ({file})' if file else ''}" + ("" if guess.source else ": write its name")
        weight = round(one.weight / strength, 4) if strength else 1.0
        subject = columns.put(
            ADD, title, {"name": guess.name, "weight": weight, "start_percent": one.start, "end_percent": one.end}
        )
        subject.update({} if guess.source else TO_FILL_IN)
        for origin, name in (
            (photo, "image"),
            (region_of(wiring, graph, one), "region"),
            ((subjects[-1]["id"], 0) if subjects else None, "cast"),
        ):
            if origin is not None:
                wiring.connect(origin, subject, name)
        subjects.append(subject)
    return subjects[-1]


def _note(guesses: Sequence[Guess], has_region: Sequence[bool], has_clip: bool) -> str:
    """The text of the note: what to do to switch relevance on, and where each name comes from."""
    steps = [CHECK, *([] if has_clip else [WIRE_CLIP]), SWITCH]
    where = (
        "in its region"
        if all(has_region)
        else "in its region, or on the whole picture,"
        if any(has_region)
        else "on the whole picture"
    )
    names = [
        f"- {guess.name}: "
        + (f"from {guess.source}" if guess.source else "only a placeholder, write the word in the yellow node")
        for guess in guesses
    ]
    return NOTE.format(
        n=len(guesses),
        s="s" if len(guesses) > 1 else "",
        where=where,
        names="\n".join(names),
        more=OVERLAP if sum(has_region) > 1 else "",
        steps="\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)),
    )


def _height_of(text: str) -> float:
    """Of a note that shows the text without scrolling, also with the larger letters of Nodes 2.0."""
    return 70 + 18 * sum(1 + len(line) // 45 for line in text.splitlines())


def _photo(wiring: Wiring, graph: Graph, one: Stacked, framing: str) -> tuple[Any, int]:
    """What feeds the photo, seen through a Prep Image For ClipVision where the new nodes frame alike."""
    before = (
        origin_of(wiring, graph, one.prepared, "image") if one.prepared is not None and one.framing == framing else None
    )
    # a photo node without an image was not carried
    return before or cast(Origin, origin_of(wiring, graph, one.photo_node, "image"))


def framing_of(chain: Sequence[Stacked]) -> str:
    """Return 'pad' if every photo got borders, else 'center', which leaves square pictures as they are."""
    return "pad" if all(one.framing == "pad" for one in chain) else "center"


def _file_of(wiring: Wiring, photo: tuple[Any, int]) -> str:
    raw = wiring.node(photo[0])
    values = values_of(raw)
    return PurePosixPath(str(values[0])).name if raw["type"] == "LoadImage" and values else ""


def _record_models(workflow: dict[str, Any], loader: dict[str, Any], choice: Choice) -> None:
    """Links of the files, where they are known, as the front end reads them: on the node and at the file's top."""
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import ENCODERS, published_file

    adapter = published_file(choice.adapter)
    encoder = (
        next((e.file for e in ENCODERS if adapter and e.name == adapter.encoder), None)
        if choice.vision == "auto"
        else None
    )
    models = [
        {"name": f.name, "url": f.link, "directory": f.folder}
        for f in (adapter, encoder)
        if f and f.name.endswith(".safetensors")
    ]
    if models:
        loader["properties"]["models"] = models
        workflow["models"] = [
            *(workflow.get("models") or []),
            *(m for m in models if m not in (workflow.get("models") or [])),
        ]
