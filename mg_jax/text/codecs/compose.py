"""From the pieces of a generated answer to an `Answer`, whatever the system."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mg_jax.answer import Answer, Phrase
from mg_jax.text import markup

# ("text", words, []), ("phrase", words, boxes) or ("regions", "", boxes); boxes by number
Piece = tuple[str, str, list[int]]

_NO_SPACE_BEFORE = re.compile(r"[.,;:!?)\]}'’”%/]|-\w")
_NO_SPACE_AFTER = re.compile(r"[(\[{“‘/#$-]$")


def compose(
    pieces: Sequence[Piece],
    faults: Mapping[str, int],
    pixels: np.ndarray,
    scores: np.ndarray,
    question: str | None,
    notes: tuple[str, ...],
    width: int,
    height: int,
) -> Answer:
    """The answer of pieces whose boxes are numbers into pixels [n, 4] (xyxy) and scores [n].

    faults: malformed marks by name and count, told in the notes. question: marked text whose
    first phrase names boxes that come without words.
    """
    named = next((s.text.strip() for s in markup.parse(question or "") if s.kind == "phrase"), "")
    text, written = "", ""
    phrases: list[Phrase] = []
    count = 0
    for kind, words, regions in pieces:
        marks = "".join(f"<r:{count + n}>" for n in range(len(regions)))
        count += len(regions)
        if kind == "regions":
            # An answer of regions alone is about what was asked for; it stays markup without words
            words = "" if text or phrases else named
        gap = _gap(text, words)
        start = len(text) + len(gap)
        text += gap + words
        if kind == "regions":
            written += marks
        elif kind == "phrase":
            written += f"{gap}<p>{words}</p>{marks}"
        else:
            written += gap + words
        if regions:
            phrases.append(
                Phrase(
                    words,
                    (start, start + len(words)),
                    tuple(
                        (float(a), float(b), float(c), float(d)) for a, b, c, d in pixels[regions]
                    ),
                    tuple(float(scores[k]) for k in regions),
                )
            )
    if faults:
        listed = ", ".join(f"{n} {fault}" for fault, n in sorted(faults.items()))
        total = sum(faults.values())
        notes += (f"{total} malformed mark{'s' * (total > 1)} in the answer: {listed}",)
    return Answer(
        text=text,
        phrases=tuple(phrases),
        absent=not phrases and markup.says_absent(text),
        notes=notes,
        width=width,
        height=height,
        markup=written,
    )


def _gap(before: str, after: str) -> str:
    """The space that is missing beside a mark, where English has one."""
    if not before or not after or before[-1].isspace() or after[0].isspace():
        return ""
    if _NO_SPACE_BEFORE.match(after) or _NO_SPACE_AFTER.search(before):
        return ""
    return " "
