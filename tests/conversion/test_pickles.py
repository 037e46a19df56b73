"""Pickles that are hostile, odd or broken: refused by name, never run."""

import argparse
import builtins
import io
import os
import pickle
import pickletools
import sys
import types
import zipfile

import numpy as np
import pytest

from conversion import readers
from mg_jax.errors import UserError
from tests.conversion.torch_files import (
    FLOATS,
    LEGACY_MAGIC,
    ONE,
    ORDERED,
    containers,
    legacy_bytes,
    mapping,
    number,
    opened,
    program,
    reference,
    state,
    storage,
    tar_bytes,
    tensor,
    text,
    zip_bytes,
)


def glob(module, name):
    """Opcodes that push a global by STACK_GLOBAL."""
    return text(module) + text(name) + b"\x93"


COMMAND = text("touch canary")
HOSTILE = {
    "os.system": b"cos\nsystem\n(" + COMMAND + b"tR",
    "posix.system": b"cposix\nsystem\n(" + COMMAND + b"tR",
    "builtins.eval": glob("builtins", "eval") + b"(" + text("open('canary','w')") + b"tR",
    "__builtin__.exec": b"c__builtin__\nexec\n" + COMMAND + b"\x85R",
    "subprocess.Popen": b"csubprocess\nPopen\n" + COMMAND + b"\x85\x81",
    "runpy.run_path": b"crunpy\nrun_path\n.",
    "torch.load": b"ctorch\nload\n" + COMMAND + b"\x85R",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n" + COMMAND + b"\x85R",
    "torch.hub.load": b"ctorch\nhub.load\n" + COMMAND + b"\x85R",
    "collections.OrderedDict.fromkeys": b"ccollections\nOrderedDict.fromkeys\n)R",
    "numpy.load": b"cnumpy\nload\n" + COMMAND + b"\x85R",
    "builtins.getattr on collections.OrderedDict": (
        glob("builtins", "getattr") + b"(" + ORDERED + text("fromkeys") + b"tR"
    ),
    "__builtin__.getattr on __builtin__.getattr": (
        b"c__builtin__\ngetattr\n(c__builtin__\ngetattr\n" + text("__self__") + b"tR"
    ),
    "uses opcode INST with os system": b"(S'touch canary'\nios\nsystem\n",
    "uses opcode INST with collections OrderedDict": b"(icollections\nOrderedDict\n",
    "uses opcode OBJ": b"(" + ORDERED + b"o",
    "uses opcode NEWOBJ_EX": ORDERED + b")}\x92",
    "makes an object of collections.OrderedDict": ORDERED + b")\x81",
    "uses opcode EXT1 with 7": b"\x82\x07",
    "uses opcode EXT2 with 7": b"\x83\x07\x00",
    "uses opcode EXT4 with 7": b"\x84\x07\x00\x00\x00",
    "uses opcode NEXT_BUFFER": b"\x97",
    "uses opcode READONLY_BUFFER": b"\x98",
    "calls a str": COMMAND + b")R",
    "calls torch.float32": b"ctorch\nfloat32\n)R",
    "calls torch.FloatStorage": b"ctorch\nFloatStorage\nK\x09\x85R",
    "sets the state of a list": b"]}b",
    "sets the state of torch._utils._rebuild_tensor_v2": b"ctorch._utils\n_rebuild_tensor_v2\n}b",
    "appends to a dict": b"}(K\x01e",
    "sets items of a list": b"](K\x01K\x02u",
    "has a tuple as a key": b"})K\x02s",
    "has a list as a key": b"}]K\x02s",
}


@pytest.mark.parametrize("kind", ["new.pth", "old.pth", "oldest.pth"])
@pytest.mark.parametrize("named", HOSTILE)
def test_hostile_pickles_are_refused_by_name(named, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("was run"))
    monkeypatch.setattr(builtins, "eval", lambda *_: pytest.fail("was run"))
    file = tmp_path / kind
    file.write_bytes(containers(HOSTILE[named])[kind])
    with pytest.raises(UserError) as caught:
        readers.open_checkpoint(file)
    message = str(caught.value)
    assert named in message and f"{kind}: refused, nothing in it was run" in message
    assert "\n" not in message
    assert not (tmp_path / "canary").exists()


