"""Examples with boxes as Open Images csv files."""

import csv
from collections.abc import Iterable
from pathlib import Path

from mg_jax.data.write.base import save_picture
from mg_jax.example import Example


def write_openimages(
    examples: Iterable[Example],
    folder: str | Path,
    split: str = "validation",
    suffix: str = "jpg",
) -> tuple[Path, Path, Path, Path]:
    """Write the csv files of boxes, classes and image labels and the pictures FOLDER/SPLIT/.

    crowd has IsGroupOf=1, `absent` becomes labels of Confidence 0, and labels of objects those of
    Confidence 1. Pictures are named by their number, 16 hexadecimal digits; classes have numbers
    where Open Images has ids of Freebase. Coordinates have six decimals. Returns the four paths
    that `openimages:BOXES,IMAGES,CLASSES,LABELS` takes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(examples)
    regions = [r for e in rows for r in (*e.objects, *e.crowd)]
    labels = {r.label or "object" for r in regions} | {label for e in rows for label in e.absent}
    ids = {label: f"/m/{k:06x}" for k, label in enumerate(sorted(labels))}
    flags = "IsOccluded IsTruncated IsGroupOf IsDepiction IsInside".split()
    head = ["ImageID", "Source", "LabelName", "Confidence"]
    boxes = [[*head, "XMin", "XMax", "YMin", "YMax", *flags]]
    verified = [head]
    for n, example in enumerate(rows, 1):
        name = f"{n:016x}"
        save_picture(example, folder / split, suffix, name)
        for group, regions in (("0", example.objects), ("1", example.crowd)):
            for region in regions:
                x0, y0, x1, y1 = (f"{v:.6f}" for v in region.box)
                label = ids[region.label or "object"]
                boxes.append(
                    [name, "xclick", label, "1", x0, x1, y0, y1, "0", "0", group, "0", "0"]
                )
        shown = dict.fromkeys(r.label or "object" for r in (*example.objects, *example.crowd))
        for confidence, group in (("1", shown), ("0", example.absent)):
            verified += [[name, "verification", ids[label], confidence] for label in group]
    classes = [["LabelName", "DisplayName"], *([k, label] for label, k in ids.items())]
    return (
        _write(folder / f"oidv6-{split}-annotations-bbox.csv", boxes),
        folder / split,
        _write(folder / "oidv7-class-descriptions-boxable.csv", classes),
        _write(folder / f"oidv7-{split}-annotations-human-imagelabels.csv", verified),
    )


def _write(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, lineterminator="\n").writerows(rows)
    return path
