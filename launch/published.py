"""Ask a model the questions of a published test, from the test's own file, and score the answers.

    python -m launch.published refcoco --file finetune_refcocog_test.json --images train2014 \\
        --checkpoint runs/ferret --answers answers.jsonl
    python -m launch.published flickr --file final_flickr_mergedGT_test.json --images flickr30k \\
        --entities flickr30k_entities --checkpoint runs/ferret --answers answers.jsonl
    python -m launch.published lvis --file lvis_eval.jsonl --images val2017 --region free_shape \\
        --checkpoint runs/ferret --answers answers.jsonl
    python -m launch.published pope --file coco_pope_random.json --images val2014 \\
        --checkpoint runs/ferret --answers answers.jsonl

Questions, readers and scores are those of Ferret's evaluation (mg_jax/evals/ferret_sets.py). Every
answer is a line {"key", "text"} of --answers, written as soon as it is there: a second call goes on
where one was stopped, and scores alone when all are there, without --checkpoint or --images. One
file of answers serves all kinds of --region. A question whose picture cannot be read is told and
left out: without answer it is wrong.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import cli
from mg_jax.disk import disk_errors, temporary
from mg_jax.errors import UserError


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    from mg_jax.evals.ferret_sets import KINDS, SETS

    p = argparse.ArgumentParser(
        prog="python -m launch.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("set", choices=SETS)
    p.add_argument("--file", required=True, type=Path, help="its questions")
    p.add_argument("--answers", required=True, type=Path, metavar="JSONL")
    p.add_argument("--images", type=Path, metavar="DIR", help="its pictures")
    p.add_argument("--checkpoint", help="shipped name or release folder")
    p.add_argument("--entities", type=Path, metavar="DIR", help="of flickr: Flickr30k Entities")
    p.add_argument("--region", default="box", choices=KINDS, help="of lvis (default %(default)s)")
    p.add_argument("--limit", type=int, metavar="N", help="ask at most N more questions")
    p.add_argument("--batch-size", type=int, default=16, metavar="N", help="default %(default)s")
    p.add_argument("--max-new-tokens", type=int, default=256, metavar="N")
    return p


def read_answers(file: Path) -> dict[str, str]:
    """Answers by key; a last line that was torn does not count. Raises UserError for another."""
    found: dict[str, str] = {}
    try:
        if file.is_dir():
            raise UserError(f"--answers {file}: is a folder: name a file in it")
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--answers {file}: cannot be read ({e}): name another file") from None
    for n, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            found[str(row["key"])] = str(row["text"])
        except (ValueError, TypeError, KeyError) as e:
            if n < len(lines):
                raise UserError(f"{file}:{n}: no answer ({type(e).__name__}: {e})") from None
    return found


def ask(args: argparse.Namespace, questions: Sequence[Any]) -> None:
    """Answer the questions, each as a line of --answers."""
    if not args.checkpoint or not args.images:
        raise UserError(
            f"{args.answers}: {len(questions)} questions have no answer yet: give --checkpoint and "
            "--images"
        )
    if not args.images.is_dir():
        raise UserError(f"--images {args.images}: no such folder")
    from mg_jax.evals.ferret_sets import plain_text

    whole = "".join(
        json.dumps({"key": k, "text": t}) + "\n" for k, t in read_answers(args.answers).items()
    )
    with disk_errors(args.answers):  # told before the model is loaded
        args.answers.parent.mkdir(parents=True, exist_ok=True)
        part = temporary(args.answers)
        part.write_text(whole, encoding="utf-8")  # without a torn line
        part.replace(args.answers)
    assistant = cli.load(args.checkpoint)
    done = 0
    for start in range(0, len(questions), args.batch_size):
        chunk = questions[start : start + args.batch_size]
        found = {q.key: query for q in chunk if (query := _query(args.images, q))}
        answers = assistant.answer(
            list(found.values()), max_new_tokens=args.max_new_tokens, batch_size=args.batch_size
        )
        with disk_errors(args.answers), open(args.answers, "a", encoding="utf-8") as file:
            for key, a in zip(found, answers, strict=True):
                file.write(json.dumps({"key": key, "text": plain_text(a)}) + "\n")
        done += len(found)
        print(f"{done} of {len(questions)} answered", file=sys.stderr)


def _query(images: Path, question: Any) -> Any:
    """What to ask; None, with a line on stderr, where the picture cannot be read."""
    from mg_jax.example import Query
    from mg_jax.vision.preprocess import load_image

    try:
        picture = load_image(images / question.picture)
    except UserError as e:
        print(f"question {question.key} is left out: {e}", file=sys.stderr)
        return None
    return Query(picture, question.prompt, question.regions)


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    for name in ("limit", "batch_size", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
    from mg_jax.evals.ferret_sets import open_set

    test = open_set(args.set, args.file, args.entities, args.region)
    questions = list(test.questions())
    known = read_answers(args.answers)
    left = [q for q in questions if q.key not in known]
    if left:
        ask(args, left[: args.limit])
        known = read_answers(args.answers)
    answered = sum(q.key in known for q in questions)
    row = {"set": args.set} | ({"region": args.region} if args.set == "lvis" else {})
    row |= {"questions": len(questions), "answered": answered}
    print(json.dumps(row | test.score(known)))


if __name__ == "__main__":
    cli.run(main)
