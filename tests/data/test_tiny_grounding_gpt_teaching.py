"""Where answers of TinyGroundingGPT look: the middle of a box, the image of an option."""

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from mg_jax.data import pipeline
from mg_jax.data.crops import crop
from mg_jax.data.samples.teaching import Texts, rests_on
from mg_jax.data.samples.tiny_grounding_gpt_teaching import Gaze, chosen
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.models import build
from mg_jax.text.bpe import load_tokenizer
from mg_jax.text.codecs.tiny_grounding_gpt import TinyGroundingGPTCodec
from mg_jax.vision import preprocess
from tests.tiny_grounding_micro import micro_config

SIDE = 6  # tokens of the picture a side
WIDE = np.zeros((30, 60, 3), np.uint8)  # padded by 15 rows above and below
ONE, TWO = (0.1, 0.2, 0.3, 0.8), (0.5, 0.0, 1.0, 0.5)
SIDES = "\n".join(("A. to the left of", "B. to the right of", "C. below"))
REGIONS = (Region.from_box(ONE), Region.from_box(TWO))


@pytest.fixture(scope="module")
def codec():
    with resources.as_file(resources.files("mg_jax") / "releases" / "tokenizer-tiny") as folder:
        tokenizer = load_tokenizer(folder)
    return TinyGroundingGPTCodec(tokenizer, "vicuna", SIDE**2, 9, 6, 400)


def looks(codec, *turns, regions=REGIONS):
    """(record, {position: [(column, row) of the picture's token, or the token's position]}); what
    the second head looks at has "landmark" before it, what a later layer does "later", and "edge"
    what both look at."""
    example = Example(WIDE, 60, 30, regions, turns)
    record = codec.encode(example)
    gaze = Gaze(codec)(record, example)
    assert gaze["gaze"].shape == (len(gaze["gaze_weight"]), 4)
    images = np.flatnonzero(record["tokens"] == codec.image_id).tolist()
    found = {}
    rows = zip(gaze["gaze"].tolist(), gaze["gaze_weight"], strict=True)
    shown = np.flatnonzero(record["tokens"] == codec.object_id)
    for (position, target, head, layer), weight in rows:
        assert target <= position and 0 < weight <= 1
        place = divmod(images.index(target), SIDE)[::-1] if target in images else target
        assert (layer < 0) == (position in shown and not head)
        seen = found.setdefault(position, [])
        if head and layer:  # as one layer before
            seen.remove(("landmark", place))
        kind = "edge" if head and layer else "landmark" if head else "later" if layer > 0 else ""
        seen.append((kind, place) if kind else place)
    return record, found


def cell(x, y):
    """(column, row) of a point in [0, 1] of the picture, by hand: its rows begin at 15 of 60."""
    return int(x * SIDE), int((y * 30 + 15) / 60 * SIDE)


