"""Delta weights on their base: Ferret v1's rule."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from conversion import located, readers
from conversion.hub import Fetched
from conversion.readers.delta import FERRET_V1, Delta
from mg_jax.errors import UserError
from tests.conversion.folders import write_folder

WIDTH, VOCAB = 8, 32
ROTARY = "model.layers.0.self_attn.rotary_emb.inv_freq"
GROWN = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def parts(rng):
    """(target, base, delta) as dicts: a Ferret, its Vicuna, and what was published between."""

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float16)

    base = {name: draw(VOCAB, WIDTH) for name in GROWN} | {
        "model.layers.0.self_attn.q_proj.weight": draw(WIDTH, WIDTH),
        "model.layers.0.mlp.gate_proj.weight": draw(2 * WIDTH, WIDTH),
        "model.norm.weight": draw(WIDTH),
    }
    delta = {name: (draw(*value.shape) / 64).astype(np.float16) for name, value in base.items()}
    delta |= {name: np.concatenate([delta[name], draw(1, WIDTH)]) for name in GROWN}
    delta |= {name: draw(3, 2) for name in FERRET_V1.verbatim}
    return base, delta


def save(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def opened(tmp_path):
    """A function: (base, delta) -> the checkpoint they make, through files."""

    def make(base, delta):
        paths = save(tmp_path / "base", base), save(tmp_path / "delta", delta)
        return readers.open_checkpoint(paths[1], base=paths[0])

    return make


def test_the_rule_names_what_the_spec_names(shared):
    """18 tensors are verbatim; those and two embeddings are all that Ferret adds to Vicuna."""
    assert len(FERRET_V1.verbatim) == len(set(FERRET_V1.verbatim)) == 18
    file = shared / "golden" / "ferret" / "A_v1" / "state_dict_shapes.json"
    names = set(json.loads(file.read_text()))
    theirs = {name for name in names if "vision_tower" not in name and ".layers." not in name}
    assert theirs == {*FERRET_V1.verbatim, *FERRET_V1.grown, "model.norm.weight"}


def test_every_tensor_by_the_rule(parts, opened):
    base, delta = parts
    source = opened(base, delta)
    assert set(source.manifest) == set(delta)
    for name, value in delta.items():
        read = source.read(name)
        assert (
            source.manifest[name] == (value.shape, np.dtype(np.float16)) == (read.shape, read.dtype)
        )
        if name in FERRET_V1.verbatim:
            np.testing.assert_array_equal(read, value)
        else:
            np.testing.assert_array_equal(
                read[: len(base[name])], base[name] + value[: len(base[name])]
            )
            np.testing.assert_array_equal(read[len(base[name]) :], value[len(base[name]) :])
        assert not read.flags.writeable
    assert source.read(GROWN[0]).shape == (VOCAB + 1, WIDTH)
    assert len(source.files) == 2 and source.nbytes == sum(value.nbytes for value in delta.values())
    assert "5 tensors added" in source.notes[-1] and "18 taken whole" in source.notes[-1]


def test_a_delta_without_its_base_is_suspected(tmp_path):
    suspicion = "named like delta weights, read as whole ones: no base was given"
    write_folder(tmp_path / "ferret-7b-delta" / "snapshots", "llama")
    for source, expected in ((tmp_path / "ferret-7b-delta", True), (tmp_path / "ferret-7b", False)):
        if not expected:
            (tmp_path / "ferret-7b-delta").rename(source)
        opened = located.open_torch(Fetched(source / "snapshots"), source)
        assert (suspicion in opened.notes) == expected


@pytest.mark.torch
def test_the_sum_is_torchs(parts, opened):
    """Upstream's loop over the state dict, in float16."""
    torch = pytest.importorskip("torch")
    base, delta = parts
    expected = {name: torch.tensor(value) for name, value in delta.items()}
    for name, value in expected.items():
        if name not in base:
            continue
        held = torch.tensor(base[name])
        if value.shape == held.shape:
            value += held
        else:
            value[: held.shape[0], : held.shape[1]] += held
    source = opened(base, delta)
    for name, value in expected.items():
        assert source.read(name).tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_other_dtypes_are_cast_first(dtype, parts, opened):
    base, delta = parts
    base = {name: (value * 1.01).astype(dtype) for name, value in base.items()}
    name = "model.norm.weight"
    expected = base[name].astype(np.float16) + delta[name]
    read = opened(base, delta).read(name)
    assert read.dtype == np.float16 and read.tobytes() == expected.tobytes()


