"""Tasks with fake systems: the oracle gets 1, constants get the baseline, rubbish gets 0."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mg_jax.answer import Answer, Phrase
from mg_jax.errors import UserError
from mg_jax.evals import questions, tasks
from mg_jax.evals.facts import Fact
from mg_jax.evals.locating import place
from mg_jax.evals.wording import names
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup

DATA = "scenes:seed=700001,n=4"
ALL = [name for name, task in tasks.TASKS.items() if task.scenes is not None]


@pytest.fixture(scope="module")
def items():
    """The items of every task."""
    return {name: tasks.questions(tasks.TASKS[name], DATA) for name in ALL}


def run(name, items, fake, **options):
    """The result of a task with a fake system."""
    return tasks.evaluate(
        tasks.TASKS[name], DATA, fake.predict, fake.propose, items=items[name], **options
    )


@pytest.mark.parametrize("name", ALL)
def test_oracle_scores_one(name, items, fake):
    task = tasks.TASKS[name]
    result = run(name, items, fake(items[name]))
    assert result.metrics[task.headline] == 1.0
    assert result.invalid == 0
    if not isinstance(task, Fact):  # four questions have as many answers: see test_facts.py
        assert result.majority[task.headline] < 0.9
    assert set(result.majority) == set(result.metrics)
    assert all(task.right(i, p) for i, p in zip(items[name], result.predictions, strict=True))
    if name in ("rec", "absent"):
        assert result.metrics["absent_accuracy"] == 1.0
        assert result.metrics["false_absent"] == 0.0
    if name == "grounded_caption":
        assert result.metrics["invented"] == 0.0
    assert task.count(items[name]) == 4


NOWHERE = Phrase("", (0, 0), ((float("nan"),) * 4, (9.0, 9.0, 1.0, 1.0)), (0.5,))
RUBBISH = [Answer("qwx zz"), Answer(""), Answer("", (NOWHERE,)), Answer("<p>\x00</p>", (NOWHERE,))]


@pytest.mark.parametrize("name", [n for n in ALL if n != "proposals"])
@pytest.mark.parametrize("rubbish", range(len(RUBBISH)))
def test_rubbish_scores_nothing_and_is_counted(name, rubbish, items, fake):
    answer = RUBBISH[rubbish]
    result = run(name, items, fake(items[name], lambda item: answer))
    if name != "absent":
        assert result.metrics[tasks.TASKS[name].headline] == 0.0
    if not answer.phrases or name in ("presence", "regions"):
        assert result.invalid == len(items[name])


def test_no_proposals_at_all(items, fake):
    one = fake(items["proposals"])
    one.propose = lambda pictures: [([], [])] * len(pictures)
    result = run("proposals", items, one)
    assert result.metrics["ar@100"] == 0.0 and result.metrics["ap50"] == 0.0
    assert result.invalid == len(items["proposals"])


def test_constant_yes_scores_as_the_majority(items, fake):
    result = run("presence", items, fake(items["presence"], lambda item: Answer("Yes, there is.")))
    assert result.metrics == result.majority
    assert result.metrics["accuracy"] == 0.5 and result.metrics["yes_ratio"] == 1.0


def test_always_denying_is_shown_for_what_it_is(items, fake):
    def deny(item):
        return Answer("There is no such thing here.", absent=True)

    rec = run("rec", items, fake(items["rec"], deny))
    assert rec.metrics["absent_accuracy"] == 1.0 and rec.metrics["false_absent"] == 1.0
    assert rec.metrics["acc@0.5"] == 0.0 and rec.metrics["missing"] == 4 and rec.invalid == 0
    absent = run("absent", items, fake(items["absent"], deny))
    assert absent.metrics["accuracy"] == absent.majority["accuracy"] == 0.5


def test_a_denial_with_a_box_is_no_denial(items, fake):
    def both(item):
        return Answer("There is no dog.", (Phrase("", (0, 0), ((0, 0, 9, 9),), (1.0,)),), True)

    assert run("rec", items, fake(items["rec"], both)).metrics["absent_accuracy"] == 0.0


@pytest.mark.parametrize("name", ["rec", "proposals"])
def test_batch_size_changes_nothing(name, items, fake):
    results = []
    for size in (1, 3, 100):
        one = fake(items[name])
        results.append(run(name, items, one, batch_size=size).metrics)
        assert max(one.sizes) <= size and sum(one.sizes) == len(items[name])
    assert results[0] == results[1] == results[2]


def test_a_wrong_number_of_answers_is_an_error(items, fake):
    one = fake(items["rec"])
    one.predict = lambda queries: []
    with pytest.raises(ValueError, match="4 questions, but 0 answers"):
        run("rec", items, one, batch_size=4)


def test_blind_pictures_are_noise_of_the_same_size_every_time(items, fake):
    pictures = []
    for _ in range(2):
        one = fake(items["regions"])
        run("regions", items, one, blind=True)
        pictures.append([query.image for query in one.queries])
    for first, again, item in zip(*pictures, items["regions"], strict=True):
        np.testing.assert_array_equal(first, again)
        assert first.shape == item.picture().shape and first.dtype == np.uint8
        assert first.std() > 60 and (first != item.picture()).mean() > 0.9
    assert (pictures[0][0] != pictures[0][1]).any()


@pytest.mark.parametrize("name", ["rec", "all_instances", "grounded_caption", "presence"])
def test_the_question_does_not_hold_the_answer(name, items):
    for item in items[name]:
        assert item.query().regions == ()
        assert not markup.regions_of(item.query().prompt)


def test_the_question_about_a_region_holds_that_region_alone(items):
    for item in items["regions"]:
        query = item.query()
        assert markup.regions_of(query.prompt) == [0]
        assert query.regions == (item.example.regions[item.record["refers"][0]],)


def test_regions_of_the_question_are_numbered_anew():
    regions = tuple(Region.from_box((0, 0, 0.1 * k, 0.5)) for k in range(1, 5))
    turn = Turn("Is <p>it</p><r:3> like <r:1>, and <object:3>?", "<r:0>")
    example = Example(np.zeros((4, 4, 3), np.uint8), 4, 4, regions, (turn,))
    prompt, asked = questions.asked(example, 0)
    assert prompt == "Is <p>it</p><r:0> like <r:1>, and <object:0>?"
    assert asked == (regions[3], regions[1])


def test_rec_asks_among_rivals(items):
    for item in items["rec"]:
        assert len(item.example.objects) >= 4
        if not item.absent:
            assert item.record["same_shape"] or item.record["same_color"]
    assert sum(item.absent for item in items["rec"]) == 4
    assert len({item.key for item in items["rec"]}) == 8


def test_absent_is_half_and_half(items):
    assert [item.absent for item in items["absent"]] == [False, False, True, True]


def test_options_of_the_data_text_win():
    text = questions.with_options("scenes:seed=7,min_objects=6", {"min_objects": 4, "a": 1}, n=3)
    assert text == "scenes:min_objects=6,a=1,seed=7,n=3"
    found = tasks.questions(tasks.get("rec"), "scenes:seed=700001,n=9,min_objects=6", limit=1)
    assert len(found) == 2 and all(len(i.example.objects) >= 6 for i in found)


def test_scenes_that_may_have_been_trained_on_are_noted():
    assert "700000" in questions.warning("scenes:seed=3,n=2")
    assert questions.warning(DATA) is None
    assert questions.warning("voc:somewhere") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes, there is a red star.", True),
        ("yes", True),
        ("No.", False),
        ("No red star is visible in the picture.", False),
        ("There is no red star in the image.", False),
        ("There is a red star.", True),
        ("Nothing", None),
        ("Yesterday", None),
        ("", None),
        ("A red star.", None),
    ],
)
def test_reading_yes_and_no(text, said):
    assert questions.yes_no(text) is said


@pytest.mark.parametrize(
    ("phrase", "true"),
    [
        ("a red star", True),
        ("red stars", True),
        ("a small red striped star", True),
        ("star", True),
        ("red object", True),
        ("things", True),
        ("a blue star", False),
        ("a red cup", False),
        ("a red blue star", False),
        ("blue thing", False),
        ("red", False),
        ("the background", False),
        ("", False),
    ],
)
def test_what_a_phrase_is_true_of(phrase, true):
    thing = {"shape": "star", "color": "red"}
    assert names(phrase, thing) is true


def test_more_boxes_than_targets_do_not_help(items):
    task = tasks.get("all_instances")
    item = items["all_instances"][0]
    true = task.expected_boxes(item)
    extra = np.concatenate([true + 500, true])
    scores = np.linspace(1, 0.1, len(extra))
    assert dict(task.score([item], [place(extra, scores)]))["as_many_ar"] == 0.0
    assert dict(task.score([item], [place(extra, scores[::-1])]))["as_many_ar"] == 1.0


def test_two_colours_before_a_shape_are_wrong(items, fake):
    def both(item):
        true = item.example.meta["objects"][item.record["object"]]
        other = "red" if true["color"] != "red" else "blue"
        return Answer(f"A {true['color']} {other} {true['shape']}.")

    metrics = run("regions", items, fake(items["regions"], both)).metrics
    assert metrics == {"accuracy": 0.0, "shape": 1.0, "color": 0.0}


# -- other data than scenes ---------------------------------------------------------------------


@pytest.fixture
def photo_file(tmp_path):
    """A jsonl file with one picture and several expressions about it."""
    Image.new("RGB", (100, 80)).save(tmp_path / "a.png")
    row = {
        "image": "a.png",
        "regions": [{"box": [10, 10, 40, 40]}, {"box": [50, 10, 90, 70]}],
        "turns": [
            {"user": "Where is <p>the dog</p>?", "assistant": "<r:0>"},
            {"user": "Where is <p>the cat</p>?", "assistant": "<r:1>"},
            {"user": "Where is <p>the cow</p>?", "assistant": "There is no cow in the image."},
            {"user": "Find all <p>animals</p>.", "assistant": "<r:0><r:1>"},
            {"user": "Is there a cow?", "assistant": "No, there is no cow in the image."},
            {"user": "Is there a dog?", "assistant": "Yes."},
        ],
    }
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({**row, "id": "p"}) + "\n")
    return file


@pytest.mark.parametrize(
    ("name", "count"), [("rec", 3), ("all_instances", 3), ("presence", 2), ("absent", 2)]
)
def test_own_data_is_asked_turn_by_turn(name, count, photo_file, fake):
    task, data = tasks.get(name), f"jsonl:{photo_file}"
    found = tasks.questions(task, data)
    assert len(found) == count
    one = fake(found)
    result = tasks.evaluate(task, data, one.predict, items=found)
    assert result.metrics[task.headline] == 1.0
    assert all(query.history == () for query in one.queries)


def test_expressions_of_one_picture_are_scored_one_by_one(photo_file, fake):
    task, data = tasks.get("rec"), f"jsonl:{photo_file}"
    found = tasks.questions(task, data)
    dog = found[0]
    one = fake(found, lambda item: Answer("", (Phrase("", (0, 0), ((10, 10, 40, 40),), (1.0,)),)))
    result = tasks.evaluate(task, data, one.predict, items=found)
    assert result.metrics["acc@0.5"] == 0.5
    assert [task.right(i, p) for i, p in zip(found, result.predictions, strict=True)] == [
        True,
        False,
        False,
    ]
    assert dog.key == "p/0"


def test_two_examples_of_one_id_are_refused(photo_file):
    photo_file.write_text(photo_file.read_text() * 2)
    with pytest.raises(UserError, match="'p/0'"):
        tasks.questions(tasks.get("rec"), f"jsonl:{photo_file}")


def test_data_without_questions_is_refused(photo_file):
    with pytest.raises(UserError, match="nothing to ask for task grounded_caption"):
        tasks.questions(tasks.get("grounded_caption"), f"jsonl:{photo_file}")
    with pytest.raises(UserError, match="choose from rec"):
        tasks.get("reck")


def test_proposals_on_detection_data_with_a_crowd(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "1.png")
    boxes = [([10, 10, 20, 20], 0), ([40, 0, 60, 50], 1)]
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 50}],
                "categories": [{"id": 1, "name": "cell"}],
                "annotations": [
                    {"id": k, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": crowd,
                     "area": 1}
                    for k, (box, crowd) in enumerate(boxes)
                ],
            }
        )
    )  # fmt: skip
    task, data = tasks.get("proposals"), f"coco:{tmp_path / 'a.json'},{tmp_path}"

    def propose(pictures):
        assert pictures[0].shape == (50, 100, 3)
        in_crowd, right = [45, 5, 60, 20], [10, 10, 30, 30]
        return [(np.asarray([in_crowd, right], np.float32), np.asarray([0.9, 0.8], np.float32))]

    result = tasks.evaluate(task, data, propose=propose)
    assert result.metrics["ar@100"] == 1.0 and result.metrics["ap50"] == 1.0
    assert result.metrics["targets"] == 1.0
    with pytest.raises(UserError, match="nothing to ask"):
        tasks.questions(tasks.get("rec"), data)


def test_evals_need_no_jax():
    code = (
        "import sys, mg_jax.evals.report, mg_jax.evals.tasks as t;"
        "t.questions(t.get('rec'), 'scenes:seed=1,n=1');"
        "assert not {'jax', 'flax', 'mg_jax.models'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
