"""Parameter groups, schedules and AdamW against closed forms and PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mg_jax.errors import UserError
from mg_jax.optim import OptimConfig, flatten, matching, merge, optimizer, partition, schedule


def settings(**changes):
    values = {
        "lr": 1e-2,
        "schedule": "cosine",
        "warmup_steps": 0,
        "warmup_ratio": 0.0,
        "end_ratio": 0.0,
        "weight_decay": 0.0,
        "no_decay": (),
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "clip": 0.0,
        "lr_multipliers": (),
    }
    return OptimConfig(**{**values, **changes})


PARAMS = {"vision": {"cls": 1, "blocks": {"kernel": 2}}, "lm": {"head": {"kernel": 3, "bias": 4}}}


def test_partition_and_merge_are_inverse():
    trainable, frozen = partition(PARAMS, ("lm/.*", "vision/cls"))
    assert trainable == {"lm/head/kernel": 3, "lm/head/bias": 4, "vision/cls": 1}
    assert frozen == {"vision/blocks/kernel": 2}
    assert merge(trainable, frozen) == PARAMS
    assert partition(flatten(PARAMS), (".*",))[1] == {}


def test_a_pattern_must_match_a_whole_path():
    with pytest.raises(UserError, match=r"config.trainable: 'lm' matches no parameter; .*lm/\.\*"):
        partition(PARAMS, ("lm",))
    with pytest.raises(UserError, match="'lm/.*kernal' matches no parameter"):
        partition(PARAMS, (".*cls", "lm/.*kernal"))
    with pytest.raises(UserError, match="is not a regular expression"):
        matching(["a"], ["("], "config.trainable")


@pytest.mark.parametrize("steps,warmup", [(20, 5), (7, 0), (3, 5)])
def test_cosine_with_warmup(steps, warmup):
    rate = schedule(settings(lr=0.3, warmup_steps=warmup), steps)
    for i in range(steps + 2):
        if i < warmup:
            expected = i / warmup
        else:
            done = min((i - warmup) / max(1, steps - warmup), 1.0)
            expected = 0.5 * (1 + math.cos(math.pi * done))
        assert float(rate(i)) == pytest.approx(0.3 * expected, abs=1e-7)


def test_warmup_ratio_rounds_up_and_other_schedules():
    assert float(schedule(settings(lr=1.0, warmup_ratio=0.03), 50)(1)) == pytest.approx(0.5)
    constant = schedule(settings(lr=0.2, schedule="constant", warmup_steps=2), 10)
    np.testing.assert_allclose([float(constant(i)) for i in range(4)], [0, 0.1, 0.2, 0.2])
    floor = schedule(settings(lr=1.0, end_ratio=0.1), 10)
    assert float(floor(10)) == pytest.approx(0.1)
    assert float(floor(5)) == pytest.approx(0.55)


def run(cfg, params, grads, steps):
    tx = optimizer(cfg, steps, params)
    state = tx.init(params)
    for g in grads:
        updates, state = jax.jit(tx.update)(g, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.torch
def test_adamw_groups_and_clipping_equal_torch(rng):
    import torch

    shapes = {"a/offsets/kernel": (3, 4), "a/value/kernel": (4,), "b/bias": (5,)}
    start = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    grads = [
        {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()} for _ in range(6)
    ]
    cfg = settings(
        lr=3e-2, warmup_steps=2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6, clip=1.0,
        lr_multipliers=((".*/offsets/.*", 0.1),), no_decay=(".*bias",),
    )  # fmt: skip
    ours = run(cfg, {k: jnp.asarray(v) for k, v in start.items()}, grads, 6)

    theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start.items()}
    groups = [
        {"params": [theirs["a/offsets/kernel"]], "lr": 3e-3},
        {"params": [theirs["a/value/kernel"]]},
        {"params": [theirs["b/bias"]], "weight_decay": 0.0},
    ]
    tx = torch.optim.AdamW(groups, lr=3e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    rate = torch.optim.lr_scheduler.LambdaLR(
        tx, lambda i: i / 2 if i < 2 else 0.5 * (1 + math.cos(math.pi * (i - 2) / 4))
    )
    for g in grads:
        for k, p in theirs.items():
            p.grad = torch.tensor(g[k])
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        tx.step()
        rate.step()
    for k, p in theirs.items():
        np.testing.assert_allclose(ours[k], p.detach().numpy(), atol=2e-6, err_msg=k)


def test_decay_is_lr_times_weight_decay_and_the_factor_scales_it():
    params = {"x": jnp.ones(3), "y": jnp.ones(3), "z": jnp.ones(3)}
    cfg = settings(
        lr=0.5, schedule="constant", weight_decay=0.2, no_decay=("z",), lr_multipliers=(("y", 0.1),)
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    after = run(cfg, params, [zero], 1)
    assert {k: float(v[0]) for k, v in after.items()} == pytest.approx(
        {"x": 0.9, "y": 0.99, "z": 1}
    )


def test_the_first_matching_factor_wins_and_an_unused_one_is_refused():
    params = {"a/x": jnp.ones(1), "a/y": jnp.ones(1)}
    cfg = settings(schedule="constant", lr=1.0, lr_multipliers=(("a/x", 0.5), ("a/.*", 0.25)))
    after = run(cfg, params, [jax.tree.map(jnp.ones_like, params)], 1)
    assert float(after["a/x"][0]) == pytest.approx(0.5, abs=1e-5)
    assert float(after["a/y"][0]) == pytest.approx(0.75, abs=1e-5)
    with pytest.raises(UserError, match="lr_multipliers: 'b/.*' matches no parameter"):
        optimizer(settings(lr_multipliers=(("b/.*", 2.0),)), 5, params)


MUON = ("lm/blocks/.*/kernel",)


def test_muon_moves_kernels_by_orthogonal_steps_of_adams_size(rng):
    shapes = {
        "lm/blocks/attn/q/kernel": (3, 12, 2, 8),  # three layers; 12 -> 2 x 8
        "lm/blocks/attn/o/kernel": (3, 2, 8, 12),
        "lm/blocks/mlp/up/kernel": (3, 12, 20),
        "lm/embed/embedding": (5, 12),
    }
    params = {p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in shapes.items()}
    grads = {p: jnp.asarray(rng.normal(size=s), jnp.float32) for p, s in shapes.items()}
    cfg = settings(schedule="constant", lr=1.0, muon=MUON)
    moved = run(cfg, params, [grads], 1)
    plain = run(settings(schedule="constant", lr=1.0), params, [grads], 1)
    table = "lm/embed/embedding"
    np.testing.assert_allclose(moved[table], plain[table], rtol=1e-5)
    for path, inputs in (("attn/q", 12), ("attn/o", 16), ("mlp/up", 12)):
        path = f"lm/blocks/{path}/kernel"
        steps = np.asarray(params[path] - moved[path]).reshape(3, inputs, -1)
        for step, grad in zip(steps, np.asarray(grads[path]).reshape(steps.shape), strict=True):
            left, _, right = np.linalg.svd(grad, full_matrices=False)
            size = 0.2 * math.sqrt(max(step.shape))
            exact = left @ right * size  # what Newton and Schulz come near to
            values = np.linalg.svd(step / size, compute_uv=False)
            assert values.min() > 0.6 and values.max() < 1.3
            cosine = (step * exact).sum() / np.linalg.norm(step) / np.linalg.norm(exact)
            assert cosine > 0.97


def test_what_muon_cannot_move_is_refused():
    params = {"lm/blocks/norm/scale": jnp.ones((2, 3)), "stem/kernel": jnp.ones((2, 2, 3, 4, 5))}
    with pytest.raises(UserError, match=r"optim.muon: lm/blocks/norm/scale .* not those of"):
        optimizer(settings(muon=("lm/.*",)), 5, params)
    with pytest.raises(UserError, match="stem/kernel has 5 dimensions"):
        optimizer(settings(muon=("stem/.*",)), 5, params)
    optimizer(settings(muon=("other/.*",)), 5, params)  # frozen, perhaps
