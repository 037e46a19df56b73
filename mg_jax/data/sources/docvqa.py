"""DocVQA (single page): questions on scanned pages.

    train_v1.0.json, train_v1.0_withQT.json, val_v1.0...json:
    {"data": [{"questionId": 337, "question": ..., "image": "documents/xnbl0037_1.png",
               "answers": ["1/8/93", ...], "docId": 279, "ucsf_document_id": "xnbl0037",
               "ucsf_document_page_no": "1", "data_split": "train"}]}

`image` is looked for in the given folder, then without its folder: the later release keeps the
pages in spdocvqa_images/. Answers are spellings of one answer, in the order of the file. Document
numbers and question types are not kept.
"""

from pathlib import Path

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields
from mg_jax.data.sources.json_rows import rows_of
from mg_jax.data.sources.pictured import AskedSource
from mg_jax.errors import BadRecord


class DocVqaSource(AskedSource):
    """The questions of a DocVQA json. Raises UserError for a missing or malformed file, or when
    no picture of it is in the folder."""

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        per: str = "picture",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "DocVQA questions")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, path, folder, head, max_bad, per=per)
        total = 0
        for n, row in rows_of(path, "data", "DocVQA questions"):
            total += 1
            try:
                fields(row, {"questionId": (int, str), "question": str, "image": str})
                answers = row.get("answers") or []
                if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
                    raise BadRecord(f"answers is {answers!r}, expected a list of texts")
                picture = self.picture(row["image"], row["image"], Path(row["image"]).name)
                if picture is not None:
                    self.ask(picture, row["questionId"], row["question"], answers)
            except BadRecord as e:
                self.problem(f"{path}: data[{n}]", str(e))
        self.finish(total)
