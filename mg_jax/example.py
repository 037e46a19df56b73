"""The neutral form of one training or evaluation sample: a picture, its regions, a conversation.

Every reader of a data set produces `Example`; every system consumes it through its codec. Boxes
and points are `xyxy` / `xy` floats in [0, 1] of the original image, x to the right, y down.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mg_jax.errors import BadRecord, UserError
from mg_jax.rle import decode_rle, encode_rle

Box = tuple[float, float, float, float]
Point = tuple[float, float]
Kind = Literal["box", "point", "polygon", "scribble", "mask"]

# A point stands for a box of this share of the picture's width and height, centred on the point
# and cut at the border: about one and a half patches of a 448-px, 14-px-patch encoder.
POINT_SIDE = 0.05
# Rounding in annotation files may leave a coordinate this far outside; it is cut silently.
_SLACK = 1e-5


@dataclass(frozen=True)
class Region:
    """A place in the picture: a box, a point, a polygon, a scribble, or a mask.

    box: (x0, y0, x1, y1), always present; the tightest box of the other kinds, and for a point a
        box of POINT_SIDE x POINT_SIDE around it.
    points: a point, the vertices of a polygon or the track of a scribble, else ().
    mask: COCO run-length encoding {"size": [height, width], "counts": ...}, else None.
    label: name or phrase, where the source has one. score: confidence, where there is one.

    Build it with the `from_*` methods, which validate.
    """

    kind: Kind
    box: Box
    points: tuple[Point, ...] = ()
    mask: dict[str, Any] | None = None
    label: str | None = None
    score: float | None = None

    @classmethod
    def from_box(
        cls,
        box: Sequence[float],
        label: str | None = None,
        score: float | None = None,
        *,
        clip: bool = False,
        size: Point = (1, 1),
    ) -> "Region":
        """A region from `xyxy` in [0, 1], or in pixels of a picture of `size` (width, height);
        clip=True cuts what lies outside the picture first.

        Raises UserError for a wrong count, NaN, reversed corners, no area, or a box outside.
        """
        return cls("box", _checked_box(box, clip, size=size), label=label, score=score)

    @classmethod
    def from_point(
        cls, x: float, y: float, label: str | None = None, *, clip: bool = False
    ) -> "Region":
        """A region from a point in [0, 1]; its box has POINT_SIDE of each axis, cut at the border.

        Raises UserError for NaN or a point outside.
        """
        ((x, y),) = _checked_points([(x, y)], "point", clip)
        r = POINT_SIDE / 2
        box = (max(x - r, 0.0), max(y - r, 0.0), min(x + r, 1.0), min(y + r, 1.0))
        return cls("point", box, points=((x, y),), label=label)

    @classmethod
    def from_polygon(
        cls, points: Iterable[Sequence[float]], label: str | None = None, *, clip: bool = False
    ) -> "Region":
        """A region from the vertices (x, y) in [0, 1] of a polygon; its edges may cross. One
        without area has the box of a scribble.

        Raises UserError for fewer than two points, NaN or points outside.
        """
        checked = _checked_points(points, "polygon", clip)
        if len(checked) < 2:
            raise UserError(f"polygon has {len(checked)} point(s): give at least 2, better 3")
        return cls("polygon", _stroke_box(checked), points=checked, label=label)

    @classmethod
    def from_scribble(
        cls, points: Iterable[Sequence[float]], label: str | None = None, *, clip: bool = False
    ) -> "Region":
        """A region from the points (x, y) in [0, 1] along a stroke; a stroke straight across or
        down has POINT_SIDE of the other axis for its box.

        Raises UserError for fewer than two points, NaN or points outside.
        """
        checked = _checked_points(points, "scribble", clip)
        if len(checked) < 2:
            raise UserError(f"scribble has {len(checked)} point(s): give at least 2")
        return cls("scribble", _stroke_box(checked), points=checked, label=label)

    @classmethod
    def from_mask(
        cls,
        mask: "np.ndarray | dict[str, Any]",
        label: str | None = None,
        score: float | None = None,
    ) -> "Region":
        """A region from a bool array [H, W] of the whole picture, or a COCO RLE dict.

        The RLE counts may be a list (uncompressed) or a string/bytes (compressed). The region
        keeps RLE. Raises UserError for a malformed or an empty mask.
        """
        if isinstance(mask, dict):
            array, rle = decode_rle(mask), mask
        else:
            try:
                array = np.asarray(mask)
            except ValueError:  # rows of several lengths
                raise UserError(
                    "mask is no array: give [height, width], rows of one length"
                ) from None
            if array.ndim != 2 or array.size == 0:
                raise UserError(f"mask has shape {array.shape}: give [height, width]")
            if array.dtype.kind == "f" and np.isnan(array).any():
                raise UserError("mask holds NaN: give booleans")
            array = array.astype(bool)
            rle = encode_rle(array)
        rows, columns = np.flatnonzero(array.any(1)), np.flatnonzero(array.any(0))
        if not rows.size:
            raise UserError(f"mask of size {list(array.shape)} is empty: it marks no pixel")
        height, width = array.shape
        box = (
            float(columns[0] / width),
            float(rows[0] / height),
            float((columns[-1] + 1) / width),
            float((rows[-1] + 1) / height),
        )
        return cls("mask", box, mask=rle, label=label, score=score)

    def mask_array(self) -> np.ndarray | None:
        """The mask as bool [H, W], or None for the other kinds."""
        return None if self.mask is None else decode_rle(self.mask)


@dataclass(frozen=True)
class Turn:
    """One exchange in neutral markup (`mg_jax.text.markup`); assistant None = to be answered.

    about: the regions that the answer rests on, named in it or not; () when that is nothing in
    the picture ("there is no dog"); None where the data do not say.
    landmarks: those of them which the others are placed by ("left of the dog", "nearest to it"),
    or, of a video, where things are in its last frame.
    """

    user: str
    assistant: str | None = None
    about: tuple[int, ...] | None = None
    landmarks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Expression:
    """A text that names regions of the picture: these and no others.

    regions: indices into `Example.regions`; () for a thing that is not in the picture.
    """

    text: str
    regions: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A question with its answers, the best or most frequent first; neutral markup in both.

    choices: the options of a multiple choice, in order; the answers are then among them.
    hint: text to be given before the question (a lecture, recognised words), "" for none.
    """

    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    hint: str = ""


