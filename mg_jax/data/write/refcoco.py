"""Examples with expressions as RefCOCO, and as lines of expressions."""

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import pixel_box, save_picture, write_json
from mg_jax.example import Example


def write_refcoco(
    examples: Iterable[Example],
    folder: str | Path,
    split: str = "train",
    by: str = "unc",
    suffix: str = "png",
) -> tuple[Path, Path, Path]:
    """Write the expressions that name one region as FOLDER/refs(BY).p, with FOLDER/instances.json
    and FOLDER/images/; expressions of none or several regions have no form there.

    Returns the three paths, as `refcoco:REFS,INSTANCES,IMAGES` takes them.
    """
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    numbers: dict[str, int] = {}
    sentences = 0
    for n, example in enumerate(examples, 1):
        name = save_picture(example, folder / "images", suffix)
        images.append(
            {"id": n, "file_name": name, "width": example.width, "height": example.height}
        )
        first = len(annotations) + 1
        for region in example.regions:
            x0, y0, x1, y1 = pixel_box(region, example)
            label = region.label or "object"
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": n,
                    "category_id": numbers.setdefault(label, len(numbers) + 1),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
        texts: dict[int, list[str]] = {}
        for expression in example.expressions:
            if len(expression.regions) == 1:
                texts.setdefault(expression.regions[0], []).append(from_markup(expression.text))
        for k, said in texts.items():
            ids = list(range(sentences, sentences + len(said)))
            sentences += len(said)
            refs.append(
                {
                    "ref_id": len(refs),
                    "ann_id": first + k,
                    "image_id": n,
                    "category_id": annotations[first + k - 1]["category_id"],
                    "split": split,
                    "file_name": f"{Path(name).stem}_{first + k}.{suffix}",
                    "sent_ids": ids,
                    "sentences": [
                        {"sent_id": i, "sent": text, "raw": text, "tokens": text.split()}
                        for i, text in zip(ids, said, strict=True)
                    ],
                }
            )
    categories = [{"id": k, "name": label} for label, k in numbers.items()]
    data = {"images": images, "annotations": annotations, "categories": categories}
    instances = write_json(folder / "instances.json", data)
    path = folder / f"refs({by}).p"
    path.write_bytes(pickle.dumps(refs, protocol=0))
    return path, instances, folder / "images"


def write_rec_lines(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write the expressions that name one region as FOLDER/expressions.jsonl and FOLDER/images/.

    Returns the two paths, as `rec_lines:FILE,IMAGES` takes them.
    """
    folder = Path(folder)
    path = folder / "expressions.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for example in examples:
            name = save_picture(example, folder / "images", suffix)
            for expression in example.expressions:
                if len(expression.regions) == 1:
                    region = example.regions[expression.regions[0]]
                    row = {
                        "img_path": name,
                        "expression": from_markup(expression.text),
                        "bbox": pixel_box(region, example),
                        "dataset_name": example.source,
                        "height": example.height,
                        "width": example.width,
                    }
                    out.write(json.dumps(row) + "\n")
    return path, folder / "images"
