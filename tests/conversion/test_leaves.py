"""Leaves that Orbax wrote as one compressed chunk: decoded once each, and counted as memory."""

import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import conversion
from conversion import stream
from conversion.leaves import Leaves
from mg_jax import checkpoint
from mg_jax.errors import UserError
from mg_jax.optim import flatten
from tests.conversion.folders import CONFIGS, assert_same, read_folder, write_folder


@pytest.fixture
def release(tmp_path):
    """A function: architecture -> (release as training writes a large one, its state dict)."""

    def make(name):
        state = write_folder(tmp_path / "a", name)
        opened = conversion.load(tmp_path / "a")
        config = opened.entry.settings(opened.cfg)
        folder = tmp_path / "release"
        checkpoint.save_release(folder, opened.params, config, dtype="float32", format="orbax")
        return folder, state

    return make


@pytest.fixture
def decoded(monkeypatch):
    """The leaves that were decoded whole, in order, and how many were held at once."""
    found, held = [], []
    real = Leaves.read

    def counted(self, path, region):
        before = set(self._held)
        for piece in real(self, path, region):
            found.extend(set(self._held) - before)
            held.append(len(self._held))
            before = set(self._held)
            yield piece

    monkeypatch.setattr(Leaves, "read", counted)
    return found, held


@pytest.mark.parametrize(("name", "together"), [("llama", 1), ("phi3", 3)])
def test_each_leaf_is_decoded_once(release, decoded, tmp_path, name, together):
    """Phi-3's q, k and v lie in one tensor, so that every layer reads three leaves in turn."""
    folder, state = release(name)
    job = conversion.prepare(folder, tmp_path / "b")
    job.run()
    assert_same(read_folder(tmp_path / "b"), state)
    found, held = decoded
    stacked = [p for p, shape in job.shapes.items() if "blocks/" in p and len(shape) > 2]
    assert set(stacked) <= set(found) and len(found) == len(set(found))
    assert max(held) == together


@pytest.mark.parametrize(("name", "parts"), [("llama", 1), ("phi3", 2)])
def test_memory_counts_what_is_decoded_whole(release, monkeypatch, tmp_path, name, parts):
    """Twice the largest tensor's leaves: decoded, and compressed while they are."""
    folder, _ = release(name)
    job = conversion.prepare(folder, tmp_path / "b")
    before = job.memory  # every chunk is smaller than a piece
    monkeypatch.setattr(stream, "PIECE", 1 << 12)
    monkeypatch.setattr("conversion.to_torch.PIECE", 1 << 12)
    cfg = CONFIGS[name]
    largest = parts * 4 * cfg.layers * cfg.width * cfg.mlp
    assert job.memory - before == 2 * largest - (min(job.nbytes, 1 << 27) - (1 << 15))
    written = conversion.convert(tmp_path / "a", tmp_path / "ours")
    ours = Leaves(written / "params.safetensors")
    assert not any(map(ours.decoded, ours.manifest))


def test_of_what_stream_wrote_only_small_leaves_are_decoded_whole(decoded, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "SMALL", 0)
    monkeypatch.setattr(stream, "PIECE", 1 << 12)
    monkeypatch.setattr(stream, "TOGETHER", 1 << 10)
    write_folder(tmp_path / "a", "phi3")
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    leaves = Leaves(release / "params")
    assert {path.rsplit("/", 2)[1] for path in decoded[0]} == {"norm1", "norm2"}
    assert not any(map(leaves.decoded, leaves.manifest))


def test_a_leaf_without_its_metadata_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "SMALL", 0)
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    job = conversion.prepare(release, tmp_path / "c")
    (release / "params" / "lm" / "norm" / "scale" / "zarr.json").write_text("{")
    with pytest.raises(UserError, match="lm/norm/scale: cannot be read"):
        job.describe()


def test_a_small_release_as_an_orbax_folder(tmp_path):
    write_folder(tmp_path / "a", "llama")
    file = conversion.convert(tmp_path / "a", tmp_path / "b")
    folder = conversion.convert(tmp_path / "a", tmp_path / "c", format="orbax", check=True)
    assert not (folder / "params.safetensors").exists()
    restored = ocp.StandardCheckpointer().restore((folder / "params").absolute())
    found = flatten(restored)
    wanted = load_file(file / "params.safetensors")
    assert found.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value)
    with pytest.raises(UserError, match="--format orbax: .* is a release already"):
        conversion.prepare(folder, tmp_path / "d", format="orbax")
