"""Questions in the files of DocVQA, DVQA, TextVQA, VQAv2 and GQA.

Marks in questions and answers are lost: these formats know no places. Questions without an answer
are not written. Where a format fixes the ending of its pictures, it is jpg.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mg_jax.data.sources.free_text import from_markup
from mg_jax.data.sources.textvqa import OCR_HINT
from mg_jax.data.write.base import pixel_box, save_picture, write_json
from mg_jax.example import Example, Question

_TEN = 10  # answers of a question in VQAv2 and TextVQA


def questions_of(example: Example) -> list[Question]:
    """The answered questions of an example as free texts."""
    return [
        replace(
            q,
            text=from_markup(q.text),
            answers=tuple(map(from_markup, q.answers)),
            choices=tuple(map(from_markup, q.choices)),
            hint=from_markup(q.hint),
        )
        for q in example.questions
        if q.answers
    ]


def _ten(question: Question) -> list[str]:
    """Ten answers: those there are, the first repeated for the rest."""
    return [*question.answers[:_TEN], *[question.answers[0]] * (_TEN - len(question.answers))]


def write_docvqa(
    examples: Iterable[Example], folder: str | Path, suffix: str = "png"
) -> tuple[Path, Path]:
    """Write FOLDER/train_v1.0.json and FOLDER/documents/ID_1.SUFFIX.

    Returns the file and the folder, as `docvqa:FILE,FOLDER` takes them.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for n, example in enumerate(examples, 1):
        name = save_picture(example, folder / "documents", suffix, f"{example.id}_1")
        for q in questions_of(example):
            rows.append(
                {
                    "questionId": len(rows) + 1,
                    "question": q.text,
                    "image": f"documents/{name}",
                    "docId": n,
                    "ucsf_document_id": example.id,
                    "ucsf_document_page_no": "1",
                    "answers": list(q.answers),
                    "data_split": "train",
                }
            )
    head = {"dataset_name": "docvqa", "dataset_version": "1.0", "dataset_split": "train"}
    return write_json(folder / "train_v1.0.json", head | {"data": rows}), folder


