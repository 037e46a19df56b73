"""Ferret-v2's data unification (spec 8): questions and answers get the boxes of what they name.

Nouns that can be grounded get the boxes that a detector finds (or annotations have), in question
and answer; an answer that is read from the picture gets the boxes of its words by OCR. A question
whose answer has boxes ends with Ferret-v2's sentence that asks for coordinates.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mg_jax.data.synthesis import filters, replies, steps
from mg_jax.data.synthesis.case import Case
from mg_jax.data.synthesis.filters import Thing
from mg_jax.data.synthesis.recipes.base import Made, Stage
from mg_jax.example import Box, Region
from mg_jax.text import markup
from mg_jax.text.instructions.ferret import COORDINATES

_TOKEN = re.compile(r"\w+(?:['’.,:/-]\w+)*")
_QUOTED = re.compile(r"[\"“]([^\"“”]+)[\"”]")
_ROUNDS = 10  # questions of a picture in one conversation


def ferret(case: Case) -> Made:
    """The dialogue or the questions of a picture as a conversation with boxes."""
    turns = _texts(case)
    if not turns:
        case.drops.add("no texts", case.item.key)
        return Made()
    found = filters.few_boxes(_things(case, turns), case.tools.limits, case.drops)
    read = _read(case)
    stage = Stage(case, found)
    # marks count in the regions of the example first, then in the things, then in what was read
    places = [*case.example.regions, *stage.regions]
    finder = _Finder(found, len(case.example.regions))
    said, grounded = [], 0
    for user, assistant in turns:
        user, assistant = finder.mark(user), _mark_words(assistant, read, places)
        assistant = finder.mark(assistant)
        if markup.regions_of(assistant):
            user = f"{user.rstrip()} {COORDINATES}"
        grounded += bool(markup.regions_of(user) or markup.regions_of(assistant))
        said.append((user, assistant))
    if not grounded:
        case.drops.add("ungrounded", case.item.key)
        return stage.finished(turns=len(said))
    stage.add("vqa", said, places)
    return stage.finished(turns=len(said), **{"turns with boxes": grounded})


def _texts(case: Case) -> list[tuple[str, str]]:
    """The (question, answer) pairs of a picture, in neutral markup."""
    turns = [(t.user, t.assistant) for t in case.example.turns if t.assistant]
    if not turns:
        turns = [
            (q.text, q.answers[0])
            for q in case.example.questions[:_ROUNDS]
            if not q.choices and q.answers and q.answers[0].strip()
        ]
    return [(user, answer or "") for user, answer in turns]


def _things(case: Case, turns: Sequence[tuple[str, str]]) -> list[Thing]:
    """The places of what the texts name."""
    texts = [markup.strip(text) for pair in turns for text in pair]
    tools = case.tools
    names: list[str] = []
    if tools.detector is None:
        if tools.ocr is not None and not (case.example.objects or case.example.regions):
            return []
    elif tools.tags:
        names = [tag for tag in tools.tags if any(steps.mention(tag, text) for text in texts)]
    elif tools.endpoint is not None:
        listed = case.ask("nouns", {"texts": steps.lines(texts)}, replies.names) or []
        names = [name for name in listed if any(steps.mention(name, text) for text in texts)]
    else:
        names = list(dict.fromkeys(name for text in texts for name in tools.nouns(text)))
    return steps.things(case, names[: tools.most])


@dataclass(frozen=True)
class _Finder:
    """Puts the marks of things into texts. first: the number of the first thing's region."""

    found: Sequence[Thing]
    first: int

    def mark(self, text: str) -> str:
        """The text with the first mention of each name grounded on all of its boxes; longer names
        come first, and what is marked already stays as it is."""
        segments = markup.parse(text)
        names = dict.fromkeys(thing.name for thing in self.found)
        for name in sorted(names, key=lambda n: (-len(n), n)):
            boxes = tuple(n + self.first for n, t in enumerate(self.found) if t.name == name)
            for k, s in enumerate(segments):
                match = steps.mention(name, s.text) if s.kind == "text" else None
                if match:
                    parts = (s.text[: match.start()], match[0], s.text[match.end() :])
                    segments[k : k + 1] = [
                        markup.Segment("text", parts[0]),
                        markup.Segment("phrase", parts[1], boxes),
                        markup.Segment("text", parts[2]),
                    ]
                    break
        return markup.format(s for s in segments if s.kind != "text" or s.text)


def _read(case: Case) -> list[tuple[str, Region]]:
    """The words of the picture, by OCR, in reading order, where there is an OCR."""
    if case.tools.ocr is None:
        return []
    with case.tools.looking:
        regions = case.tools.ocr(case.pixels)
    things = [Thing(region.label or "", region) for region in regions]
    kept = filters.sure(things, case.tools.limits, case.drops)
    return [(thing.name, thing.region) for thing in kept]


def _mark_words(answer: str, read: Sequence[tuple[str, Region]], places: list[Region]) -> str:
    """An answer that is, or quotes, words of the picture, grounded on them; they join `places`."""
    if markup.regions_of(answer) or not read:
        return answer
    quoted = [m.span(1) for m in _QUOTED.finditer(answer)]
    bare = answer.strip().rstrip(".")
    start = answer.find(bare)
    for begin, end in [(start, start + len(bare)), *quoted]:
        region = _among(answer[begin:end], read)
        if region is not None:
            places.append(region)
            phrase = markup.Segment("phrase", answer[begin:end], (len(places) - 1,))
            return answer[:begin] + markup.format([phrase]) + answer[end:]
    return answer


def _among(text: str, read: Sequence[tuple[str, Region]]) -> Region | None:
    """Where consecutive words of the picture say this text, the box around them; None where they
    do not, or do so in several places."""
    wanted = _tokens(text)
    tokens = [(token, region) for word, region in read for token in _tokens(word)]
    spots = [
        n
        for n in range(len(tokens) - len(wanted) + 1)
        if wanted and [token for token, _ in tokens[n : n + len(wanted)]] == wanted
    ]
    if len(spots) != 1:
        return None
    boxes: list[Box] = [region.box for _, region in tokens[spots[0] : spots[0] + len(wanted)]]
    low = (min(b[0] for b in boxes), min(b[1] for b in boxes))
    high = (max(b[2] for b in boxes), max(b[3] for b in boxes))
    return Region.from_box((*low, *high), label=text.strip())


def _tokens(text: str) -> list[str]:
    return [token.casefold() for token in _TOKEN.findall(text)]
