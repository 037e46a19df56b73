"""Questions about annotated pictures without conversations, with fake systems."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import evaluate
from mg_jax.answer import Answer
from mg_jax.data.sources import open_source
from mg_jax.errors import UserError
from mg_jax.evals import asking, report, tasks
from mg_jax.text import markup

CLASSES = ["cat", "dog", "stop_sign", "person"]
# picture -> (class, box x y w h, crowd); the third has nothing
BOXES = {
    1: [(0, [10, 10, 20, 20], 0), (0, [60, 10, 30, 30], 0), (1, [5, 5, 90, 40], 0)],
    2: [(2, [10, 10, 20, 20], 0), (3, [40, 0, 60, 50], 1), (3, [0, 30, 9, 20], 0)],
    3: [],
    4: [(1, [k, 5, 9, 9 + k], 0) for k in range(14)],
}


@pytest.fixture
def coco(tmp_path):
    for n in BOXES:
        Image.new("RGB", (100, 50), (20 * n, 9, 9)).save(tmp_path / f"{n}.png")
    size = {"width": 100, "height": 50}
    data = {
        "images": [{"id": n, "file_name": f"{n}.png", **size} for n in BOXES],
        "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES)],
        "annotations": [
            {"image_id": n, "category_id": k, "bbox": box, "iscrowd": crowd}
            for n, boxes in BOXES.items()
            for k, box, crowd in boxes
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(data))
    return f"coco:{tmp_path / 'a.json'},{tmp_path}"


@pytest.fixture
def lines(tmp_path):
    """Expressions of pictures, some of what is not there."""
    Image.new("RGB", (100, 50)).save(tmp_path / "p.png")
    rows = [("the left dog", [10, 10, 30, 30]), ("the right dog", [50, 0, 90, 50.0]),
            ("the cow", None), ("a horse", None), ("a dog", [10, 10, 30, 30]),
            ("A dog", [50, 0, 90, 50])]  # fmt: skip
    row = {"file_name": "p.png", "width": 100, "height": 50, "has_photo": True}
    path = tmp_path / "lines.jsonl"
    path.write_text(
        "".join(json.dumps({**row, "expression": t, "bbox_xyxy": b}) + "\n" for t, b in rows)
    )
    return f"rec_lines:{path},{tmp_path},per=picture"


def run(name, data, fake, rule=None, **options):
    """(items, result) of a task with a fake system."""
    found = tasks.questions(tasks.get(name), data)
    one = fake(found, rule) if rule else fake(found)
    return found, tasks.evaluate(
        tasks.get(name), data, one.predict, one.propose, items=found, **options
    )


def said(items):
    return [(i.example.turns[i.turn].user, i.reference) for i in items]


def text(answer):
    return lambda item: Answer(answer, absent=markup.says_absent(answer))


ASKED = ["naming", "presence", "absent", "all_instances"]


@pytest.mark.parametrize("name", ASKED)
def test_perfect_majority_and_rubbish(name, coco, fake):
    task = tasks.get(name)
    items, result = run(name, coco, fake)
    assert result.metrics[task.headline] == 1.0 and result.invalid == 0
    assert set(result.majority) == set(result.metrics)
    assert 0 < result.majority[task.headline] < 0.95
    assert all(task.right(i, p) for i, p in zip(items, result.predictions, strict=True))
    for answer in ("", "\x00 <p>", "qwx"):
        _, worst = run(name, coco, fake, text(answer))
        assert worst.invalid == len(items)
        assert worst.metrics[task.headline] == (0.5 if name == "absent" else 0.0)


def test_naming_asks_for_boxes_and_hides_their_labels(coco, fake):
    items, result = run("naming", coco, fake)
    assert len(items) == 3 + 2 + asking.BOXES  # the crowd and the rest of picture 4 are not asked
    again = tasks.questions(tasks.get("naming"), coco)
    assert [i.key for i in items] == [i.key for i in again]
    for item in items:
        query = item.query()
        assert query.prompt == "What is <r:0>?" and query.regions[0].label is None
        assert [query.regions[0].box] == [
            r.box for r in item.example.objects if r.box == query.regions[0].box
        ]
        np.testing.assert_allclose(
            tasks.get("naming").expected_boxes(item), item.pixel_boxes(query.regions)
        )
    assert result.metrics["classes"] == 4
    assert result.metrics["accuracy/stop sign"] == 1.0


def test_naming_counts_classes_and_what_names_none(coco, fake):
    _, result = run("naming", coco, fake, text("Two puppies."))
    got = result.metrics
    assert got == result.majority and got["accuracy"] == pytest.approx(11 / 15)
    assert got["class_accuracy"] == 0.25 and got["accuracy/dog"] == 1.0
    _, result = run("naming", coco, fake, text("There is no dog in the image."))
    assert result.invalid == 15 and result.metrics["accuracy"] == 0.0
    line = report.as_dict(result)
    assert line["classes"] == 4 and line["majority"] == pytest.approx(11 / 15, abs=1e-6)


def test_classes_are_those_of_the_whole_set_whatever_the_limit(coco):
    (item,) = tasks.questions(tasks.get("naming"), coco, limit=1)
    assert item.record["classes"].names == ("cat", "dog", "person", "stop sign")
    part = tasks.questions(tasks.get("naming"), f"{coco},part=train")
    assert part[0].record["classes"].names == ("cat", "dog", "person", "stop sign")


def test_a_class_with_a_crowd_is_not_located(coco, fake):
    items, result = run("all_instances", coco, fake)
    assert [u for u, _ in said(items)] == [
        f"Locate all <p>{name}</p> in this image." for name in ("cat", "dog", "stop sign", "dog")
    ]
    assert [len(i.targets) for i in items] == [2, 1, 1, 14]
    assert result.metrics["ar"] == 1.0 and result.metrics["targets"] == 4.5


def test_only_what_the_data_set_calls_absent_is_asked_as_absent(coco):
    for name in ("presence", "absent"):
        items = tasks.questions(tasks.get(name), coco)
        absent = [i for i in items if i.record["absent"]]
        assert len(absent) * 2 == len(items) > 4
        for item in items:
            question = said([item])[0][0]
            asked = [c for c in CLASSES if re.search(rf"\b{c.replace('_', ' ')}\b", question)]
            there = {r.label for r in (*item.example.objects, *item.example.crowd)}
            assert (asked[0] in there) is not item.record["absent"]
        with pytest.raises(UserError, match="nothing to ask"):
            tasks.questions(tasks.get(name), f"{coco},exhaustive=no")


def test_constant_answers_score_one_half(coco, fake):
    _, yes = run("presence", coco, fake, text("Yes."))
    assert yes.metrics["accuracy"] == 0.5 and yes.metrics["yes_ratio"] == 1.0
    _, deny = run("absent", coco, fake, text("There is no such thing here."))
    assert deny.metrics["accuracy"] == 0.5 == deny.majority["accuracy"]
    assert deny.metrics["false_absent"] == deny.metrics["absent_accuracy"] == 1.0


def test_expressions_with_and_without_region(lines, fake):
    (example,) = open_source(lines)
    assert [e.regions for e in example.expressions] == [(0,), (1,), (), (), (0,), (1,)]
    items, result = run("rec", lines, fake)
    assert [u for u, _ in said(items)] == [
        f"Locate <p>{t}</p> in the image."
        for t in ("the left dog", "the right dog", "the cow", "a horse")
    ]  # "a dog" is ambiguous
    assert said(items)[3][1] == "There is no horse in the image."
    assert result.metrics["acc@0.5"] == result.metrics["absent_accuracy"] == 1.0
    assert result.metrics["n_absent"] == 2 and tasks.get("rec").count(items) == 2
    assert all(not i.query().regions for i in items)
    items, result = run("absent", lines, fake)
    assert [i.absent for i in items] == [False, False, True, True]
    assert result.metrics["accuracy"] == 1.0


def test_as_many_of_each_form_are_absent(tmp_path):
    """Of expressions that are all there and classes that are not, nothing can be asked."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "regions": [{"box": [0, 0, 4, 4]}],
         "expressions": [{"text": "the thing", "regions": [0]}], "absent": ["cow"]},
        {"image": "a.png", "objects": [{"box": [0, 0, 4, 4], "label": "dog"}], "absent": ["cow"]},
        {"image": "a.png", "expressions": [{"text": "the sky", "regions": []}]},
    ]  # fmt: skip
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows[:1])))
    with pytest.raises(UserError, match="nothing to ask"):
        tasks.questions(tasks.get("absent"), f"jsonl:{file}")
    file.write_text("\n".join(map(json.dumps, rows)))
    items = tasks.questions(tasks.get("absent"), f"jsonl:{file}")
    assert [(i.example.id, i.absent) for i in items] == [
        ("mine-1", False), ("mine-2", False), ("mine-2", True), ("mine-3", True),
    ]  # fmt: skip


