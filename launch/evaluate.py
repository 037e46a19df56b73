"""Measure a model on one task.

    python -m launch.evaluate --checkpoint groma-tiny --task rec \\
        --data scenes:seed=700000,n=500 [--json] [--blind]

tasks, with their first metric:
  rec               locate one thing: acc@0.5 (IoU > 0.5); on as many absent ones absent_accuracy
  regions           name the thing in a box: accuracy (colour and shape both right)
  presence          is it there, yes or no: accuracy
  pope              the same as POPE asks it: f1, and of the random, popular and adversarial kind,
                    with accuracy, precision, recall, yes_ratio
  all_instances     locate all of a class: as_many_ar (k boxes for k targets, IoU .5:.95)
  proposals         the detector alone: ar@100 (IoU .5:.95), ap50, recall of each class
  grounded_caption  describe with boxes: phrase_recall, and invented phrases
  absent            locate what may not be there: accuracy of denying, half of them absent
  which_box         is the object in a box this or that: accuracy
  which_point       the same of a point: accuracy
  which_free        the same of a free form (of annotations masks, of coco: and lvis: with
                    masks=keep): accuracy
of systems that take object images, as TinyGroundingGPT does:
  object_match      locate the thing whose image is shown: acc@0.5 (IoU > 0.5)
  object_choice     which of four object images is at coordinates, or shows what a text names:
                    accuracy
  object_relation   how things relate that are shown as images: accuracy
of scenes alone:
  vqa               colour of a thing, number, relation of two: accuracy, and of each kind
  reading           the word printed on a thing: accuracy, and by the size of the thing
  moved             of videos: which thing moves: accuracy
  direction         of videos: where a thing moves to: accuracy
of annotated pictures alone:
  naming            name the class of a given box, of all classes of the data set: accuracy
  detection         name the detector's boxes, one question each: map50, ap50 of each class

The majority column is the best answer that looks at no picture. Data: any data set of
`mg_jax.data.sources` (coco:FILE,DIR,part=heldout, voc:DIR, refcoco:..., jsonl:FILE, ...); what has
no conversations is asked about its annotations (docs/data.md). Scene seeds from 700000 on are
never trained on. MG-LLaVA is given the detected boxes of scenes, for other data those of --boxes or
what --detector finds.
"""

import argparse
import json
import sys

from launch import cli, detecting
from mg_jax.errors import UserError, some


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    from mg_jax.evals.tasks import TASKS

    p = argparse.ArgumentParser(
        prog="python -m launch.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--checkpoint", default="groma-tiny", help="shipped name or release folder")
    cli.add_load_flags(p)
    p.add_argument("--task", required=True, choices=list(TASKS), help="see above")
    p.add_argument("--data", default="scenes:seed=700000,n=500", help="default %(default)s")
    detecting.add_flags(p)
    p.add_argument("--json", action="store_true", help="print one JSON line")
    p.add_argument("--blind", action="store_true", help="noise in place of every picture")
    p.add_argument("--batch-size", type=int, default=16, metavar="N", help="default %(default)s")
    p.add_argument("--limit", type=int, metavar="N", help="ask at most N questions")
    p.add_argument("--examples", type=int, default=0, metavar="N",
                   help="print N questions with answer and expected answer")  # fmt: skip
    p.add_argument("--out", metavar="DIR", help="save up to 50 failures there, drawn")
    p.add_argument("--max-new-tokens", type=int, metavar="N", help="default depends on the task")
    cli.add_process_flags(p)
    return p


def main(argv: list[str] | None = None) -> None:
    args = arguments().parse_args(argv)
    for name in ("batch_size", "limit", "max_new_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a number of at least 1")
    cli.join_processes(args)
    from mg_jax import processes
    from mg_jax.evals import report, tasks
    from mg_jax.evals.questions import warning

    task = tasks.get(args.task)
    problems: list[str] = []
    items = tasks.questions(task, args.data, args.limit, problems)
    for line in some(problems, 10):
        print(f"left out: {line}", file=sys.stderr)
    folder = report.failures_folder(args.out) if args.out else None
    if note := warning(args.data):
        print(f"note: {note}", file=sys.stderr)
    if args.boxes:
        from mg_jax.data.detections import read_box_file

        boxes = read_box_file(args.boxes)
        for item in items:
            item.example.meta["detections"] = boxes.about(item.example)
    import jax

    assistant = cli.load(args.checkpoint, **cli.load_options(args), **detecting.options(args))
    detecting.refuse(args, assistant)
    if task.needs == "object images" and task.needs not in assistant.adapter.can:
        raise UserError(
            f"--task {task.name}: {assistant.system.name} takes no {task.needs}; choose another"
        )
    length = args.max_new_tokens or task.max_new_tokens

    def predict(queries):
        return assistant.answer(queries, max_new_tokens=length, batch_size=args.batch_size)

    result = tasks.evaluate(
        task,
        args.data,
        processes.divided(predict),
        processes.divided(assistant.propose),
        items=items,
        system=assistant.system.name,
        batch_size=args.batch_size * jax.process_count(),
        blind=args.blind,
        progress=sys.stderr.isatty(),
    )
    if jax.process_index():  # all of them have the result, one reports it
        return
    if args.examples > 0:
        print(report.examples(result, args.examples), file=sys.stderr if args.json else sys.stdout)
    if folder:
        wrong = report.save_failures(result, folder)
        shown = min(wrong, report.MOST_FAILURES)
        print(f"{wrong} wrong answers, {shown} drawn in {folder}", file=sys.stderr)
    if args.json:
        print(json.dumps(report.as_dict(result, args.checkpoint)))
    else:
        print(report.table(result, args.checkpoint))


if __name__ == "__main__":
    cli.run(main)
