"""Find the boxes that MG-LLaVA reads beside each picture, with an open-vocabulary detector.

    python -m launch.boxes PICTURES boxes.json --model OWLV2_FOLDER --tags words.txt
    python -m launch.boxes PICTURES boxes.json --model F --captions captions.json [--tags words.txt]
    python -m launch.boxes PICTURES boxes.json --model F --tagger my_tagger:logits \\
        --tags ram_tag_list.txt --thresholds ram_tag_list_threshold.txt
    python -m launch.boxes VIDEOS boxes.json --video --model F --tags words.txt
    python -m launch.boxes --histogram boxes.json

MODEL is an OWLv2 in the form of transformers (upstream: google/owlv2-large-patch14-ensemble); a
folder needs no network. What to look for is one list for all pictures, the words of each
picture's caption (those of --tags alone, if given), or what a plug-in says; docs/mg_llava.md has
more. The id of a picture is its path without ending, or what --list says. The file is upstream's
detector JSON, with boxes as found: suppression and limits come when it is read. After an
interruption the same command goes on. Unreadable pictures are listed and left out.
"""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from launch import cli
from launch.box_files import Part, Work, histogram, listing, write
from launch.build_data import Counter as Progress
from mg_jax.data.video import COUNT
from mg_jax.errors import BadRecord, UserError, some

MAX_BAD = 0.05  # share of unreadable pictures from which on the command fails


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.boxes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("pictures", nargs="?", metavar="PICTURES", help="folder of pictures or videos")
    p.add_argument("out", nargs="?", metavar="OUT", help="file to write")
    p.add_argument("--model", metavar="DIR", help="OWLv2 of transformers: folder, or hub's name")
    p.add_argument("--tags", metavar="FILE", help="what to look for, one a line")
    p.add_argument("--captions", metavar="FILE",
                   help="captions of COCO or LLaVA, or rows of id and caption")  # fmt: skip
    p.add_argument("--tagger", metavar="M:F",
                   help="function F of module M: pictures to lists of tags, or, with --tags, to "
                   "RAM++'s logits")  # fmt: skip
    p.add_argument("--thresholds", metavar="FILE", help="of each tag, for --tagger (default 0.68)")
    p.add_argument("--list", metavar="FILE",
                   help="only these: rows of image (or video) and an id")  # fmt: skip
    p.add_argument("--video", action="store_true", help="PICTURES holds videos")
    p.add_argument("--frames", type=int, metavar="N", help=f"a video (default {COUNT})")
    p.add_argument("--threshold", type=float, default=0.2, metavar="T",
                   help="lowest score (default %(default)s)")  # fmt: skip
    p.add_argument("--batch-size", type=int, default=4, metavar="N", help="default %(default)s")
    p.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda, ...")
    p.add_argument("--overwrite", action="store_true", help="replace OUT, and begin anew")
    p.add_argument("--histogram", metavar="FILE", help="count the boxes of a file that is there")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = arguments().parse_args(argv)
    if args.histogram:
        if args.pictures:
            raise UserError("--histogram reads a box file and takes nothing else")
        print(histogram(args.histogram))
        return 0
    if not args.pictures or not args.out or not args.model:
        raise UserError("give PICTURES, OUT and --model; --help tells more")
    for name in ("batch_size", "frames"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: give a number of at least 1")
    if args.frames is not None and not args.video:
        raise UserError("--frames is of videos: add --video, or leave it out")
    args.frames = args.frames or COUNT
    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise UserError(f"{out}: is there already: --overwrite replaces it")
    work, skipped = listing(Path(args.pictures), args.list, args.video)
    from launch.taggers import Captions, open_tagger

    tagger = open_tagger(args.tags, args.captions, args.tagger, args.thresholds)
    if isinstance(tagger, Captions):
        tagger.check(item.names[0] for item in work)
    with Part(out, _settings(args, tagger), anew=args.overwrite) as part:
        left = [item for item in work if item.file not in part]
        if skipped:
            print(f"{skipped} rows of {args.list} have no picture", file=sys.stderr)
        if len(left) < len(work):
            print(f"{len(work) - len(left)} of {len(work)} are done already", file=sys.stderr)
        bad: list[str] = []
        notes: list[str] = []
        if left:
            from launch.owlv2 import Detector

            detector = Detector(args.model, args.device, args.threshold)
            with Progress("boxes", len(work)) as bar:
                bar(len(work) - len(left))
                for item, entry in _found(left, tagger, detector, args, bad, notes):
                    if entry is not None:
                        part.add(item, entry)
                    bar(1)
        if len(bad) > MAX_BAD * len(work):
            raise UserError(
                f"{bad[0]} ({len(bad)} of {len(work)} cannot be read): mend or remove them, and "
                "run the command again"
            )
        write(out, work, part)
    for line in [*some(notes, 20), *(f"left out: {line}" for line in some(bad, 20))]:
        print(line, file=sys.stderr)
    print(f"wrote {out}: {len(work) - len(bad)} {'videos' if args.video else 'pictures'}")
    print(histogram(out))
    return 0


def _settings(args: argparse.Namespace, tagger: Any) -> dict[str, Any]:
    """What the boxes depend on: a part with other settings is not gone on with."""

    def content(name: str | None) -> str | None:
        if not name or not os.path.isfile(name):
            return name
        return hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]

    model = Path(args.model).expanduser()
    files = sorted(f for f in model.iterdir() if f.is_file()) if model.is_dir() else []
    return {
        "PICTURES": str(Path(args.pictures).resolve()),
        "model": [(f.name, f.stat().st_size) for f in files] or args.model,
        "tags": content(args.tags),
        "captions": content(args.captions),
        "tagger": args.tagger and [args.tagger, content(tagger.file)],
        "thresholds": content(args.thresholds),
        "threshold": args.threshold,
        "frames": args.frames if args.video else 0,
    }


