"""launch.verify on MG-LLaVA: upstream's recordings, and one of the form that is kept back."""

import json

import numpy as np
import pytest

from conversion import engine, readers
from conversion.architectures import ARCHITECTURES
from conversion.tables.mg_llava import saved
from launch.verify import main
from mg_jax.disk import read_json
from tests.conversion import mg_llava_recording
from tests.conversion.folders import assert_same, read_folder

ARRAYS = {"tiny_llama": 34, "geom_768": 18}


@pytest.fixture
def recorded(shared):
    return shared / "golden" / "mg_llava"


@pytest.mark.shared
@pytest.mark.parametrize("name", ARRAYS)
def test_every_recorded_array_is_matched(recorded, name, capsys):
    status = main([str(recorded / name), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0, [line for line in report["arrays"] if not line["ok"]] + report["failures"]
    assert report["arrays_total"] == ARRAYS[name]
    assert not any(line["note"] == "input" for line in report["arrays"])


@pytest.mark.shared
@pytest.mark.parametrize("name", ARRAYS)
def test_recorded_weights_there_and_back(recorded, name):
    """Names as upstream's module has them, those of each stage as its trainer saves them."""
    folder = recorded / name
    keys, state = read_json(folder / "keys.json"), read_folder(folder)
    entry = ARCHITECTURES["mg_llava"]
    cfg = entry.read(read_json(folder / "config.json"), "config.json")
    assert_same(engine.to_torch(engine.to_jax(state.__getitem__, engine.plan(
        state, entry.table(cfg))), entry.table(cfg)), state)  # fmt: skip
    assert set(state) == set(keys["all"]) == set(engine.expand(entry.table(cfg)).torch_shapes())
    for stage in ("pretrain", "sft"):
        kept = [name for name in state if saved(name, stage)]
        assert sorted(kept) == sorted(keys[f"{stage}_checkpoint_keys"])


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Phi-3; a picture with boxes, a row without a picture, a picture without detections."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("recording")
    mg_llava_recording.write(folder)
    return folder


@pytest.mark.torch
@pytest.mark.parametrize("counted", [True, False])
def test_a_row_without_a_picture_and_one_without_boxes(recording, tmp_path, counted, capsys):
    """`counted`: the boxes that stand for none are among the inputs, as upstream's loader does."""
    if not counted:
        mg_llava_recording.write(tmp_path, counted)
    status = main([str(recording if counted else tmp_path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0, [line for line in report["arrays"] if not line["ok"]] + report["failures"]
    assert report["kind"] == "mg_llava" and report["arrays_total"] == 23
    shapes = {line["name"]: line["shape"] for line in report["arrays"]}
    assert shapes["inputs_embeds"][0] == 4 and shapes["box_pooled"][0] == 4


@pytest.fixture
def spoiled(recording, tmp_path):
    """A function: the recording with its weights, inputs or outputs changed."""

    def make(file, name, change):
        for path in recording.iterdir():
            if path.name != file:
                (tmp_path / path.name).symlink_to(path)
        if file.endswith("npz"):
            with np.load(recording / file) as archive:
                arrays = {x: archive[x] for x in archive.files}
            arrays[name] = change(arrays[name])
            np.savez(tmp_path / file, **arrays)
        else:
            state = {n: x.copy() for n, x in read_folder(recording).items()}
            state[name] = change(state[name])
            readers.write_safetensors(tmp_path / file, state)
        return tmp_path

    return make


def swap(x):
    return x[[1, 0, *range(2, len(x))]]


@pytest.mark.torch
@pytest.mark.parametrize(
    ("file", "name", "change"),
    [
        ("state_dict.safetensors", "fuse_module.gate.2.bias", lambda x: x + 0.1),
        ("state_dict.safetensors", "llm.model.layers.1.self_attn.qkv_proj.weight", lambda x: -x),
        ("inputs.npz", "boxes", swap),
        ("outputs.npz", "llm_labels", swap),
    ],
)
def test_a_spoiled_recording_fails(spoiled, file, name, change, capsys):
    assert main([str(spoiled(file, name, change))]) == 1
    assert "MISS" in capsys.readouterr().out


@pytest.mark.torch
def test_a_weight_that_is_missing_is_named(spoiled, capsys):
    from mg_jax.errors import UserError

    folder = spoiled("state_dict.safetensors", "projector.model.0.bias", lambda x: x[:3])
    with pytest.raises(UserError, match=r"! projector.model.0.bias \[3\], expected \[24\]"):
        main([str(folder)])
