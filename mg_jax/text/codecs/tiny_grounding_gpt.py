"""TinyGroundingGPT's conversations as ids (spec 1, 2): texts, coordinates and object images.

    the picture         before its question: one image id a visual vector
    an object image     where the question shows it: one object id a vector of its crop
    a region            its box as text, [0.100,0.200,0.300,0.400], in questions and answers alike
    a grounded phrase   a dog [0.100,0.200,0.300,0.400], no mark around the words

Boxes in text are xyxy in [0, 1] of the picture padded to a square, three decimals. Image and object
ids lie behind the language model's vocabulary: the model never embeds them.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.boxes import BoxSpace, area, clip
from mg_jax.errors import Unfit, UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup
from mg_jax.text.added import AddedTokens
from mg_jax.text.codecs.chat import ChatCodec, Encoded, Parts, check_answered, to_answer
from mg_jax.text.codecs.compose import Piece
from mg_jax.text.codecs.mg_llava_decode import MARK, decode_answer, format_box, parse_box
from mg_jax.text.codecs.rows import pad_rows

IMAGE, OBJECT = range(2)  # placeholder ids, counted from the vocabulary's end
IN_PADDING = "box beside the picture"

# Two numbers or more in brackets are meant as a box, whole numbers too: [0,0,1,1]; whatever stands
# between them, and numbers that no box has, such as 1e-1, +0.1 and nan. Before MARK, which would
# end in the midst of those.
_MARK = re.compile(
    r"\[(?=[\s.,;+-]*(?:\d[\d.]*(?:[eE][+-]?\d+)?|(?i:nan|inf))[\s,;]+[.+-]*(?i:\d|nan|inf))"
    r"(?:[\s\d.,;+-]|(?<=[\d.])[eE](?=[+-]?\d)|(?i:nan|inf))*(?:\]|$)"
    rf"|{MARK.pattern}"
)

# Words that no name of an object begins with or contains; a name begins behind the last of them
_BREAKS = frozenset(
    """a an the this that these those his her its their my your our some any each every all both
    no and or but with without on in at to from by near under over above below behind beside
    between inside outside around into onto off through along against toward towards left right is
    are was were be been being has have had shows show showing contains contain includes include
    there here it they which who while as one two three four five six seven eight nine ten eleven
    twelve""".split()
)
_LONGEST_NAME = 6  # words


class TinyGroundingGPTCodec(ChatCodec):
    """Conversations to ids and generated ids to answers, for one tokenizer and template.

    template: one of `templates.FORMATS`; Qwen2.5's is "qwen_chat". image_tokens, object_tokens:
    visual vectors of the picture and of one object image. object_slots: most object images of a
    sample. text_tokens: longest text allowed, counted without them. vocab: rows of the language
    model's embedding, where the placeholder ids begin (None: the tokenizer's size).
    """

    system = "TinyGroundingGPT"

    def __init__(
        self,
        tokenizer: AddedTokens,
        template: str = "qwen_chat",
        image_tokens: int = 576,
        object_tokens: int = 144,
        object_slots: int = 8,
        text_tokens: int = 1472,
        vocab: int | None = None,
    ):
        super().__init__(tokenizer, template, text_tokens, vocab)
        self.image_tokens, self.object_tokens = image_tokens, object_tokens
        self.object_slots = object_slots
        self.image_id, self.object_id = self.not_text = (self.vocab + IMAGE, self.vocab + OBJECT)

    @property
    def length(self) -> int:
        """Positions of the longest sequence `encode` lets through."""
        return self.text_tokens + self.image_tokens + self.object_slots * self.object_tokens

    # -- to ids ----------------------------------------------------------------------------

    def encode(self, example: Example, rng: np.random.Generator | None = None) -> Encoded:
        """A training sample: every assistant turn is a target.

        Returns tokens [T0] int32, loss_mask [T0] bool (token t is a target, predicted from t-1),
        object_boxes [Q, 4] float32: the crops to be shown in order, xyxy in [0, 1] of the original.
        `rng` is not used. Raises UserError naming the example for text too long, more object images
        than slots, a region index without a region, an object image in an answer, a region or an
        `<image>` without picture, or a turn without answer.
        """
        where = f"example {example.id!r}"
        check_answered(example, where)
        size = None if example.image is None else (example.width, example.height)
        return self._encoded(example.turns, example.regions, size, where)

    def encode_prompt(
        self,
        turns: Sequence[Turn],
        regions: Sequence[Region] = (),
        size: tuple[int, int] | None = None,
        *,
        where: str = "prompt",
    ) -> Encoded:
        """What the model reads before it answers the last turn; keys as of `encode`, no loss_mask.

        size: (width, height) of the picture, None for text alone. Earlier answers are written as in
        training. Raises UserError as `encode`.
        """
        encoded = self._encoded(to_answer(turns, where), regions, size, where)
        del encoded["loss_mask"]
        return encoded

    def _encoded(
        self,
        turns: Sequence[Turn],
        regions: Sequence[Region],
        size: tuple[int, int] | None,
        where: str,
    ) -> Encoded:
        visual = [] if size is None else [self.image_id] * self.image_tokens
        crops: list[Any] = []
        tokens, loss = self._write(
            turns, len(regions), visual, where, (regions, size and square(*size), crops, where)
        )
        if len(crops) > self.object_slots:
            raise Unfit(
                "object images",
                f"{where}: {len(crops)} object images, but there are {self.object_slots} slots: "
                "show fewer or raise object_slots",
            )
        return {
            "tokens": np.asarray(tokens, np.int32),
            "loss_mask": np.asarray(loss, bool),
            "object_boxes": np.asarray(crops, np.float32).reshape(-1, 4),
        }

    def _parts(self, text: str, question: bool, context: Any) -> Parts:
        """context: regions, the padded square, a list that gets the boxes of crops, and where."""
        regions, space, crops, where = context
        parts: Parts = []
        for s in markup.parse(text):
            if s.text:
                parts.append(s.text)
            if s.regions and space is None:
                raise UserError(f"{where}: points at a region, but there is no picture")
            if s.kind == "object":
                if not question:
                    raise UserError(f"{where}: an answer cannot show an object image")
                parts += [self.object_id] * self.object_tokens
                crops.append(regions[s.regions[0]].box)
                continue
            boxes = "".join(format_box(space.to_view(regions[k].box)) for k in s.regions)
            if boxes:
                parts.append(" " + boxes if s.kind == "phrase" else boxes)
        return parts

    def collate(
        self,
        samples: Sequence[Encoded],
        buckets: Iterable[int] | None = None,
        object_slots: int | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """A batch of fixed shape: B rows as long as the smallest bucket that holds them all.

        buckets: allowed lengths T, `(length,)` by default. object_slots: room for object images,
        the codec's by default. names: what to call the samples in errors. Returns tokens [B,T]
        int32, valid, loss_mask [B,T] bool, object_boxes [B,O,4] float32, object_mask [B,O] bool.
        Prompts have no loss_mask, and their batch has none. Raises UserError for a sample longer
        than every bucket or with more object images than slots.
        """
        slots = self.object_slots if object_slots is None else object_slots
        return pad_rows(samples, buckets or (self.length,), self.pad_id, {"object": slots}, names)

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

        Boxes are read with or without spaces, and any two numbers or more in brackets are meant as
        one; the words before one name it, back to the last
        article, preposition, verb or sign. logprobs: one a id; the score of a box is the geometric
        mean of the probabilities of the tokens that write it (1 without logprobs). question: marked
        text whose first phrase names boxes that the answer gives without a word. Boxes of the
        answer are xyxy in pixels of the width x height original; what lies in the padding is cut.
        """
        space = square(width, height) if width and height else None

        def parse(text: str) -> tuple[float, ...] | str:
            box = parse_box(text)
            return box if isinstance(box, str) or space is None else from_square(box, space)

        return decode_answer(
            self.tokenizer, self.template.stops, ids, logprobs, width, height, question,
            tuple(notes), parse, name_boxes, _MARK,
        )  # fmt: skip


