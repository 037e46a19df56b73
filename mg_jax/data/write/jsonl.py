"""Whole examples as mg_jax's own jsonl."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.jsonl import write_region
from mg_jax.data.write.base import save_picture
from mg_jax.example import Example


def write_jsonl(examples: Iterable[Example], folder: str | Path, suffix: str = "png") -> Path:
    """Write whole examples, conversations included, as FOLDER/data.jsonl and FOLDER/images/."""
    folder = Path(folder)
    path = folder / "data.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for e in examples:
            image = f"images/{save_picture(e, folder / 'images', suffix)}"
            out.write(json.dumps(jsonl_row(e, image)) + "\n")
    return path


def jsonl_row(example: Example, image: str) -> dict[str, Any]:
    """The example as a line of the file. image: the picture's path as it stands there."""
    e = example
    row: dict[str, Any] = {
        "image": image,
        "id": e.id,
        "width": e.width,
        "height": e.height,
        "turns": [
            {"user": t.user, "assistant": t.assistant}
            | ({} if t.about is None else {"about": t.about})
            | ({"landmarks": t.landmarks} if t.landmarks else {})
            for t in e.turns
        ],
        "meta": e.meta,
    }
    for key in ("regions", "objects", "crowd"):
        row[key] = [write_region(r, e.width, e.height) for r in getattr(e, key)]
    return row | {
        "captions": e.captions,
        "expressions": [{"text": x.text, "regions": x.regions} for x in e.expressions],
        "questions": [
            {"question": q.text, "answers": q.answers, "choices": q.choices, "hint": q.hint}
            for q in e.questions
        ],
        "relations": e.relations,
        "absent": e.absent,
    }
