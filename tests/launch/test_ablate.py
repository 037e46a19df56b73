"""`launch.ablate`: its arms are configs that build, its table says what was measured."""

import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import mg_jax
from configs import ferret, mg_llava
from launch import ablate, measuring
from mg_jax import models, plan, sharding
from mg_jax.data import pipeline
from mg_jax.disk import read_json
from mg_jax.errors import UserError
from mg_jax.evals import tasks
from mg_jax.optim import flatten, matching
from mg_jax.text import markup


@pytest.fixture
def config_of(monkeypatch):
    def parse(study, run, stage=-1):
        config = ablate.STAGES.get(run, ((ablate.STUDIES[study].config, 1.0),))[stage][0]
        argv = ["x", f"--config={config}", *ablate.RUNS[run]]
        monkeypatch.setattr(sys, "argv", argv)  # where ml_collections looks for overrides
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", flag_values=values)
        values(argv)
        return values.config

    return parse


def built(config):
    """(model config, plan) of a training config."""
    system = models.build(config.system, config.model.to_dict())
    assert pipeline.make_codec(config, system.cfg).length <= system.cfg.lm.max_positions
    sizes = pipeline.batch_sizes(config, system.cfg)
    return system.cfg, plan.plan(config, 3, system=system, sizes=sizes)


@pytest.mark.parametrize("study", ["lm", "merge"])
def test_arms_of_groma_build(study, config_of):
    for arm, run in ablate.STUDIES[study].arms.items():
        cfg, p = built(config_of(study, run))
        learns = {path.split("/")[0] for path in p.state.params}
        assert ("lm" in learns) == (arm != "frozen")
        assert {"projector", "region_encoder", "new_tokens"} <= learns
        channels = p.state.params["projector/up/kernel"].shape[0]
        assert channels == cfg.vision.width * (1 if arm == "off" else 4)
        assert p.example["tokens"].shape[1] == (576 if arm == "off" else 384)


@pytest.fixture(scope="module")
def finished():
    """Parameters that the arms of MG-LLaVA start from: those of stage sft, or of stage labels and
    the language model's."""
    found = {}
    for stage in ("labels", "sft"):
        config = mg_llava.get_config(f"stage={stage},llm=tiny")
        system = models.build(config.system, config.model.to_dict())
        boxed = sharding.abstract_params(system.init(config.stage), jax.random.key(0))
        found |= flatten(sharding.unbox(boxed))
    return found


# arm: (config.model.fusion, config.model.objects)
MG_LLAVAS = {
    "resolution": {
        "low alone": ("none", "none"),
        "+ boxes": ("none", "append"),
        "+ boxes + conv_gate": ("conv_gate", "append"),
    },
    "fusion": {
        "resampler": ("resampler", "append"),
        "concat": ("concat", "append"),
        "patch_info": ("patch_info", "append"),
        "conv_gate": ("conv_gate", "append"),
    },
    "merging": {
        "f2b": ("conv_gate", "f2b"),
        "b2f": ("conv_gate", "b2f"),
        "append": ("conv_gate", "append"),
    },
}


@pytest.mark.parametrize("study", MG_LLAVAS)
def test_arms_of_mg_llava_build(study, config_of, finished):
    arms = ablate.STUDIES[study].arms
    assert list(arms) == list(MG_LLAVAS[study])
    for arm, run in arms.items():
        cfg, p = built(config := config_of(study, run))
        assert (cfg.fusion, cfg.objects) == MG_LLAVAS[study][arm] and not cfg.refer
        ours = {**p.state.params, **p.frozen}
        read = finished.keys() - matching(finished, config.init_ignore, "init_ignore")
        assert read == matching(ours, config.init_required, "init_required")
        assert all(finished[path].shape == ours[path].shape for path in read)
        fresh = {path.split("/")[0] for path in ours.keys() - read}
        assert fresh <= {"fusion", "projector", "box_projector", "merging"} and "projector" in fresh
        parts = {path.split("/")[0] for path in (*p.state.params, *p.frozen)}
        assert ("high" in parts) == ("box_projector" in parts) == (run != "low")
        assert {path.split("/")[0] for path in p.frozen} == parts & {"low", "high"}


TILES = ("tile", "tile_projector", "tile_places")
FERRETS = {  # run: (most image tokens, parts, what stays frozen)
    "direct-frozen": (784, {"low"}, {"low"}),
    "direct-trained": (784, {"low"}, set()),
    "any-frozen": (392, {"low", "tile_places"}, {"low"}),
    "any-trained": (392, {"low", "tile_places"}, set()),
    "fixed": (196, {"low"}, {"low"}),
    "ground": (490, {"low", *TILES}, {"low", "tile"}),
    "clip": (490, {"low", "tile_projector", "tile_places"}, {"low"}),
    "v2": (490, {"low", *TILES}, {"low", "tile"}),
    "dense": (490, {"low", *TILES}, {"low", "tile"}),
}


