"""Examples to MG-LLaVA's batches: boxes from data sets and box files, videos, text alone."""

import json
import pickle
import re

import numpy as np
import pytest

from mg_jax.data import pipeline
from mg_jax.data.detections import prepare, to_canvas
from mg_jax.data.samples.base import Conversations
from mg_jax.errors import BadRecord, Unfit, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.models import build
from mg_jax.vision import preprocess
from tests.mg_llava_micro import SIDE, micro_config, noise

ASKED = (Turn("What is <r:0>?", "A ball."),)
BOX = Region.from_box((0.25, 0.5, 0.75, 1.0))
FOUND = {"boxes": [[10, 5, 40, 30], [60, 0, 95, 20]], "scores": [0.5, 0.9], "labels": ["a", "b"]}
NOTHING = {"boxes": [], "scores": [], "labels": []}


def samples(**changes) -> Conversations:
    config = micro_config(**changes)
    return pipeline.open_samples(config, build(config.system, config.model.to_dict()).cfg)


def example(image=None, turns=ASKED, **fields):
    image = noise() if image is None else image
    return Example(image, image.shape[1], image.shape[0], (BOX,), turns, "x", "set", **fields)


def text_alone():
    return Example(None, 0, 0, turns=(Turn("Hello", "Good day."),), id="t", source="set")


def made(rows, *examples):
    rng = np.random.default_rng(0)
    return rows.finish(rows.collate([rows.make(e, rng) for e in examples]))


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("media", ["image", "video"])
def test_batches_have_the_shapes_the_system_states(stage, media):
    config = micro_config(stage, media)
    if media == "video":
        config.data = "scenes:seed=1,n=40,size=64,frames=8"
    system = build(config.system, config.model.to_dict())
    iterator = pipeline.open_batches(config, system.cfg)
    batch = next(iterator)
    sizes = pipeline.batch_sizes(config, system.cfg)
    stated = system.example_batch(stage, config.batch_size, **sizes)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stated.items()
    }
    counts = (batch["tokens"] == system.cfg.id("box")).sum(1)
    assert (counts == batch["box_mask"].sum((1, 2))).all()  # a slot for every true box
    frames = 8 if media == "video" else 1
    tokens = frames * system.cfg.image_tokens(frames)
    assert ((batch["tokens"] == system.cfg.id("image")).sum(1) == tokens).all()
    again = next(pipeline.open_batches(config, system.cfg))
    for k, v in again.items():
        np.testing.assert_array_equal(v, batch[k])


def test_a_picture_with_its_boxes_and_the_users():
    rows = pickle.loads(pickle.dumps(samples()))
    e = example(meta={"detections": FOUND})
    batch = made(rows, e)
    view = preprocess.get("clip_pad")
    np.testing.assert_array_equal(batch["high"][0, 0], view(e.pixels(), SIDE))
    mine = prepare(FOUND["boxes"], FOUND["scores"], FOUND["labels"], 90, 40)
    assert batch["box_mask"][0, 0].sum() == len(mine.boxes) == 2
    np.testing.assert_array_equal(batch["boxes"][0, 0, :2], mine.boxes)
    np.testing.assert_array_equal(batch["refer_boxes"][0, :1], to_canvas([BOX.box], 90, 40))
    text = rows.codec.tokenizer.decode(batch["tokens"][0][batch["loss_mask"][0]].tolist())
    assert text.strip() == "A ball."


def test_what_a_detector_did_not_find_is_one_box_and_text_alone_has_none():
    rows = samples()
    nothing = example(meta={"detections": NOTHING})
    batch = made(rows, nothing, text_alone())
    assert batch["box_mask"].sum((1, 2)).tolist() == [1, 0]
    assert not batch["boxes"].any()
    cfg = rows.cfg
    for name, counts in (("image", [4, 0]), ("box", [1, 0])):
        assert (batch["tokens"] == cfg.id(name)).sum(1).tolist() == counts
    assert (batch["high"][1] == batch["high"][1, 0, 0, 0]).all()


