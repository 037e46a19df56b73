"""What a plan states before anything is read: dtypes that can be written, memory and disk."""

import json
import math

import ml_dtypes
import numpy as np
import pytest

import conversion
from conversion import engine, export, output, readers
from conversion.architectures import ARCHITECTURES
from conversion.carried import gib
from mg_jax import checkpoint
from mg_jax.errors import UserError
from tests.conversion.folders import CONFIGS, write_folder

NORM = "model.norm.weight"


@pytest.mark.parametrize("dtype", ["complex64", "uint16", "int8", "bool"])
def test_parameters_that_are_no_floats_are_refused_at_once(tmp_path, dtype):
    """Quantised weights, say: without their scales they are other numbers."""
    state = write_folder(tmp_path / "a", "llama")
    norms = {name: x.astype(dtype) for name, x in state.items() if "norm" in name}
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state | {NORM: norms[NORM]})
    said = f"model.safetensors: {NORM} is {dtype}: every parameter is of floating-point numbers"
    with pytest.raises(UserError, match=said):
        conversion.prepare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match=said):
        conversion.load(tmp_path / "a")
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state | norms)
    with pytest.raises(UserError, match=rf"is {dtype}, \.\.\. and {len(norms) - 3} more: every"):
        conversion.prepare(tmp_path / "a", tmp_path / "b", dtype="bf16")


@pytest.mark.parametrize("dtype", ["float8_e5m2fnuz", "float8_e8m0fnu"])
def test_a_float_that_no_release_holds_may_be_cast(monkeypatch, tmp_path, dtype):
    """Out of a torch file, and out of what another program wrote as a release."""
    kind = np.dtype(getattr(ml_dtypes, dtype))
    state = write_folder(tmp_path / "a", "llama")
    state[NORM] = np.full(state[NORM].shape, 2.0, np.float32).astype(kind)
    monkeypatch.setitem(readers.DTYPES, "F8_ODD", kind)
    monkeypatch.setitem(output.NAMES, kind, "F8_ODD")
    infos = {name: engine.TensorInfo(x.shape, x.dtype) for name, x in state.items()}
    with output.Output(tmp_path / "a" / "model.safetensors") as file:
        file.write(output.header(infos, {}))
        for x in state.values():
            file.write(x)
    monkeypatch.undo()
    monkeypatch.setitem(readers.DTYPES, "F8_ODD", kind)
    with pytest.raises(UserError, match=f"{NORM} is {dtype}, .*cast it with --dtype bf16 or f32"):
        conversion.prepare(tmp_path / "a", tmp_path / "b")
    release = conversion.convert(tmp_path / "a", tmp_path / "b", dtype="f32", check=True)
    norm = checkpoint.ParamFile(release / "params.safetensors").read()["lm/norm/scale"]
    assert norm.dtype == np.float32 and (norm == 2).all()


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16"])
def test_bin_files_hold_every_float_of_a_release(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    kind = np.dtype(getattr(ml_dtypes, dtype))
    state = write_folder(tmp_path / "a", "llama")
    state[NORM] = (np.arange(32) % 2).astype(kind)
    readers.write_safetensors(tmp_path / "a" / "model.safetensors", state)
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    conversion.convert(release, tmp_path / "c", format="bin", check=True)
    found = torch.load(tmp_path / "c" / "pytorch_model.bin", weights_only=True)[NORM]
    assert found.dtype == getattr(torch, dtype)
    assert found.float().tolist() == [0.0, 1.0] * 16


# -- disk and memory that a plan states --------------------------------------------------------


@pytest.mark.torch
def test_bin_needs_room_for_its_largest_shard_twice(monkeypatch, tmp_path):
    """What --dry-run says is what a run asks for."""
    pytest.importorskip("torch")
    monkeypatch.setattr(export, "SHARD", 20_000)
    write_folder(tmp_path / "a", "llama")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    plain = conversion.prepare(release, tmp_path / "c")
    job = conversion.prepare(release, tmp_path / "c", format="bin")
    largest = max(sum(t.nbytes for t in group) for group in job.shards.values())
    assert plain.disk == plain.nbytes == job.nbytes == job.disk - largest
    assert f"disk {gib(job.disk)}, of which" in job.describe()
    assert job.memory > plain.memory  # PyTorch itself
    asked = []
    monkeypatch.setattr("conversion.job.need_space", lambda dst, count: asked.append(count))
    job.run()
    assert asked == [job.disk]


def test_tensors_that_a_file_does_not_align_are_copied_and_counted(tmp_path):
    state = write_folder(tmp_path / "a", "llama")
    file = tmp_path / "a" / "model.safetensors"
    aligned = conversion.prepare(tmp_path / "a", tmp_path / "b")
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + length])).encode()
    header += b" " * (1 - len(header) % 4 + 4)  # no multiple of 4
    assert len(header) % 4
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    job = conversion.prepare(tmp_path / "a", tmp_path / "b")
    largest = max(4 * math.prod(x.shape) for x in state.values())
    assert job.memory - aligned.memory == largest
    job.run()
    assert job.check().ok


def test_every_architecture_has_a_plan_that_states_its_memory(tmp_path):
    for name in CONFIGS:
        write_folder(tmp_path / name, name)
        job = conversion.prepare(tmp_path / name, tmp_path / f"{name}_b")
        assert job.memory >= job.nbytes and job.entry is ARCHITECTURES[name]
