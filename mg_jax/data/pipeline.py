"""From a training config to its batches: which sources, and whose samples of them.

A mixture is one text: `coco:a.json,images + scenes:seed=1,n=1000 * 0.5`, spaces around + and *.
"""

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from mg_jax.data import batch as batching
from mg_jax.data import samples
from mg_jax.data.detections import LIMIT
from mg_jax.data.order import Groups
from mg_jax.data.samples.base import Conversations, Samples
from mg_jax.data.sources import Source, open_source
from mg_jax.data.sources.features import FeatureSource
from mg_jax.data.sources.split import by_medium, has_only_texts
from mg_jax.errors import UserError
from mg_jax.text import codecs
from mg_jax.text.bpe import load_tokenizer

WITHOUT_TEXT = ("detection", "labels")  # stages of the systems that have no codec
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")


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
    found, shares = open_mixture(config.data)
    check_features(found, config)
    rows = open_samples(config, cfg)
    sources, ratios = apart(found, shares, config)
    if config.pack:
        sources = packed(sources, rows, config)
    groups = open_groups(sources, rows, config) if config.group_by_length else None
    return batching.batches(
        sources,
        ratios,
        rows.make,
        rows.collate,
        config.batch_size,
        config.seed,
        single_source=config.single_source and len(sources) > 1,
        workers=config.loader.workers,
        threads=config.loader.threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        groups=groups,
        finish=rows.finish,
    )


def apart(
    sources: Sequence[Source], ratios: Sequence[float], config: Any
) -> tuple[list[Source], list[float]]:
    """The sources with their shares, those of several media as one for each where a batch shall
    have but one; texts without a picture may share one with pictures if lengths are not grouped."""
    texts = config.group_by_length or config.pack
    if not texts and not (config.single_source and config.media == "video"):
        return list(sources), list(ratios)
    parts = [by_medium(source, texts=texts) for source in sources]
    shares = [ratio for ratio, own in zip(ratios, parts, strict=True) for _ in own]
    return [part for own in parts for part in own], shares


def packed(sources: Sequence[Source], rows: Samples, config: Any) -> list[Source]:
    """The sources, those of text alone as rows of several conversations.

    Raises UserError for a stage without text, or where no source is of text alone.
    """
    if not isinstance(rows, Conversations):
        raise UserError(f"config.pack: stage {config.stage} has no text: set it to False")
    out = [rows.packed(source) if has_only_texts(source) else source for source in sources]
    if out == list(sources):
        raise UserError(
            "config.pack: no data set is known to hold conversations without a picture: set it to "
            "False (or make shards of older builds anew by launch.build_data)"
        )
    return out


def open_groups(sources: Sequence[Source], rows: Samples, config: Any) -> Groups:
    """How batches of a config with group_by_length are put together. Sources that do not tell
    their medium are not mixed with others; with single_source none is.

    Raises UserError for a stage without text.
    """
    if not isinstance(rows, Conversations):
        raise UserError(
            f"config.group_by_length: stage {config.stage} has no text: set it to False"
        )
    media = []
    for n, source in enumerate(sources):
        found = None if config.single_source else source.measures()
        media.append(-1 - n if found is None else int(found[0, 0]))
    return Groups(media, [rows.planned(source) for source in sources], rows.buckets)


def check_features(sources: Sequence[Source], config: Any) -> None:
    """Raises UserError when sources of features do not fit the config, or stand beside others."""
    cached = [source for source in sources if isinstance(source, FeatureSource)]
    if not cached:
        return
    if len(cached) < len(sources):
        raise UserError(
            "config.data: features: and data sets of pictures cannot be mixed: run "
            "launch.features on all of them"
        )
    if "taps" not in config.model:
        raise UserError(f"config.data: features: are read by Groma alone, not by {config.system}")
    if any(re.fullmatch(pattern, "vision/positions") for pattern in config.trainable):
        raise UserError(
            "config.trainable names the encoder, but config.data holds outputs that it had before"
        )
    for source in cached:
        stated = {key: config[key] for key in ("trunk", "image_size", "preprocess")}
        for key, value in {**stated, "model.taps": list(config.model.taps)}.items():
            made = source.made.get(key.removeprefix("model."))
            if made != value:
                raise UserError(
                    f"{source.folder}: made with {key}={made!r}, but config.{key} is {value!r}: "
                    "run launch.features again, or set the one to the other"
                )


def open_samples(config: Any, cfg: Any) -> Samples:
    """How the stage of a config makes batches of examples. Raises UserError as `open_batches`."""
    codec = None if config.stage in WITHOUT_TEXT else make_codec(config, cfg)
    found: Samples = samples.get(config.system).samples(config, cfg, codec)
    return found


def make_codec(config: Any, cfg: Any) -> Any:
    """The codec of the config's system. Raises UserError when there is no tokenizer."""
    folder = tokenizer_folder(config)
    if folder is None:
        raise UserError(
            f"config.codec.tokenizer: {config.codec.tokenizer!r} is no folder with a "
            f"{' or '.join(_TOKENIZERS)}: pass --config.codec.tokenizer=FOLDER"
        )
    options = samples.get(config.system).codec_options(config, cfg)
    return codecs.build(config.system, load_tokenizer(folder), options)


def tokenizer_folder(config: Any) -> Path | None:
    """Folder of the tokenizer that the config names (a folder or a shipped name), or None."""
    name = config.codec.tokenizer
    if not name:
        return None
    shipped = Path(str(resources.files("mg_jax"))) / "releases" / name
    for folder in (Path(name), shipped):
        for path in (folder, folder / "tokenizer"):
            if any((path / file).is_file() for file in _TOKENIZERS):
                return path
    return None


def release_fields(config: Any, cfg: Any) -> dict[str, Any]:
    """What a release's config.json says of pictures and text: `preprocess`, `codec`, `detector`
    where there is one, and `box_limit` where it is not the usual one."""
    options = samples.get(config.system).codec_options(config, cfg)
    detector = {"detector": config.detector} if config.detector else {}
    limit = {"box_limit": config.box_limit} if config.box_limit != LIMIT else {}
    return {"preprocess": config.preprocess, "codec": options, **detector, **limit}


def batch_sizes(config: Any, cfg: Any) -> dict[str, int]:
    """The sizes of a batch, as the system's `example_batch` takes them."""
    sizes: dict[str, int] = samples.get(config.system).batch_sizes(config, cfg)
    return sizes