def test_boxes_come_from_the_file_when_there_is_one(tmp_path):
    entries = [FOUND | {"id": 7}, FOUND | {"id": "a/b", "boxes": [[0, 0, 90, 40]] * 2}]
    (file := tmp_path / "boxes.json").write_text(json.dumps(entries))
    rows = samples(boxes=str(file))
    by_id = example(meta={"id": 7, "detections": NOTHING})
    by_name = example(meta={"id": "unknown", "file_name": "a/b.jpg"})
    batch = made(rows, by_id, by_name)
    assert batch["box_mask"].sum((1, 2)).tolist() == [2, 2]
    assert batch["boxes"][1, 0, 0].tolist() == [0, 213, 768, 555]  # 25 px of 90 above, of 65 below
    with pytest.raises(BadRecord, match=re.escape("no entry for '8'")):
        rows.make(example(meta={"id": 8}), np.random.default_rng(0))
    with pytest.raises(BadRecord, match="detected boxes are of whole pictures: leave views out"):
        rows.make(example(meta={"id": 7, "view": 1}), np.random.default_rng(0))
    scene = example(meta={"id": 8, "detections": FOUND})  # of another data set of the mixture
    assert made(rows, scene)["box_mask"].sum() == 2
    assert made(samples(boxes="none"), by_id)["box_mask"].sum() == 1
    with pytest.raises(BadRecord, match="without detected boxes: config.boxes=FILE"):
        samples().make(example(), np.random.default_rng(0))
    with pytest.raises(UserError, match="no such box file"):
        samples(boxes=str(tmp_path / "none.json"))


def test_boxes_past_the_slots_are_counted_in_the_run():
    config = micro_config(model__max_boxes=2)
    system = build(config.system, config.model.to_dict())
    iterator = pipeline.open_batches(config, system.cfg)
    batch = next(iterator)
    assert batch["box_mask"].sum((1, 2)).max() == 2 and iterator.dropped > 0
    config = micro_config(model__max_boxes=32)
    iterator = pipeline.open_batches(config, build(config.system, config.model.to_dict()).cfg)
    next(iterator)
    assert iterator.dropped == 0


def test_boxes_outside_of_the_picture_are_counted():
    boxes = [[10, 5, 40, 30], [900, 900, 950, 950], [0, 150, 40, 200]]
    found = {"boxes": boxes, "scores": [0.5] * 3, "labels": ["a", "b", "c"]}
    row = samples().make(example(meta={"detections": found}), np.random.default_rng(0))
    assert row["dropped"] == 2 and len(row["boxes"][0]) == 1


def test_long_texts_leave_one_box_a_label():
    boxes = [[k * 10, 0, k * 10 + 8, 20] for k in range(6)]
    found = {"boxes": boxes, "scores": [0.9] * 6, "labels": list("aaabbc")}
    e = example(turns=(Turn("Say", "dog " * 20),), meta={"detections": found})

    def row(room):
        return samples(codec__text_tokens=room).make(e, np.random.default_rng(0))

    wide = row(150)
    cfg = samples().cfg
    text = int((wide["tokens"] < cfg.lm.vocab).sum())
    assert [len(row(n)["boxes"][0]) for n in (150, text + 9, text)] == [6, 6, 3]


def test_without_objects_no_boxes_are_asked_for():
    batch = made(samples(model__objects="none"), example())
    assert not batch["box_mask"].any() and batch["high"].shape == (1, 1, SIDE, SIDE, 3)


