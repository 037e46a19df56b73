"""Examples with turns in the form of Ferret's GRIT."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import pixel_box, save_picture, write_json
from mg_jax.data.write.sa1b import compress
from mg_jax.example import Example, Region
from mg_jax.rle import encode_rle
from mg_jax.text import markup


def write_ferret_grit(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write the turns as FOLDER/grit.json and FOLDER/images/; a phrase has its boxes behind it.
    Masks are written where every region that is pointed at has one, as the form wants.

    Returns the two paths, as `ferret_grit:FILE,IMAGES` takes them.
    """
    folder = Path(folder)
    rows = []
    for n, example in enumerate(examples):
        messages: list[dict[str, str]] = []
        boxes: list[list[Any]] = []
        masks: list[list[Any]] = []
        for turn in example.turns:
            for speaker, marked in (("human", turn.user), ("gpt", turn.assistant or "")):
                text, numbers = _located(marked)
                if not messages:
                    text = f"<image>\n{text}"
                messages.append({"from": speaker, "value": text})
                found = [example.regions[k] for k in numbers]
                boxes.append([pixel_box(r, example) for r in found])
                masks.append([_mask(r) for r in found])
        row = {
            "id": n,
            "image": save_picture(example, folder / "images", suffix),
            "image_h": example.height,
            "image_w": example.width,
            "conversations": messages,
            "box_x1y1x2y2": boxes,
        }
        if any(masks) and all(mask for found in masks for mask in found):
            row["masks"] = masks
        rows.append(row)
    return write_json(folder / "grit.json", rows), folder / "images"


def _mask(region: Region) -> dict[str, Any] | None:
    array = region.mask_array()
    if array is None:
        return None
    rle = encode_rle(array)
    return {"size": rle["size"], "counts": compress(rle["counts"])}


def _located(marked: str) -> tuple[str, list[int]]:
    """A message with <bbox_location0>, ... for its regions, and the regions in that order."""
    out, numbers = "", list(dict.fromkeys(markup.regions_of(marked)))
    for s in markup.parse(marked):
        places = " ".join(f"<bbox_location{numbers.index(k)}>" for k in s.regions)
        text = from_markup(s.text)
        out += f"{text} {places}" if text and places else text + places
    return out, numbers
