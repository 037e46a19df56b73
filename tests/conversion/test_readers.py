"""Reading safetensors against the reference library, and files that are not what they seem."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conversion import readers
from mg_jax.errors import UserError

TENSORS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "brain": np.arange(4, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "single": np.array(2.5, np.float32),
    "ids": np.arange(5),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 4), np.float32),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    return path


def test_tensors_equal_those_of_the_library(file):
    source = readers.open_checkpoint(file.parent)
    reference = load_file(file)
    assert set(source.manifest) == set(reference) == set(TENSORS)
    for name, tensor in reference.items():
        read = source.read(name)
        assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype)
        assert source.manifest[name] == (tensor.shape, tensor.dtype)
        assert read.tobytes() == tensor.tobytes()


def test_what_we_write_the_library_reads(tmp_path):
    readers.write_safetensors(tmp_path / "out.safetensors", TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    loaded = load_file(tmp_path / "out.safetensors")
    assert all(loaded[name].tobytes() == tensor.tobytes() for name, tensor in TENSORS.items())


def test_shards_are_one_checkpoint(tmp_path):
    names = list(TENSORS)
    files = {"model-1-of-2.safetensors": names[:3], "model-2-of-2.safetensors": names[3:]}
    for name, held in files.items():
        save_file({n: TENSORS[n] for n in held}, tmp_path / name)
    where = {n: name for name, held in files.items() for n in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    source = readers.open_checkpoint(tmp_path)
    assert set(source.manifest) == set(TENSORS)
    np.testing.assert_array_equal(source.read("ids"), TENSORS["ids"])

    index.write_text(json.dumps({"weight_map": where | {"ids": "model-1-of-2.safetensors"}}))
    with pytest.raises(UserError, match=r"ids should be in model-1-of-2\.safetensors"):
        readers.open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": where | {"ids": "model-3.safetensors"}}))
    with pytest.raises(UserError, match=r"model-3\.safetensors: no such file"):
        readers.open_checkpoint(tmp_path)
    index.write_text("{}")
    with pytest.raises(UserError, match="not an index"):
        readers.open_checkpoint(tmp_path)


def test_files_at_fault_are_named(file, tmp_path):
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"model\.safetensors: cut short \(\w+ lies past the end"):
        readers.open_checkpoint(file)
    file.write_bytes(whole[:20])
    with pytest.raises(UserError, match="cut short or not a safetensors file"):
        readers.open_checkpoint(file)
    file.write_bytes((4).to_bytes(8, "little") + b"PK\x03\x04" + b"data")
    with pytest.raises(UserError, match="unreadable header"):
        readers.open_checkpoint(file)
    file.write_bytes(b"")
    with pytest.raises(UserError, match="cut short"):
        readers.open_checkpoint(file)
    with pytest.raises(UserError, match="no such file"):
        readers.open_checkpoint(tmp_path / "absent.safetensors")
    file.unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        readers.open_checkpoint(tmp_path)


def test_an_unknown_tensor_is_named(file):
    with pytest.raises(UserError, match="no tensor 'more'"):
        readers.open_checkpoint(file).read("more")
