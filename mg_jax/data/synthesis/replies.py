"""What a model answers, as data: JSON out of chatty text, and texts that point at `[n]`.

Every reader raises `Unreadable` with a reason that may be told to the model.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from mg_jax.data.sources.free_text import to_markup
from mg_jax.text import markup, words

_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_MARK = re.compile(r"\[\s*(\d+)\s*\]")
_GROUP = re.compile(r"\[\s*\d+\s*(?:,\s*\d+\s*)+\]")
_PHRASE = re.compile(r"<p>\s*([^<>\[\]]*?)\s*</p>\s*((?:\[\s*\d+\s*\]\s*)*)")
# What is left of malformed marks when the good ones are taken out
_LEFT = re.compile(r"</?p\b|\[\s*\d|\d\s*\]|</?roi|<[ro][:b]")
# A text that speaks of the numbers drawn on the picture, which training pictures do not have; a
# number that the picture itself shows ("number 7 on his shirt") is no such thing.
_OF_MARKS = re.compile(
    r"\b(?:marked|labell?ed|tagged|numbered|annotated)\s+(?:as\s+|with\s+|by\s+)?(?:the\s+)?"
    r"(?:numbers?\s+|no\.?\s*|#\s*)?\[?\d"
    r"|\b(?:mark|marker|label|tag)\s+(?:number\s+|no\.?\s*|#\s*)?\[?\d"
    r"|\b(?:object|region|item|box)\s+(?:number\s+|no\.?\s*|#\s*)?\d"
    r"|\bnumber\s+\[\d"
    r"|\b(?:numbered|numeric|marked|labell?ed)\s+(?:mark|label|tag|circle|dot|plate|object|region)",
    re.IGNORECASE,
)


class Unreadable(Exception):
    """An answer that is not what was asked for."""


def read_json(text: str) -> Any:
    """The first JSON object of an answer, which may stand in a code fence or between words, after
    the thoughts of a model that thinks aloud."""
    text = _THOUGHTS.sub("", text)
    decoder = json.JSONDecoder(strict=False)
    start = text.find("{")
    if start < 0:
        raise Unreadable("it holds no JSON object")
    while start >= 0:
        try:
            value = decoder.raw_decode(text, start)[0]
            if isinstance(value, dict):
                return value
        except (ValueError, RecursionError):
            pass
        start = text.find("{", start + 1)
    raise Unreadable("its JSON is malformed or cut off")


def entries(text: str, key: str) -> list[Any]:
    """The list at `key` of the JSON in an answer."""
    found = read_json(text).get(key)
    if not isinstance(found, list):
        raise Unreadable(f'it has no list "{key}"')
    return found


def names(text: str) -> list[str]:
    """The names of {"objects": [...]}: lower case, each once; a model may write {"name": ...}."""
    found = entries(text, "objects")
    found = [row.get("name") if isinstance(row, Mapping) else row for row in found]
    nouns = (words.noun(name.strip(" .,;")) for name in found if isinstance(name, str))
    return list(dict.fromkeys(name for name in nouns if name and len(name) <= 80))


def number(value: Any) -> int:
    """A mark as a number from 0: 3, "3" or "[3]" is 2."""
    match = re.fullmatch(r"\[?\s*(\d+)\s*\]?", str(value).strip())
    if isinstance(value, bool) or not match:
        raise Unreadable(f"{str(value)[:40]!r} is no number of an object")
    return int(match[1]) - 1


def text_of(row: Any, key: str) -> str:
    """A text of an entry that is not empty and can be written as UTF-8."""
    value = row.get(key) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise Unreadable(f'an entry has no text "{key}"')
    _check_characters(value)
    return " ".join(value.split())


def _check_characters(text: str) -> None:
    """Raises Unreadable for a lone surrogate, "\\ud83d" in JSON: no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unreadable("a text holds half of a character") from None


def marked(text: str, count: int, alone: str = "r") -> str:
    """A text with `<p>phrase</p>[1][2]` and `[3]`, counted from 1, as neutral markup.

    alone: what a mark without phrase becomes, "r" for `<r:2>`, "object" for `<object:2>`.
    Raises Unreadable for a mark beyond `count`, a phrase without mark, a mark that is not closed,
    a text that speaks of the marks themselves, and one that holds half of a character.
    """
    _check_characters(text)
    text = _GROUP.sub(lambda m: "".join(f"[{n}]" for n in re.findall(r"\d+", m[0])), text)
    if _OF_MARKS.search(re.sub(r"</?p>", "", text)):
        raise Unreadable("a text speaks of the numbers instead of the things")
    out: list[markup.Segment] = []
    end = 0

    def regions(marks: str) -> tuple[int, ...]:
        found = tuple(dict.fromkeys(int(n) - 1 for n in re.findall(r"\d+", marks)))
        for k in found:
            if not 0 <= k < count:
                raise Unreadable(f"a text points at [{k + 1}], which is not in the list")
        return found

    def plain(part: str) -> None:
        last = 0
        for mark in _MARK.finditer(part):
            literal(part[last : mark.start()])
            (k,) = regions(mark[0])
            out.append(markup.Segment("region" if alone == "r" else "object", regions=(k,)))
            last = mark.end()
        literal(part[last:])

    def literal(part: str) -> None:
        if _LEFT.search(part):
            raise Unreadable("a mark is malformed: write <p>phrase</p>[1]")
        if part:
            out.append(markup.Segment("text", to_markup(part)))

    for phrase in _PHRASE.finditer(text):
        plain(text[end : phrase.start()])
        found = regions(phrase[2])
        if not phrase[1] or not found:
            raise Unreadable("a phrase has no number behind it, or no words")
        out.append(markup.Segment("phrase", phrase[1], found))
        if phrase[2].endswith(" "):
            out.append(markup.Segment("text", " "))
        end = phrase.end()
    plain(text[end:])
    return markup.format(out).strip()
