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
from mg_jax.text import markup, templates
from mg_jax.text.added import AddedTokens
from mg_jax.text.codecs.mg_llava_decode import decode_answer, format_box
from mg_jax.text.codecs.rows import check_length, pad_rows

REFER = ("text", "token")
IMAGE, BOX, REGION = range(3)  # placeholder ids, counted from the vocabulary's end

Encoded = dict[str, np.ndarray]


class MGLLaVACodec:
    """Conversations to ids and generated ids to answers, for one tokenizer and template.

    template: one of `templates.FORMATS`. image_tokens: visual vectors of one picture (576 as
    published), frame_tokens: of one frame of a video (None: as many). text_tokens: longest text
    allowed, counted without pictures and boxes. refer: how a question points at a region, "text"
    or "token". vocab: rows of the language model's embedding, where the placeholder ids begin
    (None: the tokenizer's size). frames, max_boxes: most frames of an example and most boxes of
    one picture or frame, for `length` alone.
    """

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
        self.vocab = tokenizer.size if vocab is None else vocab
        if self.vocab < tokenizer.size:
            raise UserError(
                f"vocab is {vocab}, but the tokenizer has {tokenizer.size} ids: "
                "the tokenizer and the language model do not belong together"
            )
        self.tokenizer: Any = tokenizer
        self.template = templates.get_format(template)
        self.image_tokens, self.text_tokens, self.refer = image_tokens, text_tokens, refer
        self.frame_tokens = image_tokens if frame_tokens is None else frame_tokens
        self.frames, self.max_boxes = frames, max_boxes
        self.image_id, self.box_id, self.refer_id = (self.vocab + n for n in (IMAGE, BOX, REGION))

    @property
    def length(self) -> int:
        """Positions of the longest sequence `encode` lets through."""
        video = self.frames * (self.frame_tokens + self.max_boxes) if self.frames > 1 else 0
        return self.text_tokens + max(self.image_tokens + self.max_boxes, video)

    @property
    def end_id(self) -> int:
        """The id that ends an answer. Raises UserError when the tokenizer has none for it."""
        if not self.template.suffix:
            return int(self.tokenizer.eos_id)
        try:
            return int(self.tokenizer.id(self.template.suffix))
        except KeyError:
            raise UserError(
                f"template {self.template.name} ends answers with {self.template.suffix}, which is "
                "no token of this tokenizer: choose the template of its language model"
            ) from None

    @property
    def pad_id(self) -> int:
        """The id of positions without text; 0 for a tokenizer that names none."""
        return int(self.tokenizer.pad_id or 0)

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
        for n, turn in enumerate(example.turns):
            if turn.assistant is None:
                raise UserError(f"{where}: turn {n} has no answer to train on")
        return self._write(example.turns, example.regions, self.visual(box_counts), where)

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
        if not turns:
            raise UserError(f"{where}: there is no question")
        turns = [*turns[:-1], Turn(turns[-1].user, None)]
        encoded = self._write(turns, regions, self.visual(box_counts), where)
        del encoded["loss_mask"]
        return encoded

    def upstream_ids(
        self, turns: Sequence[Turn], regions: Sequence[Region] = (), image_id: int | None = -200
    ) -> tuple[list[int], list[int]]:
        """(input_ids, labels) as upstream has them before its pictures are put in (spec 7).

        image_id stands for the picture (None: text alone); labels are -100 where untrained.
        """
        visual = [] if image_id is None else [image_id]
        encoded = self._write(turns, regions, visual, "conversation")
        ids, loss = encoded["tokens"].tolist(), encoded["loss_mask"].tolist()
        return ids, [i if target else -100 for i, target in zip(ids, loss, strict=True)]

    def visual(self, box_counts: Sequence[int]) -> list[int]:
        """The ids of a picture, or of the frames of a video, with `box_counts` boxes (spec 6)."""
        vectors = self.image_tokens if len(box_counts) == 1 else self.frame_tokens
        return [
            i for count in box_counts for i in [self.image_id] * vectors + [self.box_id] * count
        ]

    def _write(
        self, turns: Sequence[Turn], regions: Sequence[Region], visual: list[int], where: str
    ) -> Encoded:
        encode, t = self.tokenizer.encode_parts, self.template
        pictured = self._pictured(turns, bool(visual), where)
        start = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        tokens: list[int] = []
        loss: list[bool] = []
        refer: list[Any] = []

        def add(ids: Iterable[int], target: bool = False) -> None:
            tokens.extend(ids)
            loss.extend([target] * (len(tokens) - len(loss)))

        for n, turn in enumerate(turns):
            for text in (turn.user, turn.assistant or ""):
                markup.check(text, len(regions), f"{where}, turn {n}")
            before, after = (self.tokenizer.split(text) for text in (t.before, t.after))
            if n == 0 or not t.suffix:
                add(start)
            question = self._parts(turn.user, regions, refer)
            if n == pictured:
                # Each side of the picture is tokenised by itself
                add(encode(before, bos=False))
                add(visual)
                question = _stripped(question)
                before = ["\n"] if question else []
            add(encode([*before, *question, *after], bos=False))
            if turn.assistant is None:
                if n + 1 < len(turns):
                    raise UserError(f"{where}: turn {n} of {len(turns)} has no answer")
                continue
            answer = [*self._parts(turn.assistant, regions), *self.tokenizer.split(t.suffix)]
            add(encode(answer, bos=False), target=True)
            if not t.suffix:
                add([self.tokenizer.eos_id], target=True)
            add(encode(self.tokenizer.split(t.sep), bos=False))
        asking = any(turn.assistant is None for turn in turns)
        check_length(len(tokens) - len(visual), self.text_tokens, where, asking)
        return {
            "tokens": np.asarray(tokens, np.int32),
            "loss_mask": np.asarray(loss, bool),
            "refer_boxes": np.asarray(refer, np.float32).reshape(-1, 4),
        }

    def _pictured(self, turns: Sequence[Turn], visual: bool, where: str) -> int | None:
        """The turn whose question the picture precedes: the one with `<image>`, else the first."""
        marks = [n for n, turn in enumerate(turns) for s in markup.parse(turn.user)
                 if s.kind == "image"]  # fmt: skip
        if len(marks) > 1:
            raise UserError(f"{where}: {len(marks)} <image> marks, but MG-LLaVA takes one picture")
        if marks and not visual:
            raise UserError(
                f"{where}: turn {marks[0]} has an <image> mark, but there is no picture"
            )
        return (marks[0] if marks else 0) if visual else None

    def _parts(
        self, text: str, regions: Sequence[Region], refer: list[Any] | None = None
    ) -> list[str | int]:
        """A question (with `refer`, which gets the boxes of its region tokens) or an answer."""
        parts: list[str | int] = []
        for s in markup.parse(text):
            grounded = refer is None and s.kind == "phrase" and s.regions
            if grounded:
                parts += [*self.tokenizer.split("<p>"), s.text, *self.tokenizer.split("</p>")]
            elif s.text:
                parts.append(s.text)
            for k in s.regions:
                if refer is not None and self.refer == "token":
                    parts.append(self.refer_id)
                    refer.append(regions[k].box)
                    continue
                apart = refer is not None and s.kind == "phrase"
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


def _stripped(parts: list[str | int]) -> list[str | int]:
    """The parts without white space at both ends."""
    out = list(parts)
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while out and isinstance(out[end], str):
            text = strip(str(out[end]))
            if text:
                out[end] = text
                break
            del out[end]
    return out
