"""What launch.fit leaves: numbers on the held-out pictures, drawn predictions, results.md."""

import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import cli, measuring
from launch.fitting import DETECTION
from mg_jax.data.inspect import Findings
from mg_jax.disk import disk_errors, replace
from mg_jax.errors import BadRecord

# task of evaluation -> its metrics in the results, the headline first
SHOWN = {
    "proposals": ("ar@100", "ap50", "recall@0.5"),
    "rec": ("acc@0.5", "absent_accuracy"),
    "all_instances": ("as_many_ar", "recall@0.5"),
    "presence": ("accuracy",),
    "absent": ("accuracy",),
    "naming": ("accuracy", "class_accuracy"),
    "detection": ("map50",),
}
QUESTIONS = 300  # of a task, at most
MOST = {"detection": 40}  # fewer: a question of it is every class of a picture
_DRAWN = 12


def release(workdir: Path, last: str) -> Path:
    """Copy the release of the last stage to workdir/release, unless it is there."""
    made, folder = workdir / last / "release", workdir / "release"
    config = (made / "config.json").read_bytes()
    if (folder / "config.json").is_file() and (folder / "config.json").read_bytes() == config:
        return folder
    part = workdir / "release.tmp"
    with disk_errors(folder):
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(made, part)
        replace(part, folder)
    return folder


def questions(task: Any, spec: str) -> list[Any]:
    """What launch.evaluate --limit asks about a data text, at most MOST or QUESTIONS; [] where it
    has nothing for the task. Raises UserError for data that cannot be asked about."""
    from mg_jax.evals import tasks

    try:
        return tasks.questions(task, spec, MOST.get(task.name, QUESTIONS))
    except tasks.NothingToAsk:
        return []


def evaluate(folder: Path, spec: str, kept: Path, drawn: Path) -> list[dict[str, Any]]:
    """The numbers of a release on a data text, a row a task; drawn predictions in `drawn`.

    They are kept in the file `kept` and not measured again for the same release.
    """
    from mg_jax.evals import report, tasks

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = {"release": config["provenance"], "data": spec}
    if kept.is_file():
        known = json.loads(kept.read_text(encoding="utf-8"))
        if known.get("about") == about:
            return known["rows"]

    assistant = cli.load(folder)
    rows = []
    for name in SHOWN:
        task = tasks.get(name)
        if name != "proposals" and assistant.codec is None:
            continue
        items = questions(task, spec)
        if not items:
            continue
        result = measuring.measure(assistant, task, spec, items=items)
        rows.append(report.as_dict(result, folder.name))
        with disk_errors(drawn):
            draw(result, drawn / f"{name}.png")
    with disk_errors(kept):
        kept.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    return rows


def draw(result: Any, path: Path) -> None:
    """The first answers with boxes: what was found in one colour, what is annotated in another."""
    from mg_jax.draw import draw_boxes, grid

    cells: list[Any] = []
    pairs = zip(result.items, result.predictions, strict=True)
    for item, prediction in pairs:
        expected = result.task.expected_boxes(item)
        if not len(expected) or len(cells) == _DRAWN:
            continue
        # of the detector's many boxes the best, as many as there are things
        found = result.task.drawn(prediction)[: max(len(expected), 1)]
        boxes = [*(box.tolist() for _, box in found), *expected.tolist()]
        labels = ["found" if len(expected) < 4 else ""] * len(found) + [""] * len(expected)
        cells.append(
            draw_boxes(item.picture(), boxes, labels, [0] * len(found) + [2] * len(expected))
        )
    if cells:
        path.parent.mkdir(parents=True, exist_ok=True)
        grid(cells).save(path)


def chat_command(folder: Path, spec: str, workdir: Path) -> str:
    """How to go on with the release: talk to it, or, without a language model, measure it."""
    from mg_jax.data.sources import open_source

    # a detector's release may carry a tokenizer as well
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["stage"] == DETECTION:
        return shlex.join(
            ["python", "-m", "launch.evaluate", "--checkpoint", str(folder), "--task", "proposals",
             "--data", spec, "--out", str(workdir / "failures")]
        )  # fmt: skip
    source, picture = open_source(spec), "photo.jpg"
    for i in range(len(source)):
        try:
            source[i].pixels()
            picture = str(source[i].image)
            break
        except BadRecord:
            continue
    return shlex.join(
        ["python", "-m", "launch.chat", "--checkpoint", str(folder), "--image", picture,
         "--prompt", "[grounding] Describe the picture.", "--out", "answer.png"]
    )  # fmt: skip


def results(
    workdir: Path,
    findings: Findings,
    stages: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    commands: Mapping[str, str],
) -> Path:
    """Write workdir/results.md with the curves. commands: "fit" and "next"."""
    from launch.ship import stage_rows
    from mg_jax import progress

    runs = {stage: workdir / stage for stage in stages}
    curves = progress.draw_curves(runs, workdir / "loss.png")
    split = " and ".join(f"{n} {part}" for part, n in sorted(findings.parts.items(), reverse=True))
    classes = ", ".join(sorted(findings.classes)[:100]) or "none"
    lines = [
        f"# {findings.name}: results",
        "",
        f"    {commands['fit']}",
        "",
        f"{findings.examples} examples ({split}, by hash of the file name), {findings.boxes} boxes "
        f"of {len(findings.classes)} classes: {classes}.",
        "",
        "![examples of the data](sample_sheet.png)",
        "",
        *[f"- {line}" for line in findings.warnings()],
        "",
        "## Training",
        "",
        *stage_rows(list(runs.values()))[0],
        "",
        *(["![loss of every stage](loss.png)", ""] if curves else []),
        "## On held-out pictures",
        "",
        *(table(rows) if rows else ["Nothing was measured: no picture is held out."]),
        "",
    ]
    for row in rows:
        if (workdir / "predictions" / f"{row['task']}.png").is_file():
            lines += [
                f"{row['task']}, found in red, annotated in green:",
                "",
                f"![{row['task']}](predictions/{row['task']}.png)",
                "",
            ]
    lines += ["## Go on", "", f"    {commands['next']}", ""]
    path = workdir / "results.md"
    with disk_errors(path):
        path.write_text("\n".join(lines), encoding="utf-8")
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: each number beside that of the best answer that looks at no picture."""
    from launch.ship import of_classes

    lines = ["| task | metric | value | constant answer | n |", "|---|---|---|---|---|"]
    for row in rows:
        for k, metric in enumerate([*SHOWN[row["task"]], *of_classes(row)]):
            cells = [row.get(metric), row.get("majority" if k == 0 else f"majority_{metric}")]
            shown = " | ".join("" if v is None else f"{v:.3f}" for v in cells)
            lines.append(f"| {row['task']} | {metric} | {shown} | {row['n']} |")
    return lines


def save_inspection(
    workdir: Path, findings: Findings, source: Any, texts: Mapping[str, Any]
) -> None:
    """Write inspection.json and sample_sheet.png. Raises UserError for a full disk."""
    from mg_jax.data.inspect import sample_sheet

    content = {**findings.as_dict(), "text_reports": {k: t.as_dict() for k, t in texts.items()}}
    with disk_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "inspection.json").write_text(json.dumps(content, indent=1) + "\n")
        sheet = sample_sheet(source)
        if sheet is not None:
            sheet.save(workdir / "sample_sheet.png")


def held_out(spec: str, findings: Findings) -> str:
    """The data text of the held-out part, "" when no picture falls into it."""
    return f"{spec},part=heldout" if findings.parts.get("heldout") else ""
