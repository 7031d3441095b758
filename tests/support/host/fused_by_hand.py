"""Fused prompts computed by hand."""

from troupe.model_patches.adapter import PromptSpec


def by_hand(kind, clip, references, text, rows, weights=(1.0, 1.0)):
    """(fused, plain) states and pooled, from the host's own CLIP: rows are (chunk, position) of each subject in the
    text's tokens.
    """
    from support.prompt_fusions import FUSIONS

    spec = references.adapter.spec.part(PromptSpec)
    tokens = clip.tokenize(text)
    plain = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    fusion = references.adapter.fusion_patcher.model if references.adapter.fusion_patcher else None
    if spec.fusion is FUSIONS["postfuse"]:
        states = plain[0].clone()
        bare = clip.encode_from_tokens({"l": [[(t, 1.0) for t, _ in chunk] for chunk in tokens["l"]]})
        empty = clip.encode_from_tokens(clip.tokenize(""))
        for subject, (chunk, position), weight in zip(references.subjects, rows, weights, strict=True):
            word = bare[0, 77 * chunk + position]
            new = word + weight * (fusion["l"](word[None], subject.words["l"])[0] - word)
            emphasis = tokens["l"][chunk][position][1]
            states[0, 77 * chunk + position] = empty[0, position] + emphasis * (new - empty[0, position])
        return (states, plain[1]), plain
    exchanged = {stream: [list(chunk) for chunk in chunks] for stream, chunks in tokens.items()}
    for subject, (chunk, position), weight in zip(references.subjects, rows, weights, strict=True):
        for stream in spec.streams:
            table = getattr(
                clip.cond_stage_model, f"clip_{stream}"
            ).transformer.text_model.embeddings.token_embedding.weight.float()
            token, emphasis = exchanged[stream][chunk][position]
            word, vector = table[token], subject.words[stream][0]
            wanted = fusion[stream](word[None], vector[None])[0] if spec.fusion is FUSIONS["word"] else vector
            exchanged[stream][chunk][position] = (word + weight * (wanted - word), emphasis)
    fused = clip.encode_from_tokens(exchanged, return_pooled=True)
    if spec.fusion is FUSIONS["pseudo"]:
        states = plain[0].clone()
        for chunk, position in rows:
            states[0, 77 * chunk + position] = fused[0][0, 77 * chunk + position]
        fused = (states, plain[1])
    return fused, plain


def position_of(clip, stream, text, token_text, start=0):
    """(chunk, position) of a word's last token in a prompt."""
    wanted = clip.tokenize(token_text)[stream][0]
    last = [t for t, _ in wanted[1:] if t not in (49407, 0)][-1]
    for c, chunk in enumerate(clip.tokenize(text)[stream]):
        for p, (token, _) in enumerate(chunk):
            if isinstance(token, int) and token == last and (c, p) > (0, start):
                return c, p
    raise AssertionError(token_text)
