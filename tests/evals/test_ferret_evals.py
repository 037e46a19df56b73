"""Ferret's published evaluations: its readers of answers, and what they are scored with.

That they read what upstream's read: tests/conversion/test_verify_ferret_tables.py.
"""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mg_jax.data.sources import open_source
from mg_jax.errors import UserError
from mg_jax.evals import ferret_scores, ferret_text, metrics, pope, tasks
from mg_jax.evals.ferret_scores import Asked, Referred
from mg_jax.example import Region
from mg_jax.text.codecs.ferret_places import coordinates, format_place
from mg_jax.text.instructions.ferret import which

READERS = (
    ferret_text.scanned_boxes, ferret_text.sentence_boxes, ferret_text.worded_boxes,
    ferret_text.numbered_boxes,
)  # fmt: skip
SLOPPY = st.text(alphabet="[]0123456789, .;ab\n-", max_size=60)


# -- readers ----------------------------------------------------------------------------------


@given(SLOPPY | st.text(max_size=30))
def test_no_reader_ever_raises(text):
    for read in READERS:
        found = read(text, 640, 480)
        assert found is None or len(found) == 2
    for category in ferret_text.BENCH:
        ferret_text.bench_answer(text, category)
    ferret_text.says_yes(text)
    ferret_text.names_class(text, "a", ["b_(c)"])
    assert len(ferret_text.bench_scores(text)) == 2


@given(SLOPPY)
def test_words_before_a_list_are_those_of_the_published_expression(text):
    """Ours looks for them without that expression's backtracking."""
    names, boxes = [], []
    for name, numbers in re.findall(r"([a-zA-Z\s]+)\s+(\[[\d,\s]+\])", text):
        values = numbers[1:-1].split(",")
        if not all(v.strip().isdigit() for v in values) or len(values) < 4:
            assert ferret_text.worded_boxes(text, 1000, 1000) is None
            return
        names.append(name.strip())
        boxes.append([int(v) for v in values[:4]])
    assert ferret_text.worded_boxes(text, 1000, 1000) == (names, boxes)


@given(SLOPPY)
def test_the_scanner_is_upstreams(text):
    names, start, name = [], 0, ""
    for n, letter in enumerate(text):
        if letter == "[":
            name, start = text[start:n].strip(), n + 1
        elif letter == "]":
            try:
                values = list(map(int, text[start:n].strip().split(",")))
                _ = values[3]
            except (ValueError, IndexError):
                names = None
                break
            start = n + 1
            names.append(name)
            while start < len(text) and text[start] not in ".,;!?":
                start += 1
            start += 1
    found = ferret_text.scanned_boxes(text, 1000, 1000)
    assert (None if found is None else found[0]) == names


def test_a_box_is_cut_off_twice():
    region = Region("box", (100 / 640, 50 / 480, 400 / 640, 300 / 480))
    text = f"a dog {format_place(coordinates(region, 640, 480), 640, 480)}."
    assert ferret_text.scanned_boxes(text, 640, 480) == (["a dog"], [[99, 49, 400, 300]])


# -- RefCOCO ----------------------------------------------------------------------------------


def test_crashes_are_wrong_answers():
    box = (64.0, 96.0, 192.0, 192.0)
    good = "the dog [100, 200, 300, 400]"
    rows = [Referred("refcoco", 640, 480, box, text) for text in (
        good, "the dog [100, 200, 300]", "the dog [a, b, c, d]", "nothing", None,
        f"x [0, 0, 9, 9]. {good}",
    )]  # fmt: skip
    found = ferret_scores.referring(rows)["refcoco"]
    assert found["1"] == 1 / 6 and found["upper bound"] == 2 / 6
    assert found["mean"] == 1 / 6 and found["unreadable"] == 2
    with pytest.raises(UserError, match="no referring expressions"):
        ferret_scores.referring([])


def test_an_iou_of_a_half_counts():
    rows = [Referred("refcoco", 1000, 1000, (0, 0, 200, 100), "a [0, 0, 100, 100]")]
    assert ferret_scores.referring(rows)["refcoco"]["1"] == 1.0


