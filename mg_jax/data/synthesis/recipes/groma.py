"""Groma's grounded conversations (Groma Instruct), written by an endpoint that sees numbered marks.

Overlapping boxes go until 3 to 10 are left; numbers are drawn at their centres on the picture that
is sent; labels and descriptions of the regions, captions, and questions with answers are told
besides. Answers come with `[n]`, which becomes neutral markup. Without endpoint the task builders
write the conversation, worded as Groma's.
"""

from mg_jax.data.synthesis import filters, pictures, steps
from mg_jax.data.synthesis.case import Case
from mg_jax.data.synthesis.filters import Thing
from mg_jax.data.synthesis.recipes.base import Made, Stage, dialogue
from mg_jax.data.synthesis.work import descriptions
from mg_jax.data.tasks import converse
from mg_jax.example import Question
from mg_jax.text import instructions, markup
from mg_jax.text.instructions import GROUNDING

_TASKS = {"dialogue": 2.0, "relation": 1.0, "all_instances": 1.0}
_TOLD = 6  # captions, and questions, that the endpoint is told


def groma(case: Case) -> Made:
    """One conversation about the numbered things of a picture."""
    found = steps.things(case)
    kept = filters.apart(found, case.tools.limits, case.drops) if found else None
    if kept is None:
        return Made(counts={"things": len(found)})
    by_endpoint = case.tools.endpoint is not None
    stage = Stage(case, kept, () if by_endpoint else steps.relate(case, kept), found)
    if by_endpoint:
        boxes = [thing.box for thing in kept]
        shown = pictures.with_marks(case.pixels, boxes, case.tools.side)
        values = {
            "objects": "\n".join(_known(case, n, thing) for n, thing in enumerate(kept)),
            "captions": steps.lines([markup.strip(c) for c in case.example.captions][:_TOLD]),
            "questions": steps.lines(map(_answered, case.example.questions[:_TOLD])),
            "count": case.tools.rounds,
        }
        turns = dialogue(case, "groma", values, len(kept), shown)
        stage.add("conversation", turns, stage.regions)
        return stage.finished()
    wording = instructions.get("groma")
    talk = converse(stage.known(), case.rng, _TASKS, wording, case.tools.rounds)
    if talk is not None:
        said = [(t.user.removeprefix(GROUNDING), t.assistant or "") for t in talk.turns]
        stage.add("conversation", said, talk.regions)
    return stage.finished()


def _known(case: Case, n: int, thing: Thing) -> str:
    """The line of a numbered thing: its name and what else is said of it."""
    more = [text for text in descriptions(case.example, thing.region) if text != thing.name]
    return f"[{n + 1}] {thing.name}" + (f": {'; '.join(more[:3])}" if more else "")


def _answered(question: Question) -> str:
    return markup.strip(f"{question.text} {question.answers[0] if question.answers else ''}")
