"""Examples as the files of Groma, Groma Instruct and LVIS-Ground."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import grounded_spans, pixel_box, save_picture, write_json
from mg_jax.example import Example, Region
from mg_jax.text import markup
from mg_jax.text.instructions import GROUNDING


class _CocoFile:
    """A file in COCO's form that grows entry by entry."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def image(self, example: Example, **more: Any) -> None:
        size = {"height": example.height, "width": example.width}
        self.images.append({"id": len(self.images), **size, **more})

    def annotation(self, example: Example, region: Region, **more: Any) -> None:
        """A box of the last image."""
        x0, y0, x1, y1 = pixel_box(region, example)
        self.annotations.append(
            {
                "id": len(self.annotations),
                "image_id": len(self.images) - 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "category_id": 1,
                **more,
            }
        )

    def write(self, path: Path, categories: list[dict[str, Any]]) -> Path:
        rows = {"images": self.images, "annotations": self.annotations, "categories": categories}
        return write_json(path, rows)


def write_groma(
    examples: Iterable[Example], folder: str | Path, form: str, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write FOLDER/FORM.json and FOLDER/images/ in a form of `sources.groma`.

    form: "rec", an entry for each expression with regions; "regions", the expressions of one
    region, captions of their boxes; "flickr", an entry for each caption.
    Returns the two paths, as `groma:FILE,IMAGES,form=FORM` takes them.
    """
    folder, out = Path(folder), _CocoFile()
    for example in examples:
        name = save_picture(example, folder / "images", suffix)
        if form == "rec":
            for expression in filter(lambda e: e.regions, example.expressions):
                out.image(example, file_name=name, caption=from_markup(expression.text))
                for k in expression.regions:
                    out.annotation(example, example.regions[k])
        elif form == "regions":
            out.image(example, file_name=name)
            for expression in example.expressions:
                if len(expression.regions) == 1:
                    region = example.regions[expression.regions[0]]
                    out.annotation(example, region, caption=from_markup(expression.text))
        else:
            for caption in example.captions:
                text, spans = grounded_spans(caption)
                out.image(example, file_name=name, caption=text)
                for start, end, regions in spans:
                    for k in regions:
                        tokens = [[start, end]]
                        out.annotation(example, example.regions[k], tokens_positive=tokens)
    return out.write(folder / f"{form}.json", [{"id": 1, "name": "object"}]), folder / "images"


def write_lvis_ground(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write the classes of `objects`, each a question, as FOLDER/lvis_test.json and the pictures
    as FOLDER/val2017/. Returns the paths of the file and of FOLDER, as `lvis_ground:` takes them.
    """
    folder, out = Path(folder), _CocoFile()
    numbers: dict[str, int] = {}
    for example in examples:
        name = save_picture(example, folder / "val2017", suffix)
        for label in dict.fromkeys(r.label or "object" for r in example.objects):
            number = numbers.setdefault(label.replace(" ", "_"), len(numbers) + 1)
            out.image(
                example,
                coco_url=f"http://images.cocodataset.org/val2017/{name}",
                not_exhaustive_category_ids=[],
                neg_category_ids=[],
            )
            for region in example.objects:
                if (region.label or "object") == label:
                    out.annotation(example, region, category_id=number)
    categories = [{"id": k, "name": name, "synonyms": [name]} for name, k in numbers.items()]
    return out.write(folder / "lvis_test.json", categories), folder


def write_groma_instruct(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write the turns as FOLDER/groma_instruct.json and FOLDER/images/, "[grounding]" taken out of
    the questions. Returns the two paths, as `groma_instruct:FILE,IMAGES` takes them."""
    folder = Path(folder)
    rows = [
        groma_instruct_row(example, save_picture(example, folder / "images", suffix))
        for example in examples
    ]
    return write_json(folder / "groma_instruct.json", rows), folder / "images"


def groma_instruct_row(example: Example, file_name: str) -> dict[str, Any]:
    """The turns of an example as an entry of that file."""
    boxes = [pixel_box(r, example) for r in example.regions]
    messages = []
    for turn in example.turns:
        asked = turn.user.removeprefix(GROUNDING).strip()
        messages += [_message(asked, "refer_box"), _message(turn.assistant or "", "ground_box")]
    return {
        "file_name": file_name,
        "width": example.width,
        "height": example.height,
        "boxes": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes],
        "conversation": messages,
    }


def _message(text: str, mark: str) -> dict[str, Any]:
    out, numbers = "", []
    for s in markup.parse(text):
        out += f"<p>{s.text}</p>" if s.kind == "phrase" else from_markup(s.text)
        if s.regions:
            out += f"<roi>{f'<{mark}>' * len(s.regions)}</roi>"
            numbers += list(s.regions)
    return {"value": out, "box_inds": numbers}
