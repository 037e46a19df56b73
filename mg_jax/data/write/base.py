"""What the writers share."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from mg_jax.data.sources.free_text import from_markup
from mg_jax.example import Example, Region
from mg_jax.text import markup


def save_picture(
    example: Example, folder: Path, suffix: str = "png", name: str | None = None
) -> str:
    """Save the picture as FOLDER/NAME.SUFFIX and return that file name; NAME is the id by default.

    The file is made anew from the pixels, so a photo's EXIF rotation is applied already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{name or example.id}.{suffix}"
    Image.fromarray(example.pixels()).save(folder / file)
    return file


def pixel_box(region: Region, example: Example) -> tuple[float, float, float, float]:
    """xyxy in pixels; whole numbers where the box was whole pixels (1e-6 forgives the division)."""

    def pixel(share: float, side: int) -> float:
        value = share * side
        return round(value) if abs(value - round(value)) < 1e-6 else value

    x0, y0, x1, y1 = region.box
    w, h = example.width, example.height
    return pixel(x0, w), pixel(y0, h), pixel(x1, w), pixel(y1, h)


def write_json(path: Path, content: Any) -> Path:
    """Write the content as JSON, folders made where absent; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def grounded_spans(marked: str) -> tuple[str, list[tuple[int, int, tuple[int, ...]]]]:
    """A marked text as free text, and its grounded phrases: (first character, one after the last,
    regions). Marks that stand alone vanish."""
    text, spans = "", []
    for s in markup.parse(marked):
        start = len(text)
        if s.kind in ("text", "phrase"):
            text += from_markup(s.text)
        if s.kind == "phrase" and s.regions:
            spans.append((start, len(text), s.regions))
    return text, spans