def test_conversations_win_over_annotations(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    row = {"image": "a.png", "objects": [{"box": [0, 0, 4, 4], "label": "dog"}],
           "absent": ["cow"], "turns": [{"user": "Is it red?", "assistant": "No."}]}  # fmt: skip
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row))
    assert said(tasks.questions(tasks.get("presence"), f"jsonl:{file}")) == [("Is it red?", "No.")]
    with pytest.raises(UserError, match="nothing to ask"):
        tasks.questions(tasks.get("all_instances"), f"jsonl:{file}")


@pytest.mark.parametrize("name", ["naming", "detection"])
def test_scenes_are_refused(name):
    with pytest.raises(UserError, match=f"task {name} is for annotated pictures"):
        tasks.questions(tasks.get(name), "scenes:seed=700001,n=2")


def test_recall_of_each_class(coco, fake):
    _, result = run("proposals", coco, fake)
    assert result.metrics["class_recall@0.5"] == 1.0 == result.metrics["recall@0.5/cat"]
    items = tasks.questions(tasks.get("proposals"), coco)

    def dogs(pictures):
        own = iter(items)
        found = []
        for _ in pictures:
            item = next(own)
            boxes = item.pixel_boxes(tuple(r for r in item.example.objects if r.label == "dog"))
            found.append((boxes, np.ones(len(boxes))))
        return found

    got = tasks.evaluate(tasks.get("proposals"), coco, propose=dogs, items=items).metrics
    assert got["recall@0.5/dog"] == 1.0 and got["recall@0.5/stop sign"] == 0.0
    assert got["class_recall@0.5"] == 0.25 and got["recall@0.5"] == 15 / 19


