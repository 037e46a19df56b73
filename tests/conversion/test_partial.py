"""Interrupted conversions, full disks, and two at a time: no half folder ever loads."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest

import conversion
import mg_jax
from conversion import export, output, partial, stream
from conversion.partial import Partial
from mg_jax import checkpoint
from mg_jax.errors import UserError
from tests.conversion.folders import assert_same, read_folder, write_folder


@pytest.fixture
def pieces(monkeypatch):
    """Large releases, small pieces and shards."""
    monkeypatch.setattr(checkpoint, "SMALL", 0)
    monkeypatch.setattr(stream, "HELD", 1 << 12)
    monkeypatch.setattr(export, "SHARD", 10_000)


def stop_after(count):
    """An `advance` that is interrupted once `count` bytes are done, and what it was told."""
    told = []

    def advance(done):
        told.append(done)
        if sum(told) >= count:
            raise KeyboardInterrupt

    return advance


def nothing_loads(path):
    """Neither the target nor the folder on its way opens as anything."""
    assert not path.exists()
    half = path.with_name(path.name + partial.SUFFIX)
    assert half.is_dir()
    for opened in (checkpoint.open_release, mg_jax.load, conversion.load):
        with pytest.raises(UserError):
            opened(half)


def test_an_interrupted_import_continues(pieces, tmp_path):
    write_folder(tmp_path / "a", "llama")
    whole = conversion.convert(tmp_path / "a", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(tmp_path / "a", tmp_path / "b", advance=stop_after(15_000))
    nothing_loads(tmp_path / "b")
    job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    said, told, before = [], [], []
    job.run(said.append, told.append, before.append)
    assert len(said) == 1 and said[0].startswith("continuing: ")
    done = int(said[0].split()[1])
    assert 0 < done < len(job.shapes) and f"of {len(job.shapes)} parts" in said[0]
    assert 0 < before[0] < job.nbytes and before[0] + sum(told) == job.nbytes
    assert job.check().ok
    assert (
        not (tmp_path / "b.converting").exists() and not (tmp_path / "b" / "journal.jsonl").exists()
    )
    a, b = (checkpoint.load_release(folder)[1] for folder in (whole, tmp_path / "b"))
    np.testing.assert_array_equal(a["lm"]["head"]["kernel"], b["lm"]["head"]["kernel"])


def test_arrays_that_are_there_are_not_written_again(pieces, tmp_path, monkeypatch):
    write_folder(tmp_path / "a", "llama")
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(tmp_path / "a", tmp_path / "b", advance=stop_after(15_000))
    lines = (tmp_path / "b.converting" / partial.JOURNAL).read_text().splitlines()[1:]
    there = [json.loads(line) for line in lines]
    made = []
    real = stream._create
    monkeypatch.setattr(
        stream, "_create", lambda folder, *rest: made.append(str(folder)) or real(folder, *rest)
    )
    job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    job.run()
    assert there and len(made) == len(job.shapes) - len(there)
    assert not any(path.endswith(name) for path in made for name in there)


def test_an_interrupted_export_continues_by_shard(pieces, tmp_path):
    state = write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(release, tmp_path / "c", advance=stop_after(25_000))
    nothing_loads(tmp_path / "c")
    said = []
    conversion.convert(release, tmp_path / "c", check=True, say=said.append)
    assert said[0] == "continuing: 3 of 15 parts are there"
    assert_same(read_folder(tmp_path / "c"), state)
    assert not list((tmp_path / "c").glob("*.part"))


def test_another_conversion_starts_clean_and_says_so(pieces, tmp_path):
    write_folder(tmp_path / "a", "llama")
    for change in ({"dtype": "bf16"}, "touch"):
        with pytest.raises(KeyboardInterrupt):
            conversion.convert(tmp_path / "a", tmp_path / "b", advance=stop_after(15_000))
        (tmp_path / "b.converting" / "litter").write_text("x")
        if change == "touch":  # the source is another one now
            os.utime(tmp_path / "a" / "model.safetensors", (1, 1))
            change = {}
        said = []
        conversion.convert(tmp_path / "a", tmp_path / "b", check=True, say=said.append, **change)
        assert said[0] == "starting clean: what b.converting held is of no use"
        assert not (tmp_path / "b" / "litter").exists()
        shutil.rmtree(tmp_path / "b")


ITEMS = ("one", "two", "three")


@pytest.fixture
def begun(tmp_path):
    """The journal of a run that was stopped behind two of ITEMS."""
    first = Partial(tmp_path / "b", {"x": 1}, ITEMS)
    first.note("one")
    first.note("two")
    (first.folder / "one").write_text("1")
    first.close()
    return tmp_path / "b.converting" / partial.JOURNAL


def resumed(tmp_path):
    again = Partial(tmp_path / "b", {"x": 1}, ITEMS)
    again.close()
    return again


def test_a_torn_line_of_the_journal_is_passed_over(begun, tmp_path):
    begun.write_text(begun.read_text()[:-3])
    second = Partial(tmp_path / "b", {"x": 1}, ITEMS)
    assert second.done == {"one"} and "1 of 3" in second.state
    second.note("three")
    second.close()
    assert resumed(tmp_path).done == {"one", "three"}


@pytest.mark.parametrize(
    "line", [b"{\n", b'"one\xff"\n', b"\xff\xfe\n", b"[1]\n", b'"four"\n', b"[" * 9999 + b"\n"]
)
def test_a_damaged_line_of_the_journal_starts_clean(begun, tmp_path, line):
    key, *_ = begun.read_bytes().splitlines(keepends=True)
    begun.write_bytes(key + line + b'"one"\n')
    again = resumed(tmp_path)
    assert again.done == set() and again.state.startswith("starting clean")
    assert not begun.exists()  # nothing was written since


def test_a_folder_of_another_owner_stays(tmp_path):
    """Named like ours, but for its journal."""
    write_folder(tmp_path / "a", "llama")
    mine = tmp_path / "b.converting"
    mine.mkdir()
    for name, content in (("notes.txt", "mine"), (partial.JOURNAL, '{"day": 1}\n')):
        (mine / name).write_text(content)
        with pytest.raises(UserError, match="b.converting: is there and was not left by a conv"):
            conversion.convert(tmp_path / "a", tmp_path / "b", overwrite=True)
        assert (mine / name).read_text() == content
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_named_old_stays(tmp_path, there):
    write_folder(tmp_path / "a", "llama")
    (tmp_path / "b.old").mkdir()
    (tmp_path / "b.old" / "backup").write_text("mine")
    if there:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "stray").write_text("")
    conversion.convert(tmp_path / "a", tmp_path / "b", overwrite=there)
    assert (tmp_path / "b.old" / "backup").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "b.old"]
    assert not (tmp_path / "b" / "stray").exists()


@pytest.mark.parametrize("full", [False, True])
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, full):
    """There the result grows, so that it is one rename away on the same disk."""
    write_folder(tmp_path / "a", "llama")
    (tmp_path / "large_disk" / "b").mkdir(parents=True)
    if full:
        (tmp_path / "large_disk" / "b" / "stray").write_text("")
    link = tmp_path / "b"
    link.symlink_to(tmp_path / "large_disk" / "b")
    asked = []
    with pytest.MonkeyPatch.context() as patched:
        real = shutil.disk_usage
        patched.setattr(shutil, "disk_usage", lambda path: asked.append(path) or real(path))
        folder = conversion.convert(tmp_path / "a", link, overwrite=full)
    assert link.is_symlink() and folder == tmp_path / "large_disk" / "b"
    assert checkpoint.is_release(link) and not (link / "stray").exists()
    assert [p.name for p in (tmp_path / "large_disk").iterdir()] == ["b"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "large_disk"]
    assert asked == [tmp_path / "large_disk" / "b"]


def test_an_empty_folder_is_not_left_behind(tmp_path):
    Partial(tmp_path / "b", {"x": 1}, ITEMS).close()
    assert not list(tmp_path.iterdir())


def test_two_conversions_do_not_share_a_folder(tmp_path):
    write_folder(tmp_path / "a", "llama")
    held = Partial(tmp_path / "b", {}, ITEMS)
    with pytest.raises(UserError, match="b.converting: another conversion is writing there"):
        conversion.convert(tmp_path / "a", tmp_path / "b")
    held.close()
    conversion.convert(tmp_path / "a", tmp_path / "b")


def test_a_process_that_is_killed_leaves_nothing_that_loads(tmp_path):
    """A real one, ended without a chance to clean up."""
    write_folder(tmp_path / "a", "llama")
    code = (
        "import sys, time, conversion\n"
        "from mg_jax import checkpoint\n"
        "checkpoint.SMALL = 0\n"
        "def slow(count):\n"
        "    print('piece', flush=True)\n"
        "    time.sleep(60)\n"
        "conversion.convert(sys.argv[1], sys.argv[2], advance=slow)\n"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "piece\n"
        process.send_signal(signal.SIGKILL)
    nothing_loads(tmp_path / "b")
    start = time.monotonic()
    conversion.convert(tmp_path / "a", tmp_path / "b", check=True)  # the lock died with it
    assert time.monotonic() - start < 60


def fake_free(monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 0, free))


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch, tmp_path):
    write_folder(tmp_path / "a", "llama")
    fake_free(monkeypatch, 1 << 20)
    with pytest.raises(
        UserError, match=r"b: the disk is full \(16 MiB are to be .*, 1 MiB are free"
    ):
        conversion.convert(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    fake_free(monkeypatch, 1 << 30)
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    fake_free(monkeypatch, 1 << 20)
    with pytest.raises(UserError, match="c: the disk is full"):
        conversion.convert(release, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_after(count):
    """A disk that takes `count` arrays, in the words of TensorStore."""
    real, made = stream._create, []

    def create(*args):
        if len(made) == count:
            raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [28]")
        made.append(args)
        return real(*args)

    return create


@pytest.mark.parametrize("way", ["file", "arrays", "shards"])
def test_a_disk_that_fills_up_is_named_and_the_run_can_go_on(monkeypatch, tmp_path, way):
    state = write_folder(tmp_path / "a", "llama")
    source, target = tmp_path / "a", tmp_path / "b"
    if way == "shards":
        source, target = conversion.convert(source, target), tmp_path / "c"
    with monkeypatch.context() as patched:
        if way == "arrays":
            patched.setattr(checkpoint, "SMALL", 0)
            patched.setattr(stream, "_create", full_after(2))
        else:
            patched.setattr(output.Output, "_flush", full)
        with pytest.raises(UserError, match=f"{target.name}: the disk is full.*to continue"):
            conversion.convert(source, target)
        nothing_loads(target)
    conversion.convert(source, target, check=True)
    if way == "shards":
        assert_same(read_folder(target), state)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    write_folder(tmp_path / "a", "llama")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/b.converting: cannot be written"):
        conversion.convert(tmp_path / "a", tmp_path / "file" / "b")


def test_a_result_that_cannot_get_its_name_is_continued(monkeypatch, tmp_path):
    """Its folder is known as a conversion's until it has been renamed."""
    write_folder(tmp_path / "a", "llama")

    def refuse(part, folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written"):
        patch.setattr(partial.disk, "replace", refuse)
        conversion.convert(tmp_path / "a", tmp_path / "b")
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    assert not (release / partial.JOURNAL).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
