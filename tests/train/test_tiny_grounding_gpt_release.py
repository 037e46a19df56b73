"""From nothing to a release: all steps of a micro system by the commands, shipped, asked,
measured and explained."""

import json

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import chat, evaluate, explain, ship
from launch.train import run
from mg_jax.example import Region
from mg_jax.models import tiny_grounding_gpt
from tests.tiny_grounding_micro import SCENES, micro_config

STAGES = ("labels", *tiny_grounding_gpt.STAGES)
DATA = "scenes:seed=70000{},n=4,size=64"
MEASURED = {
    task: DATA.format(n)
    for n, task in enumerate(("rec", "presence", "object_match", "object_choice"))
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of all stages, each from the one before."""
    folder, before = tmp_path_factory.mktemp("runs"), ""
    for stage in STAGES:
        changes = {"train__steps": 3, "init_from": before}
        if stage == "global":
            changes["data"] = SCENES.format("grounding_dialogue+grounded_description")
        command = f"python -m launch.train --workdir {folder / stage} --config.init_from={before}"
        assert run(micro_config(stage, **changes), str(folder / stage), command) == 0
        losses = [json.loads(line)["loss"] for line in (folder / stage / "metrics.jsonl").open()]
        assert len(losses) == 3 and np.isfinite(losses).all()
        before = str(folder / stage)
    return folder


@pytest.fixture(scope="module")
def shipped(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("shipped") / "tiny-grounding-gpt-micro"
    flags = [f"--measure={task}={data}" for task, data in MEASURED.items()]
    ship.main([*(str(runs / s) for s in STAGES), "--out", str(out), *flags])
    return out


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 70, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.slow
def test_the_card(runs, shipped):
    card = (shipped / "README.md").read_text()
    assert "tiny_grounding_gpt at 56 px" in card and str(runs) not in card
    assert "--workdir runs/global --config.init_from=runs/local" in card
    assert "| labels | 3 x 8 |" in card and "| projector | 3 x 8 |" in card
    for task, data in MEASURED.items():
        assert f"| {task} | " in card and data in card


@pytest.mark.slow
def test_a_release_is_asked_in_words_boxes_and_object_images(shipped, photo, monkeypatch, capsys):
    assistant = mg_jax.load(shipped)
    box = Region.from_box((0.1, 0.2, 0.6, 0.9))
    answer = assistant.chat(photo, "Where is <object:0>?", [box], max_new_tokens=4)
    assert (answer.width, answer.height) == (70, 48)
    assistant.chat(photo, "And at <r:0>?", [box], max_new_tokens=4)
    capsys.readouterr()
    question = ["chat", "--checkpoint", str(shipped), "--image", photo, "--object", "9,4,45,36",
                "--prompt", "Where is it?", "--json", "--max-new-tokens", "4"]  # fmt: skip
    monkeypatch.setattr("sys.argv", question)
    chat.main()
    assert json.loads(capsys.readouterr().out)["width"] == 70


@pytest.mark.slow
def test_it_is_measured_and_explained(shipped, photo, tmp_path, capsys):
    evaluate.main(
        ["--checkpoint", str(shipped), "--task", "object_relation", "--data", DATA.format(9),
         "--json", "--limit", "3", "--max-new-tokens", "4"]
    )  # fmt: skip
    assert 0 <= json.loads(capsys.readouterr().out.splitlines()[-1])["accuracy"] <= 1
    out = tmp_path / "look.png"
    explain.main(["--checkpoint", str(shipped), "--image", photo, "--prompt", "What is it?",
                  "--out", str(out), "--max-new-tokens", "4"])  # fmt: skip
    assert Image.open(out).width == 520
