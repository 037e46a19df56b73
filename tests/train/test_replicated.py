"""No large array lies whole on every device of a mesh that could split it: parameters, moments,
frozen parameters, batch and KV cache, of every stage at its published size. Shapes alone."""

import importlib
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from launch.aot import programs
from mg_jax import models, sharding
from mg_jax.assistant import SERVING
from mg_jax.attention import CACHE_AXES, KVCache
from mg_jax.data import pipeline
from mg_jax.lm import LMConfig
from mg_jax.plan import plan
from mg_jax.sharding import make_mesh, unsplit

LAYOUTS = {"fsdp": (1, 8, 1), "fsdp_tensor": (1, 2, 4)}
# (config file, argument): each stage with the parts it has, and the largest language model
STAGES = [
    ("groma", "stage=detection,size=7b"),
    ("groma", "stage=alignment,size=7b"),
    ("groma", "stage=instruction,size=7b,form=published"),
    ("mg_llava", "stage=pretrain,llm=yi34b"),
    ("mg_llava", "stage=pretrain,llm=yi34b,media=video"),
    ("mg_llava", "stage=sft,llm=phi3"),
    ("mg_llava", "stage=sft,llm=yi34b,media=video"),
    ("ferret", "stage=caption,size=7b"),
    ("ferret", "stage=dense,size=13b"),
    ("ferret", "stage=instruction,size=13b"),
    ("tiny_grounding_gpt", "stage=projector,llm=qwen1.5b"),
    ("tiny_grounding_gpt", "stage=llm,llm=qwen7b"),
    ("tiny_grounding_gpt", "stage=local,llm=qwen7b"),
    ("tiny_grounding_gpt", "stage=global,llm=qwen7b"),
]


def config_of(file, argument):
    return importlib.import_module(f"configs.{file}").get_config(argument)


@pytest.mark.parametrize("rules", LAYOUTS)
@pytest.mark.parametrize("file,argument", STAGES)
def test_nothing_large_of_a_training_is_replicated(file, argument, rules):
    config = config_of(file, argument)
    config.rules = rules
    system = models.build(config.system, config.model.to_dict())
    sizes = pipeline.batch_sizes(config, system.cfg)
    p = plan(config, 10, system=system, mesh=make_mesh(*LAYOUTS[rules]), sizes=sizes)
    assert unsplit((p.state, p.frozen)) == []
    assert unsplit(p.example, ("data", "fsdp")) == []
    arrays = jax.tree.leaves((p.state, p.frozen))
    even = [x for x in arrays if any(d % 8 == 0 for d in x.shape)]
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in even)
    assert held < 1.1 * bytes_of(even) / 8
    # such as 5,122 x 5,122 in Ferret's sampler
    assert bytes_of(arrays) - bytes_of(even) < 0.03 * bytes_of(arrays)


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8, 1), (1, 4, 2)])
def test_nothing_large_of_a_model_that_answers_is_replicated(quant, shape):
    config = config_of("groma", "stage=instruction,size=7b,form=published")
    config.model.lm.quant, config.rules = quant, SERVING
    arrays = programs.serve(config, make_mesh(*shape), "decode", rows=8).arrays
    found = unsplit(arrays)
    if quant == "int4" and shape[2] == 8:
        # 86 groups of 128 inputs: split otherwise than its kernel it would be gathered every token
        assert "['mlp']['down']['kernel_scale'] [32, 86, 4096]" in found.pop()
    assert found == []
    if quant == "int4":
        blocks = arrays["params"]["lm"]["blocks"]
        for kernel in (blocks["attn"]["q"], blocks["mlp"]["gate"]):
            scale = kernel["kernel_scale"]
            part = math.prod(scale.sharding.shard_shape(scale.shape))
            assert part * 8 == math.prod(scale.shape)


def bytes_of(arrays):
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)


@pytest.mark.parametrize("kv_heads", [32, 8, 2])
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 8, 1), (1, 2, 4)])
def test_a_cache_is_split_whatever_its_heads_and_rows(kv_heads, rows, shape):
    mesh = make_mesh(*shape)
    lm = LMConfig(kv_heads=kv_heads, dtype="bfloat16")
    with sharding.use(mesh, "fsdp_tensor"):
        cache = programs.cache_shapes(lm, rows, 4096, mesh)
    assert unsplit(cache, sharding.MESH_AXES) == []
    part = math.prod(cache.k.sharding.shard_shape(cache.k.shape))
    assert part * 8 == math.prod(cache.k.shape)


def test_the_cache_of_a_jitted_program_lies_where_it_is_said_to():
    mesh = make_mesh(1, 2, 4)

    def fresh():
        return KVCache.create(2, 4, 64, 8, 16)

    with sharding.use(mesh, "fsdp_tensor"):
        made = jax.jit(fresh)()
        want = NamedSharding(mesh, sharding.spec(CACHE_AXES, made.k.shape))
    assert made.k.sharding.is_equivalent_to(want, 5)
    assert want.spec == PartitionSpec(None, ("data", "fsdp"), None, "tensor")


def test_unsplit_lists_what_could_be_split_and_nothing_else():
    mesh = make_mesh(1, 2, 4)
    whole = NamedSharding(mesh, PartitionSpec())

    def array(shape, place=whole):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)

    big = (4096, 2048)
    tree = {
        "a": array(big),
        "odd": array((4099, 2047)),
        "small": array((8, 8)),
        "half": array(big, NamedSharding(mesh, PartitionSpec("fsdp"))),
        "rest": array((4098, 2047), NamedSharding(mesh, PartitionSpec("fsdp"))),
        "split": array(big, NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))),
    }
    size = "[4096, 2048] float32 33,554,432 bytes, whole along"
    assert unsplit(tree) == [f"['a'] {size} fsdp and tensor", f"['half'] {size} tensor"]
    assert unsplit(tree, ("fsdp",)) == [f"['a'] {size} fsdp and tensor"]


def test_unsplit_lists_what_lies_whole_on_all_replicas_of_a_batch():
    """Split over fsdp parameters may lie whole along data; but not with data alone."""
    for fsdp, found in ((1, 1), (2, 0)):
        mesh = make_mesh(8 // fsdp, fsdp, 1)
        place = NamedSharding(mesh, sharding.spec(("embed", "mlp"), (4096, 2048), mesh=mesh,
                                                  rules="fsdp"))  # fmt: skip
        x = jax.ShapeDtypeStruct((4096, 2048), jnp.float32, sharding=place)
        assert len(unsplit([x])) == found


def test_an_axis_goes_elsewhere_where_its_first_choice_does_not_divide():
    mesh = make_mesh(1, 8, 1)
    taps = ("layers", "taps", "taps", "conv_in", "conv_out")
    spec = sharding.spec(taps, (3, 1, 1, 1026, 1024), mesh=mesh, rules="fsdp")
    assert spec == PartitionSpec(None, None, None, None, "fsdp")
    wide = make_mesh(1, 1, 8)
    names = ("embed", "heads", "head")
    assert sharding.spec(names, (64, 12, 128), mesh=wide, rules="fsdp_tensor") == (
        PartitionSpec(None, None, "tensor")
    )
    assert sharding.spec(("vocab", "embed"), (32003, 64), mesh=wide, rules="fsdp_tensor") == (
        PartitionSpec(None, "tensor")
    )
