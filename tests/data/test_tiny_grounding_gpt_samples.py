"""From a TinyGroundingGPT config to batches: shapes, crops, slots, augmentation."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mg_jax.config import build
from mg_jax.data import pipeline
from mg_jax.data.crops import crop
from mg_jax.data.sources import open_source
from mg_jax.errors import BadRecord, Unfit, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.models.tiny_grounding_gpt import STAGES, TinyGroundingGPTConfig, example_batch
from mg_jax.text import markup
from mg_jax.vision import preprocess
from tests.tiny_grounding_micro import SCENES, SIDE, micro_config

CLIP = preprocess.get("clip_pad")
STILL = {"crop_augment__jitter": 0.0, "crop_augment__light": 0.0}


def model(config):
    return build(TinyGroundingGPTConfig, config.model.to_dict())


def rows_of(config):
    return pipeline.open_samples(config, model(config))


def photo(*pairs, image=True, **more):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 60, 3), np.uint8) if image else None
    regions = (Region.from_box((0.1, 0.2, 0.5, 0.9)), Region.from_box((0.5, 0.0, 1.0, 0.5)))
    return Example(
        pixels, 60, 30, regions, tuple(Turn(*p) for p in pairs), id="e1", source="mine", **more
    )


@pytest.mark.parametrize("stage", STAGES)
def test_batches_have_the_shapes_the_system_states(stage):
    config = micro_config(stage, data=SCENES.format("object_match+place_choice"))
    cfg = model(config)
    batch = next(pipeline.open_batches(config, cfg))
    stated = example_batch(cfg, stage, config.batch_size, **pipeline.batch_sizes(config, cfg))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stated.items()
    }
    assert batch["object_mask"].any(1).all()
    slots = (batch["tokens"] == cfg.id("object")).sum(1)
    np.testing.assert_array_equal(slots, batch["object_mask"].sum(1) * cfg.object_tokens)
    np.testing.assert_array_equal(
        (batch["tokens"] == cfg.id("image")).sum(1), np.full(8, cfg.image_tokens)
    )


def test_sources_keep_to_batches_of_their_own():
    """Where no object image is asked for, none is looked at."""
    config = micro_config()
    batches = pipeline.open_batches(config, model(config))
    found = [next(batches) for _ in range(8)]
    asked = [bool(b["object_mask"].any()) for b in found]
    assert asked == [b["objects"].shape[1] > 0 for b in found] and len(set(asked)) == 2


def test_rows_are_crops_of_the_original_pixels():
    rows = rows_of(micro_config(**STILL))
    example = photo(("Is <object:1> left of <object:0>?", "Yes"), ("And <r:0>?", "<r:1>"))
    record = rows.make(example, np.random.default_rng(0))
    wanted = [crop(example.image, example.regions[k].box, CLIP, SIDE) for k in (1, 0)]
    np.testing.assert_array_equal(record["objects"], wanted)
    np.testing.assert_array_equal(record["image"], CLIP.squash(example.image, SIDE))
    alone = rows.make(photo(("Hello", "Hi"), image=False), np.random.default_rng(0))
    batch = rows.finish(rows.collate([record, alone]))
    assert batch["objects"].shape == (2, 3, SIDE, SIDE, 3)  # half of the slots suffice
    np.testing.assert_allclose(batch["objects"][0, 0], CLIP.normalize(wanted[0]), atol=1e-6)
    np.testing.assert_array_equal(batch["object_mask"], [[True, True, False], [False] * 3])
    assert not np.isin(batch["tokens"][1], [rows.codec.image_id, rows.codec.object_id]).any()


def test_augmentation_is_drawn_for_object_images_alone():
    rows = rows_of(micro_config())
    example = photo(("What is <object:0>?", "A dog"))
    made = [rows.make(example, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(made[0]["objects"], made[1]["objects"])
    assert (made[0]["objects"][0] != made[2]["objects"][0]).any()
    np.testing.assert_array_equal(made[0]["image"], made[2]["image"])
    with pytest.raises(UserError, match="config.crop_augment.light: 3 is not between 0 and 1"):
        rows_of(micro_config(crop_augment__light=3.0))


def test_slots_that_make_no_sense_are_named():
    for stage, slots, least in (("local", -1, 0), ("labels", 0, 1), ("labels", -2, 1)):
        config = micro_config(stage, codec__object_slots=slots)
        for check in (rows_of, lambda c: pipeline.batch_sizes(c, model(c))):
            with pytest.raises(UserError, match=f"object_slots: {slots} is not at least {least}"):
                check(config)
    rows_of(micro_config(codec__object_slots=0))
    with pytest.raises(UserError, match="config.options=6: place_choice .*object_slots=5"):
        rows_of(micro_config(tasks="rec+place_choice", options=6))
    rows_of(micro_config(tasks="rec+object_match", options=6))
    rows_of(micro_config(tasks="rec+place_choice", options=5))


def test_samples_travel_to_workers():
    rows = pickle.loads(pickle.dumps(rows_of(micro_config())))
    assert rows.make(photo(("What?", "A dog")), np.random.default_rng(0))["image"] is not None


def test_more_object_images_than_slots():
    many = photo(("Is it " + ", ".join(["<object:0>"] * 6) + "?", "No"))
    rng = np.random.default_rng(0)
    with pytest.raises(Unfit, match="'e1': 6 object images, but there are 5 slots") as e:
        rows_of(micro_config()).make(many, rng)  # too_long="skip"
    assert e.value.reason == "object images"
    strict = rows_of(micro_config(codec__too_long="error"))
    with pytest.raises(UserError, match="'e1': 6 object images, .*: .*raise") as e:
        strict.make(many, rng)
    assert not isinstance(e.value, Unfit)  # it ends the run


def write_rows(folder, *rows):
    """A jsonl: data text of these rows about one picture of 64 x 64."""
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    lines = [json.dumps({"image": "a.png", **row}) + "\n" for row in rows]
    (folder / "rows.jsonl").write_text("".join(lines))
    return f"jsonl:{folder / 'rows.jsonl'}"


def test_what_there_is_no_room_for_is_counted_by_its_reason(tmp_path):
    def row(question):
        turns = [{"user": question, "assistant": "No"}]
        return {"regions": [{"box": [1, 1, 30, 30]}], "turns": turns}

    good, many, long = row("Is <object:0> red?"), row("<object:0> " * 6), row("why " * 500)
    config = micro_config(data=write_rows(tmp_path, many, many, good, long), batch_size=8)
    batches = pipeline.open_batches(config, model(config))
    next(batches)
    counts = batches.counts
    assert counts["skipped/object_images"] > 0 and counts["skipped/long_text"] > 0
    assert counts["skipped"] == counts["skipped/object_images"] + counts["skipped/long_text"]
    assert counts["malformed"] == 0
    config = micro_config(data=write_rows(tmp_path, many, many))
    with pytest.raises(
        UserError, match="none of 2 .*; for example: .* 6 object images, .*5 slots"
    ) as e:
        next(pipeline.open_batches(config, model(config)))
    assert "\n" not in str(e.value) and "boxes and the filters" not in str(e.value)


def test_filters_of_the_config(tmp_path):
    thing = [{"box": [1, 1, 9, 9], "label": "dog"}, {"box": [40, 40, 60, 60], "label": "cat"}]
    data = write_rows(tmp_path, {"objects": thing})
    shown = micro_config(data=data, tasks="place_choice")
    batches = pipeline.open_batches(shown, model(shown))
    assert next(batches)["object_mask"].sum(1).tolist() == [2] * 8
    assert not any(name.startswith("filtered") for name in batches.counts)
    large = micro_config(data=data, tasks="object_match", filters__min_area=0.05)
    batches = pipeline.open_batches(large, model(large))
    next(batches)
    assert batches.counts["filtered/too_small"] > 0
    none = micro_config(data=data, tasks="place_choice", filters__min_area=0.05)
    with pytest.raises(
        UserError, match="place_choice fits its annotations .filters left out: too "
    ):
        next(pipeline.open_batches(none, model(none)))
    with pytest.raises(UserError, match="filters: max_boxes=0: give at least 1"):
        rows_of(micro_config(filters__max_boxes=0))
    with pytest.raises(UserError, match="options=1: a choice has 2"):
        rows_of(micro_config(options=1))


def test_what_cannot_be_a_row_is_named():
    rows, rng = rows_of(micro_config()), np.random.default_rng(0)
    with pytest.raises(BadRecord, match="'e1' of mine: is a video: TinyGroundingGPT takes"):
        rows.make(photo(("What?", "x"), image=False, video="film.mp4"), rng)
    flat = Region("box", (0.5, 0.2, 0.5, 0.9))
    bad = Example(np.zeros((9, 9, 3), np.uint8), 9, 9, (flat,), (Turn("<object:0>?", "x"),),
                  id="e2", source="mine")  # fmt: skip
    with pytest.raises(BadRecord, match="example 'e2' of mine: object image: box .* no area"):
        rows.make(bad, rng)


def test_annotations_are_asked_with_object_images(tmp_path):
    """Any data with boxes, through the neutral example: here COCO's form."""
    from mg_jax.data.write import write_coco

    pictures = open_source("scenes:seed=5,n=12,tasks=none,size=64,min_objects=4")
    spec = "coco:{},{}".format(*write_coco([pictures[i] for i in range(12)], tmp_path))
    config = micro_config(data=spec, tasks="object_match+place_choice+name_choice+object_relation")
    batches = pipeline.open_batches(config, model(config))
    found = [next(batches) for _ in range(2)]
    assert all(b["object_mask"].any(1).all() for b in found)
    codec = pipeline.make_codec(config, model(config))
    tokens = found[0]["tokens"][0]
    text = codec.tokenizer.decode([i for i in tokens.tolist() if i < codec.tokenizer.size])
    assert "USER:" in text and markup.parse(text)[0].kind == "text"


def test_boxes_without_names_end_the_run_with_one_line(tmp_path):
    data = write_rows(tmp_path, {"objects": [{"box": [1, 1, 30, 30]}, {"box": [32, 32, 60, 60]}]})
    config = micro_config(data=data, tasks="name_choice")
    with pytest.raises(UserError, match="none of its 2 boxes has a name") as e:
        next(pipeline.open_batches(config, model(config)))
    assert "\n" not in str(e.value)