def test_rows_go_by_their_number():
    data = {
        "images": [{"id": 7, "width": 10, "height": 10}, {"id": 3, "width": 10, "height": 20}],
        "annotations": [
            {"image_id": 3, "bbox": [1, 2, 3, 4]}, {"image_id": 7, "bbox": [0, 0, 5, 5]},
        ],
    }  # fmt: skip
    rows = ferret_scores.read_refcoco(data, {3: "three"})
    assert [(r.box, r.text) for r in rows] == [((0, 0, 5, 5), None), ((1, 2, 4, 6), "three")]
    with pytest.raises(UserError, match="record 7 has no annotation"):
        ferret_scores.read_refcoco({**data, "annotations": data["annotations"][:1]}, {})


# -- Flickr30k --------------------------------------------------------------------------------


def test_phrases_and_merged_boxes():
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    xml = (
        f"<annotation><object><name>1</name>{box.format(1, 2, 30, 40)}</object>"
        f"<object><name>1</name><name>2</name>{box.format(5, 1, 60, 9)}</object>"
        "<object><name>3</name><nobndbox>1</nobndbox></object></annotation>"
    )
    assert ferret_scores.read_entities(xml) == {"1": [[1, 1, 60, 40]], "2": [[5, 1, 60, 9]]}
    assert len(ferret_scores.read_entities(xml, merge=False)["1"]) == 2
    with pytest.raises(UserError, match="no annotations"):
        ferret_scores.read_entities("<annotation>")
    (line,) = ferret_scores.read_phrases("[/EN#1/people/x Two men] run in [/EN#3/scene a park] .\n")
    assert line["sentence"] == "Two men run in a park ."
    first, second = line["phrases"]
    assert first["phrase_type"] == ["people", "x"] and first["phrase"] == "Two men"
    assert second["first_word_index"] == 4 and second["phrase_id"] == "3"


def test_recall_at_k():
    boxes = [[0, 0, 10, 10]]
    both = (["a dog", "a cat", "A  dog!"], [[50, 50, 60, 60], [0, 0, 10, 10], [0, 0, 10, 9]])
    rows = [Asked("a dog", ["animals"], boxes, both), Asked("a bird", ["animals"], boxes, both),
            Asked("a dog", [], boxes, None)]  # fmt: skip
    found = ferret_scores.phrase_recall(rows, (1, 2, -1))
    assert found[1] == {"all": 0.0, "animals": 0.0}
    assert found[2] == found[-1] == {"all": 1 / 3, "animals": 0.5}
    with pytest.raises(UserError, match="no phrases"):
        ferret_scores.phrase_recall([])


def test_flickr_rows():
    sentences = {"9": ferret_scores.read_phrases("[/EN#1/people Two men] run .")}
    image = {"original_img_id": 9, "sentence_id": 0, "width": 100, "height": 100,
             "caption": "Two men run .", "tokens_positive_eval": [[[0, 7]]]}  # fmt: skip
    boxes = {"9": {"1": [[10, 10, 50, 50]]}}
    (row,) = ferret_scores.flickr_rows(
        [image], sentences, boxes, {("9", 0): "two men [100, 100, 500, 500]."}
    )
    assert ferret_scores.phrase_recall([row])[1]["all"] == 1.0
    question = ferret_scores.flickr_question(image["caption"], image["tokens_positive_eval"])
    assert question == "What are the locations of two men?"
    with pytest.raises(UserError, match="no phrase 'Two men' with boxes"):
        ferret_scores.flickr_rows([image], sentences, {"9": {}}, {})


# -- LVIS -------------------------------------------------------------------------------------


def test_lvis_questions_and_answers():
    assert which(0, 0, "cat", "dog").endswith("a cat or a dog?")
    assert which(0, 1, "cat", "dog").endswith("a dog or a cat?")
    texts = ("a street sign.", "It is a board.", "It is not a street sign.", "a dog")
    rows = [{"text": t, "name": "street_sign", "synonyms": ["board_(sign)"]} for t in texts]
    assert ferret_scores.lvis_accuracy(rows) == 0.5
    with pytest.raises(UserError, match="no answers"):
        ferret_scores.lvis_accuracy([])


