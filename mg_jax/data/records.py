"""An `Example` as bytes and back: what a record of a shard holds.

A record is one msgpack map. Its keys are the fields of `Example`; those that are empty are left
out. Version 1:

    image       bytes of a picture file (any that Pillow reads), or its path as text; absolute, or
                relative to the folder of the shards
    size        [width, height]
    id, source, video                text
    regions, objects, crowd          columns, one entry a region in each:
        box     4 numbers a region
        kind    one letter a region: b box, p point, o polygon, s scribble, m mask; left out when
                all are b
        points  for each region its numbers x, y, x, y, ...; left out where none has any
        mask    for each region nil or [height, width, counts], the counts as COCO has them
        label, score                 for each region text / a number, or nil; left out where all
                                     are nil
    turns       [[user, assistant or nil, regions it is about or nil, landmarks], ...];
                the landmarks may be left out
    captions, absent                 [text, ...]
    expressions [[text, [region, ...]], ...]
    questions   [[text, [answer, ...], [choice, ...], hint], ...]
    relations   [[region, text, region], ...]
    meta        a map of whatever JSON can say, bytes and tuples

Numbers stand in an extension type: 4, little-endian float32, where all of them are that exactly,
else 8, little-endian float64. A tuple is extension type 1, the msgpack of its list. So everything
comes back as it was.
"""

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from PIL import Image

from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Expression, Kind, Question, Region, Turn
from mg_jax.vision.preprocess import load_image

VERSION = 1
_KINDS: dict[str, Kind] = {
    "b": "box", "p": "point", "o": "polygon", "s": "scribble", "m": "mask",
}  # fmt: skip
_LETTERS = {kind: letter for letter, kind in _KINDS.items()}
_JPEG_QUALITY = 95
_TUPLE, _FLOAT32, _FLOAT64 = 1, 4, 8


@dataclasses.dataclass(frozen=True)
class Picture:
    """The bytes of a picture file, as `Example.image`: decoded when called.

    where: what to call it in errors. Raises BadRecord for bytes that are no whole picture.
    """

    data: bytes
    where: str = "picture"

    def __call__(self) -> np.ndarray:
        try:
            return load_image(self.data)
        except UserError as e:
            what = str(e).removeprefix("image bytes: ")
            raise BadRecord(f"{self.where}: {what}") from None


def encode(example: Example, image: bytes | str | None) -> bytes:
    """The record of an example, with `image` in place of its own (see the module).

    Raises BadRecord naming the example where `meta` holds what cannot be written.
    """
    row: dict[str, Any] = {
        "image": image,
        "size": [example.width, example.height],
        "id": example.id,
        "source": example.source,
        "video": example.video,
        "regions": _columns(example.regions),
        "objects": _columns(example.objects),
        "crowd": _columns(example.crowd),
        "turns": [
            [t.user, t.assistant, None if t.about is None else list(t.about), list(t.landmarks)]
            for t in example.turns
        ],
        "captions": list(example.captions),
        "absent": list(example.absent),
        "expressions": [[e.text, list(e.regions)] for e in example.expressions],
        "questions": [
            [q.text, list(q.answers), list(q.choices), q.hint] for q in example.questions
        ],
        "relations": [list(r) for r in example.relations],
        "meta": example.meta,
    }
    try:
        return _pack({key: value for key, value in row.items() if value})
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise BadRecord(f"example {example.id!r}: cannot be written as a record: {e}") from None


def decode(data: bytes, folder: Path, where: str) -> Example:
    """The example of a record. folder: where the shards lie; where: what to call the record.

    Raises BadRecord for bytes that are no record.
    """
    try:
        row = _unpack(data)
        image = row.get("image")
        if isinstance(image, bytes):
            image = Picture(image, f"{where}: picture of example {row.get('id', '')!r}")
        elif image is not None:
            image = str(folder / image)
        width, height = row["size"]
        return Example(
            image,
            width,
            height,
            regions=_regions(row.get("regions")),
            turns=tuple(
                Turn(user, said, None if about is None else tuple(about), *map(tuple, landmarks))
                for user, said, about, *landmarks in row.get("turns", ())
            ),
            id=row.get("id", ""),
            source=row.get("source", ""),
            objects=_regions(row.get("objects")),
            crowd=_regions(row.get("crowd")),
            absent=tuple(row.get("absent", ())),
            captions=tuple(row.get("captions", ())),
            expressions=tuple(Expression(t, tuple(r)) for t, r in row.get("expressions", ())),
            questions=tuple(
                Question(text, tuple(answers), tuple(choices), hint)
                for text, answers, choices, hint in row.get("questions", ())
            ),
            relations=tuple((s, p, o) for s, p, o in row.get("relations", ())),
            video=row.get("video", ""),
            meta=row.get("meta", {}),
        )
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as e:
        raise BadRecord(f"{where}: is no record of version {VERSION} ({e})") from None


