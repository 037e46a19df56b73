"""The PyTorch side: shards, headers, copies, .bin, and what the original classes load."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import conversion
from conversion import engine, export, output, readers
from conversion.architectures import ARCHITECTURES
from conversion.engine import Rule, TensorInfo, Tied
from conversion.export import tensors
from conversion.moves import Pool
from mg_jax import checkpoint
from mg_jax.config import to_dict
from mg_jax.disk import disk_errors
from mg_jax.errors import UserError
from tests.conversion.folders import CONFIGS, GROMA, assert_same, read_folder, write_folder

BF16 = np.dtype(ml_dtypes.bfloat16)
SIZES = dict(l=3, f=24, d=16, v=40, n=4, h=4, s=2, k=2)
RULES = (
    Rule("embed", "embed", "v d -> v d"),
    Rule("layers.{l}.up", "up", "f d -> d f"),
    Rule("layers.{l}.q", "q", "(n h) d -> d n h"),
    Rule("layers.{l}.o", "o", "d (n h) -> n h d"),
    Rule("layers.{l}.fused", ("gate", "other"), "(s f) d -> s d f"),
    Rule("layers.{l}.qkv", ("a", "b", "c"), ("(n h) d -> d n h", "(k h) d -> d k h", "f d -> f d")),
    Rule("layers.{l}.gain", "gain", " -> "),
    Rule("flat", "flat", "d (f v) -> f v d"),
    Tied("head", "embed"),
)


def leaves_of(state, table):
    """A `read` of whole leaves in memory."""
    flat = engine.flatten(engine.to_jax(state.__getitem__, engine.plan(state, table)))

    def read(path, region):
        yield tuple(slice(0, s.stop - s.start) for s in region), flat[path][region]

    return read


@pytest.fixture
def state(random_tensors):
    made = random_tensors(engine.expand(engine.bind(RULES, SIZES)).torch_shapes(), BF16)
    return made | {"head": made["embed"]}


@pytest.mark.parametrize("whole", [1 << 29, 1000, 64])
def test_tensors_are_made_in_blocks_of_any_size(monkeypatch, state, whole):
    monkeypatch.setattr(export, "WHOLE", whole)
    table = engine.bind(RULES, SIZES)
    plan, read, pool = engine.expand(table), leaves_of(state, table), Pool()
    counts = {}
    for tensor in tensors(plan, dict.fromkeys(plan.jax_shapes(), BF16)):
        found = []
        for block in tensor.blocks(read, pool):
            found.append(block.tobytes())
            pool.give_back(block)
        assert b"".join(found) == state[tensor.name].tobytes(), tensor.name
        counts[tensor.name] = len(found)
    assert set(counts) == set(state) and pool.now == 0
    if whole == 64:
        assert counts["embed"] == counts["head"] == 20 and counts["layers.0.q"] == 4
        assert counts["layers.0.fused"] == counts["layers.0.gain"] == 1  # not cut


def test_rows_of_a_fused_tensor_may_differ_in_number(state):
    """Grouped queries: q has more rows than k, which an equal split could not hold."""
    table = engine.bind(RULES, SIZES)
    params = engine.to_jax(state.__getitem__, engine.plan(state, table))
    assert params["a"].shape == (3, 16, 4, 4) and params["b"].shape == (3, 16, 2, 4)
    np.testing.assert_array_equal(params["c"][1], state["layers.1.qkv"][24:])
    assert_same(engine.to_torch(params, table), state)
    with pytest.raises(ValueError, match="patterns and leaves do not fit"):
        engine.expand(engine.bind((Rule("a", ("b", "c"), ("d f -> d f",) * 3),), SIZES))
    with pytest.raises(ValueError, match="patterns and leaves do not fit"):
        engine.expand(engine.bind((Rule("a", ("b", "c"), ("d f -> d f", "d v -> d v")),), SIZES))


@pytest.mark.parametrize("size", [1000, 3000, 1 << 20])
def test_shards_and_their_index(monkeypatch, tmp_path, state, size):
    monkeypatch.setattr(export, "SHARD", size)
    table = engine.bind(RULES, SIZES)
    plan = engine.expand(table)
    files = export.shards(tensors(plan, dict.fromkeys(plan.jax_shapes(), BF16)), "safetensors")
    done = []
    for name, group in files.items():
        export.write_shard(tmp_path / name, group, leaves_of(state, table), done.append)
    export.write_index(tmp_path, files, "safetensors")
    assert_same(read_folder(tmp_path), state)
    total = sum(x.nbytes for x in state.values())
    assert sum(done) == total and not list(tmp_path.glob("*.part"))
    index = tmp_path / "model.safetensors.index.json"
    assert index.exists() == (len(files) > 1) == (size < total)
    if index.exists():
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == total
        assert set(content["weight_map"]) == set(state)
        assert f"model-00001-of-{len(files):05}.safetensors" in files
    for name in files:
        with safe_open(tmp_path / name, "np") as file:  # by the library of the format
            assert file.metadata() == {"format": "pt"}
            for tensor in file.keys():  # noqa: SIM118
                assert file.get_tensor(tensor).tobytes() == state[tensor].tobytes()


def test_a_header_aligns_and_a_file_is_whole_or_absent(tmp_path):
    infos = {"a": TensorInfo((3,), np.dtype(np.float32)), "b": TensorInfo((5,), BF16)}
    text = output.header(infos, {"format": "pt"})
    assert len(text) % 8 == 0
    array = np.arange(3, dtype=np.float32)
    with output.Output(tmp_path / "x.safetensors") as file:
        file.write(text)
        file.write(array[::-1])
        file.write(np.ones(5, BF16))
    found = readers.open_checkpoint(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(found.read("a"), array[::-1])
    assert found.read("b").tobytes() == np.ones(5, BF16).tobytes()


def test_output_passes_its_buffer_and_ends_where_the_numbers_end(monkeypatch, tmp_path, rng):
    monkeypatch.setattr(output, "BUFFER", 2 * output.BLOCK)
    pieces = [rng.integers(0, 255, n, np.uint8) for n in (3, 8192, 1, 20000, 4095)]
    with output.Output(tmp_path / "x") as file:
        for piece in pieces:
            file.write(piece)
    assert (tmp_path / "x").read_bytes() == b"".join(piece.tobytes() for piece in pieces)


def test_a_disk_without_direct_writes_will_do(monkeypatch, tmp_path):
    import errno
    import os

    real = os.open

    def without(path, flags, *rest):
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", without)
    with output.Output(tmp_path / "x") as file:
        file.write(b"some bytes")
    assert (tmp_path / "x").read_bytes() == b"some bytes"


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "groma_detector"])
def test_exported_copies_equal_their_sources(tmp_path, name):
    state = write_folder(tmp_path / "a", name)
    plan = engine.expand(ARCHITECTURES[name].table(CONFIGS[name]))
    folder = conversion.convert(tmp_path / "a", tmp_path / "b")
    back = read_folder(conversion.convert(folder, tmp_path / "c"))
    assert_same(back, state)
    for copy, source in plan.tied.items():
        assert back[copy].tobytes() == back[source].tobytes()


@pytest.mark.shared
@pytest.mark.parametrize("name", ["a_lvl1_448", "c_ddetr_lvl4_224"])
def test_an_export_equals_the_recorded_file_tensor_for_tensor(shared, tmp_path, name):
    golden = shared / "golden" / "groma" / name
    release = conversion.convert(golden, tmp_path / "release", check=True)
    folder = conversion.convert(release, tmp_path / "back", check=True)
    assert_same(read_folder(folder), read_folder(golden))
    again = conversion.read_config(folder)
    assert again == conversion.read_config(golden)


@pytest.mark.torch
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_by_pytorch_too(tmp_path):
    pytest.importorskip("torch")
    readers.write_safetensors(tmp_path / "a.safetensors", {"a": np.zeros(9, np.float32)})
    (tmp_path / "b.bin.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="b.bin: the disk is full"), disk_errors(tmp_path / "b.bin"):
        export._pickle(tmp_path / "a.safetensors", tmp_path / "b.bin")


@pytest.mark.torch
@pytest.mark.parametrize("size", [20_000, 1 << 30])
def test_bin_is_loaded_by_torch_without_pickles_of_its_own(monkeypatch, tmp_path, size):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(export, "SHARD", size)
    state = write_folder(tmp_path / "a", "qwen2", BF16)
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    folder = conversion.convert(release, tmp_path / "c", format="bin", check=True)
    files = sorted(folder.glob("*.bin"))
    assert not list(folder.glob("*.safetensors*")) and not list(folder.glob("*.part"))
    found = {}
    for file in files:
        found |= torch.load(file, weights_only=True, mmap=True)
    assert (
        (len(files) > 1) == (folder / "pytorch_model.bin.index.json").exists() == (size < 1 << 30)
    )
    assert set(found) == set(state)
    for key, tensor in state.items():
        assert found[key].dtype == torch.bfloat16
        assert found[key].view(torch.int16).numpy().tobytes() == tensor.tobytes()


@pytest.mark.torch
@pytest.mark.parametrize("format", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "phi3"])
def test_transformers_loads_an_export_strictly_with_equal_logits(
    monkeypatch, tmp_path, name, format
):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(export, "SHARD", 20_000)  # several shards
    cls = getattr(transformers, ARCHITECTURES[name].torch_class)
    raw = ARCHITECTURES[name].write_config(CONFIGS[name])
    torch.manual_seed(0)
    model = cls(cls.config_class.from_dict({**raw, "pad_token_id": 0})).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "a")
    release = conversion.convert(tmp_path / "a", tmp_path / "b", check=True)
    folder = conversion.convert(release, tmp_path / "c", format=format, check=True)
    again, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.arange(12)[None] % 40
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision", "position_rule", "size"),
        ("proposer", "refinement", "look_forward_twice"),
        ("proposer", "two_heads", False),
        ("regions", "box_format", "xyxy"),
        ("regions", "mlp", True),
        ("lm", "window", 8),
    ],
)
def test_what_the_published_code_would_compute_otherwise_is_refused(tmp_path, part, field, value):
    write_folder(tmp_path / "a", "groma")
    release = conversion.convert(tmp_path / "a", tmp_path / "b")
    config = json.loads((release / "config.json").read_text())
    config["model"][part][field] = value
    (release / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{part}.{field}"):
        conversion.prepare(release, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_release_that_training_wrote_is_exported_too(tmp_path):
    """mg_jax.checkpoint.save_release, safetensors and Orbax."""
    state = write_folder(tmp_path / "a", "groma")
    params = conversion.load(tmp_path / "a").params
    config = {"system": "groma", "stage": "instruction", "model": to_dict(GROMA)}
    for layout in ("safetensors", "orbax"):
        checkpoint.save_release(tmp_path / layout, params, config, dtype="float32", format=layout)
        folder = conversion.convert(tmp_path / layout, tmp_path / f"{layout}_back", check=True)
        assert_same(read_folder(folder), state)
