"""Questions divided over processes, as launch.evaluate does, and a release of what each of them
holds whole, as launch.train makes of a package's encoder: `python -m tests.train.shares DIR`."""

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from mg_jax import checkpoint, processes


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("folder")
    p.add_argument("--coordinator", default="")
    p.add_argument("--processes", type=int, default=0)
    p.add_argument("--process", type=int, default=-1)
    args = p.parse_args()
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
    made = {"vision": {"kernel": np.arange(6, dtype=np.float32)}}
    config = {"system": "parts", "model": {}}
    checkpoint.save_release(Path(args.folder) / "release", made, config, dtype="float32")
    path = Path(args.folder) / f"{jax.process_index()}.json"
    path.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
