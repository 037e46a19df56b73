"""MG-LLaVA: pictures or videos padded to squares, with the boxes that a detector found in them.

Boxes come from `config.boxes`, box files in which an example is looked up by the id that its data
set has for it, or with the example (meta["detections"]). Pictures and videos of pooled frames
(config.model.video_pool) do not share a batch: config.single_source and config.group_by_length
keep them apart.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mg_jax.data import batch as batching
from mg_jax.data.detections import (
    Found,
    Prepared,
    as_found,
    prepare,
    read_box_file,
    to_canvas,
)
from mg_jax.data.samples.base import Conversations, Record, Samples, target_slots
from mg_jax.data.samples.mg_llava_teaching import label_words, looks, named_boxes
from mg_jax.data.sources.measures import PICTURE, TEXT, VIDEO
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example
from mg_jax.text.codecs.rows import GAZE, check_length, check_slots, collate_gaze
from mg_jax.vision import preprocess

NO_BOXES = "none"  # as config.boxes: every picture is without detections
NO_BOX = np.zeros((0, 4), np.float32)
# From so near to the longest text on upstream keeps one box a label: 50 tokens of its 1,472
_CLOSE = 50 / 1472


def samples(config: Any, cfg: Any, codec: Any) -> Samples:
    """Those of config.stage."""
    return Labels(config, cfg) if codec is None else Language(config, cfg, codec)


def codec_options(config: Any, cfg: Any) -> dict[str, Any]:
    """Options of MGLLaVACodec."""
    return {
        "template": config.codec.template,
        "image_tokens": cfg.image_tokens(),
        "frame_tokens": cfg.image_tokens(cfg.frames),
        "text_tokens": config.codec.text_tokens,
        "refer": "token" if cfg.refer else "text",
        "vocab": cfg.lm.vocab,
        "frames": frames_of(config, cfg),
        "max_boxes": cfg.max_boxes,
    }


def batch_sizes(config: Any, cfg: Any) -> dict[str, int]:
    """Text length, frames, slots of detected boxes a frame, of the user's boxes, of labelled
    boxes, and of looks."""
    if config.stage == "labels":
        return {"targets": config.target_slots}
    frames = frames_of(config, cfg)
    tokens = frames * (cfg.image_tokens(frames) + cfg.max_boxes) + config.codec.text_tokens
    return {
        "tokens": tokens,
        "frames": frames,
        "boxes": cfg.max_boxes,
        "refer": config.codec.refer_slots,
        "gaze": GAZE,
    }


def frames_of(config: Any, cfg: Any) -> int:
    """Pictures of an example at most. Raises UserError for an unknown config.media."""
    if config.media not in ("image", "video"):
        raise UserError(f"config.media: {config.media!r} is not 'image' or 'video'")
    return int(cfg.frames) if config.media == "video" else 1


class _Pictures(Samples):
    """Pixels stay bytes until a batch has left its worker."""

    def __init__(self, config: Any, cfg: Any):
        self.cfg, self.preprocessing = cfg, config.preprocess

    def finish(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return batch | {"high": preprocess.get(self.preprocessing).normalize(batch["high"])}


class Labels(_Pictures):
    """The stage that teaches the towers by named boxes."""

    def __init__(self, config: Any, cfg: Any):
        super().__init__(config, cfg)
        self.words, self.slots = label_words(config, cfg), target_slots(config)

    def make(self, example: Example, rng: np.random.Generator) -> Record | None:
        named = named_boxes(example, self.words, self.slots, self.cfg.canvas, rng)
        if named is None or example.image is None:
            return None
        squash = preprocess.get(self.preprocessing)
        return named | {"high": pixels([example.pixels()], squash, self.cfg.high_size)}

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        return batching.stack(records)


class Language(Conversations, _Pictures):
    """The stages that train on answers."""

    def __init__(self, config: Any, cfg: Any, codec: Any):
        Conversations.__init__(self, config, cfg, codec)
        _Pictures.__init__(self, config, cfg)
        self.frames = frames_of(config, cfg)
        self.refer_slots = config.codec.refer_slots
        if config.box_limit < 0:
            raise UserError(f"config.box_limit: {config.box_limit} is negative: 0 takes all")
        self.limit = config.box_limit or None
        self.without = config.boxes == NO_BOXES
        named = config.boxes and not self.without
        self.boxes = read_box_file(config.boxes) if named else None

    def check_vocabulary(self, name: str, cfg: Any, codec: Any) -> None:
        """Nothing more: the codec has looked, and language models may have rows to spare."""

    def lengths(self, section: Any) -> list[int]:
        """Of whole sequences: how many boxes there are matters as much as how long the text is."""
        return [size for size in section.buckets if size < self.codec.length]

    def visual(self, medium: int) -> int:
        count = {TEXT: 0, PICTURE: 1, VIDEO: self.frames}[medium]
        return int(self.codec.most(count))

    def prepare(self, example: Example, rng: np.random.Generator) -> Record:
        frames, size, count = None, (example.width, example.height), 1
        if example.video:
            if self.frames == 1:
                raise BadRecord(
                    f"example {example.id!r} of {example.source}: is a video: train with "
                    "config.media=video and config.model.frames=8, or leave its data set out"
                )
            frames, count = example.frames(self.frames), self.frames
            size = frames.shape[2], frames.shape[1]
        elif example.image is None:
            return {"boxes": [], "dropped": 0}
        if self.cfg.objects == "none":
            boxes = [NO_BOX] * count
            return {"frames": frames, "size": size, "boxes": boxes, "dropped": 0}
        found = self._found(example, count)
        return {"frames": frames, "size": size, "found": found, **self._boxes(found, size)}

    def _found(self, example: Example, frames: int) -> tuple[Found, ...]:
        """What a detector found in each frame."""
        where = f"example {example.id!r} of {example.source}"
        if self.without:
            return nothing(frames)
        if "view" in example.meta:
            raise BadRecord(
                f"{where}: detected boxes are of whole pictures: leave views out, or set "
                f"config.boxes={NO_BOXES}"
            )
        given = example.meta.get("detections")
        if self.boxes is not None:
            given = self.boxes.about(example)
        if given is None:
            raise BadRecord(
                f"{where}: comes without detected boxes: config.boxes=FILE names those of "
                f"launch.boxes, config.boxes={NO_BOXES} trains without any"
            )
        return as_found(given, where, frames)

    def _boxes(
        self, found: Sequence[Found], size: tuple[int, int], one_each: bool = False
    ) -> Record:
        """Boxes of each frame in canvas units, and how many lie outside or had no slot."""
        made = prepared(found, size, self.cfg, limit=self.limit, one_each=one_each)
        return {"boxes": [p.boxes for p in made], "dropped": sum(p.lost for p in made)}

    def encode(self, example: Example, rng: np.random.Generator, seen: Record) -> Record:
        record, text = self._write(example, seen["boxes"])
        if text >= self.text_tokens - round(_CLOSE * self.text_tokens) and "found" in seen:
            fewer = self._boxes(seen["found"], seen["size"], one_each=True)
            record = self._write(example, fewer["boxes"])[0] | fewer
        if self.cfg.pointing_weight:
            boxes: Sequence[np.ndarray] = {**seen, **record}["boxes"]
            shown = boxes if self.cfg.box_tokens else [NO_BOX] * len(boxes)
            record |= looks(
                record, example, shown, seen.get("size", (1, 1)), self.codec, self.cfg.canvas
            )
        if self.skip:
            where = f"example {example.id!r} of {example.source}"
            check_length(text, self.text_tokens, where)
            check_slots("refer", len(record["refer_boxes"]), self.refer_slots, where)
        return record

    def _write(self, example: Example, boxes: Sequence[np.ndarray]) -> tuple[Record, int]:
        """The codec's row, and how many tokens of it are text."""
        record: Record = self.codec.encode(example, box_counts=[len(b) for b in boxes])
        visual = np.isin(record["tokens"], (self.codec.image_id, self.codec.box_id))
        return record, int((~visual).sum())

    def complete(self, record: Record, example: Example, rng: np.random.Generator) -> Record | None:
        pictures: Sequence[np.ndarray] = ()
        if "size" in record:
            pictures = [example.pixels()] if record["frames"] is None else record["frames"]
            width, height = record["size"]
            record["refer_boxes"] = to_canvas(record["refer_boxes"], width, height, self.cfg.canvas)
        record["high"] = pixels(pictures, preprocess.get(self.preprocessing), self.cfg.high_size)
        return {k: v for k, v in record.items() if k not in ("frames", "size", "found")}

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        names = [r["name"] for r in records]
        out: dict[str, np.ndarray] = self.codec.collate(
            records, buckets=self.sizes(records), refer_slots=self.refer_slots, names=names
        )
        batching.refuse_empty_loss(out)
        out |= self.segments(records, out["tokens"].shape[1])
        if self.cfg.pointing_weight:
            out |= collate_gaze(records)
        return batch(out, records, self.cfg)