@pytest.mark.shared
def test_every_class_of_lvis_is_named_by_itself(shared):
    """An answer with the class's own words counts, whatever its name looks like."""
    data = json.loads((shared / "data/lvis_val_100.json").read_text())
    rows = [{"text": f"a {ferret_text.class_names(c['name'], [])[0]}", "name": c["name"],
             "synonyms": c["synonyms"]} for c in data["categories"]]  # fmt: skip
    wrong = [r["name"] for r in rows if not ferret_scores.lvis_accuracy([r])]
    assert len(rows) > 1000 and wrong == []


# -- POPE -------------------------------------------------------------------------------------


def test_pope_is_for_any_reading():
    answers = ["Yes.", "No, it is not.", "Yes", "maybe"]
    labels = ["yes", "no", "no", "yes"]
    found = pope.score(answers, labels, ferret_text.says_yes)
    assert found == {"accuracy": 0.75, "precision": 2 / 3, "recall": 1.0,
                     "f1": pytest.approx(0.8), "yes_ratio": 0.75}  # fmt: skip
    strict = pope.score(answers, labels, {"Yes.": True, "Yes": True, "No, it is not.": False}.get)
    assert strict["accuracy"] == 0.5 and strict["recall"] == 0.5
    assert pope.score(["no"], ["yes"], ferret_text.says_yes)["f1"] == 0.0  # upstream divides by 0
    mean = pope.average({"random": found, "popular": strict})
    assert mean["accuracy"] == 0.625
    with pytest.raises(UserError, match="1 answers to 2"):
        pope.score(["no"], ["no", "yes"], ferret_text.says_yes)


def test_pope_files(tmp_path):
    path = tmp_path / "coco_pope_random.json"
    row = {
        "question_id": 1,
        "image": "a.jpg",
        "text": "Is there a dog in the image?",
        "label": "yes",
    }
    path.write_text(json.dumps(row) + "\n\n")
    assert pope.read_questions(path) == [{**row, "question_id": "1"}]
    path.write_text("{}\n")
    with pytest.raises(UserError, match=r"random.json:1: lacks question_id, image, text, label"):
        pope.read_questions(path)
    with pytest.raises(UserError, match="cannot be read"):
        pope.read_questions(tmp_path / "none")


# -- the general metrics agree ----------------------------------------------------------------


def test_the_iou_is_the_general_one_where_boxes_have_an_area():
    rng = np.random.default_rng(0)
    low = rng.random((20, 2)) * 50
    boxes = np.concatenate([low, low + 1 + rng.random((20, 2)) * 50], 1)
    np.testing.assert_allclose(
        ferret_scores.box_iou(boxes, boxes[::-1]), metrics.iou_matrix(boxes, boxes[::-1])
    )
    assert np.isnan(ferret_scores.box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]])).all()


@pytest.mark.parametrize("size", ["112x112", "672x112"])
def test_every_shape_has_words_to_read(size):
    """Printed words are measured on pictures of all shapes; few small ones show any."""
    data = f"scenes:seed=700001,n=40,size={size},vary=0.2"
    items = tasks.questions(tasks.get("reading"), data)
    assert len(items) == 40 and all(i.reference for i in items)


def test_scenes_of_many_shapes():
    source = open_source("scenes:seed=3,n=200,tasks=mask,size=112x112|672x112|112x672,vary=0.2")
    sizes = {(e.width, e.height) for e in (source[i] for i in range(200))}
    assert len(sizes) > 100
    shapes = [w / h for w, h in sizes]
    assert min(shapes) < 1 / 5 and max(shapes) > 5
    assert all(89 <= min(s) <= 112 for s in sizes)
    example = source[5]
    assert example.pixels().shape[:2] == (example.height, example.width)
    (asked,) = example.meta["refers"]
    region = example.regions[asked]
    mask = region.mask_array()
    assert region.kind == "mask" and mask.shape == (example.height, example.width)
    with pytest.raises(UserError, match="vary=1"):
        open_source("scenes:vary=1.5")
