"""DVQA: questions on bar charts.

    train_qa.json, val_easy_qa.json, val_hard_qa.json:
    [{"image": "bar_train_00000001.png", "question_id": 1, "question": ..., "answer": "yes",
      "template_id": "structure" (the paper's question_type), "answer_bbox": [x, y, w, h] or []}]

and one folder with all pictures. Numbers as answers are taken as text. The boxes of answers and
the kinds of questions are not kept.
"""

from pathlib import Path

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields
from mg_jax.data.sources.json_rows import JsonRows
from mg_jax.data.sources.pictured import AskedSource
from mg_jax.errors import BadRecord


class DvqaSource(AskedSource):
    """The questions of a DVQA json. Raises UserError for a missing or malformed file, or when no
    picture of it is in the folder."""

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        per: str = "picture",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "DVQA questions")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, path, folder, head, max_bad, per=per)
        total = 0
        for where, n, row in JsonRows(path).scan():
            total += 1
            try:
                fields(row, {"image": str, "question": str, "answer": (str, int, float)})
                picture = self.picture(row["image"], row["image"])
                if picture is not None:
                    number = row.get("question_id", n)
                    self.ask(picture, number, row["question"], [str(row["answer"])])
            except BadRecord as e:
                self.problem(where, str(e))
        self.finish(total)
