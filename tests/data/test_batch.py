"""The order of data: one for all process counts, workers and restarts."""

import functools
import os
import time

import numpy as np
import pytest

from mg_jax.data.batch import Plan, batches, refuse_empty_loss, stack
from mg_jax.data.sources import open_source
from mg_jax.data.transforms import detection_record
from mg_jax.errors import BadRecord, Unfit, UserError
from tests.numbered import Numbered


def record(example, rng):
    """The number, the source, the head, and what the generator says."""
    return {
        "number": np.int64(example.meta["number"]),
        "source": np.int64(ord(example.source)),
        "head": example.meta["head"] == "sa1b",
        "drawn": rng.random(),
    }


def odd_only(example, rng):
    return record(example, rng) if example.meta["number"] % 2 else None


def collate(records):
    out = stack(records)
    out["process"] = np.full(len(records), os.getpid())
    return out


SOURCES = [Numbered("a", 23), Numbered("b", 10, "sa1b"), Numbered("c", 40)]


def read(count=None, make_record=record, sources=SOURCES, ratios=None, batch_size=6, seed=5, **k):
    it = batches(sources, ratios, make_record, collate, batch_size, seed, **k)
    out = list(it) if count is None else [next(it) for _ in range(count)]
    it.close()
    for batch in out:
        del batch["process"]
    return out


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key], err_msg=key)


def ids(found):
    return [(s, n) for b in found for s, n in zip(b["source"].tolist(), b["number"].tolist(),
                                                  strict=True)]  # fmt: skip


def test_every_record_once_an_epoch_in_another_order():
    one = ids(read(epochs=1, batch_size=1))
    two = ids(read(epochs=2, batch_size=1))
    assert len(one) == 73 == len(set(one)) and two[:73] == one
    assert sorted(two[73:]) == sorted(one) and two[73:] != one
    assert ids(read(epochs=1, batch_size=1, seed=6)) != one
    # A batch that spans two epochs: nothing is dropped but the remainder at the end.
    assert len(ids(read(epochs=2))) == 146 // 6 * 6
    plain = ids(read(epochs=1, batch_size=1, shuffle=False))
    assert plain == [(ord(s.name), i) for s in SOURCES for i in range(len(s))]


@pytest.mark.parametrize("single_source", [False, True])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_read_their_share_of_one_order(single_source, processes):
    whole = read(14, single_source=single_source)
    parts = [
        read(14, single_source=single_source, process_index=p, process_count=processes)
        for p in range(processes)
    ]
    for n, batch in enumerate(whole):
        for p, part in enumerate(parts):
            for key, value in batch.items():
                np.testing.assert_array_equal(value[p::processes], part[n][key])


@pytest.mark.parametrize("options", [{}, {"single_source": True}, {"weights": [1, 1, 2]}])
def test_resume_in_the_middle(options):
    whole = read(20, **options)
    for start in (1, 7, 13):
        it = batches(SOURCES, None, record, collate, 6, 5, **options)
        for _ in range(3):
            next(it)
        assert it.state == 3
        it.restore(start)
        rest = [next(it) for _ in range(20 - start)]
        for batch in rest:
            del batch["process"]
        assert it.state == 20
        same(rest, whole[start:])


def test_workers_and_threads_change_nothing():
    whole = read(8)
    same(read(8, threads=0), whole)
    same(read(8, threads=3), whole)
    it = batches(SOURCES, None, record, collate, 6, 5, workers=1)
    found = [next(it) for _ in range(4)]
    it.restore(6)
    found += [next(it) for _ in range(2)]
    it.close()
    assert {int(p) for b in found for p in b.pop("process")} != {os.getpid()}
    same(found, whole[:4] + whole[6:])


def enlarge(batch):
    return {**batch, "wide": np.repeat(batch["number"], 9), "finisher": os.getpid()}


@pytest.mark.parametrize("workers", [0, 1])
def test_what_makes_a_batch_larger_is_done_outside_the_workers(workers):
    it = batches(SOURCES, None, record, collate, 6, 5, workers=workers, finish=enlarge)
    batch = next(it)
    it.close()
    np.testing.assert_array_equal(batch["wide"], np.repeat(read(1)[0]["number"], 9))
    assert batch["finisher"] == os.getpid()
    assert (batch["process"] == os.getpid()).all() == (workers == 0)


