"""torch files that torch itself wrote, read without it."""

import json
import sys
import types

import numpy as np
import pytest

from conversion import readers
from mg_jax.errors import UserError
from tests.conversion.torch_files import (
    FLOATS,
    NO_VIEW,
    legacy_bytes,
    mapping,
    number,
    program,
    reference,
    tar_bytes,
    tensor,
    text,
    zip_bytes,
)

pytestmark = pytest.mark.torch
OLD_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64"
PREFIXED = "prefix 'module.' taken off every name"
LEFT_OUT = "left out, being no tensors"
NEW_DTYPES = "complex128 uint16 uint32 uint64 float8_e4m3fn float8_e5m2"


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def same(read, tensor):
    """Bit for bit, whatever the dtype and the order in memory."""
    torch = sys.modules["torch"]
    assert read.shape == tuple(tensor.shape)
    assert str(read.dtype) == str(tensor.dtype).removeprefix("torch.")
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    assert read.tobytes() == raw.tobytes()
    assert not read.flags.writeable


def check(path, state):
    source = readers.open_checkpoint(path)
    assert list(source.manifest) == list(state)
    for name, value in state.items():
        info = source.manifest[name]
        assert info == (tuple(value.shape), source.read(name).dtype)
        same(source.read(name), value)
    assert source.nbytes == sum(value.numel() * value.element_size() for value in state.values())
    return source


