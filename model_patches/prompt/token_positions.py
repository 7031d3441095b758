"""The position of each subject in a prompt: the row of the last token of its word in the host's encoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import SubjectError
from .markers import TRIGGER, Marker, ParsedPrompt, bare, escaped, word_before
from .names import plain_words, stands_in
from .tokens import LENGTH, Tokenize, Tokens, find_all, find_name, read_tokens

PRIVATE = "zqxsubj"  # a word that no prompt holds
SHOWN = 120  # letters of a prompt in a sentence


@dataclass(frozen=True)
class TokenPosition:
    """A subject's word in an encoded prompt.

    chunk, position: of the word's last token, position 0 being the chunk's BOS; rows: all its tokens as rows of the
    chunks laid end to end (chunk * 77 + position), in order; words: as they were found.
    """

    chunk: int
    position: int
    rows: tuple[int, ...]
    words: str

    @property
    def row(self) -> int:
        """chunk * 77 + position: of the last token in the chunks laid end to end."""
        return self.chunk * LENGTH + self.position


@dataclass(frozen=True)
class FoundPositions:
    """The positions of the subjects in a prompt. text: the prompt to encode, without markers; positions: one per
    subject.
    """

    text: str
    positions: tuple[TokenPosition, ...]


def find_token_positions(
    prompt: ParsedPrompt,
    names: Sequence[str],
    tokenize: Tokenize,
    warn: Callable[[str], None] = lambda sentence: None,
) -> FoundPositions:
    """Return the prompt without markers, and each subject's position in it.

    `{words}` that are a subject's name belong to that subject, other markers to the remaining subjects in order.
    Without such other markers the remaining subjects are found by name: the nth of a name takes its nth occurrence, and
    a name that holds another one is looked for first.

    Arguments:
        prompt: see `markers.parse_prompt`; names: one per subject; tokenize: the host's own, see `tokens.Tokenize`.
        warn: takes one sentence for each marker inside a word, which is cut there, and for each `{words}` glued to a
            word before them.
    Raises SubjectError for a name that is not in the prompt (often enough), markers that are too many, too few, on one
    token or not after a word.
    """
    owners = _owners(prompt.markers, names)
    titled = [(marker, _titled(owner, names)) for marker, owner in zip(prompt.markers, owners, strict=True)]
    clean, tokens, lasts = _locate(prompt.text, titled, tokenize, warn)
    found = dict(zip(owners, lasts, strict=True))
    taken = {row for rows, _ in found.values() for row in rows}
    for group in _groups([i for i in range(len(names)) if i not in found], names, tokenize):
        positions = find_name(names[group[0]], clean, tokens, tokenize, taken)
        if len(positions) < len(group):
            within = len(find_name(names[group[0]], clean, tokens, tokenize, ())) > len(positions)
            raise _missing(group, names, len(positions), clean, within)
        for i, at in zip(group, positions, strict=False):
            found[i] = (at, bare(names[i]))
            taken.update(at)
    return FoundPositions(clean, tuple(token_position(tokens, *found[i]) for i in range(len(names))))


def token_position(tokens: Tokens, indices: Sequence[int], words: str) -> TokenPosition:
    """Return the position of the tokens at these indices, in order."""
    where = [tokens.where[i] for i in indices]
    return TokenPosition(*where[-1], tuple(chunk * LENGTH + position for chunk, position in where), words)


def _titled(i: int, names: Sequence[str]) -> str:
    return f"subject {i + 1} '{names[i]}'"


def _shown(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= SHOWN else f"{words[:SHOWN]}..."


# ---- markers ---------------------------------------------------------------------------------------------------------


def _owners(markers: Sequence[Marker], names: Sequence[str]) -> list[int]:
    """For each marker the number of its subject, from 0."""
    free = list(range(len(names)))
    owners: list[int | None] = []
    for marker in markers:
        own = next(
            (i for i in free if marker.words is not None and plain_words(marker.words) == plain_words(names[i])), None
        )
        owners.append(own)
        if own is not None:
            free.remove(own)
    unnamed = owners.count(None)
    if unnamed > len(free):
        remedy = "Remove the extra markers, or add their subjects with Add Subject."
        raise SubjectError(
            f"at most as many markers as subjects ({len(names)})", f"{len(markers)} in the prompt", remedy
        )
    if 0 < unnamed < len(free):
        found = f"{len(markers)} for {len(names)} subjects, so that {_titled(free[unnamed], names)} has none"
        raise SubjectError(
            "a marker for every subject",
            found,
            f"Write {TRIGGER} right after the word of every subject, or put braces around the subjects' names only.",
        )
    rest = iter(free)
    return [next(rest) if own is None else own for own in owners]


def _locate(
    text: str, markers: Sequence[tuple[Marker, str]], tokenize: Tokenize, warn: Callable[[str], None]
) -> tuple[str, Tokens, list[tuple[Sequence[int], str]]]:
    """The prompt, cut where a marker is inside a word; its tokens; and for each marker the tokens (indices) and
    words that it marks.
    """
    before = [_word(text[: marker.end], title) for marker, title in markers]
    text, tokens, lasts = _cut(text, markers, before, tokenize, warn)
    found: list[tuple[Sequence[int], str]] = []
    for last, word, (marker, title) in zip(lasts, before, markers, strict=True):
        if not read_tokens(word, tokenize).ids:
            raise SubjectError(
                f"a word before the marker of {title}",
                f"'{word}', which the text encoder cannot read",
                "Check the name and the folder of the embedding.",
            )
        if any(last in indices for indices, _ in found):
            raise SubjectError(
                "one marker for a word",
                f"a second one after '{word}', for {title}",
                "Give each subject a word of its own.",
            )
        words = word if marker.words is None else bare(marker.words)
        ids = read_tokens(escaped(words), tokenize).ids
        indices = range(last + 1 - len(ids), last + 1)
        if indices.start < 0 or tokens.ids[indices.start : indices.stop] != ids:
            indices = range(last, last + 1)
            warn(f"Write a space before '{words}', marked for {title}: it is read as the end of a longer word.")
        found.append((indices, words))
    return text, tokens, found


def _cut(
    text: str,
    markers: Sequence[tuple[Marker, str]],
    words: Sequence[str],
    tokenize: Tokenize,
    warn: Callable[[str], None],
) -> tuple[str, Tokens, list[int]]:
    """The prompt with a space at each marker inside a word, its tokens, and the index of the last token before each
    marker.
    """
    shown, tokens, lasts, added = _shown(text), read_tokens(text, tokenize), [], 0
    for (marker, title), word in zip(markers, words, strict=True):
        end = marker.end + added
        last = _last_token(text, end, tokens, tokenize)
        if last is None:
            text, added = f"{text[:end]} {text[end:]}", added + 1
            tokens = read_tokens(text, tokenize)
            last = _last_token(text, end, tokens, tokenize)
            warn(
                f"Write the marker after '{word}' at the end of the word: it is inside a word, so a space "
                "is added there."
            )
        if last is None:
            remedy = f"Write it before the number of an emphasis, as in (man{TRIGGER}:1.2)."
            raise SubjectError(
                f"the marker of {title} right after a word", f"it inside other notation ({shown})", remedy
            )
        lasts.append(last)
    return text, tokens, lasts


def _word(before: str, title: str) -> str:
    """The word at the end of the prompt's text before a marker."""
    if word := word_before(before):
        return word
    found = f"'{before.rstrip()[-1]}'" if before.strip() else "the marker at the very start of the prompt"
    raise SubjectError(
        f"a word before the marker of {title}",
        found,
        f"Write the marker right after the subject's word, as in man{TRIGGER}.",
    )


