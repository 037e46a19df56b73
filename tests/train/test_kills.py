"""A training that is killed at random moments, in the middle of saves too, and started again ends
with the losses of one that was left alone, bit by bit."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mg_jax.progress import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STEPS = 60


def start(folder):
    # wide: a checkpoint takes long enough to be hit
    command = [sys.executable, "-m", "tests.train.fake", str(folder), "--steps", str(STEPS),
               "--slow", "0.05", "--save", "3", "--wide", "20000"]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl")}


def saving(folder):
    return any((folder / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def kill_once(folder, rng, in_save):
    """Start, kill at a random moment or in the next save; whether a save was hit, None when the
    training was finished first."""
    process = start(folder)
    before = max(losses(folder), default=0)
    deadline = time.monotonic() + 300
    wait = rng.uniform(0, 1.5)
    begun = None
    while process.poll() is None:
        assert time.monotonic() < deadline
        if begun is None and max(losses(folder), default=0) > before:
            begun = time.monotonic()
        if begun is not None and (saving(folder) if in_save else time.monotonic() > begun + wait):
            break
        time.sleep(0.001)
    hit = saving(folder)
    gone = process.poll()
    process.send_signal(signal.SIGKILL if in_save or rng.random() < 0.5 else signal.SIGTERM)
    _, text = process.communicate(timeout=120)
    assert process.returncode in (0, 75, -signal.SIGKILL), text
    return None if gone == 0 else hit


def run(folder, kills, in_saves, seed=0):
    """(kills, those inside a save, runs that were finished) until there were enough of both."""
    rng, done, hits, finished = random.Random(seed), 0, 0, []
    current = folder / "0"
    while done < kills or hits < in_saves:
        hit = kill_once(current, rng, in_save=hits < in_saves and done % 2 == 0)
        if hit is None:
            finished.append(current)
            current = folder / str(len(finished))
            continue
        done, hits = done + 1, hits + bool(hit)
        assert done < 4 * kills
    while (code := end(current)) == 75:
        pass
    assert code == 0
    return done, hits, [*finished, current]


def end(folder):
    process = start(folder)
    _, text = process.communicate(timeout=300)
    assert process.returncode in (0, 75), text
    return process.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert end(folder) == 0
    return losses(folder)


@pytest.mark.parametrize("kills,in_saves", [(3, 1), pytest.param(50, 10, marks=pytest.mark.slow)])
def test_the_loss_curve_of_a_killed_training_is_that_of_one_left_alone(
    whole, tmp_path, kills, in_saves
):
    done, hits, folders = run(tmp_path, kills, in_saves)
    assert done >= kills and hits >= in_saves
    for folder in folders:
        assert losses(folder) == whole, folder
