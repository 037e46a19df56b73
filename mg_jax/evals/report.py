"""A result for people and machines: JSON, a table, sample questions, drawn failures."""

import json
import math
import re
from pathlib import Path
from typing import Any

from mg_jax.answer import Answer
from mg_jax.draw import draw_boxes
from mg_jax.errors import UserError
from mg_jax.evals.tasks import Result

_COUNTS = ("n", "n_absent", "missing", "invalid", "classes")
MOST_FAILURES = 50


def as_dict(result: Result, checkpoint: str = "") -> dict[str, Any]:
    """The numbers as one flat JSON object.

    `majority` is the best constant strategy's value of the task's headline metric,
    `majority_<metric>` of the others. A number that does not exist is null.
    """
    rivals = {
        "majority" if name == result.task.headline else f"majority_{name}": value
        for name, value in result.majority.items()
        if name not in _COUNTS
    }
    numbers = {**result.metrics, "invalid": result.invalid, **rivals}
    return {
        "task": result.task.name,
        "checkpoint": checkpoint,
        "data": result.data,
        "blind": result.blind,
        "n": result.task.count(result.items),
        **{name: _plain(name, value) for name, value in numbers.items()},
        "seconds": round(result.seconds, 2),
    }


def _plain(name: str, value: float) -> float | int | None:
    if name in _COUNTS:
        return int(value)
    return round(float(value), 6) if math.isfinite(value) else None


def table(result: Result, checkpoint: str = "") -> str:
    """The numbers in columns, the majority answer's beside each."""
    task, n = result.task, result.task.count(result.items)
    rows = [("", "value", "majority")]
    for name, value in result.metrics.items():
        counted = name in _COUNTS
        rival = "" if counted else _shown(result.majority.get(name, math.nan))
        rows.append((name, str(int(value)) if counted else _shown(value), rival))
    rows.append(("invalid", str(result.invalid), ""))
    wide = max(len(row[0]) for row in rows)
    blind = ", blind (noise for every picture)" if result.blind else ""
    return "\n".join(
        [
            f"{task.name}: {checkpoint} on {result.data}{blind}",
            *(f"  {name:<{wide}}  {value:>8}  {rival:>8}".rstrip() for name, value, rival in rows),
            f"  n = {n}, {result.seconds:.1f} s; majority: {task.rule}",
        ]
    )


def _shown(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _said(answer: Any) -> str:
    """An answer in a line: its words, and the boxes of its phrases."""
    if not isinstance(answer, Answer):
        return f"{len(answer[0])} boxes"
    places = [
        f"{phrase.text or 'region'} [{', '.join(f'{v:.0f}' for v in box)}]"
        for phrase in answer.phrases
        for box in phrase.boxes
    ]
    return " | ".join([answer.text, *places])


def _triple(result: Result, i: int) -> dict[str, Any]:
    item = result.items[i]
    boxes = result.task.expected_boxes(item).round(1).tolist()
    asked = item.example.turns[item.turn].user if item.turn is not None else "(the picture)"
    return {
        "id": item.key,
        "question": asked,
        "answer": _said(result.answers[i]),
        "expected": result.task.expected(item),
        "expected_boxes": boxes,
        "right": result.task.right(item, result.predictions[i]),
    }


def examples(result: Result, count: int) -> str:
    """The first `count` questions with answer and expected answer."""
    lines = []
    for i in range(min(count, len(result.items))):
        row = _triple(result, i)
        places = " ".join(
            f"[{', '.join(f'{v:.0f}' for v in box)}]" for box in row["expected_boxes"]
        )
        lines += [
            f"{row['id']}: {'right' if row['right'] else 'WRONG'}",
            f"  Q: {row['question']}",
            f"  A: {row['answer']}",
            f"  expected: {row['expected']} {places}".rstrip(),
        ]
    return "\n".join(lines)


def failures_folder(folder: str) -> Path:
    """The folder for failures, made if needed. Raises UserError where that cannot be."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--out {folder}: cannot make the folder: {e.strerror or e}") from e
    return path


def save_failures(result: Result, folder: Path) -> int:
    """Write the first wrong answers: failures.jsonl, and a picture each with the answer's boxes in
    one colour and the expected ones in another. Returns how many there were in all."""
    task = result.task
    wrong = [
        i
        for i, (item, prediction) in enumerate(zip(result.items, result.predictions, strict=True))
        if not task.right(item, prediction)
    ]
    with open(folder / "failures.jsonl", "w", encoding="utf-8") as lines:
        for i in wrong[:MOST_FAILURES]:
            item = result.items[i]
            name = re.sub(r"[^\w.-]+", "-", f"{i:05d}-{item.key}")[:100] + ".png"
            boxes = [(label, box, 1) for label, box in task.drawn(result.predictions[i])]
            boxes += [("expected", box, 2) for box in task.expected_boxes(item)]
            draw_boxes(
                item.picture(result.blind),
                [box.tolist() for _, box, _ in boxes],
                [label for label, _, _ in boxes],
                [colour for _, _, colour in boxes],
            ).save(folder / name)
            lines.write(json.dumps({**_triple(result, i), "picture": name}) + "\n")
    return len(wrong)