def test_numbers_look_at_the_middle_of_their_box_and_at_their_edge(codec):
    record, found = looks(codec, Turn("Where is <p>the cup</p>?", "It is here: <r:1><r:0>."))
    targets = np.flatnonzero(record["loss_mask"])
    begin = int(targets[0]) - 1
    assert set(found[begin]) == {cell(0.75, 0.25), cell(0.2, 0.5)}
    words = [[t] if t < codec.tokenizer.size else [] for t in record["tokens"].tolist()]
    texts = [codec.tokenizer.decode(ids) for ids in words]
    opens = [p for p in targets.tolist() if "[" in texts[p]]
    assert len(opens) == 2
    for start, box in zip(opens, (TWO, ONE), strict=True):
        end = next(p for p in range(start, len(texts)) if "]" in texts[p])
        middle = cell((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        points = [p for p in range(start, end) if texts[p] == "."]
        x0, y0, x1, y1 = box
        x, y, e = (x0 + x1) / 2, (y0 + y1) / 2, 0.01
        ends = [cell(x0 + e, y), cell(x, y0 + e), cell(x1 - e, y), cell(x, y1 - e)]
        expected = {
            p + k: [middle, ("edge", end)]
            for p, end in zip(points, ends, strict=True)
            for k in range(3)
        }
        assert len(points) == 4
        assert {p: found[p] for p in range(start, end) if p in found} == expected


def test_an_option_is_looked_at_and_object_images_at_their_origin(codec):
    asked = "Which is at <r:1>?\nA. <object:1>\nB. <object:0>"
    record, found = looks(
        codec, Turn("What is <object:0>?", "A cup."), Turn(asked, "B"),
        Turn("Is <r:0> it?", "Yes."),
        Turn("How is <object:1> to <r:0>?\nA. above\nB. below", "A"),
        Turn("Where is <object:1>?", "<r:1>"), Turn("Is <object:0> red?", "No.", about=()),
    )  # fmt: skip
    tokens = record["tokens"]
    middles = np.flatnonzero(tokens == codec.object_id).reshape(-1, 9)[:, 4].tolist()
    one, two = cell(0.2, 0.5), cell(0.75, 0.25)
    assert [found[m] for m in middles] == [[one], [two], [one], [two], [two], [one]]
    targets = np.flatnonzero(record["loss_mask"][1:] & ~record["loss_mask"][:-1]).tolist()
    first, choice, plain, both, place, nothing = (found[t] for t in targets)
    assert first == [middles[0]] and choice == [middles[2]] and plain == [one]
    assert both == [one, middles[3]]  # what relates, shown in either way
    assert place == [two] and nothing == [0]


def test_what_others_are_placed_by_has_a_head_of_its_own(codec):
    asked = "What is left of <object:1>?\nA. <object:0>\nB. <object:2>"
    regions = (*REGIONS, Region.from_box((0.0, 0.0, 0.1, 0.2)))
    record, found = looks(
        codec, Turn(f"How is <object:0> to <r:1>?\n{SIDES}", "B", (0, 1), (1,)),
        Turn(asked, "A", (0, 1), (1,)),
        Turn(f"How is <r:0> to <r:1>?\n{SIDES}", "C.", (0, 1), (1,)), regions=regions,
    )  # fmt: skip
    middles = np.flatnonzero(record["tokens"] == codec.object_id).reshape(-1, 9)[:, 4].tolist()
    tokens, texts = record["tokens"], Texts(codec)
    how, which, last = np.flatnonzero(record["loss_mask"][1:] & ~record["loss_mask"][:-1]).tolist()
    # an option in words by that which tells it from others
    said = [texts(int(token)).strip() for token in tokens]
    right, below = said.index("right"), len(said) - 1 - said[::-1].index("below")
    assert found[how] == [middles[0], ("landmark", cell(0.75, 0.25)), ("later", right)]
    assert found[last] == [cell(0.2, 0.5), ("landmark", cell(0.75, 0.25)), ("later", below)]
    assert found[which] == [("later", middles[2]), ("landmark", middles[1])]
    one, two, three = cell(0.2, 0.5), cell(0.75, 0.25), cell(0.05, 0.1)
    assert [found[m][-1] for m in middles] == [one, two, one, three]
    assert [found[m][:-1] for m in middles] == [[], [], *[[("landmark", middles[1])]] * 2]


def test_a_bracket_at_the_end_of_an_answer_is_no_box(codec):
    _, found = looks(codec, Turn("What does it say?", "[STOP 3"))
    assert list(found.values()) == [[0]]


def test_what_an_answer_rests_on():
    assert rests_on(Turn("a <r:0>", "b", about=(2, 1))) == [2, 1]
    assert rests_on(Turn("a <r:0>", "b <r:1><r:1>")) == [1]
    assert rests_on(Turn("a <r:0> <object:1>", "No.")) == [0]
    assert rests_on(Turn("a", "No.", about=())) == []
    assert chosen(Turn("A. <object:3>\nB. <object:1>", "B.")) == 1
    assert chosen(Turn("A. to the left\nB. above <object:1>", "B")) is None
    assert chosen(Turn("A. <object:3>", "A cup")) is None


def test_text_alone_looks_nowhere(codec):
    example = Example(None, 0, 0, turns=(Turn("Say A.", "A"),))
    gaze = Gaze(codec)(codec.encode(example), example)
    assert gaze["gaze"].shape == (0, 4) and gaze["gaze_weight"].shape == (0,)


def test_named_things_and_crops_of_some_of_them():
    """Of a wide picture, whose padding the boxes count."""
    config = micro_config("labels", crop_augment__jitter=0.0, crop_augment__light=0.0)
    system = build(config.system, config.model.to_dict())
    rows = pipeline.open_samples(config, system.cfg)
    words = config.label_words
    objects = tuple(
        Region.from_box(box, label=name)
        for box, name in ((ONE, "red star"), (TWO, "blue star"), ((0.0, 0.5, 0.1, 1.0), "unnamed"))
    )
    pixels = np.random.default_rng(1).integers(0, 256, WIDE.shape, np.uint8)
    example = Example(pixels, 60, 30, objects=objects, id="a", source="mine")
    orders = set()
    for seed in range(4):
        row = rows.make(example, np.random.default_rng(seed))
        assert row["label_mask"].tolist() == [True, True] + [False] * (config.target_slots - 2)
        named = [{words[k] for k in labels if k >= 0} for labels in row["labels"][:2]]
        order = [0, 1] if "red" in named[0] else [1, 0]
        orders.add(tuple(order))
        expected = [({"red", "star"}, ONE), ({"blue", "star"}, TWO)]
        for n, k in enumerate(order):
            name, (x0, y0, x1, y1) = expected[k]
            assert named[n] == name
            square = [x0, (y0 * 30 + 15) / 60, x1, (y1 * 30 + 15) / 60]
            np.testing.assert_allclose(row["label_boxes"][n], square, atol=1e-6)
            cut = crop(pixels, expected[k][1], preprocess.get("clip_pad"), config.image_size)
            np.testing.assert_array_equal(row["objects"][n], cut)
    assert len(orders) == 2
    assert rows.make(replace(example, objects=objects[2:]), np.random.default_rng(0)) is None


def test_batches_of_labels_have_the_shapes_the_system_states():
    config = micro_config("labels")
    system = build(config.system, config.model.to_dict())
    batch = next(pipeline.open_batches(config, system.cfg))
    sizes = pipeline.batch_sizes(config, system.cfg)
    stated = system.example_batch("labels", config.batch_size, **sizes)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stated.items()
    }
    with pytest.raises(UserError, match="config.label_words names 0 words"):
        pipeline.open_samples(micro_config("labels", label_words=()), system.cfg)
