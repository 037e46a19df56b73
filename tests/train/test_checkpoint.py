"""Train states and releases: any mesh, half-written and broken ones, full disks, wrong folders."""

import errno
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mg_jax import checkpoint
from mg_jax.checkpoint import ParamFile, TrainStates, load_release, save_release
from mg_jax.errors import UserError
from mg_jax.sharding import make_mesh


def tree(mesh, value=1.0, shape=(8, 4)):
    """(params, opt) laid out on `mesh`."""
    split = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    whole = NamedSharding(mesh, PartitionSpec())
    numbers = value + np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    params = {"a/kernel": jax.device_put(numbers, split), "b": jax.device_put(np.ones(3), whole)}
    return params, ({"mu": jax.tree.map(lambda x: x * 2, params)}, jax.device_put(7, whole))


def abstract(trees):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trees
    )


def test_saved_on_eight_devices_restored_on_fewer_and_on_another_mesh(tmp_path):
    params, opt = tree(make_mesh(2, 2, 2))
    states = TrainStates(tmp_path)
    states.save(3, params, opt, {"step": 3, "data": 11})
    states.close()
    for shape in ((1, 1, 1), (1, 2, 1), (2, 1, 2), (1, 4, 2)):
        mesh = make_mesh(*shape, jax.devices()[: math.prod(shape)])
        like, like_opt = tree(mesh, 0.0)
        found, found_opt, meta = TrainStates(tmp_path).restore(abstract(like), abstract(like_opt))
        assert meta == {"step": 3, "data": 11}
        for x, y, z in zip(
            jax.tree.leaves((found, found_opt)),
            jax.tree.leaves((params, opt)),
            jax.tree.leaves((like, like_opt)),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)
            assert x.sharding == z.sharding


def saved(folder, steps, keep=5, **kwargs):
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    states = TrainStates(folder, keep)
    for step in steps:
        states.save(step, *tree(mesh, float(step), **kwargs), {"step": step})
    states.close()
    return [abstract(x) for x in tree(mesh, **kwargs)]


def test_the_newest_stay_and_a_step_is_saved_once(tmp_path):
    like = saved(tmp_path, [1, 2, 3, 4], keep=2)
    states = TrainStates(tmp_path, 2)
    assert states.steps() == [3, 4]
    states.save(4, *tree(make_mesh(1, 1, 1, jax.devices()[:1]), 99.0), {"step": 4})
    assert states.restore(*like)[0]["a/kernel"][0, 0] == 4.0
    assert TrainStates(tmp_path / "none").restore(*like) is None


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    like = saved(tmp_path, [1, 2])
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    said = []
    found = TrainStates(tmp_path, warn=said.append).restore(*like)
    assert found[2] == {"step": 2}
    assert len(said) == 1 and "3.orbax-checkpoint-tmp: half-written" in said[0]


@pytest.mark.parametrize("part", ["params", "opt", "meta"])
def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path, part):
    like = saved(tmp_path, [1, 2])
    files = [f for f in (tmp_path / "2" / part).rglob("*") if f.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = []
    states = TrainStates(tmp_path, warn=said.append)
    params, _, meta = states.restore(*like)
    assert meta == {"step": 1} and params["a/kernel"][0, 0] == 1.0
    assert "2: cannot be read, using step 1 instead" in said[0]
    assert (tmp_path / "2.broken").is_dir() and states.steps() == [1]
    states.save(2, *tree(make_mesh(1, 1, 1, jax.devices()[:1]), 2.0), {"step": 2})
    states.close()
    assert TrainStates(tmp_path).restore(*like)[2] == {"step": 2}


def test_no_readable_checkpoint_is_an_error_not_a_fresh_start(tmp_path):
    like = saved(tmp_path, [1])
    shutil.rmtree(tmp_path / "1" / "params")
    with pytest.raises(UserError, match=r"none of the checkpoints \['1'\] can be read"):
        TrainStates(tmp_path).restore(*like)


def test_a_full_disk_is_named_and_earlier_checkpoints_stay(tmp_path, monkeypatch):
    like = saved(tmp_path, [1, 2], keep=1)
    states = TrainStates(tmp_path, 1)

    def full(self, *args, **kwargs):
        (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
        # as tensorstore words it
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device [28]")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError, match=r"the disk is full.*\(steps \[2\]\): free some space"):
        states.save(3, *tree(make_mesh(1, 1, 1, jax.devices()[:1])), {"step": 3})
    assert not (tmp_path / "3.orbax-checkpoint-tmp").exists()
    monkeypatch.undo()
    assert TrainStates(tmp_path).restore(*like)[2] == {"step": 2}


@pytest.mark.parametrize("code,text", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "written")])
def test_errors_of_the_disk(tmp_path, code, text):
    with pytest.raises(UserError, match=text), checkpoint.disk_errors(tmp_path / "f"):
        try:
            raise OSError(code, "no")
        except OSError as e:
            raise RuntimeError("wrapped") from e
    with pytest.raises(ZeroDivisionError), checkpoint.disk_errors(tmp_path):
        raise ZeroDivisionError


