"""Names of classes and phrases of annotations as plain English."""

import functools
import re

from mg_jax.text import markup

_LIKE_YOU = re.compile(r"u(ni(?!n|m|d)|se|til|rin|ku|bi)|eu|one\b|once\b", re.I)
_SILENT_H = re.compile(r"hour|hon(est|or|our)|heir", re.I)
_ARTICLE = re.compile(r"(?:the|an?)\s+", re.I)


def a(phrase: str) -> str:
    """The phrase with its indefinite article."""
    vowel = phrase[0].lower() in "aeiou" and not _LIKE_YOU.match(phrase)
    return ("an " if vowel or _SILENT_H.match(phrase) else "a ") + phrase


def without_article(phrase: str) -> str:
    """The phrase without the article that it begins with, if it does."""
    article = _ARTICLE.match(phrase)
    return phrase[article.end() :] if article else phrase


def phrase(text: str | None) -> str | None:
    """The text on one line, so that `<p>...</p>` can hold it; None where that is impossible
    because it is empty, has marks of the markup in it, or half of a character (a lone surrogate,
    which JSON may hold and no tokenizer takes)."""
    text = " ".join((text or "").split())
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    marked = markup.Segment("phrase", text)
    return text if text and markup.parse(f"<p>{text}</p>") == [marked] else None


@functools.lru_cache(maxsize=16_384)  # the labels of a picture's data set, asked for every time
def noun(label: str | None) -> str | None:
    """The label of a class as words: lower case, "_" as a space; None as for `phrase`.

    Two labels of one class spelled differently ("Stop_sign", "stop sign") give the same noun.
    """
    return phrase((label or "").replace("_", " ").lower())
