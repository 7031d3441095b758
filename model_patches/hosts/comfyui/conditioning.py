"""Records on CONDITIONING, and which rows of a model call they are for: identity is (list, uuid), never the index alone."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...layer_tokens import COND, UNCOND

KEY = "troupe"
Conditioning = list[list[Any]]


@dataclass(frozen=True, eq=False)
class Record:
    """What an Apply node leaves on a conditioning entry: whose it is (`apply_id`), what its rows get (`role`), and the references.

    Nothing in it changes, and packs that copy conditionings deeply would copy the adapter's weights: a copy is the record itself."""

    apply_id: str
    role: str
    references: Any

    def __deepcopy__(self, memo: dict) -> Record:
        return self


@dataclass(frozen=True)
class Chunk:
    """What one conditioning entry's rows get in a model call: the role, and the entry's area in latent cells (h, w, y, x) or None."""

    role: str
    area: tuple[int, ...] | None


def attach(conditioning: Conditioning, record: Record) -> Conditioning:
    """A copy of the conditioning with the record added to every entry; other keys and other records stay."""
    return [[entry[0], {**entry[1], KEY: entry[1].get(KEY, ()) + (record,)}] for entry in conditioning]


def foreign_ids(conds: Sequence[Sequence[dict] | None], own: set[str]) -> set[str]:
    """Apply ids of records that none of `own` will handle."""
    return {record.apply_id for entries in conds for c in entries or () for record in c.get(KEY, ())} - own


class Roles:
    """Decides the role of every conditioning entry of a run for one Apply node.

    positive_wired, negative_wired: whether that node's inputs were; names: uuid -> name of the guider's list ("positive", "negative", ...).
    """

    def __init__(self, apply_id: str, positive_wired: bool, negative_wired: bool, names: dict[Any, str]):
        self.apply_id, self.positive_wired, self.negative_wired, self.names = apply_id, positive_wired, negative_wired, names

    def table(self, conds: Sequence[Sequence[dict] | None]) -> dict[tuple[int, Any], Chunk]:
        """(list index, uuid) -> Chunk for the entries that take part."""
        found: dict[tuple[int, Any], Chunk] = {}
        for index, entries in enumerate(conds):
            for entry in entries or ():
                role = self._role(entry, index, entries)
                if role is not None:
                    found[(index, entry["uuid"])] = Chunk(role, tuple(entry["area"]) if "area" in entry else None)
        return found

    def _role(self, entry: dict, index: int, entries: Sequence[dict]) -> str | None:
        if borrowed(entry):
            source = next((e for e in entries if e is not entry and not borrowed(e) and _text(e) is _text(entry)), None)
            return None if source is None else self._role(source, index, entries)
        own, listed = self._own(entry), self.names.get(entry["uuid"])
        if own is not None:  # a positive that was zeroed out to be the negative still has its record
            return UNCOND if listed == "negative" else own.role
        name = listed or ("positive" if index == 0 else "negative")
        if not self.positive_wired:
            if name == "positive":
                return COND
            return None if self.negative_wired else UNCOND
        if self.negative_wired or name in ("positive", "middle") or any(self._own(e) for e in entries if not borrowed(e)):
            return None
        return UNCOND

    def _own(self, entry: dict) -> Record | None:
        return next((r for r in entry.get(KEY, ()) if r.apply_id == self.apply_id), None)


def borrowed(entry: dict) -> bool:
    """Whether the host made this entry by copying another list's area entry (all keys and the uuid) over this list's text."""
    text = _text(entry)
    return text is not None and "cross_attn" in entry and text.cond is not entry["cross_attn"]


def _text(entry: dict) -> Any:
    return entry.get("model_conds", {}).get("c_crossattn")
