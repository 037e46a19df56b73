"""Batches: one global order fixed by the seed, read by any number of processes, resumable.

The order of an epoch is computed, never stored: which record stands at which place depends on
(seed, epoch) alone, and the random numbers of a record on (seed, epoch, place). So a run can stop
after any batch and go on with the same batches, on as many processes and workers as it likes, and
the iterator's whole state is the number of batches delivered.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mg_jax.data.order import Groups, Plan
from mg_jax.data.sources.base import Source
from mg_jax.errors import BadRecord, Unfit, UserError
from mg_jax.example import Example

Record = dict[str, Any]
MakeRecord = Callable[[Example, np.random.Generator], Record | None]
Collate = Callable[[list[Record]], dict[str, np.ndarray]]
Finish = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

_ENDLESS = 1 << 40  # batches of a run without a stated number of epochs
_FEW = 10  # malformed records of a source that are let pass whatever their share
_CHANCE = 3  # standard deviations beyond their share that they may be: a sample is uneven
_TRIES = 100  # records tried in place of one that make_record refuses


@dataclass
class _Row:
    """What became of the records that were tried for a row of a batch.

    refused: how many make_record did not take, unfit: those that have a reason, by it; bad: words
    about malformed ones. dropped: things left out of the row, for want of room or because they lie
    outside of the picture; filtered: what filters left out, of all that were tried, by reason.
    """

    source: int
    refused: int = 0
    unfit: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    dropped: int = 0
    filtered: Counter[str] = field(default_factory=Counter)


class _Failure:
    """A user's error on its way from a worker, whose own exceptions lose their type."""

    def __init__(self, message: str):
        self.message = message


class _Batches:
    """Random access to the batches of one process, the first being number `start`."""

    def __init__(self, plan, sources, make_record, collate, process_index, process_count, stop):
        self.plan, self.sources = plan, sources
        self.make_record, self.collate = make_record, collate
        self.process_index, self.process_count = process_index, process_count
        self.start, self.stop = 0, stop

    def __len__(self) -> int:
        return max(self.stop - self.start, 0)

    def __getitem__(self, i) -> tuple[Any, list[_Row]]:
        first = (self.start + int(i)) * self.plan.batch_size
        room = self.plan.room(first)
        places = range(first + self.process_index, first + self.plan.batch_size, self.process_count)
        seen: list[_Row] = []
        try:
            records = [self._record(place, room, seen) for place in places]
            return self.collate(records), seen
        except UserError as e:
            return _Failure(str(e)), seen

    def _record(self, place: int, room: int | None, seen: list[_Row]) -> Record:
        source, record, epoch, offset = self.plan.at(place)
        data = self.sources[source]
        row, why = _Row(source), ""
        seen.append(row)
        for tried in range(min(_TRIES, len(data))):
            key = [self.plan.seed, 4, epoch, offset, tried]
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
            number = self.plan.instead(source, record, tried, room)
            try:
                example = data[number]
                meta = {
                    "head": data.head, **example.meta, "tasks": data.tasks,
                    "frequency": data.frequency, "filtered": row.filtered,
                } | ({} if room is None else {"room": room})  # fmt: skip
                # a copy: sources may keep their examples
                made = self.make_record(replace(example, meta=meta), rng)
            except BadRecord as e:
                place = data.where(number)
                row.bad.append(str(e) if str(e).startswith(place) else f"{place}: {e}")
                continue
            except Unfit as e:
                row.unfit[e.reason] += 1
                made, why = None, why or str(e)
            if made is not None:
                row.dropped = made.pop("dropped", 0)
                return made
            row.refused += 1
        why = next(iter(row.bad), why)
        raise UserError(
            f"data {data.name}: none of {min(_TRIES, len(data))} examples tried, the first number "
            f"{record}, " + (f"can be used; for example: {why}" if why else
               "can be used: check its boxes and the filters")
        )  # fmt: skip


