"""Ferret: the whole picture squeezed to a square, and tiles of it by a grid that fits its shape.

A batch has as many tile slots as its largest picture needs (anyres.BUCKETS), and is as long as
their tokens and the smallest text bucket that holds its rows. So a data set for each count of
tiles, with config.single_source, wastes none. Regions are sampled here, from the pixels of the
original picture. Stage "caption" sees whole pictures alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from mg_jax.data import batch as batching
from mg_jax.data import regions as places
from mg_jax.data.samples.base import Conversations, Record, Samples, stacked, target_slots
from mg_jax.data.samples.ferret_teaching import Gaze
from mg_jax.data.samples.mg_llava_teaching import label_words, named_boxes
from mg_jax.errors import BadRecord, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup
from mg_jax.text.codecs.rows import GAZE, check_length, check_slots, collate_gaze
from mg_jax.vision import anyres, preprocess

POINTED = ("box", "mask")  # kinds of regions that may be shown as points instead
SQUASH = "clip_squash"  # pictures have no other form here: sides and pixels are of config.model


def samples(config: Any, cfg: Any, codec: Any) -> Samples:
    """Those of config.stage."""
    return Labels(config, cfg) if codec is None else Language(config, cfg, codec)


def codec_options(config: Any, cfg: Any) -> dict[str, Any]:
    """Options of FerretCodec."""
    described = cfg.regions != "none" and config.stage != "caption"
    return {
        "template": config.codec.template,
        "image_tokens": cfg.largest if tiled(config, cfg) else cfg.image_tokens(),
        "text_tokens": config.codec.text_tokens,
        "refer": config.codec.refer_format if described else "coordinates",
        "vocab": cfg.lm.vocab,
        "region_token": cfg.region_token,
    }


def batch_sizes(config: Any, cfg: Any) -> dict[str, int]:
    """Text length, slots of tiles, regions and looks of the largest batch; of stage "labels" of
    tiles and labelled things."""
    if config.stage == "labels":
        return {"tiles": cfg.max_tiles, "targets": config.target_slots}
    options = codec_options(config, cfg)
    return {
        "tokens": options["image_tokens"] + config.codec.text_tokens,
        "tiles": cfg.max_tiles,
        "regions": config.codec.refer_slots,
        "gaze": GAZE,
    }


def tiled(config: Any, cfg: Any) -> bool:
    """Whether pictures are cut into tiles."""
    return bool(cfg.grids) and config.stage != "caption"


class Picture:
    """How a picture of some size is cut, and how many tokens it has.

    grid: index of its grid in cfg.grids, and window (see anyres.window) where those are used.
    first: numbers of the first vector of the whole picture and of the tiles.
    """

    def __init__(self, width: int, height: int, cfg: Any, tiles: bool):
        self.grid = 0
        self.window: tuple[int, int, int, int] | None = None
        self.sides = [(cfg.low_side, cfg.low_side)]  # (rows, columns) of each map of tokens
        chosen: tuple[int, int] | None = None
        if tiles:
            self.grid = anyres.select(width, height, cfg.grids, cfg.tile_size)
            chosen = cfg.grids[self.grid]
            self.sides.append((chosen[1] * cfg.token_side, chosen[0] * cfg.token_side))
            if cfg.merge == "spatial_unpad":
                self.window = anyres.window(width, height, chosen, cfg.token_side)
        self.tiles = chosen[0] * chosen[1] if chosen else 0
        self.tokens = int(cfg.image_tokens(chosen, self.window))
        self.first = (cfg.whole_at(self.tokens) if chosen else 0, cfg.tiles_at())

    def cell(self, x: float, y: float) -> int:
        """Number of the visual vector over a point in [0, 1]: a tile's, which sees most, but the
        whole picture's where there are no tiles or the place is cut away."""
        rows, columns = self.sides[-1]
        row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
        across = columns
        if self.window:
            top, left, rows, columns = self.window
            row, column, across = row - top, column - left, columns + 1
        if len(self.sides) == 1:
            return row * across + column
        if not (0 <= row < rows and 0 <= column < columns):
            side = self.sides[0][0]
            own = min(int(y * side), side - 1) * side + min(int(x * side), side - 1)
            return self.first[0] + own
        return self.first[1] + row * across + column

    def arrays(self, pixels: np.ndarray, cfg: Any) -> Record:
        """The pixels uint8 [h,w,3] as the model sees them, still bytes."""
        grids = [cfg.grids[self.grid]] if self.tiles else []
        made: Record = anyres.prepare(pixels, cfg.low_size, grids, cfg.tile_size)
        return made | {"grid": self.grid, "window": self.window}


