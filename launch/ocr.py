"""Text in pictures by RapidOCR (extra `ocr`), whose wheel holds its models: no network needed."""

from typing import Any

import numpy as np

from mg_jax.errors import UserError
from mg_jax.example import Region


class Reader:
    """Called with a picture, uint8 RGB [H, W, 3], it returns its words in reading order: regions
    with the word as label and a score."""

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as e:
            raise UserError(
                f"--ocr: needs RapidOCR: make setup EXTRAS=ocr (or pip install 'mg_jax[ocr]'; {e})"
            ) from None
        self._engine: Any = RapidOCR(params={"Global.log_level": "error"})

    def __call__(self, image: np.ndarray) -> list[Region]:
        """See the class."""
        found = self._engine(np.ascontiguousarray(image[..., ::-1]), return_word_box=True)
        if found.boxes is None or not found.txts:
            return []
        words = []
        for line, text, score, corners in zip(
            found.word_results, found.txts, found.scores, found.boxes, strict=True
        ):
            parts = [(w, s, box) for w, s, box in line if box is not None and str(w).strip()]
            words += parts or [(text, score, corners)]
        return [region for word in words if (region := _region(*word, image)) is not None]


def _region(word: Any, score: Any, corners: Any, image: np.ndarray) -> Region | None:
    """A word with the box around its four corners; None for one without area in the picture."""
    places = np.asarray(corners, np.float64).reshape(-1, 2) / image.shape[1::-1]
    box = (*places.min(0).tolist(), *places.max(0).tolist())
    try:
        return Region.from_box(box, str(word).strip(), float(score), clip=True)
    except UserError:
        return None
