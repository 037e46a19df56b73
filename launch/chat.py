"""Ask a grounded model about a picture or a video; see its answer and its boxes.

    python -m launch.chat --checkpoint groma-tiny --image photo.jpg \\
        --prompt "[grounding] Describe the picture." --out answer.png
    python -m launch.chat --checkpoint mg-llava-tiny --video film.mp4 --prompt "What moves?"

Regions are given in the picture's own pixels (of a video, its first frame) and are named <r:0>,
<r:1>, ... in the prompt, in the order boxes, points, polygons, scribbles, masks, objects; one that
the prompt does not name is appended, an object as its image. Without --prompt questions are read
line by line, as one conversation. MG-LLaVA is given detected boxes: those of --boxes, else what
--detector finds, by default the one that its release names; where there is none, the answer says
so.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import cli, detecting
from mg_jax.disk import disk_errors
from mg_jax.errors import UserError

PLACES = ("--box", "--point", "--polygon", "--scribble", "--object")  # flags of coordinates


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--checkpoint", default="groma-tiny", help="shipped name or release folder")
    cli.add_load_flags(p)
    p.add_argument("--image", metavar="FILE", help="picture file, any size and mode")
    p.add_argument("--video", metavar="FILE", help="video file, GIF or folder of frames")
    p.add_argument("--prompt", help="the question; without it a conversation starts")
    add_regions(p)
    detecting.add_flags(p)
    add_boxes_id(p)
    p.add_argument("--out", help="write the picture with the answer's boxes here (PNG or JPEG)")
    p.add_argument("--json", action="store_true", help="print the answer as one JSON line")
    p.add_argument("--max-new-tokens", type=int, default=128)
    p.add_argument("--temperature", type=float, default=0.0, help="0 (default) is deterministic")
    p.add_argument("--seed", type=int, default=0, help="of sampling, with --temperature")
    return p


def add_regions(p: argparse.ArgumentParser) -> None:
    """The flags that `regions` reads."""
    p.add_argument("--box", action="append", default=[], metavar="X1,Y1,X2,Y2")
    p.add_argument("--point", action="append", default=[], metavar="X,Y")
    p.add_argument("--polygon", action="append", default=[], metavar="X,Y,X,Y,X,Y,...")
    p.add_argument(
        "--scribble", action="append", default=[], metavar="X,Y,X,Y,...", help="points of a stroke"
    )
    p.add_argument(
        "--mask", action="append", default=[], metavar="FILE",
        help="picture of the same size, non-zero where the region is, or a .json of its COCO RLE, "
        '{"size": [height, width], "counts": ...}',
    )  # fmt: skip
    p.add_argument(
        "--object", action="append", default=[], metavar="X1,Y1,X2,Y2",
        help="box whose crop is shown to the model",
    )  # fmt: skip


def add_boxes_id(p: argparse.ArgumentParser) -> None:
    """--boxes-id, of commands that ask about one picture."""
    p.add_argument("--boxes-id", metavar="ID", help="its id in --boxes (default: as its path ends)")


def joined(words: Sequence[str]) -> list[str]:
    """The words of a command line, negative coordinates joined to their flag: argparse would take
    "-5,1,20,30" for a flag, and not say what is wrong with it."""
    out: list[str] = []
    for word in words:
        if out and out[-1] in PLACES and re.match(r"-[\d.]", word):
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


def regions(args: argparse.Namespace, width: int, height: int) -> list:
    """Regions of the flags, from pixels of a width x height picture."""
    from mg_jax import places

    found = []
    for kind in places.KINDS:
        for text in getattr(args, kind):
            try:
                found.append(places.parse(kind, text, width, height))
            except UserError as e:
                raise UserError(f"--{kind} {e}") from e
    return found


def with_objects(prompt: str, count: int, objects: int) -> str:
    """The prompt, showing the last `objects` of `count` regions as images where it does not name
    them."""
    from mg_jax.text import markup

    there = markup.regions_of(prompt)
    missing = [k for k in range(count - objects, count) if k not in there]
    return prompt + "".join(f" <object:{k}>" for k in missing)


def told(answer) -> list[str]:
    """Lines of an answer: its text, its phrases with their boxes in pixels, notes."""
    lines = [answer.text or "(no words)"]
    for phrase in answer.phrases:
        for box, score in zip(phrase.boxes, phrase.scores, strict=True):
            place = ", ".join(f"{v:.0f}" for v in box)
            lines.append(f"  {phrase.text or 'region'}: [{place}]  score {score:.2f}")
    return [*lines, *(f"  note: {note}" for note in answer.notes)]


def show(answer, args: argparse.Namespace, picture) -> None:
    """Print an answer, and draw it when --out is given."""
    if args.json:
        print(json.dumps(answer.to_json()), flush=True)
    else:
        print(*told(answer), sep="\n")
    if args.out:
        with disk_errors(Path(args.out)):
            answer.draw(picture).save(args.out)
        print(f"wrote {args.out}", file=sys.stderr)


def check(args: argparse.Namespace) -> None:
    """Raises UserError for values that would fail only after the model has run."""
    if args.image and args.video:
        raise UserError("--image, --video: give one of them")
    if args.boxes and not (args.image or args.video):
        raise UserError("--boxes: of which picture? Give --image or --video")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: give at least 1")
    if not args.temperature >= 0:
        raise UserError(f"--temperature {args.temperature:g}: give 0 or more")
    if args.out:
        cli.check_picture(args.out, inputs=read_files(args))


def read_files(args: argparse.Namespace) -> list[str]:
    """The files that are read, which a picture must not replace."""
    read = (args.image, args.video, *(args.boxes or "").split(","), *args.mask)
    return [file for file in read if file]


def ask() -> str:
    """The next question; empty at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def look(args: argparse.Namespace) -> Any:
    """The picture, or the first frame of the video; None without either."""
    from mg_jax.data.video import read_frames
    from mg_jax.vision.preprocess import load_image

    if args.video:
        return read_frames(args.video, 1)[0][0]
    return load_image(args.image) if args.image else None