class BatchIterator:
    """Iterates over the batches of one process; built by `batches`.

    state: batches delivered so far, all there is to save. restore(state) goes there. skipped:
    records that make_record refused and others replaced, since construction; unfit: those of
    them that have a reason, by it; bad: those that were malformed or had no readable picture.
    dropped: what the records of the batches left out (their "dropped"), for want of slots or as
    no part of the picture;
    filtered: how often filters left something out of what is asked, by reason. problems: words
    about bad records, for who reads them first: take them out.
    """

    def __init__(self, batches: _Batches, workers: int, threads: int, finish: Finish | None):
        self._batches, self._workers, self._threads = batches, workers, threads
        self._finish = finish
        self.state, self.skipped, self.bad, self.dropped = 0, 0, 0, 0
        self.unfit, self.filtered = Counter[str](), Counter[str]()
        self.problems: list[str] = []
        self._read, self._broken = Counter[int](), Counter[int]()
        self._iterator: Any = None

    @property
    def epoch_size(self) -> int:
        """Records of an epoch, of all processes together."""
        return self._batches.plan.epoch_size

    @property
    def sources(self) -> list[Source]:
        """What the batches are read from."""
        return self._batches.sources

    @property
    def counts(self) -> dict[str, int]:
        """For the metrics: skipped, malformed, and what else there was, in this process."""
        out = {"skipped": self.skipped, "malformed": self.bad}
        out |= {"dropped": self.dropped} if self.dropped else {}
        for name, reasons in (("skipped", self.unfit), ("filtered", self.filtered)):
            out |= {f"{name}/{why.replace(' ', '_')}": n for why, n in reasons.items()}
        return out

    @property
    def total(self) -> int | None:
        """Batches of the whole run, None for an endless one."""
        return None if self._batches.stop == _ENDLESS else self._batches.stop

    @property
    def epoch(self) -> float:
        """Epochs delivered so far."""
        return self.state * self._batches.plan.batch_size / self.epoch_size

    def restore(self, state: int) -> "BatchIterator":
        """Go on as if `state` batches had been delivered."""
        if state < 0:
            raise UserError(f"data iterator: state {state} is negative")
        self.close()
        self.state = int(state)
        return self

    def close(self) -> None:
        """Stop reading ahead."""
        iterator, self._iterator = self._iterator, None
        if hasattr(iterator, "close"):
            iterator.close()

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._open()
        batch, seen = next(self._iterator)
        self._account(seen)
        if isinstance(batch, _Failure):
            self.close()
            raise UserError(batch.message)
        self.state += 1
        if self._workers:
            # What a worker made lies in shared memory; a copy frees it at once.
            batch = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in batch.items()}
            batch = self._finish(batch) if self._finish else batch
        return batch

    def _account(self, seen: Sequence[_Row]) -> None:
        """Count what was replaced; UserError when a source has too much that is malformed."""
        for row in seen:
            self.skipped += row.refused
            self.unfit.update(row.unfit)
            self.dropped += row.dropped
            self.filtered.update(row.filtered)
            self.bad += len(row.bad)
            self.problems += row.bad
            self._read[row.source] += 1 + len(row.bad)
            self._broken[row.source] += len(row.bad)
            data, broken = self.sources[row.source], self._broken[row.source]
            due = data.max_bad * self._read[row.source]
            if row.bad and broken >= _FEW and broken > due + _CHANCE * due**0.5:
                self.close()
                raise UserError(
                    f"data {data.name}: {broken} of {self._read[row.source]} records could not be "
                    f"read, more than max_bad={data.max_bad:g} allows; the last: {row.bad[-1]}"
                )

    def _open(self) -> Any:
        """A grain iterator from the present state on. One element is one batch, so that workers,
        who take turns element by element, cannot change what is in a batch."""
        import grain  # here, since it brings jax along

        self._batches.start = self.state
        data = grain.MapDataset.source(self._batches)
        ahead = 0 if self._threads == 0 else 2 * self._threads
        read = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
        data = data.to_iter_dataset(read)
        if self._workers:
            _parse_no_flags()
            options = grain.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=2
            )
            data = data.mp_prefetch(options)
        return iter(data)