def _found(
    work: Sequence[Work],
    tagger: Any,
    detector: Any,
    args: argparse.Namespace,
    bad: list[str],
    notes: list[str],
) -> Iterator[tuple[Work, dict[str, Any] | None]]:
    """Each item with its entry, None for one that cannot be read, of which `bad` tells.

    notes: get what is to be said of videos. The next pictures are read and resized in threads
    while the detector works.
    """
    from launch.owlv2 import pixels

    def load(item: Work) -> tuple[list[np.ndarray], np.ndarray] | str:
        try:
            images = item.images(args.frames, notes)
            return images, np.stack([pixels(image, detector.size) for image in images])
        except BadRecord as e:
            return str(e)

    # A video is a batch by itself: its frames are.
    many = 1 if args.video else args.batch_size
    groups = [work[i : i + many] for i in range(0, len(work), many)]
    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2))) as pool:
        following = [pool.submit(load, item) for item in groups[0]]
        for n, group in enumerate(groups):
            loaded = [future.result() for future in following]
            after = groups[n + 1] if n + 1 < len(groups) else []
            following = [pool.submit(load, item) for item in after]
            good = [(i, x) for i, x in zip(group, loaded, strict=True) if not isinstance(x, str)]
            bad += [x for x in loaded if isinstance(x, str)]
            entries: dict[str, dict[str, Any]] = {}
            if good:
                entries = _detect(good, tagger, detector, args)
            for item in group:
                yield item, entries.get(item.file)


def _detect(
    loaded: Sequence[tuple[Work, tuple[list[np.ndarray], np.ndarray]]],
    tagger: Any,
    detector: Any,
    args: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Entries by file; the frames of a video become one."""
    images = [image for _, (frames, _) in loaded for image in frames]
    names = [item.names[0] for item, (frames, _) in loaded for _ in frames]
    batch = np.concatenate([prepared for _, (_, prepared) in loaded])
    tags = tagger(names, images)
    found: list[dict[str, Any]] = []
    for start in range(0, len(images), args.batch_size):
        stop = start + args.batch_size
        sides = [max(image.shape[:2]) for image in images[start:stop]]
        found += detector.detect(batch[start:stop], sides, tags[start:stop])
    if args.video:
        return {item.file: {"frames": found} for item, _ in loaded}
    return {item.file: entry for (item, _), entry in zip(loaded, found, strict=True)}


if __name__ == "__main__":
    cli.run(main)