def detections(args: argparse.Namespace) -> Any:
    """What --boxes has of the picture or video, None without that flag.

    Raises UserError when the file has no such entry.
    """
    if not args.boxes:
        if args.boxes_id:
            raise UserError("--boxes-id: is an id in the file of --boxes: give that too")
        return None
    from mg_jax.data.detections import read_box_file

    file = read_box_file(args.boxes)
    return file.lookup(args.boxes_id) if args.boxes_id else file.of_file(args.video or args.image)


def refuse_blank(args: argparse.Namespace, needed: bool) -> None:
    """Raises UserError when a picture is needed and the flags give none."""
    if needed and not (args.image or args.video):
        raise UserError(f"{args.checkpoint} answers about pictures alone: give --image")


def converse(chat: Callable[..., Any], given: list, args: argparse.Namespace, picture) -> None:
    """Answer line by line. On a terminal a mistake is told and the conversation goes on."""
    print("Ask about the picture; an empty line ends.", file=sys.stderr)
    while prompt := ask():
        try:
            objects = len(args.object) if given else 0
            answer = chat(with_objects(prompt, len(given), objects), given)
            given = []
            show(answer, args, picture)
        except UserError as e:
            if not sys.stdin.isatty():
                raise
            print(cli.error_line(e), file=sys.stderr)


def main() -> None:
    args = arguments().parse_args(joined(sys.argv[1:]))
    check(args)
    from mg_jax import places
    from mg_jax.generate import Sampling
    from mg_jax.loading import needs_picture

    picture = look(args)
    if picture is None and (args.out or any(getattr(args, kind) for kind in places.KINDS)):
        raise UserError("regions and --out are of a picture: give --image or --video")
    given = regions(args, picture.shape[1], picture.shape[0]) if picture is not None else []
    found = detections(args)
    refuse_blank(args, needs_picture(args.checkpoint))
    assistant = cli.load(args.checkpoint, **cli.load_options(args), **detecting.options(args))
    detecting.refuse(args, assistant)
    refuse_blank(args, not assistant.adapter.text_alone)  # told of weights of PyTorch only now
    chat = functools.partial(
        assistant.chat,
        None if args.video else picture,
        video=args.video,
        detections=found,
        max_new_tokens=args.max_new_tokens,
        sampling=Sampling(args.temperature),
        seed=args.seed,
    )
    if args.prompt is None:
        converse(chat, given, args, picture)
    else:
        prompt = with_objects(args.prompt, len(given), len(args.object))
        show(chat(prompt, given), args, picture)


if __name__ == "__main__":
    cli.run(main)
