"""Packing: which texts share a row, and that sharing changes neither loss nor gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import losses, sharding
from mg_jax.data.batch import batches
from mg_jax.data.packing import TextRows, joined, pack, segments
from mg_jax.data.sources import Source
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Turn
from mg_jax.lm import LM, LMConfig
from mg_jax.text.codecs.rows import check_size, pad_rows

CFG = LMConfig(vocab=61, width=32, mlp=48, layers=2, heads=4, kv_heads=2, head=8)
LENGTH = 24


class Texts(Source):
    """Conversations; every seventh is not asked anything, one is malformed."""

    def __init__(self, n=40):
        super().__init__("texts", max_bad=0.1)
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == 11:
            raise BadRecord("line 12: no valid JSON")
        words = "ab " * (1 + i % 5)
        turns = (Turn(f"{i} {words}", words),) if i % 7 != 3 else ()
        return Example(None, 0, 0, id=str(i), turns=turns)


def encode(example):
    """One token a letter; the answer is trained on, its first letter too."""
    turn = example.turns[0]
    ids = [1 + ord(c) % 60 for c in turn.user + turn.assistant]
    loss = [False] * len(turn.user) + [True] * len(turn.assistant)
    return {"tokens": np.array(ids, np.int32), "loss_mask": np.array(loss)}


def count(example, most=LENGTH):
    size = len(encode(example)["tokens"])
    check_size(size, most, example.id)
    return size


def rows_of(texts, length=LENGTH):
    """A batch: rows of encoded texts, padded."""
    records = [joined(row) if row else {"tokens": (), "loss_mask": ()} for row in texts]
    batch = pad_rows(records, [length], 60, {})
    return batch | {"segments": segments(records, length)}


def test_greedy_rows_are_full_and_hold_every_text_once():
    rng = np.random.default_rng(0)
    for top in (5, 24, 60):
        lengths = rng.integers(1, top + 1, 300).tolist()
        rows = pack(lengths, 60)
        assert sorted(n for row in rows for n in row) == list(range(300))
        assert all(sum(lengths[n] for n in row) <= 60 for row in rows)
        assert len(rows) <= 1.05 * sum(lengths) / 60 + 1  # best fit, longest first
        assert rows == sorted(sorted(row) for row in rows) == pack(np.array(lengths), 60)
    assert pack([4, 3, 3, 2, 4], 8) == [[0, 4], [1, 2, 3]]
    assert pack([], 8) == []


@pytest.mark.parametrize("lengths", [[3, 9, 1], [3, 0]])
def test_texts_that_no_row_takes(lengths):
    with pytest.raises(UserError, match="text 1 has [90] tokens: a row takes 1 to 8"):
        pack(lengths, 8)


def test_a_row():
    texts = [
        {"tokens": np.array([5, 6, 7]), "loss_mask": np.array([True, False, True])},
        {"tokens": np.array([8, 9]), "loss_mask": np.array([True, True])},
    ]
    batch = rows_of([texts, [texts[1]]], 7)
    assert {k: v[0].astype(int).tolist() for k, v in batch.items()} == {
        "tokens": [5, 6, 7, 8, 9, 60, 60],
        "valid": [1, 1, 1, 1, 1, 0, 0],
        "loss_mask": [0, 0, 1, 0, 1, 0, 0],  # the first of a text has nothing before it
        "segments": [1, 1, 1, 2, 2, 0, 0],
    }
    assert texts[0]["loss_mask"][0]  # the texts themselves stay
    alone = segments([{"tokens": texts[1]["tokens"]}], 4)  # a row that was not packed
    assert alone.tolist() == [[1, 1, 0, 0]]


def make(example, rng):
    return joined([encode(text) for text in example.meta["texts"]])


def collate(records):
    return pad_rows(records, [LENGTH], 60, {})


def test_rows_of_a_source_through_the_pipeline():
    source = TextRows(Texts(), count, LENGTH)
    assert source.counts == {
        "examples without turns": 6,
        "long text": 13,
    }
    assert source.problems == ["texts[11]: line 12: no valid JSON"]
    assert source.texts == 20 and len(source) < 20 and 0.7 < source.fill <= 1
    assert "of 20 conversations" in source.summary()
    it = batches([source], None, make, collate, 1, 5, epochs=2)
    found = list(it)
    assert it.state == 2 * len(source)
    seen = [b["tokens"][b["valid"]].tolist() for b in found]
    wanted = [Texts()[i] for i in range(40) if i not in (11,) and i % 7 != 3]
    every = [t for e in wanted if len(t := encode(e)["tokens"].tolist()) <= LENGTH]
    for epoch in (seen[: len(source)], seen[len(source) :]):
        assert sorted(t for row in epoch for t in row) == sorted(t for text in every for t in text)
    it.restore(3)
    np.testing.assert_array_equal(next(it)["tokens"], found[3]["tokens"])


def test_a_source_of_which_nothing_fits():
    with pytest.raises(UserError, match="holds no conversation of text alone that fits"):
        TextRows(Texts(), functools.partial(count, most=3), 3)


def test_loss_and_gradients_are_those_of_a_row_each(redraw):
    rng = np.random.default_rng(1)
    texts = []
    for size in rng.integers(2, 13, 11).tolist():
        mask = rng.random(size) < 0.6
        mask[-1] = True
        texts.append({"tokens": rng.integers(0, 60, size), "loss_mask": mask})
    rows = pack([len(t["tokens"]) for t in texts], LENGTH)
    assert len(rows) < 6
    filled = [*rows, *[[]] * (len(texts) - len(rows))]  # empty rows: one shape to compile
    packed = rows_of([[texts[n] for n in row] for row in filled])
    alone = rows_of([[text] for text in texts])

    model = LM(CFG)

    def forward(m, batch):
        x, _ = m(m.embed(batch["tokens"]), batch["valid"], segments=batch["segments"])
        return m.logits(x)

    init = jax.jit(functools.partial(model.init, method=forward))
    params = sharding.unbox(init(jax.random.key(0), alone)["params"])
    params = redraw(params, jax.random.key(1))

    @jax.jit
    def value(params, batch):
        def loss(params):
            logits = model.apply({"params": params}, batch, method=forward)
            return losses.next_token_loss(logits, batch["tokens"], batch["loss_mask"])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (one, metrics), gradients = value(params, packed)
    (two, expected), others = value(params, alone)
    assert metrics["targets"] == expected["targets"] > 20
    np.testing.assert_allclose(one, two, atol=1e-5, rtol=0)
    np.testing.assert_allclose(metrics["accuracy"], expected["accuracy"], atol=1e-6)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradients))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), gradients, others
    )
    # without segments the texts of a row see each other, and it shows
    (mixed, _), _ = value(params, packed | {"segments": np.ones_like(packed["segments"])})
    assert abs(mixed - two) > 1e-3
