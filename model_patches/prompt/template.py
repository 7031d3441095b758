"""Subject-Diffusion's prompt: a sentence with a placeholder for each subject, whose embedding the subject's picture
replaces (arXiv 2307.11410, released code).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import SubjectError
from .markers import ParsedPrompt, escaped, without_emphasis
from .token_positions import TokenPosition, token_position
from .tokens import LENGTH, Tokenize, read_tokens

PLACEHOLDER = "sks"
PLACEHOLDER_ID = 48136  # in CLIP's vocabulary, a word of one token


def subject_template(prompt: ParsedPrompt, names: Sequence[str]) -> str:
    """Return the prompt with ", the {name} is sks" for each subject in order; markers are taken out, the names'
    emphasis as well.

    Raises SubjectError for a subject without a name.
    """
    clean = prompt.text.strip()
    for number, name in enumerate(names, 1):
        words = " ".join(without_emphasis(name).split())
        if not words:
            raise SubjectError(
                f"a name for subject {number}",
                "none",
                "Name it in Add Subject: the prompt of this adapter says what each picture shows.",
            )
        clean += f", the {escaped(words)} is {PLACEHOLDER}"
    return clean


def template_positions(
    prompt: ParsedPrompt, names: Sequence[str], tokenize: Tokenize
) -> tuple[str, tuple[TokenPosition, ...]]:
    """Return `subject_template` and the position of each subject's placeholder in it.

    The published text encoder read 77 tokens and no more, BOS and EOS among them. The host goes on in a next chunk,
    where the encoder has learned nothing about subjects: a placeholder that would have been cut off is an error here
    too, so that all of them are in the first chunk.

    Arguments:
        prompt, names: see `subject_template`; tokenize: the host's own, see `tokens.Tokenize`.
    Raises SubjectError for the placeholder's word in the user's own text or in a name, and for a placeholder that does
    not fit.
    """
    sources = [
        ("the prompt", prompt.text),
        *((f"the name of subject {n}", escaped(without_emphasis(name))) for n, name in enumerate(names, 1)),
    ]
    for source, words in sources:
        if PLACEHOLDER_ID in read_tokens(words, tokenize).ids:
            remedy = (
                f"Take it out: this adapter puts '{PLACEHOLDER}' behind the prompt once for each subject, where "
                "its picture goes."
            )
            raise SubjectError(f"no '{PLACEHOLDER}' in {source}", f"'{' '.join(words.split())[:LENGTH]}'", remedy)
    full = subject_template(prompt, names)
    tokens = read_tokens(full, tokenize)
    found = [i for i, token in enumerate(tokens.ids) if token == PLACEHOLDER_ID]
    for number, (i, name) in enumerate(zip(found, names, strict=True), 1):
        if i + 1 > LENGTH - 2:
            told = f"the placeholder of subject {number} '{name}' at token {i + 1}"
            raise SubjectError(
                f"a prompt of at most {LENGTH - 2} tokens with ', the {name} is {PLACEHOLDER}' behind it",
                told,
                "Shorten the prompt.",
            )
    return full, tuple(token_position(tokens, [i], PLACEHOLDER) for i in found)
