"""The exceptions that stand for a mistake of the user or of a file, not of the library."""

from collections.abc import Sequence

LONGEST = 400  # characters of a name in a message


class UserError(ValueError):
    """Bad input: one clear line that names the file, key or value at fault and the mend.

    Launchers print the line and exit with status 2; library callers may catch it as ValueError.
    """


class BadRecord(UserError):
    """One malformed record or unreadable picture of a data set.

    Batches go on without it as long as there are few of them (`Source.max_bad`).
    """


class Unfit(UserError):
    """A sound example that a stage does not take, such as one that it has no room for.

    Batches go on without it. reason: in few words, by which such examples are counted.
    """

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


def shown(text: str) -> str:
    """A name out of a file, made harmless and short enough for a line on a terminal."""
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return text if text.isprintable() else ascii(text)


def some(names: Sequence[str], count: int) -> list[str]:
    """The first `count` names; when there are more, a last entry says how many."""
    rest = len(names) - count
    return [*names[:count], *([f"... and {rest} more"] if rest > 0 else [])]
