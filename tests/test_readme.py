"""The README's commands run as printed, in order, shortened only in steps and pictures."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHORTER = {
    "launch.train": ["--config.train.steps=2", "--config.batch_size=2"],
    "launch.evaluate": ["--limit", "2", "--max-new-tokens", "3"],
    "launch.chat": ["--max-new-tokens", "3"],
}


def commands():
    """`python -m ...` lines of the README, continued lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^ {4}(python -m .*)$", text, re.M)]


def test_the_readme_names_only_modules_that_exist():
    names = {c[2] for c in commands()}
    assert {"launch.train", "launch.chat", "launch.evaluate", "launch.verify"} <= names
    for name in names:
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


@pytest.mark.slow
def test_commands_run_as_printed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (240, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for command in commands():
        module = command[2]
        if module == "launch.verify":  # needs recordings: tests/conversion runs it
            continue
        arguments = [a.replace("configs/", f"{ROOT}/configs/") for a in command[3:]]
        run = subprocess.run(
            [sys.executable, "-m", module, *arguments, *SHORTER.get(module, [])],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert run.returncode == 0, f"{' '.join(command)}\n{run.stderr[-2000:]}"
    assert (tmp_path / "answer.png").is_file()
    assert (tmp_path / "runs/instruction/release/config.json").is_file()