def test_videos_frame_by_frame_and_not_beside_pictures():
    film = noise(frames=8, seed=3)
    e = Example(None, 0, 0, turns=(Turn("What moves?", "Nothing."),), id="v", source="set",
                video=lambda count: film[:count],
                meta={"detections": {"frames": [FOUND] * 8}})  # fmt: skip
    rows = samples(media="video")
    batch = made(rows, e, text_alone())
    assert batch["high"].shape == (2, 8, SIDE, SIDE, 3) and batch["box_mask"].sum() == 16
    view = preprocess.get("clip_pad")
    np.testing.assert_array_equal(batch["high"][0, 5], view(film[5], SIDE))
    cfg, tokens = rows.cfg, batch["tokens"][0]
    places = tokens[np.isin(tokens, [cfg.id("image"), cfg.id("box")])] - cfg.id("image")
    assert places.tolist() == [0, 1, 1] * 8  # a frame's vector, then its boxes
    picture = example(meta={"detections": FOUND})
    with pytest.raises(UserError, match="a picture and a video in one batch: video_pool=2"):
        made(rows, e, picture)
    mixed = made(samples(media="video", model__video_pool=1), e, picture)
    assert (mixed["tokens"] == cfg.id("image")).sum(1).tolist() == [32, 4]
    with pytest.raises(BadRecord, match="is a video: train with config.media=video"):
        samples().make(e, np.random.default_rng(0))
    e.meta["detections"] = {"frames": [FOUND] * 3}
    with pytest.raises(BadRecord, match="boxes of 3 pictures or frames, but 8 are looked at"):
        rows.make(e, np.random.default_rng(0))


def test_pictures_and_films_of_a_mixture_are_kept_apart():
    data = "scenes:seed=1,n=64,size=64 + scenes:seed=2,n=64,size=64,frames=8"
    config = micro_config(media="video", data=data)
    iterator = pipeline.open_batches(config, build(config.system, config.model.to_dict()).cfg)
    seen = {next(iterator)["high"].shape[1] for _ in range(6)}
    assert seen == {1, 8}


def test_buckets_are_lengths_of_whole_sequences():
    rows = samples(codec__buckets=(40, 60, 9000))
    assert rows.buckets == (40, 60, 160 + 4 + 16)
    e = example(meta={"detections": FOUND})
    assert made(rows, e)["tokens"].shape == (1, 40)


def test_what_does_not_fit_is_left_out_or_named():
    e = example(turns=(Turn("Say", "dog " * 300),), meta={"detections": FOUND})
    with pytest.raises(Unfit, match="tokens of text, but text_tokens is 160"):
        samples().make(e, np.random.default_rng(0))
    with pytest.raises(UserError, match="tokens of text, but text_tokens is 160"):
        samples(codec__too_long="error").make(e, np.random.default_rng(0))
    many = example(turns=(Turn("<r:0> " * 9, "Yes."),), meta={"detections": FOUND})
    with pytest.raises(Unfit, match="9 refer regions, but there are"):
        samples().make(many, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"media": "film"}, "config argument 'media=film'"),
        ({"model__lm__vocab": 7}, "vocab is 7, but the tokenizer has 1314 ids"),
        ({"codec__template": "vikuna"}, "unknown chat template 'vikuna'"),
        ({"codec__template": "phi3_chat"}, "template phi3_chat ends answers with"),
        ({"codec__text_tokens": 0}, "config.codec.text_tokens: 0 leaves no text"),
        ({"box_limit": -1}, "config.box_limit: -1 is negative"),
        ({"model__lm__max_positions": 99}, "config.model.lm.max_positions is 99: lower the one"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        samples(**changes)


def test_a_record_that_cannot_be_encoded_is_malformed():
    for turns in ((Turn("What?", None),), (Turn("<image>", "A."), Turn("<image>", "B."))):
        with pytest.raises(BadRecord, match="no answer to train on|2 <image> marks"):
            samples().make(example(turns=turns, meta={"detections": FOUND}), rng())


def rng():
    return np.random.default_rng(0)


def test_pictures_without_conversation_are_asked_about_their_annotations():
    dog = Region.from_box((0.1, 0.1, 0.5, 0.5), label="dog")
    e = example(turns=(), objects=(dog,), absent=("cat",), meta={"detections": FOUND})
    rows = samples(tasks="presence")
    row = rows.make(e, np.random.default_rng(0))
    words = rows.codec.tokenizer.decode([int(i) for i in row["tokens"] if i < rows.codec.vocab])
    assert "Please answer the question with yes or no." in words
