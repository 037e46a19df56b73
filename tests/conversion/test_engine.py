"""The engine on small tables: stacking, splitting, copies, dtypes and every refusal."""

import ml_dtypes
import numpy as np
import pytest

from conversion import engine
from conversion.engine import Drop, Rule, Tied
from mg_jax.errors import UserError

SIZES = dict(l=2, e=3, n=2, h=4, d=5, v=7, s=3, y=2, x=3)
RULES = (
    Rule("embed.weight", "embed/embedding", "v d -> v d"),
    Rule("layers.{l}.qkv.weight", ("q/kernel", "k/kernel", "v/kernel"), "(s n h) d -> s d n h"),
    Rule("layers.{l}.experts.{e}.weight", "experts/kernel", "d v -> v d"),
    Rule("conv.weight", "conv/kernel", "d n y x -> y x n d"),
    Rule("cls", "cls", "1 1 d -> d"),
    Rule("scale", "scale", "d -> d"),
    Tied("head.weight", "embed.weight"),
    Drop("layers.{l}.inv_freq", "recomputed"),
)
TABLE = engine.bind(RULES, SIZES)


@pytest.fixture
def state(random_tensors):
    tensors = random_tensors(engine.expand(TABLE).torch_shapes())
    return tensors | {"head.weight": tensors["embed.weight"].copy()}


