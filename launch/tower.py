"""Take an image encoder out of a release, for another system to begin with.

    python -m launch.tower runs/labels/release clip --out runs/clip --patch 8 --image-size 112
    python -m launch.tower runs/labels/release dino --out runs/dino --patch 8 --image-size 112
    python -m launch.train --config configs/ferret.py:stage=labels,size=tiny \\
        --workdir runs/ferret-labels --config.init_from=runs/clip,runs/dino

The published systems begin with pretrained encoders; at tiny size those of one system's stage
labels can be that for the next one. --patch resizes the kernel of the patches so that it says of a
resized patch what it said of the patch, as nearly as it can (FlexiViT, arXiv 2212.08013);
--image-size their positions. Stages take it as they take an encoder of launch.convert.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from launch import cli
from mg_jax import checkpoint
from mg_jax.config import build, to_dict
from mg_jax.errors import UserError
from mg_jax.ops.resize import linear_matrix, resize_positions
from mg_jax.plan import PARTS
from mg_jax.vision.vit import ViTConfig

PART = "vision"  # of a release of an encoder alone


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.tower",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("release", help="release folder or shipped name")
    p.add_argument("part", help="the encoder's name there: vision, low, tile, clip or dino")
    p.add_argument("--out", required=True, type=Path, help="folder of the new release")
    p.add_argument("--patch", type=int, metavar="PX", help="side of a patch (default: as it is)")
    p.add_argument("--image-size", type=int, metavar="PX", help="side of the picture whose patches "
                   "have positions (default: as it is)")  # fmt: skip
    return p


def resized(
    flat: dict[str, Any], cfg: ViTConfig, patch: int, image_size: int
) -> tuple[dict[str, Any], ViTConfig]:
    """(parameters, config) of an encoder for other patches and pictures; `flat`: "patch/kernel"
    [p, p, 3, D], "positions" [1 + grid**2, D] and others, which stay. Raises UserError for a
    picture that is no whole number of patches."""
    if patch < 1 or image_size < patch or image_size % patch:
        raise UserError(f"--image-size {image_size}: give a multiple of --patch {patch}")
    new = dataclasses.replace(cfg, patch=patch, image_size=image_size)
    out = dict(flat)
    if patch != cfg.patch:
        # a kernel k reads k.x of a patch x; of the resized B x it shall read as much: B^T k' = k
        inverse = np.linalg.pinv(linear_matrix(patch, cfg.patch).T.astype(np.float64))
        kernel = np.asarray(flat["patch/kernel"], np.float64)
        out["patch/kernel"] = np.einsum("qy,rx,yxcd->qrcd", inverse, inverse, kernel)
    if new.grid != cfg.grid:
        table = np.asarray(flat["positions"], np.float32)
        grid = jnp.asarray(table[1:]).reshape(cfg.grid, cfg.grid, -1)
        grid = resize_positions(grid, (new.grid, new.grid), cfg.position_rule)
        out["positions"] = np.concatenate([table[:1], np.asarray(grid).reshape(new.grid**2, -1)])
    return out, new


def main(argv: list[str] | None = None) -> None:
    """Write the release. Raises UserError for one without such an encoder, and where --out is
    something else than a release or the release itself."""
    args = arguments().parse_args(argv)
    config, params = checkpoint.open_release(args.release)
    cli.check_release(args.out, [params.path.parent])
    there = {n: v for n, v in config["model"].items() if isinstance(v, dict) and "registers" in v}
    held = {
        p: p.removeprefix(f"{args.part}/") for p in params.shapes if p.startswith(f"{args.part}/")
    }
    if args.part not in there or not held:
        names = ", ".join(n for n in there if any(p.startswith(f"{n}/") for p in params.shapes))
        raise UserError(f"{args.release}: holds no encoder {args.part!r}, but {names or 'none'}")
    cfg = build(ViTConfig, there[args.part], args.part)
    flat = {name: jnp.asarray(params.leaf(path)) for path, name in held.items()}
    dtype = str(flat["patch/kernel"].dtype)
    flat, cfg = resized(flat, cfg, args.patch or cfg.patch, args.image_size or cfg.image_size)
    settings = {
        "system": PARTS,
        "stage": "encoder",
        "architecture": cfg.kind,
        "model": {PART: to_dict(cfg)},
        "provenance": {"release": args.release, "part": args.part},
    }
    card = f"# {args.part} of {args.release}\n\nTaken out by `python -m launch.tower`.\n"
    named = {f"{PART}/{name}": jnp.asarray(x, dtype) for name, x in flat.items()}
    checkpoint.save_release(args.out, named, settings, None, card, dtype=dtype)
    count = sum(x.size for x in named.values())
    print(f"{args.out}: {count:,} parameters, {cfg.grid}x{cfg.grid} patches of {cfg.patch} px")


if __name__ == "__main__":
    cli.run(main)
