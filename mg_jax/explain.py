"""Where an answer looks: attention from its tokens to the picture.

TinyGroundingGPT's paper (figures 5, 14) takes the last layer, sums over heads and over the output
tokens of a kind (words, coordinates, an option's letter), and maps the sum to the patches.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mg_jax.answer import Answer
from mg_jax.assistant import Assistant
from mg_jax.assistants.base import View
from mg_jax.errors import UserError
from mg_jax.example import Query
from mg_jax.generate import Sampling

KINDS = ("text", "coordinates", "choice")
# Numbers in brackets, and Groma's regions
_PLACE = re.compile(r"\[[\s\d.,+-]*\d[\s\d.,+-]*\]?|<roi>.*?(?:</roi>|$)|<r\d+>", re.S)
_CHOICE = re.compile(r"\s*\(?[A-Z]\)?\s*[.:]?\s*")


@dataclass(frozen=True)
class Looks:
    """An answer with the attention of its tokens.

    words: the text of each generated token but the last, which ends it; kinds: one of KINDS each.
    attention: float32 [n, S], what each token reads of prompt and answer where it is predicted, the
    mean over heads; a row sums to 1. prompt: ids of the prompt's positions, S or fewer.
    """

    answer: Answer
    words: tuple[str, ...]
    kinds: tuple[str, ...]
    attention: np.ndarray
    prompt: np.ndarray
    views: tuple[View, ...]

    def shares(self, view: View, kind: str = "") -> np.ndarray:
        """[n] attention to each vector of a view, the mean over the tokens of a kind ("": all).

        Raises UserError where the answer has no such token.
        """
        rows = [r for r, k in zip(self.attention, self.kinds, strict=True) if kind in ("", k)]
        if not rows:
            there = ", ".join(dict.fromkeys(self.kinds)) or "nothing"
            raise UserError(f"the answer has no {kind or 'words'}: it has {there}")
        slots = np.flatnonzero(self.prompt == view.token)[view.first :][: len(view.boxes)]
        shares: np.ndarray = np.mean(rows, 0)[slots]
        return shares

    def heat(self, view: View, kind: str = "") -> np.ndarray:
        """[H, W] attention a pixel of the view's picture; what goes to padding is left out."""
        return spread(self.shares(view, kind), view.boxes, *view.pixels.shape[:2])


def explain(
    assistant: Assistant, query: Query, *, max_new_tokens: int = 128, layer: int = -1
) -> Looks:
    """Answer a question greedily and look at its attention in a layer of the language model.

    Raises UserError for a layer that is not there, or a question without picture.
    """
    layers = assistant.system.cfg.lm.layers
    if not -layers <= layer < layers:
        raise UserError(f"layer {layer}: the language model has {layers} layers, 0 the first")
    if assistant.codec is None:
        raise UserError("this release holds no language model, so there is nothing to explain")
    rows, batch, out, kept = assistant.generate(
        [query], max_new_tokens, Sampling(), jax.random.key(0)
    )
    batch = {k: v[:1] for k, v in batch.items()}
    views = assistant.adapter.views(rows[0])
    if not views:
        raise UserError("there is no picture to look at: pass an image")
    ids = out.tokens[0][: out.length[0]]
    prompt, last = batch["tokens"][0], int(np.flatnonzero(batch["valid"][0]).max())
    if prompt[last] == views[0].token:
        raise UserError("the prompt ends with the picture: explain an answer to a question")
    # The last token of the prompt is read with the answer: there its first token is predicted
    held = batch["valid"].copy()
    held[0, last] = False
    read = np.concatenate([prompt[last:][:1], ids[:-1]]).astype(np.int32)[None]
    attention = np.asarray(
        _attention(assistant.system.module, assistant.params, batch | {"valid": held}, read)
    )[layer, 0]
    answer = assistant.adapter.answer(
        rows[0], ids, out.logprobs[0][: len(ids)], jax.tree.map(lambda x: x[0], kept)
    )
    shown = ids[:-1] if len(ids) and ids[-1] == assistant.adapter.end_id else ids
    words = pieces(assistant.codec.tokenizer, shown)
    return Looks(answer, words, kinds(words), attention[: len(words)], prompt, tuple(views))


@functools.partial(jax.jit, static_argnums=0)
def _attention(model: Any, params: Any, batch: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
    """[L,1,n,S] of `ids` [1,n] after a prompt."""

    def read(m):
        cache = m.lm.empty_cache(1, batch["tokens"].shape[1] + ids.shape[1])
        return m.prefill(batch, cache)[1]

    cache = model.apply({"params": params}, method=read)
    _, state = model.apply({"params": params}, ids, cache, method="decode", mutable=["heads"])
    (maps,) = jax.tree.leaves(state["heads"])
    return jnp.asarray(maps)


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each id adds to the text of those before it."""
    out, before = [], ""
    for n in range(len(ids)):
        known = [int(i) for i in ids[: n + 1] if 0 <= i < tokenizer.size]
        text = tokenizer.decode(known, skip_special=False)
        same = len(before) if text.startswith(before) else _common(before, text)
        out.append(text[same:])
        before = text
    return tuple(out)


def kinds(words: Sequence[str]) -> tuple[str, ...]:
    """The kind of each token of an answer: a letter alone is a choice, numbers in brackets and
    regions are coordinates."""
    text = "".join(words)
    if _CHOICE.fullmatch(text):
        return ("choice",) * len(words)
    inside = np.zeros(len(text) + 1, bool)
    for match in _PLACE.finditer(text):
        inside[match.start() : match.end()] = True
    ends = np.cumsum([len(word) for word in words], dtype=int)
    return tuple(
        "coordinates" if inside[max(end - len(word.strip()), 0) : end].any() else "text"
        for word, end in zip(words, ends, strict=True)
    )


def spread(values: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """[height, width]: each of `values` evenly over the pixels of its box, xyxy in [0, 1], so that
    their sum is kept; values of boxes without area are left out."""
    out = np.zeros((height, width))
    scaled = boxes * [width, height, width, height]
    low = np.floor(scaled[:, :2] + 1e-6).astype(int)
    high = np.maximum(np.ceil(scaled[:, 2:] - 1e-6).astype(int), low + 1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for n in np.flatnonzero(area > 0):
        (x0, y0), (x1, y1) = low[n], high[n]
        part = out[y0:y1, x0:x1]
        part += values[n] / max(part.size, 1)
    return out


def _common(a: str, b: str) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                min(len(a), len(b)))  # fmt: skip