def test_a_worker_tells_of_bad_data():
    it = batches([Numbered("a", 9)], None, always_bad, stack, 3, 0, workers=1)
    with pytest.raises(UserError, match="no such file"):
        next(it)
    it.close()
    with pytest.raises(UserError, match="no such file"):
        next(batches([Numbered("a", 9)], None, always_bad, stack, 3, 0))


def always_bad(example, rng):
    raise UserError("x.jpg: no such file")


def test_single_source_batches():
    found = read(epochs=1, single_source=True)
    assert len(found) == 3 + 1 + 6
    assert all(len(set(b["source"])) == 1 for b in found)
    assert all(b["head"].all() == (b["source"][0] == ord("b")) for b in found)
    assert len(set(ids(found))) == 60
    order = [int(b["source"][0]) for b in found]
    assert order != sorted(order)


def test_ratios_fix_one_subset():
    first, second = (
        {n for s, n in ids(read(epochs=e, batch_size=1, ratios=[1, 1, 0.25])) if s == ord("c")}
        for e in (1, 3)
    )
    assert first == second and len(first) == 10
    some = ids(read(epochs=1, batch_size=1, ratios=[1, 1, 0.25], make_record=odd_only))
    assert {n for s, n in some if s == ord("c")} == {n for n in first if n % 2}
    other = ids(read(epochs=1, batch_size=1, ratios=[1, 1, 0.25], seed=9))
    assert {n for s, n in other if s == ord("c")} != first
    twice = ids(read(epochs=1, batch_size=1, ratios=[2.5, 1, 1]))
    counts = [twice.count((ord("a"), n)) for n in range(23)]
    assert set(counts) == {2, 3} and sum(counts) == 46 + round(11.5)


def test_weights_set_shares_and_use_all_data():
    found = ids(read(epochs=4, batch_size=1, weights=[1, 2, 1]))
    share = sum(s == ord("b") for s, _ in found) / len(found)
    assert abs(share - 0.5) < 0.02
    # The large source goes on where it stopped: 4 epochs of 18 are nearly two passes of 40.
    big = [n for s, n in found if s == ord("c")]
    assert len(set(big)) == 40 and max(map(big.count, set(big))) == 2


def test_random_numbers_belong_to_the_place():
    a, b = read(24), read(24)
    same(a, b)
    drawn = np.concatenate([x["drawn"] for x in a])
    assert len(set(drawn.tolist())) == len(drawn)


def test_refused_records_are_replaced_and_counted():
    whole = ids(read(epochs=1, batch_size=1))
    it = batches(SOURCES, None, odd_only, collate, 1, 5, epochs=1)
    found = ids(list(it))
    for (s, n), (s2, n2) in zip(whole, found, strict=True):
        assert s == s2 and n2 % 2 and (n2 == n or not n % 2)
    assert it.skipped >= sum(n % 2 == 0 for _, n in whole)
    never = batches([Numbered("a", 4)], None, lambda e, r: None, stack, 1, 0)
    with pytest.raises(UserError, match="none of 4 examples"):
        next(never)


@pytest.mark.parametrize("workers", [0, 1])
def test_refused_records_are_counted_by_their_reason(workers):
    it = batches([Numbered("a", 20)], None, small_only, collate, 5, 0, epochs=1, workers=workers)
    assert max(n for _, n in ids(list(it))) == 9
    tries = [next(k for k in range(20) if (n + 13 * k) % 20 < 10) for n in range(20)]
    assert it.skipped == sum(tries) and it.unfit == {"too large": it.skipped}
    odd = sum((n + 13 * k) % 2 for n in range(20) for k in range(tries[n] + 1))
    assert it.filtered == {"odd": odd} and it.bad == 0
    assert it.counts == {
        "skipped": sum(tries), "malformed": 0, "skipped/too_large": sum(tries),
        "filtered/odd": it.filtered["odd"],
    }  # fmt: skip
    never = batches([Numbered("a", 4)], None, too_large, stack, 1, 0)
    with pytest.raises(UserError, match=r"none of 4 .* used; for example: \d: too large$"):
        next(never)


def too_large(example, rng):
    raise Unfit("too large", f"{example.meta['number']}: too large")


def small_only(example, rng):
    if example.meta["number"] % 2:
        example.meta["filtered"]["odd"] += 1
    return record(example, rng) if example.meta["number"] < 10 else too_large(example, rng)


