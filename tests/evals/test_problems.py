"""What evaluation does with malformed examples and pictures that cannot be read."""

import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image

import mg_jax
from launch import evaluate
from mg_jax.answer import Answer
from mg_jax.errors import UserError
from mg_jax.evals import tasks


@pytest.fixture
def spoiled(tmp_path):
    """Forty lines, one with a box reversed; the picture of another is cut off."""
    rows = []
    for n in range(40):
        Image.new("RGB", (60, 40), (n, 0, 0)).save(tmp_path / f"{n}.jpg")
        box = [30, 5, 5, 30] if n == 7 else [5, 5, 30, 30]
        objects = [{"box": box, "label": "cat"}]
        rows.append({"image": f"{n}.jpg", "id": str(n), "width": 60, "height": 40,
                     "objects": objects, "expressions": []})  # fmt: skip
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{tmp_path / 'a.jsonl'}"


@pytest.mark.parametrize("name", ["naming", "all_instances", "proposals"])
def test_malformed_examples_are_left_out_told_and_limited(name, spoiled):
    problems: list[str] = []
    items = tasks.questions(tasks.get(name), f"{spoiled},max_bad=0.05", problems=problems)
    assert sorted(i.example.id for i in items) == sorted(set(map(str, range(40))) - {"3", "7"})
    assert len(problems) == 2  # each once, however often the task looks
    assert "3.jpg" in problems[0] and "a.jsonl:8: objects[0]" in problems[1]
    with pytest.raises(UserError, match=r"3\.jpg.*\(2 of 40 examples of a cannot be used"):
        tasks.questions(tasks.get(name), f"{spoiled},max_bad=0.04")


def test_the_command_says_what_it_left_out(spoiled, monkeypatch, capsys):
    class Assistant:
        def answer(self, queries, **options):
            return [Answer("Cat", (), False, width=60, height=40) for _ in queries]

        propose, system = None, SimpleNamespace(name="groma")

    monkeypatch.setattr(mg_jax, "load", lambda checkpoint: Assistant(), raising=False)
    evaluate.main(["--task", "naming", "--data", spoiled, "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 38
    assert len(re.findall("^left out: ", err, re.M)) == 2
