"""Passages of generated pages: only what is between the marks changes."""

from __future__ import annotations

import pytest
from troupe_tools.dev.markdown_pages import markdown_table, replace_passage, write_passage

PAGE = "before\n<!-- speed: from a file -->\nold\n\n<!-- end of speed -->\nafter <!-- end of it -->\n"


def test_a_table_has_a_rule_below_its_head():
    assert markdown_table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_only_what_is_between_the_marks_changes():
    made = replace_passage(PAGE, "speed", "new\\1\n\n")
    assert made == PAGE.replace("old\n\n", "new\\1\n") and replace_passage(made, "speed", "new\\1") == made


@pytest.mark.parametrize(
    "page",
    [
        "no marks",
        PAGE * 2,
        PAGE.replace("end of speed", "end of spend"),
        f"<!-- speed: another -->\n# Section\n{PAGE}",
        f"{PAGE}<!-- end of speed -->\n",
        "<!-- end of speed -->\n<!-- speed: from a file -->\n",
    ],
)
def test_other_than_one_pair_is_refused_and_nothing_is_written(tmp_path, page):
    path = tmp_path / "page.md"
    path.write_text(page, encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"^page\.md: expected one pair of marks 'speed', found \d that begin and \d that end it\. Put them",
    ):
        write_passage(path, "speed", "new")
    assert path.read_text(encoding="utf-8") == page


def test_one_of_several_passages(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE + PAGE.replace("speed", "size"), encoding="utf-8")
    write_passage(path, "size", "new")
    assert path.read_text(encoding="utf-8") == PAGE + PAGE.replace("speed", "size").replace("old\n\n", "new\n")
