"""What generated pages are made of: Markdown tables, and passages between two marks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, with a line break at its end."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def write_passage(page: Path, name: str, passage: str) -> None:
    """Write the passage into a file, see `replace_passage`. Raises ValueError."""
    text = page.read_text(encoding="utf-8")
    try:
        page.write_text(replace_passage(text, name, passage), encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{page.name}: {error}") from error


def replace_passage(page: str, name: str, passage: str) -> str:
    """Return the page with the passage between its marks `<!-- name: where it comes from -->` and
    `<!-- end of name -->`. Raises ValueError unless there is one pair of them.
    """
    begin, end = re.compile(rf"<!-- {re.escape(name)}: .*-->\n"), re.compile(rf"<!-- end of {re.escape(name)} -->")
    begins, ends = list(begin.finditer(page)), list(end.finditer(page))
    if not (len(begins) == len(ends) == 1 and begins[0].end() <= ends[0].start()):
        found = f"found {len(begins)} that begin and {len(ends)} that end it"
        raise ValueError(f"expected one pair of marks '{name}', {found}. Put them where the passage belongs.")
    return f"{page[: begins[0].end()]}{passage.rstrip()}\n{page[ends[0].start() :]}"
