"""Answers of models as data, and the prompts they answer."""

import pytest

from mg_jax.data.synthesis import prompts, replies
from mg_jax.data.synthesis.replies import Unreadable, marked
from mg_jax.errors import UserError


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1]}',
        'Sure! Here it is:\n```json\n{"a": [1]}\n```\nAnything else?',
        '<think>maybe {"a": [2]}?</think>\n{"a": [1]}',
        'I use {braces} and then {"a": [1]} {"a": [3]}',
        '{"a":\n [1]}\n',
    ],
)
def test_json_is_found_in_chatty_answers(text):
    assert replies.read_json(text) == {"a": [1]}


@pytest.mark.parametrize(
    "text", ["", "no", "[1, 2]", '{"a": [1', "{'a': 1}", "<think>{}", "{" * 2000]
)
def test_what_holds_no_json_object(text):
    with pytest.raises(Unreadable):
        replies.read_json(text)


def test_names_are_words_and_stand_once():
    text = '{"objects": ["Dog", "traffic_light", "dog.", {"name": "Red  car"}, 3, "", "<p>x</p>"]}'
    assert replies.names(text) == ["dog", "traffic light", "red car"]
    with pytest.raises(Unreadable, match='no list "objects"'):
        replies.names('{"objects": "dog"}')


def test_numbers_count_from_one():
    assert [replies.number(x) for x in (1, "2", " [3] ", [4])] == [0, 1, 2, 3]
    for wrong in (True, "a", "1.5", None, [1, 2]):
        with pytest.raises(Unreadable, match="no number"):
            replies.number(wrong)


@pytest.mark.parametrize(
    "text, neutral",
    [
        ("<p>A dog</p>[1] sleeps.", "<p>A dog</p><r:0> sleeps."),
        ("<p>two dogs</p> [1] [3] run.", "<p>two dogs</p><r:0><r:2> run."),
        ("<p>they</p>[1, 3] run", "<p>they</p><r:0><r:2> run"),
        ("What is [2]?", "What is <r:1>?"),
        ("[1] and [2, 3]", "<r:0> and <r:1><r:2>"),
        ("A [sic] text of 3 words.", "A [sic] text of 3 words."),
        ("He wears number 10 and 3 rings.", "He wears number 10 and 3 rings."),
        ("A sign labelled Exit", "A sign labelled Exit"),
        ("Is the object [2] red?", "Is the object <r:1> red?"),
        ("It writes <image> here", "It writes <image > here"),
    ],
)
def test_marks_become_neutral(text, neutral):
    assert marked(text, 3) == neutral


def test_marks_alone_may_be_object_images():
    assert marked("Is [1] on <p>it</p>[2]?", 2, "object") == "Is <object:0> on <p>it</p><r:1>?"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("<p>A dog</p>[4]", r"points at \[4\]"),
        ("[0]", r"points at \[0\]"),
        ("<p>A dog</p> sleeps", "no number behind it"),
        ("<p></p>[1]", "or no words"),
        ("<p>A dog[1] sleeps", "malformed"),
        ("A dog</p>[1]", "malformed"),
        ("A dog [1 sleeps", "malformed"),
        ("<roi><r1></roi>", "malformed"),
        ("See <r:0>", "malformed"),
        ("<p>the man</p>[1] marked 1", "speaks of the numbers"),
        ("Number [2] is red", "speaks of the numbers"),
        ("Object 2 is red", "speaks of the numbers"),
        ("See label [2]", "speaks of the numbers"),
        ("<p>the dog</p>[1] labeled with number 1", "speaks of the numbers"),
        ("Look at the numbered circle.", "speaks of the numbers"),
    ],
)
def test_texts_that_cannot_be_used(text, reason):
    with pytest.raises(Unreadable, match=reason):
        marked(text, 3)


def test_half_a_character_is_unreadable():
    """json reads a lone surrogate; tokenizers do not, months later."""
    row = replies.read_json('{"question": "What \\ud800?", "answer": "\\ud83d\\udc36"}')
    assert replies.text_of(row, "answer") == "\U0001f436"
    with pytest.raises(Unreadable, match="holds half of a character"):
        replies.text_of(row, "question")
    with pytest.raises(Unreadable, match="holds half of a character"):
        marked("<p>dog\udc00</p>[1]", 1)
    assert replies.names('{"objects": ["dog\\udc00", "cat"]}') == ["cat"]


def test_shipped_prompts_are_whole():
    texts = prompts.read_prompts()
    assert set(texts.texts) == set(prompts.PLACEHOLDERS)
    assert {p.stem for p in prompts.FOLDER.glob("*.txt")} == set(prompts.PLACEHOLDERS)
    for name, prompt in texts.texts.items():
        values = {key: f"<<{key}>>" for key in prompts.PLACEHOLDERS[name]}
        filled = str(prompt.fill(values, "data:image/jpeg;base64,xyz"))
        assert "{{" not in filled and "\\n#" not in filled
        for key in prompts.PLACEHOLDERS[name]:
            assert ("base64,xyz" if key == "picture" else f"<<{key}>>") in filled, (name, key)
        assert prompt.sees == ("picture" in prompts.PLACEHOLDERS[name])


def test_a_picture_stands_where_the_prompt_has_it():
    prompt = prompts.Prompt("x", (("system", "s"), ("user", "before {{ picture }} after {{n}}")))
    assert prompt.fill({"n": 3}, "URL") == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [
            {"type": "text", "text": "before"},
            {"type": "image_url", "image_url": {"url": "URL"}},
            {"type": "text", "text": "after 3"},
        ]},
    ]  # fmt: skip
    assert prompt.fill({"n": 3})[1]["content"] == "before\nafter 3"


def test_prompts_of_ones_own(tmp_path):
    copied = prompts.copy_prompts(tmp_path)
    assert len(copied) == len(prompts.PLACEHOLDERS)
    assert prompts.read_prompts(tmp_path).digest == prompts.read_prompts().digest
    for file in copied[1:]:
        file.unlink()
    copied[0].write_text("# mine\n\n[user]\n{{picture}} What is here?\n")
    mine = prompts.read_prompts(tmp_path)
    assert mine[copied[0].stem].messages == (("user", "{{picture}} What is here?"),)
    assert mine.digest != prompts.read_prompts().digest
    assert prompts.copy_prompts(tmp_path) == copied[1:]  # what is there stays
    assert "mine" in copied[0].read_text()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("no head", r"write messages below \[system\]"),
        ("[user]\n\n[assistant]\nx\n[user]\n{{picture}}", "none of them empty"),
        ("[user]\n{{picture}}\n[assistant]\nx", "the last one a user's"),
        ("[user]\n{{picture}} {{objetcs}}", r"unknown placeholder \{\{objetcs\}\}"),
        ("[user]\nno hole", r"lacks the placeholder \{\{picture\}\}"),
    ],
)
def test_malformed_prompts_are_one_line(tmp_path, text, reason):
    (tmp_path / "recognize.txt").write_text(text)
    with pytest.raises(UserError, match=f"recognize.txt: .*{reason}"):
        prompts.read_prompts(tmp_path)


def test_a_folder_without_prompts(tmp_path):
    with pytest.raises(UserError, match="holds none of"):
        prompts.read_prompts(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        prompts.read_prompts(tmp_path / "none")
