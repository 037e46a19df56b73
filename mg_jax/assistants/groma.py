"""Groma: one squashed picture; regions are its own proposals and the user's boxes."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mg_jax.answer import Answer
from mg_jax.assistants.base import (
    Adapter,
    Proposals,
    Row,
    View,
    boxed_notes,
    cells,
    object_notes,
    picture,
    slots,
    text_lengths,
    turns,
)
from mg_jax.boxes import BoxSpace, cxcywh_to_xyxy
from mg_jax.errors import UserError
from mg_jax.example import Query


class GromaAdapter(Adapter):
    """Without a codec it proposes regions alone."""

    can = frozenset({"proposals"})

    @property
    def end_id(self) -> int:
        return int(self.codec.tokenizer.eos_id)

    @property
    def pad_id(self) -> int:
        return int(self.codec.tokenizer.pad_id)

    @property
    def visual(self) -> tuple[int, ...]:
        return self.codec.ids["<image>"], self.codec.ids["<region>"]

    def read(self, query: Query) -> Row:
        if query.video is not None:
            raise UserError("groma answers about pictures, not about videos: pass an image")
        pixels = picture(query.image)
        encoded = self.codec.encode_prompt(turns(query), query.regions)
        notes = (*object_notes(query), *boxed_notes(query.regions))
        height, width = pixels.shape[:2]
        return Row(query, encoded | {"pixels": self._pixels(pixels)}, width, height, notes)

    def collate(self, rows: Sequence[Row], room: int) -> dict[str, np.ndarray]:
        samples = [r.arrays for r in rows]
        room = [slots(max(len(s[f"{k}_boxes"]) for s in samples)) for k in ("refer", "ground")]
        batch: dict[str, np.ndarray] = self.codec.collate(samples, text_lengths(self.codec), *room)
        return batch | {"pixels": np.stack([s["pixels"] for s in samples])}

    def keep(self, aux: Mapping[str, Any]) -> Any:
        return aux["regions"]

    def answer(self, row: Row, ids: np.ndarray, logprobs: np.ndarray, kept: Any) -> Answer:
        answer: Answer = self.codec.decode(
            ids,
            np.clip(cxcywh_to_xyxy(kept.boxes), 0.0, 1.0),
            kept.scores,
            kept.valid,
            row.width,
            row.height,
            question=row.query.prompt,
            notes=row.notes,
        )
        return answer

    def views(self, row: Row) -> list[View]:
        side = math.isqrt(self.codec.image_tokens)
        token = self.codec.ids["<image>"]
        return [View("picture", picture(row.query.image), token, 0, cells(side, side))]

    def propose(self, params: Any, images: Sequence[Any]) -> Proposals:
        found = []
        for image in images:
            pixels = picture(image)
            space = BoxSpace.original(pixels.shape[1], pixels.shape[0])
            regions = jax.device_get(self._select(params, self._pixels(pixels)[None]))
            n = int(regions.valid[0].sum())
            boxes = np.clip(cxcywh_to_xyxy(regions.boxes[0, :n]), 0.0, 1.0)
            found.append((space.to_pixels(boxes), regions.scores[0, :n]))
        return found

    def _pixels(self, image: np.ndarray) -> np.ndarray:
        return self.preprocess(image, self.system.cfg.image_size)

    @functools.cached_property
    def _select(self):
        model = self.system.module

        def run(params, pixels):
            def select(m):
                return m.select(m.detect(pixels))

            return model.apply({"params": params}, method=select)

        return jax.jit(run)
