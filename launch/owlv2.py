"""OWLv2, an open-vocabulary detector, through transformers (extra `torch`), as upstream MG-LLaVA
runs it (spec 9): from words and pictures to boxes, scores and labels.

Pictures are prepared here, since transformers 5 pads them with black where OWLv2 was trained, and
transformers 4 pads, with grey. The embedding of a prompt is computed once.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.errors import UserError

PROMPT = "a photo of "
THRESHOLD = 0.2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_GREY = 0.5
_PROMPTS = 256  # prompts embedded at a time


def pixels(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> float32 [3, size, size]: padded to a square at the right and below,
    resized with Gaussian smoothing where it shrinks, normalised."""
    from scipy import ndimage

    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), _GREY, np.float32)
    square[:height, :width] = image.astype(np.float32) / np.float32(255)
    factor = side / size
    sigma = max(0.0, (factor - 1) / 2)
    smooth = ndimage.gaussian_filter(square, (sigma, sigma, 0), mode="mirror")
    small = ndimage.zoom(
        smooth, (1 / factor, 1 / factor, 1), order=1, mode="mirror", grid_mode=True
    )
    small = np.clip(small, square.min(), square.max())
    out = (small - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
    return np.ascontiguousarray(out.transpose(2, 0, 1), np.float32)


class Detector:
    """An OWLv2 from a folder (or the hub's name) in the form of transformers.

    Called with pictures and the tags of each, it returns an entry a picture: `boxes` [[x1, y1, x2,
    y2]] whole pixels of the picture, which may leave it, `scores`, `labels`; nothing suppressed.
    A picture without tags is looked through for "a photo of ", as upstream does; its label is "".
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "auto",
        threshold: float = THRESHOLD,
        flag: str = "--model",
    ):
        if not 0 <= threshold < 1:
            raise UserError(f"--threshold {threshold}: give a number from 0 to below 1")
        try:
            import torch
        except ImportError:
            raise UserError(
                "OWLv2 runs in PyTorch, which is not installed: make setup EXTRAS=torch (or pip "
                "install 'mg_jax[torch]')"
            ) from None
        self.threshold = threshold
        self.device = find_device(device)
        self.model, self.tokenizer = _load(folder, flag)
        self.model = self.model.to(self.device).eval()
        self.size = int(self.model.config.vision_config.image_size)
        self._length = int(self.model.config.text_config.max_position_embeddings)
        self._known: dict[str, torch.Tensor] = {}

    def __call__(
        self, images: Sequence[np.ndarray], tags: Sequence[Sequence[str]]
    ) -> list[dict[str, list[Any]]]:
        """See the class."""
        batch = np.stack([pixels(image, self.size) for image in images])
        sides = [max(image.shape[:2]) for image in images]
        return self.detect(batch, sides, tags)

    def detect(
        self, batch: np.ndarray, sides: Sequence[int], tags: Sequence[Sequence[str]]
    ) -> list[dict[str, list[Any]]]:
        """The same of prepared pictures [B, 3, S, S]; sides: the longer side of each in pixels."""
        import torch

        asked = [list(words) or [""] for words in tags]
        with torch.inference_mode():
            self._embed({word for words in asked for word in words})
            most = max(map(len, asked))
            first = self._known[asked[0][0]]
            queries = first.new_zeros((len(asked), most, len(first)))
            mask = torch.zeros((len(asked), most), dtype=torch.bool, device=self.device)
            for n, words in enumerate(asked):
                queries[n, : len(words)] = torch.stack([self._known[word] for word in words])
                mask[n, : len(words)] = True
            grid = self.model.image_embedder(torch.from_numpy(batch).to(self.device))[0]
            features = grid.flatten(1, 2)
            logits = self.model.class_predictor(features, queries, mask)[0]
            centres = self.model.box_predictor(features, grid)
            best, which = logits.max(-1)
            scores = best.sigmoid()
            corners = torch.cat(
                [
                    centres[..., :2] - 0.5 * centres[..., 2:],
                    centres[..., :2] + 0.5 * centres[..., 2:],
                ],
                -1,
            )
            corners = corners * torch.tensor(sides, device=self.device)[:, None, None]
        found = []
        for n, words in enumerate(asked):
            kept = scores[n] > self.threshold
            found.append(
                {
                    "boxes": corners[n][kept].int().tolist(),
                    "scores": scores[n][kept].tolist(),
                    "labels": [words[k] for k in which[n][kept].tolist()],
                }
            )
        return found

    def _embed(self, words: set[str]) -> None:
        """Remember the embeddings of prompts that are new."""
        new = sorted(words - self._known.keys())
        for start in range(0, len(new), _PROMPTS):
            part = new[start : start + _PROMPTS]
            tokens = self.tokenizer(
                [PROMPT + word for word in part],
                padding="max_length",
                truncation=True,
                max_length=self._length,
                return_tensors="pt",
            ).to(self.device)
            out = self.model.owlv2.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            out = getattr(out, "pooler_output", out)  # transformers 4 gives the tensor itself
            self._known.update(zip(part, out / out.norm(dim=-1, keepdim=True), strict=True))


def find_device(name: str) -> Any:
    """The device of PyTorch by that name. Raises UserError for one that is not there."""
    import torch

    try:
        device = torch.device(
            name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        )
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise UserError(f"--device {name}: {reason}: choose auto, cpu or cuda") from None


def _load(folder: str | Path, flag: str) -> tuple[Any, Any]:
    """(model, tokenizer). flag: what names the folder, for errors.

    Raises UserError for a folder without an OWLv2.
    """
    import transformers

    path = Path(folder).expanduser()
    if path.is_dir():
        try:
            kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{flag} {folder}: holds no config.json of a model: give a folder of transformers "
                "such as a copy of google/owlv2-large-patch14-ensemble"
            ) from None
        if kind != "owlv2":
            raise UserError(f"{flag} {folder}: is of kind {kind!r}, expected owlv2")
    elif str(folder).count("/") != 1 or str(folder).startswith((".", "/", "~")):
        raise UserError(f"{flag} {folder}: no such folder, and no name on the hub (org/name)")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = str(path) if path.is_dir() else str(folder)
    try:
        model, report = transformers.Owlv2ForObjectDetection.from_pretrained(
            name, dtype="float32", output_loading_info=True, local_files_only=path.is_dir()
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=path.is_dir())
    except (OSError, ValueError, RuntimeError) as e:
        raise UserError(f"{flag} {folder}: cannot be loaded: {_first_line(e)}") from e
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{flag} {folder}: its weights lack {missing[0]} (and {len(missing) - 1} more): is "
            "the file whole?"
        )
    return model, tokenizer


def _first_line(e: Exception) -> str:
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