@pytest.fixture(scope="module")
def state(torch):
    """Every dtype, and every layout that a state dict may hold."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(6, 8, generator=draw)
    made = {name: (base * 9).to(getattr(torch, name)) for name in OLD_DTYPES.split()}
    made |= {
        "flat": base,
        "transposed": base.T,
        "row": base[3],
        "column": base[:, 2],
        "block": base[1:5:2, ::3],
        "expanded": base[:1].expand(5, 8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "permuted": torch.randn(2, 3, 4, generator=draw).permute(2, 0, 1),
        "channels_last": torch.randn(2, 3, 4, 5, generator=draw).to(
            memory_format=torch.channels_last
        ),
        "parameter": torch.nn.Parameter(torch.randn(3, generator=draw)),
    }
    return made


def test_new_files(torch, state, tmp_path):
    more = {name: torch.arange(7).to(getattr(torch, name)) for name in NEW_DTYPES.split()}
    torch.save(state | more, tmp_path / "model.pth")
    source = check(tmp_path / "model.pth", state | more)
    assert (source.notes, source.files) == ((), (tmp_path / "model.pth",))


def test_old_files(torch, state, tmp_path):
    torch.save(state, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    check(tmp_path / "model.pth", state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new", [True, False])
def test_every_protocol_and_whole_state_dicts(torch, protocol, new, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).half()
    file = tmp_path / "model.bin"
    how = dict(pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    torch.save(model.state_dict(), file, **how)
    check(file, model.state_dict())
    torch.save(model.state_dict(keep_vars=True), file, **how)
    check(file, model.state_dict())


def test_tensors_with_attributes(torch, tmp_path):
    weight = torch.nn.Parameter(torch.randn(3, generator=torch.Generator().manual_seed(0)))
    weight.ds_id = 7
    plain = weight.detach().clone()
    plain.tag = "x"
    torch.save({"weight": weight, "plain": plain}, tmp_path / "model.pth")
    check(tmp_path / "model.pth", {"weight": weight, "plain": plain})


def test_shared_storages_are_stored_once(torch, tmp_path):
    base = torch.arange(1000.0)
    state = {"whole": base, "part": base[10:20], "tied": base}
    torch.save(state, tmp_path / "model.pth")
    source = check(tmp_path / "model.pth", state)
    whole, part = source.read("whole"), source.read("part")
    assert np.shares_memory(whole, part) and np.shares_memory(whole, source.read("tied"))


def test_torch_reads_what_the_tests_make_by_hand(torch, tmp_path):
    """The oldest formats, which torch no longer writes, are made by hand: torch agrees."""
    arrays = {"0": FLOATS, "1": np.arange(4)}
    layout = {"a": ("0", 24, (2, 3), (3, 1), 6), "b": ("0", 24, (3, 2), (1, 3), 0)}
    whole = {name: tensor(*how) for name, how in layout.items()}
    whole["c"] = tensor("1", 4, (4,), (1,), kind="i8")
    view = b"(" + text("v") + number(4) + number(8) + b"t"
    old = {"a": tensor(*layout["a"], view=NO_VIEW), "b": tensor(*layout["a"][:4], 1, view=view)}
    old["b"] = tensor("0", 24, (2, 2), (2, 1), 1, view=view)
    old["c"] = tensor("1", 4, (4,), (1,), kind="i8", view=NO_VIEW)
    keys = mapping({"a": reference(11), "b": reference(12), "c": reference(13)})
    listed = [(11, 1, (2, 3), (3, 1), 6), (12, 2, (2, 2), (1, 2), 0), (13, 3, (2,), (1,), 1)]
    files = {
        "new.pth": zip_bytes(program(mapping(whole)), arrays),
        "old.pth": legacy_bytes(program(mapping(old)), arrays),
        "tar.pth": tar_bytes(
            program(keys), [(1, FLOATS), (2, np.arange(4))], listed, [(3, 1, 4, 8)]
        ),
    }
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
        check(tmp_path / name, torch.load(tmp_path / name, weights_only=False))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
def test_wrapped_state_dicts(torch, suffix, tmp_path):
    inner = {"a": torch.ones(2), "b": torch.zeros(3)}
    file = tmp_path / f"model{suffix}"
    cases = [
        ({"state_dict": inner, "epoch": 3}, ("unwrapped 'state_dict', left epoch",)),
        ({"model": inner}, ("unwrapped 'model'",)),
        ({"module": inner, "model": None}, ("unwrapped 'module', left model",)),
        (
            {"model": {"state_dict": {f"module.{n}": t for n, t in inner.items()}}},
            ("unwrapped 'model'", "unwrapped 'state_dict'", PREFIXED),
        ),
        ({f"module.module.{n}": t for n, t in inner.items()}, (PREFIXED, PREFIXED)),
        (inner | {"step": 4, "_extra_state": None}, (f"{LEFT_OUT}: step, _extra_state",)),
    ]  # fmt: skip
    for saved, notes in cases:
        torch.save(saved, file)
        assert check(file, inner).notes == notes


def test_a_prefix_that_not_every_name_has_stays(torch, tmp_path):
    state = {"module.a": torch.ones(2), "b": torch.ones(2)}
    torch.save(state, tmp_path / "model.pth")
    assert check(tmp_path / "model.pth", state).notes == ()


def test_what_is_no_state_dict_is_refused(torch, tmp_path):
    one = {"a": torch.ones(2)}
    cases = {
        "holds both state_dict and model": {"state_dict": one, "model": one},
        "no state dict but a dict of encoder, decoder": {"encoder": one, "decoder": one},
        "no state dict but a tensor": torch.ones(2),
        "no state dict but a list": [torch.ones(2)],
        "no state dict but a dict": {},
        "b holds tensors of its own": one | {"b": [torch.ones(1)]},
        r"_rebuild_sparse_tensor": {"a": torch.eye(2).to_sparse()},
        "conjugated": {"a": torch.ones(2, dtype=torch.complex64).conj()},
        r"global torch\.nn\.modules\.linear\.Linear": torch.nn.Linear(2, 2),
    }
    for message, saved in cases.items():
        torch.save(saved, tmp_path / "model.pth")
        with pytest.raises(UserError, match=message) as caught:
            readers.open_checkpoint(tmp_path / "model.pth")
        assert "model.pth" in str(caught.value)


def test_shards_of_bin_files(torch, state, tmp_path):
    names = list(state)
    files = {"pytorch_model-00001-of-00002.bin": names[:5],
             "pytorch_model-00002-of-00002.bin": names[5:]}  # fmt: skip
    for file, held in files.items():
        torch.save({name: state[name] for name in held}, tmp_path / file)
    where = {name: file for file, held in files.items() for name in held}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    source = check(tmp_path, state)
    assert source.files == tuple(tmp_path / file for file in files)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match=r"index.json: names the shard pytorch_model-00002"):
        readers.open_checkpoint(tmp_path)
    index.unlink()
    with pytest.raises(UserError, match="00001-of-00002.bin, but no index"):
        readers.open_checkpoint(tmp_path)


def deepspeed(torch, **changes):
    """What DeepSpeed writes as mp_rank_00_model_states.pt, and mmengine's client state in it."""
    module = {f"llm.{n}": torch.full((2, 3), float(n)).bfloat16() for n in range(3)}
    shapes = torch.nn.Module().state_dict()
    shapes.update({name: value.shape for name, value in module.items() if name != "llm.2"})
    kept = {
        "module": module, "buffer_names": ["llm.2"], "optimizer": None, "param_shapes": [shapes],
        "frozen_param_shapes": None, "shared_params": {}, "lr_scheduler": None,
        "sparse_tensor_module_names": set(), "skipped_steps": 0, "global_steps": 7,
        "dp_world_size": 8, "mp_world_size": 1, "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.12.3", "meta": {"cfg": "x = 1"}, "message_hub": {"lr": np.arange(2.0)},
    }  # fmt: skip
    return kept | changes


