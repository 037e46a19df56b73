"""MG-LLaVA's conversations as ids (spec 3, 6, 7), and where our extensions write regions.

    a picture             before its question: one image id a visual vector, one box id a box
    a video               the same frame by frame, before its first question
    a region asked about  its three-decimal box as text, or one id of a vector of its own
    a grounded phrase     <p>a dog</p>[0.100,0.200,0.300,0.400]   (ours; nothing is published)

Boxes in text are xyxy in [0, 1] of the original picture. Image, box and region ids lie behind the
language model's vocabulary: the model never embeds them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup
from mg_jax.text.added import AddedTokens
from mg_jax.text.codecs.chat import ChatCodec, Encoded, Parts, check_answered, to_answer
from mg_jax.text.codecs.mg_llava_decode import decode_answer, format_box
from mg_jax.text.codecs.rows import pad_rows

REFER = ("text", "token")
IMAGE, BOX, REGION = range(3)  # placeholder ids, counted from the vocabulary's end


class MGLLaVACodec(ChatCodec):
    """Conversations to ids and generated ids to answers, for one tokenizer and template.

    template: one of `templates.FORMATS`. image_tokens: visual vectors of one picture (576 as
    published), frame_tokens: of one frame of a video (None: as many). text_tokens: longest text
    allowed, counted without pictures and boxes. refer: how a question points at a region, "text"
    or "token". vocab: rows of the language model's embedding, where the placeholder ids begin
    (None: the tokenizer's size). frames, max_boxes: most frames of an example and most boxes of
    one picture or frame, for `length` alone.
    """

    system = "MG-LLaVA"

    def __init__(
        self,
        tokenizer: AddedTokens,
        template: str = "vicuna",
        image_tokens: int = 576,
        text_tokens: int = 1472,
        refer: str = "text",
        vocab: int | None = None,
        frame_tokens: int | None = None,
        frames: int = 1,
        max_boxes: int = 256,
    ):
        if refer not in REFER:
            raise UserError(f"refer is {refer!r}: choose {' or '.join(REFER)}")
        super().__init__(tokenizer, template, text_tokens, vocab)
        self.image_tokens, self.refer = image_tokens, refer
        self.frame_tokens = image_tokens if frame_tokens is None else frame_tokens
        self.frames, self.max_boxes = frames, max_boxes
        self.image_id, self.box_id, self.refer_id = (self.vocab + n for n in (IMAGE, BOX, REGION))
        self.not_text = (self.image_id, self.box_id)

    @property
    def length(self) -> int:
        """Positions of the longest sequence `encode` lets through."""
        return self.text_tokens + max(self.most(1), self.most(self.frames))

    def most(self, count: int) -> int:
        """Positions of a picture, or of so many frames, with all the boxes they may have."""
        vectors = self.image_tokens if count == 1 else self.frame_tokens
        return count * (vectors + self.max_boxes)

    # -- to ids ----------------------------------------------------------------------------

    def encode(
        self,
        example: Example,
        rng: np.random.Generator | None = None,
        *,
        box_counts: Sequence[int],
    ) -> Encoded:
        """A training sample: every assistant turn is a target.

        box_counts: true boxes of each frame, one number for a picture, () for text alone. Returns
        tokens [T0] int32, loss_mask [T0] bool (token t is a target, predicted from t-1),
        refer_boxes [Q, 4] float32 of the regions that questions point at by token. `rng` is not
        used. Raises UserError naming the example for text too long, a region index without a
        region, pictures that do not fit `box_counts`, or a turn without answer.
        """
        where = f"example {example.id!r}"
        check_answered(example, where)
        return self._encoded(example.turns, example.regions, self.visual(box_counts), where)

    def encode_prompt(
        self,
        turns: Sequence[Turn],
        regions: Sequence[Region] = (),
        *,
        box_counts: Sequence[int],
        where: str = "prompt",
    ) -> Encoded:
        """What the model reads before it answers the last turn; keys as of `encode`, no loss_mask.

        Earlier answers are written as in training. Raises UserError as `encode`.
        """
        turns = to_answer(turns, where)
        encoded = self._encoded(turns, regions, self.visual(box_counts), where)
        del encoded["loss_mask"]
        return encoded

    def upstream_ids(
        self, turns: Sequence[Turn], regions: Sequence[Region] = (), image_id: int | None = -200
    ) -> tuple[list[int], list[int]]:
        """(input_ids, labels) as upstream has them before its pictures are put in (spec 7).

        image_id stands for the picture (None: text alone); labels are -100 where untrained.
        """
        visual = [] if image_id is None else [image_id]
        encoded = self._encoded(turns, regions, visual, "conversation")
        ids, loss = encoded["tokens"].tolist(), encoded["loss_mask"].tolist()
        return ids, [i if target else -100 for i, target in zip(ids, loss, strict=True)]

    def visual(self, box_counts: Sequence[int]) -> list[int]:
        """The ids of a picture, or of the frames of a video, with `box_counts` boxes (spec 6)."""
        vectors = self.image_tokens if len(box_counts) == 1 else self.frame_tokens
        return [
            i for count in box_counts for i in [self.image_id] * vectors + [self.box_id] * count
        ]

    def _encoded(
        self, turns: Sequence[Turn], regions: Sequence[Region], visual: list[int], where: str
    ) -> Encoded:
        refer: list[Any] = []
        context = (regions, refer)
        tokens, loss = self._write(turns, len(regions), visual, where, context)
        return {
            "tokens": np.asarray(tokens, np.int32),
            "loss_mask": np.asarray(loss, bool),
            "refer_boxes": np.asarray(refer, np.float32).reshape(-1, 4),
        }

    def _parts(self, text: str, question: bool, context: Any) -> Parts:
        """context: the regions, and a list that gets the boxes of a question's region tokens."""
        regions, refer = context
        parts: Parts = []
        for s in markup.parse(text):
            if not question and s.kind == "phrase" and s.regions:
                parts += [*self.tokenizer.split("<p>"), s.text, *self.tokenizer.split("</p>")]
            elif s.text:
                parts.append(s.text)
            for k in s.regions:
                if question and self.refer == "token":
                    parts.append(self.refer_id)
                    refer.append(regions[k].box)
                    continue
                apart = question and s.kind == "phrase"
                parts.append((" " if apart else "") + format_box(regions[k].box))
        return parts

    def collate(
        self,
        samples: Sequence[Encoded],
        buckets: Iterable[int] | None = None,
        refer_slots: int = 8,
        names: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """A batch of fixed shape: B rows as long as the smallest bucket that holds them all.

        buckets: allowed lengths T, `(length,)` by default. names: what to call the samples in
        errors. Returns tokens [B,T] int32, valid, loss_mask [B,T] bool, refer_boxes
        [B,refer_slots,4] float32, refer_mask [B,refer_slots] bool. Prompts have no loss_mask, and
        their batch has none. Raises UserError for a sample longer than every bucket or with more
        region tokens than slots.
        """
        sizes = buckets or (self.length,)
        return pad_rows(samples, sizes, self.pad_id, {"refer": refer_slots}, names)

    # -- from ids --------------------------------------------------------------------------

    def decode(
        self,
        ids: Iterable[int],
        logprobs: Iterable[float] | None,
        width: int,
        height: int,
        question: str | None = None,
        notes: Sequence[str] = (),
    ) -> Answer:
        """The answer that generated ids mean; never raises, counts what is malformed in notes.

        logprobs: one a id; the score of a box is the geometric mean of the probabilities of the
        tokens that write it (1 without logprobs). question: marked text whose first phrase names
        boxes that the answer gives without a phrase. Boxes of the answer are xyxy in pixels of
        the width x height original.
        """
        return decode_answer(
            self.tokenizer, self.template.stops, ids, logprobs, width, height, question,
            tuple(notes),
        )  # fmt: skip
