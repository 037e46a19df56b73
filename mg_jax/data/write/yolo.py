"""Examples with boxes as an Ultralytics-style folder."""

from collections.abc import Callable, Iterable
from pathlib import Path

from mg_jax.data.write.base import save_picture
from mg_jax.example import Example


def write_yolo(
    examples: Iterable[Example],
    folder: str | Path,
    part: Callable[[Example], str] = lambda example: "train",
    suffix: str = "jpg",
) -> Path:
    """Write FOLDER/data.yaml, FOLDER/images/PART/ and FOLDER/labels/PART/; returns the folder.

    part: "train", "val" or "test" of an example. Classes are the labels, sorted, numbered from 0.
    A picture without objects gets an empty txt file. Crowds, which the format lacks, are left out.
    """
    folder = Path(folder)
    rows = list(examples)
    labels = sorted({r.label or "object" for e in rows for r in e.objects})
    number = {label: k for k, label in enumerate(labels)}
    used = set()
    for example in rows:
        name = part(example)
        used.add(name)
        save_picture(example, folder / "images" / name, suffix)
        lines = []
        for region in example.objects:
            x0, y0, x1, y1 = region.box
            values = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
            lines.append(" ".join([str(number[region.label or "object"]), *map(repr, values)]))
        (folder / "labels" / name).mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in lines)
        (folder / "labels" / name / f"{example.id}.txt").write_text(text, encoding="utf-8")
    import yaml

    config: dict = {"path": "."} | {k: f"images/{k}" for k in sorted(used)}
    config["names"] = dict(enumerate(labels))
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return folder
