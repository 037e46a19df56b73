"""From a training config to its batches: which sources, which record, which collate.

A mixture is one text: `coco:a.json,images + scenes:seed=1,n=1000 * 0.5`, spaces around + and *.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mg_jax import config as configs
from mg_jax.data import batch as batching
from mg_jax.data.sources import Source, open_source
from mg_jax.data.tasks import converse, parse_tasks
from mg_jax.data.transforms import Augment, detection_record, detection_targets
from mg_jax.errors import UserError
from mg_jax.example import Example
from mg_jax.text import codecs, instructions, markup
from mg_jax.text.codecs.groma_gaze import GAZE
from mg_jax.text.instructions import Instructions
from mg_jax.text.tokenizer import Tokenizer
from mg_jax.vision import preprocess

DETECTION = "detection"  # the one stage without text
_DRAWS = 4  # conversations drawn about one picture until one fits
_NO_LIMIT = 10**9


def open_mixture(text: str) -> tuple[list[Source], list[float]]:
    """(sources, share of each that is used) of `config.data`.

    Raises UserError for an empty text, a share that is no positive number, an unknown source, or
    scene seeds that are kept for evaluation.
    """
    if not text.strip():
        raise UserError(
            "config.data is empty: say what to train on, for example "
            "--config.data=coco:annotations.json,images"
        )
    sources, ratios = [], []
    for part in re.split(r"\s+\+\s+", text.strip()):
        spec, *share = re.split(r"\s+\*\s+", part, maxsplit=1)
        try:
            ratio = float(share[0]) if share else 1.0
        except ValueError:
            ratio = 0.0
        if not ratio > 0:
            raise UserError(f"config.data: {part!r}: the share {share[0]!r} is no positive number")
        sources.append(open_source(spec, training=True))
        ratios.append(ratio)
    return sources, ratios


def open_batches(config: Any, cfg: Any) -> batching.BatchIterator:
    """The batches of a training config; `cfg` is the system's model config.

    Raises UserError for data, tokenizer or settings that do not fit together.
    """
    sources, ratios = open_mixture(config.data)
    if config.stage == DETECTION:
        make, collate = detection(config, cfg)
    else:
        make, collate = conversation(config, cfg)
    return batching.batches(
        sources,
        ratios,
        make,
        collate,
        config.batch_size,
        config.seed,
        single_source=config.single_source and len(sources) > 1,
        workers=config.loader.workers,
        threads=config.loader.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        finish=functools.partial(_normalized, preprocess.get(config.preprocess)),
    )


def _normalized(
    preprocessing: preprocess.Preprocessing, batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The batch with pixels that are still bytes normalised."""
    pixels = batch["pixels"]
    return (
        batch | {"pixels": preprocessing.normalize(pixels)} if pixels.dtype == np.uint8 else batch
    )


def detection(config: Any, cfg: Any) -> tuple[batching.MakeRecord, batching.Collate]:
    """make_record and collate of a stage that trains on boxes."""
    words = tuple(config.label_words)
    if len(words) != cfg.label_words:
        raise UserError(
            f"config.label_words names {len(words)} words, but config.model.label_words is "
            f"{cfg.label_words}: set the one to the other"
        )
    augment = configs.build(Augment, config.augment.to_dict(), "config.augment")
    make = functools.partial(
        detection_record,
        size=config.image_size,
        slots=config.target_slots,
        augment=augment.scaled(config.image_size),
        words=words,
    )
    return make, batching.stack


def conversation(config: Any, cfg: Any) -> tuple[batching.MakeRecord, batching.Collate]:
    """make_record and collate of a stage that trains on answers."""
    rest = config.codec
    if rest.too_long not in ("error", "skip"):
        raise UserError(f"config.codec.too_long: {rest.too_long!r} is not 'error' or 'skip'")
    if config.turns < 1:
        raise UserError(f"config.turns is {config.turns}: a conversation has at least one")
    codec = make_codec(config, cfg)
    if codec.tokenizer.vocab_size != cfg.lm.vocab:
        raise UserError(
            f"config.model.lm.vocab is {cfg.lm.vocab}, but the tokenizer {rest.tokenizer} has "
            f"{codec.tokenizer.vocab_size} pieces: set the one to the other"
        )
    if codec.length > cfg.lm.max_positions:
        raise UserError(
            f"config.codec.text_tokens: {codec.text_tokens} make sequences of {codec.length}, but "
            f"config.model.lm.max_positions is {cfg.lm.max_positions}: lower the one"
        )
    fixed = codec.length - codec.text_tokens
    shorter = {size for size in rest.buckets if size < rest.text_tokens}
    buckets = tuple(fixed + size for size in sorted({*shorter, rest.text_tokens}))
    if jax.process_count() > 1:
        buckets = buckets[-1:]  # processes do not see each other's rows, and shapes must agree
    slots = {"refer": rest.refer_slots, "ground": rest.ground_slots}
    limits = (buckets[-1], slots) if rest.too_long == "skip" else None
    if limits:
        codec.text_tokens = _NO_LIMIT  # measured here instead, where it is no error
    make = functools.partial(
        _conversation_record,
        tasks=parse_tasks(config.tasks, "config"),
        wording=instructions.get(config.instructions or config.system),
        turns=config.turns,
        codec=codec,
        gaze=cfg.pointing_weight > 0,
        preprocessing=config.preprocess,
        size=config.image_size,
        limits=limits,
        targets=config.target_slots if cfg.detection_weight else 0,
    )
    collate = functools.partial(_conversation_batch, codec=codec, buckets=buckets, slots=slots)
    return make, collate


