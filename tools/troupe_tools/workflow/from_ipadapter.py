"""A workflow's stacked IPAdapter_plus nodes rewritten as Troupe nodes that do the same, and a sentence for everything that cannot be carried."""
from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..errors import RunError
from ..pack import load_pack
from .graph import ACTIVE, Graph, Node, check_format, said, values_of
from .group_nodes import group_nodes
from .guess_names import Guess, guess_names
from .ipadapter_nodes import AGAIN, APPLIES, COMBINE, KEEP, PREPARE, REGIONAL, UNIFIED, Choice, NotCarried, Stacked, read, reason, settings_of, theirs
from .job import ADD, APPLY, ENCODE, LOAD
from .rewire import SET_MASK, Origin, Wiring
from .virtual import GETTERS, PASSING, SETTERS, is_virtual
from .wires import with_broadcasts

MOST = 2.0  # of Apply Image Attention's weight
GAP, HEAD = 40, 80  # pixels between nodes; of a group's title
WIDE = 370  # pixels of the note
COLUMN = 2  # Add Subject nodes below one another
VIEW = (1280, 800)  # pixels of the window that the group is fitted into when the file is opened
MARGIN = 110  # pixels for the front end's menus
TITLE = "Subjects: check the names, then set merge to relevance"
TO_FILL_IN = {"color": "#432", "bgcolor": "#653"}  # the front end's yellow
NOTE = """These nodes replace {n} IPAdapter node{s} and do the same, as closely as possible: each photo acts {where} at its own strength (merge: add).

To give each photo to its own subject:
{steps}

Names:
{names}

With relevance, weights of 0.5 to 0.65 work better than higher ones.{more}"""
CHECK = "Check 'name' in every Add Subject node. It must be the word for this subject in your prompt, and no two may be the same."
WIRE_CLIP = "Wire the checkpoint's CLIP into 'clip' of Encode Subject References."
SWITCH = "Set 'merge' of Apply Image Attention to relevance."
OVERLAP = "\n\nWhere regions do not overlap, relevance changes nothing: unplug 'region' of a subject to let its name decide."


@dataclass(frozen=True, eq=False)
class Rewritten:
    """workflow: the new file; carried: how many photos with their settings; said: one line for each thing that is not as before."""

    workflow: dict[str, Any]
    carried: int
    said: tuple[str, ...]


def from_ipadapter(workflow: dict[str, Any]) -> Rewritten:
    """Rewrite what can be rewritten; everything else in the file stays as it is. Raises RunError for an API prompt.

    Nodes inside subgraphs and group nodes stay, with a sentence.
    """
    check_format(workflow)
    graph = Graph(with_broadcasts(workflow))
    stacked, remarks = _readable(graph)
    wiring = Wiring(copy.deepcopy(workflow))
    top = first = _lowest(wiring.workflow) + 2 * GAP + HEAD
    loaders: dict[tuple[str, str], dict[str, Any]] = {}
    numbers: dict[Any, int] = {}
    for chain in _chains(graph, stacked):
        top, guesses = _write_chain(wiring, graph, chain, loaders, top)
        numbers.update({one.photo_node.id: number for number, one in enumerate(chain, 1)})
        remarks += [*_remarks(chain), *_names_wanted(chain, guesses)]
    photos = [one for row in stacked.values() for one in row]
    _take_out(wiring, graph, photos, numbers)
    if photos:
        _show(wiring.workflow, first)
    told = {one.prepared.id for one in photos if one.prepared is not None}
    remarks += _out_of_sight(workflow)
    left = [Node(raw) for raw in wiring.workflow["nodes"] if theirs(Node(raw)) and raw["type"] not in APPLIES and raw["id"] not in told]
    remarks += [f"{node.label} stays: {_why_left(wiring, node)}." for node in left]
    return Rewritten(wiring.saved(), len(photos), tuple(dict.fromkeys(remarks)))


def _out_of_sight(workflow: dict[str, Any]) -> list[str]:
    """A sentence for each node that lies inside a subgraph or group node."""
    subgraphs = {graph.get("id"): graph for graph in (workflow.get("definitions") or {}).get("subgraphs") or []}
    folded = {**group_nodes(workflow), **subgraphs}
    used = {raw["type"] for graph in (workflow, *folded.values()) for raw in graph["nodes"]}
    return [f"{node.label} stays: it lies inside '{graph.get('name')}'; unpack that (right click > Unpack Subgraph, or Convert to nodes), save the workflow and rewrite it again."
            for kind, graph in folded.items() if kind in used for node in map(Node, graph["nodes"]) if node.type in APPLIES]