def _last_token(text: str, end: int, tokens: Tokens, tokenize: Tokenize) -> int | None:
    """The index of the last token before this end; None if a word set there by itself changes the tokens
    around it.
    """
    word = PRIVATE
    while word in text.lower():
        word += PRIVATE[-1]
    ids, mark = read_tokens(f"{text[:end]} {word} {text[end:]}", tokenize).ids, read_tokens(word, tokenize).ids
    starts = find_all(ids, mark)
    if len(starts) != 1 or ids[: starts[0]] + ids[starts[0] + len(mark) :] != tokens.ids:
        return None
    return starts[0] - 1


# ---- names -----------------------------------------------------------------------------------------------------------


def _groups(numbers: Sequence[int], names: Sequence[str], tokenize: Tokenize) -> list[list[int]]:
    """Subjects of the same name together, names of many tokens first: 'red girl' has its word before 'girl' takes the
    next one.
    """
    groups: dict[str, list[int]] = {}
    for i in numbers:
        groups.setdefault(plain_words(names[i]), []).append(i)
    return sorted(groups.values(), key=lambda group: -len(read_tokens(escaped(bare(names[group[0]])), tokenize).ids))


def _missing(group: Sequence[int], names: Sequence[str], there: int, text: str, taken: bool) -> SubjectError:
    """What to say where a name is in the prompt `there` times, which is not often enough; taken: and within or as
    the words of other subjects.
    """
    title = _titled(group[there], names)
    name = bare(names[group[0]])
    if not name:
        return SubjectError(
            f"a name for subject {group[there] + 1}",
            "none",
            f"Set its 'name' in Add Subject as in the prompt, or write {TRIGGER} right after its word.",
        )
    if there or taken:
        found = (
            f"it only in the names of other subjects ({_shown(text)})"
            if taken
            else f"{there} for {len(group)} subjects of that name ({_shown(text)})"
        )
        return SubjectError(
            f"'{name}' once in the prompt for each of its subjects, {title} too",
            found,
            "Write it again, or give the subjects different names.",
        )
    remedy = f"Write the name in the prompt exactly as in Add Subject, or write {TRIGGER} right after the word for it."
    if name.startswith("embedding:"):
        remedy = f"Embeddings are not found by name: write {TRIGGER} right after it."
    elif stands_in(name, text):
        remedy = (
            f"Put spaces around the name, or write {TRIGGER} right after it: CLIP reads it as one word together "
            "with the text beside it."
        )
    return SubjectError(f"{title} in the prompt", f"'{_shown(text)}'", remedy)
