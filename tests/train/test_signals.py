"""Exit codes of a real process: 75 after SIGTERM, 130 after Ctrl-C, 0 when finished, 2 if wrong."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from mg_jax.progress import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def start(folder, *args):
    command = [sys.executable, "-m", "tests.train.fake", str(folder), "--steps", "60", *args]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def stop(process, folder, number):
    """Send a signal once a few more steps are done; (exit code, stderr)."""
    file = folder / "metrics.jsonl"
    before, deadline = len(read_metrics(file)), time.monotonic() + 120
    while len(read_metrics(file)) < before + 3:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    return process.returncode, text


def test_exit_codes_and_resume(tmp_path):
    code, text = stop(start(tmp_path, "--slow", "0.05"), tmp_path, signal.SIGTERM)
    assert code == 75, text
    assert "SIGTERM: saving" in text and "run the same command again to continue" in text
    code, text = stop(start(tmp_path, "--slow", "0.05"), tmp_path, signal.SIGINT)
    assert code == 130, text
    assert "resuming" in text and "Ctrl-C: saving" in text
    process = start(tmp_path)
    _, text = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 61))
    assert "step 60/60" in text and "steps/s" in text  # plain lines without a terminal
