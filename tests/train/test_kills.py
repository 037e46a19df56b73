"""A training that is killed at random moments, at its start and in the middle of saves too, and
started again ends with the losses of one that was left alone, bit by bit."""

import dataclasses
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
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def start(folder):
    # wide: a checkpoint takes long enough to be hit
    command = [sys.executable, "-m", "tests.train.fake", str(folder), "--steps", str(STEPS),
               "--slow", "0.05", "--save", "3", "--wide", "20000"]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def losses(folder):
    return {r["step"]: r["loss"] for r in read_metrics(folder / "metrics.jsonl")}


def saving(folder):
    return any((folder / "checkpoints").glob("*orbax-checkpoint-tmp*"))


@dataclasses.dataclass(frozen=True)
class Kill:
    """signal; stage: "start" before the first new step, "save" inside a save, else "steps"."""

    signal: int
    stage: str


def kill_once(folder, wait, sent):
    """Start, and send a signal after `wait` seconds, or in the next save without any; what was
    hit, None when the training was finished first."""
    process = start(folder)
    before = max(losses(folder), default=0)

    def stage():
        if max(losses(folder), default=0) == before:
            return "start"  # what an earlier save left behind is no save
        return "save" if saving(folder) else "steps"

    begun = time.monotonic()
    while process.poll() is None:
        now = time.monotonic() - begun
        assert now < 300
        if stage() == "save" if wait is None else now > wait:
            break
        time.sleep(0.001)
    hit = stage()
    gone = process.poll()
    process.send_signal(sent)
    _, text = process.communicate(timeout=120)
    heard = hit != "start" and max(losses(folder)) < STEPS  # else it may have come too early
    deaf = () if heard else (-signal.SIGTERM,)
    assert process.returncode in (0, 75, -signal.SIGKILL, *deaf), text
    return None if gone == 0 else Kill(sent, hit)


def run(folder, kills, aims, seconds, seed=0):
    """(kills, runs that were finished) until there were enough, one inside a save for each of the
    signals `aims`.

    seconds: what a run takes that is left alone, its start included.
    """
    rng, done, finished, aims = random.Random(seed), [], [], list(aims)
    current = folder / "0"
    while len(done) < kills or aims:
        if aims and len(done) % 2 == 0:
            kill = kill_once(current, None, aims[-1])
            if kill and kill.stage == "save":
                aims.pop()
        else:
            kill = kill_once(current, rng.uniform(0, seconds), rng.choice(SIGNALS))
        if kill is None:
            finished.append(current)
            current = folder / str(len(finished))
            continue
        done.append(kill)
        assert len(done) < 4 * kills, done
    while (code := end(current)) == 75:
        pass
    assert code == 0
    return done, [*finished, current]


def end(folder):
    process = start(folder)
    _, text = process.communicate(timeout=300)
    assert process.returncode in (0, 75), text
    return process.returncode


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(losses, seconds) of a training that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    begun = time.monotonic()
    assert end(folder) == 0
    return losses(folder), time.monotonic() - begun


@pytest.mark.parametrize("kills,in_saves", [(3, 1), pytest.param(50, 5, marks=pytest.mark.slow)])
def test_the_loss_curve_of_a_killed_training_is_that_of_one_left_alone(
    whole, tmp_path, kills, in_saves
):
    curve, seconds = whole
    done, folders = run(tmp_path, kills, SIGNALS * in_saves, seconds)
    assert len(done) >= kills
    for sent in SIGNALS:
        assert done.count(Kill(sent, "save")) >= in_saves, done
    if kills > 10:  # so many that some are of every kind
        assert {kill.stage for kill in done} == {"start", "steps", "save"}, done
    for folder in folders:
        assert losses(folder) == curve, folder
