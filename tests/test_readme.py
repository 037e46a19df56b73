"""The README's commands run as printed, in order, shortened only in steps and pictures."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SHORTER = {
    "launch.train": ["--config.train.steps=2", "--config.batch_size=2"],
    "launch.evaluate": ["--limit", "2", "--max-new-tokens", "3"],
    "launch.chat": ["--max-new-tokens", "3"],
}


# launch.verify needs recordings (tests/conversion runs it), launch.convert has a test of its own
ELSEWHERE = ("launch.verify", "launch.convert")


def commands():
    """`python -m ...` lines of the README, continued lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^ {4}(python -m .*)$", text, re.M)]


def test_the_readme_names_only_modules_that_exist():
    names = {c[2] for c in commands()}
    assert {"launch.train", "launch.chat", "launch.evaluate", "launch.verify"} <= names
    for name in names:
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name


def test_the_readme_names_every_task_and_converts_every_system():
    from conversion.architectures import ARCHITECTURES
    from mg_jax.evals.tasks import TASKS

    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`(\w+)`", text[text.index("`launch.evaluate` knows") :]))
    assert set(TASKS) <= named
    table = text[text.index("| converts |") :].partition("\n\n")[0].lower()
    spelled = {"mg_llava": "mg-llava", "tiny_grounding_gpt": "tinygroundinggpt"}
    systems = {entry.system for entry in ARCHITECTURES.values()} - {"parts"}
    assert all(f"| {spelled.get(name, name)}" in table for name in systems)


def run(command, folder, more=()):
    """Run a command of the README in a folder; it must succeed."""
    arguments = [a.replace("configs/", f"{ROOT}/configs/") for a in command[3:]]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", command[2], *arguments, *more],
        cwd=folder, env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-2000:]}"
    return done.stdout


def test_conversions_run_as_printed(tmp_path):
    """FOLDER is a folder of PyTorch weights; what the first command writes the second reads."""
    from tests.conversion.folders import assert_same, read_folder, write_folder

    state = write_folder(tmp_path / "FOLDER", "llama", ml_dtypes.bfloat16)
    into, back = (command for command in commands() if command[2] == "launch.convert")
    assert "check: 30 of 30 tensors" in run(into, tmp_path)
    run(back, tmp_path)
    assert_same(read_folder(tmp_path / back[-1]), state)


def test_the_example_runs_as_printed_on_the_shipped_model(tmp_path, monkeypatch, capsys):
    from mg_jax.data.scenes import RESERVED_SEED, make_world, render

    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    world = make_world(RESERVED_SEED, 2, 320, 240, min_objects=3, max_objects=4)
    Image.fromarray(render(world)).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert re.search(r"\w.* \(\([\d.]+, [\d.]+, [\d.]+, [\d.]+\)", said), said
    assert Image.open(tmp_path / "answer.png").size[0] > 0


@pytest.mark.slow
def test_commands_run_as_printed(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (240, 300, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    for command in commands():
        if command[2] not in ELSEWHERE:
            run(command, tmp_path, SHORTER.get(command[2], ()))
    assert (tmp_path / "answer.png").is_file()
    assert (tmp_path / "runs/instruction/release/config.json").is_file()