def unreadable(every):
    def make(example, rng):
        if example.meta["number"] % every == 0:
            raise BadRecord(f"{example.meta['number']}.jpg: is empty")
        return record(example, rng)

    return make


def test_malformed_records_are_replaced_counted_and_named():
    sources = [Numbered("a", 100)]
    sources[0].max_bad = 0.2
    it = batches(sources, None, unreadable(10), collate, 5, 0, epochs=1)
    found = ids(list(it))
    assert len(found) == 100 and all(n % 10 for _, n in found)
    assert it.bad == 10 and it.skipped == 0
    assert sorted(it.problems) == [f"{n}.jpg: is empty" for n in range(0, 100, 10)]


def test_a_block_of_malformed_records_is_its_share():
    """As a broken archive leaves them: 4 % of the records, one behind the other."""

    def make(example, rng):
        if 1000 <= example.meta["number"] < 1160:
            raise BadRecord(f"{example.meta['number']}.jpg: is empty")
        return record(example, rng)

    it = batches([Numbered("a", 4000)], None, make, collate, 16, 0, epochs=1)
    assert len(ids(list(it))) == 4000
    assert 160 <= it.bad <= 180  # few replacements are bad themselves


def test_a_malformed_record_is_named_by_its_place():
    class Placed(Numbered):
        def where(self, i):
            return f"rows.jsonl:{i + 1}"

    source = Placed("a", 100)
    source.max_bad = 0.2
    it = batches([source], None, unreadable(10), collate, 5, 0, epochs=1)
    list(it)
    assert "rows.jsonl:11: 10.jpg: is empty" in it.problems


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_malformed_records_stop_the_run(workers):
    it = batches([Numbered("a", 100)], None, unreadable(4), collate, 5, 0, workers=workers)
    with pytest.raises(UserError, match="records could not be read, more than max_bad=0.05"):
        list(it)
    assert len(it.problems) >= 10
    never = batches([Numbered("a", 4)], None, unreadable(1), stack, 1, 0)
    with pytest.raises(UserError, match="none of 4 .* for example: .*jpg: is empty"):
        next(never)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "no source"),
        ({"sources": [Numbered("e", 0)]}, "e: holds no example"),
        ({"process_count": 4}, "no positive multiple of the 4"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"process_index": 3, "process_count": 3}, "process_index=3"),
        ({"ratios": [1.0]}, "1 given for 3"),
        ({"ratios": [1, 0, 1]}, "above 0"),
        ({"single_source": True, "batch_size": 12}, "b: 10 examples"),
        ({"epochs": 1, "batch_size": 100}, "do not fill one batch"),
    ],
)
def test_wrong_arguments(change, message):
    with pytest.raises(UserError, match=message):
        read(1, **change)


def test_small_data_fill_a_batch_over_epochs():
    (batch,) = read(1, sources=[Numbered("a", 2)], batch_size=6)
    assert sorted(batch["number"].tolist()) == [0, 0, 0, 1, 1, 1]


def test_planning_a_million_records_is_quick():
    start = time.perf_counter()
    plan = Plan([1_000_000, 500_000], 64, 0)
    assert plan.at(3_000_000_000)[2] == 2000
    assert time.perf_counter() - start < 5


def test_scenes_through_the_pipeline():
    make = functools.partial(detection_record, size=64, slots=12)
    source = open_source("scenes:seed=71,n=40,tasks=none,size=96")
    it = batches([source], None, make, stack, 4, 0, single_source=True)
    batch = next(it)
    assert batch["pixels"].shape == (4, 64, 64, 3) and batch["boxes"].shape == (4, 12, 4)
    it.restore(0)
    np.testing.assert_array_equal(next(it)["pixels"], batch["pixels"])


def test_refuse_empty_loss():
    mask = np.zeros((2, 5), bool)
    valid = np.ones((2, 5), bool)
    with pytest.raises(UserError, match="loss_mask is empty"):
        refuse_empty_loss({"loss_mask": mask, "valid": valid})
    mask[0, 3] = True
    with pytest.raises(UserError, match=r"row\(s\) 1"):
        refuse_empty_loss({"loss_mask": mask, "valid": valid})
    valid[1] = False  # a row of padding alone
    refuse_empty_loss({"loss_mask": mask, "valid": valid})
    mask[1, 0] = True
    refuse_empty_loss({"loss_mask": mask})
