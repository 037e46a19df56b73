"""Data in the form of Ferret's GRIT."""

import json

import numpy as np
import pytest

from conversion.verify.mg_llava_data import Characters
from mg_jax.data.sources import open_source
from mg_jax.data.sources.measures import measure
from mg_jax.data.write import write_ferret_grit
from mg_jax.errors import UserError
from mg_jax.example import Turn
from mg_jax.text.codecs.ferret import FerretCodec
from mg_jax.text.instructions import GROUNDING
from mg_jax.text.instructions.ferret import COORDINATES, COORDINATES_UI
from tests.data.sources.grounded_scenes import all_of, masked, picture, places, scenes


@pytest.mark.parametrize("masks", [False, True])
def test_written_dialogues_are_read_back(masks, tmp_path):
    rows = [masked(e) for e in scenes()] if masks else scenes()
    file, images = write_ferret_grit(rows, tmp_path)
    assert (b'"masks"' in file.read_bytes()) == masks
    source = open_source(f"ferret_grit:{file},{images}")
    assert source.measures().tolist() == [list(measure(e)) for e in source]
    assert not source.counts and source.bad == 0
    for e, row in zip(all_of(source), rows, strict=True):
        assert e.turns == (
            Turn("What is <r:0> beside <r:1>?", "It is a thing <r:0> <r:2> ."),
            Turn("Why?", "1 < 2, and <r:2> too."),
        )
        assert places(e, [0, 1, 2]) == places(row, [0, 2, 1])
        assert [r.kind for r in e.regions] == ["mask" if masks else "box"] * 2 + ["box"]
        if masks:
            np.testing.assert_array_equal(e.regions[0].mask_array(), row.regions[0].mask_array())
            np.testing.assert_array_equal(e.regions[1].mask_array(), row.regions[2].mask_array())
        np.testing.assert_array_equal(e.pixels(), row.pixels())


def test_a_request_for_coordinates_ends_the_first_question(tmp_path):
    """In the words of v2 and of Ferret-UI, and in none where it is not wanted."""
    file, images = write_ferret_grit(scenes(), tmp_path)
    example = open_source(f"ferret_grit:{file},{images},request=yes")[0]
    plain = open_source(f"ferret_grit:{file},{images}")[0]
    assert [t.assistant for t in example.turns] == [t.assistant for t in plain.turns]
    assert example.turns[1] == plain.turns[1] and GROUNDING not in plain.turns[0].user
    for template, asked in (("ferret_v1", COORDINATES), ("ferret_vicuna_v1", COORDINATES_UI)):
        codec = FerretCodec(Characters(), template)
        text = codec.prompt(example.turns, example.regions, (40, 20))
        assert text.count(asked) == 1 and text.index(asked) < text.index("Why?")
        assert asked not in codec.prompt(plain.turns, plain.regions, (40, 20))
    with pytest.raises(UserError, match="request=maybe: choose no or yes"):
        open_source(f"ferret_grit:{file},{images},request=maybe")


def test_odd_records(tmp_path):
    picture(tmp_path / "images/a.png")
    box = [4, 5, 12.0, 15]

    def row(boxes=((box,), ()), **more):
        said = [
            {"from": "human", "value": "<image>\nWhat's the <p>type</p> of <bbox_location0>?"},
            {"from": "gpt", "value": "Button"},
        ]
        size = {"id": 0, "image": "a.png", "image_h": 20, "image_w": 40}
        return {**size, "conversations": said, "box_x1y1x2y2": list(map(list, boxes)), **more}

    answer = {"from": "gpt", "value": "the <bbox_location1> and <bbox_location0>"}
    mask = {"size": [20, 40], "counts": [0, 800]}
    first = row()["conversations"][0]
    rows = [
        row(),
        row(((box,), ([-4, -5, 4, 5], [0, 0, 1, 1])), conversations=[first, answer], id=None),
        row(masks=[[mask], []]),
        row(image="gone.png"),
        row(masks=[[None], []]),
        row(masks=[[{"size": [20, 40], "counts": [800]}], []]),
        row(masks=[[{"size": [20, 40], "counts": "Pi0"}], []]),  # the same, compressed
        row(((), ())),
        row(((box, box), ())),
        row((([9, 9, 4, 4],), ())),
        row((([9, 9, 4, "x"],), ())),
        row(((box,),)),
        row(masks=3),
        row(masks=[[{"size": [40, 20], "counts": [0, 800]}], []]),
        row(masks=[[mask, mask], []]),
        row(image_w=0),
        row(((box,),), conversations=[first]),
        row(conversations=[first, first]),
        row(conversations=[first, {"from": "gpt", "value": None}]),
        row(conversations=None),
        "no row",
    ]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(rows))
    source = open_source(f"ferret_grit:{file},{tmp_path / 'images'},max_bad=0.9")
    assert len(source) == 6 and source.bad == 14
    assert source.measures().tolist() == [list(measure(e)) for e in source]
    assert source.counts == {
        "pictures without a file": 1, "boxes without area": 1, "empty masks": 2
    }  # fmt: skip
    wanted = ("names the locations [0], but has 0", "has 2 boxes", "has no area",
              "expected a number",
              "box_x1y1x2y2 is no list of 2", "masks is no list of 2",
              "mask has size [40, 20], expected [20, 40]",
              "2 masks for 1 boxes", "image_w and image_h", "1 messages", "is from 'human'",
              "value is None", "conversations is None", "expected an object")  # fmt: skip
    for problem, what in zip(source.problems, wanted, strict=True):
        assert what in problem, problem
    plain, answered, outlined, boxed, *emptied = all_of(source)
    assert [e.regions for e in emptied] == [plain.regions] * 2  # the box is left
    assert plain.turns[0].user == "What's the <p >type</p > of <r:0>?"
    assert places(plain, [0]) == [(0.1, 0.25, 0.3, 0.75)] and boxed.regions[0].kind == "box"
    assert [e.id for e in (plain, answered)] == ["a-0", "a-a"]
    assert answered.turns[0].assistant == "the <r:2> and <r:1>"
    assert places(answered, [1, 2]) == [(0, 0, 0.1, 0.25), (0, 0, 0.025, 0.05)]
    assert outlined.regions[0].kind == "mask" and outlined.regions[0].box == plain.regions[0].box
    rows = [row(masks=[[{"size": [20, 40], "counts": [0] * 13 + [7]}], []])]
    file.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="counts sum to 7"):  # decoded when it is asked for
        open_source(f"ferret_grit:{file},{tmp_path / 'images'}")[0]