# -- releases ------------------------------------------------------------------------------------

CONFIG = {"system": "fake", "stage": "first", "model": {"width": 4}}


def params():
    x = jax.random.normal(jax.random.key(0), (8, 4))
    return {"a": {"kernel": x, "count": jnp.arange(3)}, "b": jnp.ones(5)}


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_release_round_trip(tmp_path, format, dtype):
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer.model").write_bytes(b"x")
    kept = {"a": {"kernel": params()["a"]["kernel"]}, "b": params()["b"]}
    folder = save_release(
        tmp_path / "r", kept, CONFIG, words, "# card\n", dtype=dtype, format=format
    )
    assert (folder / "README.md").read_text() == "# card\n"
    config, found, tokenizer = load_release(folder, "fake")
    assert {k: config[k] for k in CONFIG} == CONFIG
    assert tokenizer.joinpath("tokenizer.model").read_bytes() == b"x"
    assert jax.tree.structure(found) == jax.tree.structure(kept)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(kept), strict=True):
        assert x.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y.astype(dtype)))


@pytest.mark.parametrize("format", ["safetensors", "orbax"])
def test_release_is_read_onto_a_mesh_in_another_dtype(tmp_path, format):
    kept = {"a/kernel": params()["a"]["kernel"]}
    folder = save_release(tmp_path / "r", kept, CONFIG, format=format)
    place = NamedSharding(make_mesh(2, 2, 2), PartitionSpec("fsdp", "tensor"))
    like = {"a": {"kernel": jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=place)}}
    found = load_release(folder, abstract=like)[1]["a"]["kernel"]
    assert found.sharding == place and found.dtype == jnp.float32
    np.testing.assert_array_equal(found, kept["a/kernel"].astype(jnp.bfloat16))


def test_a_release_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    kept = {"b": jnp.ones(5)}
    folder = save_release(tmp_path / "r", kept, CONFIG, card="old")
    (folder / "stray").write_text("")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", full)
        with pytest.raises(UserError, match="r: the disk is full"):
            save_release(folder, kept, CONFIG, card="new")
    assert (folder / "README.md").read_text() == "old"
    save_release(folder, kept, CONFIG, card="new")
    assert (folder / "README.md").read_text() == "new" and not (folder / "stray").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


def test_wrong_release_folders_are_named(tmp_path):
    def expect(message, **kwargs):
        with pytest.raises(UserError, match=message):
            load_release(tmp_path, **kwargs)

    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_release("nowhere")
    expect(r"not a release folder \(it has no config.json\)")
    file = tmp_path / "config.json"
    file.write_text("{")
    expect("config.json: cannot be read")
    file.write_text(json.dumps({"model_type": "groma"}))
    expect("a PyTorch checkpoint .*launch.convert")
    file.write_text(json.dumps({"format": "mg_jax release", "system": "fake"}))
    expect("'model' is missing")
    file.write_text(json.dumps({"format": "mg_jax release", **CONFIG}))
    expect(r"params.safetensors \(or params/\) is missing")
    expect("a checkpoint of system 'fake', but 'groma' is asked for", system="groma")
    (tmp_path / "params.safetensors").write_bytes(b"12345")
    expect("params.safetensors: parameters cannot be read")
    (tmp_path / "params.safetensors").unlink()
    (tmp_path / "params").mkdir()
    expect("params: parameters cannot be read")
    (tmp_path / "checkpoints").mkdir()
    file.write_text("{}")
    expect("a training folder; its release is .*/release")


def test_param_file_knows_shapes_before_it_reads(tmp_path):
    save_release(tmp_path / "r", {"a/kernel": jnp.ones((2, 3))}, CONFIG)
    shapes = ParamFile(tmp_path / "r" / "params.safetensors").shapes
    assert shapes == {"a/kernel": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    checkpoint.save_params(Path(tmp_path / "o"), {"a/kernel": jnp.ones((2, 3))})
    assert ParamFile(tmp_path / "o").shapes["a/kernel"].shape == (2, 3)