def square(width: int, height: int) -> BoxSpace:
    """The picture in the middle of a square, the space of written boxes (spec 2)."""
    return BoxSpace.pad(width, height, max(width, height))


def from_square(box: Sequence[float], space: BoxSpace) -> tuple[float, ...] | str:
    """A box xyxy in [0, 1] of the square -> of the original, or what is wrong with it."""
    found = clip(space.to_original(np.asarray(box, np.float64)))
    return tuple(found.tolist()) if area(found) > 0 else IN_PADDING


def name_boxes(pieces: list[Piece]) -> list[Piece]:
    """Pieces in which the last words before boxes are a phrase that has them."""
    out: list[Piece] = []
    for kind, words, boxes in pieces:
        if kind == "regions" and out and out[-1][0] == "text":
            before, name = split_name(out[-1][1])
            if name:
                out[-1:] = [("text", before, [])] if before else []
                out.append(("phrase", name, boxes))
                continue
        out.append((kind, words, boxes))
    return out


def split_name(text: str) -> tuple[str, str]:
    """(what comes before, the name that a text ends with); the name may be empty."""
    found = list(re.finditer(r"\S+", text))
    start = len(text)
    for match in reversed(found[-_LONGEST_NAME:]):
        if match[0].lower() in _BREAKS or not re.search(r"[\w'’)-]$", match[0]):
            break
        if match[0].lower() != "of":  # no name begins with it
            start = match.start()
    return text[:start].rstrip(" \t"), text[start:].rstrip()
