"""What the systems share on the way from an example to a batch.

A row is made in three steps, each of which a system fills in where it has something to say:

    prepare    what the length of the text depends on: detected boxes, the grid of tiles
    encode     the conversation as ids, by the system's codec
    complete   what costs most and depends on both: pixels, crops, detection targets
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from mg_jax import config as configs
from mg_jax.data import batch as batching
from mg_jax.data import packing
from mg_jax.data.sources import Source
from mg_jax.data.sources.measures import TEXT
from mg_jax.data.tasks import Filters, ObjectTasks, converse, parse_tasks
from mg_jax.errors import BadRecord, Unfit, UserError
from mg_jax.example import Example
from mg_jax.text import instructions
from mg_jax.text.codecs.rows import check_size

Record = batching.Record

_DRAWS = 4  # conversations drawn about one picture until one fits
_NO_LIMIT = 10**9


class Samples:
    """The examples of a stage as rows of its batches.

    It travels to the processes that make batches, so it must be picklable.
    """

    def make(self, example: Example, rng: np.random.Generator) -> Record | None:
        """A row, or None where the example gives none. Raises Unfit for one that is left out for
        a reason, BadRecord for a malformed one."""
        raise NotImplementedError

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        """Rows to a batch, as small as it travels from a worker."""
        raise NotImplementedError

    def finish(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch as the model takes it: done last, what makes it larger."""
        return batch


def target_slots(config: Any) -> int:
    """Boxes of a picture that a stage trains on. Raises UserError for none."""
    if config.target_slots < 1:
        raise UserError(f"config.target_slots: {config.target_slots} is not at least 1")
    return int(config.target_slots)


