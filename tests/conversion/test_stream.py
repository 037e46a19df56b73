"""Arrays written piece by piece: Orbax restores them onto any mesh, and memory stays bounded."""

import itertools
import json
import math
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding

from conversion import engine, readers, stream
from conversion.architectures import ARCHITECTURES
from conversion.engine import Rule
from conversion.leaves import Leaves
from conversion.moves import Pool
from mg_jax import checkpoint, sharding
from mg_jax.errors import UserError

BF16 = np.dtype(ml_dtypes.bfloat16)
SIZES = dict(l=3, e=2, f=96, d=128, v=512, n=4, h=32, y=2, x=2, g=2)
RULES = (
    Rule("embed", "embed", "v d -> v d"),
    Rule("layers.{l}.up", "up", "f d -> d f"),
    Rule("layers.{l}.q", "q", "(n h) d -> d n h"),
    Rule("layers.{l}.experts.{e}", "experts", "d f -> f d"),
    Rule("layers.{l}.fused", ("gate", "other"), "(g f) d -> g d f"),
    Rule("layers.{l}.norm", "norm", "d -> d"),
    Rule("layers.{l}.gain", "gain", " -> "),
    Rule("conv", "conv", "d (y x f) -> y x f d"),
)
NAMES = {
    "embed": ("vocab", "embed"),
    "up": ("layers", "embed", "mlp"),
    "q": ("layers", "embed", "heads", "head"),
    "experts": ("layers", None, "mlp", "embed"),
    "gate": ("layers", "embed", "mlp"),
    "other": ("layers", "embed", "mlp"),
    "norm": ("layers", "embed"),
    "gain": ("layers",),
    "conv": ("taps", "taps", "conv_in", "conv_out"),
}
TABLE = engine.bind(RULES, SIZES)


@pytest.fixture
def small(monkeypatch):
    """Pieces of 16 KiB, of which 64 KiB may wait."""
    monkeypatch.setattr(stream, "PIECE", 1 << 14)
    monkeypatch.setattr(stream, "HELD", 1 << 16)
    monkeypatch.setattr(stream, "TOGETHER", 1 << 10)


@pytest.fixture
def state(random_tensors):
    return random_tensors(engine.expand(TABLE).torch_shapes(), BF16)


def written(folder, state, dtype=BF16, **options):
    """(plan, {path: whole leaf}) of a state dict written under `folder`."""
    plan = engine.plan(state, TABLE)
    dtypes = dict.fromkeys(plan.jax_shapes(), np.dtype(dtype))
    stream.write_arrays(folder, plan, state.__getitem__, dtypes, NAMES, **options)
    stream.write_metadata(folder, plan)
    expected = engine.flatten(engine.to_jax(state.__getitem__, plan, dtype))
    return plan, expected


def same(found, expected):
    assert set(found) == set(expected)
    for path, leaf in expected.items():
        array = np.asarray(found[path])
        assert array.dtype == leaf.dtype and array.tobytes() == leaf.tobytes(), path


@pytest.mark.parametrize("rules", list(sharding.RULES))
def test_restored_onto_a_mesh_by_orbax(small, tmp_path, state, rules):
    _, expected = written(tmp_path / "params", state)
    mesh = sharding.make_mesh(2, 2, 2)
    file = checkpoint.ParamFile(tmp_path / "params")
    abstract = {
        path: jax.ShapeDtypeStruct(
            info.shape, info.dtype,
            sharding=NamedSharding(
                mesh, sharding.spec(NAMES[path], info.shape, mesh=mesh, rules=rules)
            ),
        )
        for path, info in file.shapes.items()
    }  # fmt: skip
    found = file.read(abstract)
    same(found, expected)
    assert all(found[path].sharding == abstract[path].sharding for path in found)
    split = any(any(leaf.sharding.spec) for leaf in found.values())
    assert split == (rules != "replicated")


def test_restored_whole_and_cast(small, tmp_path, state):
    _, expected = written(tmp_path / "params", state, np.float32)
    same(checkpoint.ParamFile(tmp_path / "params").read(), expected)


