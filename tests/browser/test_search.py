"""What the host's node search finds for the words that artists type."""

import pytest

WORDS = [
    "ip adapter",
    "ipadapter",
    "reference",
    "character",
    "consistent",
    "person",
    "face",
    "region",
    "mask",
    "multi",
    "photo",
    "box",
    "gligen",
    "two characters",
]
RESEARCH = ("Two-Strength Guider", "Encode Prompt with Subjects", "Apply Adapter Weights", "Prepare Faces")
OURS = (
    "Quick Subjects",
    "Subjects, quick",
    "Load Subject Adapter",
    "Add Subject",
    "Place Subjects",
    "Encode Subject References",
    "Apply Image Attention",
    "Apply Gated Adapter",
    "Prepare Faces",
)
LISTED = (
    "() => [...document.querySelectorAll('[role=option], [data-testid=result-item], "
    ".p-autocomplete-option')].map((e) => e.innerText.trim()).filter(Boolean)"
)


@pytest.fixture
def page(page):
    """Without the alerts of earlier tests, which lie over the canvas."""
    page.reload()
    page.clear()
    return page


def found(page, query):
    """The list of the search box, from the top, as it is shown."""
    page.key("Escape", "Escape")
    page.settle()
    field = page.page.locator("input[placeholder*='earch']:visible, input[role=combobox]:visible").last
    for _ in range(3):  # a busy page may miss the first double click
        page.page.mouse.dblclick(1000, 500)
        page.settle(1500)
        if field.count():
            break
    field.fill(query, timeout=15_000)
    page.settle(1500)
    names = page.page.evaluate(LISTED)
    page.key("Escape", "Escape")
    return names


def test_the_words_artists_type_find_our_nodes(page):
    lists = {word: found(page, word) for word in WORDS}
    missing = {word: names[:8] for word, names in lists.items() if not any(name.startswith(OURS) for name in names)}
    assert not missing


def test_research_nodes_do_not_come_first(page):
    names = found(page, "subject")
    ours = [name for name in names if name.startswith((*OURS, *RESEARCH))]
    assert len(ours) > 3 and not ours[0].startswith(RESEARCH), names
