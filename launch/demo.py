"""The first thing to run: ask the shipped tiny model about a generated picture.

    python -m launch.demo [--out demo.png]

Prints questions and answers, and writes the picture with the answer's boxes.
"""

import argparse

from launch import cli

QUESTIONS = (
    "[grounding] Describe the picture.",
    "Locate <p>{}</p> in the image.",
    "Is there a {} in the picture?",
)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m launch.demo", description=__doc__)
    p.add_argument("--checkpoint", default="groma-tiny", help="shipped name or release folder")
    p.add_argument("--out", default="demo.png", help="where the drawn answer goes")
    args = p.parse_args()
    cli.check_picture(args.out)
    import mg_jax
    from mg_jax.data.scenes import RESERVED_SEED, make_world, render

    picture = render(make_world(RESERVED_SEED, 1, 448, 448, min_objects=4, max_objects=7))
    assistant = mg_jax.load(args.checkpoint)
    first = None
    for question in QUESTIONS:
        thing = first.phrases[0].text.removeprefix("a ") if first and first.phrases else "red ball"
        prompt = question.format(thing)
        answer = assistant.chat(picture, prompt)
        first = first or answer
        print(f"Q: {prompt}\nA: {answer.text}")
        for phrase in answer.phrases:
            for box in phrase.boxes:
                print(f"   {phrase.text}: [{', '.join(f'{v:.0f}' for v in box)}]")
    if first is not None:
        first.draw(picture).save(args.out)
        print(f"The first answer's boxes are drawn in {args.out}")


if __name__ == "__main__":
    cli.run(main)
