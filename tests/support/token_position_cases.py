"""Prompts, subjects' names, and what the tokens at the places found must say; for the tokenizers of both hosts."""

from __future__ import annotations

from open_clip.tokenizer import SimpleTokenizer

BOS, EOS = 49406, 49407
VOCABULARY = SimpleTokenizer()
BYTES = {letter: byte for byte, letter in VOCABULARY.byte_encoder.items()}


def rendered(chunks, positions) -> str:
    """The prompt as its tokens say it: each subject's tokens in brackets with its number, `|` between chunks, `*` for a
    vector.

    chunks: tokens, BOS first, then EOS and padding. A place whose row is not the last of its rows shows no closing
    bracket.
    """
    told = []
    for number, chunk in enumerate(chunks):
        text = b""
        for position, token in enumerate(chunk):
            if isinstance(token, int) and token in (BOS, EOS):
                if token == EOS:
                    break
                continue
            written = VOCABULARY.decoder[token] if isinstance(token, int) else None
            said = b"*" if written is None else bytes(BYTES[letter] for letter in written.removesuffix("</w>"))
            row = number * 77 + position
            opening = "".join(f"[{n}:" for n, at in enumerate(positions, 1) if row == at.rows[0]).encode()
            closing = b"]" * sum(
                row == at.rows[-1] == at.row and (at.chunk, at.position) == (number, position) for at in positions
            )
            text += opening + said + closing + b" " * (written is None or written.endswith("</w>"))
        told.append(text.decode().strip())
    return " | ".join(told)