@dataclass
class Example:
    """One picture with its regions and conversation.

    image: uint8 RGB array [H, W, 3], a path, or a function without arguments that returns the
        array (so that listing a data set draws or reads nothing); None for text alone, or where
        `video` stands in its place.
    video: the path of a video file, of a GIF or of a folder of frames, or a function of a count
        that returns so many frames, uint8 RGB [count, H, W, 3]; "" for none. Regions are places
        in its first frame, landmarks in its last one.
    width, height: size in pixels of the original image, after EXIF rotation.
    regions: what the markup of `turns` and the annotations below refer to by index.
    objects: all annotated boxes, for detection. crowd: boxes to be ignored there.
    absent: names of what was looked for and is not in the picture.
    captions: descriptions of the whole picture in neutral markup; phrases may be grounded.
    expressions, questions: see the classes. relations: (subject region, predicate, object region).
        `mg_jax.data.tasks` makes turns of these and of `objects` where there are none.
    meta: whatever the source wants to hand on (task name, template, file name, answers).
    """

    image: Callable[[], np.ndarray] | np.ndarray | str | None
    width: int
    height: int
    regions: tuple[Region, ...] = ()
    turns: tuple[Turn, ...] = ()
    id: str = ""
    source: str = ""
    objects: tuple[Region, ...] = ()
    crowd: tuple[Region, ...] = ()
    absent: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    expressions: tuple[Expression, ...] = ()
    questions: tuple[Question, ...] = ()
    relations: tuple[tuple[int, str, int], ...] = ()
    video: Callable[[int], np.ndarray] | str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def frames(self, count: int = 8) -> np.ndarray:
        """`count` frames of the video, evenly spaced from the first to the last one, as uint8 RGB
        [count, H, W, 3]; where it has fewer, some are repeated.

        Raises BadRecord for an unreadable video, and for an example without one.
        """
        if not self.video:
            raise BadRecord(f"example {self.id!r} of {self.source}: has no video")
        if callable(self.video):
            return self.video(count)
        from mg_jax.data.video import read_frames

        return read_frames(self.video, count)[0]

    def pixels(self) -> np.ndarray:
        """The picture as uint8 RGB [H, W, 3], EXIF rotation applied.

        Raises BadRecord for an unreadable file or a picture of another size than stated, and for
        an example without a picture.
        """
        image = self.image
        if image is None:
            raise BadRecord(f"example {self.id!r} of {self.source}: has no picture")
        if callable(image):
            try:
                array = np.asarray(image())
            except UserError as e:
                raise BadRecord(f"example {self.id!r}: {e}") from e
        elif isinstance(image, np.ndarray):
            array = image
        else:
            from mg_jax.vision.preprocess import load_image

            try:
                array = np.asarray(load_image(image))
            except UserError as e:
                raise BadRecord(str(e)) from e
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise BadRecord(
                f"example {self.id!r}: picture is {array.dtype} {array.shape}, "
                "expected uint8 [height, width, 3]"
            )
        if array.shape[:2] != (self.height, self.width):
            raise BadRecord(self._misfit(array.shape[1], array.shape[0]))
        return array

    def _misfit(self, width: int, height: int) -> str:
        """What is wrong where the picture has this size and not the stated one."""
        from mg_jax.vision.preprocess import is_turned

        name, mend = f"example {self.id!r} of {self.source}", "correct the annotation file"
        if isinstance(self.image, str):
            name = f"{self.image}: {name}"
            if (width, height) == (self.height, self.width) and is_turned(self.image):
                mend = (
                    "EXIF turns it: correct sides and boxes in the annotation file to the picture "
                    "as it is shown, or take the orientation out of the picture's EXIF data"
                )
        return (
            f"{name}: picture is {width}x{height} px but the annotation says "
            f"{self.width}x{self.height}: {mend}"
        )


