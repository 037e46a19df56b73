"""Folders of features: whole or absent, tied to their data, and read row by row."""

import json
import pickle

import numpy as np
import pytest

from mg_jax.data.sources import open_source
from mg_jax.data.sources.features import write_features
from mg_jax.data.write import write_voc
from mg_jax.errors import UserError

MADE = {"trunk": "fake", "image_size": 56, "taps": [], "preprocess": "groma_pil"}


@pytest.fixture
def voc(tmp_path):
    source = open_source("scenes:seed=9,n=6,tasks=none,size=96x64")
    write_voc([source[i] for i in range(6)], tmp_path / "v")
    return f"voc:{tmp_path / 'v'},views=2"


def states(n=12):
    return np.random.default_rng(1).normal(size=(n, 4, 5, 8)).astype(np.float32)


def test_rows_stand_beside_their_examples(voc, tmp_path):
    folder = write_features(tmp_path / "f", voc, np.array_split(states(), 5), MADE)
    assert sorted(p.name for p in folder.iterdir()) == ["features.json", "states.npy"]
    found, source = open_source(f"features:{folder},tasks=presence"), open_source(voc)
    assert len(found) == 12 and found.tasks == {"presence": 1.0}
    assert found.made["trunk"] == "fake" and found.exhaustive and found.frequency
    for reader in (found, pickle.loads(pickle.dumps(found))):
        for i in (0, 7, 11):
            one = reader[i]
            np.testing.assert_array_equal(one.meta["states"], states()[i].astype(np.float16))
            assert one.objects == source[i].objects and reader.file_name(i) == source.file_name(i)


@pytest.mark.parametrize("n,match", [(11, "11 states of 12"), (13, "more states than its 12")])
def test_every_example_has_one_row(voc, tmp_path, n, match):
    with pytest.raises(UserError, match=match):
        write_features(tmp_path / "f", voc, np.array_split(states(n), 3), MADE)
    assert not (tmp_path / "f").exists()


def test_what_does_not_fit_is_refused(voc, tmp_path, monkeypatch):
    large = states()
    large[3, 0, 0, 0] = 1e6
    with pytest.raises(UserError, match="do not fit into float16"):
        write_features(tmp_path / "f", voc, [large], MADE)
    monkeypatch.setattr("mg_jax.disk.free_bytes", lambda folder: 10)
    with pytest.raises(UserError, match="the disk is full"):
        write_features(tmp_path / "f", voc, [states()], MADE)
    monkeypatch.undo()
    folder = write_features(tmp_path / "f", voc, [states()], MADE)
    with pytest.raises(UserError, match="f: is there already"):
        write_features(folder, voc, [states()], MADE)
    for option in ("part=train", "views=2"):
        with pytest.raises(UserError, match=r"belong into the data of launch\.features"):
            open_source(f"features:{folder},{option}")


def test_a_folder_goes_with_its_data(voc, tmp_path):
    folder = write_features(tmp_path / "f", voc, [states()], MADE)
    info = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(info | {"shape": [12, 4, 5, 9]}))
    with pytest.raises(UserError, match=r"states\.npy: does not fit"):
        open_source(f"features:{folder}")
    (folder / "features.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"features\.json: is of no folder of features"):
        open_source(f"features:{folder}")
    (folder / "features.json").write_text(json.dumps(info))
    next((tmp_path / "v" / "Annotations").iterdir()).unlink()
    with pytest.raises(UserError, match="are others than when the features were made"):
        open_source(f"features:{folder}")
    with pytest.raises(UserError, match="no such folder"):
        open_source(f"features:{tmp_path / 'nowhere'}")