def test_the_metadata_is_what_orbax_itself_writes(small, tmp_path, state):
    _, expected = written(tmp_path / "ours", state)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_zarr3=True)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            tmp_path / "theirs", {p: jax.numpy.asarray(x) for p, x in expected.items()}
        )
    ours, theirs = (
        json.loads((tmp_path / side / "_METADATA").read_text()) for side in ("ours", "theirs")
    )
    assert ours == theirs


def test_chunks_divide_the_shards_of_every_preset_at_full_size():
    from launch import bench_convert

    entry = ARCHITECTURES["groma"]
    cfg = entry.read(bench_convert.config("7b"), "test")
    plan, names = engine.expand(entry.table(cfg)), entry.axes(cfg)
    meshes = [
        jax.sharding.AbstractMesh((1, fsdp, tensor), sharding.MESH_AXES)
        for fsdp, tensor in ((2, 1), (16, 2), (64, 8))
    ]
    for leaf in plan.leaves:
        for part, dtype in itertools.product(leaf.parts, (BF16, np.dtype(np.float32))):
            itemsize = dtype.itemsize
            made = stream.leaf_grid(leaf, part, dtype, names[part.path])
            assert itemsize * math.prod(made.piece) <= stream.PIECE
            assert itemsize * math.prod(made.block) <= stream.HELD
            assert all(p % c == 0 for p, c in zip(made.piece, made.chunk, strict=True))
            assert all(b % p == 0 or b == s for b, p, s in zip(made.block, made.piece, made.shape))  # noqa: B905
            for mesh in meshes:
                for rules in sharding.RULES:
                    spec = sharding.spec(names[part.path], part.shape, mesh=mesh, rules=rules)
                    shard = NamedSharding(mesh, spec).shard_shape(part.shape)
                    split = [s != n for s, n in zip(shard, part.shape, strict=True)]
                    assert all(
                        s % c == 0
                        for s, c, cut in zip(shard, made.chunk, split, strict=True)
                        if cut
                    ), (part.path, made, mesh.shape, rules)


def test_a_device_reads_its_own_chunks_alone(small, tmp_path, state):
    """Of the files that lie outside a shard nothing is needed."""
    _, expected = written(tmp_path / "params", state)
    for file in (tmp_path / "params" / "up" / "c").glob("[12]/*/*"):
        file.unlink()
    leaves = Leaves(tmp_path / "params")
    region = (slice(0, 1), slice(32, 64), slice(0, 96))
    ((at, piece),) = leaves.read("up", region)
    assert at == (slice(0, 1), slice(0, 32), slice(0, 96))
    assert piece.tobytes() == expected["up"][region].tobytes()


