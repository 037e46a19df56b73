"""Reading safetensors against the reference library, shards, folders, and files at fault."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conversion import readers
from mg_jax.errors import UserError
from tests.conversion.torch_files import FLOATS, mapping, program, tensor, zip_bytes

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
    for name, value in reference.items():
        read = source.read(name)
        assert (read.shape, read.dtype) == (value.shape, value.dtype)
        assert source.manifest[name] == (value.shape, value.dtype)
        assert read.tobytes() == value.tobytes()
        assert not read.flags.writeable
    assert source.nbytes == sum(value.nbytes for value in TENSORS.values())
    assert (source.files, source.notes) == ((file,), ())


def test_what_we_write_the_library_reads(tmp_path):
    readers.write_safetensors(tmp_path / "out.safetensors", TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    loaded = load_file(tmp_path / "out.safetensors")
    assert all(loaded[name].tobytes() == value.tobytes() for name, value in TENSORS.items())


def by_hand(path, entries, data):
    """A safetensors file with the header given as it is."""
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(begin, end, shape=None, dtype="U8"):
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_the_manifest_is_in_file_order_and_data_need_not_be_aligned(tmp_path):
    header = {"b": entry(3, 11, [2], "F32"), "a": entry(0, 3)}
    header = json.dumps(header).encode() + b" " * 3
    data = bytes([7, 8, 9]) + np.array([1.5, -2], np.float32).tobytes()
    source = readers.SafeTensors(by_hand(tmp_path / "x.safetensors", header, data))
    assert list(source.manifest) == ["a", "b"]
    np.testing.assert_array_equal(source.read("a"), [7, 8, 9])
    np.testing.assert_array_equal(source.read("b"), [1.5, -2])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": entry(0, 4) | {"dtype": "Q4"}}, "a: unknown dtype 'Q4'"),
        ({"a": entry(0, 4) | {"dtype": ["F32"]}}, "a: its header entry is broken"),
        ({"a": entry(0, 4, [5])}, "a: 4 bytes do not fill its shape"),
        ({"a": entry(0, 9)}, r"cut short \(a lies past the end"),
        ({"a": entry(0, 2), "b": entry(1, 4)}, "b overlaps another tensor"),
        ({"a": entry(0, 2), "b": entry(3, 4)}, "b follows a hole"),
        ({"a": entry(0, 3)}, "1 bytes belong to no tensor"),
        ({"a": entry(0, 4, [-4])}, "a: its header entry is broken"),
        ({"a": entry(0, 4, [4] + [1] * 64)}, "a: 4 bytes do not fill its shape"),
        ({"a": entry(0, 4), "b": entry(4, 4, [0, 1 << 63])}, "b: 0 bytes do not fill its shape"),
        ({"a": {"dtype": "U8", "shape": [4]}}, "a: its header entry is broken"),
        ({"a": 3}, "a: its header entry is broken"),
        ([], "unreadable header"),
        (b'{"a": {}, "a": {}}', "'a' stands twice"),
        (b"[" * 100_000, "unreadable header"),
        (b'{"a": ' + b"9" * 5000 + b"}", "unreadable header"),
    ],
)
def test_headers_at_fault(entries, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        readers.open_checkpoint(by_hand(tmp_path / "x.safetensors", entries, bytes(4)))
    assert "x.safetensors: " in str(caught.value)


@pytest.fixture
def sharded(tmp_path):
    """(index, where): a folder of two shards; `where` maps names to files."""
    names = list(TENSORS)
    files = {"model-1-of-2.safetensors": names[:3], "model-2-of-2.safetensors": names[3:]}
    for name, held in files.items():
        save_file({n: TENSORS[n] for n in held}, tmp_path / name)
    where = {n: name for name, held in files.items() for n in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return index, where


def test_shards_are_one_checkpoint(sharded):
    index, where = sharded
    for path in (index, index.parent):
        source = readers.open_checkpoint(path)
        assert list(source.manifest) == list(where)
        np.testing.assert_array_equal(source.read("ids"), TENSORS["ids"])
        assert source.files == tuple(index.parent / f"model-{i}-of-2.safetensors" for i in (1, 2))
        with pytest.raises(UserError, match=r"index\.json: no tensor 'more'"):
            source.read("more")


def test_an_index_at_fault(sharded):
    index, where = sharded
    cases = {
        r"ids should be in model-1-of-2\.safetensors": where | {"ids": "model-1-of-2.safetensors"},
        r"more should be in model-1-of-2\.safe": where | {"more": "model-1-of-2.safetensors"},
        r"json: names the shard model-3\.safetensors, which is not": where
        | {"ids": "model-3.safetensors"},
        r"the shard 'a\\x00', which is not beside": where | {"ids": "a\0"},
        r"the shard '\\ud800', which is not beside": where | {"ids": "\ud800"},
        r"the shard x{400}\.\.\., which is not beside": where | {"ids": "x" * 3000},
        r"json: '\\x1b' should be in model-1-of-2": where | {"\x1b": "model-1-of-2.safetensors"},
        r"no file of its folder": where | {"ids": "../model-2-of-2.safetensors"},
        r"said to be in 7": where | {"ids": 7},
        r"no weight_map": {},
    }
    for message, weight_map in cases.items():
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError, match=message):
            readers.open_checkpoint(index.parent)
    texts = {
        "no JSON": "{",
        "(no JSON)": '{"a": ' + "9" * 5000 + "}",
        "no weight_map": "[]",
        "'a' stands twice": '{"a": 1, "a": 2}',
    }
    for message, text in texts.items():
        index.write_text(text)
        with pytest.raises(UserError, match=f"index.json.*{message}"):
            readers.open_checkpoint(index)
    index.unlink()
    index.mkdir()
    with pytest.raises(UserError, match=r"index\.json: not an index of shards"):
        readers.Sharded(index)


def test_a_shard_that_holds_more_or_the_same(sharded):
    index, where = sharded
    del where["ids"]
    index.write_text(json.dumps({"weight_map": where}))
    source = readers.open_checkpoint(index)
    assert list(source.manifest) == [*where, "ids"]
    assert source.notes == ("1 tensors the index does not name: ids ...",)
    save_file(TENSORS, index.parent / "model-2-of-2.safetensors")
    with pytest.raises(UserError, match=r"stands in both .*model-1-of-2.* and .*model-2-of-2"):
        readers.open_checkpoint(index)


def test_files_at_fault_are_named(file, tmp_path):
    whole = file.read_bytes()
    for size in range(0, len(whole), 13):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"model\.safetensors: cut short"):
            readers.open_checkpoint(file)
    file.write_bytes((4).to_bytes(8, "little") + b"PK\x03\x04" + b"data")
    with pytest.raises(UserError, match="unreadable header"):
        readers.open_checkpoint(file)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(UserError, match=r"model\.safetensors: a Git LFS pointer.*git lfs pull"):
        readers.open_checkpoint(file)
    with pytest.raises(UserError, match="no such file"):
        readers.open_checkpoint(tmp_path / "absent.safetensors")
    file.unlink()
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        readers.open_checkpoint(tmp_path)


def test_an_unknown_tensor_is_named(file):
    with pytest.raises(UserError, match="no tensor 'more'"):
        readers.open_checkpoint(file).read("more")


def test_a_prefix_of_every_name_comes_off(tmp_path):
    save_file({"module.a": np.ones(2), "module.b": np.zeros(2)}, tmp_path / "model.safetensors")
    source = readers.open_checkpoint(tmp_path)
    assert list(source.manifest) == ["a", "b"]
    np.testing.assert_array_equal(source.read("a"), np.ones(2))
    assert source.notes == ("prefix 'module.' taken off every name",)


def test_what_a_folder_is(tmp_path):
    """The names of transformers first, then the one file of weights, whatever its name."""
    state = zip_bytes(program(mapping({"w": tensor("0", 24, (24,), (1,))})), {"0": FLOATS})
    (tmp_path / "optimizer.pt").write_bytes(b"not read")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(state)
    assert readers.open_checkpoint(tmp_path).files == (tmp_path / "open_clip_pytorch_model.bin",)
    (tmp_path / "more.pth").write_bytes(state)
    with pytest.raises(UserError, match=r"more\.pth, open_clip_pytorch_model\.bin; name the file"):
        readers.open_checkpoint(tmp_path)
    save_file({"w": FLOATS}, tmp_path / "open_clip_model.safetensors")
    assert readers.open_checkpoint(tmp_path).files == (tmp_path / "open_clip_model.safetensors",)
    (tmp_path / "pytorch_model.bin").write_bytes(state)
    assert readers.open_checkpoint(tmp_path).files == (tmp_path / "pytorch_model.bin",)
    save_file({"w": FLOATS}, tmp_path / "model.safetensors")
    assert readers.open_checkpoint(tmp_path).files == (tmp_path / "model.safetensors",)


def test_latest_leads_to_a_step_once(tmp_path):
    """DeepSpeed writes a name; some link the folder."""
    state = zip_bytes(program(mapping({"w": tensor("0", 24, (24,), (1,))})), {"0": FLOATS})
    step, latest = tmp_path / "global_step7", tmp_path / "latest"
    step.mkdir()
    (step / "mp_rank_00_model_states.pt").write_bytes(state)
    for make in (
        lambda: latest.write_text("global_step7\n"),
        lambda: latest.symlink_to("global_step7"),
    ):
        make()
        assert readers.open_checkpoint(tmp_path).files[0].name == "mp_rank_00_model_states.pt"
        latest.unlink()
    for content in (b"", b" \n", b".", b"..", b"../x", b"absent", b"\xff\xfe", b"x" * 9999):
        latest.write_bytes(content)
        with pytest.raises(UserError, match="latest: names '.*', which is no folder") as caught:
            readers.open_checkpoint(tmp_path)
        assert len(str(caught.value)) < 600
    latest.unlink()
    latest.symlink_to(".")  # a circle
    with pytest.raises(UserError, match="and no other weights"):
        readers.open_checkpoint(tmp_path)


@pytest.mark.parametrize("beside", ["ema", "step"])
def test_a_wrapper_comes_before_the_tensors_beside_it(tmp_path, beside):
    one = tensor("0", 24, (24,), (1,))
    wrapped = mapping({beside: one, "model": mapping({"w": one})})
    (tmp_path / "model.pth").write_bytes(zip_bytes(program(wrapped), {"0": FLOATS}))
    source = readers.open_checkpoint(tmp_path / "model.pth")
    assert list(source.manifest) == ["w"]
    assert source.notes == (f"unwrapped 'model', left {beside}",)


def test_a_dict_without_tensors_wraps_nothing(tmp_path):
    one = tensor("0", 24, (24,), (1,))
    plain = mapping({"w": one, "model": mapping({"layers": b"K\x02"})})
    (tmp_path / "model.pth").write_bytes(zip_bytes(program(plain), {"0": FLOATS}))
    source = readers.open_checkpoint(tmp_path / "model.pth")
    assert list(source.manifest) == ["w"] and source.notes == ("left out, being no tensors: model",)


def test_shards_without_an_index(tmp_path):
    save_file({"w": FLOATS}, tmp_path / "model-00001-of-00001.safetensors")
    assert list(readers.open_checkpoint(tmp_path).manifest) == ["w"]
    save_file({"v": FLOATS}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="00001-of-00002.safetensors, but no index"):
        readers.open_checkpoint(tmp_path)
