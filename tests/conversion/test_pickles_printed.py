"""Pickles whose values cannot be printed: refused or read in no time, in a line that is short."""

import pickle

import numpy as np
import pytest

from conversion import readers
from mg_jax.errors import UserError
from tests.conversion.torch_files import (
    FLOATS,
    containers,
    legacy_bytes,
    mapping,
    number,
    numbers,
    opened,
    program,
    state,
    tensor,
    text,
)


def doubled(times):
    """A tuple of a tuple ... of two of each: short to write, endless to print."""
    return b")" + b"2\x86" * times


def long_number(digits):
    raw = b"\xff" * (digits // 2) + b"\x00"
    return b"\x8b" + len(raw).to_bytes(4, "little") + raw


DEEP = b"(" * 50_000 + b"t" * 50_000


@pytest.mark.parametrize("nest", [DEEP, doubled(24)], ids=["deep", "doubled"])
@pytest.mark.parametrize("kind", ["new.pth", "old.pth", "oldest.pth"])
def test_a_reference_that_cannot_be_printed_is_refused(nest, kind, tmp_path):
    file = tmp_path / kind
    saved = b"(" + nest + b"NNNN" + (b"N" if kind == "old.pth" else b"") + b"tQ"
    file.write_bytes(containers(saved if kind != "oldest.pth" else nest + b"Q")[kind])
    said = "holds a whole" if kind == "oldest.pth" else r".*\(an odd reference to a tuple\)"
    with pytest.raises(UserError, match=f"{kind}: {said}") as caught:
        readers.open_checkpoint(file)
    assert len(str(caught.value)) < 400


def test_keys_that_cannot_be_printed_are_named(tmp_path):
    """Python refuses to print a number of many digits, and a text may be as long as the file."""
    huge = long_number(10_000)
    long = text("x" * 100_000)
    source = opened(tmp_path, b"}" + text("state_dict") + state() + b"s" + huge + b"Ns" + long
                    + b"Ns")  # fmt: skip
    assert source.notes[0].startswith("unwrapped 'state_dict', left a huge number, xxx")
    source = opened(tmp_path, state() + huge + b"Ns")
    assert source.notes == ("left out, being no tensors: a huge number",)
    for body, message in (
        (b"}" + huge + b"Ns", "no state dict but a dict of a huge number"),
        (state() + huge + tensor("0", 24, (2,), (1,)) + b"s", "a huge number is a tensor's name"),
        (state() + huge + state() + b"s", "a huge number holds tensors of its own"),
        (mapping({"a": tensor("0", 24, (2,), (1,)).replace(number(24), huge)}), "odd reference"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            opened(tmp_path, body)
        assert len(str(caught.value)) < 400


def test_storages_whose_keys_or_sizes_cannot_be_printed_are_named(tmp_path):
    """In files from before 1.6 a key may be a number, and the counts stand apart."""
    file, huge = tmp_path / "old.pth", long_number(10_000)
    plain = tensor("0", 24, (2,), (1,), view=b"N")
    for body, message in (
        (plain.replace(text("0"), huge), "list of storages does not fit"),
        (plain.replace(number(24), huge), "odd reference"),
    ):
        file.write_bytes(legacy_bytes(program(mapping({"a": body}))))
        with pytest.raises(UserError, match=message):
            readers.open_checkpoint(file)
    keyed = program(mapping({"a": plain.replace(text("0"), huge)}))
    whole = legacy_bytes(keyed, {1: FLOATS})
    file.write_bytes(whole.replace(pickle.dumps([1], 2), program(b"](" + huge + b"e")))
    source = readers.open_checkpoint(file)
    np.testing.assert_array_equal(source.read("a"), [0, 1])
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="storage 'a huge number' lies past the end"):
        readers.open_checkpoint(file)


def test_a_shape_that_cannot_be_printed_is_refused(tmp_path):
    shape = b"(" + number(0) + long_number(10_000) + b"t"
    body = mapping({"a": tensor("0", 24, (0, 1), (1, 1)).replace(numbers((0, 1)), shape)})
    with pytest.raises(UserError, match="odd shape"):
        opened(tmp_path, body)
