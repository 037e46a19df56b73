"""Ferret's rows and batches: tiles by the picture's shape, points of regions, lengths."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from mg_jax.data import pipeline
from mg_jax.data.regions import rasterise
from mg_jax.data.samples.ferret import pointed
from mg_jax.errors import BadRecord, Unfit, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.models import build
from mg_jax.text import markup
from mg_jax.vision import preprocess
from mg_jax.vision.anyres import GRIDS_V2
from tests.ferret_micro import SIDE, micro_config, noise

TEXT = ("tokens", "valid", "loss_mask", "gaze", "gaze_weight")


def rows_of(config):
    """(samples, model config) of a training config."""
    cfg = build(config.system, config.model.to_dict()).cfg
    return pipeline.open_samples(config, cfg), cfg


def example(width=90, height=30, turns=(("What is <r:0>?", "A dog."),), **changes):
    regions = (Region.from_box((0.1, 0.2, 0.4, 0.9)), Region.from_point(0.5, 0.5),
               Region.from_mask(noise(width, height)[..., 0] > 100))  # fmt: skip
    values = {"regions": regions, "turns": tuple(Turn(*t) for t in turns), "id": "e", **changes}
    return Example(values.pop("image", noise(width, height)), width, height, **values)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def made():
    return rows_of(micro_config(points=0.0))


@pytest.mark.parametrize(
    ("size", "grid"), [((28, 28), (1, 1)), ((56, 28), (2, 1)), ((28, 160), (1, 6)),
                       ((60, 80), (2, 3)), ((1, 10_000), (1, 1))]
)  # fmt: skip
def test_a_picture_is_cut_by_its_shape(made, size, grid):
    rows, cfg = made
    record = rows.make(example(*size, turns=(("What is there?", "A dog."),)), rng())
    assert GRIDS_V2[record["grid"]] == grid
    count = grid[0] * grid[1]
    assert record["low"].shape == (SIDE, SIDE, 3) and record["low"].dtype == np.uint8
    assert record["tiles"].shape == (count, SIDE, SIDE, 3)
    assert (record["tokens"] == cfg.id("image")).sum() == 4 + 4 * count


def test_a_batch(made):
    rows, cfg = made
    turns = (("What is <r:2>, and <r:0>?", "A dog."), ("And <r:1>?", "<p>A cat</p><r:0>."))
    given = [example(28, 28, turns), example(80, 28, ()), example(28, 28, (("Hi?", "No."),))]
    given[1] = dataclasses.replace(given[1], turns=(Turn("Where?", "There."),))
    records = [rows.make(e, rng(n)) for n, e in enumerate(given)]
    batch = rows.finish(rows.collate(records))
    expected = {"low", "tiles", "grid", "points", "point_count", *TEXT}
    assert set(batch) == expected
    assert batch["tiles"].shape == (3, 4, SIDE, SIDE, 3)  # of 3 tiles, the smallest bucket is 4
    assert batch["point_count"].tolist() == [[16, 16, 16, 0], [0] * 4, [0] * 4]
    assert batch["low"].dtype == batch["tiles"].dtype == np.float32
    low = preprocess.normalize(records[0]["low"], preprocess.CLIP_MEAN, preprocess.CLIP_STD)
    np.testing.assert_array_equal(batch["low"][0], low)
    np.testing.assert_array_equal(
        batch["tiles"][1, :3], preprocess.normalize(records[1]["tiles"])
    )  # DINOv2's mean and deviation
    for record, e, places in zip(records, given, ((2, 0, 1), (), ()), strict=True):
        for points, k in zip(record["points"], places, strict=True):
            inside = rasterise(e.regions[k], e.width, e.height).whole()
            x, y = np.rint(points * [e.width, e.height]).astype(int).T
            assert inside[x, y].all()
    slots = (batch["tokens"] == cfg.id("region")).sum(1)
    assert slots.tolist() == (batch["point_count"] > 0).sum(1).tolist()


def test_lengths_are_of_tiles_and_text():
    rows, cfg = rows_of(micro_config(codec__buckets=(40, 100), points=0.0))
    lengths = set()
    for width in (28, 56, 160):
        for words in (1, 50, 200):
            e = example(width, 28, (("a " * words, "b"),))
            lengths.add(rows.collate([rows.make(e, rng())])["tokens"].shape[1])
    base = {n: 4 + 4 * n for n in (1, 2, 6)}
    assert lengths == {base[n] + text for n in base for text in (40, 100, 600)}
    assert cfg.largest == base[6]


def test_processes_agree_on_shapes_without_seeing_each_others_rows(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    rows, cfg = rows_of(micro_config(codec__buckets=(40, 100), points=0.0))
    shapes = []
    for e in (example(28, 28, (("Hi?", "No."),)), example(28, 160)):
        batch = rows.collate([rows.make(e, rng())])
        shapes.append({name: x.shape for name, x in batch.items()})
    assert shapes[0] == shapes[1]
    assert shapes[0]["tokens"] == (1, cfg.largest + 600) and shapes[0]["tiles"][:2] == (1, 6)


def test_points_where_regions_go_by_their_coordinates():
    """The coin of a question decides about its text too, whether there is a vector or not."""
    rows, _ = rows_of(micro_config(codec__refer_format="coordinates", points=1.0))
    record = rows.make(example(100, 100), rng())
    ids = record["tokens"][record["tokens"] < rows.codec.image_id]
    (place,) = re.findall(r"What is \[([\d, ]+)\]", rows.codec.tokenizer.decode(ids))
    assert len(place.split(",")) == 2


def test_what_does_not_fit_is_left_out_or_refused(made):
    rows, _ = made
    long = example(turns=(("a " * 900, "b"),))
    with pytest.raises(Unfit, match="tokens of text"):
        rows.make(long, rng())
    many = example(turns=((" ".join(f"<r:{k % 3}>" for k in range(5)), "b"),))
    with pytest.raises(Unfit, match="5 refer regions, but there are 4 slots"):
        rows.make(many, rng())
    strict, _ = rows_of(micro_config(codec__too_long="error", points=0.0))
    with pytest.raises(UserError, match="raise text_tokens"):
        strict.make(long, rng())
    with pytest.raises(UserError, match="5 refer regions, but there are 4 slots"):
        strict.collate([strict.make(many, rng())])
    with pytest.raises(UserError, match="config.points: 2"):
        rows_of(micro_config(points=2.0))


def test_settings_without_effect_are_refused():
    with pytest.raises(UserError, match="config.preprocess: 'groma_pil' .*: write clip_squash"):
        rows_of(micro_config(preprocess="groma_pil"))
    with pytest.raises(UserError, match="refer_slots: -1; give a count from 0 up"):
        rows_of(micro_config(codec__refer_slots=-1))
    for how in ("skip", "error"):
        none, _ = rows_of(micro_config(codec__refer_slots=0, codec__too_long=how, points=0.0))
        with pytest.raises(UserError, match="1 refer regions, but there are 0 slots"):
            none.collate([none.make(example(), rng())])


def test_malformed_examples(made):
    rows, _ = made
    with pytest.raises(BadRecord, match="is a video, but Ferret sees pictures"):
        rows.make(example(video="film.mp4"), rng())
    other = Region.from_mask(np.ones((5, 5), bool))
    with pytest.raises(BadRecord, match=r"'e' of : mask of 5x5 pixels, but the picture is 90x30"):
        rows.make(example(regions=(other,)), rng())
    text = rows.make(example(image=None, turns=(("Hi?", "Yes."),)), rng())
    batch = rows.collate([text, rows.make(example(), rng())])
    assert not batch["low"][0].any() and batch["point_count"][0].sum() == 0


def test_the_caption_stage_sees_whole_pictures_alone():
    config = micro_config("caption")
    rows, cfg = rows_of(config)
    batch = next(pipeline.open_batches(config, cfg))
    assert set(batch) == {"low", *TEXT}
    assert ((batch["tokens"] == cfg.id("image")).sum(1) == 4).all()
    asked = rows.make(example(), rng())  # a region goes by its coordinates
    assert cfg.id("region") not in asked["tokens"]


def test_the_dense_stage():
    config = micro_config("dense")
    rows, cfg = rows_of(config)
    batch = next(pipeline.open_batches(config, cfg))
    assert batch["points"].shape[1] == 10
    texts = [rows.codec.tokenizer.decode([i for i in row[ok] if i < cfg.lm.vocab])
             for row, ok in zip(batch["tokens"], batch["valid"], strict=True)]  # fmt: skip
    referring = [t for t in texts if "Please classify the objects in the following" in t]
    detection = [t for t in texts if "in a raster scan order." in t]
    assert referring and detection and len(referring) + len(detection) == len(texts)
    assert all("Here are the categories: 1: " in t and ", 2: " in t for t in referring)
    assert all("The objects are: 1: " in t for t in detection)
    counts = (batch["point_count"] > 0).sum(1)
    assert ((counts >= 2) == np.isin(texts, referring)).all()


def test_v1_has_no_tiles():
    rows, cfg = rows_of(micro_config(version="v1", points=0.0))
    batch = rows.collate([rows.make(example(), rng())])
    assert "tiles" not in batch and "grid" not in batch and "points" in batch
    assert (batch["tokens"] == cfg.id("image")).sum() == 4


def test_unpadded_rows_have_a_window():
    rows, cfg = rows_of(micro_config(version="ui", points=0.0, model__merge="spatial_unpad"))
    record = rows.make(example(90, 28), rng())
    batch = rows.collate([record])
    columns, grid_rows = cfg.grids[record["grid"]]
    _, left, height, width = batch["window"][0].tolist()
    assert (columns, grid_rows) == (3, 1) and 0 < height <= 2 and width == 6 and left == 0
    assert (batch["tokens"] == cfg.id("image")).sum() == 4 + height * (width + 1)


# -- points in the place of boxes -------------------------------------------------------------


def test_a_question_is_of_one_kind():
    turns = (
        ("What are <r:0> and <r:2>?", "<p>A dog</p><r:0> and a cat."),
        ("Is <r:1> red?", "No."),
    )
    e = example(turns=turns)
    assert pointed(e, rng(), 0.0) == e
    whole = pointed(e, rng(), 1.0)
    first, second = (markup.regions_of(t.user) for t in whole.turns)
    assert [whole.regions[k].kind for k in first] == ["point", "point"]
    assert second == [1] and markup.regions_of(whole.turns[0].assistant) == [0]
    assert whole.regions[:3] == e.regions and whole.regions[3].box == e.regions[0].box
    flips = [len(pointed(e, rng(n), 0.5).regions) > 3 for n in range(400)]
    assert 0.4 < np.mean(flips) < 0.6


def test_the_same_seed_gives_the_same_row():
    rows, _ = rows_of(micro_config(points=0.5))
    a, b = (rows.make(example(), rng(3)) for _ in range(2))
    np.testing.assert_array_equal(a["points"], b["points"])
    assert (a["tokens"] == b["tokens"]).all()
