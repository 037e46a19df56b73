"""The verification command on the recordings of upstream, and on the same recordings spoiled."""

import json

import numpy as np
import pytest

from conversion import readers
from launch.verify import main

pytest.importorskip("mg_jax.models.groma")
pytestmark = pytest.mark.shared


@pytest.fixture(scope="session")
def recordings(shared):
    return shared / "golden" / "groma"


@pytest.mark.parametrize(
    "name", ["ops", "tokenizer", "preprocess", "c_ddetr_lvl4_224", "a_lvl1_448"]
)
def test_every_recorded_array_is_matched(recordings, name, capsys):
    status = main([str(recordings / name), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0, [line for line in report["arrays"] if not line["ok"]]
    assert report["arrays_total"] == {
        "ops": 26, "tokenizer": 178, "preprocess": 7, "c_ddetr_lvl4_224": 66, "a_lvl1_448": 115,
    }[name]  # fmt: skip


@pytest.fixture
def spoiled(recordings, tmp_path):
    """A function: a_lvl1_448 with one weight changed, and only the recordings named."""

    def make(keep, weight=None, outputs=None):
        source = recordings / "a_lvl1_448"
        checkpoint = readers.open_checkpoint(source)
        state = {name: checkpoint.read(name).copy() for name in checkpoint.manifest}
        if weight:
            state[weight].flat[0] += np.float16(0.02)
        readers.write_safetensors(tmp_path / "model.safetensors", state)
        for name in ("config.json", "inputs.npz"):
            (tmp_path / name).symlink_to(source / name)
        with np.load(source / "outputs.npz") as archive:
            arrays = {name: archive[name] for name in archive.files if name.startswith(keep)}
        for name, change in (outputs or {}).items():
            arrays[name] = change(arrays[name])
        np.savez(tmp_path / "outputs.npz", **arrays)
        return tmp_path

    return make


def test_one_perturbed_weight_fails(spoiled, capsys):
    weight = "perceiver.vis_encoder.encoder.layer.1.attention.attention.value.weight"
    assert main([str(spoiled("dinov2", weight=weight))]) == 1
    assert "MISS" in capsys.readouterr().out


def test_one_swapped_index_fails(spoiled, capsys):
    def swap(index):
        index[0, [3, 4]] = index[0, [4, 3]]
        return index

    folder = spoiled("plain_ddetr_topk", outputs={"plain_ddetr_topk_proposal_idx": swap})
    assert main([str(folder)]) == 1
    assert "0 of 1 recorded arrays match" in capsys.readouterr().out


def test_the_same_recordings_untouched_pass(spoiled, capsys):
    assert main([str(spoiled("plain_ddetr_topk"))]) == 0