def _numbers(values: Any, name: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in values)
    except (TypeError, ValueError, OverflowError) as e:
        raise UserError(f"{name} {repr(values)[:60]} is not {count} numbers") from e
    if len(numbers) != count:
        raise UserError(f"{name} {repr(values)[:60]} has {len(numbers)} numbers, expected {count}")
    if not all(math.isfinite(v) for v in numbers):
        raise UserError(f"{name} {list(numbers)} holds NaN or infinity")
    return numbers


def _checked_box(box: Any, clip: bool, size: Point = (1, 1)) -> Box:
    """The box in shares of `size`; messages have its own numbers."""
    x0, y0, x1, y1 = numbers = _numbers(box, "box", 4)
    shown = "[" + ", ".join(f"{v:.6g}" for v in numbers) + "]"
    if x1 < x0 or y1 < y0:
        raise UserError(f"box {shown} is reversed: give x0,y0,x1,y1 with x0 < x1 and y0 < y1")
    shares = [v / side for v, side in zip(numbers, (*size, *size), strict=True)]
    if not clip and (min(shares) < -_SLACK or max(shares) > 1 + _SLACK):
        raise UserError(f"box {shown} lies outside [0, 1]: divide by width and height, or clip")
    x0, y0, x1, y1 = (min(max(v, 0.0), 1.0) for v in shares)
    if x1 <= x0 or y1 <= y0:
        of = "" if size == (1, 1) else f" of {size[0]:g}x{size[1]:g} px"
        raise UserError(f"box {shown} has no area inside the picture{of}")
    return x0, y0, x1, y1


def _stroke_box(points: Sequence[Point]) -> Box:
    """The box of a stroke, POINT_SIDE wide where it has no width."""
    (x0, x1), (y0, y1) = (_widened(min(v), max(v)) for v in zip(*points, strict=True))
    return x0, y0, x1, y1


def _widened(low: float, high: float) -> tuple[float, float]:
    """A stretch of [0, 1]; POINT_SIDE around a place."""
    r = POINT_SIDE / 2 if low == high else 0.0
    return max(low - r, 0.0), min(high + r, 1.0)


def _checked_points(points: Any, name: str, clip: bool) -> tuple[Point, ...]:
    checked = []
    if not isinstance(points, Iterable):
        raise UserError(f"{name} {repr(points)[:60]} is no list of points: give [(x, y), ...]")
    for point in points:
        x, y = _numbers(point, name, 2)
        if not clip and not all(-_SLACK <= v <= 1 + _SLACK for v in (x, y)):
            raise UserError(
                f"{name} ({x:.6g}, {y:.6g}) lies outside [0, 1]: divide by width and height"
            )
        checked.append((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)))
    return tuple(checked)


@dataclass(frozen=True)
class Query:
    """One question to a system: neutral markup in `prompt` and `history`, regions by number.

    image: path, uint8 RGB array [H,W,3] or PIL picture; None for text alone, or with a video.
    video: path of a video file, a GIF or a folder of frames, uint8 RGB [n,H,W,3], or a function of
        a count that returns so many frames.
    detections: what a detector found in the picture, for systems that are given it: {"boxes":
        [[x0,y0,x1,y1]] in pixels, "scores", "labels"}, of a video {"frames": [one for each]}; None
        where none has looked, lists without entries where it found nothing.
    """

    image: Any
    prompt: str
    regions: tuple[Region, ...] = ()
    history: tuple[Turn, ...] = ()
    video: Any = None
    detections: Any = None