def _readable(graph: Graph) -> tuple[dict[Any, list[Stacked]], list[str]]:
    """The photos of each node that can be carried, by its id, and why others cannot."""
    found, said = {}, []
    for node in (node for node in graph.nodes.values() if node.type in APPLIES):
        try:
            found[node.id] = read(graph, node)
        except NotCarried as why:
            said.append(f"{node.label} stays: {why}. {why.advice}.")
    return found, said


def _chains(graph: Graph, stacked: dict[Any, list[Stacked]]) -> list[list[Stacked]]:
    """Nodes one after another on a MODEL wire that nothing else takes, with one adapter: each such row becomes one cast."""
    before = {id_: _previous(graph, photos[0], stacked) for id_, photos in stacked.items()}
    after = {previous: id_ for id_, previous in before.items() if previous is not None}
    chains = []
    for id_ in (id_ for id_, previous in before.items() if previous is None):
        chain = [*stacked[id_]]
        while chain[-1].node.id in after:
            chain += stacked[after[chain[-1].node.id]]
        chains.append(chain)
    return chains


def _previous(graph: Graph, one: Stacked, stacked: dict[Any, list[Stacked]]) -> Any:
    """The carried node straight before this one on the MODEL wire, with reroutes at most between, or None."""
    way, found = graph.way(one.node, "model")
    previous = stacked[found[0].id][-1] if found and found[0].id in stacked and all(node.type in PASSING for node in way) else None
    if previous is None or previous.choice != one.choice:
        return None
    alone = all(sum(link[1] == id_ for link in graph.links.values()) == 1 for id_ in (previous.node.id, *(reroute.id for reroute in way)))
    return previous.node.id if alone else None


# ---- the new nodes -----------------------------------------------------------------------------------------------------------------------

class Columns:
    """Puts new nodes below one another, column by column; `nodes` are all of them."""

    def __init__(self, wiring: Wiring, top: float):
        self.wiring, self.top, self.nodes = wiring, top, []
        self._x, self._y, self._width = _leftmost(wiring.workflow), top, 0.0

    def put(self, kind: str, title: str, values: dict[str, Any] | str, size: tuple[float, float] | None = None) -> dict[str, Any]:
        """A new node; its class's usual size if none is given."""
        node = self.wiring.add(kind, title, values, (self._x, self._y))
        node["size"] = list(size or node["size"])
        self.nodes.append(node)
        self._y, self._width = self._y + node["size"][1] + HEAD, max(self._width, node["size"][0])
        return node

    def next(self) -> None:
        """Begin a new column."""
        self._x, self._y, self._width = self._x + self._width + GAP, self.top, 0.0


def _write_chain(wiring: Wiring, graph: Graph, chain: Sequence[Stacked], loaders: dict[tuple[str, str], dict[str, Any]],
                 top: float) -> tuple[float, list[Guess]]:
    """Put in the nodes of one cast, in a group of their own below everything else: the note and the loader, the subjects, and what takes them.

    Returns where the next group may begin, and the subjects' names.
    """
    columns = Columns(wiring, top)
    choice, framing = chain[0].choice, _framing(chain)
    prompts, clip = _prompts(wiring, graph, chain)
    photos = [_photo(wiring, graph, one, framing) for one in chain]
    guesses = guess_names([_own_prompt(graph, one) for one in chain], [_file_of(wiring, photo) for photo in photos], prompts)
    note = _note(guesses, [_region(wiring, graph, one) is not None for one in chain], has_clip=clip is not None)
    columns.put("Note", "From IPAdapter to Troupe", note, (WIDE, _height_of(note)))
    loader = loaders.get((choice.adapter, choice.vision))
    if loader is None:
        values = {"adapter_name": choice.adapter, "clip_vision_name": choice.vision}
        loader = loaders[choice.adapter, choice.vision] = columns.put(LOAD, "Load Subject Adapter", values)
        _record_models(wiring.workflow, loader, choice)
    columns.next()
    strength = min(max(one.weight for one in chain), MOST)
    cast = _write_subjects(columns, graph, chain, strength, photos, guesses)
    columns.next()
    encode = columns.put(ENCODE, "Encode Subject References", {"framing": framing})
    apply = columns.put(APPLY, "Apply Image Attention", {"weight": round(strength, 4), "merge": "add"})
    model = _origin(wiring, graph, chain[0].node, "model")
    wiring.hand_over((chain[-1].node.id, 0), (apply["id"], 0))
    for origin, target, name in (((loader["id"], 0), encode, "adapter"), ((cast["id"], 0), encode, "cast"), (clip, encode, "clip"),
                                 (choice.wired, encode, "clip_vision"), (model, apply, "model"), ((encode["id"], 0), apply, "references")):
        if origin is not None:
            wiring.connect(origin, target, name)
    return _group(wiring.workflow, columns.nodes), guesses


