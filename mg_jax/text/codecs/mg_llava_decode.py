"""Three-decimal boxes in text, written and read back; the reader forgives every bad grammar.

MG-LLaVA publishes no grounded output, so this grammar is ours: `<p>phrase</p>[x1,y1,x2,y2]...`,
text around it, and boxes alone. What deviates is read as far as it makes sense, counted, and named
in the answer's notes. Brackets around fewer than three numbers, or without a decimal point, are
ordinary text.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.text.codecs.compose import Piece, compose
from mg_jax.text.codecs.generated import span_scores, text_of, until_end

STEP = 0.001  # of a written coordinate
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")
MARK = re.compile(
    r"(?P<open><p>)|(?P<close></p>)"
    r"|\[(?=[\s\d,-]*\.)(?:[\s\d.-]*,){2}[\s\d.,-]*\]?|\[(?=[\s\d,-]*\.)[\s\d.,-]*$"
)


def format_box(box: Sequence[float]) -> str:
    """`[0.123,0.456,0.789,0.987]` of a box xyxy in [0, 1], rounded; no side is written as zero.

    `parse_box` reads it back, each coordinate within half a STEP; the corners of a side shorter
    than a STEP within one and a half.
    """
    low, high = [], []
    for a, b in ((box[0], box[2]), (box[1], box[3])):
        first, last = (round(min(max(float(v), 0.0), 1.0) / STEP) for v in (a, b))
        if last <= first:
            first = min(first, round(1 / STEP) - 1)
            last = first + 1
        low.append(first * STEP)
        high.append(last * STEP)
    return "[" + ",".join(f"{v:.3f}" for v in (*low, *high)) + "]"


def parse_box(text: str) -> tuple[float, ...] | str:
    """The corners that a bracketed text names, or what is wrong with it."""
    inner = text.removeprefix("[").removesuffix("]").split(",")
    if not text.endswith("]"):
        return "box without end"
    if len(inner) != 4 or not all(_NUMBER.fullmatch(n.strip()) for n in inner):
        return "box that is not four numbers"
    box = tuple(float(n) for n in inner)
    if min(box) < 0 or max(box) > 1:
        return "box outside the picture"
    if box[0] >= box[2] or box[1] >= box[3]:
        return "reversed or empty box"
    return box


def decode_answer(
    tokenizer: Any,
    stops: Sequence[str],
    ids: Iterable[int],
    logprobs: Iterable[float] | None,
    width: int,
    height: int,
    question: str | None,
    notes: tuple[str, ...],
    parse: Callable[[str], tuple[float, ...] | str] = parse_box,
    arrange: Callable[[list[Piece]], list[Piece]] = list,
    mark: re.Pattern[str] = MARK,
) -> Answer:
    """`MGLLaVACodec.decode`, which see; stops: texts that end an answer.

    parse: as `parse_box`, for boxes of another space. arrange: changes the pieces before they are
    put together. mark: what is a mark, as `MARK`, whose groups it has.
    """
    faults: Counter[str] = Counter()
    tokens, logs = until_end(tokenizer, stops, ids, logprobs, faults)
    reader = _Reader(faults, parse, mark)
    reader.read(text_of(tokenizer, stops, tokens))
    scores = span_scores(tokenizer, tokens, logs, reader.spans)
    pixels = np.asarray(reader.boxes, np.float64).reshape(-1, 4) * [width, height, width, height]
    pieces = arrange(reader.pieces)
    return compose(pieces, faults, pixels, scores, question, notes, width, height)


class _Reader:
    """Collects `pieces` (see `compose.Piece`), `boxes` xyxy in [0, 1] with the `spans` of their
    characters, and counts `faults` by name."""

    def __init__(
        self,
        faults: Counter[str],
        parse: Callable[[str], tuple[float, ...] | str],
        mark: re.Pattern[str],
    ):
        self.faults, self.parse, self.mark = faults, parse, mark
        self.pieces: list[Piece] = []
        self.boxes: list[tuple[float, ...]] = []
        self.spans: list[tuple[int, int]] = []
        self.in_phrase = False
        # True between </p> and what follows: boxes then belong to the phrase
        self.awaits = False
        # True when the last piece takes further boxes
        self.open = False
        # White space with a line break between marks
        self.space = ""

    def read(self, text: str) -> None:
        place = 0
        for match in self.mark.finditer(text):
            self.words(text[place : match.start()])
            place = match.end()
            if match["open"]:
                if self.in_phrase:
                    self.unphrase()
                self.in_phrase, self.awaits, self.open = True, False, False
            elif match["close"]:
                self.close()
            else:
                self.box(match[0], match.span())
        self.words(text[place:])
        if self.in_phrase:
            self.unphrase()
        for n, strip in ((0, str.lstrip), (-1, str.rstrip)):
            if self.pieces:
                kind, words, boxes = self.pieces[n]
                self.pieces[n] = (kind, strip(words), boxes)

    def words(self, text: str) -> None:
        """Takes the text between two marks."""
        if not text.strip():
            self.space += text.strip(" \t")
            return
        if self.in_phrase:
            if self.space:
                self.pieces.append(("text", self.space, []))
            self.pieces.append(("phrase", " ".join(text.split()), []))
        else:
            self.pieces.append(("text", self.space + text.strip(" \t"), []))
        self.space = ""
        self.awaits = self.open = False

    def close(self) -> None:
        self.awaits = self.in_phrase and bool(self.pieces) and self.pieces[-1][0] == "phrase"
        self.open = False
        if not self.in_phrase:
            self.faults["</p> without <p>"] += 1
        elif not self.awaits:
            self.faults["empty phrase"] += 1
        self.in_phrase = False

    def unphrase(self) -> None:
        """A phrase that never closed is plain text."""
        self.faults["unclosed <p>"] += 1
        self.in_phrase = False
        if self.pieces and self.pieces[-1][0] == "phrase":
            self.pieces[-1] = ("text", self.pieces[-1][1], [])

    def box(self, text: str, span: tuple[int, int]) -> None:
        if self.in_phrase:
            # `<p>a dog[...]`: the phrase ends where its place begins
            self.faults["unclosed <p>"] += 1
            self.in_phrase = False
            self.awaits = bool(self.pieces) and self.pieces[-1][0] == "phrase"
        box = self.parse(text)
        if isinstance(box, str):
            self.faults[box] += 1
            return
        self.space = ""
        if self.awaits:
            self.open, self.awaits = True, False
        if not self.open:
            self.pieces.append(("regions", "", []))
            self.open = True
        numbers = self.pieces[-1][2]
        if box in [self.boxes[n] for n in numbers]:
            self.faults["repeated box"] += 1
            return
        numbers.append(len(self.boxes))
        self.boxes.append(box)
        self.spans.append(span)
