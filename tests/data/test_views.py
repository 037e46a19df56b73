"""Views of pictures: boxes go with the pixels, what is out of view is not claimed to be there."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg_jax.data.sources import open_source
from mg_jax.data.sources.features import digest
from mg_jax.data.sources.views import VISIBLE, Views, seen
from mg_jax.data.transforms import View
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn


def box(x0, y0, x1, y1, label):
    return Region.from_box((x0, y0, x1, y1), label)


@pytest.fixture
def coco(tmp_path):
    """A COCO data text of ten scenes."""
    from mg_jax.data.write import write_coco

    source = open_source("scenes:seed=9,n=10,tasks=none,size=96x64")
    return "coco:{},{}".format(*write_coco([source[i] for i in range(10)], tmp_path / "c"))


def example(**changes):
    rng = np.random.default_rng(0)
    fields = dict(
        image=rng.integers(0, 256, (80, 100, 3), np.uint8), width=100, height=80, id="e",
        objects=(box(0, 0, 0.2, 0.5, "dog"), box(0.5, 0.25, 1, 0.75, "cat")),
        crowd=(box(0.9, 0.9, 1, 1, "bird"),), absent=("cow",),
    )  # fmt: skip
    return Example(**fields | changes)


def test_boxes_are_carried_exactly():
    view = View((50.0, 20.0, 100.0, 60.0), 100, 80)
    found = seen(example(), view)
    assert (found.width, found.height) == (50, 40) and "view" in found.meta
    assert [(r.label, r.box) for r in found.objects] == [("cat", (0, 0, 1, 1))]
    np.testing.assert_array_equal(found.pixels(), example().pixels()[20:60, 50:])
    mirrored = seen(example(), View((0.0, 0.0, 100.0, 80.0), 100, 80, True))
    np.testing.assert_allclose(mirrored.objects[0].box, (0.8, 0, 1, 0.5), atol=1e-6)
    np.testing.assert_array_equal(mirrored.pixels(), example().pixels()[:, ::-1])


def test_what_is_hardly_seen_is_neither_there_nor_absent():
    """Of the dog a quarter shows, of the cat all, of the bird nothing."""
    view = View((15.0, 0.0, 100.0, 70.0), 100, 80)
    found = seen(example(), view)
    assert VISIBLE > 5 / 20
    assert [r.label for r in found.objects] == ["cat"]
    assert [r.label for r in found.crowd] == ["dog"]
    assert found.absent == ("cow", "bird")
    assert seen(example(absent=()), view).absent == ()  # where absences are not known
    half = seen(example(), View((10.0, 0.0, 100.0, 80.0), 100, 80))
    assert [r.label for r in half.objects] == ["dog", "cat"]


def test_a_class_that_is_still_there_is_not_absent():
    two = (box(0, 0, 0.2, 0.5, "dog"), box(0.6, 0.5, 0.9, 0.9, "Dog"))
    found = seen(example(objects=two), View((50.0, 0.0, 100.0, 80.0), 100, 80))
    assert found.absent == ("cow",) and len(found.objects) == 1


def test_a_data_set_has_the_same_views_in_every_run(coco):
    plain, source = open_source(coco), open_source(f"{coco},views=3,part=train")
    train = open_source(f"{coco},part=train")
    assert len(source) == 3 * len(train) < 3 * len(plain)
    assert source.frequency == train.frequency and source.exhaustive
    again = pickle.loads(pickle.dumps(source))
    different = 0
    for i in range(len(source)):
        one, two, whole = source[i], again[i], train[i // 3]
        assert one.objects == two.objects and one.id == f"{whole.id}/view{i % 3}"
        np.testing.assert_array_equal(one.pixels(), two.pixels())
        assert source.file_name(i) == train.file_name(i // 3)
        if i % 3 == 0:
            assert one.objects == whole.objects
            np.testing.assert_array_equal(one.pixels(), whole.pixels())
        else:
            assert one.objects or one.crowd
            different += one.objects != whole.objects
            assert not {r.label for r in one.objects} & set(one.absent)
    assert different > len(train)


def test_examples_with_text_are_shown_whole():
    class One:
        name, head, max_bad, tasks, exhaustive, counts, bad, problems = (
            "one", "coco", 0.0, None, False, {}, 0, [],
        )  # fmt: skip

        def __len__(self):
            return 1

        def __getitem__(self, i):
            return replace(example(), turns=(Turn("What is on the left?", "A dog."),))

    views = Views(One(), 2)
    assert views[1].objects == example().objects and views[1].width == 100


def test_kept_states_do_not_outlive_the_boxes_they_were_cut_around(coco):
    before = digest(open_source(f"{coco},views=2"))
    assert before == digest(open_source(f"{coco},views=2")) != digest(open_source(coco))
    file = Path(coco.removeprefix("coco:").partition(",")[0])
    data = json.loads(file.read_text())
    data["annotations"][0]["bbox"][2] *= 0.5
    file.write_text(json.dumps(data))
    assert digest(open_source(f"{coco},views=2")) != before


@pytest.mark.parametrize("views", ["0", "many", "1.5"])
def test_wrong_numbers_of_views(coco, views):
    with pytest.raises(UserError, match=f"views={views}: expected a whole number of at least 1"):
        open_source(f"{coco},views={views}")
    with pytest.raises(UserError, match="views is for data sets of files"):
        open_source("scenes:seed=1,n=2,views=2")


def test_broken_pictures_are_told_when_they_are_read(coco):
    source = open_source(f"{coco},views=2")
    file = source[1].meta["file_name"]
    folder = coco.partition(",")[2]
    Image.new("RGB", (9, 9)).save(f"{folder}/{file}")
    with pytest.raises(UserError, match="9x9 px but the annotation says"):
        source[1].pixels()
