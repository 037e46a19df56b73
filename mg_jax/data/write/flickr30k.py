"""Examples with grounded captions as a folder of Flickr30k Entities."""

from collections.abc import Iterable
from pathlib import Path

from mg_jax.data.write.base import grounded_spans, pixel_box, save_picture
from mg_jax.example import Example


def write_flickr30k(
    examples: Iterable[Example], folder: str | Path, split: str = "train", suffix: str = "jpg"
) -> tuple[Path, Path]:
    """Write FOLDER/Sentences, FOLDER/Annotations, FOLDER/SPLIT.txt and the pictures as
    FOLDER/images/. Corners are rounded to whole pixels; phrases that are grounded on the same
    regions are one chain, and get the type "other".

    Returns FOLDER and that of the pictures, as `flickr30k:FOLDER,IMAGES` takes them.
    """
    folder = Path(folder)
    for name in ("Sentences", "Annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    numbers = []
    for n, example in enumerate(examples, 1):
        number = str(1000 + n)
        numbers.append(number)
        save_picture(example, folder / "images", suffix, name=number)
        chains: dict[tuple[int, ...], int] = {}
        lines = []
        for caption in example.captions:
            text, spans = grounded_spans(caption)
            for start, end, regions in reversed(spans):
                chain = chains.setdefault(tuple(sorted(regions)), 100 * n + len(chains))
                phrase = f"[/EN#{chain}/other {text[start:end]}]"
                text = text[:start] + phrase + text[end:]
            lines.append(text + "\n")
        (folder / "Sentences" / f"{number}.txt").write_text("".join(lines), encoding="utf-8")
        xml = _xml(example, number, chains)
        (folder / "Annotations" / f"{number}.xml").write_text(xml, encoding="utf-8")
    (folder / f"{split}.txt").write_text("".join(f"{number}\n" for number in numbers))
    return folder, folder / "images"


def _xml(example: Example, number: str, chains: dict[tuple[int, ...], int]) -> str:
    parts = [
        f"<annotation><filename>{number}.jpg</filename><size><width>{example.width}</width>"
        f"<height>{example.height}</height><depth>3</depth></size>"
    ]
    for k, region in enumerate(example.regions):
        names = "".join(f"<name>{c}</name>" for regions, c in chains.items() if k in regions)
        if names:
            corners = (round(v) + 1 for v in pixel_box(region, example))
            tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            box = "".join(f"<{key}>{value}</{key}>" for key, value in tags)
            parts.append(f"<object>{names}<bndbox>{box}</bndbox></object>")
    return "\n".join([*parts, "</annotation>\n"])
