"""Examples as a folder of Visual Genome."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import pixel_box, save_picture, write_json
from mg_jax.example import Example, Region


def write_vg(examples: Iterable[Example], folder: str | Path, suffix: str = "png") -> Path:
    """Write expressions of one region as region descriptions, `objects`, and `relations`, with
    image_data.json and the pictures in FOLDER/VG_100K/. Returns the folder.
    """
    folder = Path(folder)
    pictures, regions, objects, relationships = [], [], [], []
    for n, example in enumerate(examples, 1):
        name = save_picture(example, folder / "VG_100K", suffix, name=str(n))
        url = f"https://cs.stanford.edu/people/rak248/VG_100K/{name}"
        size = {"width": example.width, "height": example.height}
        pictures.append({"image_id": n, "url": url, **size, "coco_id": None, "flickr_id": None})
        described = []
        for k, expression in enumerate(example.expressions):
            if len(expression.regions) == 1:
                box = _box(example.regions[expression.regions[0]], example, "width", "height")
                text = from_markup(expression.text)
                described.append({"region_id": k, "image_id": n, "phrase": text, **box})
        regions.append({"id": n, "regions": described})
        things = [_thing(r, example, 1000 * n + k) for k, r in enumerate(example.objects)]
        objects.append({"image_id": n, "image_url": url, "objects": things})
        found = []
        for k, (subject, predicate, other) in enumerate(example.relations):
            ends = (_thing(example.regions[i], example, 1000 * n + i) for i in (subject, other))
            pair = dict(zip(("subject", "object"), ends, strict=True))
            found.append({"relationship_id": k, "predicate": predicate, "synsets": [], **pair})
        relationships.append({"image_id": n, "relationships": found})
    for part, rows in (
        ("image_data", pictures),
        ("region_descriptions", regions),
        ("objects", objects),
        ("relationships", relationships),
    ):
        write_json(folder / f"{part}.json", rows)
    return folder


def _box(region: Region, example: Example, width: str = "w", height: str = "h") -> dict[str, float]:
    x0, y0, x1, y1 = pixel_box(region, example)
    return {"x": x0, "y": y0, width: x1 - x0, height: y1 - y0}


def _thing(region: Region, example: Example, number: int) -> dict[str, Any]:
    names = [region.label] if region.label else []
    return {"object_id": number, "names": names, "synsets": [], **_box(region, example)}
