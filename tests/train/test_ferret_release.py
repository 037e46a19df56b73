"""From nothing to a release: all stages of a micro Ferret by the commands, shipped and asked."""

import json

import numpy as np
import pytest
from PIL import Image

import mg_jax
from launch import chat, ship
from launch.train import run
from mg_jax.example import Region
from mg_jax.progress import read_metrics
from tests.ferret_micro import micro_config, noise

STAGES = ("labels", "caption", "dense", "instruction")
MEASURED = {
    "which_box": "scenes:seed=700000,n=4,size=40|120x40",
    "which_free": "scenes:seed=700001,n=4,size=40x120",
    "rec": "scenes:seed=700002,n=4,size=40",
}


@pytest.mark.slow
def test_stages_ship_and_chat(tmp_path, monkeypatch, capsys):
    before = ""
    for stage in STAGES:
        folder = tmp_path / stage
        command = f"python -m launch.train --workdir {folder} --config.init_from={before}"
        config = micro_config(stage, train__steps=3, init_from=before)
        assert run(config, str(folder), command) == 0
        losses = [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]
        assert len(losses) == 3 and np.isfinite(losses).all()
        before = f"{tmp_path / 'labels'},{folder}" if stage == "caption" else str(folder)
    out = tmp_path / "ferret-micro"
    flags = [f"--measure={task}={data}" for task, data in MEASURED.items()]
    ship.main([*(str(tmp_path / s) for s in STAGES), "--out", str(out),
               *flags])  # fmt: skip
    card = (out / "README.md").read_text()
    assert "ferret at 28 px," in card and str(tmp_path) not in card
    assert "--workdir runs/dense --config.init_from=runs/labels,runs/caption" in card
    for task, data in MEASURED.items():
        assert f"| {task} | " in card and data in card
    assistant = mg_jax.load(out)
    answer = assistant.chat(noise(200, 30), "What is <r:0>?", [Region.from_point(0.5, 0.5)],
                            max_new_tokens=4)  # fmt: skip
    assert (answer.width, answer.height) == (200, 30) and answer.notes == ()
    capsys.readouterr()
    Image.fromarray(noise(30, 170)).save(tmp_path / "a.png")
    monkeypatch.setattr(
        "sys.argv",
        ["chat", "--checkpoint", str(out), "--image", str(tmp_path / "a.png"), "--scribble",
         "2,10,20,90", "--prompt", "What is <r:0>?", "--json", "--max-new-tokens", "4"],
    )  # fmt: skip
    chat.main()
    assert json.loads(capsys.readouterr().out)["height"] == 170
