"""Ferret's answers read back: `a dog [100, 150, 300, 200]`; every bad grammar is forgiven.

Nothing marks where the phrase before a box begins. It is the phrase asked for, where the answer
repeats that; else what follows the last punctuation, box or verb, from its first article or number
word on. A box behind a verb ("is [..]") stands alone. Boxes in a row belong to one phrase. Brackets
that hold anything but numbers, or one number alone, are ordinary text; what else deviates is left
out of the text, counted, and named in the answer's notes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mg_jax.answer import Answer
from mg_jax.text import markup
from mg_jax.text.codecs.compose import Piece, compose
from mg_jax.text.codecs.ferret_places import parse_box
from mg_jax.text.codecs.generated import span_scores, text_of, until_end

REGION = "<region_fea>"
_MARK = re.compile(rf"{REGION}|\[[\s+-]*\d[\s\d.+-]*,[\s\d.,+-]*(?:\]|$)")
_JOINS = re.compile(r"\s*(?:,|and|&|,\s*and)?\s*", re.I)
_STOP = re.compile(r"[.,;:!?()\"“”\n](?=\s|$)|\n")
_ARTICLES = (
    "a|an|the|this|that|these|those|his|her|its|their|my|our|your|some|several|many|all|both|each|"
    "every|another|no|one|two|three|four|five|six|seven|eight|nine|ten|\\d+"
)
_ARTICLE = re.compile(rf"(?<![\w'-])(?:{_ARTICLES})\s", re.I)
_VERBS = (
    "is|are|was|were|be|has|have|had|shows?|contains?|includes?|depicts?|see|sees|holds?|wears?|"
    "stands?|sits?|while|which|who|there's"
)
_BREAK = re.compile(rf"\b(?:{_VERBS}|(?:and|or)(?=\s+(?:{_ARTICLES})\s)|^(?:and|or))\s+", re.I)
_RELATION = re.compile(
    r"(?:(?:to|on|in|at|from) the \w+(?: \w+)? of|in front of|(?:next|close|nearest) to|near|"
    r"beside|above|below|under|behind|over|inside|on|in|at|by|of|from|to|with)\s+",
    re.I,
)
_OPEN = re.compile(rf"(?:^|\b)(?:{_VERBS}|at|in|on|here|there|located|to|of|by)\s*$", re.I)


def decode_answer(
    tokenizer: Any,
    stops: Sequence[str],
    ids: Iterable[int],
    logprobs: Iterable[float] | None,
    width: int,
    height: int,
    question: str | None,
    notes: tuple[str, ...],
) -> Answer:
    """`FerretCodec.decode`, which see; stops: texts that end an answer."""
    faults: Counter[str] = Counter()
    tokens, logs = until_end(tokenizer, stops, ids, logprobs, faults)
    asked = [s.text.strip() for s in markup.parse(question or "") if s.kind == "phrase"]
    reader = Reader(faults, [phrase for phrase in asked if phrase])
    written = text_of(tokenizer, stops, tokens)
    reader.read(written)
    scores = span_scores(tokenizer, tokens, logs, reader.spans)
    pixels = np.asarray(reader.boxes, np.float64).reshape(-1, 4) * [width, height, width, height]
    answer = compose(reader.pieces, faults, pixels, scores, question, notes, width, height)
    return replace(answer, written=written.strip())


def phrase_start(text: str) -> int:
    """Where the noun phrase that ends a text begins; the text's length where there is none."""
    clause = _STOP.split(text)[-1]
    if _OPEN.search(clause) or not clause.strip():
        return len(text)
    start = max((match.end() for match in _BREAK.finditer(clause.rstrip())), default=0)
    start += len(clause[start:]) - len(clause[start:].lstrip())
    while match := _RELATION.match(clause, start):
        start = match.end()
    article = _ARTICLE.search(clause, start)
    return len(text) - len(clause) + (article.start() if article else start)


class Reader:
    """Collects `pieces` (see `compose.Piece`), `boxes` xyxy in [0, 1] with the `spans` of their
    characters, and counts `faults` by name. asked: phrases that the question names."""

    def __init__(self, faults: Counter[str], asked: Sequence[str] = ()):
        self.faults, self.asked = faults, asked
        self.pieces: list[Piece] = []
        self.boxes: list[tuple[float, ...]] = []
        self.spans: list[tuple[int, int]] = []
        self.text = ""  # since the last box
        self.open = False  # the last piece takes further boxes

    def read(self, text: str) -> None:
        """Take the text of an answer."""
        place = 0
        for match in _MARK.finditer(text):
            self.text += text[place : match.start()]
            place = match.end()
            if match[0] == REGION:
                self.faults["region token in the answer"] += 1
            else:
                self.box(match[0], match.span())
        self.text += text[place:]
        self.words(self.text)
        for n, strip in ((0, str.lstrip), (-1, str.rstrip)):
            if self.pieces:
                kind, words, boxes = self.pieces[n]
                self.pieces[n] = (kind, strip(words), boxes)

    def words(self, text: str, phrase: bool = False) -> None:
        """Add a text, or a phrase."""
        text = text.strip(" \t") if "\n" in text else " ".join(text.split())
        if text:
            self.pieces.append(("phrase" if phrase else "text", text, []))

    def box(self, text: str, span: tuple[int, int]) -> None:
        """Take a bracketed text."""
        box = parse_box(text)
        if isinstance(box, str):
            self.faults[box] += 1
            return
        if not (self.open and _JOINS.fullmatch(self.text)):
            start = self.begin()
            self.words(self.text[:start])
            if self.text[start:].strip():
                self.words(self.text[start:], phrase=True)
            else:
                self.pieces.append(("regions", "", []))
        self.text, self.open = "", True
        numbers = self.pieces[-1][2]
        if box in [self.boxes[n] for n in numbers]:
            self.faults["repeated box"] += 1
            return
        numbers.append(len(self.boxes))
        self.boxes.append(box)
        self.spans.append(span)

    def begin(self) -> int:
        """Where the phrase at the end of the text begins."""
        text = self.text.rstrip()
        for phrase in self.asked:
            start = len(text) - len(phrase)
            whole = start >= 0 and not text[:start][-1:].isalnum()
            if whole and text[start:].casefold() == phrase.casefold():
                return start
        return phrase_start(self.text)