def test_deepspeed_folders_and_xtuner_ones(torch, tmp_path):
    """xtuner's DeepSpeed checkpoint is a folder iter_N.pth; DeepSpeed's own has `latest`."""
    run = tmp_path / "iter_10805.pth"
    run.mkdir()
    saved = deepspeed(torch)
    torch.save(saved, run / "mp_rank_00_model_states.pt")
    (run / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"not read")
    source = check(run, saved["module"])
    assert source.files == (run / "mp_rank_00_model_states.pt",)
    assert source.notes[0].startswith("unwrapped 'module', left buffer_names, optimizer")
    assert "zero_to_fp32.py" in source.notes[1]

    (tmp_path / "latest").write_text("iter_10805.pth\n")
    check(tmp_path, saved["module"])
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(UserError, match=r"latest: names '\.\./elsewhere'"):
        readers.open_checkpoint(tmp_path)


def test_zero_shards_are_refused(torch, tmp_path):
    file = tmp_path / "mp_rank_00_model_states.pt"
    lacking = deepspeed(torch)
    lacking["module"]["llm.1"] = torch.zeros(0).bfloat16()  # as ZeRO 3 leaves it
    torch.save(lacking, file)
    for path in (tmp_path, file):
        with pytest.raises(UserError, match=r"llm\.1 lies in ZeRO shards.*zero_to_fp32\.py"):
            readers.open_checkpoint(path)
    torch.save(deepspeed(torch), tmp_path / "mp_rank_01_model_states.pt")
    with pytest.raises(UserError, match="2 model-parallel ranks"):
        readers.open_checkpoint(tmp_path)
    for name in ("mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"):
        (tmp_path / name).unlink()
    for name in (
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ):
        torch.save({}, tmp_path / name)
        for path in (tmp_path, tmp_path / name):
            with pytest.raises(UserError, match=r"ZeRO shard.*zero_to_fp32\.py"):
                readers.open_checkpoint(path)


def test_mg_llava_files(torch, tmp_path):
    """xtuner's .pth with mmengine's company, and the pair in which the largest is published."""
    rest = {"projector.model.0.weight": torch.ones(2, 3), "fuse_module.gate.2.bias": torch.ones(1)}
    lm = {"model.norm.weight": torch.full((3,), 2.0), "lm_head.weight": torch.ones(4, 3)}
    module = types.ModuleType("mmengine.logging.history_buffer")
    exec("class HistoryBuffer:\n    def mean(self):\n        pass", module.__dict__)
    module.HistoryBuffer.__module__ = module.__name__
    history = module.HistoryBuffer()
    history._log_history = np.arange(3.0)
    history._statistics_methods = {"mean": module.HistoryBuffer.mean}
    names = ["mmengine", "mmengine.logging", module.__name__]
    packages = [types.ModuleType(name) for name in names[:2]]
    sys.modules |= dict(zip(names, [*packages, module], strict=True))
    try:
        company = {"meta": {"seed": np.int64(3)}, "message_hub": {"loss": history}}
        torch.save(company | {"state_dict": rest}, tmp_path / "34b_nollm.pth")
    finally:
        for name in names:
            del sys.modules[name]
    check(tmp_path / "34b_nollm.pth", rest)
    with pytest.raises(UserError, match="34b_llm_hf.pth that goes with it"):
        readers.open_checkpoint(tmp_path)

    folder = tmp_path / "34b_llm_hf.pth"
    folder.mkdir()
    torch.save(lm, folder / "pytorch_model.bin")
    source = check(tmp_path, rest | {f"llm.{name}": value for name, value in lm.items()})
    assert source.notes[0] == "34b_llm_hf.pth put under 'llm.'"
    assert len(source.files) == 2
    torch.save({"llm.lm_head.weight": torch.ones(1)}, tmp_path / "34b_nollm.pth")
    with pytest.raises(UserError, match=r"llm\.lm_head\.weight stands in both .*nollm\.pth and"):
        readers.open_checkpoint(tmp_path)
