"""Rows grouped by medium and length: one order for all processes, resumable, nothing lost."""

import numpy as np
import pytest

from mg_jax.data.batch import batches, stack
from mg_jax.data.order import Groups, Plan
from mg_jax.data.sources import Source
from mg_jax.errors import BadRecord
from mg_jax.example import Example

SIZES, MEDIA, ROOMS = (200, 131, 45), (1, 1, 2), (40, 80, 160)
LENGTHS = tuple(np.random.default_rng(n).integers(10, 150, n) for n in SIZES)
GROUPS = Groups(MEDIA, LENGTHS, ROOMS)


class Measured(Source):
    """Examples that know their number and source."""

    def __init__(self, number: int):
        super().__init__(f"s{number}")
        self.number = number

    def __len__(self):
        return SIZES[self.number]

    def __getitem__(self, i):
        return Example(None, 0, 0, source=self.name, meta={"row": (self.number, i)})


def record(example, rng):
    source, row = example.meta["row"]
    return {"source": np.int64(source), "row": np.int64(row), "room": example.meta["room"],
            "length": LENGTHS[source][row], "drawn": rng.random()}  # fmt: skip


def opened(make=record, groups=GROUPS, **options):
    return batches([Measured(n) for n in range(3)], None, make, stack, 8, 3, groups=groups,
                   **options)  # fmt: skip


def rows(found):
    return [pair for b in found for pair in zip(b["source"].tolist(), b["row"].tolist(),
                                                strict=True)]  # fmt: skip


def test_a_batch_is_of_one_medium_and_similar_length():
    found = list(opened(epochs=1))
    assert len(found) == -(-331 // 8) + -(-45 // 8)
    for batch in found:
        assert len({MEDIA[s] for s in batch["source"]}) == 1
        assert len(set(batch["room"].tolist())) == 1
        assert batch["room"][0] == min(room for room in ROOMS if room >= batch["length"].max())
    assert any(len(set(b["source"].tolist())) == 2 for b in found)  # sources of one medium mix
    spread = np.mean([np.ptp(b["length"]) for b in found])
    plain = Plan(SIZES, 8, 3).order(0)[: 47 * 8].reshape(-1, 8, 2)
    before = np.mean([np.ptp([LENGTHS[s][i] for s, i in batch]) for batch in plain])
    assert spread < 0.4 * before
    rooms = [int(b["room"][0]) for b in found]
    assert len(set(rooms)) == 3 and rooms != sorted(rooms)


def test_every_record_is_there_once_but_those_that_fill_up():
    seen = rows(opened(epochs=1))
    assert set(seen) == {(s, i) for s, n in enumerate(SIZES) for i in range(n)}
    assert len(seen) == 336 + 48 and len(seen) - len(set(seen)) == 5 + 3
    two = rows(opened(epochs=2))
    assert two[:384] == seen and two[384:] != seen and set(two[384:]) == set(seen)


def test_shares_of_a_mixture_are_kept():
    plan = Plan(SIZES, 8, 3, ratios=[0.25, 2.0, 1.0], groups=GROUPS)
    drawn = {tuple(row) for row in plan.order(0).tolist()}
    assert [sum(s == n for s, _ in drawn) for n in range(3)] == [50, 131, 45]
    assert (plan.order(0)[:, 0] == 1).sum() >= 262
    assert {tuple(row) for row in plan.order(1).tolist()} == drawn


@pytest.mark.parametrize("start", [1, 20, 50])
def test_the_number_of_batches_is_the_whole_state(start):
    iterator = opened()
    whole = [next(iterator) for _ in range(60)]
    iterator.restore(start)
    for batch in whole[start:]:
        again = next(iterator)
        for key, value in batch.items():
            np.testing.assert_array_equal(again[key], value)
    iterator.close()


def test_processes_share_the_rows_and_the_room():
    whole = list(opened(epochs=1))
    parts = [list(opened(epochs=1, process_index=p, process_count=2)) for p in range(2)]
    for batch, *own in zip(whole, *parts, strict=True):
        for p, part in enumerate(own):
            for key, value in batch.items():
                np.testing.assert_array_equal(value[p::2], part[key])


def test_a_refused_record_is_replaced_by_one_that_fits():
    def short(example, rng):
        _, row = example.meta["row"]
        if row % 7 == 0:
            raise BadRecord("no picture")
        made = record(example, rng)
        return made if made["length"] <= made["room"] else None

    iterator = opened(short, epochs=1)
    for source in iterator.sources:
        source.max_bad = 1.0
    found = list(iterator)
    assert iterator.bad >= sum(-(-n // 7) for n in SIZES) and iterator.skipped == 0
    assert all((b["length"] <= b["room"]).all() and (b["row"] % 7 > 0).all() for b in found)
    assert all(len({MEDIA[s] for s in b["source"]}) == 1 for b in found)


def test_where_nothing_else_fits_others_are_tried():
    groups = Groups((0, 0, 0), [np.where(np.arange(n) == 0, 10, 150) for n in SIZES], ROOMS)
    plan = Plan(SIZES, 8, 3, groups=groups)
    tried = [plan.instead(0, 0, tries, 40) for tries in range(4)]
    assert tried[0] == 0 and len(set(tried[1:])) == 3


def test_without_shuffling_rows_are_sorted_all_the_same():
    plan = Plan(
        (8, 8), 4, 0, shuffle=False, groups=Groups((2, 1), (np.full(8, 5), np.arange(8)), (9,))
    )
    assert plan.order(0).tolist() == [[1, n] for n in range(8)] + [[0, n] for n in range(8)]
    assert plan.room(0) == 9 and Plan((8,), 4, 0).room(0) is None