def test_recomputed_buffers_are_left_out_on_either_side(parts, opened):
    base, delta = parts
    buffer = {ROTARY: np.ones(4, np.float32)}
    for ours, theirs in (
        (base, delta | buffer),
        (base | buffer, delta),
        (base | buffer, delta | buffer),
    ):
        source = opened(ours, theirs)
        assert ROTARY not in source.manifest
        assert ("1 recomputed buffers" in source.notes[-1]) == (ROTARY in theirs)


def test_what_does_not_fit_is_named(parts, opened):
    base, delta = parts
    norm = "model.norm.weight"
    without = {name: value for name, value in delta.items() if name != norm}
    cases = [
        (base, delta | {"extra": np.ones(2, np.float16)}, "extra: only in .*delta"),
        (base, without, rf"{norm}: only in .*base"),
        (base | {FERRET_V1.verbatim[0]: np.ones(2, np.float16)}, delta, "is no base then"),
        (base, delta | {norm: np.ones(WIDTH + 1, np.float16)}, rf"{norm} is \[9\].* and \[8\]"),
        (base, delta | {GROWN[0]: delta[GROWN[0]][:30]}, r"\[30, 8\] in the delta and \[32, 8\]"),
        (base, delta | {GROWN[0]: delta[GROWN[0]][0]}, r"embed_tokens.weight is \[8\]"),
        (base, delta | {norm: np.ones(WIDTH, np.int64)}, "is int64; deltas add floats only"),
        (base | {norm: np.ones(WIDTH, np.int64)}, delta, "is int64; deltas add floats only"),
    ]
    for ours, theirs, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            opened(ours, theirs)
        assert "delta" in str(caught.value) or "base" in str(caught.value)
    many = {f"extra{i}": np.ones(2, np.float16) for i in range(9)}
    with pytest.raises(UserError, match=r"extra4, \.\.\. and 4 more: only in"):
        opened(base, delta | many)


def test_a_sum_beyond_float16_is_an_error(parts, opened):
    base, delta = parts
    large = {"model.norm.weight": np.full(WIDTH, 6e4, np.float16)}
    source = opened(base | large, delta | large)
    with pytest.raises(UserError, match=r"model\.norm\.weight overflows float16"):
        source.read("model.norm.weight")
    for dtype in (np.float32, ml_dtypes.bfloat16):  # ml_dtypes casts without a word
        far = {"model.norm.weight": np.full(WIDTH, 1e6).astype(dtype)}
        source = opened(base | far, delta)
        with pytest.raises(UserError, match="overflows float16"):
            source.read("model.norm.weight")
    whole = {FERRET_V1.verbatim[0]: np.full((3, 2), 1e6).astype(ml_dtypes.bfloat16)}
    with pytest.raises(UserError, match=f"{FERRET_V1.verbatim[0]} overflows float16"):
        opened(base, delta | whole).read(FERRET_V1.verbatim[0])


def test_what_was_infinite_before_is_no_overflow(parts, opened):
    base, delta = parts
    norm = base["model.norm.weight"].copy()
    norm[:2] = np.inf, np.nan
    for dtype in (np.float16, ml_dtypes.bfloat16):
        read = opened(base | {"model.norm.weight": norm.astype(dtype)}, delta).read(
            "model.norm.weight"
        )
        assert np.isposinf(read[0]) and np.isnan(read[1]) and np.isfinite(read[2:]).all()


class Watched(readers.Source):
    """A source that notes what is read of it."""

    def __init__(self, inner):
        self.where, self.manifest, self.files = inner.where, inner.manifest, inner.files
        self.inner, self.seen = inner, []

    @property
    def copied(self):
        return self.inner.copied

    def _read(self, name):
        self.seen.append(name)
        return self.inner.read(name)


def test_tensors_are_added_one_at_a_time(parts, tmp_path):
    base, delta = (
        Watched(readers.open_checkpoint(save(tmp_path / name, tensors)))
        for name, tensors in zip(("base", "delta"), parts, strict=True)
    )
    source = Delta(delta, base)
    assert not delta.seen and not base.seen
    source.read("lm_head.weight")
    source.read(FERRET_V1.verbatim[0])
    assert delta.seen == ["lm_head.weight", FERRET_V1.verbatim[0]]
    assert base.seen == ["lm_head.weight"]
    again = readers.open_checkpoint(tmp_path / "delta", base=base)  # a source serves as well
    assert set(again.manifest) == set(source.manifest)
