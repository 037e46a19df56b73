"""Logical axes: rules, sharded init, and the axis names of every parameter of a system."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import groma
from mg_jax import models, sharding
from mg_jax.errors import UserError
from mg_jax.lm import LM, LMConfig
from mg_jax.optim import flatten

GOLDEN = Path(__file__).parent / "golden" / "axes"


def groma_init():
    """`init` of the tiny Groma with every parameter that any of its stages has."""
    c = groma.get_config("stage=detection,size=tiny").model.to_dict()
    system = models.build("groma", c)

    def everything(m, batch):
        m.detection(batch)
        return m(batch)

    batch = {**system.example_batch("detection"), **system.example_batch("alignment")}

    def init(key):
        zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), batch)
        return system.module.init(key, zeros, method=everything)

    return init


def lines(init) -> list[str]:
    """`path (axis, axis) [shape]` of every parameter, sorted."""
    boxed = sharding.abstract_params(init, jax.random.key(0))
    names = flatten(sharding.param_names(boxed))
    shapes = flatten(sharding.unbox(boxed))
    return [f"{p} ({', '.join(map(str, names[p]))}) {list(shapes[p].shape)}" for p in sorted(names)]


def test_axis_names_are_those_on_record():
    """A parameter that changes its name, axes or shape breaks checkpoints: change the file
    knowingly."""
    assert lines(groma_init()) == (GOLDEN / "groma.txt").read_text().splitlines()


@pytest.mark.parametrize("rules", ["replicated", "fsdp", "fsdp_tensor"])
def test_sharded_init_gives_the_same_numbers_where_the_rules_say(rules):
    cfg = LMConfig(
        vocab=16, width=8, mlp=12, layers=2, heads=2, kv_heads=2, head=4, max_positions=8
    )

    def init(key):
        def run(m, ids):
            return m.logits(m(m.embed(ids), ids >= 0)[0])

        return LM(cfg).init(key, np.zeros((1, 3), np.int32), method=run)

    plain = flatten(sharding.unbox(init(jax.random.key(3))["params"]))
    mesh = sharding.make_mesh(2, 2, 2)
    params, shardings = sharding.init_sharded(init, mesh, rules, jax.random.key(3))
    params, shardings = flatten(params), flatten(shardings)
    assert params.keys() == plain.keys()
    for path, x in params.items():
        np.testing.assert_allclose(x, plain[path], atol=1e-6, err_msg=path)
        assert x.sharding == shardings[path], path
    q = params["blocks/attn/q/kernel"].sharding.spec  # layers, embed, heads, head
    want = {
        "replicated": PartitionSpec(),
        "fsdp": PartitionSpec(None, "fsdp"),
        "fsdp_tensor": PartitionSpec(None, "fsdp", "tensor"),
    }
    assert q == want[rules]
    split = sum(x.sharding.spec != PartitionSpec() for x in params.values())
    assert split == 0 if rules == "replicated" else split > len(params) / 3


def test_specs():
    mesh = sharding.make_mesh(2, 2, 2)
    spec = sharding.spec
    assert spec(("embed", "heads", "head"), (8, 4, 3), mesh=mesh, rules="fsdp_tensor") == (
        PartitionSpec("fsdp", "tensor")
    )
    assert spec(("embed", "heads"), (8, 3), mesh=mesh, rules="fsdp_tensor") == PartitionSpec("fsdp")
    assert spec((None, "batch"), rules="fsdp") == PartitionSpec(None, ("data", "fsdp"))
    one = sharding.make_mesh(4, 1, 2)  # an axis of one device splits nothing, so it may recur
    assert spec(("conv_in", "embed", "heads"), (3, 8, 4), mesh=one, rules="fsdp_tensor") == (
        PartitionSpec(None, None, "tensor")
    )
    with pytest.raises(ValueError, match="unknown logical axis 'colour'"):
        spec(("colour",), rules="fsdp")
    with pytest.raises(ValueError, match="used twice"):
        spec(("embed", "conv_in"), (8, 8), mesh=mesh, rules="fsdp")


def test_meshes():
    count = jax.device_count()
    assert dict(sharding.make_mesh(1, -1, 2).shape) == {"data": 1, "fsdp": count // 2, "tensor": 2}
    with pytest.raises(UserError, match="only one size may be -1"):
        sharding.make_mesh(-1, -1, 1)
    with pytest.raises(UserError, match=re.escape(f"needs 3 devices, but there are {count}")):
        sharding.make_mesh(3, 1, 1)


def test_without_a_mesh_nothing_is_constrained():
    x = np.ones((4, 2))
    assert sharding.shard(x, "batch", "embed") is x and sharding.mesh_in_use() is None
