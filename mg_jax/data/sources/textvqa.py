"""TextVQA and TextCaps: questions and captions on the same pictures with text in them.

    TextVQA_0.5.1_train.json, ..._val.json:
    {"data": [{"question_id": 0, "image_id": "0054c91397f2fe05", "question": ...,
               "answers": [ten texts]}]}

    TextVQA_Rosetta_OCR_v0.2_train.json (optional, recognised words):
    {"data": [{"image_id": "0054c91397f2fe05", "ocr_tokens": ["nokia", ...]}]}

    TextCaps_0.1_train.json, ..._val.json, one row a caption:
    {"data": [{"image_id": "0054c91397f2fe05", "caption_str": ..., "reference_strs": [five]}]}

Pictures are IMAGE_ID.jpg in one folder (train_images). Image classes, addresses and the boxes of
recognised words are not kept; the stated sizes are not used, since some pictures are rotated.
"""

from pathlib import Path

from mg_jax.data.sources.base import MAX_BAD, Folder, existing, fields
from mg_jax.data.sources.json_rows import rows_of
from mg_jax.data.sources.pictured import AskedSource, CaptionSource
from mg_jax.data.sources.vqav2 import by_frequency
from mg_jax.errors import BadRecord

OCR_HINT = "Reference OCR token: "  # as LLaVA introduces recognised words


class TextVqaSource(AskedSource):
    """The questions of TextVQA; their ten answers keep repeats, the most frequent first.

    ocr: the file of recognised words; they become the hint of each question on the picture.
    Raises UserError for a missing or malformed file, or when no picture of it is in the folder.
    """

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        ocr: str | Path = "",
        per: str = "picture",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "TextVQA questions")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, path, folder, head, max_bad, per=per)
        hints, total = self._hints(existing(ocr, "recognised words")) if ocr else ({}, 0)
        for n, row in rows_of(path, "data", "TextVQA questions"):
            total += 1
            try:
                fields(row, {"question_id": int, "image_id": str, "question": str})
                answers = row.get("answers") or []
                if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
                    raise BadRecord(f"answers is {answers!r}, expected a list of texts")
                picture = self.picture(row["image_id"], f"{row['image_id']}.jpg")
                if picture is not None:
                    self.ask(
                        picture,
                        row["question_id"],
                        row["question"],
                        by_frequency(answers),
                        hint=hints.get(row["image_id"], ""),
                    )
            except BadRecord as e:
                self.problem(f"{path}: data[{n}]", str(e))
        self.finish(total)

    def _hints(self, path: Path) -> tuple[dict[str, str], int]:
        """The hint of each picture, and how many records there are."""
        hints, total = {}, 0
        for n, row in rows_of(path, "data", "recognised words"):
            total += 1
            try:
                fields(row, {"image_id": str, "ocr_tokens": list})
                if row["ocr_tokens"]:
                    hints[row["image_id"]] = OCR_HINT + ", ".join(map(str, row["ocr_tokens"]))
            except BadRecord as e:
                self.problem(f"{path}: data[{n}]", str(e))
        return hints, total


class TextCapsSource(CaptionSource):
    """The captions of TextCaps, of each picture all that there are. Raises UserError for a
    missing or malformed file, or when no picture of it is in the folder."""

    def __init__(
        self,
        file: str | Path = "",
        images: str | Path = "",
        head: str = "coco",
        name: str = "",
        max_bad: float | str = MAX_BAD,
    ):
        path = existing(file, "TextCaps captions")
        folder = Folder(existing(images, f"pictures of {path.name}", folder=True))
        super().__init__(name or path.stem, path, folder, head, max_bad)
        total = 0
        for n, row in rows_of(path, "data", "TextCaps captions"):
            total += 1
            try:
                fields(row, {"image_id": str})
                texts = row.get("reference_strs") or [row.get("caption_str")]
                if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
                    raise BadRecord("lacks the texts of caption_str or reference_strs")
                picture = self.picture(row["image_id"], f"{row['image_id']}.jpg")
                if picture is not None:
                    for text in texts:
                        self.caption(picture, text)
            except BadRecord as e:
                self.problem(f"{path}: data[{n}]", str(e))
        self.finish(total)
