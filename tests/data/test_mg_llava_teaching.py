"""Named boxes and looks: what a tiny MG-LLaVA is taught in place of pretraining."""

from dataclasses import replace

import numpy as np
import pytest

from mg_jax.data import pipeline
from mg_jax.data.detections import to_canvas
from mg_jax.data.samples.mg_llava_teaching import named_boxes
from mg_jax.data.transforms import LABEL_WORDS
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.models import build
from mg_jax.text.codecs.rows import GAZE
from tests.mg_llava_micro import micro_config, noise

WORDS = ("red", "blue", "star", "STOP")
RED = Region.from_box((0.0, 0.0, 0.5, 0.5), label="red star")
BLUE = Region.from_box((0.5, 0.25, 1.0, 1.0), label="blue thing")
THING = Region.from_box((0.1, 0.1, 0.2, 0.2), label="thing")


def opened(stage, **changes):
    config = micro_config(stage, **changes)
    system = build(config.system, config.model.to_dict())
    return config, system, pipeline.open_samples(config, system.cfg)


def test_boxes_get_the_words_of_label_and_attributes():
    told = [{"color": "red"}, {"color": "blue", "word": "STOP", "visible": 1.0}, {}]
    e = Example(noise(), 90, 40, objects=(RED, BLUE, THING), meta={"objects": told})
    out = named_boxes(e, WORDS, 4, 768, np.random.default_rng(0))
    assert out["label_mask"].tolist() == [True, True, False, False]
    assert out["labels"].tolist() == [[0, 2, -1, -1], [1, 3, -1, -1], *[[-1] * LABEL_WORDS] * 2]
    expected = to_canvas([RED.box, BLUE.box], 90, 40)
    np.testing.assert_array_equal(out["label_boxes"][:2], expected)
    (kept,) = named_boxes(e, WORDS, 1, 768, np.random.default_rng(0))["label_mask"]
    assert kept
    assert named_boxes(e, ("car",), 4, 768, np.random.default_rng(0)) is None


def test_batches_of_labels_have_the_shapes_the_system_states():
    config, system, _ = opened("labels")
    batch = next(pipeline.open_batches(config, system.cfg))
    sizes = pipeline.batch_sizes(config, system.cfg)
    stated = system.example_batch("labels", config.batch_size, **sizes)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stated.items()
    }
    assert (batch["labels"] >= 0).any(-1).sum() == batch["label_mask"].sum() > 8
    assert batch["labels"].max() >= len(config.label_words) - 24  # printed words are among them
    with pytest.raises(UserError, match=r"config\.label_words names 0 words"):
        opened("labels", label_words=())


def test_answers_look_at_the_box_of_a_thing_and_where_it_is():
    _, system, rows = opened("pretrain", model__pointing_weight=1.0)
    cfg = system.cfg
    turns = (
        Turn("What is it?", "A star.", (0,)),
        Turn("And the others?", "Blue.", (1, 2)),
        Turn("A moon?", "No.", ()),
        Turn("Hello.", "Good day."),
        Turn("Is one above the other?", "Yes.", (0, 1), (1,)),
    )
    found = {"boxes": [[60, 0, 95, 20], [1, 1, 45, 21]], "scores": [0.9, 0.5], "labels": ["a", "b"]}
    e = Example(noise(), 90, 40, (RED, BLUE, THING), turns, "x", "set", meta={"detections": found})
    row = rows.make(e, np.random.default_rng(0))
    tokens, mask = row["tokens"], row["loss_mask"]
    starts = np.flatnonzero(mask[1:] & ~mask[:-1])
    images, boxes = (np.flatnonzero(tokens == cfg.id(n)) for n in ("image", "box"))
    # 90 x 40 in a square of 90, on a grid of 2 x 2: the second box is RED's, BLUE's middle lies in
    # the lower half on the right, THING's in the upper left
    looks = [
        (starts[0], boxes[1], 0), (starts[0], images[0], 0), (starts[1], images[3], 0),
        (starts[1], images[0], 0), (starts[2], 0, 0), (starts[4], boxes[1], 0),
        (starts[4], images[0], 0), (starts[4], images[3], 1),
    ]  # fmt: skip
    assert row["gaze"].tolist() == [[*map(int, look), 0] for look in looks]
    assert row["gaze_weight"].tolist() == [0.5, 0.5, 0.5, 0.5, 1, 0.5, 0.5, 1]
    batch = rows.finish(rows.collate([row, row]))
    assert batch["gaze"].shape == (2, GAZE, 4) and batch["gaze_weight"].sum() == 10
    _, _, rows = opened("pretrain", model__pointing_weight=1.0, model__objects="b2f")
    row = rows.make(e, np.random.default_rng(0))  # where boxes are no tokens
    assert row["gaze"][0, 1] == np.flatnonzero(row["tokens"] == cfg.id("image"))[0]
    _, _, rows = opened("pretrain", model__pointing_weight=0.0)
    assert "gaze" not in rows.make(e, np.random.default_rng(0))


def test_the_second_head_looks_at_the_last_frame():
    changes = {"model__pointing_weight": 1.0, "model__video_pool": 1, "model__frames": 3}
    _, system, rows = opened("sft", media="video", **changes)
    seen, other = (
        [[60, 0, 95, 20]],
        [[1, 1, 45, 21]],
    )  # BLUE by and by becomes RED, in units of 90
    frames = [{"boxes": b, "scores": [0.9], "labels": ["a"]} for b in (other, other, seen)]
    turns = (Turn("Where does it go?", "To the right.", (0, 1), (1,)),)
    film = noise(frames=3)
    e = Example(
        None, 90, 40, (RED, BLUE), turns, "x", "set", video=lambda count: film,
        meta={"detections": {"frames": frames}},
    )  # fmt: skip
    row = rows.make(e, np.random.default_rng(0))
    tokens, mask = row["tokens"], row["loss_mask"]
    (start,) = np.flatnonzero(mask[1:] & ~mask[:-1])
    images, boxes = (np.flatnonzero(tokens == system.cfg.id(n)) for n in ("image", "box"))
    assert len(images) == 12 and len(boxes) == 3
    looks = [(start, boxes[0], 0), (start, images[0], 0), (start, images[8 + 3], 1)]
    assert row["gaze"].tolist() == [[*map(int, look), 0] for look in looks]
    e.meta["detections"]["frames"][2]["boxes"] = [[45, 10, 90, 40]]
    row = rows.make(e, np.random.default_rng(0))
    assert row["gaze"].tolist()[2] == [start, boxes[2], 1, 0]
    assert len(row["gaze"]) == 4  # beside it the image token of the last frame
    ends = replace(e, turns=(replace(turns[0], about=(1,)),))  # found by that alone
    row = rows.make(ends, np.random.default_rng(0))
    assert [look[1:] for look in row["gaze"].tolist()] == [
        [boxes[2], 0, 0], [images[8 + 3], 0, 0], [boxes[2], 1, 0], [images[8 + 3], 1, 0],
    ]  # fmt: skip
    still = replace(e, objects=(RED, THING), meta={**e.meta, "ends": [BLUE.box, THING.box]})
    row = rows.make(still, np.random.default_rng(0))
    assert row["gaze"].tolist()[4:] == [[boxes[2], boxes[0], 0, -1]]  # THING has no box
    for ends in ([None, None], [THING.box, None]):
        gone = replace(e, objects=(RED, THING), meta={**e.meta, "ends": ends})
        assert len(rows.make(gone, np.random.default_rng(0))["gaze"]) == 4
