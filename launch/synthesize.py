"""Make training data of pictures: conversations with places, written by a vision model or offline.

    python -m launch.synthesize OUT --pictures DIR --base-url http://localhost:8000/v1 \\
        --detector GROUNDING_DINO_OR_OWLV2_FOLDER
    python -m launch.synthesize OUT --data coco:instances.json,images --base-url URL --model NAME
    python -m launch.synthesize OUT --data scenes:seed=1,n=1000,tasks=none --offline
    python -m launch.synthesize OUT --recipe groma|ferret --data ... ...
    python -m launch.synthesize --copy-prompts my_prompts

What is there is named by the endpoint (or --tags, or the annotations), found by the detector (or
annotated), related and asked about by the endpoint or, with --offline, in template language. The
key stands in the variable OPENAI_API_KEY (--key-env names another), the address may stand in
OPENAI_BASE_URL. OUT gets data.jsonl, annotations.jsonl, dropped.jsonl and report.json; train with
--config.data=jsonl:OUT/data.jsonl. Interrupted, the same command goes on: no answer is asked for
twice. Exit status: 0 done, 2 bad input or an endpoint that cannot be used, 75 some pictures failed
(the same command tries them again), 130 interrupted. docs/synthesis.md has more.
"""

import signal
import sys
import threading
from pathlib import Path

from launch import cli
from launch.build_data import Counter as Progress
from launch.synthesizing import FAILED, arguments, open_tools, open_work
from mg_jax.errors import UserError, some

MAX_BAD = 0.05  # share of unreadable pictures from which on the command fails


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = arguments(__doc__).parse_args(argv)
    from mg_jax.data.synthesis import engine, output, prompts
    from mg_jax.data.synthesis.case import Case
    from mg_jax.data.synthesis.recipes import RECIPES

    if args.copy_prompts:
        copied = prompts.copy_prompts(args.copy_prompts)
        print(f"{len(copied)} files copied; use them with --prompts {args.copy_prompts}")
        return 0
    if not args.out:
        raise UserError("OUT is missing: python -m launch.synthesize OUT --pictures DIR ...")
    out, stop = Path(args.out), threading.Event()
    anew = [flag for flag in ("redo", "overwrite") if getattr(args, flag)]
    again = "the same command" + "".join(f" without --{flag}" for flag in anew)
    texts = prompts.read_prompts(args.prompts)
    items, source = open_work(args)
    tools = open_tools(args, texts, source, stop)
    with tools.journal as journal:
        if before := sum(item.key in journal for item in items):
            print(f"{before} of {len(items)} pictures are done already", file=sys.stderr)

        def make(item):
            case = Case(item, tools)
            return output.outcome(case, RECIPES[args.recipe](case), out, args.recipe)

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with Progress("synthesis", len(items)) as bar:
            tally = engine.run(
                items, make, journal, stop, parallel=args.parallel, advance=bar,
                say=lambda line: print(line, file=sys.stderr, flush=True),
            )  # fmt: skip
        requests = tools.endpoint.counts if tools.endpoint else {}
        report = output.write(out, items, journal, tally, args.recipe, tools.limits, requests)
    for line in some([f"{key}: {why}" for key, why in (*tally.bad, *tally.failed)], 5):
        print(line, file=sys.stderr)
    if tally.error is not None:
        if report["finished"]:
            kept = f"{report['finished']} of {len(items)} pictures are finished"
            print(f"{kept}; {again} goes on", file=sys.stderr)
        raise tally.error
    if len(tally.bad) > MAX_BAD * len(items):
        raise UserError(f"{tally.bad[0][1]} ({len(tally.bad)} of {len(items)} cannot be read)")
    print(output.table(report))
    if not report["made"].get("conversations") and not tally.failed:
        raise UserError(f"{out}: no conversation is left of {len(items)} pictures: see report.json")
    print(f"wrote {out}: {report['made'].get('conversations', 0)} conversations")
    if tally.failed:
        print(f"{len(tally.failed)} pictures failed: {again} tries them again")
    return FAILED if tally.failed else 0


if __name__ == "__main__":
    cli.run(main)
