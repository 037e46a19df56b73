"""Ferret's conversations as ids (spec 2, 5, 6).

    a picture             before its question: one image id a visual vector
    a region asked about  `name [x1, y1, x2, y2] <region_fea>`, the last an id of a vector
    a grounded phrase     `a dog [100, 150, 300, 200]`
    several boxes         one behind the other, with spaces between

Coordinates are whole numbers of a picture of 1000x1000 (`ferret_places`). An answer of boxes alone
repeats the phrase it was asked for. `[grounding]` in a question, Groma's mark for answers with
boxes, becomes Ferret's own request for coordinates at its end; Ferret-UI's templates have that in
Ferret-UI's words.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from mg_jax.answer import Answer
from mg_jax.errors import UserError
from mg_jax.example import Example, Region, Turn
from mg_jax.text import markup, templates
from mg_jax.text.added import AddedTokens
from mg_jax.text.codecs.chat import (
    Encoded,
    Parts,
    TextCodec,
    check_answered,
    pictured_turn,
    stripped,
    to_answer,
)
from mg_jax.text.codecs.ferret_decode import REGION, decode_answer
from mg_jax.text.codecs.ferret_places import coordinates, format_place
from mg_jax.text.codecs.marked import Piece, encode_marked
from mg_jax.text.codecs.rows import pad_rows
from mg_jax.text.instructions import GROUNDING
from mg_jax.text.instructions.ferret import COORDINATES, COORDINATES_UI

# How a question points at a region: as published, without the vector, or by the vector alone
REFER = ("hybrid", "coordinates", "feature")
UI = ("ferret_vicuna_v1", "ferret_llama_3", "ferret_phi3_instruct", "ferret_gemma_instruct")
Size = tuple[int, int]


class FerretCodec(TextCodec):
    """Conversations to ids and generated ids to answers, for one tokenizer and template.

    template: one of `templates.DIALOGUES`. image_tokens: visual vectors of the largest picture, for
    `length` alone. text_tokens: longest text allowed, counted without the picture. refer: one of
    REFER. vocab: rows of the language model's embedding, where the placeholder ids begin (None:
    the tokenizer's size). region_token: the id of a region's vector where the vocabulary has one
    (32000 of the first release), else None.
    """

    def __init__(
        self,
        tokenizer: AddedTokens,
        template: str = "ferret_v1",
        image_tokens: int = 4032,
        text_tokens: int = 576,
        refer: str = "hybrid",
        vocab: int | None = None,
        region_token: int | None = None,
    ):
        if refer not in REFER:
            raise UserError(f"refer is {refer!r}: choose {', '.join(REFER)}")
        super().__init__(tokenizer, text_tokens, vocab)
        self.template = templates.get_dialogue(template)
        self.image_tokens, self.refer = image_tokens, refer
        self.request = f"\n{COORDINATES_UI}" if template in UI else f" {COORDINATES}"
        self.image_id = self.vocab
        self.region_id = self.vocab + 1 if region_token is None else region_token

    @property
    def length(self) -> int:
        """Positions of the longest sequence `encode` lets through."""
        return self.text_tokens + self.image_tokens

    @property
    def end_id(self) -> int:
        """The id that ends an answer. Raises UserError when the tokenizer has none for it."""
        stop = next(iter(self.template.stops), "")
        return self.ending(self.template.name, "" if stop in ("</s>", "\n") else stop)

    # -- to ids ----------------------------------------------------------------------------

    def encode(
        self,
        example: Example,
        rng: np.random.Generator | None = None,
        *,
        image_tokens: int,
    ) -> Encoded:
        """A training sample: every assistant turn is a target.

        image_tokens: visual vectors of this picture, 0 for text alone. Returns tokens [T0] int32,
        loss_mask [T0] bool (token t is a target, predicted from t-1), refer [Q] int32, the numbers
        of the regions whose vectors stand in the questions, in order. `rng` is not used. Raises
        UserError naming the example for text too long, a region index without a region, a picture
        too many or missing, or a turn without answer.
        """
        where = f"example {example.id!r}"
        check_answered(example, where)
        size = example.width, example.height
        return self._write(example.turns, example.regions, size, image_tokens, where)

    def encode_prompt(
        self,
        turns: Sequence[Turn],
        regions: Sequence[Region] = (),
        *,
        size: Size = (1, 1),
        image_tokens: int,
        where: str = "prompt",
    ) -> Encoded:
        """What the model reads before it answers the last turn; keys as of `encode`, no loss_mask.

        size: (width, height) of the picture in pixels. Raises UserError as `encode`.
        """
        encoded = self._write(to_answer(turns, where), regions, size, image_tokens, where)
        del encoded["loss_mask"]
        return encoded

    def prompt(self, turns: Sequence[Turn], regions: Sequence[Region], size: Size) -> str:
        """The conversation as text: `<image>` and `<region_fea>` where vectors stand."""
        pieces, _ = self._script(turns, regions, size, 1, "conversation")
        known = {self.image_id: "<image>", self.region_id: REGION}
        return "".join(
            part if isinstance(part, str) else known.get(part) or self.tokenizer.token(part) or ""
            for part, _ in pieces
        )

    def _write(
        self,
        turns: Sequence[Turn],
        regions: Sequence[Region],
        size: Size,
        image_tokens: int,
        where: str,
    ) -> Encoded:
        pieces, refer = self._script(turns, regions, size, image_tokens, where)
        tokens: list[int] = []
        loss: list[bool] = []
        while pieces:  # each side of the picture is tokenised by itself
            side = next((n for n, (p, _) in enumerate(pieces) if p == self.image_id), len(pieces))
            ids, marks = encode_marked(self.tokenizer, pieces[:side], bos=not tokens)
            tokens, loss = tokens + ids, loss + marks
            end = side
            while end < len(pieces) and pieces[end][0] == self.image_id:
                end += 1
            tokens += [self.image_id] * (end - side)
            loss += [False] * (end - side)
            pieces = pieces[end:]
        self.check_length(len(tokens) - image_tokens, turns, where)
        return {
            "tokens": np.asarray(tokens, np.int32),
            "loss_mask": np.asarray(loss, bool),
            "refer": np.asarray(refer, np.int32),
        }

    def _script(
        self,
        turns: Sequence[Turn],
        regions: Sequence[Region],
        size: Size,
        image_tokens: int,
        where: str,
    ) -> tuple[list[Piece], list[int]]:
        """Texts and ids in order, each with whether it is a target; numbers of the regions that
        questions point at by a vector."""
        t = self.template
        pictured = pictured_turn(turns, image_tokens > 0, where, "Ferret")
        pieces: list[Piece] = []
        refer: list[int] = []

        def add(parts: Iterable[str | int], target: bool = False) -> None:
            pieces.extend((part, target) for part in parts)

        split = self.tokenizer.split
        add(split(t.start))
        for n, turn in enumerate(turns):
            for text in (turn.user, turn.assistant or ""):
                markup.check(text, len(regions), f"{where}, turn {n}")
            add(split(t.before))
            question = self._question(turn.user, regions, size, refer) if t.asks else []
            if n == pictured:
                add([self.image_id] * image_tokens)
                question = stripped(question)
                question = ["\n", *question] if question else []
            add([*question, *split(t.after)])
            if turn.assistant is None:
                if n + 1 < len(turns):
                    raise UserError(f"{where}: turn {n} of {len(turns)} has no answer")
                continue
            answer = self._answer(turn.assistant, turn.user, regions, size)
            add([t.lead, answer, *split(t.end)], target=True)
        return pieces, refer

    def _question(
        self, text: str, regions: Sequence[Region], size: Size, refer: list[int]
    ) -> Parts:
        """A question; `refer` gets the numbers of its regions with a vector."""
        if GROUNDING in text or text.rstrip().endswith(COORDINATES):
            text = text.replace(GROUNDING, "").strip().removesuffix(COORDINATES).rstrip()
            text = (text + self.request).lstrip()
        parts: Parts = []
        for s in markup.parse(text):
            if s.text:
                parts.append(s.text)
            for k in s.regions:
                last = parts[-1] if parts else " "
                # behind a word or an id a place stands apart
                joined = isinstance(last, str) and (last[-1].isspace() or last[-1] in "([\"'")
                gap = "" if joined else " "
                if self.refer == "feature":
                    parts += [gap] if gap else []
                else:
                    place = format_place(coordinates(regions[k], *size), *size)
                    parts.append(gap + place + (" " if self.refer == "hybrid" else ""))
                if self.refer != "coordinates":
                    parts.append(self.region_id)
                    refer.append(k)
        return parts

    def _answer(self, text: str, question: str, regions: Sequence[Region], size: Size) -> str:
        """An answer with its boxes as text."""
        segments = [s for s in markup.parse(text) if s.kind != "image"]
        out = ""
        if segments and all(s.kind in ("region", "object") for s in segments):
            asked = (s.text.strip() for s in markup.parse(question) if s.kind == "phrase")
            out = next(filter(None, asked), "")
        for s in segments:
            out += s.text
            for k in s.regions:
                gap = " " if out and not out[-1].isspace() else ""
                out += gap + format_place(_box(regions[k], size), *size)
        return out

    def collate(
        self,
        samples: Sequence[Encoded],
        buckets: Iterable[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """A batch of fixed shape: B rows as long as the smallest bucket that holds them all.

        buckets: allowed lengths T, `(length,)` by default. names: what to call the samples in
        errors. Returns tokens [B,T] int32, valid, loss_mask [B,T] bool. Prompts have no loss_mask,
        and their batch has none. Raises UserError for a sample longer than every bucket.
        """
        return pad_rows(samples, buckets or (self.length,), self.pad_id, {}, names)

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
        tokens that write it (1 without logprobs). question: marked text whose phrases the answer
        may repeat, and whose first names boxes that it gives without a phrase. Boxes of the answer
        are xyxy in pixels of the width x height original.
        """
        return decode_answer(
            self.tokenizer, self.template.stops, ids, logprobs, width, height, question,
            tuple(notes),
        )  # fmt: skip


def _box(region: Region, size: Size) -> tuple[float, ...]:
    """A region's box in pixels: answers never name points."""
    return coordinates(Region("box", region.box), *size)
