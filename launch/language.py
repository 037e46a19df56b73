"""Take the language model out of a release, for another system to begin with.

    python -m launch.language groma-tiny --out runs/language
    python -m launch.train --config configs/mg_llava.py:stage=pretrain,llm=tiny \\
        --workdir runs/a --config.init_from=runs/labels,runs/language

The published systems begin with a pretrained language model; at tiny size this is one, which has
read of scenes. The rows of tokens that the system added, which Groma keeps apart, follow those of
its vocabulary; where the table is the head too, as in groma-tiny, what Groma's head of its own said
of these tokens is left behind. Stages take it as they take a language model of launch.convert.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp

from launch import cli
from mg_jax import checkpoint
from mg_jax.disk import read_json
from mg_jax.errors import UserError
from mg_jax.plan import PARTS

TABLE = "lm/embed/embedding"
ADDED = "new_tokens/embedding"


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.language",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("release", help="release folder or shipped name")
    p.add_argument("--out", required=True, type=Path, help="folder of the new release")
    return p


def main(argv: list[str] | None = None) -> None:
    """Write the release. Raises UserError for one without a language model, or with a quantized
    one, and where --out is something else than a release or the release itself."""
    args = arguments().parse_args(argv)
    config, params = checkpoint.open_release(args.release)
    cli.check_release(args.out, [params.path.parent])
    wanted = ("lm/", "new_tokens/")
    flat = {p: jnp.asarray(params.leaf(p)) for p in params.shapes if p.startswith(wanted)}
    lm = {path: x for path, x in flat.items() if path.startswith("lm/")}
    if not lm:
        raise UserError(f"{args.release}: stage {config.get('stage')} has no language model")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in lm.values()):
        raise UserError(f"{args.release}: its language model is quantized: take the one before")
    model = dict(config["model"]["lm"])
    if ADDED in flat:
        lm[TABLE] = jnp.concatenate([lm[TABLE], flat[ADDED]])
        model["vocab"] = len(lm[TABLE])
        if not model["tied"]:
            lm["lm/head/kernel"] = jnp.concatenate(
                [lm["lm/head/kernel"], flat["new_tokens/head"]], axis=-1
            )
    settings = {
        "system": PARTS,
        "stage": "language",
        "architecture": "language",
        "model": {"lm": model},
        "provenance": {"release": args.release},
    }
    card = f"# The language model of {args.release}\n\nTaken out by `python -m launch.language`.\n"
    tokenizer = params.path.parent / "tokenizer"
    dtype = str(lm[TABLE].dtype)
    checkpoint.save_release(
        args.out, lm, settings, tokenizer if tokenizer.is_dir() else None, card, dtype=dtype
    )
    count = sum(x.size for x in lm.values())
    print(f"{args.out}: {count:,} parameters, {model['vocab']} tokens")


def language_of(folder: Path) -> str:
    """The release that launch.language took a language model out of, where that is what lies in
    the folder; "" for anything else."""
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    taken = config.get("architecture") == "language"
    return str(config.get("provenance", {}).get("release", "")) if taken else ""


if __name__ == "__main__":
    cli.run(main)
