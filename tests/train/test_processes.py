"""Several processes on this machine: one training, data without overlap, stops, kills, resumes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launch import evaluate
from mg_jax import processes
from mg_jax.checkpoint import load_release
from mg_jax.errors import UserError
from mg_jax.progress import read_metrics
from tests.train.fake import NUMBERS, ROWS
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
    """(exit codes, what was printed) of processes that end by themselves."""
    texts = []
    try:
        for process in running:
            texts += process.communicate(timeout=seconds)
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


def assert_each_row_once(seen, count, first=0):
    """The processes read the rows of updates `first` to 12 by the one order, each its share."""
    numbers = NUMBERS[first * ROWS : 12 * ROWS].reshape(-1, ROWS)
    for i in range(count):
        own = [int(n) for n in Path(f"{seen}.{i}").read_text().split()]
        assert own == numbers[:, i::count].ravel().tolist(), i


def test_two_processes_train_as_one_and_read_each_row_once(alone, tmp_path):
    run, seen = tmp_path / "run", tmp_path / "rows"
    codes, text = end(train(run, 2, "--steps", "12", seen=seen))
    assert codes == [0, 0], text
    close(run, alone)
    assert_each_row_once(seen, 2)


def test_sigterm_to_one_stops_both_at_one_step_and_they_resume_as_one_or_four(alone, tmp_path):
    both = tmp_path / "2"
    running = train(both, 2, "--steps", "12", "--slow", "0.4")
    until(both, running, 2)
    running[1].send_signal(signal.SIGTERM)
    codes, text = end(running)
    assert codes == [75, 75], text
    done = max(losses(both))
    steps = [int(p.name) for p in (both / "checkpoints").iterdir() if p.name.isdigit()]
    assert done < 12 and steps == [done]
    for count in (1, 4):
        run, seen = tmp_path / str(count), tmp_path / f"rows{count}"
        shutil.copytree(both, run)
        codes, text = end(train(run, count, "--steps", "12", seen=seen))
        assert codes == [0] * count and f"resuming {run} at step {done}" in text, text
        close(run, alone)
        assert_each_row_once(seen, count, done)


@pytest.mark.parametrize(
    "count,victim", [(4, 2), *(pytest.param(2, i, marks=pytest.mark.slow) for i in (0, 1))]
)
def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(
    alone, tmp_path, count, victim
):
    """Process 0 is the one that the others ask who is there."""
    run, seen = tmp_path / "run", tmp_path / "rows"
    running = train(run, count, "--steps", "12", "--slow", "0.3", "--save", "2")
    until(run, running, 5)
    running[victim].kill()
    began = time.monotonic()
    codes, text = end(running)
    assert codes.pop(victim) == -signal.SIGKILL
    assert not {0, 2, 65} & set(codes), text  # or a launcher would not start them again
    assert time.monotonic() - began < 120  # the heartbeat is 10 seconds
    codes, text = end(train(run, count, "--steps", "12", seen=seen))
    assert codes == [0] * count, text
    close(run, alone)
    step = int(re.search(r"resuming .* at step (\d+)", text)[1])
    assert step >= 4  # the checkpoint before the kill
    assert_each_row_once(seen, count, step)


@pytest.mark.parametrize("count", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_done_together_is_the_same_however_many_do_it(count, tmp_path):
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


@pytest.mark.parametrize(
    "task,score,counts",
    [
        ("proposals", "ar@100", (4,)),
        pytest.param("rec", "mean_iou", (2, 4), marks=pytest.mark.slow),
    ],
)
def test_an_evaluation_prints_the_same_however_many_processes_do_it(task, score, counts):
    """Of seven pictures, which neither two nor four divide; ap50 is no mean over pictures."""
    printed = []
    for count in (1, *counts):
        running = start(
            "launch.evaluate", count, "--checkpoint", "groma-tiny", "--task", task,
            "--data", "scenes:seed=700000,n=7", "--batch-size", "2", "--json",
            XLA_FLAGS="--xla_backend_optimization_level=0",
            JAX_COMPILATION_CACHE_DIR=str(ROOT / ".jax_cache"),
        )  # fmt: skip
        codes, text = end(running, 600)
        assert codes == [0] * count, text
        (line,) = (line for line in text.splitlines() if line.startswith("{"))  # of process 0
        printed.append(json.loads(line))
        del printed[-1]["seconds"]
    assert printed[0]["n"] == 7 and 0.5 < printed[0][score] < 1
    assert all(found == printed[0] for found in printed)


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
    given = {}

    def late(**kwargs):
        given.update(kwargs)
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    monkeypatch.setattr("jax.distributed.initialize", late)
    with pytest.raises(processes.Apart, match="did not find each other .DEADLINE_EXCEEDED"):
        processes.start("localhost:1", 2, 0)

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(processes, "leave", leave)
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--task", "rec", "--distributed", "--heartbeat", "10"])
    assert ended.value.code == 1 and given["heartbeat_timeout_seconds"] == 10
    assert re.fullmatch("error: .* find each other .*: start all .*\n", capsys.readouterr().err)

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
