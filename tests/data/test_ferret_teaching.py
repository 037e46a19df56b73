"""Where answers of Ferret look, and the rows of its stage "labels"."""

import numpy as np
import pytest

from mg_jax.data import pipeline
from mg_jax.data.regions import rasterise
from mg_jax.data.samples.ferret import Picture
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.models import build
from tests.ferret_micro import SIDE, micro_config

WIDE = np.zeros((28, 84, 3), np.uint8)  # three tiles side by side: 2 x 6 tokens, behind 2 x 2
ONE, TWO = (0.1, 0.2, 0.3, 0.6), (0.6, 0.5, 0.9, 1.0)
REGIONS = (Region.from_box(ONE), Region.from_box(TWO), Region.from_point(0.2, 0.5))


def rows_of(stage="instruction", version="v2", **changes):
    config = micro_config(stage, version, points=0.0, **changes)
    cfg = build(config.system, config.model.to_dict()).cfg
    return config, cfg, pipeline.open_samples(config, cfg)


@pytest.fixture(scope="module")
def made():
    return rows_of()[2]


def looks(rows, *turns, points=0.0):
    """(tokens, starts of the answers, {position: {position looked at: weight}}); what the second
    head looks at has "landmark" behind it, what it looks at one layer later too "edge"."""
    example = Example(WIDE, 84, 28, REGIONS, turns)
    rows.points = points
    record = rows.make(example, np.random.default_rng(0))
    rows.points = 0.0
    found = {}
    for (position, target, head, layer), weight in zip(
        record["gaze"].tolist(), record["gaze_weight"], strict=True
    ):
        assert target <= position and 0 < weight <= 1 and 0 <= layer <= head
        seen = found.setdefault(position, {})
        if layer:  # as one layer before
            assert seen.pop((target, "landmark")) == weight
        seen[(target, "edge" if layer else "landmark") if head else target] = float(weight)
    mask = record["loss_mask"]
    return record["tokens"], np.flatnonzero(mask[1:] & ~mask[:-1]).tolist(), found


def over(rows, tokens, box):
    """Positions of the tokens over a middle: of the whole picture, of its tile."""
    return at_point(rows, tokens, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2)


def at_point(rows, tokens, x, y):
    first = int(np.flatnonzero(tokens == rows.codec.image_id)[0])
    return first + int(y * 2) * 2 + int(x * 2), first + 4 + int(y * 2) * 6 + int(x * 6)


def texts(rows, tokens):
    size = rows.codec.tokenizer.size
    return [rows.codec.tokenizer.decode([t]) if t < size else "" for t in tokens.tolist()]


def test_digits_look_at_middle_and_edge_and_the_words_before_at_the_middle(made):
    answer = "<p>A cup</p><r:1> and <p>a dog</p><r:0>."
    tokens, (begin,), found = looks(made, Turn("What is <p>there</p>?", answer))
    one, two = over(made, tokens, ONE), over(made, tokens, TWO)
    assert found[begin] == {one[1]: 0.5, two[1]: 0.5}
    said = texts(made, tokens)
    opens = [p for p, text in enumerate(said) if text == "["]
    closes = [p for p, text in enumerate(said) if text == "]"]
    assert len(opens) == len(closes) == 2
    for start, end, box in zip(opens, closes, (TWO, ONE), strict=True):
        digits = [p for p in range(start, end) if said[p + 1].isdigit()]
        assert len(digits) >= 8
        inside = {p: set(found[p]) for p in range(start, end) if p in found}
        x0, y0, x1, y1 = box
        x, y, e = (x0 + x1) / 2, (y0 + y1) / 2, 0.01
        points = [(x0 + e, y), (x, y0 + e), (x1 - e, y), (x, y1 - e)]
        number = {p: sum(text == "," for text in said[start : p + 1]) for p in digits}
        assert set(number.values()) == {0, 1, 2, 3}
        tile = over(made, tokens, box)[1]
        ends = {p: at_point(made, tokens, *points[number[p]])[1] for p in digits}
        assert inside == {p: {tile, (ends[p], "edge")} for p in digits}
        assert sum(found[p][ends[p], "edge"] for p in digits) == pytest.approx(1)
    words = range(closes[0] + 1, opens[1])
    assert len(words) > 2 and all(set(found[p]) == {one[1]} for p in words)


def test_a_region_is_looked_at_where_its_vector_is(made):
    tokens, starts, found = looks(
        made, Turn("What is <r:0>?", "A cup."), Turn("And <r:2>?", "A cup.", about=(0,)),
        Turn("What is beside <r:0>?", "A dog.", about=(1, 0)),
        Turn("Is there a cat?", "No.", about=()), Turn("Say <r:1> again.", "<r:0>"),
    )  # fmt: skip
    first, second, third, fourth = np.flatnonzero(tokens == made.codec.region_id).tolist()
    expected = [{first}, {second}, {over(made, tokens, TWO)[1], third}, {0}]
    assert [set(found[p]) for p in starts[:4]] == expected
    assert set(found[starts[4]]) == {over(made, tokens, ONE)[1]} and fourth > third


