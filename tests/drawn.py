"""Parameters for tests: every leaf drawn, none constant, no initialiser compiled."""

import jax
import jax.numpy as jnp
import numpy as np

from mg_jax import sharding


def drawn(system, stage, seed=0):
    """Parameters of a stage of a system, at half the scale that keeps the size of what they map."""
    draw = np.random.default_rng(seed)
    boxed = sharding.abstract_params(system.init(stage), jax.random.key(0))

    def one(x):
        return jnp.asarray(draw.normal(scale=x.shape[0] ** -0.5 / 2, size=x.shape), jnp.float32)

    return jax.tree.map(one, sharding.unbox(boxed))
