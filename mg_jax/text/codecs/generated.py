"""Generated ids on their way to an `Answer`, where boxes are written as text."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def until_end(
    tokenizer: Any,
    stops: Sequence[str],
    ids: Iterable[int],
    logprobs: Iterable[float] | None,
    faults: Counter[str],
) -> tuple[list[int], list[float]]:
    """The ids before the first that ends an answer, and their log-probabilities."""
    ends = {tokenizer.eos_id, tokenizer.pad_id}
    for stop in stops:
        try:
            ends.add(tokenizer.id(stop))
        except KeyError:
            continue  # then its text ends the answer
    ids = [int(i) for i in ids]
    given = [0.0] * len(ids) if logprobs is None else [float(p) for p in logprobs]
    tokens, logs = [], []
    for i, log in zip(ids, given, strict=False):
        if i in ends:
            break
        if 0 <= i < tokenizer.size:
            tokens.append(i)
            logs.append(log)
        else:
            faults["id outside the vocabulary"] += 1
    return tokens, logs


def text_of(tokenizer: Any, stops: Sequence[str], tokens: Sequence[int]) -> str:
    """The text of the ids, up to the first of the texts that end an answer."""
    text: str = tokenizer.decode(tokens)
    return text[: min([text.find(s) for s in stops if s in text], default=len(text))]


def span_scores(
    tokenizer: Any,
    tokens: Sequence[int],
    logs: Sequence[float],
    spans: Iterable[tuple[int, int]],
) -> np.ndarray:
    """Of each span of characters of the text the geometric mean of the probabilities of the tokens
    that write it."""

    def end(k: int) -> int:
        return len(tokenizer.decode(tokens[: k + 1]))

    count = len(tokens)
    scores = []
    for start, stop in spans:
        first = bisect_right(range(count), start, key=end)
        last = bisect_left(range(count), stop, key=end)
        scores.append(float(np.exp(np.mean(logs[first : last + 1] or [0.0]))))
    return np.asarray(scores)