def test_every_index_is_stacked_in_front_and_splits_follow(state):
    params = engine.to_jax(state.__getitem__, engine.plan(state_shapes(state), TABLE))
    assert params["experts"]["kernel"].shape == (2, 3, 7, 5)
    np.testing.assert_array_equal(
        params["experts"]["kernel"][1, 2], state["layers.1.experts.2.weight"].T
    )
    fused = state["layers.1.qkv.weight"].reshape(3, 2, 4, 5)
    for i, name in enumerate("qkv"):
        np.testing.assert_array_equal(params[name]["kernel"][1], fused[i].transpose(2, 0, 1))
    np.testing.assert_array_equal(
        params["conv"]["kernel"], state["conv.weight"].transpose(2, 3, 1, 0)
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_both_ways_are_bit_equal_and_keep_the_dtype(random_tensors, dtype):
    state = random_tensors(engine.expand(TABLE).torch_shapes(), dtype)
    state["head.weight"] = state["embed.weight"]
    params = engine.to_jax(state.__getitem__, engine.plan(state_shapes(state), TABLE))
    back = engine.to_torch(params, TABLE)
    assert list(back) != [] and set(back) == set(state)
    for name, tensor in state.items():
        assert back[name].dtype == dtype and back[name].flags.c_contiguous
        assert back[name].tobytes() == tensor.tobytes(), name
    again = engine.flatten(engine.to_jax(back.__getitem__, engine.plan(state_shapes(back), TABLE)))
    for path, leaf in engine.flatten(params).items():
        assert again[path].tobytes() == leaf.tobytes(), path


def test_a_cast_is_asked_for(state):
    plan = engine.plan(state_shapes(state), TABLE)
    params = engine.to_jax(state.__getitem__, plan, np.float32)
    assert {leaf.dtype for leaf in engine.flatten(params).values()} == {np.dtype(np.float32)}
    back = engine.to_torch(params, TABLE, np.float16)
    assert all(back[name].tobytes() == state[name].tobytes() for name in state)


def test_layers_of_different_dtypes_need_a_cast(state):
    state["layers.1.qkv.weight"] = state["layers.1.qkv.weight"].astype(np.float32)
    plan = engine.plan(state_shapes(state), TABLE)
    with pytest.raises(UserError, match=r"layers\.1\.qkv\.weight is float32.*float16"):
        engine.to_jax(state.__getitem__, plan)
    engine.to_jax(state.__getitem__, plan, np.float32)


def test_copies_may_be_absent_and_are_written_again(state):
    del state["head.weight"]
    plan = engine.plan(state_shapes(state), TABLE)
    assert not plan.tied
    back = engine.to_torch(engine.to_jax(state.__getitem__, plan), TABLE)
    np.testing.assert_array_equal(back["head.weight"], state["embed.weight"])


def test_a_copy_that_differs_is_refused(state):
    state["head.weight"][0, 0] += 1
    with pytest.raises(UserError, match="head.weight should equal embed.weight"):
        engine.to_jax(state.__getitem__, engine.plan(state_shapes(state), TABLE))


def test_dropped_tensors_are_reported_with_their_reason(state):
    state["layers.1.inv_freq"] = np.zeros(3)
    plan = engine.plan(state_shapes(state), TABLE)
    assert plan.dropped == {"layers.1.inv_freq": "recomputed"}


def test_a_mismatch_lists_both_sides_and_shapes(state):
    shapes = state_shapes(state)
    shapes["layers.2.extra"] = (9,)
    del shapes["cls"]
    shapes["scale"] = (6,)
    with pytest.raises(UserError) as error:
        engine.plan(shapes, TABLE)
    text = str(error.value)
    assert "+ layers.2.extra [9]" in text
    assert "- cls [1, 1, 5]" in text
    assert "! scale [6], expected [5]" in text
    assert text.startswith(
        "checkpoint: does not fit the model of its config: 1 only there (+), 1 only in the model "
        "(-), 1 of another shape (!)\n"
    )


def test_a_name_that_would_write_on_the_terminal_is_escaped(state):
    with pytest.raises(UserError, match=r"\+ 'a\\n\\x1b\[2Jb' \[9\]"):
        engine.plan(state_shapes(state) | {"a\n\x1b[2Jb": (9,)}, TABLE)


def test_the_source_of_a_copy_must_be_there(state):
    del state["embed.weight"]
    with pytest.raises(UserError, match=r"- embed\.weight \[7, 5\]"):
        engine.plan(state_shapes(state), TABLE)


def test_export_lists_both_sides_too(state):
    params = engine.to_jax(state.__getitem__, engine.plan(state_shapes(state), TABLE))
    params["bias"] = np.zeros(4, np.float32)
    params["cls"] = params.pop("scale")[None]
    with pytest.raises(UserError) as error:
        engine.to_torch(params, TABLE)
    text = str(error.value)
    assert "+ bias [4]" in text and "- scale [5]" in text and "! cls [1, 5], expected [5]" in text


def test_a_long_list_is_counted():
    with pytest.raises(UserError, match=r"\+ x39 \[1\]\n  \.\.\. and 60 more"):
        shapes = engine.expand(TABLE).torch_shapes()
        engine.plan(shapes | {f"x{i}": (1,) for i in range(100)}, TABLE)


def test_planning_reads_no_bytes_and_gives_abstract_leaves():
    shapes = engine.expand(TABLE).torch_shapes()
    info = {n: engine.TensorInfo(s, np.dtype(ml_dtypes.bfloat16)) for n, s in shapes.items()}
    leaf = engine.plan(info, TABLE).abstract()["experts"]["kernel"]
    assert leaf.shape == (2, 3, 7, 5) and leaf.dtype == ml_dtypes.bfloat16


def test_prefixes_move_every_kind_of_rule():
    moved = engine.expand(engine.under("llm.", "lm/", TABLE))
    assert moved.tied == {"llm.head.weight": "llm.embed.weight"}
    assert "llm.layers.0.inv_freq" in moved.dropped
    assert {path.split("/")[0] for path in moved.jax_shapes()} == {"lm"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((Rule("a", "b", "q -> q"),), "no size for axis 'q'"),
        ((Rule("a", "b", "d -> d"), Rule("a", "c", "d -> d")), "tensor 'a' is named by more"),
        ((Rule("a", "c", "d -> d"), Rule("b", "c", "d -> d")), "leaf 'c' is named by more"),
        ((Tied("a", "b"),), "tied to 'b', which no rule names"),
        ((Rule("a", ("b", "c"), "s d -> s d"),), "splits 3 ways into 2"),
    ],
)
def test_a_table_at_fault_is_named(rules, message):
    with pytest.raises(ValueError, match=message):
        engine.expand(engine.bind(rules, SIZES))


def state_shapes(state):
    return {name: tensor.shape for name, tensor in state.items()}
