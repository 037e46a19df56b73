"""Text that people or data sets wrote freely, in and out of neutral markup."""

import re

from mg_jax.text import markup

_LOOK_ALIKE = re.compile(r"<(/?p|r:\d+|object:\d+|image)>")
_LITERAL = re.compile(r"<(/?p|r:\d+|object:\d+|image) >")


def to_markup(text: str) -> str:
    """Free text as neutral markup without marks.

    What would be read as a mark (HTML's `<p>...</p>` in a text about web pages) gets a space
    before its `>`: markup has no other way to say that it is meant literally, and in HTML and XML
    `<p >` is the same tag. Texts that hold no mark come back as they are.
    """
    if not _LOOK_ALIKE.search(text) or all(s.kind == "text" for s in markup.parse(text)):
        return text
    return _LOOK_ALIKE.sub(r"<\1 >", text)


def from_markup(text: str) -> str:
    """Neutral markup as free text: marks vanish, and what `to_markup` marked literal is as before.

    Spaces are tidied where marks vanished.
    """
    if any(s.kind != "text" for s in markup.parse(text)):
        text = markup.strip(text)
    return _LITERAL.sub(r"<\1>", text)