def nothing(frames: int) -> tuple[Found, ...]:
    """What a detector that finds nothing has found in so many frames."""
    return (Found(NO_BOX, np.zeros(0, np.float32), ()),) * frames


def prepared(
    found: Sequence[Found], size: tuple[int, int], cfg: Any, **options: Any
) -> list[Prepared]:
    """Boxes of each frame of a picture of `size` (width, height), for the slots of a model."""
    return [
        prepare(
            f.boxes, f.scores, f.labels, *size, canvas=cfg.canvas, cap=cfg.max_boxes, **options
        )
        for f in found
    ]  # fmt: skip


def pixels(
    pictures: Sequence[np.ndarray], preprocessing: preprocess.Preprocessing, size: int
) -> np.ndarray:
    """uint8 [n,S,S,3] of the pictures of a row, of which there may be none."""
    rows = [preprocessing.squash(picture, size) for picture in pictures]
    return np.stack(rows) if rows else np.zeros((0, size, size, 3), np.uint8)


def batch(text: dict[str, np.ndarray], records: Sequence[Any], cfg: Any) -> dict[str, np.ndarray]:
    """The codec's arrays with pictures and boxes of the rows: high uint8 [B,F,S,S,3], boxes
    [B,F,R,4], box_mask [B,F,R]; rows with fewer than F pictures have black ones behind.

    Raises UserError for pictures beside videos where frames are pooled.
    """
    counts = {len(r["high"]) for r in records}
    if cfg.video_pool > 1 and 1 in counts and len(counts - {0}) > 1:
        raise UserError(
            f"a picture and a video in one batch: video_pool={cfg.video_pool} makes their tokens "
            "differ in number: give them as data sets of their own, with config.single_source=True"
        )
    rows, frames, size = len(records), max(1, *counts), cfg.high_size
    high = np.zeros((rows, frames, size, size, 3), np.uint8)
    boxes = np.zeros((rows, frames, cfg.max_boxes, 4), np.float32)
    mask = np.zeros((rows, frames, cfg.max_boxes), bool)
    for n, record in enumerate(records):
        high[n, : len(record["high"])] = record["high"]
        for f, found in enumerate(record["boxes"]):
            boxes[n, f, : len(found)] = found
            mask[n, f, : len(found)] = True
    unused = () if cfg.refer else ("refer_boxes", "refer_mask")
    kept = {k: v for k, v in text.items() if k not in unused}
    return kept | {"high": high, "boxes": boxes, "box_mask": mask}
