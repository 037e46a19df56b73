"""Pickles of plain values are read, whoever wrote them; anything else is refused, never run."""

import builtins
import os
import pickle
import sys

import pytest

from mg_jax import pickles
from mg_jax.errors import UserError


def load(tmp_path, data):
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    return pickles.load(path)


VALUES = [
    1, -70000, 1 << 70, -2.5, None, True, False, "", "café\n'", "x" * 300, [1, [2, []]], (1,),
    (1, 2, 3, 4), (), {"a": {"b": [None]}, 3: "c"}, b"raw",
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol, tmp_path):
    # protocols 0 to 2 have no bytes of their own: Python 3 writes a call in their place
    values = VALUES[:-1] if protocol < 3 else VALUES
    shared = ["again"]
    assert load(tmp_path, pickle.dumps([*values, shared, shared], protocol)) == [
        *values, shared, shared
    ]  # fmt: skip


def test_strings_of_python_2(tmp_path):
    """UTF-8 where they are that, else Latin-1, in each of the three opcodes; texts as they are."""
    assert load(tmp_path, rb"(lp0" b"\n" rb"S'caf\xc3\xa9 \'n\' co'" b"\np1\na.") == ["café 'n' co"]
    assert load(tmp_path, b'S"it\'s"\n.') == "it's"
    assert load(tmp_path, rb"S'\xe9'" b"\n.") == "é"
    assert load(tmp_path, b"\x80\x02U\x03caf.") == "caf"
    assert load(tmp_path, b"\x80\x02U\x02\xc3\xa9.") == "é"
    assert load(tmp_path, b"T\x01\x00\x00\x00\xe9.") == "é"
    assert load(tmp_path, b"V\xe9\\u20ac\n.") == "é€"
    assert load(tmp_path, b"(I01\nL12L\nF1.5\nt.") == (True, 12, 1.5)


HOSTILE = {
    "the global os.system": b"cos\nsystem\n(S'touch canary'\ntR.",
    "the global posix.system": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x01x\x85R.",
    "the global __builtin__.eval": b"c__builtin__\neval\n(S'1'\ntR.",
    "the global collections.OrderedDict": b"ccollections\nOrderedDict\n)R.",
    "the global surprise.thing": b"csurprise\nthing\n.",
    "opcode INST with os system": b"(S'touch canary'\nios\nsystem\n.",
    "opcode OBJ": b"(U\x01ao.",
    "opcode PERSID": b"P7\n.",
    "opcode BINPERSID": b"K\x01Q.",
    "opcode EXT1 with 7": b"\x82\x07.",
    "calls a str": b"U\x01a)R.",
    "makes an object of a list": b"])\x81.",
    "sets the state of a dict": b"}}b.",
    "appends to a dict": b"}K\x01a.",
    "has a tuple as a key": b"})K\x02s.",
}


@pytest.mark.parametrize("named", HOSTILE)
def test_hostile_pickles_are_refused_by_name(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "surprise.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("was run"))
    monkeypatch.setattr(builtins, "eval", lambda *_: pytest.fail("was run"))
    with pytest.raises(UserError) as caught:
        load(tmp_path, HOSTILE[named])
    message = str(caught.value)
    assert named in message and "refs.p: refused, nothing in it was run" in message
    assert "\n" not in message and "surprise" not in sys.modules
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"(lp0\n", b"abc", b"\xff.", b"S'abc\n.", b"S'a\n.", b"Sa\n.", b"U\x09abc.", b"h\x05.",
     b"T\xff\xff\xff\xffab.", b"I1x\n.", b"}(K\x01u.", b"a.", b"t.", b".", b"S'\\x1'\n."],
)  # fmt: skip
def test_broken_pickles_are_named(data, tmp_path):
    with pytest.raises(UserError, match=r"refs\.p: cut short or broken") as caught:
        load(tmp_path, data)
    assert "\n" not in str(caught.value)


def test_a_key_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="'a' stands twice"):
        load(tmp_path, b"(dS'a'\nI1\nsS'a'\nI2\ns.")
