"""Short conversations of text alone, several to a row.

Rows of a batch have one length, and a text that is shorter pays for it with padding. Packed, texts
share a row; `segments` keeps them apart: no token sees, or predicts, one of another text, and
positions start anew (`attention.attention_mask`, `lm.LM`). So losses and gradients are those of a
row each. Conversations about pictures are not packed: a row has one picture.

    packed = PackedSource(open_source("llava:mix665k.json,images"), encode, length=2048)
    make = functools.partial(packed_record, encode=encode, length=2048, pad=tokenizer.pad_id)
    it = batching.batches([packed], None, make, batching.stack, batch_size, seed)

`encode(example, rng)` is a codec's: tokens [T0] and loss_mask [T0] of the conversation, as many
tokens for one example at every call. Which texts
share a row is fixed when the source is opened, so a row is a record like any other: rows are
shuffled, mixed and dealt out to processes, and the state of the iterator stays one number. A
system that takes such rows gives their `segments` to its language model; none of the four does
(docs/data.md).
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mg_jax.data.sources.base import Source
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example

Encode = Callable[[Example, np.random.Generator | None], Mapping[str, np.ndarray]]


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


def packed_row(
    texts: Sequence[Mapping[str, np.ndarray]], length: int, pad: int
) -> dict[str, np.ndarray]:
    """One row of encoded texts, one behind the other, padded to `length`.

    texts: tokens [T0] int and loss_mask [T0] bool of each. Returns tokens [T] int32, valid and
    loss_mask [T] bool, segments [T] int32 (1 for the first text, 0 for padding) and positions [T]
    int32 (from 0 in each text). The first token of a text is no target: nothing comes before it.
    Raises UserError for texts that do not fit.
    """
    total = sum(len(text["tokens"]) for text in texts)
    if total > length:
        raise UserError(f"{len(texts)} texts of {total} tokens do not fit a row of {length}")
    row: dict[str, np.ndarray] = {
        "tokens": np.full(length, pad, np.int32),
        "valid": np.arange(length) < total,
        "loss_mask": np.zeros(length, bool),
        "segments": np.zeros(length, np.int32),
        "positions": np.zeros(length, np.int32),
    }
    start = 0
    for number, text in enumerate(texts, 1):
        end = start + len(text["tokens"])
        row["tokens"][start:end] = text["tokens"]
        row["loss_mask"][start + 1 : end] = text["loss_mask"][1:]
        row["segments"][start:end] = number
        row["positions"][start:end] = np.arange(end - start)
        start = end
    return row


class PackedSource(Source):
    """Rows of conversations of a source, for `packed_record`.

    An item is an Example without picture or turns whose meta["texts"] are the examples of a row.
    Opening encodes every example of the source once, to measure it. Left out and counted: those
    with a picture or a video, longer than `length`, or without turns; malformed ones as in any
    source. Raises UserError when too many are malformed or none is left.
    """

    def __init__(self, source: Source, encode: Encode, length: int):
        super().__init__(f"{source.name}, packed", source.head, source.max_bad)
        self.source, self.tasks = source, source.tasks
        numbers, lengths = [], []
        for i in range(len(source)):
            try:
                example = source[i]
                if example.image is not None or example.video:
                    self.counts["conversations with a picture"] += 1
                    continue
                if not example.turns:
                    self.counts["examples without turns"] += 1
                    continue
                size = len(encode(example, None)["tokens"])
            except BadRecord as e:
                self.problem(f"{source.name}[{i}]", str(e))
                continue
            if size > length:
                self.counts[f"conversations of more than {length} tokens"] += 1
                continue
            numbers.append(i)
            lengths.append(size)
        self.opened(len(source))
        if not numbers:
            raise UserError(f"data {self.name}: holds no conversation of text alone that fits")
        self.texts = len(numbers)
        self._rows = [[numbers[n] for n in row] for row in pack(lengths, length)]
        self.fill = sum(lengths) / (length * len(self._rows))

    def summary(self) -> str:
        """As of any source, with how full the rows are."""
        return f"{super().summary()} of {self.texts} conversations, {self.fill:.0%} full"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Example:
        texts = tuple(self.source[n] for n in self._rows[i])
        name = "+".join(text.id for text in texts)
        return Example(None, 0, 0, id=name, source=self.name, meta={"texts": texts})


def packed_record(
    example: Example, rng: np.random.Generator, encode: Encode, length: int, pad: int
) -> dict[str, Any]:
    """The row of an item of `PackedSource`, as `packed_row` has it."""
    return packed_row([encode(text, rng) for text in example.meta["texts"]], length, pad)
