"""`python -m launch.build_data`: the same bytes however they are made, and every way to fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import build_data
from mg_jax.data import build, shards
from mg_jax.data.sources import SceneSource, open_source
from mg_jax.data.sources.shards import ShardSource
from mg_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SPEC = "scenes:seed=5,n=20,size=48"


def main(*argv, workers=1):
    build_data.main(["--workers", str(workers), *map(str, argv)])


def command(*argv):
    line = [sys.executable, "-m", "launch.build_data", *map(str, argv)]
    return subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SPEC in five shards, made in this process."""
    out = tmp_path_factory.mktemp("built") / "out"
    main(SPEC, out, "--shards", 5)
    return out


def test_two_processes_make_the_same_bytes(folder, tmp_path):
    done = command(SPEC, tmp_path / "two", "--shards", 5, "--workers", 2)
    assert done.wait() == 0, done.stderr.read()
    assert contents(tmp_path / "two") == contents(folder)


def test_beam_makes_the_same_bytes(folder, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam", reason="needs the extra: beam")
    monkeypatch.setattr(sys, "argv", ["launch.build_data"])
    main(SPEC, tmp_path / "beam", "--shards", 5, "--runner", "DirectRunner", "--",
         "--direct_num_workers=1")  # fmt: skip
    assert contents(tmp_path / "beam") == contents(folder)
    with pytest.raises(UserError, match="--runner NoRunner: Unexpected pipeline runner"):
        main(SPEC, tmp_path / "other", "--runner", "NoRunner")


def test_without_beam(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"needs Apache Beam: pip install 'mg_jax\[beam\]'"):
        main(SPEC, tmp_path, "--runner", "DirectRunner")


def test_what_it_prints(tmp_path, capsys):
    main(SPEC, tmp_path / "out", "--shards", 2, "--limit", 7)
    said = capsys.readouterr()
    assert "out: 7 examples in 2 shards, 0.2 MiB" in said.out
    assert "scenes: 20 examples" in said.err and "building" in said.err
    assert [e["examples"] for e in shards.read_manifest(tmp_path / "out")["files"]] == [3, 4]
    before = contents(tmp_path / "out")
    main(SPEC, tmp_path / "out", "--shards", 2, "--limit", 7)
    assert "2 of 2 shards are there" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    main("--verify", tmp_path / "out")
    assert "7 examples, all checksums are right" in capsys.readouterr().out


class Stops(SceneSource):
    """Scenes that are interrupted at one of them."""

    def __getitem__(self, i):
        if i == 10:
            raise KeyboardInterrupt
        return super().__getitem__(i)


def test_an_interrupted_build_goes_on(folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    job, source = build.prepare(SPEC, out, 5)
    with pytest.raises(KeyboardInterrupt):
        build.run(job, Stops(seed=5, n=20, size=48))
    names = {f"data-0000{k}-of-00005.{end}" for k in (0, 1) for end in ("array_record", "json")}
    assert set(contents(out)) == {"building.json", *names}
    with pytest.raises(UserError, match="is unfinished: run its launch.build_data command again"):
        open_source(f"shards:{out}")
    with pytest.raises(UserError, match="3 of 5 shards are missing"):
        build.finish(job, source)
    first = (out / "data-00000-of-00005.array_record").stat()
    (out / "data-00002-of-00005.array_record.x.part").write_bytes(b"half")  # of a killed process
    with pytest.raises(UserError, match=r"the unfinished shards of another build \(shards is 5"):
        main(SPEC, out, "--shards", 4)
    with pytest.raises(UserError, match=r"another build \(spec is scenes:seed=5,n=20,size=48 th"):
        main("scenes:seed=6,n=20,size=48", out, "--shards", 5)
    main(SPEC, out, "--shards", 5)
    assert (out / "data-00000-of-00005.array_record").stat() == first
    assert contents(out) == contents(folder)


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_signals_leave_whole_shards_and_no_process(tmp_path, sent, code):
    out = tmp_path / "out"
    line = [sys.executable, "-m", "launch.build_data", "scenes:n=9000,size=48", str(out)]
    build = subprocess.Popen(
        [*line, "--shards", "900", "--workers", "2"], cwd=ROOT, start_new_session=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(out.glob("data-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    build.send_signal(sent)
    assert build.wait(120) == code
    deadline = time.monotonic() + 60  # of its workers: the time before went to starting
    while alive(build.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(build.pid)
    assert not (out / "dataset.json").exists()
    for path in out.glob("data-*.json"):
        report = json.loads(path.read_text())
        assert shards.checksum([out / report["file"]]) == report["sha256"]


def photos(folder, broken):
    """A jsonl of 30 pictures, those in `broken` cut off; its spec."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for n in range(30):
        path = folder / f"{n}.png"
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
        if n in broken:
            path.write_bytes(path.read_bytes()[:700])
        lines.append(json.dumps({"image": path.name, "id": str(n), "width": 30, "height": 20}))
    (folder / "data.jsonl").write_text("\n".join([*lines, ""]))
    return f"jsonl:{folder / 'data.jsonl'}"


def test_pictures_that_cannot_be_read_are_left_out_and_listed(tmp_path, capsys):
    main(photos(tmp_path / "in", {4}), tmp_path / "out", "--shards", 3)
    assert "left out 1 malformed, listed in dataset.json, the first: data[4]: " in (
        capsys.readouterr().out
    )
    source = ShardSource(tmp_path / "out")
    assert [source[i].id for i in range(29)] == [str(n) for n in range(30) if n != 4]
    assert source.bad == 1 and "4.png: the picture cannot be read to its end" in source.problems[0]


def test_too_many_malformed_ones_are_refused_until_they_are_mended(tmp_path):
    spec, out = photos(tmp_path / "in", {4, 5}), tmp_path / "out"
    with pytest.raises(UserError, match=r"data\[4\]: .*4.png: .*\(2 of 30 examples of data cannot"):
        main(spec, out, "--shards", 3)
    assert not (out / "dataset.json").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.array_record")}
    photos(tmp_path / "in", set())
    main(spec, out, "--shards", 3)
    assert len(ShardSource(out)) == 30
    again = {p.name: p.stat().st_mtime_ns for p in out.glob("*.array_record")}
    assert [k for k in kept if kept[k] != again[k]] == ["data-00000-of-00003.array_record"]
    main(photos(tmp_path / "in", {4, 5}) + ",max_bad=0.1", tmp_path / "allowed", "--shards", 3)
    assert len(ShardSource(tmp_path / "allowed")) == 28
    with pytest.raises(UserError, match=r"\(30 of 30 examples of data cannot be used\)"):
        main(photos(tmp_path / "in", range(30)) + ",max_bad=1", tmp_path / "none")


def test_a_source_that_changed_meanwhile(tmp_path):
    spec, out = photos(tmp_path / "in", {4, 5}), tmp_path / "out"
    with pytest.raises(UserError, match="cannot be used"):
        main(spec, out, "--shards", 3)
    text = (tmp_path / "in" / "data.jsonl").read_text()
    (tmp_path / "in" / "data.jsonl").write_text(text.replace('"0.png"', '"1.png"', 1).replace(
        '"id": "0"', '"id": "new"'))  # fmt: skip
    with pytest.raises(UserError, match="another build .the source has changed since"):
        main(spec, out, "--shards", 3)


def test_wrong_requests(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    out = tmp_path / "out"
    for argv, message in (
        ([SPEC, tmp_path / "mine"], "mine: is not empty and holds no shards: name another folder"),
        (["flickr:x", out], "unknown kind 'flickr'"),
        ([SPEC, out, "--shards", 21], "20 examples cannot fill 21 shards"),
        ([SPEC, out, "--shards", 0], "shards=0: expected a whole number of at least 1"),
        ([SPEC, out, "--resize", -1], "resize=-1"),
        ([SPEC, out, "--images", "zip"], "images=zip: choose embed, copy, keep"),
        ([SPEC, out, "--images", "keep", "--resize", 9], "leave out resize"),
        (["scenes:seed=700000,n=3", out], "kept for evaluation"),
        ([out], "OUT is missing"),
        (["--verify", out], "out: holds no dataset.json"),
    ):
        with pytest.raises(UserError, match=message):
            main(*argv)
        assert not out.exists(), argv
    with pytest.raises(UserError, match="'--region=R': what follows -- is for --runner NAME"):
        build_data.main([SPEC, str(out), "--", "--region=R"])
    with pytest.raises(UserError, match="its pictures are no files that could stay"):
        main(SPEC, out, "--images", "keep")
    main(SPEC, out)  # nothing was finished there
    assert len(ShardSource(out)) == 20


def test_a_full_disk(folder, tmp_path, monkeypatch):
    """/dev/full refuses every byte; the file that stands in for it is a link, which may go."""
    temporary = build.temporary

    def full(path):
        if path.suffix == ".json":
            return temporary(path)
        link = tmp_path / "full.part"
        link.symlink_to("/dev/full")
        return link

    out = tmp_path / "out"
    monkeypatch.setattr(build, "temporary", full)
    with pytest.raises(UserError, match="out: the disk is full.* The finished shards are kept"):
        main(SPEC, out, "--shards", 5)
    assert not (tmp_path / "full.part").is_symlink() and Path("/dev/full").exists()
    monkeypatch.undo()
    main(SPEC, out, "--shards", 5)
    assert contents(out) == contents(folder)


def test_a_lost_interrupt_is_raised_again():
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell runs this in the background
    with build_data.Counter("building", 9) as bar:
        bar(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            bar(1)
    assert signal.getsignal(signal.SIGINT) is before


class Dies(SceneSource):
    """Scenes of which one ends the process, as a lack of memory does."""

    def __getitem__(self, i):
        if i == 13:
            os._exit(9)
        return super().__getitem__(i)


def test_a_worker_that_is_killed(folder, tmp_path):
    job, source = build.prepare(SPEC, tmp_path / "out", 5)
    with pytest.raises(UserError, match="a worker was killed.* run the same command again"):
        build.run(job, Dies(seed=5, n=20, size=48), 2)
    build.run(job, source)
    build.finish(job, source)
    main(SPEC, tmp_path / "out", "--shards", 5)
    assert set(contents(tmp_path / "out")) == set(contents(folder))
