"""What encoded conversations say, as text."""

import numpy as np


def written(codec, tokens, marks):
    """The text of ids; `marks` has the letters that stand for ids of placeholders."""
    text, run = "", []
    for i in [*tokens.tolist(), None]:
        if i is None or i in marks:
            text += codec.tokenizer.decode(run, skip_special=False)
            text, run = text + marks.get(i, ""), []
        else:
            run.append(i)
    return text


def answers(codec, encoded):
    """The text of the trained runs."""
    tokens, mask = encoded["tokens"], encoded["loss_mask"]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [
        codec.tokenizer.decode(tokens[a:b], skip_special=False) for a, b in edges.reshape(-1, 2)
    ]