class Detector:
    """Proposes the annotated boxes and the crowd, names them by their labels or by a rule."""

    def __init__(self, items, rule=lambda label: label):
        self.pictures, self.asked = [], []
        self._items, self._labels, self._rule = iter(items), [], rule

    def propose(self, pictures):
        found = []
        for picture in pictures:
            self.pictures.append(picture)
            example = next(self._items).example
            regions = (*example.objects, *example.crowd)
            size = np.tile([example.width, example.height], 2)
            boxes = np.asarray([r.box for r in regions]) * size
            nowhere = [[float("nan")] * 4, [30, 30, 10, 10], [200, 60, 300, 90]]
            scores = np.linspace(0.9, 0.5, len(regions))
            self._labels += [r.label for r in regions]
            found.append((np.concatenate([boxes, nowhere]), np.append(scores, [1.0, 1.0, 1.0])))
        return found

    def predict(self, queries):
        self.asked += queries
        return [Answer(self._rule(self._labels.pop(0))) for _ in queries]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_detection_names_every_sound_box(batch_size, coco):
    task, items = tasks.get("detection"), tasks.questions(tasks.get("detection"), coco)
    one = Detector(items)
    result = tasks.evaluate(
        task, coco, one.predict, one.propose, items=items, batch_size=batch_size
    )
    assert len(one.asked) == 20 and all(q.prompt == "What is <r:0>?" for q in one.asked)
    got = result.metrics
    assert got["map50"] == 1.0 == got["named"]  # the crowd's box counts neither way
    assert {k for k in got if k.startswith("ap50/")} == {
        "ap50/cat", "ap50/dog", "ap50/person", "ap50/stop sign"
    }  # fmt: skip
    assert result.invalid == 0 and set(result.majority) == set(got)
    assert all(task.right(i, p) for i, p in zip(items, result.predictions, strict=True))


