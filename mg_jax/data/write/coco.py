"""Examples with boxes as COCO detection annotations, and as the data sets that share their form."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mg_jax.data.write.base import pixel_box, save_picture, write_json
from mg_jax.example import Example

Paths = tuple[Path, Path]


def write_coco(examples: Iterable[Example], folder: str | Path, suffix: str = "png") -> Paths:
    """Write objects (and crowd as iscrowd=1) as FOLDER/annotations.json and FOLDER/images/.

    Outlines are the masks, as runs, or the edges of the boxes. Categories are the labels, sorted,
    numbered from 1. Returns the two paths, as `coco:ANNOTATIONS,IMAGES` takes them.
    """
    folder = Path(folder)
    rows = list(examples)
    names = [save_picture(e, folder / "images", suffix) for e in rows]
    return write_json(folder / "annotations.json", _tables(rows, names)), folder / "images"


def write_objects365(
    examples: Iterable[Example], folder: str | Path, split: str = "train", suffix: str = "jpg"
) -> Paths:
    """Write FOLDER/zhiyuan_objv2_SPLIT.json and FOLDER/SPLIT/patchN/objects365_v1_00000001.SUFFIX.

    Returns the two paths that `objects365:ANNOTATIONS,IMAGES` takes.
    """
    folder = Path(folder)
    rows = list(examples)
    names = []
    for n, example in enumerate(rows, 1):
        patch = f"patch{n % 2}"
        name = f"objects365_v1_{n:08d}"
        file = save_picture(example, folder / split / patch, suffix, name)
        names.append(f"images/v1/{patch}/{file}")
    data = _tables(rows, names)
    for row in data["images"]:
        row |= {"license": 5, "url": ""}
    for row in data["annotations"]:
        row |= {"isfake": 0, "isreflected": 0}
    return write_json(folder / f"zhiyuan_objv2_{split}.json", data), folder / split


def write_v3det(
    examples: Iterable[Example], folder: str | Path, split: str = "train", suffix: str = "jpg"
) -> Paths:
    """Write FOLDER/annotations/v3det_2023_v1_SPLIT.json and FOLDER/images/a0000000N/.

    A picture lies in the folder of its first object's category. Returns the two paths that
    `v3det:ANNOTATIONS,IMAGES` takes.
    """
    folder = Path(folder)
    rows = list(examples)
    number = {label: n for n, label in enumerate(_labels(rows), 1)}
    names = []
    for example in rows:
        first = next(iter(example.objects), None)
        node = f"images/a{number[first.label or 'object'] if first else 0:08d}"
        names.append(f"{node}/{save_picture(example, folder / node, suffix)}")
    data = _tables(rows, names)
    for row in data["categories"]:
        row |= {"name_zh": row["name"], "cat_info": [], "cat_info_gpt": [], "novel": False}
    return write_json(folder / f"annotations/v3det_2023_v1_{split}.json", data), folder


def write_lvis(
    examples: Iterable[Example],
    folder: str | Path,
    version: str = "v1",
    split: str = "train",
    suffix: str = "jpg",
) -> Paths:
    """Write FOLDER/lvis_v1_SPLIT.json and FOLDER/SPLIT2017/000000000001.SUFFIX.

    version: "v1", or "v0.5", which also has file_name. Names get underscores for spaces. `absent`
    becomes neg_category_ids, meta["not_exhaustive"] not_exhaustive_category_ids; crowds, which
    LVIS lacks, are left out. Returns the two paths that `lvis:ANNOTATIONS,IMAGES` takes.
    """
    folder = Path(folder)
    rows = list(examples)
    loose = [e.meta.get("not_exhaustive", []) for e in rows]
    more = {label for e in rows for label in e.absent} | {x for names in loose for x in names}
    names = [
        save_picture(e, folder / f"{split}2017", suffix, f"{n:012d}") for n, e in enumerate(rows, 1)
    ]
    data = _tables(rows, names, more)
    number = {row["name"]: row["id"] for row in data["categories"]}
    for row, example, partly in zip(data["images"], rows, loose, strict=True):
        name = row.pop("file_name")
        row["coco_url"] = f"http://images.cocodataset.org/{split}2017/{name}"
        row["neg_category_ids"] = [number[label] for label in example.absent]
        row["not_exhaustive_category_ids"] = [number[label] for label in partly]
        if version == "v0.5":
            row["file_name"] = f"COCO_{split}2014_{name}"
    data["annotations"] = [row for row in data["annotations"] if not row.pop("iscrowd")]
    for row in data["categories"]:
        name = row["name"].replace(" ", "_")
        row |= {"name": name, "synonyms": [name], "frequency": "f", "synset": f"{name}.n.01"}
    return write_json(folder / f"lvis_{version}_{split}.json", data), folder


def _labels(rows: Iterable[Example], more: Iterable[str] = ()) -> list[str]:
    regions = [r for e in rows for r in (*e.objects, *e.crowd)]
    return sorted({r.label or "object" for r in regions} | set(more))


def _tables(
    rows: Sequence[Example], names: Sequence[str], more: Iterable[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """The three lists of COCO's form. more: labels that need no box."""
    number = {label: k for k, label in enumerate(_labels(rows, more), 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for n, (example, name) in enumerate(zip(rows, names, strict=True), 1):
        images.append(
            {"id": n, "file_name": name, "width": example.width, "height": example.height}
        )
        for crowd, group in ((0, example.objects), (1, example.crowd)):
            for region in group:
                x0, y0, x1, y1 = pixel_box(region, example)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": n,
                        "category_id": number[region.label or "object"],
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "segmentation": region.mask or [[x0, y0, x1, y0, x1, y1, x0, y1]],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": crowd,
                    }
                )
    categories = [{"id": k, "name": label} for label, k in number.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
