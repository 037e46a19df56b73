"""Examples with boxes or masks as SA-1B files."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.write.base import pixel_box, save_picture, write_json
from mg_jax.example import Example, Region
from mg_jax.rle import encode_rle


def write_sa1b(examples: Iterable[Example], folder: str | Path, suffix: str = "jpg") -> Path:
    """Write FOLDER/sa_000000/sa_N.json and sa_N.SUFFIX, one pair a picture; returns FOLDER.

    Each object is one mask: its own, or the pixels that its box touches. Labels are lost, and
    crowd is left out.
    """
    folder = Path(folder)
    for n, example in enumerate(examples, 1):
        place = folder / f"sa_{n // 1000:06d}"
        name = save_picture(example, place, suffix, f"sa_{n}")
        masks = [_mask(region, example) for region in example.objects]
        annotations = [_annotation(k, mask) for k, mask in enumerate(masks, 1) if mask.any()]
        image = {"image_id": n, "width": example.width, "height": example.height, "file_name": name}
        write_json(place / f"sa_{n}.json", {"image": image, "annotations": annotations})
    return folder


def _mask(region: Region, example: Example) -> np.ndarray:
    mask = region.mask_array()
    if mask is None:
        x0, y0, x1, y1 = pixel_box(region, example)
        mask = np.zeros((example.height, example.width), bool)
        mask[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return mask


def _annotation(number: int, mask: np.ndarray) -> dict[str, Any]:
    ys, xs = np.nonzero(mask)
    x, y = int(xs.min()), int(ys.min())
    height, width = mask.shape
    rle = encode_rle(mask)
    return {
        "id": number,
        "segmentation": {"size": rle["size"], "counts": compress(rle["counts"])},
        # as published: from the first pixel to the last, so a pixel less than the mask has
        "bbox": [x, y, int(xs.max()) - x, int(ys.max()) - y],
        "area": len(xs),
        "predicted_iou": 0.95,
        "stability_score": 0.97,
        "crop_box": [0, 0, width, height],
        "point_coords": [[float(xs[0]), float(ys[0])]],
    }


def compress(counts: Sequence[int]) -> str:
    """Run lengths in COCO's compressed form: the inverse of what `decode_rle` undoes."""
    out = []
    for k, count in enumerate(counts):
        value = count - counts[k - 2] if k > 2 else count
        more = True
        while more:
            code = value & 31
            value >>= 5
            more = value != (-1 if code & 16 else 0)
            out.append(chr(48 + (code | 32 if more else code)))
    return "".join(out)
