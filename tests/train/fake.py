"""A system of 300 parameters with two stages, its config and its data, to try the trainer on.

As a program it is one run, of one process or of one among several:
`python -m tests.train.fake WORKDIR [--steps N] [--slow SECONDS] [--processes N --process I ...]`.
"""

import argparse
import dataclasses
import sys
import time
import traceback

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from mg_jax import nn as mg
from mg_jax import processes
from mg_jax.data.batch import Plan, batches, stack
from mg_jax.errors import UserError
from mg_jax.train import train
from tests.numbered import Numbered


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
    dropout: bool = True

    def loss(self, stage):
        def loss(params, batch, key):
            rngs = {"dropout": key} if self.dropout else {}
            y = Net(self.cfg).apply({"params": params}, batch["x"], rngs=rngs)
            error = jnp.square(y - batch["y"]).mean()
            return error, {"largest": jnp.abs(y).max()}

        return loss

    def example_batch(self, stage, rows=1):
        shape = jax.ShapeDtypeStruct((rows, self.cfg.width), jnp.float32)
        return {"x": shape, "y": shape}

    def init(self, stage):
        return lambda key: Net(self.cfg).init(key, jnp.zeros((1, self.cfg.width)))


class FakeData:
    """Batch i is a function of i; at `bad` it holds a NaN."""

    def __init__(self, rows=8, width=8, bad=-1):
        self.rows, self.width, self.bad = rows, width, bad
        self.state, self.epoch_size = 0, 800

    def __next__(self):
        rng = np.random.default_rng(self.state)
        x = rng.normal(size=(self.rows, self.width)).astype(np.float32)
        if self.state == self.bad:
            x[0, 0] = np.nan
        self.state += 1
        return {"x": x, "y": np.roll(np.sin(x), 1, axis=1)}

    def restore(self, state):
        self.state = state


ROWS = 8  # of a batch
NUMBERS = Plan([800], ROWS, seed=0).order(0)[:, 1]  # of the rows of an epoch


def real_batches(slow=0.0, seen=None):
    """This process's rows by the reader of every training. `slow`: seconds a batch takes; `seen`:
    file that the numbers of the rows are added to."""

    def make(example, rng):
        number = example.meta["number"]
        x = np.random.default_rng(number).normal(size=8).astype(np.float32)
        return {"number": number, "x": x, "y": np.roll(np.sin(x), 1)}

    def collate(records):
        time.sleep(slow)
        numbers = [record.pop("number") for record in records]
        if seen:
            with open(seen, "a") as file:
                file.writelines(f"{n}\n" for n in numbers)
        return stack(records)

    return batches(
        [Numbered("numbers", len(NUMBERS))], None, make, collate, ROWS, 0, threads=0,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip


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


def run(folder, config=None, data=None, **kwargs):
    """`train` of the fake system in a folder."""
    return train(
        config or fake_config(), folder, system=FakeSystem(), data=data or FakeData(), **kwargs
    )


def main() -> int:
    p = argparse.ArgumentParser()
    p.add_argument("workdir")
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--slow", type=float, default=0.0)
    p.add_argument("--save", type=int, default=0, help="updates between checkpoints")
    p.add_argument("--wide", type=int, default=16, help="so that a save takes its time")
    p.add_argument("--seen", help="file for the numbers of the rows that were read")
    p.add_argument("--devices", type=int, default=0)
    p.add_argument("--coordinator", default="")
    p.add_argument("--processes", type=int, default=0)
    p.add_argument("--process", type=int, default=-1)
    p.add_argument("--heartbeat", type=int, default=10)
    args = p.parse_args()
    if args.devices:
        jax.config.update("jax_num_cpu_devices", args.devices)
    if args.processes:
        processes.start(args.coordinator, args.processes, args.process, args.heartbeat)
    config = fake_config(
        train__steps=args.steps, train__save_steps=args.save, model__hidden=args.wide
    )  # fmt: skip
    # where rows lie depends on how many processes there are, so no dropout with several
    system = FakeSystem(FakeConfig(hidden=args.wide), dropout=not args.devices)
    try:
        data = real_batches(args.slow, args.seen)
        return train(config, args.workdir, system=system, data=data).code
    except UserError as e:
        print(e, file=sys.stderr)
        return 2
    except Exception:
        if not args.processes:
            raise
        traceback.print_exc()
        return processes.leave(1)


if __name__ == "__main__":
    sys.exit(main())