def write_dvqa(examples: Iterable[Example], folder: str | Path) -> tuple[Path, Path]:
    """Write FOLDER/train_qa.json and FOLDER/images/bar_train_NUMBER.png.

    Returns the two paths, as `dvqa:FILE,IMAGES` takes them.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    for n, example in enumerate(examples, 1):
        name = save_picture(example, folder / "images", "png", f"bar_train_{n:08d}")
        for q in questions_of(example):
            rows.append(
                {
                    "question": q.text,
                    "question_id": len(rows) + 1,
                    "template_id": "reasoning",
                    "answer": q.answers[0],
                    "image": name,
                    "answer_bbox": [],
                }
            )
    return write_json(folder / "train_qa.json", rows), folder / "images"


def write_textvqa(examples: Iterable[Example], folder: str | Path) -> tuple[Path, Path, Path]:
    """Write FOLDER/TextVQA_0.5.1_train.json, FOLDER/train_images/NUMBER.jpg and, from the hints
    that hold them, the recognised words as FOLDER/TextVQA_Rosetta_OCR_v0.2_train.json.

    Returns the three paths, as `textvqa:FILE,IMAGES,OCR` takes them.
    """
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    words = []
    for n, example in enumerate(examples, 1):
        number = f"{n:016x}"
        save_picture(example, folder / "train_images", "jpg", number)
        asked = questions_of(example)
        hints = [q.hint.removeprefix(OCR_HINT) for q in asked if q.hint.startswith(OCR_HINT)]
        words.append(
            {
                "image_id": number,
                "ocr_tokens": hints[0].split(", ") if hints else [],
                "ocr_info": [],
            }
        )
        for q in asked:
            rows.append(
                {
                    "question": q.text,
                    "image_id": number,
                    "image_classes": [],
                    "flickr_original_url": "",
                    "flickr_300k_url": "",
                    "image_width": example.width,
                    "image_height": example.height,
                    "answers": _ten(q),
                    "question_tokens": q.text.lower().rstrip("?").split(),
                    "question_id": len(rows),
                    "set_name": "train",
                }
            )
    head = {"dataset_type": "train", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    ocr = {"dataset_type": "train", "dataset_name": "textvqa", "dataset_version": "0.2"}
    return (
        write_json(folder / "TextVQA_0.5.1_train.json", head | {"data": rows}),
        folder / "train_images",
        write_json(folder / "TextVQA_Rosetta_OCR_v0.2_train.json", ocr | {"data": words}),
    )


def write_vqav2(examples: Iterable[Example], folder: str | Path) -> tuple[Path, Path, Path]:
    """Write v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json and
    train2014/COCO_train2014_NUMBER.jpg under FOLDER.

    Returns the three paths, as `vqav2:QUESTIONS,ANNOTATIONS,IMAGES` takes them.
    """
    folder = Path(folder)
    questions, annotations = [], []
    for n, example in enumerate(examples, 1):
        save_picture(example, folder / "train2014", "jpg", f"COCO_train2014_{n:012d}")
        for k, q in enumerate(questions_of(example)):
            number = {"image_id": n, "question_id": n * 1000 + k}
            questions.append(number | {"question": q.text})
            answers = [
                {"answer": a, "answer_confidence": "yes", "answer_id": i}
                for i, a in enumerate(_ten(q), 1)
            ]
            first = q.answers[0]
            annotations.append(
                number
                | {
                    "question_type": " ".join(q.text.lower().split()[:2]),
                    "multiple_choice_answer": first,
                    "answers": answers,
                    "answer_type": "yes/no"
                    if first in ("yes", "no")
                    else ("number" if first.isdigit() else "other"),
                }
            )
    head = {"info": {}, "data_type": "mscoco", "data_subtype": "train2014", "license": {}}
    return (
        write_json(
            folder / "v2_OpenEnded_mscoco_train2014_questions.json",
            head | {"task_type": "Open-Ended", "questions": questions},
        ),
        write_json(
            folder / "v2_mscoco_train2014_annotations.json", head | {"annotations": annotations}
        ),
        folder / "train2014",
    )


def write_gqa(examples: Iterable[Example], folder: str | Path) -> tuple[Path, Path, Path]:
    """Write train_balanced_questions.json, images/NUMBER.jpg and train_sceneGraphs.json under
    FOLDER; the full answer is the last of the answers.

    The things of the graph are the regions, or without these the objects. Returns the three
    paths, as `gqa:QUESTIONS,IMAGES,GRAPHS` takes them.
    """
    folder = Path(folder)
    questions: dict[str, Any] = {}
    graphs: dict[str, Any] = {}
    for n, example in enumerate(examples, 1):
        image = str(n)
        save_picture(example, folder / "images", "jpg", image)
        graphs[image] = _graph(example)
        for q in questions_of(example):
            number = f"{len(questions) + 1:08d}"
            questions[number] = {
                "semantic": [],
                "entailed": [],
                "equivalent": [number],
                "question": q.text,
                "imageId": image,
                "isBalanced": True,
                "groups": {"global": None, "local": None},
                "answer": q.answers[0],
                "semanticStr": "",
                "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                "types": {},
                "fullAnswer": q.answers[-1],
            }
    return (
        write_json(folder / "train_balanced_questions.json", questions),
        folder / "images",
        write_json(folder / "train_sceneGraphs.json", graphs),
    )


def _graph(example: Example) -> dict[str, Any]:
    things: dict[str, Any] = {}
    for n, region in enumerate(example.regions or example.objects):
        x0, y0, x1, y1 = pixel_box(region, example)
        things[str(n)] = {
            "name": region.label or "object",
            "x": x0,
            "y": y0,
            "w": x1 - x0,
            "h": y1 - y0,
            "attributes": [],
            "relations": [
                {"name": name, "object": str(other)}
                for thing, name, other in example.relations
                if thing == n
            ],
        }
    return {"width": example.width, "height": example.height, "objects": things}
