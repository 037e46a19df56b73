"""Between recorded layouts and ours: prompts of variable length and fixed slots, NCHW and NHWC."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Recorded ids with their one `<image>` and one `<region>` expanded to all our slots.

    tokens [B,T], padded with [PAD]; source [B,T]: the id's place in `ids`, -1 for slots and
    padding; valid [B,T].
    """

    ids: np.ndarray
    tokens: np.ndarray
    source: np.ndarray
    valid: np.ndarray

    @classmethod
    def expand(cls, ids: np.ndarray, cfg: Any) -> "Prompt":
        """Expand rows of ids [B,T0]; a row ends at its first [PAD] (spec 2.6)."""
        image, region, first = (cfg.id(name) for name in ("image", "region", "first_region"))
        slots = {
            image: [image] * cfg.image_tokens,
            region: [t for k in range(cfg.max_regions) for t in (first + k, region)],
        }
        rows = []
        for row in ids:
            tokens, source = [], []
            for place, token in enumerate(row.tolist()):
                if token == cfg.id("pad"):
                    break
                inner = slots.get(token, [token])
                tokens += inner
                source += [place] if token not in slots else [-1] * len(inner)
            rows.append((tokens, source))
        shape = len(rows), max(len(tokens) for tokens, _ in rows)
        tokens, source = np.full(shape, cfg.id("pad"), np.int32), np.full(shape, -1)
        for b, (row_tokens, row_source) in enumerate(rows):
            tokens[b, : len(row_tokens)], source[b, : len(row_source)] = row_tokens, row_source
        return cls(ids, tokens, source, tokens != cfg.id("pad"))

    @property
    def batch(self) -> dict[str, np.ndarray]:
        """The text part of a batch."""
        return {"tokens": self.tokens, "valid": self.valid}

    def spread(self, flags: np.ndarray) -> np.ndarray:
        """Flags of ids [B,T0] at their places in `tokens`; False at slots and padding."""
        found = np.take_along_axis(flags, np.maximum(self.source, 0), 1)
        return found & (self.source >= 0)

    def collapse(self, tokens: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """`ids` with the values that `tokens` [B,T] has at their places."""
        out = ids.copy()
        rows, places = np.nonzero(self.source >= 0)
        out[rows, self.source[rows, places]] = tokens[rows, places]
        return out


def nchw(x: Any) -> np.ndarray:
    """[B,Y,X,C] -> [B,C,Y,X]."""
    return np.asarray(x).transpose(0, 3, 1, 2)


def unshuffled(regions: Any, order: np.ndarray, b: int) -> np.ndarray:
    """Candidate numbers of row b's regions by descending score, as before `order` was applied."""
    back = np.argsort(order[b])
    return np.asarray(regions.index)[b][back][np.asarray(regions.valid)[b][back]]


def pack(values: np.ndarray, valid: np.ndarray, fill: Any) -> np.ndarray:
    """Valid positions of each row moved to the front, the rest filled: [B, longest, ...]."""
    longest = int(valid.sum(1).max())
    out = np.empty((len(values), longest, *values.shape[2:]), values.dtype)
    out[:] = fill
    for b, keep in enumerate(valid):
        out[b, : keep.sum()] = values[b][keep]
    return out
