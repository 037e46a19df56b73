"""launch.verify on Ferret: upstream's recordings, and one of the form that is kept back."""

import json

import numpy as np
import pytest

from conversion import readers
from launch.verify import main
from tests.conversion import ferret_recording
from tests.conversion.folders import read_folder

ARRAYS = {"A_v1": 26, "C_v2_paper_sketch": 19}
FED = {"A_v1": 5, "C_v2_paper_sketch": 5}


def verified(folder, capsys):
    status = main([str(folder), "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.shared
@pytest.mark.parametrize("name", ARRAYS)
def test_every_recorded_array_is_matched(shared, name, capsys):
    """Of which only upstream's random draws are fed."""
    status, report = verified(shared / "golden" / "ferret" / name, capsys)
    assert status == 0, [line for line in report["arrays"] if not line["ok"]] + report["failures"]
    assert report["arrays_total"] == ARRAYS[name]
    assert sum("fed" in line["note"] for line in report["arrays"]) == FED[name]
    assert not any(line["note"] == "input" for line in report["arrays"])


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Ferret-UI; grids of three shapes, ragged rows, a region of a few pixels."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("recording")
    ferret_recording.write(folder)
    return folder


@pytest.mark.torch
def test_a_recording_of_several_resolutions_is_matched(recording, capsys):
    status, report = verified(recording, capsys)
    assert status == 0, [line for line in report["arrays"] if not line["ok"]] + report["failures"]
    names = {line["name"] for line in report["arrays"]}
    assert {"unpad.inputs_embeds", "region_map_image2", "logits"} <= names


@pytest.mark.torch
def test_what_differs_is_a_miss(recording, tmp_path, capsys):
    """A vector in the wrong place of the sampler's maps, and an array that nothing produces."""
    for file in recording.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = {name: x.copy() for name, x in read_folder(recording).items()}
    state["model.region_geo_sampler.dim_projector.bias"][3] += 0.01
    readers.write_safetensors(tmp_path / "model.safetensors", state)
    with np.load(recording / "outputs.npz") as held:
        np.savez(tmp_path / "outputs.npz", **held, surprise=np.zeros(2, np.float32))
    status, report = verified(tmp_path, capsys)
    missed = {line["name"] for line in report["arrays"] if not line["ok"]}
    assert status == 1 and {"surprise", "sampler.region_features", "inputs_embeds"} <= missed
    assert not missed & {"clip_features", "sampler.flatten_out", "region_map_image0"}
