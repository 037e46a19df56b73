"""The command line of evaluation, with a fake assistant."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

import mg_jax
from launch import cli, evaluate
from mg_jax.answer import Answer
from mg_jax.evals import report, tasks

DATA = "scenes:seed=700001,n=4"


@pytest.fixture
def assistant(monkeypatch, fake):
    """Makes mg_jax.load return a system that answers by a rule; call it with task and rule."""

    def make(name, rule=None, data=DATA, limit=None):
        found = tasks.questions(tasks.get(name), data, limit)
        one = fake(found, rule) if rule else fake(found)

        class Assistant:
            system = SimpleNamespace(name="groma")

            def answer(self, queries, *, max_new_tokens, batch_size):
                assert max_new_tokens == tasks.get(name).max_new_tokens
                assert len(queries) <= batch_size
                return one.predict(queries)

            def propose(self, images):
                return one.propose(images)

        monkeypatch.setattr(mg_jax, "load", lambda checkpoint: Assistant(), raising=False)
        return one

    return make


KEYS = {
    "rec": {"acc@0.5", "mean_iou", "missing", "absent_accuracy", "false_absent", "n_absent"},
    "regions": {"accuracy", "shape", "color"},
    "presence": {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "yes_ratio"},
    "all_instances": {"as_many_ar", "recall@0.5", "as_many_ar/several", "ar", "boxes", "targets"},
    "proposals": {"ar@100", "recall@0.5", "ap50", "boxes", "targets"},
    "grounded_caption": {"phrase_recall", "invented", "wrong_words", "phrases"},
    "absent": {"accuracy", "absent_accuracy", "false_absent", "n_absent"},
}
COMMON = {"task", "checkpoint", "data", "blind", "n", "invalid", "majority", "seconds"}


@pytest.mark.parametrize("name", list(KEYS))
def test_one_json_line(name, assistant, capsys):
    assistant(name)
    evaluate.main(["--checkpoint", "some", "--task", name, "--data", DATA, "--json"])
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err == ""
    line = json.loads(out)
    assert KEYS[name] | COMMON <= set(line)
    assert line["task"] == name and line["checkpoint"] == "some" and line["data"] == DATA
    assert line["n"] == 4 and line["invalid"] == 0 and line["seconds"] >= 0
    assert line[tasks.get(name).headline] == 1.0 > line["majority"]


def test_the_table_has_the_majority_beside_each_number(assistant, capsys):
    assistant("presence")
    evaluate.main(["--task", "presence", "--data", DATA, "--blind"])
    out = capsys.readouterr().out
    rows = {r.split()[0]: r.split()[1:] for r in out.splitlines()[2:]}
    assert rows["accuracy"] == ["1.0000", "0.5000"]
    assert rows["invalid"] == ["0"]
    assert "groma-tiny" in out and "blind" in out and "always yes" in out


def test_a_missing_number_is_null(assistant, capsys):
    assistant("all_instances", limit=1, data="scenes:seed=700001,n=9,max_objects=1,min_objects=1")
    evaluate.main(["--task", "all_instances", "--json", "--limit", "1",
                   "--data", "scenes:seed=700001,n=9,max_objects=1,min_objects=1"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["as_many_ar/several"] is None


def test_examples_and_failures(assistant, capsys, tmp_path):
    assistant("rec", lambda item: Answer("It is over there."))
    evaluate.main(["--task", "rec", "--data", DATA, "--json", "--examples", "2",
                   "--out", str(tmp_path / "new")])  # fmt: skip
    out, err = capsys.readouterr()
    assert json.loads(out)["invalid"] == 8
    assert err.count("WRONG") == 2 and "It is over there." in err and "expected: <r:0> [" in err
    rows = [json.loads(r) for r in (tmp_path / "new" / "failures.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(not row["right"] for row in rows)
    with Image.open(tmp_path / "new" / rows[0]["picture"]) as picture:
        assert picture.width >= 224


def test_right_answers_are_not_drawn(assistant, capsys, tmp_path):
    assistant("grounded_caption")
    evaluate.main(["--task", "grounded_caption", "--data", DATA, "--out", str(tmp_path)])
    assert [p.name for p in tmp_path.iterdir()] == ["failures.jsonl"]


def test_seeds_of_training_are_noted(assistant, capsys):
    assistant("presence", data="scenes:seed=5,n=2")
    evaluate.main(["--task", "presence", "--data", "scenes:seed=5,n=2", "--json"])
    out, err = capsys.readouterr()
    assert err.startswith("note: ") and json.loads(out)["n"] == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--task", "rec", "--data", "scenes:seed=x"], "seed=x"),
        (["--task", "rec", "--data", "nowhere:1"], "nowhere"),
        (["--task", "rec", "--data", "voc:/no/such/folder"], "/no/such/folder"),
        (["--task", "rec", "--batch-size", "0"], "--batch-size 0"),
        (["--task", "rec", "--data", DATA, "--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, named, capsys):
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: evaluate.main(words))
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1


def test_help_names_every_task(capsys):
    with pytest.raises(SystemExit) as left:
        evaluate.main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in tasks.TASKS)


def test_progress_goes_to_stderr_and_leaves_the_result_alone(capsys, fake):
    task = tasks.get("presence")
    items = tasks.questions(task, DATA)
    results = [
        tasks.evaluate(task, DATA, fake(items).predict, items=items, batch_size=3, progress=show)
        for show in (True, False)
    ]
    out, err = capsys.readouterr()
    assert out == "" and "presence" in err and "4/4" in err
    first, second = (report.as_dict(r) for r in results)
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
