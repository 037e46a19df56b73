"""Captions in the files of COCO and of TextCaps; marks in them are lost."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import save_picture, write_json
from mg_jax.example import Example


def write_coco_captions(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write FOLDER/captions.json and FOLDER/images/.

    Pictures are numbered and named as by `write_coco`, so that its annotations.json in the same
    folder holds their boxes. Returns the two paths, as `captions:FILE,IMAGES` takes them.
    """
    folder = Path(folder)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for n, example in enumerate(examples, 1):
        name = save_picture(example, folder / "images", suffix)
        size = {"width": example.width, "height": example.height}
        images.append({"id": n, "file_name": name} | size)
        for text in example.captions:
            caption = {"id": len(annotations) + 1, "image_id": n, "caption": from_markup(text)}
            annotations.append(caption)
    data = {"images": images, "annotations": annotations}
    return write_json(folder / "captions.json", data), folder / "images"


def write_textcaps(examples: Iterable[Example], folder: str | Path) -> tuple[Path, Path]:
    """Write FOLDER/TextCaps_0.1_train.json and FOLDER/train_images/NUMBER.jpg.

    Returns the two paths, as `textcaps:FILE,IMAGES` takes them.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for n, example in enumerate(examples, 1):
        number = f"{n:016x}"
        save_picture(example, folder / "train_images", "jpg", number)
        captions = [from_markup(text) for text in example.captions]
        for caption in captions:
            rows.append(
                {
                    "question": "",
                    "image_id": number,
                    "image_classes": [],
                    "flickr_original_url": "",
                    "flickr_300k_url": "",
                    "image_width": example.width,
                    "image_height": example.height,
                    "set_name": "train",
                    "image_name": number,
                    "image_path": f"train/{number}.jpg",
                    "caption_id": len(rows) + 1,
                    "caption_str": caption,
                    "reference_strs": captions,
                }
            )
    head = {"dataset_type": "train", "dataset_name": "textcaps", "dataset_version": "0.1"}
    data = head | {"data": rows}
    return write_json(folder / "TextCaps_0.1_train.json", data), folder / "train_images"
