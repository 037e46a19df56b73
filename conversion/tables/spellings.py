"""Which of an architecture's spellings a checkpoint uses, told by one tensor's name.

A table that knows several has MARKS: spelling -> a name that only this spelling has. The first is
the one that published files use and that an export writes unless asked otherwise.
"""

from collections.abc import Collection, Mapping


def spelling_of(names: Collection[str], marks: Mapping[str, str]) -> str:
    """The spelling of `marks` whose mark is among `names`; the first when none is."""
    return next((spelling for spelling, mark in marks.items() if mark in names), next(iter(marks)))