def picture_file(example: Example, resize: int) -> tuple[bytes, str, tuple[int, int]]:
    """(bytes of the picture's file, ending, (width, height)); the picture is read to its end.

    A file keeps its bytes unless its longer side has more than `resize` pixels (0: any may);
    then it becomes a JPEG where it was coded with loss, else a PNG. Raises BadRecord for a picture
    that cannot be read or has another size than the example says.
    """
    data = None
    if isinstance(example.image, str):
        try:
            data = Path(example.image).read_bytes()
        except OSError as e:
            raise BadRecord(f"{example.image}: cannot be read ({e.strerror})") from None
        example = dataclasses.replace(example, image=Picture(data, example.image))
    elif isinstance(example.image, Picture):
        data = example.image.data
    pixels = example.pixels()
    kind = "png"
    if data is not None:
        with Image.open(io.BytesIO(data)) as file:
            kind = (file.format or "bin").lower()
    kind = "jpg" if kind in ("jpeg", "mpo") else kind
    size = example.width, example.height
    small = bool(resize) and max(size) > resize
    if data is not None and not small:
        return data, kind, size
    image = Image.fromarray(pixels)
    if small:
        share = resize / max(size)
        size = max(round(size[0] * share), 1), max(round(size[1] * share), 1)
        image = image.resize(size, Image.Resampling.LANCZOS)
        kind = "jpg" if kind in ("jpg", "webp") else "png"
    out = io.BytesIO()
    image.save(out, "JPEG" if kind == "jpg" else "PNG", quality=_JPEG_QUALITY)
    return out.getvalue(), kind, size


def _columns(regions: Sequence[Region]) -> dict[str, Any] | None:
    """The columns of regions (see the module), None for no region."""
    if not regions:
        return None
    out: dict[str, Any] = {"box": _numbers([v for r in regions for v in r.box])}
    if any(r.kind != "box" for r in regions):
        out["kind"] = "".join(_LETTERS[r.kind] for r in regions)
    if any(r.points for r in regions):
        out["points"] = [_numbers([v for p in r.points for v in p]) for r in regions]
    if any(r.mask is not None for r in regions):
        out["mask"] = [None if r.mask is None else _mask(r.mask) for r in regions]
    if any(r.label is not None for r in regions):
        out["label"] = [r.label for r in regions]
    if any(r.score is not None for r in regions):
        out["score"] = [r.score for r in regions]
    return out


def _mask(rle: Mapping[str, Any]) -> list[Any]:
    height, width = (int(n) for n in rle["size"])
    counts = rle["counts"]
    return [height, width, counts if isinstance(counts, str | bytes) else [int(n) for n in counts]]


def _regions(columns: Mapping[str, Any] | None) -> tuple[Region, ...]:
    if columns is None:
        return ()
    boxes = columns["box"].reshape(-1, 4).tolist()
    none = [None] * len(boxes)
    rows = zip(
        columns.get("kind", "b" * len(boxes)),
        boxes,
        columns.get("points", none),
        columns.get("mask", none),
        columns.get("label", none),
        columns.get("score", none),
        strict=True,
    )
    return tuple(
        Region(
            _KINDS[kind],
            tuple(box),
            () if points is None else tuple(map(tuple, points.reshape(-1, 2).tolist())),
            None if mask is None else {"size": mask[:2], "counts": mask[2]},
            label,
            score,
        )
        for kind, box, points, mask, label, score in rows
    )


def _numbers(values: Iterable[float]) -> msgpack.ExtType:
    exact = np.asarray(values, "<f8")
    with np.errstate(over="ignore"):
        single = exact.astype("<f4")
    if (single == exact).all():
        return msgpack.ExtType(_FLOAT32, single.tobytes())
    return msgpack.ExtType(_FLOAT64, exact.tobytes())


def _pack(value: Any) -> bytes:
    # "surrogatepass": JSON can escape half a character, and such a text must not end a build
    return msgpack.packb(value, default=_extend, strict_types=True, unicode_errors="surrogatepass")


def _extend(value: Any) -> Any:
    """What msgpack has no type for: tuples, and the numbers and texts of NumPy."""
    if isinstance(value, tuple):
        return msgpack.ExtType(_TUPLE, _pack(list(value)))
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"it holds a {type(value).__name__}: {value!r}"[:200])


def _unpack(data: bytes) -> Any:
    return msgpack.unpackb(
        data, ext_hook=_extension, strict_map_key=False, unicode_errors="surrogatepass"
    )


def _extension(code: int, data: bytes) -> Any:
    if code == _TUPLE:
        return tuple(_unpack(data))
    if code in (_FLOAT32, _FLOAT64):
        return np.frombuffer(data, f"<f{code}").astype(np.float64)
    raise ValueError(f"extension type {code} is not known")
