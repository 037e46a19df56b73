"""Operations counted in traced functions, and what chips and slices of them have."""

import jax
import jax.numpy as jnp
import pytest

from launch.aot import job, slices
from mg_jax import chips, flops
from mg_jax.errors import UserError


def test_operations_of_a_traced_function_are_those_counted_by_hand():
    a, b = jnp.zeros((3, 4)), jnp.zeros((4, 5))
    assert flops.count(jnp.dot, a, b) == 2 * 3 * 4 * 5
    squares = jax.jit(lambda a: jnp.einsum("bij,bjk->bik", a, a))
    assert flops.count(squares, jnp.zeros((2, 6, 6))) == 2 * 2 * 6**3

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=7)[0]

    assert flops.count(scanned, jnp.zeros((4, 4))) == 7 * 2 * 4**3
    square = jnp.zeros((4, 4))

    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ y @ y, lambda y: y, x)

    assert flops.count(branch, square) == 2 * 2 * 4**3
    image, kernel = jnp.zeros((1, 3, 8, 8)), jnp.zeros((5, 3, 2, 2))
    made = jax.lax.conv_general_dilated(image, kernel, (2, 2), "VALID")
    assert made.shape == (1, 5, 4, 4)
    found = flops.count(lambda x: jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID"), image)
    assert found == 2 * 5 * 4 * 4 * 3 * 2 * 2


def test_frozen_gradients_do_not_count_and_of_remat_only_what_a_config_says():
    w = jnp.ones((64, 64))
    x = jnp.ones((8, 64))

    def loss(w1, w2, x, keep=lambda f: f):
        return jnp.tanh(keep(lambda w1, x: jnp.tanh(x @ w1))(w1, x) @ w2).sum()

    def again(w1, w2, x):
        return loss(w1, w2, x, jax.checkpoint)

    one = 2 * 8 * 64 * 64
    assert flops.count(loss, w, w, x) == flops.count(again, w, w, x) == 2 * one
    assert flops.count(jax.grad(loss, argnums=1), w, w, x) == 3 * one
    assert flops.count(jax.grad(loss, argnums=0), w, w, x) == 4 * one
    # what code recomputes whatever the config says is part of the program, and counts
    assert flops.count(jax.grad(again, argnums=0), w, w, x) == 5 * one
    from configs import groma
    from mg_jax.models import build

    cfg = build("groma", groma.get_config("size=7b").model.to_dict()).cfg
    assert cfg.lm.remat == "full" and flops.counted(cfg).lm.remat == "none"
    assert {flops.counted(cfg).lm.attention, flops.counted(cfg).vision.attention} == {"plain"}


def test_slices_and_their_chips():
    assert slices.parse("v5e:4x8") == ("v5e", (4, 8))
    assert slices.parse("tpu7x:2x2x1") == ("7x", (2, 2, 1))
    assert slices.parse("v5p:28x16x20")[1] == (28, 16, 20)
    assert slices.chip("v5p:2x2x2").memory == 95 * 2**30
    assert slices.roomier("v5e:4x8") == "v5p:2x4x4" and slices.roomier("7x:2x2x1") is None
    assert slices.roomier("v5e:1x1") == slices.roomier("v6e:2x2") == "v5p:2x2x1"
    assert slices.roomier("v5p:2x2x1") == "7x:2x2x1" and slices.roomier("v5p:2x2x4") == "7x:2x2x2"
    wrongs = {"v9:2x2": "no 'v9'", "v5e:2x2x2": "2 dimensions", "v5p:2x0x2": "no side may be 0",
              "v5e:17x1": "more than a pod of v5e, 16x16", "v5e:1000x1000": "more than a pod",
              "v5p:20x20x20": "more than a pod of v5p"}  # fmt: skip
    for wrong, message in wrongs.items():
        with pytest.raises(UserError, match=message):
            slices.parse(wrong)
    assert chips.of_device("TPU v5 lite").name == "TPU v5e"
    assert chips.of_device("TPU v5").name == "TPU v5p"
    assert chips.of_device("NVIDIA H200").name == "NVIDIA H200"
    assert chips.of_device("cpu") is None


def test_meshes_and_the_compilers_totals_are_read():
    config = type("C", (), {})()
    assert job.mesh_sizes("tensor=4", config) == {"data": 1, "fsdp": -1, "tensor": 4}
    assert job.mesh_sizes("data=-1", config) == {"data": -1, "fsdp": 1, "tensor": 1}
    with pytest.raises(UserError, match="write data=1"):
        job.mesh_sizes("model=4", config)
    found = job.totals(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 5.75G."
    )
    assert found["needed"] == 21.5 * 2**30 and found["available"] == 15.75 * 2**30
    found = job.totals(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (29.53G) exceeds available HBM (15.75G)."
    )
    assert found["needed"] == 29.53 * 2**30 and found["available"] == 15.75 * 2**30
