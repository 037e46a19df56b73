"""Groma: squashed pictures; boxes to detect, or conversations with boxes of two kinds."""

from typing import Any

import numpy as np

from mg_jax import config as configs
from mg_jax.data import batch as batching
from mg_jax.data.samples.base import Conversations, Record, Samples, stacked, target_slots
from mg_jax.data.transforms import Augment, detection_record, detection_targets
from mg_jax.errors import UserError
from mg_jax.example import Example
from mg_jax.text import markup
from mg_jax.text.codecs.rows import GAZE, check_slots
from mg_jax.vision import preprocess


def samples(config: Any, cfg: Any, codec: Any) -> Samples:
    """Those of config.stage."""
    return Detection(config, cfg) if codec is None else Language(config, cfg, codec)


def codec_options(config: Any, cfg: Any) -> dict[str, Any]:
    """Options of GromaCodec."""
    return {
        "template": config.codec.template,
        "image_tokens": cfg.image_tokens,
        "max_regions": cfg.max_regions,
        "text_tokens": config.codec.text_tokens,
        "refer_format": config.codec.refer_format,
    }


def batch_sizes(config: Any, cfg: Any) -> dict[str, int]:
    """Slots of detection targets, text, refer and ground boxes, and of looks."""
    if config.stage == "detection":
        return {"targets": config.target_slots}
    joint = {"targets": config.target_slots} if cfg.detection_weight else {}
    if cfg.pointing_weight:
        joint |= {"gaze": GAZE}
    return joint | {
        "tokens": cfg.image_tokens + 2 * cfg.max_regions + config.codec.text_tokens,
        "refer": config.codec.refer_slots,
        "ground": config.codec.ground_slots,
    }


class _Pictures(Samples):
    """Pixels stay bytes until a batch has left its worker.

    An example of a folder of features brings the encoder's hidden states in their place, as
    `meta["states"]` float16 [M, P, C]; its picture is then not read, nor cut or mirrored.
    """

    def __init__(self, config: Any):
        self.preprocessing = config.preprocess
        self.size = config.image_size

    def finish(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixels = batch.get("pixels")
        if pixels is None or pixels.dtype != np.uint8:
            return batch
        return batch | {"pixels": preprocess.get(self.preprocessing).normalize(pixels)}


class Detection(_Pictures):
    """The stage that trains on boxes."""

    def __init__(self, config: Any, cfg: Any):
        super().__init__(config)
        self.words = tuple(config.label_words)
        if len(self.words) != cfg.label_words:
            raise UserError(
                f"config.label_words names {len(self.words)} words, but config.model.label_words "
                f"is {cfg.label_words}: set the one to the other"
            )
        augment = configs.build(Augment, config.augment.to_dict(), "config.augment")
        self.augment = augment.scaled(config.image_size)
        self.slots = target_slots(config)

    def make(self, example: Example, rng: np.random.Generator) -> Record | None:
        if "states" in example.meta:
            found = detection_targets(example, rng, self.slots, self.words)
            return found and {**found, "states": np.asarray(example.meta["states"])}
        return detection_record(
            example, rng, size=self.size, slots=self.slots, augment=self.augment, words=self.words
        )

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        return stacked(records, "pixels", "states", "boxes", "region_mask", "head", "labels")


class Language(Conversations, _Pictures):
    """The stages that train on answers."""

    takes_texts = False

    def __init__(self, config: Any, cfg: Any, codec: Any):
        Conversations.__init__(self, config, cfg, codec)
        _Pictures.__init__(self, config)
        self.slots = {"refer": config.codec.refer_slots, "ground": config.codec.ground_slots}
        self.gaze = cfg.pointing_weight > 0
        self.targets = target_slots(config) if cfg.detection_weight else 0

    def encode(self, example: Example, rng: np.random.Generator, seen: Record) -> Record:
        where = f"example {example.id!r} of {example.source}"
        if self.skip:
            refer = sum(len(markup.regions_of(turn.user)) for turn in example.turns)
            ground = sum(len(markup.regions_of(turn.assistant or "")) for turn in example.turns)
            check_slots("refer", refer, self.slots["refer"], where)
            check_slots("ground", ground, self.slots["ground"], where)
        record: Record = self.codec.encode(example, rng)
        if self.gaze:
            self.codec.add_gaze(record, example.turns, example.regions)
        if self.skip:
            check_slots("ground", len(record["ground_boxes"]), self.slots["ground"], where)
        return record

    def complete(self, record: Record, example: Example, rng: np.random.Generator) -> Record | None:
        if self.targets:
            found = detection_targets(example, rng, self.targets)
            if found is None:
                return None
            record |= found
        if "states" in example.meta:
            return record | {"states": np.asarray(example.meta["states"])}
        pixels = preprocess.get(self.preprocessing).squash(example.pixels(), self.size)
        return record | {"pixels": pixels}

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        out = self.codec.collate(
            records,
            buckets=self.sizes(records),
            refer_slots=self.slots["refer"],
            ground_slots=self.slots["ground"],
            names=[r["name"] for r in records],
        )
        batching.refuse_empty_loss(out)
        return out | stacked(records, "pixels", "states", "boxes", "region_mask", "head")
