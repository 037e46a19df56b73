"""Scenes with questions and captions, for the tests of VQA readers."""

from dataclasses import replace

from mg_jax.data.sources import open_source
from mg_jax.example import Example, Question
from mg_jax.text import markup

TASKS = "presence+count+attribute+caption"


def scenes(n=4, hint=""):
    """Examples whose questions are the turns of scenes; the second answer is a sentence."""
    source = open_source(f"scenes:seed=77,n={n},size=96x64,turns=4,tasks={TASKS}")
    out = []
    for example in (source[i] for i in range(n)):
        questions = {}
        for turn, record in zip(example.turns, example.meta["turns"], strict=True):
            text = markup.strip(turn.user)
            answers = (record["answer"], markup.strip(turn.assistant))
            questions[text] = Question(text, answers, (answers[0], "none of these"), hint)
        captions = tuple(q.answers[1] for q in questions.values())
        out.append(
            replace(example, questions=tuple(questions.values()), captions=captions, turns=())
        )
    return out


def all_of(source) -> list[Example]:
    return [source[i] for i in range(len(source))]