class Conversations(Samples):
    """A stage that trains on answers.

    Examples without turns are asked about their annotations. `config.codec.too_long` "skip": what
    is longer than the longest bucket, or `encode` has no room for, loses its last turns or is left
    out; "error": it ends the run. Where batches are planned by length (config.group_by_length), an
    example keeps to its batch's, meta["room"]. config.pack: an example may be several, texts
    without a picture (meta["texts"], `packing.TextRows`), and batches have `segments`.
    """

    takes_texts = True  # whether a row may be without picture

    def __init__(self, config: Any, cfg: Any, codec: Any):
        rest = config.codec
        if config.pack and not self.takes_texts:
            raise UserError(f"config.pack: {config.system} takes no text without a picture")
        if rest.too_long not in ("error", "skip"):
            raise UserError(f"config.codec.too_long: {rest.too_long!r} is not 'error' or 'skip'")
        if config.turns < 1:
            raise UserError(f"config.turns is {config.turns}: a conversation has at least one")
        self.check_vocabulary(rest.tokenizer, cfg, codec)
        if codec.length > cfg.lm.max_positions:
            raise UserError(
                f"config.codec.text_tokens: {codec.text_tokens} make sequences of {codec.length}, "
                f"but config.model.lm.max_positions is {cfg.lm.max_positions}: lower the one"
            )
        if rest.text_tokens < 1:
            raise UserError(f"config.codec.text_tokens: {rest.text_tokens} leaves no text")
        getattr(codec, "end_id", None)  # refuses a template whose end the tokenizer does not know
        self.codec = codec
        self.text_tokens = rest.text_tokens
        self.buckets = tuple(sorted({*self.lengths(rest), codec.length}))
        self.alone = jax.process_count() == 1
        self.skip = rest.too_long == "skip"
        if self.skip:
            codec.text_tokens = _NO_LIMIT  # measured here instead, where it is no error
        self.tasks, self.objects = parse_tasks(config.tasks, "config"), object_tasks(config)
        self.wording = instructions.get(config.instructions or config.system)
        self.turns, self.pack = config.turns, config.pack

    def check_vocabulary(self, name: str, cfg: Any, codec: Any) -> None:
        """Raises UserError when the tokenizer `name` does not fit the language model."""
        if codec.tokenizer.vocab_size != cfg.lm.vocab:
            raise UserError(
                f"config.model.lm.vocab is {cfg.lm.vocab}, but the tokenizer {name} has "
                f"{codec.tokenizer.vocab_size} pieces: set the one to the other"
            )

    def lengths(self, section: Any) -> list[int]:
        """Shorter lengths of sequences that `config.codec` allows beside the longest."""
        fixed = self.codec.length - self.codec.text_tokens
        return [fixed + size for size in section.buckets if size < section.text_tokens]

    def visual(self, medium: int) -> int:
        """Positions of an example of a medium that are no text, at most."""
        return 0 if medium == TEXT else self.codec.length - self.codec.text_tokens

    def planned(self, source: Source) -> np.ndarray:
        """Positions that the examples of a source, all of one medium, need: int [len(source)],
        rather more than they do."""
        if isinstance(source, packing.TextRows):
            return source.lengths
        found = source.measures()
        if found is None:
            return np.full(len(source), self.buckets[-1])
        return self.visual(int(found[0, 0])) + np.minimum(found[:, 1], self.text_tokens)

    def sizes(self, records: Sequence[Record]) -> tuple[int, ...]:
        """Lengths that a batch of these rows may have. Processes do not see each other's rows, and
        shapes must agree: with several it is what was planned for the batch, else the longest."""
        return self.buckets if self.alone else (records[0].get("room", self.buckets[-1]),)

    def prepare(self, example: Example, rng: np.random.Generator) -> Record:
        """Fields of the row that the length of the text depends on."""
        return {}

    def encode(self, example: Example, rng: np.random.Generator, seen: Record) -> Record:
        """The example's turns as ids; `seen` is what `prepare` gave. Raises Unfit where there is no
        room for its text or regions."""
        raise NotImplementedError

    def complete(self, record: Record, example: Example, rng: np.random.Generator) -> Record | None:
        """The row with all that is not text; None where the example gives none."""
        raise NotImplementedError

    def packed(self, source: Source) -> packing.TextRows:
        """Rows of the conversations of a source that has no pictures, each as long as a batch may
        be. Raises UserError as `TextRows`."""
        return packing.TextRows(source, self._size, self.buckets[-1])

    def _size(self, example: Example) -> int:
        return len(self._row(example, np.random.default_rng(0))["tokens"])

    def make(self, example: Example, rng: np.random.Generator) -> Record | None:
        room = {k: v for k, v in example.meta.items() if k == "room"}
        texts = [self._row(text, rng) for text in example.meta.get("texts", ())]
        if texts:
            record = {**texts[0], **packing.joined(texts)}
            check_size(len(record["tokens"]), self.buckets[-1], _name(example), room.get("room"))
        else:
            record = self._row(example, rng)
        return self.complete({**record, **room, "name": _name(example)}, example, rng)

    def segments(self, records: Sequence[Record], length: int) -> dict[str, np.ndarray]:
        """What a batch of these rows has besides where texts are packed."""
        return {"segments": packing.segments(records, length)} if self.pack else {}

    def _row(self, example: Example, rng: np.random.Generator) -> Record:
        seen = self.prepare(example, rng)
        return {**seen, **self._talk(example, rng, seen, _name(example))}

    def _talk(self, example: Example, rng: np.random.Generator, seen: Record, name: str) -> Record:
        if example.turns:
            return self._encoded(example, rng, seen, name)
        tasks = example.meta.get("tasks") or self.tasks
        drops = example.meta.get("filtered", Counter[str]())
        objects = replace(self.objects, drops=drops).tasks
        left: Unfit | None = None
        for _ in range(_DRAWS):
            asked = converse(example, rng, tasks, self.wording, self.turns, objects)
            if not asked:
                break
            for count in range(len(asked.turns), 0, -1):  # as many of its first turns as fit
                part = replace(asked, turns=asked.turns[:count])
                try:
                    return self._encoded(part, rng, seen, name)
                except Unfit as e:
                    left = e
        gone = ", ".join(f"{why} {n}" for why, n in drops.items())
        raise left or Unfit(
            "nothing to ask",
            f"{name}: none of {', '.join(tasks)} fits its annotations"
            + (f" (filters left out: {gone})" if gone else ""),
        )

    def _encoded(
        self, example: Example, rng: np.random.Generator, seen: Record, name: str
    ) -> Record:
        try:
            record = self.encode(example, rng, seen)
        except Unfit as e:
            if self.skip:
                raise
            raise UserError(str(e)) from None
        except UserError as e:  # a turn without answer, two <image> marks: the record's own fault
            raise BadRecord(str(e)) from e
        room = example.meta.get("room")
        if self.skip or room is not None:
            check_size(len(record["tokens"]), self.buckets[-1], name, room)
        return record


def _name(example: Example) -> str:
    return f"example {example.id!r} of {example.source}"


def object_tasks(config: Any) -> ObjectTasks:
    """The tasks with object images by `config.filters` and `config.options`. Raises UserError for
    thresholds that make no sense."""
    filters = configs.build(Filters, config.filters.to_dict(), "config.filters")
    return ObjectTasks(filters, options=config.options)


def stacked(records: Sequence[Record], *names: str) -> dict[str, np.ndarray]:
    """These arrays of the records, as far as they have them, along a new first axis."""
    return {k: np.stack([r[k] for r in records]) for k in names if k in records[0]}
