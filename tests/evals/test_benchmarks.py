"""How benchmarks read answers: recorded cases of the published code, and its oddities by name."""

import json

import pytest

from mg_jax.errors import UserError
from mg_jax.evals import benchmarks as b


@pytest.mark.shared
def test_recorded_cases(shared):
    path = shared / "golden" / "mg_llava" / "text_metrics" / "golden.json"
    recorded = json.loads(path.read_text())
    for key, read in (
        ("answer_processor", b.vqa_answer),
        ("yorn", b.yes_or_no),
        ("choice", b.choice_letter),
        ("prompt_processor", b.textvqa_question),
    ):
        assert recorded[key] == [[said, read(said)] for said, _ in recorded[key]]
    for said, answers, score in recorded["textvqa_acc"]:
        assert b.textvqa_accuracy(said, answers) == pytest.approx(score, abs=1e-12)
    for case in recorded["anls"]:
        assert [b.edit_share(t, case["pred"]) for t in case["gt"]] == case["match"]
        assert b.anls(case["pred"], case["gt"]) == case["hit"]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The U.S. Navy's ten ships.", "us navy 's 10 ships"),
        ("couldntve", "couldntve"),
        ("couldn'tve, wont, hes", "couldn't've won't he's"),
        ("lets", "lets"),
        ("o'clock oclock", "o'clock o'clock"),
        ("a-b", "b"),
        ("x-y", "x y"),
        ("x - y", "x y"),
        ("1.5.", "1.5"),
        ("." * 40, "." * 8),
        ("3,000", "3000"),
    ],
)
def test_normal_form(text, normal):
    assert b.vqa_answer(text) == normal


def test_every_contraction_lacks_one_apostrophe():
    table = dict(b._CONTRACTIONS)
    assert table.pop("somebody'd") == "somebodyd"
    assert len(table) == 113 and table["itd've"] == table["it'dve"] == "it'd've"
    for spelling, word in table.items():
        assert len(word) == len(spelling) + 1 and word.replace("'", "") == spelling.replace("'", "")


def test_accuracy_leaves_one_out():
    assert b.textvqa_accuracy("2", ["two"] * 3 + ["x"] * 7) == pytest.approx(0.9)
    assert b.textvqa_accuracy("2", ["two"] * 4 + ["x"] * 6) == 1.0
    assert b.textvqa_accuracy("2", ["two"] + ["x"] * 9) == pytest.approx(0.3)
    assert b.textvqa_accuracy("y", ["x"] * 10) == 0.0
    with pytest.raises(UserError, match="10 answers a question, got 9"):
        b.textvqa_accuracy("2", ["two"] * 9)


def test_edit_share():
    assert b.edit_share("kitten", "sitting") == pytest.approx(3 / 7)
    assert b.edit_share("", "") == 0.0
    assert b.edit_share("a b", "a  c") == 0.25  # by the untidied length
    assert b.anls("ab", ["axxx"]) == 0.0
    assert b.anls("ab", ["ax"]) == 0.5
    with pytest.raises(UserError, match="at least one"):
        b.anls("ab", [])


def test_choice_and_yes_or_no():
    assert b.choice_letter("Answer: B") == "A" and b.choice_letter("(E)") == ""
    assert b.yes_or_no("Well... yes.") == "Yes" and b.yes_or_no("no-one") == "No"
    assert b.yes_or_no("yesterday") == b.yes_or_no("yes or no") == "Unknown"


def test_question_of_a_prompt():
    assert b.textvqa_question("Reference OCR token: X\nWho?\nAnswer.") == "who?"
    with pytest.raises(UserError, match="no prompt of TextVQA's file: 'Who"):
        b.textvqa_question("Who?")
    with pytest.raises(UserError, match="no prompt"):
        b.textvqa_question("OCR tokens: a. Who?")
