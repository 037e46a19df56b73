"""Ask a grounded model about a picture or a video; see its answer and its boxes.

    python -m launch.chat --checkpoint groma-tiny --image photo.jpg \\
        --prompt "[grounding] Describe the picture." --out answer.png
    python -m launch.chat --checkpoint mg-llava-tiny --video film.mp4 --prompt "What moves?"
    python -m launch.chat --checkpoint RELEASE --image photo.jpg --object 40,30,120,90 \\
        --prompt "Where is the object <object:0> in the image?"

Regions are given in the picture's own pixels (of a video, its first frame) and are named <r:0>,
<r:1>, ... in the prompt, in the order boxes, points, polygons, scribbles, masks, objects; one that
the prompt does not name is appended. An object is shown as an image of its own, a crop, to systems
that take one (TinyGroundingGPT): <object:K> in the prompt. Without --prompt questions are read line
by line, as one conversation. MG-LLaVA is given detected boxes: those of --boxes, else what
--detector finds, by default the one that its release names; where there is none, the answer says
so.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from launch import cli, detecting


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.chat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--checkpoint", default="groma-tiny", help="shipped name or release folder")
    p.add_argument("--image", metavar="FILE", help="picture file, any size and mode")
    p.add_argument("--video", metavar="FILE", help="video file, GIF or folder of frames")
    p.add_argument("--prompt", help="the question; without it a conversation starts")
    add_regions(p)
    detecting.add_flags(p)
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
        help="picture of the same size, non-zero where the region is",
    )  # fmt: skip
    p.add_argument(
        "--object", action="append", default=[], metavar="X1,Y1,X2,Y2",
        help="box whose crop is shown to the model",
    )  # fmt: skip


def numbers(text: str, flag: str, count: int | None = None) -> list[float]:
    """Comma-separated numbers of a flag. Raises UserError naming the flag and the value."""
    from mg_jax.errors import UserError

    try:
        values = [float(v) for v in text.split(",")]
    except ValueError:
        values = []
    if not values or (count and len(values) != count) or len(values) % 2:
        shape = f"{count} numbers" if count else "an even count of numbers"
        raise UserError(f"{flag} {text}: expected {shape} separated by commas, in pixels")
    return values


@contextlib.contextmanager
def named(flag: str):
    """Say which flag a region that is refused came from."""
    from mg_jax.errors import UserError

    try:
        yield
    except UserError as e:
        raise UserError(f"{flag}: {e}") from e


def inside(values: list[float], name: str, width: int, height: int) -> None:
    """Raises UserError when a point x, y, x, y, ... leaves the picture."""
    from mg_jax.errors import UserError

    for x, y in zip(values[::2], values[1::2], strict=True):
        if not (0 <= x <= width and 0 <= y <= height):
            raise UserError(f"{name}: ({x:g}, {y:g}) is outside the {width}x{height} picture")


def regions(args: argparse.Namespace, width: int, height: int) -> list:
    """Regions of the flags, from pixels of a width x height picture."""
    from mg_jax.boxes import check_boxes
    from mg_jax.errors import UserError
    from mg_jax.example import Region
    from mg_jax.vision.preprocess import load_image

    def scaled(values):
        return [v / (width, height)[i % 2] for i, v in enumerate(values)]

    def boxes(texts, flag):
        for text in texts:
            box = numbers(text, flag, 4)
            with named(f"{flag} {text}"):
                check_boxes(box, width, height)
            yield Region.from_box(tuple(scaled(box)))

    found = list(boxes(args.box, "--box"))
    for text in args.point:
        inside(values := numbers(text, "--point", 2), f"--point {text}", width, height)
        found.append(Region.from_point(*scaled(values)))
    for flag, texts, make in (
        ("--polygon", args.polygon, Region.from_polygon),
        ("--scribble", args.scribble, Region.from_scribble),
    ):
        for text in texts:
            inside(values := numbers(text, flag), f"{flag} {text}", width, height)
            values = scaled(values)
            with named(f"{flag} {text}"):
                found.append(make(list(zip(values[::2], values[1::2], strict=True))))
    for file in args.mask:
        mask = load_image(file).any(-1)
        if mask.shape != (height, width):
            rows, columns = mask.shape
            raise UserError(f"--mask {file}: {columns}x{rows}, but the picture is {width}x{height}")
        with named(f"--mask {file}"):
            found.append(Region.from_mask(mask))
    return [*found, *boxes(args.object, "--object")]


def with_objects(prompt: str, count: int, objects: int) -> str:
    """The prompt, showing the last `objects` of `count` regions as images where it does not name
    them."""
    from mg_jax.text import markup

    there = markup.regions_of(prompt)
    missing = [k for k in range(count - objects, count) if k not in there]
    return prompt + "".join(f" <object:{k}>" for k in missing)


def show(answer, args: argparse.Namespace, picture) -> None:
    """Print an answer, and draw it when --out is given."""
    if args.json:
        print(json.dumps(answer.to_json()), flush=True)
    else:
        print(answer.text or "(no words)")
        for phrase in answer.phrases:
            for box, score in zip(phrase.boxes, phrase.scores, strict=True):
                place = ", ".join(f"{v:.0f}" for v in box)
                print(f"  {phrase.text or 'region'}: [{place}]  score {score:.2f}")
        for note in answer.notes:
            print(f"  note: {note}")
    if args.out:
        answer.draw(picture).save(args.out)
        print(f"wrote {args.out}", file=sys.stderr)


def check(args: argparse.Namespace) -> None:
    """Raises UserError for values that would fail only after the model has run."""
    from mg_jax.errors import UserError

    if args.image and args.video:
        raise UserError("--image, --video: give one of them")
    if args.boxes and not (args.image or args.video):
        raise UserError("--boxes: of which picture? Give --image or --video")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: give at least 1")
    if not args.temperature >= 0:
        raise UserError(f"--temperature {args.temperature:g}: give 0 or more")
    if args.out:
        cli.check_picture(args.out)


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
        return None
    from mg_jax.data.detections import read_box_file

    file, path = read_box_file(args.boxes), args.video or args.image
    names = (path, Path(path).name)
    return file.lookup(next((n for n in names if n in file), names[-1]))


def main() -> None:
    args = arguments().parse_args()
    check(args)
    import mg_jax
    from mg_jax.errors import UserError
    from mg_jax.generate import Sampling

    picture = look(args)
    placed = (
        args.box or args.point or args.polygon or args.scribble or args.mask or args.object
    )  # fmt: skip
    if picture is None and (placed or args.out):
        raise UserError("regions and --out are of a picture: give --image or --video")
    given = regions(args, picture.shape[1], picture.shape[0]) if picture is not None else []
    found = detections(args)
    assistant = mg_jax.load(args.checkpoint, **detecting.options(args))
    options = {
        "video": args.video,
        "detections": found,
        "max_new_tokens": args.max_new_tokens,
        "sampling": Sampling(args.temperature),
        "seed": args.seed,
    }
    image = None if args.video else picture
    if args.prompt is not None:
        prompt = with_objects(args.prompt, len(given), len(args.object))
        show(assistant.chat(image, prompt, given, **options), args, picture)
        return
    print("Ask about the picture; an empty line ends.", file=sys.stderr)
    while prompt := ask():
        prompt = with_objects(prompt, len(given), len(args.object) if given else 0)
        show(assistant.chat(image, prompt, given, **options), args, picture)
        given = []


if __name__ == "__main__":
    cli.run(main)
