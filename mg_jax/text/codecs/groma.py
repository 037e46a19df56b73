"""Groma's way of writing regions in text: proxy tokens `<r_k>` (spec 2.4, 2.6, 4).

A conversation is the fixed image turn, then the turns of the example. There

    a region in a question       <roi><refer_box></roi><refer_feat>   (refer_format "roi")
    a grounded phrase, answered  <p>a dog</p><roi><ground_box><ground_box></roi>
    an answer of regions alone   <roi><ground_box></roi>

`<refer_box>` and `<ground_box>` stand for boxes that travel beside the ids, in order of
appearance; the model replaces each by the `<r_k>` of the selected region nearest to it. The one
`<image>` and the one `<region>` are expanded here to all the slots the model fills.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup, templates
from mg_jax.text.codecs.groma_decode import decode_answer
from mg_jax.text.codecs.groma_gaze import add_gaze
from mg_jax.text.codecs.rows import check_length, collate_gaze, pad_rows
from mg_jax.text.instructions import GROUNDING
from mg_jax.text.tokenizer import PAD, Tokenizer

MAX_PROXIES = 100
# In the order of their ids (spec 2.6)
GROMA_TOKENS = (
    PAD, "<sep>", "<img>", "</img>", "<roi>", "</roi>", "<p>", "</p>", "<image>", "<region>",
    "<refer_box>", "<ground_box>", "<refer_feat>", GROUNDING,
    *(f"<r{k}>" for k in range(MAX_PROXIES)),
)  # fmt: skip

# How a region is written in a question: as the published code does, as the paper prints it
# (`<r10><region>`), or by its feature alone.
REFER_FORMATS = {
    "roi": ("<roi>", "<refer_box>", "</roi>", "<refer_feat>"),
    "paper": ("<refer_box>", "<refer_feat>"),
    "feature_only": ("<refer_feat>",),
}

IMAGE_TURN = (
    "Here is an image with region crops from it. Image: <image>. Regions: <region>.",
    "Thank you for the image! How can I assist you with it?",
)

Encoded = dict[str, np.ndarray]


@dataclass
class _Script:
    """A conversation on its way to ids: literal texts and control tokens (ids), and the boxes."""

    parts: list[str | int] = field(default_factory=list)
    refer: list[Any] = field(default_factory=list)
    ground: list[Any] = field(default_factory=list)


class GromaCodec:
    """Conversations to ids and generated ids to answers, for one tokenizer and template.

    image_tokens: vectors of one picture (256 as published). max_regions: region slots of the
    model, at most 100. text_tokens: longest text allowed, counted without the expanded picture
    and region slots, so that the longest sequence is `length`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str = "llava",
        image_tokens: int = 256,
        max_regions: int = MAX_PROXIES,
        text_tokens: int = 512,
        refer_format: str = "roi",
    ):
        if not 1 <= max_regions <= MAX_PROXIES:
            raise UserError(f"max_regions is {max_regions}: Groma has 1 to {MAX_PROXIES} slots")
        if refer_format not in REFER_FORMATS:
            raise UserError(f"refer_format is {refer_format!r}: choose {', '.join(REFER_FORMATS)}")
        missing = [t for t in GROMA_TOKENS if t not in tokenizer.added]
        if missing:
            raise UserError(
                f"the tokenizer lacks {len(missing)} of Groma's {len(GROMA_TOKENS)} tokens, "
                f"{missing[0]} first: load the tokenizer of a Groma folder"
            )
        self.tokenizer, self.template = tokenizer, templates.get(template)
        self.image_tokens, self.max_regions = image_tokens, max_regions
        self.text_tokens = text_tokens
        self.ids = {t: tokenizer.id(t) for t in GROMA_TOKENS}
        self.proxy0 = self.ids["<r0>"]
        self._refer = [self.ids[t] for t in REFER_FORMATS[refer_format]]

    @property
    def length(self) -> int:
        """Positions of the longest sequence `encode` lets through."""
        return self.text_tokens + self.image_tokens + 2 * self.max_regions

    # -- to ids ----------------------------------------------------------------------------

    def encode(self, example: Example, rng: np.random.Generator | None = None) -> Encoded:
        """A training sample: every assistant turn is a target.

        Returns tokens [T0] int32, loss_mask [T0] bool (token t is a target, predicted from t-1),
        refer_boxes [Rr, 4], ground_boxes [Rg, 4] float32, xyxy in [0, 1]. `rng` is not used:
        Groma's text has no random part. Raises UserError naming the example for text too long,
        region indices without a region, or a turn without answer.
        """
        where = f"example {example.id!r}"
        for n, turn in enumerate(example.turns):
            if turn.assistant is None:
                raise UserError(f"{where}: turn {n} has no answer to train on")
        return self._finish(*self._write(example.turns, example.regions, where), where)

    def add_gaze(self, record: Encoded, turns: Sequence[Turn], regions: Sequence[Region]) -> None:
        """Add to a training sample where its answers look; see `groma_gaze.add_gaze`."""
        add_gaze(record, turns, regions, self.ids["<ground_box>"], self.ids["<p>"])

    def encode_prompt(
        self, turns: Sequence[Turn], regions: Sequence[Region] = (), *, where: str = "prompt"
    ) -> Encoded:
        """What the model reads before it answers the last turn; keys as of `encode`, no loss_mask.

        Earlier answers are written as in training, each of their boxes a `<ground_box>`: such a
        box is one of the model's own regions, so whichever of the two equal boxes the selection
        keeps, its proxy is the right one, and the other regions keep their order. Raises
        UserError as `encode`, also for Groma's control tokens typed into the question.
        """
        if not turns:
            raise UserError(f"{where}: there is no question")
        last = turns[-1].user
        for token in self.ids:
            if token in last and token not in (GROUNDING, "<p>", "</p>", "<image>"):
                raise UserError(
                    f"{where}: {token} is a control token of the model: write <r:0> to point at "
                    "the first region you pass, <p>...</p> around a phrase"
                )
        turns = [*turns[:-1], Turn(last, None)]
        encoded = self._finish(*self._write(turns, regions, where), where, asking=True)
        del encoded["loss_mask"]
        return encoded

    def upstream_ids(
        self, turns: Sequence[Turn], regions: Sequence[Region] = ()
    ) -> tuple[list[int], list[int], list[int]]:
        """(raw_ids, input_ids, labels) as upstream has them before expansion (spec 4.2).

        raw_ids still holds the `<sep>` around trained answers; labels are -100 where untrained.
        """
        raw, ids, loss, _ = self._write(turns, regions, "conversation")
        return raw, ids, [i if t else -100 for i, t in zip(ids, loss, strict=True)]

    def _write(
        self, turns: Sequence[Turn], regions: Sequence[Region], where: str
    ) -> tuple[list[int], list[int], list[bool], _Script]:
        """Ids with `<sep>`, ids without, loss mask of the latter, and the boxes."""
        script, t = _Script(), self.template
        parts = script.parts
        images = sum(s.kind == "image" for turn in turns for s in markup.parse(turn.user))
        if images > 1:
            raise UserError(f"{where}: {images} <image> marks, but Groma takes one picture")
        parts += [f"{t.system} {t.user}: ", *self._control(IMAGE_TURN[0])]
        parts += [f"{t.sep}{t.assistant}: {IMAGE_TURN[1]}", *self._separator()]
        for n, turn in enumerate(turns):
            for text in (turn.user, turn.assistant or ""):
                markup.check(text, len(regions), f"{where}, turn {n}")
            parts.append(f"{t.user}: ")
            self._question(turn.user, regions, script)
            if turn.assistant is None:
                parts.append(f"{t.sep}{t.assistant}:")
                if n + 1 < len(turns):
                    raise UserError(f"{where}: turn {n} of {len(turns)} has no answer")
                continue
            parts += [f"{t.sep}{t.assistant}: ", self.ids["<sep>"]]
            self._reply(turn.assistant, regions, script)
            parts += [self.ids["<sep>"], *self._separator()]
        raw = self.tokenizer.encode_parts(parts)
        return raw, *self._targets(raw), script

    def _targets(self, raw: list[int]) -> tuple[list[int], list[bool]]:
        """Drops the `<sep>` pairs; what they enclose is a target, and so is every `</s>` but the
        first, which ends the fixed image turn."""
        ids, loss = [], []
        inside = seen_end = False
        for i in raw:
            if i == self.ids["<sep>"]:
                inside = not inside
                continue
            end = i == self.tokenizer.eos_id
            ids.append(i)
            loss.append(inside or (end and seen_end))
            seen_end |= end
        return ids, loss

    def _separator(self) -> list[str | int]:
        """sep2 of the template, a control token where it is `</s>`."""
        return self._control(self.template.sep2)

    def _control(self, text: str) -> list[str | int]:
        """A text of our own in which control tokens are meant as such."""
        return self.tokenizer.split(text)

    def _literal(self, text: str) -> list[str | int]:
        """A text of the user's or a data set's: `[grounding]` alone is a control token in it."""
        parts: list[str | int] = []
        for n, piece in enumerate(text.split(GROUNDING)):
            if n:
                parts.append(self.ids[GROUNDING])
            if piece:
                parts.append(piece)
        return parts

    def _phrase(self, text: str) -> list[str | int]:
        return [self.ids["<p>"], text, self.ids["</p>"]]

    def _question(self, text: str, regions: Sequence[Region], script: _Script) -> None:
        segments = [s for s in markup.parse(text) if s.kind != "image"]
        for n, s in enumerate(segments):
            if s.kind == "text":
                words = s.text.lstrip() if n == 0 else s.text
                words = words.rstrip() if n + 1 == len(segments) else words
                script.parts += self._literal(words)
                continue
            if s.kind == "phrase":
                script.parts += self._phrase(s.text)
            for k in s.regions:
                script.parts += self._refer
                script.refer.append(regions[k].box)

    def _reply(self, text: str, regions: Sequence[Region], script: _Script) -> None:
        """An answer; neighbouring regions without a phrase share one `<roi>`."""
        segments = [s for s in markup.parse(text) if s.kind != "image"]
        n = 0
        while n < len(segments):
            s = segments[n]
            n += 1
            if s.kind == "text":
                script.parts.append(s.text)
                continue
            boxes = list(s.regions)
            if s.kind == "phrase":
                script.parts += self._phrase(s.text)
            else:
                while n < len(segments) and segments[n].kind in ("region", "object"):
                    boxes += segments[n].regions
                    n += 1
            if boxes:
                script.parts += [
                    self.ids["<roi>"],
                    *[self.ids["<ground_box>"]] * len(boxes),
                    self.ids["</roi>"],
                ]
                script.ground += [regions[k].box for k in boxes]

    def _finish(
        self,
        raw: list[int],
        ids: list[int],
        loss: list[bool],
        script: _Script,
        where: str,
        asking: bool = False,
    ) -> Encoded:
        """Expands `<image>` and `<region>` to the model's slots."""
        check_length(len(ids) - 2, self.text_tokens, where, asking)
        if len(script.refer) > self.max_regions:
            raise UserError(
                f"{where}: {len(script.refer)} regions in the questions, but the model has "
                f"{self.max_regions} region slots: ask about fewer at a time"
            )
        slots = {
            self.ids["<image>"]: [self.ids["<image>"]] * self.image_tokens,
            self.ids["<region>"]: [
                i for k in range(self.max_regions) for i in (self.proxy0 + k, self.ids["<region>"])
            ],
        }
        tokens: list[int] = []
        mask: list[bool] = []
        for i, target in zip(ids, loss, strict=True):
            expanded = slots.get(i, [i])
            tokens += expanded
            mask += [target and i not in slots] * len(expanded)
        return {
            "tokens": np.asarray(tokens, np.int32),
            "loss_mask": np.asarray(mask, bool),
            "refer_boxes": np.asarray(script.refer, np.float32).reshape(-1, 4),
            "ground_boxes": np.asarray(script.ground, np.float32).reshape(-1, 4),
        }

    def collate(
        self,
        samples: Sequence[Encoded],
        buckets: Iterable[int] | None = None,
        refer_slots: int = 8,
        ground_slots: int = 32,
        names: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """A batch of fixed shape: B rows as long as the smallest bucket that holds them all.

        buckets: allowed lengths T, `(length,)` by default. names: what to call the samples in
        errors. Returns tokens [B,T] int32 (padded with [PAD]), valid, loss_mask [B,T] bool,
        refer_boxes, ground_boxes [B,slots,4] float32, refer_mask, ground_mask [B,slots] bool.
        Prompts have no loss_mask, and their batch has none; samples of `add_gaze` bring gaze
        [B,GAZE,2] int32 and gaze_weight [B,GAZE] (0 beyond what a sample has). Raises UserError
        for a sample longer than every bucket or with more regions than slots.
        """
        slots = {"refer": refer_slots, "ground": ground_slots}
        batch = pad_rows(samples, buckets or (self.length,), self.ids[PAD], slots, names)
        if "gaze" in samples[0]:
            batch |= collate_gaze(samples)
        return batch

    # -- from ids --------------------------------------------------------------------------

    def decode(
        self,
        ids: Iterable[int],
        boxes: np.ndarray,
        scores: np.ndarray,
        region_mask: np.ndarray | None,
        width: int,
        height: int,
        question: str | None = None,
        notes: Sequence[str] = (),
    ) -> Answer:
        """The answer that generated ids mean; never raises, counts what is malformed in notes.

        boxes [R, 4] xyxy in [0, 1], scores [R] (proposer objectness) and region_mask [R] of the
        selected regions, in proxy order. question: marked text whose first phrase names regions
        that the answer gives without a phrase. Boxes of the answer are xyxy in pixels of the
        width x height original.
        """
        return decode_answer(
            self.tokenizer, self.ids, ids, boxes, scores, region_mask, width, height, question,
            tuple(notes),
        )  # fmt: skip
