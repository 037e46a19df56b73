"""What codecs of chat models share: a tokenizer with room for text, turns as a template writes
them, one picture before a question.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mg_jax.errors import UserError
from mg_jax.example import Example, Turn
from mg_jax.text import markup, templates
from mg_jax.text.added import AddedTokens
from mg_jax.text.codecs.rows import check_length

Encoded = dict[str, np.ndarray]
Parts = list[str | int]


class TextCodec:
    """A tokenizer and room for text, the base of codecs.

    text_tokens: longest text allowed, counted without the placeholders of a picture. vocab: rows of
    the language model's embedding, where the placeholder ids begin (None: the tokenizer's size);
    tables may be padded beyond their tokenizer.
    """

    def __init__(self, tokenizer: AddedTokens, text_tokens: int, vocab: int | None):
        self.vocab = tokenizer.size if vocab is None else vocab
        if self.vocab < tokenizer.size:
            raise UserError(
                f"vocab is {vocab}, but the tokenizer has {tokenizer.size} ids: "
                "the tokenizer and the language model do not belong together"
            )
        self.tokenizer: Any = tokenizer
        self.text_tokens = text_tokens

    @property
    def pad_id(self) -> int:
        """The id of positions without text; 0 for a tokenizer that names none."""
        return int(self.tokenizer.pad_id or 0)

    def ending(self, template: str, text: str) -> int:
        """The id of a text that ends the answers of that template, "" for the end of a sequence.

        Raises UserError when it is no token.
        """
        if not text:
            return int(self.tokenizer.eos_id)
        try:
            return int(self.tokenizer.id(text))
        except KeyError:
            raise UserError(
                f"template {template} ends answers with {text}, which is no token of this "
                "tokenizer: choose the template of its language model"
            ) from None

    def check_length(self, count: int, turns: Sequence[Turn], where: str) -> None:
        """Raises UserError, beginning with `where`, for more tokens of text than allowed."""
        asking = any(turn.assistant is None for turn in turns)
        check_length(count, self.text_tokens, where, asking)


class ChatCodec(TextCodec):
    """The base of codecs that write turns as xtuner does, each by itself.

    template: one of `templates.FORMATS`. system: in messages. not_text: placeholder ids that do not
    count as text. A system says how a question and an answer are written as texts and ids
    (`_parts`).
    """

    system = ""
    not_text: tuple[int, ...] = ()

    def __init__(self, tokenizer: AddedTokens, template: str, text_tokens: int, vocab: int | None):
        super().__init__(tokenizer, text_tokens, vocab)
        self.template = templates.get_format(template)

    @property
    def end_id(self) -> int:
        """The id that ends an answer. Raises UserError when the tokenizer has none for it."""
        return self.ending(self.template.name, self.template.suffix)

    def _parts(self, text: str, question: bool, context: Any) -> Parts:
        """A marked question or answer as texts and ids; `context` as given to `_write`."""
        raise NotImplementedError

    def _write(
        self, turns: Sequence[Turn], count: int, visual: list[int], where: str, context: Any
    ) -> tuple[list[int], list[bool]]:
        """(tokens, which of them are trained on) of a conversation about `count` regions.

        visual: the ids of the picture, [] for none. Raises UserError, beginning with `where`, for
        text too long, a region index without a region, or a turn but the last without answer.
        """
        encode, t = self.tokenizer.encode_parts, self.template
        pictured = pictured_turn(turns, bool(visual), where, self.system)
        start = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        tokens: list[int] = []
        loss: list[bool] = []

        def add(ids: Iterable[int], target: bool = False) -> None:
            tokens.extend(ids)
            loss.extend([target] * (len(tokens) - len(loss)))

        for n, turn in enumerate(turns):
            for text in (turn.user, turn.assistant or ""):
                markup.check(text, count, f"{where}, turn {n}")
            before, after = (self.tokenizer.split(text) for text in (t.before, t.after))
            if n == 0 or not t.suffix:
                add(start)
            question = self._parts(turn.user, True, context)
            if n == pictured:
                # Each side of the picture is tokenised by itself
                add(encode(before, bos=False))
                add(visual)
                question = stripped(question)
                before = ["\n"] if question else []
            add(encode([*before, *question, *after], bos=False))
            if turn.assistant is None:
                if n + 1 < len(turns):
                    raise UserError(f"{where}: turn {n} of {len(turns)} has no answer")
                continue
            answer = self._parts(turn.assistant, False, context)
            add(encode([*answer, *self.tokenizer.split(t.suffix)], bos=False), target=True)
            if not t.suffix:
                add([self.tokenizer.eos_id], target=True)
            add(encode(self.tokenizer.split(t.sep), bos=False))
        self.check_length(sum(i not in self.not_text for i in tokens), turns, where)
        return tokens, loss


def pictured_turn(turns: Sequence[Turn], visual: bool, where: str, system: str) -> int | None:
    """The turn whose question the picture precedes: the one with `<image>`, else the first; None
    for text alone.

    Raises UserError for two such marks, or one without a picture.
    """
    marks = [n for n, turn in enumerate(turns) for s in markup.parse(turn.user)
             if s.kind == "image"]  # fmt: skip
    if len(marks) > 1:
        raise UserError(f"{where}: {len(marks)} <image> marks, but {system} takes one picture")
    if marks and not visual:
        raise UserError(f"{where}: turn {marks[0]} has an <image> mark, but there is no picture")
    return (marks[0] if marks else 0) if visual else None


def check_answered(example: Example, where: str) -> None:
    """Raises UserError when a turn has no answer to train on."""
    for n, turn in enumerate(example.turns):
        if turn.assistant is None:
            raise UserError(f"{where}: turn {n} has no answer to train on")


def to_answer(turns: Sequence[Turn], where: str) -> list[Turn]:
    """The turns, the last one still to be answered. Raises UserError where there is none."""
    if not turns:
        raise UserError(f"{where}: there is no question")
    return [*turns[:-1], Turn(turns[-1].user, None)]


def stripped(parts: Parts) -> Parts:
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