def _conversation_record(
    example: Example,
    rng: np.random.Generator,
    *,
    tasks: Mapping[str, float],
    wording: Instructions,
    turns: int,
    codec: Any,
    gaze: bool,
    preprocessing: str,
    size: int,
    limits: tuple[int, dict[str, int]] | None,
    targets: int,
) -> dict[str, Any] | None:
    if example.turns:
        record = _encoded(example, rng, codec, limits, gaze)
    else:
        tasks = example.meta.get("tasks") or tasks
        record = None
        for _ in range(_DRAWS):
            asked = converse(example, rng, tasks, wording, turns)
            record = _longest(asked, rng, codec, limits, gaze) if asked else None
            if record or not asked:
                break
    if record is None:
        return None
    if targets:
        found = detection_targets(example, rng, targets)
        if found is None:
            return None
        record.update(found)
    record["pixels"] = preprocess.get(preprocessing).squash(example.pixels(), size)
    record["name"] = f"example {example.id!r} of {example.source}"
    return record


def _longest(
    example: Example,
    rng: np.random.Generator,
    codec: Any,
    limits: tuple[int, dict[str, int]] | None,
    gaze: bool,
) -> dict[str, Any] | None:
    """The encoded example with as many of its first turns as fit, None when not one does."""
    for count in range(len(example.turns), 0, -1):
        part = replace(example, turns=example.turns[:count])
        record = _encoded(part, rng, codec, limits, gaze)
        if record:
            return record
    return None


def _encoded(
    example: Example,
    rng: np.random.Generator,
    codec: Any,
    limits: tuple[int, dict[str, int]] | None,
    gaze: bool,
) -> dict[str, Any] | None:
    """What the codec makes of the example, None when that is past the limits."""
    if limits:
        length, slots = limits
        refer = sum(len(markup.regions_of(turn.user)) for turn in example.turns)
        ground = sum(len(markup.regions_of(turn.assistant or "")) for turn in example.turns)
        if refer > slots["refer"] or ground > slots["ground"]:
            return None
    record: dict[str, Any] = codec.encode(example, rng)
    if gaze:
        codec.add_gaze(record, example.turns, example.regions)
    if limits and (len(record["tokens"]) > length or len(record["ground_boxes"]) > slots["ground"]):
        return None
    return record


def _conversation_batch(
    records: list[dict[str, Any]], *, codec: Any, buckets: Sequence[int], slots: dict[str, int]
) -> dict[str, np.ndarray]:
    out = codec.collate(
        records,
        buckets=buckets,
        refer_slots=slots["refer"],
        ground_slots=slots["ground"],
        names=[r["name"] for r in records],
    )
    batching.refuse_empty_loss(out)
    arrays = ("pixels", "boxes", "region_mask", "head")
    return out | {k: np.stack([r[k] for r in records]) for k in arrays if k in records[0]}


def make_codec(config: Any, cfg: Any) -> Any:
    """The codec of the config's system. Raises UserError when there is no tokenizer."""
    folder = tokenizer_folder(config)
    if folder is None:
        raise UserError(
            f"config.codec.tokenizer: {config.codec.tokenizer!r} is no folder with a "
            "tokenizer.model: pass --config.codec.tokenizer=FOLDER"
        )
    return codecs.get(config.system)(Tokenizer.load(folder), **_codec_options(config, cfg))


def tokenizer_folder(config: Any) -> Path | None:
    """Folder of the tokenizer that the config names (a folder or a shipped name), or None."""
    name = config.codec.tokenizer
    if not name:
        return None
    shipped = Path(str(resources.files("mg_jax"))) / "releases" / name
    for folder in (Path(name), shipped):
        for path in (folder, folder / "tokenizer"):
            if (path / "tokenizer.model").is_file():
                return path
    return None


def release_fields(config: Any, cfg: Any) -> dict[str, Any]:
    """What a release's config.json says of pictures and text: `preprocess` and `codec`."""
    return {"preprocess": config.preprocess, "codec": _codec_options(config, cfg)}


def batch_sizes(config: Any, cfg: Any) -> dict[str, int]:
    """The sizes of a batch, as the system's `example_batch` takes them."""
    if config.stage == DETECTION:
        return {"targets": config.target_slots}
    joint = {"targets": config.target_slots} if cfg.detection_weight else {}
    if cfg.pointing_weight:
        joint |= {"gaze": GAZE}
    return joint | {
        "tokens": cfg.image_tokens + 2 * cfg.max_regions + config.codec.text_tokens,
        "refer": config.codec.refer_slots,
        "ground": config.codec.ground_slots,
    }


def _codec_options(config: Any, cfg: Any) -> dict[str, Any]:
    return {
        "template": config.codec.template,
        "image_tokens": cfg.image_tokens,
        "max_regions": cfg.max_regions,
        "text_tokens": config.codec.text_tokens,
        "refer_format": config.codec.refer_format,
    }
