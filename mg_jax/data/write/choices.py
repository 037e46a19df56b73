"""Multiple choice in the folders of AI2D and ScienceQA.

Only questions whose first answer is among their choices are written; marks in them are lost.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.write.base import save_picture, write_json
from mg_jax.data.write.questions import questions_of
from mg_jax.example import Example, Question


def _of_choice(example: Example) -> list[Question]:
    return [q for q in questions_of(example) if q.answers[0] in q.choices]


def write_ai2d(
    examples: Iterable[Example], folder: str | Path, tests: Collection[int] = ()
) -> Path:
    """Write questions/, images/ and annotations/ with NUMBER.png(.json) from 0 on, and
    ai2d_test_ids.csv with the numbers in `tests`.

    The diagrams have no annotated words, so no question is about letters. Of questions on one
    picture with the same words the last counts. Returns the folder, as `ai2d:FOLDER` takes it.
    """
    folder = Path(folder)
    for n, example in enumerate(examples):
        name = save_picture(example, folder / "images", "png", str(n))
        questions = {
            q.text: {
                "abcLabel": False,
                "answerTexts": list(q.choices),
                "correctAnswer": q.choices.index(q.answers[0]),
                "questionId": f"{name}-{k}",
            }
            for k, q in enumerate(_of_choice(example))
        }
        write_json(
            folder / "questions" / f"{name}.json", {"imageName": name, "questions": questions}
        )
        empty: dict[str, Any] = {"text": {}, "blobs": {}, "arrows": {}, "arrowHeads": {}}
        write_json(
            folder / "annotations" / f"{name}.json",
            empty | {"relationships": {}, "imageConsts": {}},
        )
    listed = "".join(f"{n}\n" for n in sorted(tests))
    (folder / "ai2d_test_ids.csv").write_text(listed, encoding="utf-8")
    return folder


def write_scienceqa(examples: Iterable[Example], folder: str | Path, split: str = "train") -> Path:
    """Write problems.json, pid_splits.json and images/SPLIT/NUMBER/image.png, a problem for each
    question; lecture and solution from meta, where they are. Examples may lack a picture.

    Returns the folder, as `scienceqa:FOLDER,SPLIT` takes it.
    """
    folder = Path(folder)
    problems: dict[str, Any] = {}
    for example in examples:
        for q in _of_choice(example):
            number = str(len(problems) + 1)
            image = None
            if example.image is not None:
                image = save_picture(example, folder / "images" / split / number, "png", "image")
            problems[number] = {
                "question": q.text,
                "choices": list(q.choices),
                "answer": q.choices.index(q.answers[0]),
                "hint": q.hint,
                "image": image,
                "task": "closed choice",
                "grade": "grade1",
                "subject": "natural science",
                "topic": "",
                "category": "",
                "skill": "",
                "lecture": from_markup(example.meta.get("lecture", "")),
                "solution": from_markup(example.meta.get("solution", "")),
                "split": split,
            }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {split: list(problems)})
    return folder
