"""Conversations of text alone, several to a row (`config.pack`).

Rows of a batch have one length, and a text that is shorter pays for it with padding. Packed, texts
share a row; `segments` keeps them apart: no token sees, or predicts, one of another text, and
positions start anew (`attention.attention_mask`, `lm.LM`). So losses and gradients are those of a
row each. Conversations about pictures are not packed: a row has one picture.

Which texts share a row is fixed when the source is opened, so a row is a record like any other:
rows are shuffled, mixed and dealt out to processes, and the state of the iterator stays one number.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mg_jax.data.sources.base import Source
from mg_jax.data.sources.measures import TEXT
from mg_jax.errors import BadRecord, Unfit, UserError
from mg_jax.example import Example


def pack(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which texts share a row: lists of their numbers, each of `length` tokens at most.

    Greedy: the longest first (of equals the first), each into the fullest row that has room for
    it. Numbers ascend within a row, and rows by their first number. Raises UserError for a text of
    no token, or of more than `length`.
    """
    sizes = np.asarray(lengths, np.int64).reshape(-1)
    if sizes.size and not (sizes.min() > 0 and sizes.max() <= length):
        wrong = int(np.flatnonzero((sizes < 1) | (sizes > length))[0])
        raise UserError(f"text {wrong} has {sizes[wrong]} tokens: a row takes 1 to {length}")
    rows: list[list[int]] = []
    rooms: list[int] = []  # how much room rows have left, ascending, each value once
    having: dict[int, list[int]] = {}  # rows by the room they have left
    for n in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[n])
        place = bisect.bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            row = having[room].pop()
            if not having[room]:
                del rooms[place]
            rows[row].append(n)
        else:
            room, row = length, len(rows)
            rows.append([n])
        left = room - size
        if left:
            found = having.setdefault(left, [])
            if not found:
                bisect.insort(rooms, left)
            found.append(row)
    return sorted(sorted(row) for row in rows)


def joined(texts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Encoded texts one behind the other.

    texts: tokens [T0] int and loss_mask [T0] bool of each. Returns tokens [T] int32, loss_mask [T]
    bool and segments [T] int32, 1 for the first text. The first token of a text is no target:
    nothing comes before it.
    """
    lengths = [len(text["tokens"]) for text in texts]
    loss_mask = np.concatenate([text["loss_mask"] for text in texts])
    loss_mask[np.cumsum([0, *lengths[:-1]])] = False
    return {
        "tokens": np.concatenate([text["tokens"] for text in texts]).astype(np.int32),
        "loss_mask": loss_mask,
        "segments": np.repeat(np.arange(1, len(texts) + 1, dtype=np.int32), lengths),
    }


def segments(records: Sequence[Mapping[str, np.ndarray]], length: int) -> np.ndarray:
    """int32 [B, length]: the segments of rows of a batch, 1 all along in rows of one conversation;
    0 for padding."""
    rows = np.zeros((len(records), length), np.int32)
    for n, record in enumerate(records):
        rows[n, : len(record["tokens"])] = record.get("segments", 1)
    return rows


class TextRows(Source):
    """Rows of conversations of a source that has no pictures.

    count(example): tokens of a conversation, of which a row takes `length`. An item is an Example
    without picture or turns whose meta["texts"] are the examples of a row. Opening counts every
    example of the source once. Left out and counted: those that `count` finds Unfit, as what is
    longer than a row, or without turns; malformed ones as in any source. Raises UserError when too
    many are malformed or none is left.
    """

    medium = TEXT

    def __init__(self, source: Source, count: Callable[[Example], int], length: int):
        super().__init__(f"{source.name}, packed", source.head, source.max_bad)
        self.source, self.tasks = source, source.tasks
        numbers, lengths = [], []
        for i in range(len(source)):
            try:
                example = source[i]
                if not example.turns:
                    self.counts["examples without turns"] += 1
                    continue
                size = count(example)
            except BadRecord as e:
                place = source.where(i) or f"{source.name}[{i}]"
                self.problem(place, str(e).removeprefix(f"{place}: "))
                continue
            except Unfit as e:
                self.counts[e.reason] += 1
                continue
            numbers.append(i)
            lengths.append(size)
        self.opened(len(source))
        self.counts += source.counts
        self.bad, self.problems = source.bad + self.bad, source.problems + self.problems
        if not numbers:
            left = ", ".join(f"{n} {reason}" for reason, n in self.counts.items())
            raise UserError(
                f"data {self.name}: holds no conversation of text alone that fits"
                + (f" ({left})" if left else "")
                + ": leave it out, or set config.pack=False"
            )
        self.texts = len(numbers)
        rows = pack(lengths, length)
        self._rows = [[numbers[n] for n in row] for row in rows]
        self.lengths = np.array([sum(lengths[n] for n in row) for row in rows])  # tokens of rows
        self.fill = float(self.lengths.mean()) / length

    def summary(self) -> str:
        """As of any source, with how full the rows are."""
        return f"{super().summary()} of {self.texts} conversations, {self.fill:.0%} full"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        texts = tuple(self.source[n] for n in self._rows[i])
        name = "+".join(text.id for text in texts)
        return Example(None, 0, 0, id=name, source=self.source.name, meta={"texts": texts})
