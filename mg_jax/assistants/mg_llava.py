"""MG-LLaVA: a picture, the frames of a video, or text alone; boxes are given or detected."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.assistants.base import (
    Adapter,
    Proposals,
    Row,
    View,
    batch_length,
    boxed_notes,
    object_notes,
    padded_cells,
    picture,
    slots,
    turns,
)
from mg_jax.data.detections import LIMIT, Found, Prepared, as_found, to_canvas
from mg_jax.data.samples.mg_llava import NO_BOX, batch, nothing, pixels, prepared
from mg_jax.data.video import frame_numbers, read_frames
from mg_jax.errors import UserError
from mg_jax.example import Query
from mg_jax.models import System

NO_BOXES = "no boxes were used: none were given and no detector is configured"
TEXT = 512  # positions that a video leaves for text, or a quarter of a small model's


class MGLLaVAAdapter(Adapter):
    """What no detection is given for is looked at by `detect`, if there is one.

    settings["box_limit"]: boxes of a picture from which on the best 20 a label stay; 0: no limit.
    """

    preprocessing = "clip_pad"
    text_alone = True
    can = frozenset({"videos", "detections"})
    # The last picture and video looked at and what was found: a conversation stays with them.
    _looked: tuple[Any, Any, Any] = (None, None, None)

    def __init__(self, system: System, codec: Any, settings: Mapping[str, Any], detect: Any = None):
        super().__init__(system, codec, settings, detect)
        self.limit = settings.get("box_limit", LIMIT) or None

    @property
    def end_id(self) -> int:
        return int(self.codec.end_id)

    @property
    def pad_id(self) -> int:
        return int(self.codec.pad_id)

    @property
    def visual(self) -> tuple[int, ...]:
        return self.codec.image_id, self.codec.box_id

    def read(self, query: Query) -> Row:
        cfg, notes = self.system.cfg, [*object_notes(query), *boxed_notes(query.regions)]
        pictures = self._pictures(query, notes)
        height, width = pictures[0].shape[:2] if pictures else (0, 0)
        found = self._boxes(query, pictures, notes)
        shown = self._shown([len(p.boxes) for p in found], notes)
        notes += left_out([found[n] for n in shown], (width, height), cfg.max_boxes)
        boxes = [found[n].boxes for n in shown]
        encoded = self.codec.encode_prompt(
            turns(query), query.regions, box_counts=[len(b) for b in boxes]
        )
        if pictures:
            refer = to_canvas(encoded["refer_boxes"], width, height, cfg.canvas)
            encoded["refer_boxes"] = refer
        high = pixels([pictures[n] for n in shown], self.preprocess, cfg.high_size)
        arrays = encoded | {"high": high, "boxes": boxes}
        return Row(query, arrays, width, height, tuple(notes))

    def _pictures(self, query: Query, notes: list[str]) -> list[np.ndarray]:
        """The picture, or the frames of the video; none for text alone."""
        if query.video is None:
            return [] if query.image is None else [picture(query.image)]
        if query.image is not None:
            raise UserError("a question is about an image or a video, not about both")
        return frames(query.video, self.system.cfg.frames, notes)

    def _shown(self, counts: Sequence[int], notes: list[str]) -> list[int]:
        """Which pictures, of so many boxes each, the model sees: fewer frames where all of them do
        not fit."""
        cfg, shown = self.system.cfg, list(range(len(counts)))
        room = cfg.lm.max_positions - min(TEXT, cfg.lm.max_positions // 4)

        def needed(shown: Sequence[int]) -> int:
            return len(shown) * cfg.image_tokens(len(shown)) + sum(counts[n] for n in shown)

        while len(shown) > 2 and needed(shown) > room:
            shown = frame_numbers(len(counts), len(shown) - 1)
        if len(shown) < len(counts):
            notes.append(
                f"{len(shown)} of {len(counts)} frames were used: all of them with their boxes "
                f"need more than the model's {cfg.lm.max_positions} positions"
            )
        return shown

    def _boxes(
        self, query: Query, pictures: Sequence[np.ndarray], notes: list[str]
    ) -> list[Prepared]:
        """Boxes of each picture, in canvas units."""
        cfg = self.system.cfg
        if not pictures:
            if query.detections is not None:
                raise UserError("detections without a picture or a video")
            return []
        if cfg.objects == "none":
            if query.detections is not None:
                notes.append("the boxes were not used: this model sees none (objects=none)")
            return [Prepared(NO_BOX, (), {})] * len(pictures)
        height, width = pictures[0].shape[:2]
        found = self._found(query, pictures, notes)
        return prepared(found, (width, height), cfg, limit=self.limit)

    def _found(
        self, query: Query, pictures: Sequence[np.ndarray], notes: list[str]
    ) -> tuple[Found, ...]:
        given = query.detections
        if given is None:
            if self.detect is None:
                notes.append(NO_BOXES)
                return nothing(len(pictures))
            image, video, given = self._looked
            if image is not query.image or video is not query.video:
                given = {"frames": list(self.detect(pictures))}
                self._looked = query.image, query.video, given
        return as_found(given, "detections", len(pictures))

    def collate(self, rows: Sequence[Row], room: int) -> dict[str, np.ndarray]:
        samples = [r.arrays for r in rows]
        length = batch_length(self.codec, samples, room)
        count = slots(max(len(s["refer_boxes"]) for s in samples))
        made = batch(self.codec.collate(samples, [length], count), samples, self.system.cfg)
        return made | {"high": self.preprocess.normalize(made["high"])}

    def answer(self, row: Row, ids: np.ndarray, logprobs: np.ndarray, kept: Any) -> Answer:
        answer: Answer = self.codec.decode(
            ids, logprobs, row.width, row.height, question=row.query.prompt, notes=row.notes
        )
        return answer

    def views(self, row: Row) -> list[View]:
        if row.query.video is not None:
            raise UserError("attention is drawn on one picture, not on a video: pass an image")
        if row.query.image is None:
            return []
        places = padded_cells(self.system.cfg.low.grid, row.width, row.height)
        return [View("picture", picture(row.query.image), self.codec.image_id, 0, places)]

    def propose(self, params: Any, images: Sequence[Any]) -> Proposals:
        if self.detect is None:
            raise UserError("mg_llava is given its boxes, and no detector is configured")
        found = [as_found(f, "detections")[0] for f in self.detect([picture(i) for i in images])]
        return [(f.boxes, f.scores) for f in found]


def left_out(made: Sequence[Prepared], size: tuple[int, int], slots: int) -> list[str]:
    """Notes on detected boxes that the model does not see, of pictures of `size`."""
    notes = []
    if count := sum(p.dropped.get("slots", 0) for p in made):
        notes.append(f"{count} detected boxes left out: there are {slots} slots")
    if count := sum(p.dropped.get("outside", 0) for p in made):
        notes.append(
            f"{count} detected boxes left out: they lie outside of {size[0]}x{size[1]} px; were "
            "they found in a picture of another size?"
        )
    return notes


def frames(video: Any, count: int, notes: list[str]) -> list[np.ndarray]:
    """`count` frames, uint8 RGB [H,W,3], of what `Query.video` may be. Raises UserError."""
    if isinstance(video, str | Path):
        return list(read_frames(video, count, notes)[0])
    array = np.asarray(video(count) if callable(video) else video)
    if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise UserError(
            f"video: got an array of {array.dtype} {array.shape}; expected uint8 RGB [n,H,W,3], a "
            "path, or a function of a count that returns such"
        )
    return [array[i] for i in frame_numbers(len(array), count)]