# prompt, names, what `rendered` must say
CASES = [
    ("a man<|subj|> in front of the White House", ["man"], "a [1:man] in front of the white house"),
    ("a woman <|subj|> and a man<|subj|> on the beach", ["woman", "man"], "a [1:woman] and a [2:man] on the beach"),
    ("a man<|subj|>", ["man"], "a [1:man]"),
    ("man<|subj|> walks", ["man"], "[1:man] walks"),
    ("a firefighter<|subj|>, portrait", ["firefighter"], "a [1:firefighter] , portrait"),
    ("an asian man<|subj|>.", ["man"], "an asian [1:man] ."),
    ("a doppelganger<|subj|> of a cat", ["doppelganger"], "a [1:doppelganger] of a cat"),
    ("a man<|subj|>'s hat", ["man"], "a [1:man] 's hat"),
    ("a man<|subj|>-like robot", ["man"], "a [1:man] - like robot"),
    ("a man<|subj|>, a dog<|subj|>!", ["x", "y"], "a [1:man] , a [2:dog] !"),
    ("a man\n<|subj|>\nin the rain", ["man"], "a [1:man] in the rain"),
    ("a man   <|subj|>   in the rain", ["man"], "a [1:man] in the rain"),
    ("a MAN<|subj|> here", ["man"], "a [1:man] here"),
    ("(man<|subj|>:1.2) in the rain", ["man"], "[1:man] in the rain"),
    ("(man:1.2)<|subj|> in the rain", ["man"], "[1:man] in the rain"),
    ("((man:1.2))<|subj|> in the rain", ["man"], "[1:man] in the rain"),
    ("(a ((old) man<|subj|>:1.3) here:0.8), night", ["man"], "a old [1:man] here , night"),
    ("[man<|subj|>] in the rain", ["man"], "[ [1:man] ] in the rain"),
    (r"\(man<|subj|>\) in the rain", ["man"], "( [1:man] ) in the rain"),
    ('"man<|subj|>" in the rain', ["man"], '" [1:man] " in the rain'),
    ("1girl<|subj|>, solo", ["girl"], "[1:1 girl] , solo"),
    ("agent 47<|subj|>", ["agent 47"], "agent [1:4 7]"),
    ("a {man} in the rain", ["man"], "a [1:man] in the rain"),
    ("{man}", ["man"], "[1:man]"),
    ("a {red-haired girl} in the rain", ["girl"], "a [1:red - haired girl] in the rain"),
    ("an {old man}, a {young woman}", ["Bob", "Alice"], "an [1:old man] , a [2:young woman]"),
    ("({man}:1.2) in the rain", ["man"], "[1:man] in the rain"),
    ("{(man:1.2)} in the rain", ["man"], "[1:man] in the rain"),
    ("{(old:0.9) (man:1.2)} in the rain", ["man"], "[1:old man] in the rain"),
    ("{man,} in the rain", ["man"], "[1:man] , in the rain"),
    ("{ man } in the rain", ["man"], "[1:man] in the rain"),
    (r"{rem \(re:zero\)}, maid", ["rem"], "[1:rem ( re : zero] ), maid"),
    ("a {dog} and a {cat}", ["cat", "dog"], "a [2:dog] and a [1:cat]"),
    ("a {dog} and a {Cat} and a {bird}", ["cat", "x", "y"], "a [2:dog] and a [1:cat] and a [3:bird]"),
    ("a {cat} and a dog", ["dog", "cat"], "a [2:cat] and a [1:dog]"),
    ("a {girl} and a girl", ["girl", "girl"], "a [1:girl] and a [2:girl]"),
    ("a {dog} and a cat<|subj|>", ["x", "dog"], "a [2:dog] and a [1:cat]"),
    (r"a \{nice\} man", ["man"], "a { nice } [1:man]"),
    ("a { nice man", ["man"], "a { nice [1:man]"),
    ("a } nice { man", ["man"], "a } nice { [1:man]"),
    ("{{man}} in the rain", ["man"], "{ [1:man] } in the rain"),
    ("a cat on a rug", ["cat"], "a [1:cat] on a rug"),
    ("cat", ["cat"], "[1:cat]"),
    ("on a rug, cat", ["cat"], "on a rug , [1:cat]"),
    ("a cat, a dog", ["dog", "cat"], "a [2:cat] , a [1:dog]"),
    ("a Cat.", ["CAT"], "a [1:cat] ."),
    ("two cats", ["cat"], "two [1:cats]"),
    ("cats and a cat", ["cat"], "cats and a [1:cat]"),
    ("two foxes", ["fox"], "two [1:foxes]"),
    ("a red-haired girl.", ["red-haired girl"], "a [1:red - haired girl] ."),
    ("a cat-like dog", ["cat", "dog"], "a [1:cat] - like [2:dog]"),
    ("a red_haired_girl here", ["red haired girl"], "a [1:red _ haired _ girl] here"),
    ("a red haired girl here", ["red_haired_girl"], "a [1:red haired girl] here"),
    ("a (cat:1.3), masterpiece", ["cat"], "a [1:cat] , masterpiece"),
    ("a ((cat:1.2)) here", ["cat"], "a [1:cat] here"),
    ("a [cat] here", ["cat"], "a [ [1:cat] ] here"),
    ("a cat's toy", ["cat"], "a [1:cat] 's toy"),
    ("the (red:1.2) fox", ["red fox"], "the [1:red fox]"),
    ("a fox", ["(fox:1.4)"], "a [1:fox]"),
    (r"1girl, rem \(re:zero\), maid", [r"rem \(re:zero\)"], "1 girl , [1:rem ( re : zero] ), maid"),
    (r"(rem \(re:zero\):1.2), maid", [r"rem \(re:zero\)"], "[1:rem ( re : zero] ) , maid"),
    ("girl, girl", ["girl", "girl"], "[1:girl] , [2:girl]"),
    (
        "a girl, a dog, (girl:1.1), a dog",
        ["dog", "girl", "dog", "girl"],
        "a [2:girl] , a [1:dog] , [4:girl] , a [3:dog]",
    ),
    ("a red girl and a girl", ["girl", "red girl"], "a [2:red girl] and a [1:girl]"),
    ("a concatenation, a cat", ["cat"], "a concatenation , a [1:cat]"),
    ("a foxman and a man", ["man"], "a foxman and a [1:man]"),
    ("agent 47, agent 4", ["agent 4"], "agent 4 7 , [1:agent 4]"),
    ("14 cats, 4 cats", ["4 cats"], "1 4 cats , [1:4 cats]"),
    ("a doppelganger of a cat", ["doppelganger"], "a [1:doppelganger] of a cat"),
    ("a zbrushqux statue", ["zbrushqux"], "a [1:zbrushqux] statue"),
    ("a c++ book", ["c++"], "a [1:c ++] book"),
    ("mr. bean, tall", ["mr. bean"], "[1:mr . bean] , tall"),
    ('"bob" and alice', ["alice", '"bob"'], '" [2:bob] " and [1:alice]'),
    ("少女、跑步", ["少女"], "[1:少女] 、 跑步"),
    ("一个 少女, smile", ["少女"], "一个 [1:少女] , smile"),
    ("белая кошка на ковре", ["кошка"], "белая [1:кошка] на ковре"),
    ("a Café in Paris", ["café"], "a [1:café] in paris"),
    ("portrait of Renée, smiling", ["Renée"], "portrait of [1:renée] , smiling"),
    ("a 🦊 in the snow", ["🦊"], "a [1:🦊] in the snow"),
    ("a 🦊<|subj|> in the snow", ["fox"], "a [1:🦊] in the snow"),
    ("a 👩‍🚀<|subj|> on the moon", ["x"], "a [1:👩‍🚀] on the moon"),
    (r"a rem \(red\) doll, night", [r"rem \(red\) doll"], "a [1:rem ( red ) doll] , night"),
    ("a 👩‍🚀 on the moon", ["👩‍🚀"], "a [1:👩‍🚀] on the moon"),
    ("고양이<|subj|> 사진", ["cat"], "[1:고양이] 사진"),
    ("a man!", ["man"], "a [1:man] !"),
    ("!!! (((man))) !!!", ["man"], "!!! [1:man] !!!"),
    ("a man & a woman", ["woman", "man"], "a [2:man] & a [1:woman]"),
]

# the same, each with a warning: CLIP reads the word as one with what stands beside it
GLUED = [
    ("a 🦊<|subj|>, in the snow", ["fox"], "a [1:🦊] , in the snow"),
    ("a man<|subj|>s hat", ["man"], "a [1:man] s hat"),
    ("一个少女<|subj|>在跑步", ["少女"], "[1:一个少女] 在跑步"),
    ("{dog}{cat}", ["cat", "dog"], "[2:dog] [1:cat]"),
    ("a c++<|subj|>, book", ["c++"], "a [1:c ++] , book"),
    ("super{man} flies", ["man"], "[1:superman] flies"),
]