def _parse_no_flags() -> None:
    """grain's workers read absl flags and fail where no absl main has parsed them."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def batches(
    sources: Sequence[Source],
    ratios: Sequence[float] | None,
    make_record: MakeRecord,
    collate: Collate,
    batch_size: int,
    seed: int,
    *,
    weights: Sequence[float] | None = None,
    single_source: bool = False,
    workers: int = 0,
    threads: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    groups: Groups | None = None,
    epochs: float | None = None,
    finish: Finish | None = None,
) -> BatchIterator:
    """Batches of a mixture of sources.

    ratios, weights, single_source: see `Plan`. Without single_source the order runs on through
    the epochs and nothing is dropped but a remainder at the very end. groups: see `order.Groups`;
        single_source then has no say.
    make_record(example, rng): a sample as arrays, or None to have the source's next one instead;
        `example.meta` gets the source's "head", "tasks" and "frequency", with groups "room", the
        length planned for the batch, which it keeps to, and "filtered", a Counter for what filters
        leave out; Unfit means the same as None, counted by its reason; BadRecord from there or
        from the source too, and is counted against the source's max_bad.
    collate(records): a batch.
    batch_size: rows of the global batch; process p of n gets its rows [p::n].
    workers: processes that make batches (0: none; make_record and collate must then be picklable
        if there are any); threads: threads that do so in each (0: none, nothing is read ahead).
    epochs: None for an endless run; 2.5 for two and a half.
    finish(batch): done last, after the batch has left its worker: what makes it larger.
    Raises UserError for an empty source, a batch size that the processes do not divide, or (with
    single_source) a source too small for one batch.
    """
    if not sources:
        raise UserError("data: no source is given")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} is no positive multiple of the {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise UserError(f"process_index={process_index} is not in 0..{process_count - 1}")
    for values, name in ((ratios, "ratios"), (weights, "weights")):
        if values is None:
            continue
        if len(values) != len(sources):
            raise UserError(f"{name}: {len(values)} given for {len(sources)} sources")
        if any(not v > 0 for v in values):
            raise UserError(f"{name}: {list(values)} are not all above 0")
    for source in sources:
        if not len(source):
            raise UserError(f"data {source.name}: holds no example")
    sizes, single_source = [len(s) for s in sources], single_source and groups is None
    plan = Plan(sizes, batch_size, seed, ratios, weights, single_source, shuffle, groups)
    if single_source:
        for source, count in zip(sources, plan.counts, strict=True):
            if count < batch_size:
                raise UserError(
                    f"data {source.name}: {count} examples an epoch do not fill one batch of "
                    f"{batch_size}: lower batch_size or raise its ratio"
                )
    stop = _ENDLESS if epochs is None else int(plan.epoch_size * epochs) // batch_size
    if stop == 0:
        raise UserError(
            f"data: {plan.epoch_size} examples and epochs={epochs} do not fill one batch of "
            f"{batch_size}"
        )
    made = (lambda records: finish(collate(records))) if finish and not workers else collate
    rows = _Batches(plan, list(sources), make_record, made, process_index, process_count, stop)
    return BatchIterator(rows, workers, threads, finish)


def stack(records: list[Record]) -> dict[str, np.ndarray]:
    """The plainest collate: every array of the records stacked along a new first axis."""
    return {key: np.stack([record[key] for record in records]) for key in records[0]}


def refuse_empty_loss(batch: Mapping[str, np.ndarray]) -> None:
    """Raises UserError when a row of the batch holds text but no token to train on.

    batch: loss_mask [B, T] bool, valid [B, T] bool if there is padding.
    """
    mask = np.asarray(batch["loss_mask"], bool)
    used = np.asarray(batch.get("valid", np.ones_like(mask)), bool)
    empty = np.flatnonzero(used.any(-1) & ~mask.any(-1))
    if len(empty) or not mask.any():
        rows = ", ".join(map(str, empty[:5])) or "all"
        raise UserError(
            f"batch: loss_mask is empty in row(s) {rows}: these examples have no answer to train "
            "on; give every turn an answer"
        )
