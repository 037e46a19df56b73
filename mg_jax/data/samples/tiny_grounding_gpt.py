"""TinyGroundingGPT: a picture padded to a square, and crops of it as object images."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from mg_jax import config as configs
from mg_jax.data import batch as batching
from mg_jax.data.crops import CropAugment, check_augment, crop
from mg_jax.data.samples.base import Conversations, Record, Samples, target_slots
from mg_jax.data.samples.mg_llava_teaching import label_words, named_boxes
from mg_jax.data.samples.tiny_grounding_gpt_teaching import Gaze
from mg_jax.data.tasks.objects import CHOICES
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example
from mg_jax.text.codecs.rows import GAZE, collate_gaze
from mg_jax.text.codecs.tiny_grounding_gpt import square
from mg_jax.vision import preprocess


def samples(config: Any, cfg: Any, codec: Any) -> Samples:
    """Those of config.stage."""
    return Labels(config, cfg) if codec is None else Language(config, cfg, codec)


def codec_options(config: Any, cfg: Any) -> dict[str, Any]:
    """Options of TinyGroundingGPTCodec."""
    return {
        "template": config.codec.template,
        "image_tokens": cfg.image_tokens,
        "object_tokens": cfg.object_tokens,
        "object_slots": object_slots(config),
        "text_tokens": config.codec.text_tokens,
        "vocab": cfg.lm.vocab,
    }


def object_slots(config: Any) -> int:
    """Most object images of a row. Raises UserError for a number of them that makes no sense."""
    slots, least = config.codec.object_slots, 1 if config.stage == "labels" else 0
    if slots < least:
        raise UserError(
            f"config.codec.object_slots: {slots} is not at least {least} in stage={config.stage}"
        )
    return int(slots)


def batch_sizes(config: Any, cfg: Any) -> dict[str, int]:
    """Text length, slots of object images, of labelled things, and looks of a sample."""
    slots = object_slots(config)
    if config.stage == "labels":
        return {"objects": slots, "targets": config.target_slots}
    text = cfg.image_tokens + slots * cfg.object_tokens + config.codec.text_tokens
    return {"tokens": text, "objects": slots, "gaze": GAZE}


class _Pictures(Samples):
    """Pixels stay bytes until a batch has left its worker.

    `config.crop_augment`: what training changes of object images (`CropAugment`).
    """

    def __init__(self, config: Any, cfg: Any):
        self.size, self.preprocessing = cfg.image_size, config.preprocess
        augment = configs.build(CropAugment, config.crop_augment.to_dict(), "config.crop_augment")
        check_augment(augment)
        self.augment = augment

    def pixels(
        self, example: Example, boxes: Iterable[Any], name: str, rng: np.random.Generator
    ) -> Record:
        """The picture as `image`, and crops of it as `objects`; boxes: xyxy in [0, 1] of it."""
        picture, made = example.pixels(), preprocess.get(self.preprocessing)
        where = f"{name}: object image"
        crops = [crop(picture, box, made, self.size, where, self.augment, rng) for box in boxes]
        return {"image": made.squash(picture, self.size), "objects": crops}

    def finish(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return normalized(batch, preprocess.get(self.preprocessing))


class Labels(_Pictures):
    """The stage that teaches the towers by named things, the first of them as object images too;
    things come in random order."""

    def __init__(self, config: Any, cfg: Any):
        super().__init__(config, cfg)
        self.words, self.slots = label_words(config, cfg), target_slots(config)
        self.shown = object_slots(config)

    def make(self, example: Example, rng: np.random.Generator) -> Record | None:
        named = named_boxes(example, self.words, self.slots, 1, rng)
        if named is None or example.image is None:
            return None
        order = np.arange(self.slots)
        known = int(named["label_mask"].sum())
        order[:known] = rng.permutation(known)
        named = {k: v[order] for k, v in named.items()}
        space = square(example.width, example.height)
        boxes = space.to_original(named["label_boxes"][: min(known, self.shown)])
        seen = self.pixels(example, boxes, f"example {example.id!r} of {example.source}", rng)
        objects = np.zeros((self.shown, self.size, self.size, 3), np.uint8)
        objects[: len(boxes)] = seen["objects"]
        return {**named, "image": seen["image"], "objects": objects}

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        return batching.stack(records)


class Language(Conversations, _Pictures):
    """The stages that train on answers. A batch has room for no object image, half of the slots, or
    all: few shapes, and nothing is looked at in vain."""

    def __init__(self, config: Any, cfg: Any, codec: Any):
        Conversations.__init__(self, config, cfg, codec)
        _Pictures.__init__(self, config, cfg)
        slots = codec.object_slots
        choices = [name for name in CHOICES if self.tasks.get(name, 0) > 0]
        if choices and config.options > slots:  # else most of them would be left out
            raise UserError(
                f"config.options={config.options}: {choices[0]} shows as many object images, but "
                f"there is room for config.codec.object_slots={slots}: lower one or raise the other"
            )
        self.slots: tuple[int, ...] = (0, -(-slots // 2), slots)
        self.gaze = Gaze(codec) if cfg.pointing_weight else None
        if jax.process_count() > 1:  # they do not see each other's rows, and shapes must agree
            self.slots = (slots,)

    def check_vocabulary(self, name: str, cfg: Any, codec: Any) -> None:
        """The codec has refused a vocabulary smaller than its tokenizer's."""

    def lengths(self, section: Any) -> list[int]:
        """Of whole sequences: object images matter as much as how long the text is."""
        return [size for size in section.buckets if size < self.codec.length]

    def encode(self, example: Example, rng: np.random.Generator, seen: Record) -> Record:
        if example.video:
            raise BadRecord(
                f"example {example.id!r} of {example.source}: is a video: TinyGroundingGPT takes "
                "pictures; leave its data set out"
            )
        record: Record = self.codec.encode(example, rng)
        return record | self.gaze(record, example) if self.gaze else record

    def complete(self, record: Record, example: Example, rng: np.random.Generator) -> Record | None:
        if example.image is None:
            return record | {"image": None, "objects": []}
        return record | self.pixels(example, record["object_boxes"], record["name"], rng)

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        most = max(len(r["object_boxes"]) for r in records)
        slots = next((n for n in self.slots if n >= most), self.slots[-1])
        names = [r["name"] for r in records]
        out: dict[str, np.ndarray] = self.codec.collate(records, self.sizes(records), slots, names)
        batching.refuse_empty_loss(out)
        out |= self.segments(records, out["tokens"].shape[1])
        if self.gaze:
            out |= collate_gaze(records)
        return batch(out, records, self.size)


def batch(text: dict[str, np.ndarray], records: Sequence[Any], size: int) -> dict[str, np.ndarray]:
    """The codec's arrays with the pixels of the rows: image uint8 [B,S,S,3], objects
    [B,O,S,S,3]; black where there is none."""
    slots = text["object_mask"].shape[1]
    image = np.zeros((len(records), size, size, 3), np.uint8)
    objects = np.zeros((len(records), slots, size, size, 3), np.uint8)
    for n, record in enumerate(records):
        if record["image"] is not None:
            image[n] = record["image"]
        for k, cut in enumerate(record["objects"]):
            objects[n, k] = cut
    kept = {k: v for k, v in text.items() if k != "object_boxes"}
    return kept | {"image": image, "objects": objects}


def normalized(
    batch: dict[str, np.ndarray], preprocessing: preprocess.Preprocessing
) -> dict[str, np.ndarray]:
    """The batch with float32 pixels."""
    return batch | {k: preprocessing.normalize(batch[k]) for k in ("image", "objects")}