def test_a_landmark_has_the_second_head(made):
    asked = Turn("Where is <r:0> from <p>the dog</p>?", "On the left.", (0, 1), (1,))
    tokens, (begin,), found = looks(made, asked)
    (slot,) = np.flatnonzero(tokens == made.codec.region_id).tolist()
    assert found[begin] == {slot: 1.0, (over(made, tokens, TWO)[1], "landmark"): 1.0}


def test_boxes_that_became_points_are_the_same_things(made):
    tokens, (begin,), found = looks(made, Turn("What is <r:1>?", "A cup.", about=(1,)), points=1.0)
    (slot,) = np.flatnonzero(tokens == made.codec.region_id).tolist()
    assert found[begin] == {slot: 1.0}


def test_entries_of_a_list_look_at_their_regions(made):
    turn = Turn("Classify these. 1: <r:0>, 2: <r:1>", "Here they are: 1: red cup, 2: dog")
    tokens, (begin,), found = looks(made, turn)
    slots = np.flatnonzero(tokens == made.codec.region_id).tolist()
    assert set(found[begin]) == set(slots)
    said = texts(made, tokens)
    after = {p: said[p + 1] for p in found if p > begin}
    for slot, words in zip(slots, ({"red"}, {"do"}), strict=True):
        assert words <= {text for p, text in after.items() if set(found[p]) == {slot}}
    assert not any(text.isdigit() for text in after.values())


def test_without_tiles_and_vectors_the_whole_picture_is_looked_at():
    rows = rows_of("caption")[2]
    tokens, (begin,), found = looks(rows, Turn("What is <r:0>?", "A cup."))
    assert found == {begin: {over(rows, tokens, ONE)[0]: 1.0}}
    text = Example(None, 0, 0, turns=(Turn("Say A.", "A"),))
    assert rows.make(text, np.random.default_rng(0))["gaze"].shape == (0, 4)


def test_cells_of_an_unpadded_map():
    """Its rows are cut, and each has one vector more."""
    cfg = rows_of(version="ui", model__merge="spatial_unpad")[1]
    picture = Picture(90, 28, cfg, True)
    top, left, rows, columns = picture.window
    assert (left, columns) == (0, 6) and rows < 4
    assert picture.tokens == 4 + rows * (columns + 1)
    assert picture.cell(0.99, 0.5) == 4 + (1 - top) * 7 + 5


def test_cells_where_tiles_come_first():
    cfg = rows_of(model__image_order="tiles_first")[1]
    picture, other = (Picture(90, 28, c, True) for c in (cfg, rows_of()[1]))
    assert picture.tokens == other.tokens and picture.first == (other.tokens - 4, 0)
    assert picture.cell(0.99, 0.5) == other.cell(0.99, 0.5) - 4
    unpad = rows_of(version="ui", model__merge="spatial_unpad", model__image_order="tiles_first")[1]
    cut = Picture(70, 40, unpad, True)  # over a row that is cut away the whole picture is looked at
    assert cut.cell(0.99, 0.01) == cut.tokens - 4 + 1


def test_named_things_are_regions():
    config, _, rows = rows_of("labels")
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, WIDE.shape, np.uint8)
    named = ((ONE, "red star"), (TWO, "blue star"), ((0, 0, 0.1, 0.1), "unnamed"))
    objects = tuple(Region.from_box(box, label=name) for box, name in named)
    example = Example(pixels, 84, 28, objects=objects, id="a", source="mine")
    row = rows.make(example, np.random.default_rng(0))
    np.testing.assert_allclose(row["label_boxes"][:2], [ONE, TWO], atol=1e-6)
    assert row["label_mask"].sum() == 2 and row["tiles"].shape == (3, SIDE, SIDE, 3)
    words = [{config.label_words[k] for k in labels if k >= 0} for labels in row["labels"][:2]]
    assert words == [{"red", "star"}, {"blue", "star"}]
    for points, region in zip(row["points"], objects[:2], strict=True):
        x, y = np.rint(points * [84, 28]).astype(int).T
        assert rasterise(region, 84, 28).whole()[x, y].all()
    rows.points = 1.0
    as_point = rows.make(example, np.random.default_rng(0))["points"][1]
    assert np.ptp(as_point, axis=0)[0] < 0.2 < np.ptp(row["points"][1], axis=0)[0]
    nothing = Example(pixels, 84, 28, objects=objects[2:])
    assert rows.make(nothing, np.random.default_rng(0)) is None


@pytest.mark.parametrize("stage", ["labels", "dense"])
def test_batches_have_the_shapes_that_the_system_states(stage):
    config = micro_config(stage)
    system = build(config.system, config.model.to_dict())
    batch = next(pipeline.open_batches(config, system.cfg))
    sizes = pipeline.batch_sizes(config, system.cfg) | {"tiles": batch["tiles"].shape[1]}
    if stage == "dense":
        sizes["tokens"] = batch["tokens"].shape[1]
    stated = system.example_batch(stage, config.batch_size, **sizes)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stated.items()
    }
    with pytest.raises(UserError, match="config.label_words names 0 words"):
        pipeline.open_samples(micro_config("labels", label_words=()), rows_of("labels")[1])
