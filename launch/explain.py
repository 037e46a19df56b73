"""Draw where an answer looks: attention of the last layer from its tokens to the picture.

    python -m launch.explain --checkpoint groma-tiny --image photo.jpg --prompt "What is <r:0>?" \\
        --box 40,30,120,90 --out look.png
    python -m launch.explain --checkpoint RELEASE --image photo.jpg --object 40,30,120,90 \\
        --prompt "Where is the object <object:0> in the image?" --out look.png

The tokens of an answer are of three kinds, each drawn by itself: text, coordinates (in Groma its
region tokens) and choice (an answer that is an option's letter). Attention is summed over heads and
over the tokens of a kind, as in TinyGroundingGPT's figures 5 and 14, at the positions where they
are predicted. One row a kind; beside the picture stand the object images of the question. What is
printed: the answer, and for each kind the share of its attention that goes to the picture, with the
place in pixels where most of it lies. Regions and prompts as of launch.chat.
"""

import argparse
import json
import sys
from typing import Any

from launch import chat, cli, detecting
from mg_jax.errors import UserError

KINDS = ("text", "coordinates", "choice")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--checkpoint", default="groma-tiny", help="shipped name or release folder")
    cli.add_load_flags(p)
    p.add_argument("--image", required=True, metavar="FILE", help="picture file")
    p.add_argument("--prompt", required=True, help="the question")
    chat.add_regions(p)
    detecting.add_flags(p)
    chat.add_boxes_id(p)
    p.add_argument("--of", choices=KINDS, help="one kind of tokens (default: each that is there)")
    p.add_argument("--layer", type=int, default=-1, metavar="N", help="0 the first; default last")
    p.add_argument("--out", required=True, metavar="FILE", help="the drawing (PNG or JPEG)")
    p.add_argument("--json", action="store_true", help="print one JSON line")
    p.add_argument("--max-new-tokens", type=int, default=128)
    return p


def summary(looks: Any, kind: str) -> dict[str, Any]:
    """Of a kind of tokens: their text, and of each view the share of attention that it gets and
    the pixel of the picture where most of it lies."""
    import numpy as np

    words = [w for w, k in zip(looks.words, looks.kinds, strict=True) if k == kind]
    found: dict[str, Any] = {"words": "".join(words).strip()}
    for view in looks.views:
        heat = looks.heat(view, kind)
        top = np.argwhere(heat == heat.max()).mean(0)
        found[view.name] = {
            "share": round(float(looks.shares(view, kind).sum()), 4),
            "most": [round(float(top[1]) + 0.5, 1), round(float(top[0]) + 0.5, 1)],
        }
    return found


def drawing(looks: Any, shown: list[str]) -> Any:
    """A row of maps for each kind of tokens, the answer's boxes on the picture."""
    from mg_jax import draw

    panels = []
    for kind in shown:
        for n, view in enumerate(looks.views):
            panel = draw.heat(view.pixels, looks.heat(view, kind))
            panel = panel if n else looks.answer.draw(panel)
            panels.append(draw.titled(panel, kind if n == 0 else f"{kind}: {view.name}"))
    return draw.grid(panels, columns=len(looks.views), cell=520)


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(chat.joined(sys.argv[1:] if argv is None else argv))
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: give at least 1")
    args.video = None
    cli.check_picture(args.out, inputs=chat.read_files(args))
    from mg_jax.vision.preprocess import load_image

    picture = load_image(args.image)
    given = chat.regions(args, picture.shape[1], picture.shape[0])
    found = chat.detections(args)
    from mg_jax.assistant import mention
    from mg_jax.example import Query
    from mg_jax.explain import explain

    assistant = cli.load(args.checkpoint, **cli.load_options(args), **detecting.options(args))
    detecting.refuse(args, assistant)
    prompt = chat.with_objects(args.prompt, len(given), len(args.object))
    query = Query(picture, mention(prompt, len(given), 0), tuple(given), detections=found)
    looks = explain(assistant, query, max_new_tokens=args.max_new_tokens, layer=args.layer)
    there = [kind for kind in KINDS if kind in looks.kinds]
    shown = [args.of] if args.of else there
    if not set(shown) <= set(there) or not there:
        raise UserError(
            f"the answer {looks.answer.text!r} has no {args.of or 'words'}: it has "
            f"{', '.join(there) or 'nothing'}"
        )
    drawing(looks, shown).save(args.out)
    about = {kind: summary(looks, kind) for kind in shown}
    if args.json:
        print(json.dumps({"answer": looks.answer.to_json(), "kinds": about, "out": args.out}))
        return
    print(looks.answer.text or "(no words)")
    for kind, told in about.items():
        places = (
            f"{v.name} {told[v.name]['share']:.0%}, most at "
            f"({told[v.name]['most'][0]:g}, {told[v.name]['most'][1]:g})"
            for v in looks.views
        )
        print(f"  {kind} ({told['words']}): {'; '.join(places)}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    cli.run(main)
