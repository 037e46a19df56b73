"""From generated ids of Groma to an `Answer`: a reader that forgives every kind of bad grammar.

Upstream has no such reader (spec 8). The grammar is `<p>phrase</p><roi><r_k>...</roi>`, text
around it, and `<roi>...</roi>` alone; whatever deviates is read as far as it makes sense, counted,
and named in the answer's notes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from mg_jax.answer import Answer
from mg_jax.text.codecs.compose import Piece, compose
from mg_jax.text.tokenizer import Tokenizer


def decode_answer(
    tokenizer: Tokenizer,
    control: Mapping[str, int],
    ids: Iterable[int],
    boxes: np.ndarray,
    scores: np.ndarray,
    region_mask: np.ndarray | None,
    width: int,
    height: int,
    question: str | None,
    notes: tuple[str, ...],
) -> Answer:
    """`GromaCodec.decode`, which see; control: ids of Groma's tokens by name."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    scores = np.asarray(scores, np.float64).reshape(-1)
    valid = np.ones(len(boxes), bool) if region_mask is None else np.asarray(region_mask, bool)
    valid = valid & np.isfinite(boxes).all(-1)
    pixels = np.clip(boxes, 0, 1) * np.array([width, height, width, height], np.float64)
    reader = _Reader(tokenizer, control, valid)
    reader.read(ids)

    return compose(reader.pieces, reader.faults, pixels, scores, question, notes, width, height)


class _Reader:
    """Collects `pieces` (see `compose.Piece`) and counts `faults` by name."""

    def __init__(self, tokenizer: Tokenizer, control: Mapping[str, int], valid: np.ndarray):
        self.tokenizer, self.valid = tokenizer, valid
        self.names = {i: t for t, i in control.items()}
        self.first_proxy = control["<r0>"]
        self.last_proxy = control["<r99>"]
        self.pieces: list[Piece] = []
        self.faults: Counter[str] = Counter()
        self.run: list[int] = []
        self.in_phrase = self.in_roi = False
        # True between </p> and what follows: regions then belong to the phrase
        self.awaits = False
        # True when the last piece takes further regions
        self.open = False

    def read(self, ids: Iterable[int]) -> None:
        t = self.tokenizer
        for i in ids:
            i = int(i)
            if i in (t.eos_id, t.pad_id):
                break
            if not 0 <= i < t.size:
                self.faults["id outside the vocabulary"] += 1
            elif i in (t.bos_id, t.unk_id):
                continue
            elif i < t.vocab_size:
                self.run.append(i)
            else:
                self.flush()
                self.mark(i)
        self.flush()
        if self.in_phrase:
            self.faults["unclosed <p>"] += 1
        if self.in_roi:
            self.faults["unclosed <roi>"] += 1

    def flush(self) -> None:
        """Ends a run of ordinary pieces."""
        words = " ".join(self.tokenizer.decode_text(self.run).split())
        self.run = []
        if not words:
            return
        if self.in_roi:
            self.faults["text inside <roi>"] += 1
            self.in_roi = False
        kind = "phrase" if self.in_phrase else "text"
        self.pieces.append((kind, words, []))
        self.awaits = self.open = False

    def mark(self, i: int) -> None:
        """Takes one control token."""
        name = self.names.get(i, "")
        if self.first_proxy <= i <= self.last_proxy:
            self.region(i - self.first_proxy)
        elif name == "<p>":
            if self.in_phrase:
                self.unphrase()
            self.leave_roi()
            self.in_phrase, self.awaits, self.open = True, False, False
        elif name == "</p>":
            self.awaits = self.in_phrase and bool(self.pieces) and self.pieces[-1][0] == "phrase"
            self.open = False
            if not self.in_phrase:
                self.faults["</p> without <p>"] += 1
            elif not self.awaits:
                self.faults["empty phrase"] += 1
            self.in_phrase = False
        elif name == "<roi>":
            if self.in_roi:
                self.faults["unclosed <roi>"] += 1
            if self.in_phrase:
                # `<p>a dog<roi>`: the phrase ends where its place begins
                self.faults["unclosed <p>"] += 1
                self.in_phrase = False
                self.awaits = bool(self.pieces) and self.pieces[-1][0] == "phrase"
            self.in_roi = True
        elif name == "</roi>":
            if not self.in_roi:
                self.faults["</roi> without <roi>"] += 1
            self.in_roi = self.awaits = False
        elif name != "[grounding]":
            self.faults[f"stray {name or 'token'}"] += 1

    def leave_roi(self) -> None:
        if self.in_roi:
            self.faults["unclosed <roi>"] += 1
            self.in_roi = False

    def unphrase(self) -> None:
        """A phrase that never closed is plain text."""
        self.faults["unclosed <p>"] += 1
        if self.pieces and self.pieces[-1][0] == "phrase":
            self.pieces[-1] = ("text", self.pieces[-1][1], [])

    def region(self, k: int) -> None:
        if not self.in_roi:
            self.faults["region outside <roi>"] += 1
        if k >= len(self.valid) or not self.valid[k]:
            self.faults[f"<r{k}> that names no region"] += 1
            return
        if self.awaits:
            self.open = True
            self.awaits = False
        if not self.open:
            self.pieces.append(("regions", "", []))
            self.open = True
        regions = self.pieces[-1][2]
        if k in regions:
            self.faults[f"repeated <r{k}>"] += 1
        else:
            regions.append(k)
