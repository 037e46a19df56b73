"""The journal, and the engine that fills it."""

import json
import threading
import time

import pytest

from mg_jax.data.synthesis import engine
from mg_jax.data.synthesis.client import Failed, Stopped
from mg_jax.data.synthesis.journal import Journal
from mg_jax.data.synthesis.work import Item
from mg_jax.errors import BadRecord, UserError

SETTINGS = {"model": "m", "limit": 0.3, "tags": ("a", "b")}


def items(count):
    return [Item(f"{n}.png", lambda: None) for n in range(count)]


def test_what_is_noted_is_there_again(tmp_path):
    path = tmp_path / "out" / "journal.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.note_answer("q1", "a.png", "relate", "text", "stop")
        journal.note_done("a.png", {"rows": [1]})
        journal.note_done("a.png", {"rows": [2]})  # once
    content = path.read_text()
    with path.open("a") as file:
        file.write('{"item": "torn", "outc')
    with Journal(path, SETTINGS) as journal:
        assert path.read_text() == content
        assert journal.answer("q1") == ("text", "stop") and journal.answer("q2") is None
        assert "a.png" in journal and "torn" not in journal and len(journal) == 1
        assert journal.outcome("a.png") == {"rows": [1]}
        journal.note_done("b.png", {"rows": []})
        assert journal.outcome("a.png") == {"rows": [1]}
        assert journal.outcome("b.png") == {"rows": []}


def test_other_settings_are_refused_or_redone(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.note_answer("q1", "a.png", "relate", "text", "stop")
        journal.note_done("a.png", {})
    other = SETTINGS | {"limit": 0.4, "tags": ()}
    with (
        pytest.raises(UserError, match="begun with another limit, tags.*--redo.*--overwrite"),
        Journal(path, other),
    ):
        pass
    with Journal(path, other, redo=True) as journal:
        assert len(journal) == 0 and journal.answer("q1") == ("text", "stop")
        journal.note_done("a.png", {"n": 1})
    with Journal(path, other, redo=True) as journal:
        assert len(journal) == 0 and journal.answer("q1") == ("text", "stop")  # same settings too
    with Journal(path, SETTINGS, overwrite=True) as journal:
        assert len(journal) == 0 and journal.answer("q1") is None


def test_one_run_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    with (
        Journal(tmp_path / "j", SETTINGS),
        pytest.raises(UserError, match="another run is writing it"),
    ):
        Journal(tmp_path / "j", SETTINGS, overwrite=True)
    Journal(tmp_path / "j", SETTINGS).close()


@pytest.mark.parametrize("content", ["hello\n", "[1]\n", '{"x": 1}\n', '{"item": "a"}\n'])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "j").write_text(content)
    with pytest.raises(UserError, match="--overwrite"):
        Journal(tmp_path / "j", SETTINGS)
    assert (tmp_path / "j").read_text() == content


def test_every_item_is_finished_once_by_many_threads(tmp_path):
    made = []

    def make(item):
        time.sleep(0.001)
        made.append(item.key)
        return {"key": item.key}

    moved = []
    with Journal(tmp_path / "j", {}) as journal:
        journal.note_done("3.png", {"key": "before"})
        tally = engine.run(
            items(50), make, journal, threading.Event(), parallel=8, advance=moved.append
        )
        assert (tally.before, tally.finished, tally.error) == (1, 49, None)
        assert sum(moved) == 50 and sorted(made) == sorted(
            {f"{n}.png" for n in range(50)} - {"3.png"}
        )
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert len([line for line in lines if "item" in line]) == 50


def test_failures_and_bad_pictures_do_not_end_the_run(tmp_path):
    def make(item):
        n = int(item.key.partition(".")[0])
        if n % 3 == 1:
            raise Failed("500")
        if n % 3 == 2:
            raise BadRecord("cut off")
        return {}

    with Journal(tmp_path / "j", {}) as journal:
        tally = engine.run(items(9), make, journal, threading.Event(), parallel=2)
    assert tally.finished == 3 and tally.error is None
    assert sorted(tally.failed) == [(f"{n}.png", "500") for n in (1, 4, 7)]
    assert sorted(tally.bad) == [(f"{n}.png", "cut off") for n in (2, 5, 8)]


@pytest.mark.parametrize("error", [UserError("no key"), ZeroDivisionError("bug")])
def test_an_error_ends_the_run_and_what_is_done_stays(tmp_path, error):
    def make(item):
        n = int(item.key.partition(".")[0])
        if n == 2:
            raise error
        if n > 2 and stop.wait(30):
            raise Stopped
        return {}

    stop = threading.Event()
    with Journal(tmp_path / "j", {}) as journal:
        tally = engine.run(items(500), make, journal, stop, parallel=1)
        assert tally.error is error and stop.is_set()
        assert len(journal) == tally.finished == 2


def test_an_endpoint_that_fails_on_everything_is_left(tmp_path):
    def make(item):
        time.sleep(0.02)
        raise Failed("502 bad gateway")

    stop = threading.Event()
    with Journal(tmp_path / "j", {}) as journal:
        tally = engine.run(items(500), make, journal, stop, parallel=2, patience=5)
    assert isinstance(tally.error, UserError) and 5 <= len(tally.failed) < 50
    assert "failed on 5 pictures one after the other, last: 502 bad gateway" in str(tally.error)


def test_what_ends_after_an_interrupt_is_kept(tmp_path):
    """The bar raises for as long as it knows of Ctrl-C, also where a picture ends afterwards."""
    stop, ended = threading.Event(), []

    def make(item):
        if item.key != "0.png":  # under way when the first one moves the bar
            assert stop.wait(30)
        ended.append(item.key)
        return {}

    def bar(count):
        if count:
            raise KeyboardInterrupt

    with Journal(tmp_path / "j", {}) as journal:
        tally = engine.run(items(500), make, journal, stop, parallel=3, advance=bar)
        assert isinstance(tally.error, KeyboardInterrupt) and stop.is_set()
        assert 3 <= tally.finished == len(ended) == len(journal) <= 4
