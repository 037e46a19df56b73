"""Pieces of a conversation on their way to ids, and which of those are targets.

Upstream Ferret tokenises a whole conversation and then looks for the answers in it. So an answer
is not tokenised by itself: what stands before it decides how its first piece looks.
"""

from collections.abc import Sequence
from typing import Any

Piece = tuple[str | int, bool]  # a literal text or an id, and whether it is a target


def encode_marked(
    tokenizer: Any, pieces: Sequence[Piece], bos: bool
) -> tuple[list[int], list[bool]]:
    """(ids, targets) of the pieces as `tokenizer.encode_parts` gives them joined.

    Where text turns into a target in the middle of a run of text, the first id that differs from
    those of the text before is the first target.
    """
    ids = tokenizer.encode_parts([], bos)
    marks = [False] * len(ids)
    runs = _runs(pieces)
    for n, run in enumerate(runs):
        part, target = run[0]
        if isinstance(part, int):
            ids.append(part)
            marks.append(target)
            continue
        around = [runs[n - 1][0][0]] if n else []
        behind = [runs[n + 1][0][0]] if n + 1 < len(runs) else []
        whole = "".join(str(text) for text, _ in run)
        made = _inside(tokenizer, around, whole, behind)
        ends: list[int] = []
        text = ""
        for part, _ in run[:-1]:
            text += str(part)
            ends.append(_common(_inside(tokenizer, around, text, []), made))
        starts = [0, *ends]
        for (_, target), first, last in zip(run, starts, [*ends, len(made)], strict=True):
            marks += [target] * (last - first)
        ids += made
    return ids, marks


def _runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces, neighbouring texts together and ids alone; texts of one flag are joined."""
    runs: list[list[Piece]] = []
    for part, target in pieces:
        if part == "":
            continue
        if isinstance(part, str) and runs and isinstance(runs[-1][0][0], str):
            text, flag = runs[-1][-1]
            if flag == target:
                runs[-1][-1] = (f"{text}{part}", target)
            else:
                runs[-1].append((part, target))
        else:
            runs.append([(part, target)])
    return runs


def _inside(
    tokenizer: Any, before: Sequence[str | int], text: str, after: Sequence[str | int]
) -> list[int]:
    """Ids of a text between ids."""
    made = tokenizer.encode_parts([*before, text, *after], bos=False)
    return list(made[len(before) : len(made) - len(after)])


def _common(a: list[int], b: list[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
