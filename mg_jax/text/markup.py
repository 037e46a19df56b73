"""Neutral markup: how turns of an `Example` point at its regions, whatever the system.

    <p>a dog</p><r:0><r:3>   the phrase "a dog" is grounded on regions 0 and 3
    <p>a dog</p>             a phrase without a place (in "Locate <p>a dog</p>.")
    <r:2>                    region 2 is meant
    <object:2>               the crop of region 2
    <image>                  the picture

Anything else is literal text, including marks that are not closed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mg_jax.errors import UserError

Kind = Literal["text", "phrase", "region", "object", "image"]

_MARK = re.compile(
    r"<p>(?P<phrase>(?:(?!</?p>|<r:\d+>|<object:\d+>|<image>).)*)</p>(?P<ids>(?:\s*<r:\d+>)*)"
    r"|<r:(?P<region>\d+)>|<object:(?P<object>\d+)>|(?P<image><image>)",
    re.DOTALL,
)

# Answers to a question for something that is not in the picture; {} takes a noun phrase
# without article ("red ball").
ABSENT = (
    "There is no {} in the image.",
    "There is no {} here.",
    "No {} is visible in the picture.",
    "I cannot find any {} in this picture.",
    "I do not see any {} in the image.",
    "The picture shows no {}.",
)


@dataclass(frozen=True)
class Segment:
    """One part of a marked text.

    kind "text": `text`; "phrase": `text` grounded on `regions` (may be empty);
    "region" and "object": `regions` holds the one index; "image": neither.
    """

    kind: Kind
    text: str = ""
    regions: tuple[int, ...] = ()


def parse(text: str) -> list[Segment]:
    """The segments of a marked text, in order; adjacent text is one segment."""
    segments: list[Segment] = []
    end = 0
    for match in _MARK.finditer(text):
        if match.start() > end:
            segments.append(Segment("text", text[end : match.start()]))
        end = match.end()
        if match["phrase"] is not None:
            ids = tuple(int(k) for k in re.findall(r"\d+", match["ids"]))
            segments.append(Segment("phrase", match["phrase"], ids))
        elif match["region"]:
            segments.append(Segment("region", regions=(int(match["region"]),)))
        elif match["object"]:
            segments.append(Segment("object", regions=(int(match["object"]),)))
        else:
            segments.append(Segment("image"))
    if end < len(text):
        segments.append(Segment("text", text[end:]))
    return segments


def format(segments: Iterable[Segment]) -> str:
    """The marked text of segments; `parse` reads it back."""
    out = []
    for s in segments:
        if s.kind == "text":
            out.append(s.text)
        elif s.kind == "image":
            out.append("<image>")
        elif s.kind == "phrase":
            out.append(f"<p>{s.text}</p>" + "".join(f"<r:{k}>" for k in s.regions))
        else:
            out.append(f"<{'r' if s.kind == 'region' else 'object'}:{s.regions[0]}>")
    return "".join(out)


def strip(text: str) -> str:
    """Plain text: phrases keep their words, the other marks vanish, spaces are tidied."""
    plain = "".join(s.text if s.kind in ("text", "phrase") else " " for s in parse(text))
    return re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\s+", " ", plain)).strip()


def regions_of(text: str) -> list[int]:
    """Every region index of a marked text, in order of appearance, repeats included."""
    return [k for s in parse(text) for k in s.regions]


def check(text: str, count: int, where: str) -> None:
    """Raises UserError when the text points at a region beyond the `count` there are."""
    for k in regions_of(text):
        if k >= count:
            raise UserError(
                f"{where}: the text points at region {k}, but there are {count} regions "
                "(counted from 0)"
            )


def renumber(text: str, offset: int) -> str:
    """The text with every region index raised by `offset`."""
    return format(replace(s, regions=tuple(k + offset for k in s.regions)) for s in parse(text))


def _absence() -> re.Pattern[str]:
    picture = r"(?:this |the |that )?(?:image|picture|photo|photograph|scene)"
    thing = r"(?!.*\bdoubt\b)[^.!?]+?"
    forms = (
        rf"there (?:is|are|was|were)(?: no| not any|n't any) {thing}",
        rf"no(?: such)? {thing} (?:is|are|can be) (?:visible|present|seen|found|shown|there).*",
        rf"(?:i|we) (?:cannot|can ?not|can't|do not|don't|could not|couldn't) "
        rf"(?:see|find|spot|locate|detect) {thing}",
        rf"{picture} (?:shows|contains|has|includes) no {thing}",
        rf"{picture} (?:does not|doesn't) (?:show|contain|have|include) {thing}",
        rf"{thing} (?:is|are) not (?:visible|present|there|shown|in {picture})(?: .*)?",
    )
    return re.compile(rf"(?:(?:no|sorry|unfortunately)[,.]? )?(?:{'|'.join(forms)})", re.I)


_ABSENT = _absence()


def says_absent(text: str) -> bool:
    """True when the first sentence of an answer says that the thing asked for is not there.

    Covers `ABSENT` and close paraphrases; an answer that grounds anything is not absent, which
    the caller checks (it knows the boxes).
    """
    plain = strip(text)
    plain = re.sub(r"^(no|sorry|unfortunately)[.!]\s+", r"\1, ", plain, flags=re.I)
    sentence = re.split(r"[.!?]", plain, maxsplit=1)[0].strip()
    return _ABSENT.fullmatch(sentence) is not None
