"""Dialogues in the form of LLaVA."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mg_jax.boxes import BoxSpace
from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import save_picture, write_json
from mg_jax.data.write.video import copy_video
from mg_jax.example import Example
from mg_jax.text import markup


def write_llava(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png", decimals: int = 2
) -> tuple[Path, Path]:
    """Write the turns as FOLDER/conversations.json, pictures to FOLDER/images, videos to
    FOLDER/videos.

    A region becomes its box in shares of the picture padded to a square, rounded to so many
    decimals (two in LLaVA's mix); a grounded phrase is followed by its boxes. Returns the file
    and the folder, as `llava:FILE,FOLDER` takes them.
    """
    folder = Path(folder)
    rows = []
    for example in examples:
        row: dict = {"id": example.id}
        mark = ""
        if example.video:
            row["video"] = f"videos/{copy_video(example, folder / 'videos')}"
            mark = "<video>\n"
        elif example.image is not None:
            row["image"] = f"images/{save_picture(example, folder / 'images', suffix)}"
            mark = "<image>\n"
        messages = []
        for turn in example.turns:
            said = _with_boxes(turn.user, example, decimals)
            messages.append({"from": "human", "value": (mark + said).strip()})
            mark = ""
            if turn.assistant is not None:
                said = _with_boxes(turn.assistant, example, decimals)
                messages.append({"from": "gpt", "value": said})
        rows.append(row | {"conversations": messages})
    return write_json(folder / "conversations.json", rows), folder


def _with_boxes(text: str, example: Example, decimals: int) -> str:
    out = []
    for part in markup.parse(text):
        boxes = [_box(example, k, decimals) for k in part.regions]
        if part.kind != "image":
            out.append(" ".join([*([from_markup(part.text)] if part.text else []), *boxes]))
    return "".join(out)


def _box(example: Example, region: int, decimals: int) -> str:
    w, h = example.width, example.height
    view = BoxSpace.pad(w, h, max(w, h)).to_view(np.array(example.regions[region].box))
    # + 0.0 since a rounded -1e-17 would be written -0.0
    return f"[{', '.join(str(round(float(v), decimals) + 0.0) for v in view)}]"