def _write_subjects(columns: Columns, graph: Graph, chain: Sequence[Stacked], strength: float, photos: Sequence[Origin],
                    guesses: Sequence[Guess]) -> dict[str, Any]:
    """Put in an Add Subject for each photo, chained; returns the last. strength: Apply Image Attention's weight."""
    wiring, cast = columns.wiring, None
    for number, (one, photo, guess) in enumerate(zip(chain, photos, guesses, strict=True), 1):
        if number > 1 and number % COLUMN == 1:
            columns.next()
        file = _file_of(wiring, photo)
        title = f"Subject {number}{f' ({file})' if file else ''}" + ("" if guess.source else ": write its name")
        weight = round(one.weight / strength, 4) if strength else 1.0
        subject = columns.put(ADD, title, {"name": guess.name, "weight": weight, "start_percent": one.start, "end_percent": one.end})
        subject.update({} if guess.source else TO_FILL_IN)
        for origin, name in ((photo, "image"), (_region(wiring, graph, one), "region"), (cast and (cast["id"], 0), "cast")):
            if origin is not None:
                wiring.connect(origin, subject, name)
        cast = subject
    return cast


def _note(guesses: Sequence[Guess], has_region: Sequence[bool], has_clip: bool) -> str:
    """The text of the note: what to do to switch relevance on, and where each name comes from."""
    steps = [CHECK, *([] if has_clip else [WIRE_CLIP]), SWITCH]
    where = "in its region" if all(has_region) else "in its region, or on the whole picture," if any(has_region) else "on the whole picture"
    names = [f"- {guess.name}: " + (f"from {guess.source}" if guess.source else "only a placeholder, write the word in the yellow node") for guess in guesses]
    return NOTE.format(n=len(guesses), s="s" if len(guesses) > 1 else "", where=where, names="\n".join(names),
                       more=OVERLAP if sum(has_region) > 1 else "",
                       steps="\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)))


def _height_of(text: str) -> float:
    """Of a note that shows the text without scrolling, also with the larger letters of Nodes 2.0."""
    return 70 + 18 * sum(1 + len(line) // 45 for line in text.splitlines())


def _prompts(wiring: Wiring, graph: Graph, chain: Sequence[Stacked]) -> tuple[list[str], Origin | None]:
    """The texts of the positive prompts that are sampled with this row's model, and the CLIP that encodes them (else that of its regions)."""
    last = chain[-1].node
    samplers = [node for node in graph.nodes.values() if node.mode == ACTIVE and "positive" in node.inputs
                and any(above.id == last.id for above in _above(graph, node, ("model", "guider")))]
    ends = [found[0] for node in (*samplers, *(one.photo_node for one in chain)) if (found := graph.source(node, "positive"))]
    encoders = list({node.id: node for end in ends for node in (end, *_above(graph, end)) if "clip" in node.inputs}.values())
    clip = next((origin for node in encoders if graph.source(node, "clip") and (origin := _origin(wiring, graph, node, "clip"))), None)
    return [text for node in encoders if (text := _text(graph, node))], clip


def _above(graph: Graph, node: Node, names: Sequence[str] = ()) -> list[Node]:
    """Every active node that feeds inputs of these names, or by default all but those that bring a negative prompt or a model."""
    found: dict[Any, Node] = {}
    waiting = [node]
    while waiting:
        at = waiting.pop(0)
        for name in names or [name for name in at.inputs if name not in ("negative", "model", "clip")]:
            source = graph.source(at, name)
            if source and source[0].id not in found:
                found[source[0].id] = source[0]
                waiting.append(source[0])
    return list(found.values())


def _own_prompt(graph: Graph, one: Stacked) -> str:
    """The text of the prompt that a photo's own node takes, or ''."""
    source = graph.source(one.photo_node, "positive")
    return _text(graph, source[0]) if source else ""


def _text(graph: Graph, node: Node) -> str:
    """What a text encoder encodes, or '' where that is only known at run time."""
    for name in ("text", "text_g"):
        try:
            if isinstance(text := graph.value(node, name), str):
                return text
        except RunError:
            continue
    return ""


def _origin(wiring: Wiring, graph: Graph, node: Node, name: str) -> tuple[Any, int] | None:
    """What feeds an input: its own wire, else one that Use Everywhere makes."""
    found = None if wiring.origin(node.id, name) else graph.source(node, name)
    return (found[0].id, found[1]) if found else wiring.origin(node.id, name)


def _region(wiring: Wiring, graph: Graph, one: Stacked) -> Origin | None:
    """What feeds a photo's mask in the picture."""
    return _origin(wiring, graph, one.photo_node, one.mask)


def _photo(wiring: Wiring, graph: Graph, one: Stacked, framing: str) -> tuple[Any, int]:
    """What feeds the photo, seen through a Prep Image For ClipVision where the new nodes frame alike."""
    before = _origin(wiring, graph, one.prepared, "image") if one.prepared is not None and one.framing == framing else None
    return before or _origin(wiring, graph, one.photo_node, "image")


def _framing(chain: Sequence[Stacked]) -> str:
    """pad where every photo got borders, else center, which leaves square pictures as they are."""
    return "pad" if all(one.framing == "pad" for one in chain) else "center"


def _file_of(wiring: Wiring, photo: tuple[Any, int]) -> str:
    raw = wiring.node(photo[0])
    values = values_of(raw)
    return PurePosixPath(str(values[0])).name if raw["type"] == "LoadImage" and values else ""


def _record_models(workflow: dict[str, Any], loader: dict[str, Any], choice: Choice) -> None:
    """Links of the files, where they are known, as the front end reads them: on the node and at the file's top."""
    load_pack()
    from troupe.model_patches.checkpoints.catalogue import ENCODERS, published

    adapter = published(choice.adapter)
    encoder = next((e.file for e in ENCODERS if adapter and e.name == adapter.encoder), None) if choice.vision == "auto" else None
    models = [{"name": f.name, "url": f.link, "directory": f.folder} for f in (adapter, encoder) if f and f.name.endswith(".safetensors")]
    if models:
        loader["properties"]["models"] = models
        workflow["models"] = [*(workflow.get("models") or []), *(m for m in models if m not in (workflow.get("models") or []))]


# ---- the old ones ------------------------------------------------------------------------------------------------------------------------

def _take_out(wiring: Wiring, graph: Graph, stacked: Sequence[Stacked], numbers: dict[Any, int]) -> None:
    """Remove the rewritten nodes, and what was there for them alone: loaders, parameters, reroutes, Prep Image nodes.

    numbers: of the subjects, by the id of the node that had the photo.
    """
    ways = {node.id for one in stacked for node in graph.way(one.node, "model")[0] if is_virtual(node.type)}
    spent = {id_ for one in stacked for id_ in one.spent}
    wiring.take_out(one.node.id for one in stacked)
    while idle := [id_ for id_ in (*spent, *ways) if wiring.node(id_) is not None and _idle(wiring, Node(wiring.node(id_)))]:
        for id_ in idle:
            if wiring.node(id_)["type"] == UNIFIED:
                wiring.hand_over((id_, 0), _origin(wiring, graph, Node(wiring.node(id_)), "model"))
            elif wiring.node(id_)["type"] == REGIONAL:
                _keep_prompts(wiring, graph, Node(wiring.node(id_)), numbers[id_])
        wiring.take_out(idle)


def _idle(wiring: Wiring, node: Node) -> bool:
    """Whether nothing takes a node's output; of the Unified Loader, which hands the model on, its adapter; of a region, which hands prompts on, its
    parameters; of a Set node, whether no Get node has its name."""
    if node.type in SETTERS:
        levels = (wiring.workflow, *((wiring.workflow.get("definitions") or {}).get("subgraphs") or []), *group_nodes(wiring.workflow).values())
        return not wiring.takers(node.id) and not any(raw["type"] in GETTERS and said(Node(raw)) == said(node) for level in levels for raw in level["nodes"])
    return not wiring.takers(node.id, {UNIFIED: 1, REGIONAL: 0}.get(node.type))


def _keep_prompts(wiring: Wiring, graph: Graph, region: Node, number: int) -> None:
    """Limit the prompts of a region by ComfyUI's own node, in the region's place; without a mask they are passed on as they are."""
    called = region.raw.get("title") or f"Region of subject {number}"
    mask = _origin(wiring, graph, region, "mask")
    (x, y), height = _pair(region.raw["pos"]), 0
    for slot, name in ((1, "positive"), (2, "negative")):
        prompt = _origin(wiring, graph, region, name)
        if prompt is not None and mask is not None and wiring.takers(region.id, slot):
            limited = wiring.add(SET_MASK, f"{called}: {name}", {"strength": settings_of(graph, region)["prompt_weight"]}, (x, y + height))
            height += limited["size"][1] + GAP + 10
            wiring.connect(prompt, limited, "conditioning")
            wiring.connect(mask, limited, "mask")
            prompt = (limited["id"], 0)
        wiring.hand_over((region.id, slot), prompt)


def _remarks(chain: Sequence[Stacked]) -> list[str]:
    """What is not exactly as before."""
    said = [f"{chain[0].node.label}: {chain[0].choice.remark}"] if chain[0].choice.remark else []
    said += [f"{one.photo_node.label}: {one.remark}" for one in chain if one.remark]
    if _framing(chain) == "pad":
        said.append(f"{chain[0].node.label}: the borders that {PREPARE} made were black and are white now (framing: pad).")
    said += [f"{one.photo_node.label}: its photo still goes through {one.prepared.label}, which crops or sharpens as Troupe does not."
             for one in chain if one.prepared is not None and one.framing != _framing(chain)]
    return said


def _names_wanted(chain: Sequence[Stacked], guesses: Sequence[Guess]) -> list[str]:
    """A sentence for each photo of several whose name could not be guessed."""
    return [f"{one.photo_node.label}: no name was found for its photo; before you switch to relevance, replace '{guess.name}' in Add Subject with its "
            "word in your prompt." for one, guess in zip(chain, guesses, strict=True) if not guess.source and len(chain) > 1]


def _why_left(wiring: Wiring, node: Node) -> str:
    """Why a node stays, and what to do about it, without the last full stop."""
    slot = 0 if node.type == REGIONAL else None
    takers = [Node(wiring.node(id_)) for id_, _ in wiring.takers(node.id, slot)]
    if node.type in (PREPARE, UNIFIED, "IPAdapterModelLoader", COMBINE, REGIONAL) and takers:
        return f"{takers[0].label} needs it"
    if node.mode != ACTIVE:
        return f"it is muted or bypassed. Activate it {AGAIN}, or delete it"
    if node.type in (COMBINE, REGIONAL):
        return f"{reason(node.type)}. Wire it {AGAIN}, or delete it"
    return f"{reason(node.type)}. {KEEP}"


# ---- the layout --------------------------------------------------------------------------------------------------------------------------

def _group(workflow: dict[str, Any], nodes: Sequence[dict[str, Any]]) -> float:
    """A group box round the nodes; returns the y below it."""
    boxes = [(*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + node["size"][1]) for node in nodes]
    x, y = min(b[0] for b in boxes) - GAP / 2, min(b[1] for b in boxes) - HEAD
    right, bottom = max(b[2] for b in boxes) + GAP / 2, max(b[3] for b in boxes) + GAP / 2
    groups = workflow["groups"] = workflow.get("groups") or []
    number = max((group.get("id") or 0 for group in groups), default=0) + 1
    groups.append({"id": number, "title": TITLE, "bounding": [x, y, right - x, bottom - y], "color": "#3f789e", "font_size": 24, "flags": {}})
    return bottom + HEAD + GAP


def _show(workflow: dict[str, Any], top: float) -> None:
    """Let the file open on the first group of new nodes, and as large as fits."""
    group = next(group for group in workflow["groups"] if group["title"] == TITLE and group["bounding"][1] >= top - HEAD)
    x, y, width, height = group["bounding"]
    scale = int(1000 * min(1.0, (VIEW[0] - MARGIN) / width, (VIEW[1] - MARGIN) / height)) / 1000
    offset = [round(MARGIN / scale - x, 1), round(MARGIN / scale - y, 1)]
    workflow["extra"] = {**(workflow.get("extra") or {}), "ds": {"scale": scale, "offset": offset}}


def _lowest(workflow: dict[str, Any]) -> float:
    nodes = [_pair(raw["pos"])[1] + _pair(raw.get("size") or [0, 0])[1] for raw in workflow["nodes"] if raw.get("pos")]
    return max([*nodes, *(group["bounding"][1] + group["bounding"][3] for group in workflow.get("groups") or [] if group.get("bounding"))], default=0)


def _leftmost(workflow: dict[str, Any]) -> float:
    return min((_pair(raw["pos"])[0] for raw in workflow["nodes"] if raw.get("pos")), default=0)


def _pair(value: Any) -> tuple[float, float]:
    """A position or size, which older files have as {'0': x, '1': y}."""
    return (value["0"], value["1"]) if isinstance(value, dict) else (value[0], value[1])
