"""Grounding DINO through transformers (extra `torch`), called as `launch.owlv2.Detector` is.

The names of a picture are one text, "red car. dog."; every box gets the name whose tokens it scores
highest on, so that no label is a mixture of two names. Names that do not fit into the model's text
are looked for in a second pass.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mg_jax.errors import UserError
from mg_jax.vision.preprocess import normalize

SHORT, LONG = 800, 1333  # pixels: the shorter side is SHORT unless the longer one would pass LONG


def open_detector(folder: str | Path, device: str, threshold: float) -> Any:
    """The detector of a folder in the form of transformers, by what its config.json says it is.

    Raises UserError for a folder that holds neither a Grounding DINO nor an OWLv2.
    """
    path = Path(folder).expanduser()
    try:
        kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"--detector {folder}: holds no config.json of a model: give a folder of transformers "
            "such as a copy of IDEA-Research/grounding-dino-base"
        ) from None
    if kind == "grounding-dino":
        return GroundingDino(path, device, threshold)
    if kind != "owlv2":
        raise UserError(f"--detector {folder}: is a {kind!r}, expected grounding-dino or owlv2")
    from launch.owlv2 import Detector

    return Detector(path, device, threshold, flag="--detector")


def pixels(image: np.ndarray) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> float32 [3, h, w], resized with its aspect kept, normalised."""
    height, width = image.shape[:2]
    short, long = sorted((height, width))
    # transformers rounds the shorter side and cuts the fraction of the longer one off
    exact = min(float(SHORT), LONG * short / long)
    sides = max(round(exact), 1), max(int(exact * long / short), 1)
    size = sides if width < height else sides[::-1]
    small = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return np.ascontiguousarray(normalize(np.asarray(small)[None])[0].transpose(2, 0, 1))


class GroundingDino:
    """A Grounding DINO from a folder. Called with pictures and the names to look for in each, it
    returns an entry a picture: `boxes` [[x1, y1, x2, y2]] in pixels, `scores`, `labels`."""

    def __init__(self, folder: Path, device: str = "auto", threshold: float = 0.25):
        try:
            import torch
        except ImportError:
            raise UserError(
                "--detector: runs in PyTorch, which is not installed: make setup EXTRAS=torch (or "
                "pip install 'mg_jax[torch]')"
            ) from None
        import transformers

        from launch.owlv2 import find_device

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.threshold, self.device = threshold, find_device(device)
        kind = transformers.GroundingDinoForObjectDetection
        try:
            model, report = kind.from_pretrained(
                folder, dtype="float32", output_loading_info=True, local_files_only=True
            )
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError, RuntimeError) as e:
            line = next(filter(None, map(str.strip, str(e).splitlines())), type(e).__name__)
            raise UserError(f"--detector {folder}: cannot be loaded: {line}") from e
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise UserError(
                f"--detector {folder}: its weights lack {missing[0]} (and {len(missing) - 1} "
                "more): is the file whole?"
            )
        self.model = model.to(self.device).eval()
        self._length = int(self.model.config.max_text_len)
        self._torch = torch

    def __call__(
        self, images: Sequence[np.ndarray], tags: Sequence[Sequence[str]]
    ) -> list[dict[str, list[Any]]]:
        """See the class."""
        return [self._look(image, list(names)) for image, names in zip(images, tags, strict=True)]

    def _look(self, image: np.ndarray, names: list[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"boxes": [], "scores": [], "labels": []}
        torch = self._torch
        prepared = torch.from_numpy(pixels(image))[None].to(self.device)
        sides = np.array([image.shape[1], image.shape[0]] * 2, np.float64)
        for text, spans, part in self._texts(names):
            ids = {k: torch.tensor([v], device=self.device) for k, v in text.items()}
            with torch.inference_mode():
                out = self.model(pixel_values=prepared, **ids)
            scores = out.logits[0].float().sigmoid().cpu().numpy()  # [queries, tokens]
            centres = out.pred_boxes[0].float().cpu().numpy().astype(np.float64)
            by_name = np.stack([scores[:, span].max(1) for span in spans], 1)
            which, best = by_name.argmax(1), by_name.max(1)
            corners = np.concatenate(
                [centres[:, :2] - centres[:, 2:] / 2, centres[:, :2] + centres[:, 2:] / 2], 1
            )
            for n in np.flatnonzero(best > self.threshold).tolist():
                found["boxes"].append((corners[n] * sides).tolist())
                found["scores"].append(float(best[n]))
                found["labels"].append(part[which[n]])
        return found

    def _texts(
        self, names: Sequence[str]
    ) -> Iterator[tuple[dict[str, list[int]], list[list[int]], list[str]]]:
        """(token ids and masks, the tokens of each name, the names) of texts that fit."""
        part: list[str] = []
        ready = None
        for name in names:
            tried = self._tokens([*part, name])
            if len(tried[0]["input_ids"]) > self._length and part:
                yield *ready, part  # type: ignore[misc]
                part, tried = [], self._tokens([name])
            if len(tried[0]["input_ids"]) <= self._length and all(tried[1]):
                part, ready = [*part, name], tried
        if part:
            yield *ready, part  # type: ignore[misc]

    def _tokens(self, names: Sequence[str]) -> tuple[dict[str, list[int]], list[list[int]]]:
        """The text of names, and which of its tokens stand for each."""
        text, places = "", []
        for name in names:
            clean = name.lower().replace(".", " ").strip()
            places.append((len(text), len(text) + len(clean)))
            text += f"{clean}. "
        found = self.tokenizer(
            text.strip(), return_offsets_mapping=True, return_token_type_ids=True
        )
        offsets = found.pop("offset_mapping")
        spans = [
            [k for k, (a, b) in enumerate(offsets) if begin <= a < b <= end]
            for begin, end in places
        ]
        return dict(found), spans