def test_detections_of_a_wrong_class_are_false(coco):
    task, items = tasks.get("detection"), tasks.questions(tasks.get("detection"), coco)

    def measured(rule, **options):
        one = Detector(items, rule)
        result = tasks.evaluate(task, coco, one.predict, one.propose, items=items, **options)
        return result.metrics, one

    got, _ = measured(lambda label: "dog")
    assert 0.6 < got["ap50/dog"] < 1.0 and got["ap50/cat"] == 0.0
    assert got["map50"] == got["ap50/dog"] / 4
    got, _ = measured(lambda label: "\x00 qwx")
    assert got["map50"] == 0.0 == got["named"] and got["boxes"] == 20 / 3
    _, one = measured(lambda label: label, blind=True)
    assert all(picture.std() > 60 for picture in one.pictures)
    assert one.asked[0].image is one.pictures[0]


def test_detection_without_proposals(coco):
    task = tasks.get("detection")

    def nothing(pictures):
        return [([], [])] * len(pictures)

    result = tasks.evaluate(task, coco, lambda queries: [], nothing)
    assert result.metrics["map50"] == 0.0 and result.invalid == 3
    with pytest.raises(ValueError, match="needs predict and propose"):
        tasks.evaluate(task, coco, propose=nothing)


def test_blind_questions_have_noise(coco, fake):
    found = tasks.questions(tasks.get("naming"), coco)
    one = fake(found)
    tasks.evaluate(tasks.get("naming"), coco, one.predict, items=found, blind=True)
    assert all(q.image.shape == (50, 100, 3) and q.image.std() > 60 for q in one.queries)


def test_the_command(coco, fake, monkeypatch, capsys, tmp_path):
    found = tasks.questions(tasks.get("naming"), coco)
    one = fake(found, text("a dog"))

    class Assistant:
        propose, system = one.propose, SimpleNamespace(name="groma")

        def answer(self, queries, *, max_new_tokens, batch_size):
            return one.predict(queries)

    monkeypatch.setattr(mg_jax, "load", lambda checkpoint: Assistant(), raising=False)
    out = tmp_path / "wrong"
    evaluate.main(["--task", "naming", "--data", coco, "--json", "--out", str(out)])
    line = json.loads(capsys.readouterr().out)
    assert line["n"] == 15 and line["accuracy"] == line["majority"] == pytest.approx(11 / 15, 1e-4)
    rows = [json.loads(row) for row in (out / "failures.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and rows[0]["expected"] == "Cat"
    assert np.asarray(rows[0]["expected_boxes"]).shape == (1, 4)
    assert (out / rows[0]["picture"]).is_file()


@pytest.mark.shared
@pytest.mark.parametrize("name", [*ASKED, "proposals"])
def test_photos(name, shared, fake):
    mini = shared / "data/coco_mini"
    data = f"coco:{mini / 'instances.json'},{mini / 'images'},part=heldout"
    task = tasks.get(name)
    items = tasks.questions(task, data)
    assert task.count(items) >= 50
    some = items[::8]  # photos take long to decode
    one = fake(some)
    result = tasks.evaluate(task, data, one.predict, one.propose, items=some)
    assert result.metrics[task.headline] == 1.0 and result.invalid == 0
    assert result.majority[task.headline] < 0.75
    if name == "naming":
        assert result.metrics["classes"] == 80


@pytest.mark.shared
def test_expressions_of_photos(shared, fake):
    mini = shared / "data/coco_mini"
    data = f"rec_lines:{mini / 'referring.jsonl'},{mini / 'images'}"
    items, result = run("rec", data, fake)
    assert len(items) == 20 and result.metrics["n_absent"] == 1
    assert result.metrics["acc@0.5"] == 1.0 == result.metrics["absent_accuracy"]
    assert open_source(data).counts["pictures without a file"] == 478
