"""Examples with boxes as a Pascal VOC folder."""

from collections.abc import Callable, Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from mg_jax.data.write.base import pixel_box, save_picture
from mg_jax.example import Example


def write_voc(
    examples: Iterable[Example],
    folder: str | Path,
    suffix: str = "png",
    part: Callable[[Example], str] | None = None,
) -> Path:
    """Write objects (and crowd as difficult) as FOLDER/Annotations and FOLDER/JPEGImages.

    Pixels are counted from 1 and the last one is included, as in Pascal VOC. part: the list of
    ImageSets/Main that names an example, "train", "val", ...; no lists without it. Returns the
    folder.
    """
    folder = Path(folder)
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    lists: dict[str, list[str]] = {}
    for example in examples:
        name = save_picture(example, folder / "JPEGImages", suffix)
        if part is not None:
            lists.setdefault(part(example), []).append(example.id)
        lines = [
            "<annotation>",
            f"  <folder>{escape(folder.name)}</folder>",
            f"  <filename>{escape(name)}</filename>",
            f"  <size><width>{example.width}</width><height>{example.height}</height>"
            "<depth>3</depth></size>",
            "  <segmented>0</segmented>",
        ]
        for hard, group in ((0, example.objects), (1, example.crowd)):
            for region in group:
                x0, y0, x1, y1 = pixel_box(region, example)
                lines += [
                    f"  <object><name>{escape(region.label or 'object')}</name>",
                    "    <pose>Unspecified</pose><truncated>0</truncated>"
                    f"<difficult>{hard}</difficult>",
                    f"    <bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
                    f"<ymax>{y1}</ymax></bndbox></object>",
                ]
        text = "\n".join([*lines, "</annotation>\n"])
        (folder / "Annotations" / f"{example.id}.xml").write_text(text, encoding="utf-8")
    for name, ids in lists.items():
        path = folder / "ImageSets/Main" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{i}\n" for i in ids), encoding="utf-8")
    return folder
