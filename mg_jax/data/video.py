"""Frames of a video: of a file that FFmpeg reads (PyAV, extra `video`), a GIF, a folder of frames.

A system sees `count` frames, evenly spaced from the first to the last: numbers
`np.linspace(0, n - 1, count, dtype=int)` of n, as MG-LLaVA takes 8 (spec 6). Of a shorter video
some are repeated. Videos are turned upright as their container says; sound is not read.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_jax.errors import BadRecord, UserError
from mg_jax.vision.preprocess import load_image

COUNT = 8  # frames of a video, as published
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # endings of frames in a folder
MAX_PIXELS = 1 << 28  # of all frames that are taken together: 800 MB

Size = tuple[int, int]


def frame_numbers(n: int, count: int = COUNT) -> list[int]:
    """The numbers of `count` frames out of n, evenly spaced, the first and the last among them."""
    return [int(i) for i in np.linspace(0, n - 1, count, dtype=int)]


def read_frames(
    path: str | Path, count: int = COUNT, notes: list[str] | None = None
) -> tuple[np.ndarray, Size]:
    """(frames uint8 RGB [count, H, W, 3], (width, height)) of a video.

    notes: gets a line when the video has fewer frames than `count`, or fewer than its file says, or
    ends well before the time that it states.
    Raises BadRecord for a missing, damaged or empty video, UserError for a count below 1 and where
    PyAV is needed and not installed.
    """
    if count < 1:
        raise UserError(f"{count} frames of a video are asked: give at least 1")
    path, said = Path(path), [] if notes is None else notes
    if path.is_dir():
        found, n = _folder(path, count)
    elif not path.exists():
        raise BadRecord(f"{path}: no such video file or folder of frames")
    elif path.stat().st_size == 0:
        raise BadRecord(f"{path}: the video is empty (0 bytes)")
    elif _head(path).startswith((b"GIF87a", b"GIF89a")):
        found, n = _gif(path, count)
    else:
        found, n = _file(path, count, said)
    if n < count:
        said.append(f"{path}: has {n} frame{'s'[: n > 1]}, {count} are asked: some are repeated")
    if len({frame.shape for frame in found}) > 1:
        raise BadRecord(f"{path}: its frames change their size: encode the video anew")
    frames = np.stack(found)
    return frames, (frames.shape[2], frames.shape[1])


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(8)
    except OSError as e:
        raise BadRecord(f"{path}: cannot be read ({e})") from None


def _check_size(path: Path, width: int, height: int, count: int) -> None:
    """Raises BadRecord where so many frames of that size would not fit into memory."""
    if width * height * count > MAX_PIXELS:
        raise BadRecord(
            f"{path}: {count} frames of {width}x{height} px are more than {MAX_PIXELS} pixels: "
            "make the video smaller"
        )


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder of frames, in the order of the numbers in their names."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in PICTURES and f.is_file()]

    def key(file: Path) -> list[tuple[int, str]]:
        return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"([0-9]+)", file.name)]

    return sorted(files, key=key)


def _folder(path: Path, count: int) -> tuple[list[np.ndarray], int]:
    files = frame_files(path)
    if not files:
        raise BadRecord(f"{path}: holds no frames ({', '.join(PICTURES)})")
    frames: dict[int, np.ndarray] = {}
    for i in frame_numbers(len(files), count):
        if i in frames:
            continue
        try:
            frames[i] = load_image(files[i])
        except UserError as e:
            raise BadRecord(str(e)) from e
        h, w = frames[i].shape[:2]
        _check_size(path, w, h, count)
        first = frames[0]
        if frames[i].shape != first.shape:
            raise BadRecord(
                f"{files[i]}: is {w}x{h} px but {files[0].name} is "
                f"{first.shape[1]}x{first.shape[0]}: all frames of a video have one size"
            )
    return [frames[i] for i in frame_numbers(len(files), count)], len(files)


def _gif(path: Path, count: int) -> tuple[list[np.ndarray], int]:
    frames: dict[int, np.ndarray] = {}
    try:
        with Image.open(path) as image:
            n = getattr(image, "n_frames", 1)
            _check_size(path, *image.size, count)
            numbers = frame_numbers(n, count)
            for i in dict.fromkeys(numbers):
                image.seek(i)
                shown = image.convert("RGBA")
                white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
                frames[i] = np.array(Image.alpha_composite(white, shown).convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as e:
        raise BadRecord(f"{path}: the GIF cannot be read to its end ({e}): it is damaged") from None
    return [frames[i] for i in numbers], n


def _file(path: Path, count: int, notes: list[str]) -> tuple[list[np.ndarray], int]:
    """Frames of a video file; where packets and frames differ in number, frames count."""
    with _opened(path) as (container, stream):
        _check_size(path, stream.width, stream.height, count)
        packets, last = [], 0.0
        for p in container.demux():
            if p.pts is not None and p.time_base:  # sound too may tell where the file ends
                last = max(last, float((p.pts + (p.duration or 0)) * p.time_base))
            if p.size and not p.is_discard and p.stream == stream:
                packets.append(p)
        stated = (container.duration or 0) / 1e6
        times = sorted(p.pts for p in packets if p.pts is not None)
        keys = sorted(p.pts for p in packets if p.pts is not None and p.is_keyframe)
    n = len(packets)
    del packets
    if not n:
        raise BadRecord(f"{path}: the video has no frames: it is of length zero")
    if last < 0.9 * stated - 0.5:
        notes.append(
            f"{path}: ends after {last:.1f} of the {stated:.1f} s that it states: it may be cut off"
        )
    numbers = frame_numbers(n, count)
    # Timestamps in the order of showing say where each frame is, if all have one of their own.
    if len(set(times)) == n:
        frames = _by_time(path, [times[i] for i in numbers], keys)
        if frames is not None:
            return frames, n
    kept: dict[int, np.ndarray] = {}
    decoded = 0
    for i, frame in enumerate(_decoded(path)):
        decoded = i + 1
        if i in numbers:
            kept[i] = _pixels(frame)
    if not decoded:
        raise BadRecord(f"{path}: not one frame of the video can be decoded: it is damaged")
    if decoded < n:
        notes.append(f"{path}: {decoded} of {n} frames can be decoded: it may be damaged")
        numbers = frame_numbers(decoded, count)
        kept = {i: _pixels(f) for i, f in enumerate(_decoded(path)) if i in numbers}
    return [kept[i] for i in numbers], decoded


def _by_time(path: Path, wanted: Sequence[int], keys: Sequence[int]) -> list[np.ndarray] | None:
    """The frames shown at these times (ascending, in units of the stream), found by seeking where
    a key frame (`keys`, ascending) spares the way there; None where one is not found, as in
    damaged files."""
    import av

    found: dict[int, np.ndarray] = {}
    frames: Iterator[Any] = iter(())
    here: int | None = None  # the time of the last frame that was decoded
    try:
        with _opened(path) as (container, stream):
            for time in dict.fromkeys(wanted):
                key = keys[max(bisect_right(keys, time) - 1, 0)] if keys else time
                if here is None or key > here:
                    container.seek(time, stream=stream, backward=True, any_frame=False)
                    frames = container.decode(stream)
                for frame in frames:
                    here = frame.pts
                    if here is None or here >= time:
                        break
                if here != time:
                    return None
                found[time] = _pixels(frame)
    except (av.error.FFmpegError, BadRecord):
        return None
    return [found[t] for t in wanted]


def _decoded(path: Path) -> Iterator[Any]:
    """Every frame in order; what is damaged is passed over."""
    import av

    with _opened(path) as (container, stream), suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            with suppress(av.error.FFmpegError):
                yield from packet.decode()


def _pixels(frame: Any) -> np.ndarray:
    """A decoded frame as uint8 RGB [H, W, 3], upright."""
    turned = round(getattr(frame, "rotation", 0) / 90)  # quarter turns, counterclockwise
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turned))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream). Raises BadRecord for what is no video, UserError
    without PyAV."""
    try:
        import av
    except ImportError:
        raise UserError(
            f"{path}: video files are read with PyAV, which is not installed: make setup "
            "EXTRAS=video (or pip install 'mg_jax[video]'), or give a GIF or a folder of frames"
        ) from None
    try:
        container = av.open(str(path))
    except EOFError:
        raise BadRecord(f"{path}: holds no frames: it is cut off, or of length zero") from None
    except (av.error.FFmpegError, OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise BadRecord(
            f"{path}: is no video that can be read ({reason}): it is damaged or of another kind"
        ) from None
    with container:
        if not container.streams.video:
            raise BadRecord(f"{path}: holds no video: it has sound alone, or length zero")
        stream = container.streams.video[0]
        try:
            yield container, stream
        except av.error.FFmpegError as e:
            raise BadRecord(
                f"{path}: the video cannot be read to its end ({e.strerror}): it is damaged"
            ) from None
