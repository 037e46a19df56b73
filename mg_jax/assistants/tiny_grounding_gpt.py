"""TinyGroundingGPT: a picture with crops of it as object images, or text alone."""

import math
from collections.abc import Sequence

import numpy as np

from mg_jax.answer import Answer
from mg_jax.assistants.base import (
    Adapter,
    Row,
    View,
    batch_length,
    boxed_notes,
    cells,
    padded_cells,
    picture,
    turns,
)
from mg_jax.data.crops import crop
from mg_jax.data.samples.tiny_grounding_gpt import batch, normalized
from mg_jax.errors import UserError
from mg_jax.example import Query


class TinyGroundingGPTAdapter(Adapter):
    """Regions are shown as crops where the question says `<object:0>`, else written as text."""

    preprocessing = "clip_pad"
    text_alone = True
    can = frozenset({"object images"})

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
            raise UserError(
                "tiny_grounding_gpt answers about pictures, not about videos: pass an image"
            )
        notes, side = boxed_notes(query.regions), self.system.cfg.image_size
        if query.image is None:
            encoded = self.codec.encode_prompt(turns(query), query.regions)
            return Row(query, encoded | {"image": None, "objects": []}, 0, 0, tuple(notes))
        pixels = picture(query.image)
        height, width = pixels.shape[:2]
        encoded = self.codec.encode_prompt(turns(query), query.regions, (width, height))
        crops = [
            crop(pixels, box, self.preprocess, side, f"object image {n}")
            for n, box in enumerate(encoded["object_boxes"])
        ]
        image = self.preprocess.squash(pixels, side)
        return Row(query, encoded | {"image": image, "objects": crops}, width, height, tuple(notes))

    def collate(self, rows: Sequence[Row], room: int) -> dict[str, np.ndarray]:
        samples = [r.arrays for r in rows]
        length = batch_length(self.codec, samples, room)
        most = max(len(s["object_boxes"]) for s in samples)
        slots = next(n for n in (0, 1, 2, 4, 8, most) if n >= most)
        text = self.codec.collate(samples, [length], slots)
        made = batch(text, samples, self.system.cfg.image_size)
        return normalized(made, self.preprocess)

    def views(self, row: Row) -> list[View]:
        """The picture, and each object image as the model sees it."""
        if row.query.image is None:
            return []
        cfg, codec = self.system.cfg, self.codec
        places = padded_cells(cfg.clip.grid, row.width, row.height)
        found = [View("picture", picture(row.query.image), codec.image_id, 0, places)]
        side = math.isqrt(codec.object_tokens)
        for n, cut in enumerate(row.arrays["objects"]):
            first = n * codec.object_tokens
            found.append(View(f"object {n}", cut, codec.object_id, first, cells(side, side)))
        return found

    def answer(self, row: Row, ids: np.ndarray, logprobs: np.ndarray, kept: object) -> Answer:
        answer: Answer = self.codec.decode(
            ids, logprobs, row.width, row.height, question=row.query.prompt, notes=row.notes
        )
        return answer