@pytest.mark.parametrize("study", ["upsampling", "referring", "tiles", "dense"])
def test_arms_of_ferret_build(study, config_of):
    labels = ferret.get_config("stage=labels,size=tiny")
    taught = plan.plan(labels, 3).state.params
    for run in ablate.STUDIES[study].arms.values():
        cfg, p = built(config := config_of(study, run, 0))
        ours = {**p.state.params, **p.frozen}
        differ = {"tile": cfg.tile is None, "grids": labels.model.grids != config.model.grids}
        other = [pattern for pattern, field in config.init_alike if differ[field]]
        read = taught.keys() - matching(taught, (*config.init_ignore, *other), "init_ignore")
        required = matching(ours, config.init_required, "init_required")
        assert read == {path for path in required if not path.startswith("lm/")}
        taken = {"low", "projector", *(TILES if cfg.tile else ())}  # no sampler: it knows one map
        assert {path.split("/")[0] for path in read} == taken
        assert all(taught[path].shape == ours[path].shape for path in read)
        tokens, parts, frozen = FERRETS[run]
        assert cfg.largest == tokens
        found = {path.split("/")[0] for path in (*p.state.params, *p.frozen)}
        assert found == parts | {"lm", "projector", "sampler"}
        assert {path.split("/")[0] for path in p.frozen} == frozen
        assert cfg.region_map == ("global" if run == "ground" else "fused")


def test_small_words_are_asked_about_by_their_regions(monkeypatch):
    study, task = ablate.STUDIES["upsampling"], tasks.get("reading")
    items = tasks.questions(task, f"{study.data_of['reading']},n=100")
    assert all(markup.regions_of(item.example.turns[item.turn].user) for item in items)
    small = [item for item in items if task.kind(item) == "small"]
    assert len(small) > 20
    boxes = np.concatenate([item.pixel_boxes(item.query().regions) for item in small])
    assert len(boxes) == len(small) and np.max(boxes[:, 2:] - boxes[:, :2]) <= 38
    asked = {}

    def measure(assistant, task, data):
        assert assistant == "loaded release"
        asked[task.name] = data
        return SimpleNamespace(metrics={name: 0.5 for name in study.measured[task.name][:1]})

    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(mg_jax, "load", lambda release: f"loaded {release}")
    found = ablate.measure(study, "release", 7, {"which_point accuracy": 0.5})
    assert asked["reading"] == f"{study.data_of['reading']},n=7"
    assert asked["rec"] == f"{study.data},n=7" and "which_point" not in asked
    assert found["reading accuracy"] == 0.5 and np.isnan(found["reading small"])


@pytest.mark.parametrize("study", ["objects", "dialogues"])
def test_arms_of_tiny_grounding_gpt_build(study, config_of):
    runs, shapes = list(ablate.STUDIES[study].arms.values()), []
    asked = {}
    for run in runs:
        for stage, name in enumerate(("local", "global")):
            config = config_of(study, run, stage)
            _, p = built(config)
            assert config.stage == name
            assert {path.split("/")[0] for path in p.frozen} == {"clip", "dino"}
            shapes.append({path: x.shape for path, x in p.state.params.items()})
            asked[run, name] = {
                task for task in ("object_match", "grounding_dialogue") if task in config.data
            }
    assert all(shape == shapes[0] for shape in shapes)
    assert asked["all-data", "local"] == {"object_match"}
    assert asked["all-data", "global"] == {"object_match", "grounding_dialogue"}
    if study == "objects":
        assert asked["no-objects", "local"] == set()
        assert asked["no-objects", "global"] == {"grounding_dialogue"}  # which keep theirs
    else:
        assert asked["no-dialogues", "local"] == asked["no-dialogues", "global"] == {"object_match"}
    for run in ablate.STUDIES[study].arms.values():
        (local, most), (last, rest) = ablate.STAGES[run]
        assert "stage=local" in local and "stage=global" in last and most + rest == 1
        assert ("without=objects" in local) == (run == "no-objects")


@pytest.mark.parametrize("study", ["objects", "dialogues"])
def test_what_an_arm_leaves_out_is_measured(study):
    found = ablate.STUDIES[study]
    assert {"pope", "object_match", "object_choice", "object_relation"} <= found.measured.keys()
    assert found.measured["pope"] == ("f1",)  # by which the paper tells its dialogues
    for name, metrics in found.measured.items():
        task = tasks.get(name)
        items = tasks.questions(task, f"{found.data},n=6")
        scored = dict(task.score(items, next(iter(task.strategies(items)))))
        assert set(metrics) <= scored.keys(), name


