"""Work through many pictures: shards for machines, processes of `datasets.Dataset.map` on one machine, resumed runs."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .journal import FOLDER, DataJournal, RecordOutcome, read_journal
from .records import DatasetError


class Keyed(Protocol):
    """An item of work; `key` names it in the journal and is the same in every run."""

    @property
    def key(self) -> str:
        """Its name in the journal."""
        ...


Item = TypeVar("Item", bound=Keyed)


@dataclass(frozen=True)
class Plan:
    """Division of the work: shard `index` (from 0) of `count`, in this many processes, this many items at once."""

    index: int = 0
    count: int = 1
    processes: int = 1
    batch: int = 8


def parse_shard(text: str) -> tuple[int, int]:
    """Return (index, count) of '--shard 2/8': the third of eight, counted from 0.

    Raises:
        DatasetError: it is not of that form, or the index is not below the count.
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise DatasetError(
            "a shard i/n with i from 0 to n - 1", f"'{text}'", "For the third of eight write --shard 2/8."
        )
    return int(index), int(count)


def work(
    folder: Path,
    items: Sequence[Item],
    make: Callable[[Sequence[Item]], list[RecordOutcome]],
    plan: Plan,
    journal: str = FOLDER,
    report: Callable[[int, int], None] | None = None,
) -> int:
    """Do what this shard has not done yet, append each batch to the journal, and return how many items that were.

    make: from a batch of items to their outcomes. report: called with (done, of) after each batch, with one process.

    Raises:
        DatasetError: several processes were asked for where they cannot be started.
    """
    done = read_journal(folder, journal).keys()
    mine = [item for item in items[plan.index :: plan.count] if item.key not in done]
    name = f"{plan.index:05}-of-{plan.count:05}"
    if min(plan.processes, len(mine)) <= 1:
        _one_process(folder, mine, make, name, plan.batch, journal, report)
    else:
        _processes(folder, mine, make, name, plan, journal)
    return len(mine)


def _one_process(
    folder: Path,
    items: Sequence[Any],
    make: Callable[[Sequence[Any]], list[RecordOutcome]],
    name: str,
    batch: int,
    journal: str,
    report: Callable[[int, int], None] | None,
) -> None:
    lines = DataJournal(folder, name, journal)
    try:
        for first in range(0, len(items), batch):
            chunk = items[first : first + batch]
            lines.append(make(chunk))
            if report:
                report(first + len(chunk), len(items))
    finally:
        lines.close()


def _processes(
    folder: Path,
    items: Sequence[Any],
    make: Callable[[Sequence[Any]], list[RecordOutcome]],
    name: str,
    plan: Plan,
    journal: str,
) -> None:
    """The items stay in this process's memory, which its forks share; `datasets` hands out their numbers."""
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            "the package datasets, which runs several processes",
            "none installed",
            "Run: pip install datasets. Or use --shard in several terminals.",
        ) from error
    if multiprocessing.get_all_start_methods()[0] != "fork":  # the first is the one that is used
        raise DatasetError(
            "a system that forks processes for --processes",
            "one that starts them anew",
            "Start several commands with --shard instead.",
        )

    def some(numbers: list[int], rank: int) -> dict[str, list[int]]:
        lines = DataJournal(folder, f"{name}-{rank:03}", journal)
        try:
            lines.append(make([items[number] for number in numbers]))
        except DatasetError:
            raise
        except Exception as error:  # many cannot be pickled, and the parent would wait for ever
            raise RuntimeError("".join(traceback.format_exception(error))) from None
        finally:
            lines.close()
        return {"number": numbers}

    datasets.Dataset.from_dict({"number": list(range(len(items)))}).map(
        some,
        input_columns=["number"],
        batched=True,
        batch_size=plan.batch,
        with_rank=True,
        num_proc=min(plan.processes, len(items)),
        keep_in_memory=True,
        new_fingerprint="troupe",  # the function's own hash would read all items
        desc="pictures",
    )
