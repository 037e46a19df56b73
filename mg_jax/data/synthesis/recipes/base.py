"""What the recipes share: conversations about the things of a picture, and what they leave."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mg_jax.data.synthesis import replies
from mg_jax.data.synthesis.case import Case
from mg_jax.data.synthesis.filters import Thing
from mg_jax.data.synthesis.replies import Unreadable
from mg_jax.data.synthesis.steps import Link
from mg_jax.data.tasks.base import Talk, classes
from mg_jax.example import Example, Region
from mg_jax.text import markup


@dataclass
class Made:
    """What a recipe made of a picture. conversations: examples with turns; annotated: one with the
    things and relations that were found, and no turn; counts: how many of what, for the report."""

    conversations: list[Example] = field(default_factory=list)
    annotated: Example | None = None
    counts: dict[str, int] = field(default_factory=dict)


class Stage:
    """The things of a picture and how they relate, and the conversations made about them.

    before: the things and those that were dropped for where they lie.
    """

    def __init__(
        self,
        case: Case,
        found: Sequence[Thing],
        links: Sequence[Link] = (),
        before: Sequence[Thing] | None = None,
    ):
        self.case, self.found, self.links = case, list(found), list(links)
        self.regions = tuple(named_region(thing) for thing in found)
        self.made: list[Example] = []
        self._asked: set[tuple[Any, ...]] = set()
        file = case.example.meta.get("file_name") or case.example.image
        meta = {"file_name": file} if isinstance(file, str) else {}
        self.bare = replace(
            case.example, regions=(), turns=(), objects=(), crowd=(), absent=(), captions=(),
            expressions=(), questions=(), relations=(), meta=meta,
        )  # fmt: skip
        self._before = found if before is None else before

    def known(self) -> Example:
        """The picture with its things as regions and objects, and how they relate.

        A detector has looked for all that bear a name; annotations say so of labelled objects.
        Names of which there may be more are those of `meta["not_exhaustive"]`.
        """
        count = Counter(thing.name for thing in self.found)
        if self.case.tools.detector is not None:
            whole = Counter(thing.name for thing in self._before)
        else:
            whole = Counter({name: len(at) for name, at in classes(self.case.example).items()})
        partial = sorted(name for name in count if count[name] != whole[name])
        meta = {**self.bare.meta, "not_exhaustive": partial} if partial else self.bare.meta
        return replace(
            self.bare, regions=self.regions, objects=self.regions, relations=tuple(self.links),
            meta=meta,
        )  # fmt: skip

    def annotated(self) -> Example:
        """The picture with everything that is known of it, and no turn."""
        known = self.known()
        plain = tuple(filter(None, map(markup.strip, self.case.example.captions)))
        return replace(known, captions=plain, meta={**known.meta, "task": "annotations"})

    def add(
        self,
        task: str,
        turns: Sequence[tuple[str, str]],
        regions: Sequence[Region],
        again: bool = False,
    ) -> bool:
        """A conversation, marks counting in `regions`, without questions that were asked of this
        picture before; False where none is left. again: no drop is counted for that, since the
        question is drawn again."""
        base = replace(self.bare, objects=self.regions)
        talk, places = Talk(base), tuple(regions)
        for user, assistant in turns:
            # by place, not by number: builders count regions from 0 in every conversation
            key = user, tuple(places[k].box for k in markup.regions_of(user))
            if key in self._asked:
                if not again:
                    self.case.drops.add("repeated", markup.strip(user))
                continue
            self._asked.add(key)
            talk.say(task, talk.move(user, places), talk.move(assistant, places))
        done = talk.done()
        if done is None:
            return False
        number = sum(e.meta["task"] == task for e in self.made)
        self.made.append(replace(done, id=f"{self.case.example.id}-{task}-{number}"))
        return True

    def finished(self, **counts: int) -> Made:
        """All of it."""
        found = {"things": len(self.found), "relations": len(self.links), **counts}
        for example in self.made:
            name = f"conversations: {example.meta['task']}"
            found[name] = found.get(name, 0) + 1
        return Made(self.made, self.annotated() if self.found else None, found)


def named_region(thing: Thing) -> Region:
    """The region of a thing, labelled with its name."""
    return replace(thing.region, label=thing.name)


def dialogue(
    case: Case, step: str, values: Mapping[str, Any], count: int, picture: Any = None
) -> list[tuple[str, str]]:
    """The turns of {"conversation": [{"question", "answer"}, ...]} by the prompt `step`, in neutral
    markup; single turns that are malformed are left out, and all of them where none of the answers
    points at anything."""
    rows = case.ask(step, values, lambda text: replies.entries(text, "conversation"), picture)
    turns: list[tuple[str, str]] = []
    for row in rows or ():
        try:
            user, assistant = replies.text_of(row, "question"), replies.text_of(row, "answer")
            turns.append((replies.marked(user, count), replies.marked(assistant, count)))
        except Unreadable as e:
            case.drops.add("malformed", f"{step}: {e}: {row!r}"[:200])
    if turns and not any(markup.regions_of(assistant) for _, assistant in turns):
        case.drops.add("ungrounded", step)
        return []
    return turns