def test_memory_does_not_grow_with_the_model(small, tmp_path, random_tensors):
    """Bytes that are held are counted, by the pool and by Python's own tracing."""
    layers = 40
    table = engine.bind((Rule("layers.{l}.up", "up", "f d -> d f"),), {**SIZES, "l": layers})
    whole = random_tensors({"layers.0.up": (96, 128)}, BF16)["layers.0.up"]
    plan = engine.expand(table)
    total = layers * whole.nbytes
    counted = []
    tracemalloc.start()
    for count in (total // 2, total):
        pool = Pool()
        some = engine.expand(engine.bind(RULES[1:2], {**SIZES, "l": count // whole.nbytes}))
        tracemalloc.reset_peak()
        stream.write_arrays(
            tmp_path / str(count), some, lambda name: whole, {"up": BF16}, NAMES, pool=pool
        )
        counted.append((pool.most, tracemalloc.get_traced_memory()[1]))
        assert pool.now == 0
    tracemalloc.stop()
    assert plan.jax_shapes()["up"][0] * whole.nbytes > 10 * stream.HELD
    assert counted[0][0] == counted[1][0] <= stream.HELD
    assert counted[1][1] < stream.HELD + (1 << 19)


def test_a_tensor_larger_than_may_be_held_is_cut(small, tmp_path, random_tensors):
    table = engine.bind((Rule("embed", "embed", "v d -> d v"),), {**SIZES, "v": 4096})
    state = random_tensors({"embed": (4096, 128)}, BF16)
    assert state["embed"].nbytes > 10 * stream.HELD
    plan, pool = engine.plan(state, table), Pool()
    stream.write_arrays(
        tmp_path, plan, state.__getitem__, {"embed": BF16}, {"embed": ("embed", "vocab")}, pool=pool
    )
    stream.write_metadata(tmp_path, plan)
    assert pool.most <= stream.HELD
    found = checkpoint.ParamFile(tmp_path).read()
    assert np.asarray(found["embed"]).tobytes() == np.ascontiguousarray(state["embed"].T).tobytes()


def test_every_leaf_is_named_when_it_is_on_disk_and_skipped_when_asked(small, tmp_path, state):
    done, advanced = [], []
    _, expected = written(tmp_path / "a", state, done=done.append, advance=advanced.append)
    assert done == list(expected) and sum(advanced) == sum(x.nbytes for x in expected.values())
    some = []
    written(tmp_path / "b", state, skip=frozenset(list(expected)[1:]), done=some.append)
    assert some == list(expected)[:1]


def test_a_reader_that_fails_leaves_nothing_in_flight(small, tmp_path, state):
    calls = []

    def read(name):
        calls.append(name)
        if len(calls) == 6:
            raise UserError("cut short")
        return state[name]

    plan, pool = engine.plan(state, TABLE), Pool()
    with pytest.raises(UserError, match="cut short"):
        stream.write_arrays(tmp_path, plan, read, dict.fromkeys(NAMES, BF16), NAMES, pool=pool)
    assert not (tmp_path / "_METADATA").exists()


def test_a_tensor_of_another_shape_than_its_manifest_is_refused(small, tmp_path, state):
    plan = engine.plan(state, TABLE)
    state["layers.1.up"] = state["layers.1.up"].T
    with pytest.raises(
        UserError, match=r"layers\.1\.up has shape \[128, 96\], expected \[96, 128\]"
    ):
        stream.write_arrays(tmp_path, plan, state.__getitem__, dict.fromkeys(NAMES, BF16), NAMES)


@pytest.mark.parametrize("layout", ["pieces", "orbax", "safetensors"])
def test_regions_of_every_layout(small, tmp_path, state, layout):
    path = tmp_path / "params"
    _, expected = written(path, state)
    if layout == "orbax":
        path = tmp_path / "whole"
        checkpoint.save_params(path, expected)
    elif layout == "safetensors":
        path = tmp_path / "params.safetensors"
        readers.write_safetensors(path, expected)
    leaves = Leaves(path)
    assert {p: i.shape for p, i in leaves.manifest.items()} == {
        p: x.shape for p, x in expected.items()
    }
    for path, region in (
        ("up", (slice(1, 2), slice(3, 101), slice(0, 96))),
        ("up", (slice(0, 3), slice(0, 128), slice(95, 96))),
        ("norm", (slice(2, 3), slice(0, 128))),
        ("gain", (slice(1, 2),)),
    ):
        out = np.zeros([s.stop - s.start for s in region], BF16)
        for at, piece in leaves.read(path, region):
            out[at] = piece
        assert out.tobytes() == expected[path][region].tobytes(), path


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named_not_read_as_zeros(small, tmp_path, state, harm):
    written(tmp_path, state)
    file = tmp_path / "up" / "c" / "1" / "0" / "0"
    content = bytearray(file.read_bytes())
    if harm == "remove":
        file.unlink()
    else:
        content[100] ^= 1
        file.write_bytes(content if harm == "flip" else content[:2000])
    with pytest.raises(UserError, match=r"up: cannot be read"):
        list(Leaves(tmp_path).read("up", (slice(1, 2), slice(0, 128), slice(0, 96))))


def test_cut_follows_the_grid():
    region = (slice(5, 23), slice(0, 4))
    parts = list(stream.cut(region, (8, 4)))
    assert parts == [(s, slice(0, 4)) for s in (slice(5, 8), slice(8, 16), slice(16, 23))]
    assert list(stream.cut((slice(8, 16),), (8,))) == [(slice(8, 16),)]
