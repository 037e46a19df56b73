"""Ferret: a picture of any resolution, or text alone; regions of every kind as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.assistants.base import (
    Adapter,
    Row,
    View,
    boxed_notes,
    cells,
    object_notes,
    picture,
    slots,
    turns,
)
from mg_jax.data.regions import rasterise, sample
from mg_jax.data.samples.ferret import Picture, arrays, normalised
from mg_jax.errors import UserError
from mg_jax.example import Query, Region
from mg_jax.models import System
from mg_jax.vision import anyres

SEED = 0  # of the points that stand for a region: the same region is always seen alike


class FerretAdapter(Adapter):
    """Points, boxes, scribbles, polygons and masks are sampled from their own pixels."""

    text_alone = True

    def __init__(self, system: System, codec: Any, settings: Mapping[str, Any], detect: Any = None):
        super().__init__(system, codec, settings, detect)
        # a release of the first stage has no parameters for tiles
        self.tiled = bool(system.cfg.grids) and settings.get("stage") != "caption"

    @property
    def end_id(self) -> int:
        return int(self.codec.end_id)

    @property
    def pad_id(self) -> int:
        return int(self.codec.pad_id)

    @property
    def visual(self) -> tuple[int, ...]:
        return (self.codec.image_id,)

    def read(self, query: Query) -> Row:
        if query.video is not None:
            raise UserError("ferret answers about pictures, not about videos: pass an image")
        cfg = self.system.cfg
        width, height, seen = 1, 1, None
        arrays: dict[str, Any] = {}
        if query.image is not None:
            pixels = picture(query.image)
            height, width = pixels.shape[:2]
            seen = Picture(width, height, cfg, self.tiled)
            arrays = seen.arrays(pixels, cfg)
        elif query.regions:
            raise UserError("regions are of a picture, and there is none: pass an image")
        arrays |= self.codec.encode_prompt(
            turns(query),
            query.regions,
            size=(width, height),
            image_tokens=seen.tokens if seen else 0,
        )
        drawn = [self._sampled(query.regions[k], k, width, height) for k in arrays.pop("refer")]
        arrays |= {"points": [p for p, _ in drawn], "point_count": [n for _, n in drawn]}
        notes = object_notes(query)
        if self.codec.refer == "coordinates":  # which has points too
            notes += boxed_notes([r for r in query.regions if r.kind != "point"])
        return Row(query, arrays, width, height, tuple(notes))

    def _sampled(
        self, region: Region, number: int, width: int, height: int
    ) -> tuple[np.ndarray, int]:
        try:
            patch = rasterise(region, width, height)
        except UserError as e:
            raise UserError(f"region {number}: {e}") from None
        return sample(patch, np.random.default_rng(SEED), self.system.cfg.sampler.points)

    def collate(self, rows: Sequence[Row], room: int) -> dict[str, np.ndarray]:
        samples = [dict(r.arrays) for r in rows]
        cfg = self.system.cfg
        tiles = max([1, *(len(s.get("tiles", ())) for s in samples)])
        tiles = anyres.bucket(tiles, cfg.max_tiles) if self.tiled else 0
        length = self._length(samples, tiles, room)
        regions = max(len(s["points"]) for s in samples)
        names = [f"question {n}" for n in range(len(rows))]
        batch = self.codec.collate(samples, [length])
        count = slots(regions) if regions else 0
        return normalised(batch | arrays(samples, cfg, tiles, count, names), cfg)

    def _length(self, samples: Sequence[Mapping[str, Any]], tiles: int, room: int) -> int:
        """Length of a batch whose pictures have up to `tiles` tiles: as in training their tokens
        and one of few lengths of text, and where it can be no more than `room`."""
        pictures = any("low" in s for s in samples)
        base = self.system.cfg.most_tokens(tiles) if pictures else 0
        longest, text = max(len(s["tokens"]) for s in samples), self.codec.text_tokens
        steps = (base + text // n for n in (4, 2, 1))
        return max(longest, min([room, *(n for n in steps if n >= longest)]))

    def views(self, row: Row) -> list[View]:
        """The picture, seen whole and, over that, in tiles."""
        if row.query.image is None:
            return []
        cfg = self.system.cfg
        seen = Picture(row.width, row.height, cfg, self.tiled)
        places = cells(cfg.low_side, cfg.low_side)
        if seen.tiles:
            columns, rows = (n * cfg.token_side for n in cfg.grids[seen.grid])
            merged = cells(rows, columns)
            if seen.window:
                top, left, down, across = seen.window
                merged = merged.reshape(rows, columns, 4)
                merged = merged[top : top + down, left : left + across]
                ends = np.zeros((down, 1, 4))  # of rows: vectors that are of no place
                merged = np.concatenate([merged, ends], 1).reshape(-1, 4)
            order = 1 if cfg.image_order == "whole_first" else -1
            places = np.concatenate([places, merged][::order])
        return [View("picture", picture(row.query.image), self.codec.image_id, 0, places)]

    def answer(self, row: Row, ids: np.ndarray, logprobs: np.ndarray, kept: Any) -> Answer:
        answer: Answer = self.codec.decode(
            ids, logprobs, row.width, row.height, question=row.query.prompt, notes=row.notes
        )
        return answer
