"""Recordings of parts: operations (ops.npz), picture preprocessing, tokenisation."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from conversion.verify import Case, npz_names, npz_need, npz_read
from mg_jax.disk import read_json
from mg_jax.errors import UserError

Parts = Iterable[tuple[str, Callable[[], dict[str, Any]]]]


def gather(parts: Parts) -> tuple[dict[str, Any], list[str]]:
    """Run parts one by one; one that fails leaves its arrays unproduced and one line saying why."""
    produced: dict[str, Any] = {}
    failures = []
    for name, part in parts:
        try:
            produced |= part()
        except Exception as error:  # a broken part must not hide the verdict on the others
            failures.append(f"{name}: {type(error).__name__}: {error}")
    return produced, failures


def npz_case(
    kind: str, path: Path, is_input: str, parts: Callable[[dict[str, np.ndarray]], Parts]
) -> Case:
    """A case whose file keeps its inputs (names matching `is_input`) beside the outputs."""
    names = npz_names(path)
    inputs = [name for name in names if re.fullmatch(is_input, name)]

    def produce():
        return gather(parts(npz_read(path, inputs)))

    given = dict.fromkeys(inputs, "input")
    return Case(kind, tuple(names), given, produce, lambda name: npz_read(path, [name])[name])


def ops_case(folder: Path) -> Case:
    """RoIAlign and non-maximum suppression as recorded from upstream's compiled kernels."""
    inputs = r"rois|feat\d+|scale\d+|nms\d+_(boxes_xyxy|scores|params)"

    def parts(given):
        for name in given:
            if name.startswith("feat"):
                yield f"roi_align {name[4:]}", lambda i=name[4:]: _roi_align(i, given)
            elif name.endswith("_params"):
                test = name.removesuffix("_params")
                yield test, lambda test=test: _nms(test, given)

    return npz_case("ops", folder / "ops.npz", inputs, parts)


def _roi_align(i: str, given: dict[str, np.ndarray]) -> dict[str, Any]:
    from mg_jax.ops.roi_align import roi_align

    feats, rois = jnp.asarray(given[f"feat{i}"]).transpose(0, 2, 3, 1), given["rois"]
    boxes = jnp.broadcast_to(rois[None, :, 1:], (len(feats), len(rois), 4))
    image = rois[:, 0].astype(int)
    forms = {}
    for method in ("gather", "separable"):
        out = roi_align(
            feats, boxes, spatial_scale=float(given[f"scale{i}"]), output_size=14,
            sampling_ratio=2, method=method,
        )  # fmt: skip
        out = np.asarray(out)[image, np.arange(len(rois))]
        forms[method] = out.transpose(0, 3, 1, 2)
    return {f"roi_out{i}": forms}


def _nms(test: str, given: dict[str, np.ndarray]) -> dict[str, Any]:
    from mg_jax.boxes import nms

    boxes, scores = (jnp.asarray(given[f"{test}_{name}"]) for name in ("boxes_xyxy", "scores"))
    overlap, score, limit = (float(x) for x in given[f"{test}_params"])
    slots = int(limit) if limit > 0 else len(scores)
    valid = jnp.ones(len(scores), bool)
    index, keep = nms(boxes, scores, valid, overlap, score, slots, fallback=False)
    return {f"{test}_keep": np.asarray(index)[np.asarray(keep)]}


def preprocess_case(folder: Path) -> Case:
    """Both of upstream's ways from a photo to pixels (spec 5); every seventh pixel is recorded."""

    def parts(given):
        image = given["image_rgb_uint8"]
        yield "mmdet", lambda: _preprocess("groma_mmdet", "mmdet", "mmdet", image)
        yield "pil", lambda: _preprocess("groma_pil", "pil", "hf", image)

    npz_need(folder / "preprocess.npz", ["image_rgb_uint8"])
    return npz_case("preprocess", folder / "preprocess.npz", "image_rgb_uint8", parts)


def _preprocess(function: str, resized: str, named: str, image: np.ndarray) -> dict[str, Any]:
    from mg_jax.vision import preprocess

    pixels = np.asarray(getattr(preprocess, function)(image, 448))
    uint8 = preprocess.denormalize(pixels)
    return {
        f"{resized}_resized_rgb_uint8": uint8,
        f"{named}_pixel_values_sub7": pixels.transpose(2, 0, 1)[:, ::7, ::7],
        f"{named}_mean_std": np.array([pixels.mean(), pixels.std()], np.float32),
    }


def tokenizer_case(folder: Path) -> Case:
    """Ids, training labels and decoded texts of a tokenizer with Groma's added tokens (spec 4.3).

    Prompts, and the ids to decode, are the inputs. Raises UserError for a file that holds anything
    but texts and whole numbers.
    """
    file = folder / "tokenization.json"
    recorded = dict(_flat(read_json(file)))
    arrays = {}
    for name, value in recorded.items():
        try:
            arrays[name] = value if isinstance(value, str) else np.asarray(value, np.int64)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{file}: {name} holds neither a text nor whole numbers") from None
    inputs = {n: v for n, v in recorded.items() if re.search(r"/prompt$|/decode/ids$", n)}
    sections = sorted({name.split("/")[0] for name in recorded})

    def produce():
        tables = ((s, lambda s=s: _tokenize(folder, s, inputs)) for s in sections)
        return gather(tables)

    given = dict.fromkeys(inputs, "input")
    return Case("tokenizer", tuple(recorded), given, produce, arrays.__getitem__)


def _tokenize(folder: Path, section: str, inputs: dict[str, Any]) -> dict[str, Any]:
    import tempfile

    from mg_jax.text.codecs.groma import GROMA_TOKENS, GromaCodec
    from mg_jax.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_model_file(
        folder / "tokenizer.model", GROMA_TOKENS, legacy=section == "legacy_true",
        text_after_token="published",
    )  # fmt: skip
    codec = GromaCodec(tokenizer)
    produced: dict[str, Any] = {f"{section}/num_new_token": np.int64(len(tokenizer.added))}
    for token in ("<s>", "</s>", "<unk>", *GROMA_TOKENS):
        produced[f"{section}/ids/{token}"] = np.int64(tokenizer.id(token))
    for name, value in inputs.items():
        if not name.startswith(f"{section}/"):
            continue
        place = name.rsplit("/", 1)[0]
        if place.endswith("/decode"):
            with tempfile.TemporaryDirectory() as saved:
                tokenizer.save(saved)
                reloaded = Tokenizer.load(saved)
            for state, instance in (("fresh", tokenizer), ("reloaded", reloaded)):
                for skip in (False, True):
                    key = f"{place}/skip_special_{str(skip).lower()}_{state}"
                    produced[key] = instance.decode(value, skip_special=skip)
        elif "/train/" in place:
            raw = tokenizer.encode(value)
            ids, loss = codec._targets(raw)
            labels = [i if target else -100 for i, target in zip(ids, loss, strict=True)]
            for key, array in (("raw_ids", raw), ("input_ids", ids), ("labels", labels)):
                produced[f"{place}/{key}"] = np.asarray(array, np.int64)
        else:
            produced[f"{place}/input_ids"] = np.asarray(tokenizer.encode(value), np.int64)
    return produced


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}/{key}" if prefix else key)
    else:
        yield prefix, value
