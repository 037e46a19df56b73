"""The global order of data: which record stands where, fixed by the seed, computed and not stored.

Rows can be grouped by what is known of them before they are read (`Groups`). As upstream's
samplers do, each medium by itself is cut, in its shuffled order, into mega-batches of up to 50
batches; only within these are rows sorted by length; then the batches of all media are shuffled.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MEGA = 50  # batches that are sorted together at most, and no more than a quarter of a medium's


@dataclass(frozen=True)
class Groups:
    """By what rows are put together.

    media: a number for each source; a batch has rows of one number. lengths: for each source the
    positions that its records are thought to need, int [records]. rooms: lengths that a batch may
    have, ascending; the last one holds whatever is trained on.
    """

    media: Sequence[int]
    lengths: Sequence[np.ndarray]
    rooms: Sequence[int]


class Plan:
    """Which record stands where.

    sizes: records per source. ratios: the share of a source that is used; below 1, one subset
    fixed by the seed, as upstream; above 1, that many rounds an epoch. weights: if given, the
    sources' shares of an epoch, whatever their sizes; a small one starts over, a large one goes
    on in the next epoch. single_source: every batch from one source, remainders dropped. groups:
    every batch of one medium and of rows of similar length; the last batch of a medium is filled
    up with rows that it has had.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        ratios: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        single_source: bool = False,
        shuffle: bool = True,
        groups: Groups | None = None,
    ):
        self.sizes, self.batch_size, self.seed = list(sizes), batch_size, seed
        self.single_source, self.shuffle = single_source, shuffle
        ratios = [1.0] * len(self.sizes) if ratios is None else list(ratios)
        self.pools = [
            self._subset(s, n, r - int(r))
            for s, (n, r) in enumerate(zip(sizes, ratios, strict=True))
        ]
        rounds = [int(r) for r in ratios]
        counts = [n * r + len(p) for n, r, p in zip(sizes, rounds, self.pools, strict=True)]
        self.rounds = rounds
        self.pool_sizes = counts
        if weights is not None:
            total = sum(counts)
            shares = np.asarray(weights, np.float64) / np.sum(weights)
            counts = [round(total * float(share)) for share in shares]
        self.counts = counts
        self.epoch_size = sum(counts)
        if single_source:
            self.epoch_size = sum(n // batch_size for n in counts) * batch_size
        self.groups = groups
        if groups is not None:
            self._lengths = [np.minimum(n, groups.rooms[-1]) for n in groups.lengths]
            self._by_length = [self._sorted(s) for s in range(len(self.sizes))]
            self.epoch_size = sum(
                -(-sum(n for n, m in zip(counts, groups.media, strict=True) if m == medium)
                  // batch_size) * batch_size
                for medium in set(groups.media)
            )  # fmt: skip
        self._orders: dict[int, np.ndarray] = {}

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *key])))

    def _subset(self, source: int, size: int, share: float) -> np.ndarray:
        if share <= 0:
            return np.zeros(0, np.int64)
        count = max(round(size * share), 1)
        return np.sort(self._rng(1, source).permutation(size)[:count])

    def _sorted(self, source: int) -> tuple[np.ndarray, np.ndarray]:
        """The lengths of the records of a source that are used, ascending, and the records."""
        whole = np.arange(self.sizes[source])
        used = whole if self.rounds[source] else self.pools[source]
        used = used[np.argsort(self._lengths[source][used], kind="stable")]
        return self._lengths[source][used], used

    def instead(self, source: int, record: int, tries: int, room: int | None = None) -> int:
        """The record to take when `record` and `tries` - 1 others were refused: one of the part of
        the source that is used, far from those in the file, since bad ones come in blocks; at
        first of those that are thought to fit `room`. Without it, as many tries as records reach
        them all."""
        if not tries:
            return record
        if room is not None:
            lengths, records = self._by_length[source]
            fitting = int(np.searchsorted(lengths, room, "right"))
            count = fitting if tries < fitting else len(records)
            return int(records[_stride(record, tries, count)])
        if self.rounds[source]:
            return _stride(record, tries, self.sizes[source])
        pool = self.pools[source]
        return int(pool[_stride(int(np.searchsorted(pool, record)), tries, len(pool))])

    def _shuffled(self, source: int, cycle: int) -> np.ndarray:
        """All records of a source, with repeats of rounds, in the order of one pass."""
        whole = np.arange(self.sizes[source])
        records = np.concatenate([whole] * self.rounds[source] + [self.pools[source]])
        return self._rng(2, source, cycle).permutation(records) if self.shuffle else records

    def _drawn(self, source: int, epoch: int) -> np.ndarray:
        """The records of a source in an epoch: a window of its endless shuffled passes."""
        count, size = self.counts[source], self.pool_sizes[source]
        start = epoch * count
        parts, place = [], start
        while place < start + count:
            cycle, offset = divmod(place, size)
            take = min(size - offset, start + count - place)
            parts.append(self._shuffled(source, cycle)[offset : offset + take])
            place += take
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def order(self, epoch: int) -> np.ndarray:
        """[epoch_size, 2]: source and record of every place of an epoch. The last two are kept."""
        found = self._orders.get(epoch)
        if found is None:
            found = self._make_order(epoch)
            last = dict(list(self._orders.items())[-1:])
            self._orders = {**last, epoch: found}  # one assignment: threads may be reading
        return found

    def _make_order(self, epoch: int) -> np.ndarray:
        rows = [
            np.stack([np.full(self.counts[s], s), self._drawn(s, epoch)], 1)
            for s in range(len(self.sizes))
        ]
        rng = self._rng(3, epoch)
        if self.groups is not None:
            return self._grouped(rows, self.groups.media, rng)
        if not self.single_source:
            order = np.concatenate(rows)
            return rng.permutation(order) if self.shuffle else order
        batches = [
            part[: len(part) // self.batch_size * self.batch_size].reshape(-1, self.batch_size, 2)
            for part in rows
        ]
        order = np.concatenate(batches)
        return (rng.permutation(order) if self.shuffle else order).reshape(-1, 2)

    def _grouped(
        self, rows: Sequence[np.ndarray], media: Sequence[int], rng: np.random.Generator
    ) -> np.ndarray:
        """`order` of rows [n, 2] for each source, by groups."""
        size, found = self.batch_size, []
        for medium in sorted(set(media)):
            part = np.concatenate([r for r, m in zip(rows, media, strict=True) if m == medium])
            part = rng.permutation(part) if self.shuffle else part
            count = -(-len(part) // size)
            part = np.resize(part, (count * size, 2))
            mega = np.arange(len(part)) // (size * min(max(count // 4, 1), _MEGA))
            part = part[np.lexsort((self._planned(part), mega))]
            found.append(part.reshape(-1, size, 2))
        batches = np.concatenate(found)
        return (rng.permutation(batches) if self.shuffle else batches).reshape(-1, 2)

    def _planned(self, rows: np.ndarray) -> np.ndarray:
        """The lengths of rows [n, 2]."""
        out = np.zeros(len(rows), np.int64)
        for source, lengths in enumerate(self._lengths):
            own = rows[:, 0] == source
            out[own] = lengths[rows[own, 1]]
        return out

    def room(self, place: int) -> int | None:
        """The length planned for the batch that begins at a place of the endless global order, the
        same for all processes; None without groups."""
        if self.groups is None:
            return None
        epoch, offset = divmod(place, self.epoch_size)
        longest = self._planned(self.order(epoch)[offset : offset + self.batch_size]).max()
        return int(min(room for room in self.groups.rooms if room >= longest))

    def at(self, place: int) -> tuple[int, int, int, int]:
        """(source, record, epoch, place in the epoch) of a place in the endless global order."""
        epoch, offset = divmod(place, self.epoch_size)
        source, record = self.order(epoch)[offset]
        return int(source), int(record), epoch, offset


def _stride(start: int, tries: int, count: int) -> int:
    """The place after `tries` equal steps around a circle of `count`, which reach every place and,
    the golden ratio of it long, spread evenly however few they are."""
    step = max(round(0.618 * count), 1)
    while math.gcd(step, count) > 1:
        step += 1
    return (start + tries * step) % count
