"""Records on CONDITIONING, and which rows of a model call they are for: identity is (list, uuid), never the index
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.samplers

from ....binding.layer_tokens import COND, UNCOND

KEY = "troupe"
Conditioning = list[list[Any]]


@dataclass(frozen=True, eq=False)
class ConditioningRecord:
    """The mark of an Apply node on a conditioning entry: whose it is (`apply_id`), what its rows get (`role`), and the
    references.

    Nothing in it changes, and packs that copy conditionings deeply would copy the adapter's weights: a copy is the
    record itself.
    """

    apply_id: str
    role: str
    references: Any

    def __deepcopy__(self, memo: dict) -> ConditioningRecord:
        return self


@dataclass(frozen=True)
class ConditioningChunk:
    """The rows of one conditioning entry in a model call: the role, and the entry's area in latent cells (h, w, y, x)
    or None.
    """

    role: str
    area: tuple[int, ...] | None


def attach(conditioning: Conditioning, record: ConditioningRecord) -> Conditioning:
    """Return a copy of the conditioning with the record added to every entry; other keys and other records stay."""
    return [[entry[0], {**entry[1], KEY: entry[1].get(KEY, ()) + (record,)}] for entry in conditioning]


def foreign_ids(conds: Sequence[Sequence[dict] | None], own: set[str]) -> set[str]:
    """Apply ids of records that none of `own` will handle."""
    return {record.apply_id for entries in conds for c in entries or () for record in c.get(KEY, ())} - own


class Lists:
    """The list of a guider that each conditioning entry of a run was made for.

    The host copies an entry with an area to the end of the other lists too, under the same uuid, with the text of an
    entry there: such a copy is borrowed.

    names: uuid -> name of the guider's list ("positive", "negative", ...) before the run; now: the guider's lists at
    present, for entries that another pack has put there since.
    """

    def __init__(self, names: Mapping[Any, str] | None = None, now: Callable[[], Mapping[str, Sequence[dict]]] = dict):
        self._names, self._now = dict(names or {}), now

    @classmethod
    def of(cls, guider: Any) -> Lists:
        """Return the lists of a guider whose run begins."""
        return cls(
            {entry["uuid"]: name for name, entries in guider.conds.items() for entry in entries}, lambda: guider.conds
        )

    def split(
        self, conds: Sequence[Sequence[dict] | None]
    ) -> list[tuple[list[dict], list[tuple[dict, dict]], list[str | None]]]:
        """Return, for each list of a prediction, its own entries, the borrowed ones as (entry, the own one whose text
        it has), and the names of the own ones' lists. A name is None if it is unknown; without a run the first
        list counts as positive, the others as negative.
        """
        homes = self._names
        if any(entry["uuid"] not in homes for entries in conds for entry in entries or ()):
            homes = {**_earliest(self._now()), **homes}
        if not homes:
            names = ["positive" if i == 0 else "negative" for i in range(len(conds))]
            at = _earliest(dict(enumerate(conds)))
            return [
                self._split(entries or (), at, lambda _, name=name: name)
                for entries, name in zip(conds, names, strict=True)
            ]
        return [self._split(entries or (), homes, homes.get) for entries in conds]

    @staticmethod
    def _split(
        entries: Sequence[dict], homes: Mapping[Any, Any], name: Callable[[Any], str | None]
    ) -> tuple[list[dict], list[tuple[dict, dict]], list[str | None]]:
        home = next((homes[entry["uuid"]] for entry in entries if entry["uuid"] in homes), None)
        own = [entry for entry in entries if homes.get(entry["uuid"], home) == home]
        areas = [entry.get("area") for entry in own]
        lent = [entry for entry in entries if homes.get(entry["uuid"], home) != home]
        return (
            own,
            [(entry, own[text_source(entry.get("area"), areas)]) for entry in lent],
            [name(entry["uuid"]) for entry in own],
        )


def _earliest(lists: Mapping[Any, Sequence[dict] | None]) -> dict[Any, Any]:
    """uuid -> key of the list in which the entry comes first: copies of other lists' entries are appended."""
    places: dict[Any, tuple[int, Any]] = {}
    for key, entries in lists.items():
        for place, entry in enumerate(entries or ()):
            if entry["uuid"] not in places or place < places[entry["uuid"]][0]:
                places[entry["uuid"]] = place, key
    return {uuid: key for uuid, (_, key) in places.items()}


def text_source(area: Any, areas: Sequence[Any]) -> int:
    """Return which of a list's own entries gives its text to an area of another list, found by calling the host's
    function with marks in place of texts.

    area, areas: of the entry and of the list's own ones, (h, w, y, x) or None for the whole picture. Returns an index
    of `areas`.
    """
    marked = [{**({} if a is None else {"area": a}), "model_conds": {"mark": i}} for i, a in enumerate(areas)]
    if area is not None:
        comfy.samplers.create_cond_with_same_area_if_none(marked, {"area": area})
    if len(marked) > len(areas):
        return marked[-1]["model_conds"]["mark"]
    # the host makes no copy where the list has this area itself
    return next((i for i, a in enumerate(areas) if a == area), 0)


class Roles:
    """The roles of a run's conditioning entries for one Apply node.

    apply_id: of that node's hook; positive_wired, negative_wired: whether its inputs were; lists: of the run.
    """

    def __init__(self, apply_id: str, positive_wired: bool, negative_wired: bool, lists: Lists):
        self.apply_id, self.positive_wired, self.negative_wired, self.lists = (
            apply_id,
            positive_wired,
            negative_wired,
            lists,
        )

    def table(self, conds: Sequence[Sequence[dict] | None]) -> dict[tuple[int, Any], ConditioningChunk]:
        """Return the ConditioningChunk of each entry that takes part, by (list index, uuid)."""
        found: dict[tuple[int, Any], ConditioningChunk] = {}
        for index, (own, lent, names) in enumerate(self.lists.split(conds)):
            roles = {entry["uuid"]: self._role(entry, name, own) for entry, name in zip(own, names, strict=True)}
            for entry, source in [(entry, entry) for entry in own] + lent:
                role = roles[source["uuid"]]
                if role is not None:
                    found[(index, entry["uuid"])] = ConditioningChunk(
                        role, tuple(entry["area"]) if "area" in entry else None
                    )
        return found

    def _role(self, entry: dict, name: str | None, own: Sequence[dict]) -> str | None:
        """name: of the guider's list; None for an entry that another node made in the run, such as Perp-Neg's empty
        prompt: it shows no subject.
        """
        record = self._record(entry)
        if record is not None:  # a positive that was zeroed out to be the negative still has its record
            return UNCOND if name == "negative" else record.role
        if name is None:
            return UNCOND
        if not self.positive_wired:
            return COND if name == "positive" else None if self.negative_wired else UNCOND
        if self.negative_wired or name in ("positive", "middle") or any(map(self._record, own)):
            return None
        return UNCOND

    def _record(self, entry: dict) -> ConditioningRecord | None:
        return next((r for r in entry.get(KEY, ()) if r.apply_id == self.apply_id), None)