class _Pictures(Samples):
    """Pixels stay bytes until a batch has left its worker."""

    def __init__(self, config: Any, cfg: Any):
        if config.preprocess != SQUASH:
            raise UserError(
                f"config.preprocess: {config.preprocess!r} is of other systems; Ferret squeezes "
                f"pictures to squares: write {SQUASH}"
            )
        self.cfg, self.tiled = cfg, tiled(config, cfg)
        self.fixed = jax.process_count() > 1  # they do not see each other's rows
        self.points = float(config.points)
        if not 0 <= self.points <= 1:
            raise UserError(f"config.points: {config.points} is no share from 0 to 1")

    def drawn(self, found: Sequence[Region], example: Example, rng: np.random.Generator) -> Record:
        """`points` and `point_count` of regions, lists of one entry each."""
        size, count = (example.width, example.height), self.cfg.sampler.points
        try:
            pairs = [places.sample(places.rasterise(r, *size), rng, count) for r in found]
        except UserError as e:
            raise BadRecord(f"example {example.id!r} of {example.source}: {e}") from None
        return {"points": [p for p, _ in pairs], "point_count": [n for _, n in pairs]}

    def tile_slots(self, records: Sequence[Record]) -> int:
        """Slots for the tiles of these rows, as few as their largest picture needs."""
        most = self.cfg.max_tiles if self.fixed else max(len(r.get("tiles", ())) for r in records)
        return anyres.bucket(max(most, 1), self.cfg.max_tiles) if self.tiled else 0

    def finish(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return normalised(batch, self.cfg)


class Labels(_Pictures):
    """The stage that teaches the encoders, and the sampler, by named things: each is a region too,
    a share of them (config.points) shown as a point."""

    def __init__(self, config: Any, cfg: Any):
        super().__init__(config, cfg)
        self.words, self.slots = label_words(config, cfg), target_slots(config)

    def make(self, example: Example, rng: np.random.Generator) -> Record | None:
        named = named_boxes(example, self.words, self.slots, None, rng)
        if named is None or example.image is None:
            return None
        found = [Region.from_box(b, clip=True) for b in named["label_boxes"][named["label_mask"]]]
        found = [_point(r, example, rng) if rng.random() < self.points else r for r in found]
        picture = Picture(example.width, example.height, self.cfg, self.tiled)
        name = f"example {example.id!r} of {example.source}"
        seen = picture.arrays(example.pixels(), self.cfg)
        return {**named, **self.drawn(found, example, rng), **seen, "name": name}

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        slots, names = self.tile_slots(records), [r["name"] for r in records]
        regions = self.slots if self.cfg.regions != "none" else 0
        named = stacked(records, "label_boxes", "label_mask", "labels")
        return named | arrays(records, self.cfg, slots, regions, names)


class Language(Conversations, _Pictures):
    """The stages that train on answers."""

    def __init__(self, config: Any, cfg: Any, codec: Any):
        Conversations.__init__(self, config, cfg, codec)
        _Pictures.__init__(self, config, cfg)
        self.gaze = Gaze(codec) if cfg.pointing_weight else None
        self.texts = sorted({*(n for n in config.codec.buckets if n < self.text_tokens),
                             self.text_tokens})  # fmt: skip
        self.slots = config.codec.refer_slots
        if self.slots < 0:
            raise UserError(f"config.codec.refer_slots: {self.slots}; give a count from 0 up")
        self.described = codec.refer != "coordinates" and config.stage != "caption"

    def check_vocabulary(self, name: str, cfg: Any, codec: Any) -> None:
        """Nothing more: the codec has looked, and language models may have rows to spare."""

    def prepare(self, example: Example, rng: np.random.Generator) -> Record:
        if example.video:
            raise BadRecord(
                f"example {example.id!r} of {example.source}: is a video, but Ferret sees "
                "pictures: leave its data set out"
            )
        if example.image is None:
            return {"picture": None}
        return {"picture": Picture(example.width, example.height, self.cfg, self.tiled)}

    def encode(self, example: Example, rng: np.random.Generator, seen: Record) -> Record:
        example = pointed(example, rng, self.points)
        picture = seen["picture"]
        record: Record = self.codec.encode(example, image_tokens=picture.tokens if picture else 0)
        record["places"] = tuple(example.regions[k] for k in record.pop("refer"))
        if self.skip:
            text = len(record["tokens"]) - (picture.tokens if picture else 0)
            where = f"example {example.id!r} of {example.source}"
            check_length(text, self.text_tokens, where)
            check_slots("refer", len(record["places"]), self.slots, where)
        return record | self.gaze(record, example, picture) if self.gaze else record

    def complete(self, record: Record, example: Example, rng: np.random.Generator) -> Record | None:
        picture, found = record.pop("picture"), record.pop("places")
        record |= self.drawn(found, example, rng)
        return record | (picture.arrays(example.pixels(), self.cfg) if picture else {})

    def collate(self, records: list[Record]) -> dict[str, np.ndarray]:
        slots = self.tile_slots(records)
        size = self.size(records, slots) if self.alone else self.sizes(records)[-1]
        names = [r["name"] for r in records]
        out: dict[str, np.ndarray] = self.codec.collate(records, [size], names)
        batching.refuse_empty_loss(out)
        out |= self.segments(records, out["tokens"].shape[1])
        if self.gaze:
            out |= collate_gaze(records, GAZE)
        described = self.slots if self.described else 0
        if self.described:  # without slots `arrays` has no look at them
            for name, record in zip(names, records, strict=True):
                check_slots("refer", len(record["points"]), self.slots, name)
        return out | arrays(records, self.cfg, slots, described, names)

    def size(self, records: Sequence[Record], slots: int) -> int:
        """Length of a batch whose pictures have up to `slots` tiles."""
        longest, base = max(len(r["tokens"]) for r in records), self.cfg.most_tokens(slots)
        return min([base + n for n in self.texts if base + n >= longest], default=self.buckets[-1])


def pointed(example: Example, rng: np.random.Generator, share: float) -> Example:
    """The example with `share` of its questions, drawn, pointing at points in the place of boxes
    and masks; a question has one kind (spec 9). Answers keep their boxes."""
    found = list(example.regions)
    turns = []
    for turn in example.turns:
        flip = share > 0 and rng.random() < share
        twins: dict[int, int] = {}
        if flip:
            for k in dict.fromkeys(markup.regions_of(turn.user)):
                if k < len(example.regions) and found[k].kind in POINTED:
                    twins[k] = len(found)
                    found.append(_point(found[k], example, rng))
        turns.append(replace(turn, user=_renamed(turn, twins)) if twins else turn)
    return replace(example, turns=tuple(turns), regions=tuple(found))


def _point(region: Region, example: Example, rng: np.random.Generator) -> Region:
    try:
        return places.as_point(region, example.width, example.height, rng)
    except UserError as e:
        raise BadRecord(f"example {example.id!r} of {example.source}: {e}") from None


def _renamed(turn: Turn, twins: dict[int, int]) -> str:
    """A question with other numbers for some regions."""
    return markup.format(
        replace(s, regions=tuple(twins.get(k, k) for k in s.regions))
        for s in markup.parse(turn.user)
    )


def arrays(
    records: Sequence[Record], cfg: Any, tiles: int, regions: int, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """What is not text of the rows: low uint8 [B,S,S,3]; with `tiles` slots tiles uint8
    [B,N,s,s,3], grid [B] and, for merge "spatial_unpad", window [B,4]; with `regions` slots points
    [B,Q,P,2] float32 and point_count [B,Q] int32. Rows without a picture are black.

    Raises UserError naming the row with more regions than slots.
    """
    rows, s, p = len(records), cfg.tile_size, cfg.sampler.points
    out = {"low": np.zeros((rows, cfg.low_size, cfg.low_size, 3), np.uint8)}
    if tiles:
        out["tiles"] = np.zeros((rows, tiles, s, s, 3), np.uint8)
        out["grid"] = np.zeros(rows, np.int32)
        if cfg.merge == "spatial_unpad":
            out["window"] = np.zeros((rows, 4), np.int32)
    if regions:
        out["points"] = np.zeros((rows, regions, p, 2), np.float32)
        out["point_count"] = np.zeros((rows, regions), np.int32)
    for n, record in enumerate(records):
        if "low" in record:
            out["low"][n] = record["low"]
            if tiles:
                out["tiles"][n, : len(record["tiles"])] = record["tiles"]
                out["grid"][n] = record["grid"]
                if record["window"] is not None:
                    out["window"][n] = record["window"]
        if (count := len(record["points"])) and regions:
            check_slots("refer", count, regions, names[n])
            out["points"][n, :count] = record["points"]
            out["point_count"][n, :count] = record["point_count"]
    return out


def normalised(batch: dict[str, np.ndarray], cfg: Any) -> dict[str, np.ndarray]:
    """The batch with its pixels as float32."""
    clip = preprocess.CLIP_MEAN, preprocess.CLIP_STD
    imagenet = preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD
    out = batch | {"low": preprocess.normalize(batch["low"], *clip)}
    if "tiles" in batch:
        kind = imagenet if cfg.tile_mean_std == "imagenet" else clip
        out["tiles"] = preprocess.normalize(batch["tiles"], *kind)
    return out