class Reduced:
    """An object whose pickle calls a function."""

    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_refused(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "model.bin"
    pickled = pickle.dumps({"a": 1, "b": [Reduced()]}, protocol)
    file.write_bytes(zip_bytes(pickled))
    with pytest.raises(UserError, match=rf"model\.bin: refused.*global {os.name}\.system"):
        readers.open_checkpoint(file)
    assert not (tmp_path / "canary").exists()


def test_no_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "surprise.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "model.pth"
    file.write_bytes(zip_bytes(program(b"csurprise\nthing\n")))
    with pytest.raises(UserError, match=r"surprise\.thing"):
        readers.open_checkpoint(file)
    assert "surprise" not in sys.modules


def test_what_trainers_leave_beside_the_weights_is_not_made(tmp_path, monkeypatch):
    """mmengine's history names a method of its class, which pickle spells with getattr."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    source = "class HistoryBuffer:\n    def min(self):\n        pass\n"
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    history = module.HistoryBuffer()
    history.values = np.arange(3.0)
    history.methods = {"min": module.HistoryBuffer.min}
    extra = {
        "message_hub": {"loss": history, "best": np.float64(2), "kinds": {"a", 1}},
        "args": argparse.Namespace(lr=1e-4, name="x"),
        "rng": b"\x00\xff",
    }
    pickled = pickle.dumps(extra, 2)
    assert b"__builtin__\ngetattr" in pickled
    for name in ("mmengine", "mmengine.logging", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    # the weights come after what was pushed, so that nothing of it may upset the stack
    body = pickled[2:-1] + text("state_dict") + state() + b"s"
    source = opened(tmp_path, body)
    assert source.notes == ("unwrapped 'state_dict', left message_hub, args, rng",)
    np.testing.assert_array_equal(source.read("w"), FLOATS.reshape(4, 6))
    assert not any(name.startswith("mmengine") for name in sys.modules)


def test_attributes_of_a_state_dict_are_dropped(tmp_path):
    made = ORDERED + b")R(" + state()[2:] + b"}" + text("_metadata") + b"}sb"
    np.testing.assert_array_equal(opened(tmp_path, made).read("w"), FLOATS.reshape(4, 6))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_values_are_no_tensors(tmp_path, protocol):
    values = [1, 1 << 70, -2.5, None, True, "text", b"raw", (1, 2, 3, 4), [1, [2]], {"a": {}}, {1}]
    values += [frozenset({2}), "x" * 300, bytes(300), {}, bytearray(b"z")]
    body = mapping({"state_dict": state()})
    for i, value in enumerate(values[: None if protocol == 5 else -1]):
        # without the frame of protocol 4, and memo slots of their own
        pickled = pickletools.optimize(pickle.dumps(value, protocol))
        ops = [(op, at) for op, _, at in pickletools.genops(pickled)]
        first = next(at for op, at in ops if op.name not in ("PROTO", "FRAME"))
        body += text(f"v{i}") + pickled[first:-1] + b"s"
    source = opened(tmp_path, body)
    assert list(source.manifest) == ["w"]
    assert source.notes[0].startswith("unwrapped 'state_dict', left v0, v1")


def test_containers_that_hold_themselves_end(tmp_path):
    loop = b"]q\x09h\x09a"
    with pytest.raises(UserError, match="x holds tensors of its own"):
        opened(tmp_path, state(x=b"](" + state() + b"e"))
    source = opened(tmp_path, state(x=loop))
    assert source.notes == ("left out, being no tensors: x",)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"h\x05", "cut short or broken"),
        (b"tttt", "cut short or broken"),
        (b"R", "cut short or broken"),
        (b"K\x01K\x02R", "arguments that are no tuple"),
        (b"\xff", "cut short or broken"),
        (b"X\xff\xff\xff\x7fabc", "a value of 2147483647 bytes"),
        (b"I" + b"9" * 5000 + b"\n", "cut short or broken"),
        (b"}(K\x01u", "cut short or broken"),
        (text("0") + b"Q", "cut short or broken"),
        (b"K\x01K\x02\x93", "a global whose name is no text"),
        (b"}K\x01K\x02s", "no state dict but a dict of 1"),
        (b"K\x01", "no state dict but a int"),
        (
            b"}" + text("a") + b"K\x01s" + text("a") + b"K\x02s",
            "'a' stands twice",
        ),
        (mapping({"a": storage("0", 24)}), "no state dict but a dict of a"),
        (mapping({"a": tensor("7", 24, (4,), (1,))}), "no storage '7'"),
        (mapping({"a": tensor("0", 23, (4,), (1,))}), "96 bytes.*expect 92"),
        (mapping({"a": tensor("0", 24, (5, 5), (5, 1))}), "larger than its"),
        (mapping({"a": tensor("0", 24, (2,), (1,), 23)}), "larger than its"),
        (mapping({"a": tensor("0", 24, (-1,), (1,))}), "odd shape"),
        (mapping({"a": tensor("0", 24, (2,), (-1,), 4)}), "odd shape"),
        (mapping({"a": tensor("0", 24, (2, 2), (1,))}), "odd shape"),
        (mapping({"a": tensor("0", 24, (1,) * 65, (1,) * 65)}), "odd shape"),
        (mapping({"a": tensor("0", 24, (0, 1 << 62), (1, 1))}), "odd shape"),
        (mapping({"a": tensor("0", 24, (1 << 62, 1 << 62), (0, 0))}), "odd shape"),
        (mapping({"a": tensor("../../x", 24, (2,), (1,))}), "no storage"),
        (
            state() + b"K\x05" + tensor("0", 24, (2,), (1,)) + b"s",
            "5 is a tensor's name",
        ),
    ],
)
def test_broken_pickles_are_named(body, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path, body)
    assert "model.pth" in str(caught.value) and "\n" not in str(caught.value)


def test_no_step_is_taken_along_a_single_entry(tmp_path):
    source = opened(tmp_path, mapping({"a": tensor("0", 24, (1, 4), (1 << 62, 2), 3)}))
    np.testing.assert_array_equal(source.read("a"), [[3, 5, 7, 9]])


def test_chance_damage_never_escapes_as_another_error(tmp_path, rng):
    """Bytes of each container changed at random: an error of ours, or a checkpoint."""
    body = state(x=tensor("0", 24, (3,), (2,), 1))
    old = body.replace(b"tQ", b"NtQ")
    keys = mapping({"a": reference(5), "b": reference(6)})
    tensors = [(5, 0, (4, 6), (6, 1), 0), (6, 0, (3,), (2,), 1)]
    files = [
        zip_bytes(program(body), ONE),
        legacy_bytes(program(old), ONE),
        tar_bytes(program(keys), [(0, FLOATS)], tensors),
    ]
    file, outcomes = tmp_path / "model.pth", set()
    for whole in files:
        file.write_bytes(whole)
        assert len(readers.open_checkpoint(file).manifest) == 2
        for _ in range(120):
            damaged = bytearray(whole)
            for at in rng.integers(len(whole), size=rng.integers(1, 4)):
                damaged[at] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                source = readers.open_checkpoint(file)
                for name in source.manifest:
                    source.read(name)
                outcomes.add("read")
            except UserError as error:
                assert "model.pth" in str(error)
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_every_cut_of_a_file_is_noticed(tmp_path):
    body = program(state())
    old = program(state().replace(b"tQ", b"NtQ"))
    pickled = program(mapping({"a": reference(5)}))
    described = [(5, 0, (4, 6), (6, 1), 0)]
    tar = tar_bytes(pickled, [(0, FLOATS)], described)
    end = tar.index(FLOATS.tobytes()) + FLOATS.nbytes  # then padding
    wholes = [zip_bytes(body, ONE), legacy_bytes(old, ONE), tar[:end]]
    file = tmp_path / "model.pth"
    for whole in wholes:
        for size in range(0, len(whole), 23):
            file.write_bytes(whole[:size])
            with pytest.raises(UserError, match=r"model\.pth: "):
                readers.open_checkpoint(file)


def test_deep_nesting_is_no_recursion(tmp_path):
    deep = b"(" * 50_000 + b"t" * 50_000
    source = opened(tmp_path, state(x=deep))
    assert source.notes == ("left out, being no tensors: x",)


def test_views_of_legacy_storages_and_their_faults(tmp_path):
    """Before 0.4 a storage could be a view of another: (key, offset, elements)."""
    file = tmp_path / "old.pth"

    def write(offset, count, arrays=ONE):
        view = b"(" + text("v") + number(offset) + number(count)
        made = tensor("0", 24, (2, 2), (2, 1), 1, view=view + b"t")
        pickled = program(mapping({"a": made}))
        file.write_bytes(legacy_bytes(pickled, arrays))
        return readers.open_checkpoint(file)

    np.testing.assert_array_equal(write(4, 8).read("a"), [[5, 6], [7, 8]])
    with pytest.raises(UserError, match="a view larger than its storage"):
        write(20, 8)
    with pytest.raises(UserError, match="list of storages does not fit"):
        write(4, 8, {})
    with pytest.raises(UserError, match="has 12 elements, its tensors expect 24"):
        write(4, 8, {"0": FLOATS[:12]})
    with pytest.raises(UserError, match="storage '1' has no tensor"):
        write(4, 8, {"1": FLOATS})


def test_a_whole_module_is_refused(tmp_path):
    saved = containers(b"(" + text("module") + ORDERED + b"NNtQ")
    for name in ("old.pth", "oldest.pth"):
        (tmp_path / name).write_bytes(saved[name])
        with pytest.raises(UserError, match=rf"{name}: holds a whole nn\.Module"):
            readers.open_checkpoint(tmp_path / name)


def test_big_endian_files_are_refused(tmp_path):
    file = tmp_path / "model.pth"
    body = program(state())
    for raw in (
        zip_bytes(body, ONE, byteorder=b"big"),
        legacy_bytes(body.replace(b"tQ", b"NtQ"), ONE, little=False),
        tar_bytes(body, little=False),
    ):
        file.write_bytes(raw)
        with pytest.raises(UserError, match=r"model\.pth: .*little-endian"):
            readers.open_checkpoint(file)


def zip_of(entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, raw in entries.items():
            archive.writestr(name, raw)
    return out.getvalue()


def test_files_of_other_kinds_are_named(tmp_path):
    file = tmp_path / "model.bin"
    cases = {
        "a bare pickle": pickle.dumps({"a": 1}),
        "of no known kind": b"hello, world",
        "of no known kind, 0 bytes": b"",
        "run `git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        r"no data\.pkl in it": zip_of({"a/b": b"c"}),
        "TorchScript program": zip_of({"m/data.pkl": b"", "m/constants.pkl": b""}),
        "is compressed": zip_bytes(program(state()), ONE, compress=8),
        "missing or broken": b"PK\x03\x04 and no more",
        "its first pickles are not torch's": pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(1000, 2),
    }
    for message, raw in cases.items():
        file.write_bytes(raw)
        with pytest.raises(UserError, match=message) as caught:
            readers.open_checkpoint(file)
        assert "model.bin" in str(caught.value)
    with pytest.raises(UserError, match="absent.bin: no such file"):
        readers.open_checkpoint(tmp_path / "absent.bin")


def test_an_entry_named_twice_is_refused(tmp_path):
    file = tmp_path / "model.pth"
    pickled = program(state())
    with zipfile.ZipFile(file, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for name in ("data.pkl", "data/0", "data/0"):
            archive.writestr(f"archive/{name}", pickled)
    with pytest.raises(UserError, match=r"model\.pth: archive/data/0 stands twice"):
        readers.open_checkpoint(file)
