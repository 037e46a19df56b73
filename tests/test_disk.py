"""Names given last, room claimed in time, and JSON that may be broken."""

import errno
import os
from pathlib import Path

import pytest

from mg_jax import disk
from mg_jax.checkpoint import save_release
from mg_jax.errors import UserError, shown, some


def folder(path, content):
    path.mkdir()
    (path / "x").write_text(content)
    return path


def test_a_finished_folder_takes_the_name_and_nothing_else_goes(tmp_path):
    folder(tmp_path / "r.old", "mine")
    disk.replace(folder(tmp_path / "part", "1"), tmp_path / "r")
    disk.replace(folder(tmp_path / "part", "2"), tmp_path / "r")
    assert (tmp_path / "r" / "x").read_text() == "2"
    assert (tmp_path / "r.old" / "x").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "r.old"]


def test_what_was_there_comes_back_when_the_successor_cannot(tmp_path, monkeypatch):
    part, there = folder(tmp_path / "part", "new"), folder(tmp_path / "r", "old")
    real = Path.rename

    def rename(self, target):
        if self == part:
            raise OSError("no")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="no"):
        disk.replace(part, there)
    assert (there / "x").read_text() == "old" and (part / "x").read_text() == "new"


def test_a_release_leaves_a_neighbour_named_old_alone(tmp_path):
    folder(tmp_path / "r.old", "mine")
    for _ in range(2):
        save_release(tmp_path / "r", {}, {"system": "fake", "model": {}})
    assert (tmp_path / "r.old" / "x").read_text() == "mine"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff", '{"a": ' + "9" * 5000 + "}", "[]"])
def test_json_that_is_no_object_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"a\.json: (cannot be read|holds no JSON object)"):
        disk.read_json(tmp_path / "a.json")


def test_names_in_messages_are_few_short_and_printable():
    assert some(list("abc"), 3) == ["a", "b", "c"]
    assert some(list("abcde"), 3) == ["a", "b", "c", "... and 2 more"]
    assert shown("a.weight") == "a.weight" and shown("a\x1b[2J") == r"'a\x1b[2J'"
    assert len(shown("x" * 100_000)) < 500


def test_lines_of_json(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "b": "x\u2028y"}\n\n{"a": 2, "b": 3}', encoding="utf-8")
    assert disk.read_json_lines(path, "a", "b") == [{"a": 1, "b": "x\u2028y"}, {"a": 2, "b": 3}]
    for text, message in (
        ('{"a": 1}\n[1]', r"a\.jsonl:2: no JSON object"),
        ('{"a": 1}\n{', r"a\.jsonl:2: no JSON object \(Expecting"),
        ('\n{"b": 1}', r"a\.jsonl:2: lacks a, c"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            disk.read_json_lines(path, "a", *(["c"] if "lacks" in message else []))
    with pytest.raises(UserError, match="none: cannot be read"):
        disk.read_json_lines(tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot")
def test_holes_of_a_file_get_their_room(tmp_path, monkeypatch):
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.write(b"head")
        file.truncate(1 << 20)
    before = path.stat().st_blocks
    disk.reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20 > before * 512
    assert path.read_bytes() == b"head" + bytes((1 << 20) - 4)

    def fails(code):
        def call(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "posix_fallocate", call)
        with disk.disk_errors(path):
            disk.reserve(path)

    fails(errno.EOPNOTSUPP)
    with pytest.raises(UserError, match="a: the disk is full"):
        fails(errno.ENOSPC)
