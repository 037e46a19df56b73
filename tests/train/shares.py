"""What processes do together besides training: `python -m tests.train.shares DIR`.

Questions are divided, as launch.evaluate does; a package's encoder becomes a release, as
launch.train makes of it; a checkpoint that the last process cannot read is given up by all; a mesh
on which processes would hold each other's rows is refused.
"""

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conversion import trunks
from mg_jax import checkpoint, processes, sharding
from mg_jax.errors import UserError
from mg_jax.params import place
from tests import fake_trunk


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--coordinator", default="")
    p.add_argument("--processes", type=int, default=0)
    p.add_argument("--process", type=int, default=-1)
    args = p.parse_args()
    jax.config.update("jax_num_cpu_devices", 2)
    if args.processes:
        processes.start(args.coordinator, args.processes, args.process)
    asked = []

    def answer(questions):
        asked.extend(questions)
        return [n * n for n in questions]

    found = {}
    for size in (0, 1, 3, 7, 16):
        answers = processes.divided(answer)(list(range(size)))
        found[size] = {"answers": answers, "sum": sum(answers)}
    found["asked"] = len(asked)
    folder = Path(args.folder)
    found["trunk"] = trunk(folder)
    found["restored"] = restored(folder / "checkpoints")
    found["refused"] = crosswise()
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(found))


def trunk(folder: Path) -> bool:
    """Whether the encoder of a package is as it was in the release that a run starts from."""
    site = folder / f"site{jax.process_index()}"
    known, params = fake_trunk.install(site, np.random.default_rng(0))
    sys.path.insert(0, str(site))
    trunks.TRUNKS[fake_trunk.NAME] = known
    made = trunks.start(fake_trunk.NAME, folder / "trunk")
    there = checkpoint.open_release(made)[1].read()
    return all(np.array_equal(there[path], x) for path, x in params.items())


def restored(folder: Path) -> tuple[int, list[int]]:
    """(step that is restored, those that stay) of two, the second unreadable for one process."""
    whole = NamedSharding(sharding.make_mesh(), PartitionSpec())
    like = jax.ShapeDtypeStruct((3,), np.float32, sharding=whole)
    states = checkpoint.TrainStates(folder)
    for step in (1, 2):
        x = place(np.full(3, step), like)
        states.save(step, {"a": x}, {"m": x}, {"step": step})
    states.wait()
    real = ocp.CompositeCheckpointHandler.restore

    def broken(self, directory, *args, **kwargs):
        if directory.name == "2" and jax.process_index() == jax.process_count() - 1:
            raise OSError("no such shard")
        return real(self, directory, *args, **kwargs)

    ocp.CompositeCheckpointHandler.restore = broken
    params, _, meta = states.restore({"a": like}, {"m": like})
    states.close()
    assert float(params["a"].addressable_data(0)[0]) == meta["step"]
    return meta["step"], states.steps()


def crosswise() -> str:
    """What is said of a mesh whose tensor axis goes through all processes."""
    devices = np.array(jax.devices()).reshape(jax.process_count(), 1, 2).transpose(1, 2, 0)
    try:
        sharding.put_batch(np.zeros((4, 3)), Mesh(devices, sharding.MESH_AXES))
    except UserError as e:
        return str(e)
    return ""


if __name__ == "__main__":
    main()
