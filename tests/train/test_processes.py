"""Several processes on this machine: one training, data without overlap, stops, kills, resumes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch import cli
from mg_jax import processes
from mg_jax.checkpoint import load_release
from mg_jax.errors import UserError
from mg_jax.progress import read_metrics
from tests.train.micro import save_tokenizer

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def start(module, count, *args, each=lambda i: (), **env):
    """`count` processes of a program that find each other; one alone is told nothing."""
    address = f"localhost:{port()}"
    found = []
    for i in range(count):
        several = ["--coordinator", address, "--processes", str(count), "--process", str(i)]
        command = [sys.executable, "-m", module, *args, *each(i), *(several if count > 1 else [])]
        found.append(
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=ENV | env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return found


def end(running, seconds=240):
    """(exit codes, errors) of processes that end by themselves."""
    texts = []
    try:
        for process in running:
            texts.append(process.communicate(timeout=seconds)[1])
    finally:
        for process in running:
            process.kill()
    return [p.returncode for p in running], "\n".join(texts)


def train(folder, count, *args, seen=None):
    each = (lambda i: ("--seen", f"{seen}.{i}")) if seen else (lambda i: ())
    return start(
        "tests.train.fake", count, str(folder), "--devices", str(4 // count), *args, each=each
    )


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl")}


def until(folder, running, step, seconds=240):
    """Wait until the run has logged `step`."""
    deadline = time.monotonic() + seconds
    while max(losses(folder), default=0) < step:
        gone = [p for p in running if p.poll() is not None]
        assert not gone and time.monotonic() < deadline, end(running, 5)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The losses of one process that was never interrupted."""
    folder = tmp_path_factory.mktemp("alone")
    codes, text = end(train(folder, 1, "--steps", "12"))
    assert codes == [0], text
    return losses(folder)


def close(folder, alone):
    found = losses(folder)
    assert list(found) == list(range(1, 13))
    np.testing.assert_allclose([*found.values()], [*alone.values()], atol=1e-5)


def test_two_processes_train_as_one_and_read_each_row_once(alone, tmp_path):
    run, seen = tmp_path / "run", tmp_path / "rows"
    codes, text = end(train(run, 2, "--steps", "12", seen=seen))
    assert codes == [0, 0], text
    close(run, alone)
    rows = [[int(n) for n in Path(f"{seen}.{i}").read_text().split()] for i in range(2)]
    # an iterator may read ahead, but no farther in one process than in another
    assert sorted(rows[0] + rows[1]) == list(range(len(rows[0]) + len(rows[1])))
    assert not set(rows[0]) & set(rows[1]) and len(rows[0]) == len(rows[1]) >= 12 * 4


def test_sigterm_to_one_stops_both_at_one_step_and_they_resume_as_one_or_four(alone, tmp_path):
    running = train(tmp_path, 2, "--steps", "12", "--slow", "0.4")
    until(tmp_path, running, 2)
    running[1].send_signal(signal.SIGTERM)
    codes, text = end(running)
    assert codes == [75, 75], text
    done = max(losses(tmp_path))
    steps = [int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]
    assert done < 12 and steps == [done]
    codes, text = end(train(tmp_path, 1, "--steps", "12"))
    assert codes == [0] and f"resuming {tmp_path} at step {done}" in text
    close(tmp_path, alone)


def test_a_killed_process_ends_the_other_and_the_same_command_goes_on(alone, tmp_path):
    running = train(tmp_path, 2, "--steps", "12", "--slow", "0.3", "--save", "2")
    until(tmp_path, running, 5)
    running[1].kill()
    began = time.monotonic()
    codes, text = end(running)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, 2), text
    assert time.monotonic() - began < 120  # the heartbeat is 10 seconds
    codes, text = end(train(tmp_path, 2, "--steps", "12"))
    assert codes == [0, 0] and "resuming" in text, text
    close(tmp_path, alone)


@pytest.mark.slow
def test_a_run_of_two_goes_on_with_four(alone, tmp_path):
    running = train(tmp_path, 2, "--steps", "12", "--slow", "0.3", "--save", "2")
    until(tmp_path, running, 5)
    for process in running:
        process.kill()
    end(running)
    codes, text = end(train(tmp_path, 4, "--steps", "12"))
    assert codes == [0] * 4, text
    close(tmp_path, alone)


@pytest.mark.parametrize("count", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_done_together_is_the_same_however_many_do_it(count, tmp_path):
    """The sums of an evaluation above all, odd sizes included."""
    running = start("tests.train.shares", count, str(tmp_path))
    codes, text = end(running)
    assert codes == [0] * count, text
    for i in range(count):
        found = json.loads((tmp_path / f"{i}.json").read_text())
        for size in (0, 1, 3, 7, 16):
            answers = [n * n for n in range(size)]
            assert found[str(size)] == {"answers": answers, "sum": sum(answers)}, (i, size)
        assert found["asked"] == sum(len(range(i, size, count)) for size in (0, 1, 3, 7, 16))
        assert found["trunk"] and found["restored"] == [1, [1]]
        assert (tmp_path / "checkpoints" / "2.broken").is_dir()
        assert ("lower mesh.tensor" in found["refused"]) == (count > 1)


@pytest.mark.slow
def test_the_command_trains_a_real_system_in_two_processes_as_in_one(tmp_path):
    """launch.train with its flags, the data pipeline and Groma."""
    save_tokenizer(tmp_path / "words")
    config = f"tests/train/micro.py:detection,{tmp_path / 'words'}"
    curves = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        running = start(
            "launch.train", count, "--config", config, "--workdir", str(folder),
            XLA_FLAGS="--xla_backend_optimization_level=0", JAX_NUM_CPU_DEVICES=str(4 // count),
            JAX_COMPILATION_CACHE_DIR=str(ROOT / ".jax_cache"),
        )  # fmt: skip
        codes, text = end(running, 900)
        assert codes == [0] * count, text
        assert load_release(folder / "release")[0]["stage"] == "detection"
        curves.append(losses(folder))
    assert list(curves[0]) == list(curves[1]) == [1, 2, 3, 4]
    np.testing.assert_allclose([*curves[1].values()], [*curves[0].values()], rtol=1e-5)


def test_processes_that_are_not_found_in_time_are_started_again(monkeypatch, capsys):
    def late(**kwargs):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    monkeypatch.setattr("jax.distributed.initialize", late)
    with pytest.raises(processes.Apart, match="did not find each other .DEADLINE_EXCEEDED"):
        processes.start("localhost:1", 2, 0)

    class Flags:
        distributed, coordinator, processes, process, heartbeat = True, "", 0, -1, 10

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("absl.flags.FLAGS", Flags)
    monkeypatch.setattr(processes, "leave", leave)
    with pytest.raises(SystemExit) as ended:
        cli.join_processes()
    assert ended.value.code == 1 and capsys.readouterr().err.count("\n") == 1

    def alone(**kwargs):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", alone)
    with pytest.raises(UserError, match="nothing tells of the other processes"):
        processes.start()


def test_processes_are_told_of_wholly():
    with pytest.raises(UserError, match="give all three"):
        processes.start("localhost:1", 2)
    assert not processes.several() and not processes.stopping(1)
    assert processes.divided(lambda xs: [x + 1 for x in xs])([1, 2]) == [2, 3]
