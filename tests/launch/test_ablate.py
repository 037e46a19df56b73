"""`launch.ablate`: its arms are configs that build, its table says what was measured."""

import sys

import pytest
from absl import flags
from ml_collections import config_flags

from launch import ablate
from mg_jax import models, plan
from mg_jax.data import pipeline
from mg_jax.errors import UserError


@pytest.fixture
def config_of(monkeypatch):
    def parse(arm):
        argv = ["x", "--config=configs/groma.py:stage=instruction,size=tiny", *arm]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return values.config

    return parse


@pytest.mark.parametrize("ablation,arm", [(a, b) for a in ablate.ARMS for b in ablate.ARMS[a]])
def test_arms_build(ablation, arm, config_of):
    config = config_of(ablate.ARMS[ablation][arm])
    system = models.build(config.system, config.model.to_dict())
    assert pipeline.make_codec(config, system.cfg).length <= system.cfg.lm.max_positions
    p = plan.plan(config, 3, system=system, sizes=pipeline.batch_sizes(config, system.cfg))
    learns = {path.split("/")[0] for path in p.state.params}
    assert ("lm" in learns) == (arm != "frozen")
    assert {"projector", "region_encoder", "new_tokens"} <= learns
    channels = p.state.params["projector/up/kernel"].shape[0]
    assert channels == system.cfg.vision.width * (1 if arm == "off" else 4)
    assert p.example["tokens"].shape[1] == (576 if arm == "off" else 384)


def test_table():
    names = ("rec acc@0.5", "regions accuracy", "presence accuracy")
    rows = [
        {"ablation": "lm", "arm": "frozen", "seconds": 60 * (s + 1)} | dict.fromkeys(names, s / 4)
        for s in range(3)
    ]
    *_, line = ablate.table(rows).splitlines()
    cell = "0.250 (0.000 to 0.500)"
    assert line == f"| lm | frozen | 3 | {cell} | {cell} | {cell} | 2 |"


def test_runs_of_other_settings_are_not_put_into_one_table(tmp_path, monkeypatch, capsys):
    names = ("rec acc@0.5", "regions accuracy", "presence accuracy")
    trained = []

    def train(folder, *options):
        folder.mkdir(parents=True)
        trained.append(folder)
        return 60.0

    monkeypatch.setattr(ablate, "train", train)
    monkeypatch.setattr(ablate, "measure", lambda release, n: dict.fromkeys(names, 0.5))
    argv = ["--workdir", str(tmp_path), "--only", "lm", "--seeds", "1", "--start"]
    ablate.main([*argv, "a", "--steps", "9"])
    ablate.main([*argv, "a", "--steps", "9"])
    assert len(trained) == 2 and "| lm | frozen | 1 | 0.500" in capsys.readouterr().out
    for other in (["a", "--steps", "8"], ["b", "--steps", "9"]):
        with pytest.raises(UserError, match=r"ablation\.json: its run has --\w+ .*, not "):
            ablate.main([*argv, *other])
