"""Examples with boxes to COCO and Pascal VOC files, so that the readers can be tried on scenes."""

import json
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from mg_jax.data.sources.jsonl import write_region
from mg_jax.example import Example, Region


def _save(example: Example, folder: Path, suffix: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{example.id}.{suffix}"
    Image.fromarray(example.pixels()).save(folder / name)
    return name


def _pixels(region: Region, example: Example) -> tuple[float, float, float, float]:
    """xyxy in pixels; whole numbers where the box was whole pixels (1e-6 forgives the division)."""

    def pixel(share: float, side: int) -> float:
        value = share * side
        return round(value) if abs(value - round(value)) < 1e-6 else value

    x0, y0, x1, y1 = region.box
    w, h = example.width, example.height
    return pixel(x0, w), pixel(y0, h), pixel(x1, w), pixel(y1, h)


def write_coco(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write objects (and crowd as iscrowd=1) as FOLDER/annotations.json and FOLDER/images/.

    Categories are the labels, sorted, numbered from 1. Returns the two paths, as
    `coco:ANNOTATIONS,IMAGES` takes them.
    """
    folder = Path(folder)
    rows = list(examples)
    regions = [r for e in rows for r in (*e.objects, *e.crowd)]
    labels = sorted({r.label or "object" for r in regions})
    number = {label: k + 1 for k, label in enumerate(labels)}
    images: list[dict] = []
    annotations: list[dict] = []
    for n, example in enumerate(rows, 1):
        name = _save(example, folder / "images", suffix)
        images.append(
            {"id": n, "file_name": name, "width": example.width, "height": example.height}
        )
        for crowd, group in ((0, example.objects), (1, example.crowd)):
            for region in group:
                x0, y0, x1, y1 = _pixels(region, example)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": n,
                        "category_id": number[region.label or "object"],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": crowd,
                    }
                )
    path = folder / "annotations.json"
    categories = [{"id": k, "name": label} for label, k in number.items()]
    path.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories}),
        encoding="utf-8",
    )
    return path, folder / "images"


def write_voc(examples: Iterable[Example], folder: str | Path, suffix: str = "png") -> Path:
    """Write objects (and crowd as difficult) as FOLDER/Annotations and FOLDER/JPEGImages.

    Pixels are counted from 1 and the last one is included, as in Pascal VOC. Returns the folder.
    """
    folder = Path(folder)
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for example in examples:
        name = _save(example, folder / "JPEGImages", suffix)
        parts = [
            f"<annotation>\n  <filename>{escape(name)}</filename>\n  <size>"
            f"<width>{example.width}</width><height>{example.height}</height>"
            "<depth>3</depth></size>"
        ]
        for hard, group in ((0, example.objects), (1, example.crowd)):
            for region in group:
                x0, y0, x1, y1 = _pixels(region, example)
                parts.append(
                    f"  <object><name>{escape(region.label or 'object')}</name>"
                    f"<difficult>{hard}</difficult><bndbox><xmin>{x0 + 1}</xmin>"
                    f"<ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
                )
        text = "\n".join([*parts, "</annotation>\n"])
        (folder / "Annotations" / f"{example.id}.xml").write_text(text, encoding="utf-8")
    return folder


def write_jsonl(examples: Iterable[Example], folder: str | Path, suffix: str = "png") -> Path:
    """Write whole examples, conversations included, as FOLDER/data.jsonl and FOLDER/images/."""
    folder = Path(folder)
    path = folder / "data.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for e in examples:
            row = {
                "image": f"images/{_save(e, folder / 'images', suffix)}",
                "id": e.id,
                "width": e.width,
                "height": e.height,
                "turns": [{"user": t.user, "assistant": t.assistant} for t in e.turns],
                "meta": e.meta,
            }
            for key in ("regions", "objects", "crowd"):
                row[key] = [write_region(r, e.width, e.height) for r in getattr(e, key)]
            row |= {
                "captions": e.captions,
                "expressions": [{"text": x.text, "regions": x.regions} for x in e.expressions],
                "questions": [
                    {"question": q.text, "answers": q.answers, "choices": q.choices, "hint": q.hint}
                    for q in e.questions
                ],
                "relations": e.relations,
                "absent": e.absent,
            }
            out.write(json.dumps(row) + "\n")
    return path
