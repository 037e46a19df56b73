"""A system of 300 parameters with two stages, its config and its data, to try the trainer on.

As a program it is one run: `python -m tests.train.fake WORKDIR [--steps N] [--slow SECONDS]`.
"""

import argparse
import dataclasses
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from mg_jax import nn as mg
from mg_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    width: int = 8
    hidden: int = 16


class Net(nn.Module):
    """tanh(x . encoder) . head, with dropout between."""

    cfg: FakeConfig

    @nn.compact
    def __call__(self, x):
        c = self.cfg
        x = jnp.tanh(mg.Linear((c.width, c.hidden), ("embed", "mlp"), name="encoder")(x))
        x = mg.dropout(self, x, 0.1)
        return mg.Linear((c.hidden, c.width), ("mlp", "embed"), name="head")(x)


@dataclasses.dataclass(frozen=True)
class FakeSystem:
    """The interface of mg_jax.models.System."""

    cfg: FakeConfig = FakeConfig()

    def loss(self, stage):
        def loss(params, batch, key):
            y = Net(self.cfg).apply({"params": params}, batch["x"], rngs={"dropout": key})
            error = jnp.square(y - batch["y"]).mean()
            return error, {"largest": jnp.abs(y).max()}

        return loss

    def example_batch(self, stage, rows=1):
        shape = jax.ShapeDtypeStruct((rows, self.cfg.width), jnp.float32)
        return {"x": shape, "y": shape}

    def init(self, stage):
        return lambda key: Net(self.cfg).init(key, jnp.zeros((1, self.cfg.width)))


class FakeData:
    """Batch i is a function of i. At `bad` it holds a NaN; `slow`: seconds a batch takes."""

    def __init__(self, rows=8, width=8, bad=-1, slow=0.0):
        self.rows, self.width, self.bad, self.slow = rows, width, bad, slow
        self.state, self.epoch_size = 0, 800

    def __next__(self):
        time.sleep(self.slow)
        rng = np.random.default_rng(self.state)
        x = rng.normal(size=(self.rows, self.width)).astype(np.float32)
        if self.state == self.bad:
            x[0, 0] = np.nan
        self.state += 1
        return {"x": x, "y": np.roll(np.sin(x), 1, axis=1)}

    def restore(self, state):
        self.state = state


def fake_config(**changes):
    """A locked config; `changes` as "optim__lr"=0.1."""
    c = base.get_config()
    c.system, c.stage, c.size, c.data = "fake", "first", "tiny", "fake"
    c.model = dataclasses.asdict(FakeConfig())
    c.batch_size, c.frozen_dtype = 8, "float32"
    c.optim.lr, c.optim.warmup_steps, c.optim.weight_decay = 1e-2, 3, 1e-2
    c.train.steps, c.train.log_every, c.train.tensorboard = 12, 1, False
    c.train.save_minutes = 0.0
    c.lock()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def main() -> int:
    p = argparse.ArgumentParser()
    p.add_argument("workdir")
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--slow", type=float, default=0.0)
    args = p.parse_args()
    from mg_jax.train import train

    config = fake_config(train__steps=args.steps)
    try:
        return train(config, args.workdir, system=FakeSystem(), data=FakeData(slow=args.slow)).code
    except UserError as e:
        print(e, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