def test_stages_of_a_run_follow_each_other(tmp_path):
    study = ablate.STUDIES["dense"]
    begin = "runs/labels,runs/caption"
    first, second = ablate.commands(tmp_path / "r", study, begin, 90, 2, "dense")
    fresh = "configs/ferret.py:stage=dense,size=tiny,sampler=fresh"
    assert fresh in first and ablate.FERRET in second  # whose sampler goes on
    assert (
        f"--workdir={tmp_path / 'r' / 'stage0'}" in first
        and f"--workdir={tmp_path / 'r'}" in second
    )
    assert f"--config.init_from={begin}" in first
    assert f"--config.init_from={tmp_path / 'r' / 'stage0'}" in second
    for command in (first, second):
        assert {"--config.train.steps=45", "--config.seed=2"} <= set(command)
    (alone,) = ablate.commands(tmp_path, ablate.STUDIES["lm"], "a", 9, 0, "lm-frozen")
    assert alone[4] == ablate.GROMA and alone[-1] == ablate.RUNS["lm-frozen"][0]


def test_the_time_of_a_run_that_was_stopped_counts(tmp_path, monkeypatch):
    study, folder = ablate.STUDIES["lm"], tmp_path / "r"
    monkeypatch.setattr(ablate, "commands", lambda *_: [[sys.executable, "-c", "exit(75)"]])
    with pytest.raises(UserError, match="exit code 75"):
        ablate.train(folder, study, "a", 9, 0, "lm-frozen")
    before = read_json(folder / "seconds.json")["seconds"]
    monkeypatch.setattr(ablate, "commands", lambda *_: [[sys.executable, "-c", ""]])
    assert ablate.train(folder, study, "a", 9, 0, "lm-frozen") > before > 0


def test_table():
    rows = {
        "lm-frozen": [
            dict.fromkeys(("rec acc@0.5", "regions accuracy", "presence accuracy"), s / 4)
            | {"seconds": 60 * (s + 1)}
            for s in range(3)
        ]
    }
    *_, line = ablate.table(rows, ["lm", "merge"]).splitlines()
    cell = "0.250 (0.000 to 0.500)"
    assert line == f"| lm | frozen | 3 | {cell} | {cell} | {cell} | 2 |"


def test_runs_are_shared_and_those_of_other_settings_refused(tmp_path, monkeypatch, capsys):
    trained = []

    def train(folder, study, start, steps, seed, run):
        folder.mkdir(parents=True)
        trained.append((run, seed, steps))
        return 60.0

    def measure(study, release, questions, known):
        return {f"{task} {m}": 0.5 for task, names in study.measured.items() for m in names}

    monkeypatch.setattr(ablate, "train", train)
    monkeypatch.setattr(ablate, "measure", measure)
    argv = ["--workdir", str(tmp_path), "--seeds", "1", "--only"]
    lm = [*argv, "lm", "--start"]
    ablate.main([*lm, "a", "--steps", "9"])
    ablate.main([*lm, "a", "--steps", "9"])
    assert len(trained) == 2 and "| lm | frozen | 1 | 0.500" in capsys.readouterr().out
    for other in (["a", "--steps", "8"], ["b", "--steps", "9"]):
        with pytest.raises(UserError, match=r"ablation\.json: its run has \w+ .*, not "):
            ablate.main([*lm, *other])
    ablate.main([*argv, "fusion", "--start", "a"])
    ablate.main([*argv, "merging", "--start", "a"])
    file = tmp_path / "concat-0" / "ablation.json"  # measured less, as it once was
    row = read_json(file)
    less = {k: v for k, v in row.items() if "small" not in k}
    ablate.note(file, less | {"measured": less["measured"][:-1]})
    count = len(trained)
    ablate.main([*argv, "fusion", "--start", "a"])
    assert read_json(file) == row and len(trained) == count
    out = capsys.readouterr().out
    assert "| fusion | conv_gate | 1 | 0.500" in out and "| merging | append | 1 | 0.500" in out
    assert trained[2:].count(("published", 0, ablate.STUDIES["fusion"].steps)) == 1
    monkeypatch.setattr(plan, "source", lambda start: ({"system": "mg_llava"}, []))
    args = ablate.arguments().parse_args(["--start", "a", "--workdir", "b"])
    assert ablate.chosen(args) == ["resolution", "fusion", "merging"]
    monkeypatch.setattr(plan, "source", lambda start: ({"a": {"system": "ferret"}}[start], []))
    args = ablate.arguments().parse_args(["--start", "a,c", "--workdir", "b"])
    assert ablate.chosen(args) == ["upsampling", "referring", "tiles", "dense"]
    monkeypatch.setattr(plan, "source", lambda start: ({"system": "x"}, []))
    with pytest.raises(UserError, match="no ablations of system 'x'"):
        ablate.chosen(args)
