"""Our MG-LLaVA on the inputs of a recorded instance, every array under its recorded name.

Upstream's batches have two quirks that ours lack (spec 3), and that are put back here alone: text
padding counts as text, and an empty row follows every row without a picture. A picture without
detections has one box of zeros, a row without a picture a box that is described and dropped.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import conversion
from conversion.verify import Case, Masked, npz_names, npz_read
from conversion.verify.layout import nchw
from conversion.verify.parts import gather
from mg_jax import losses
from mg_jax.ops.resize import resize_linear

IMAGE, VIDEO, NO_LABEL = -200, -201, -100
NO_DETECTION = (0.0, 0.0, 0.0, 0.0)
NO_PICTURE = (0.0, 0.0, 100.0, 100.0)
COARSE = slice(3, None, 8)  # the pixels that a large map is recorded at


def case(folder: Path) -> Case:
    """The case of a folder with config.json, state_dict.safetensors, inputs.npz and outputs.npz.

    Raises UserError when the weights do not fit the config.
    """
    names = npz_names(folder / "outputs.npz")

    def produce():
        instance = Instance(folder)
        with jax.default_matmul_precision("highest"):
            return gather(instance.parts())

    def recorded(name):
        return npz_read(folder / "outputs.npz", [name])[name]

    return Case("mg_llava", tuple(names), {}, produce, recorded)


class Instance:
    """Converted weights and the inputs of a folder."""

    def __init__(self, folder: Path):
        from mg_jax.models.mg_llava import MGLLaVA

        converted = conversion.load(folder, np.float32)
        self.cfg, self.params = converted.cfg, jax.tree.map(jnp.asarray, converted.params)
        self.inputs = npz_read(folder / "inputs.npz", npz_names(folder / "inputs.npz"))
        self.forward = jax.jit(MGLLaVA(self.cfg).apply)

    def parts(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """The recorded calls: a batch of pictures, and where there is one, a video."""
        for prefix in ("", "video_"):
            if f"{prefix}input_ids" in self.inputs:
                yield prefix or "pictures", partial(self.call, prefix)

    def call(self, prefix: str) -> dict[str, Any]:
        """Every array of one recorded call."""
        names = ("input_ids", "labels", "attention_mask")
        given = {n: self.inputs[prefix + n] for n in names if prefix + n in self.inputs}
        ids = given["input_ids"]
        pixels = self.inputs[f"{prefix}pixel_values_aux_f16"].astype(np.float32)
        boxes, mask = self.boxes(prefix, ids)
        high = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        prompt = Prompt.expand(self.cfg, **given, boxes=mask)
        batch = {
            "tokens": prompt.tokens,
            "valid": prompt.valid,
            "high": high.reshape(*mask.shape[:2], *high.shape[1:]),
            "boxes": boxes,
            "box_mask": mask,
        }
        logits, aux = self.forward({"params": self.params}, batch)
        out = self.seen(aux, mask) | prompt.joined(np.asarray(aux["embeddings"]), logits)
        return {prefix + name: value for name, value in out.items()}

    def boxes(self, prefix: str, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [B,F,R,4] in canvas units and their mask; every picture has one at least."""
        counts = self.inputs[f"{prefix}box_counts"]
        ends = np.cumsum(counts)
        rows = np.split(self.inputs[f"{prefix}boxes"], ends[:-1])
        frames = len(counts) // len(ids)
        seen = np.repeat(np.isin(ids, (IMAGE, VIDEO)).any(1), frames)
        for i, picture in enumerate(seen):
            if not len(rows[i]):
                rows[i] = np.array([NO_DETECTION if picture else NO_PICTURE], np.float32)
        boxes = np.zeros((len(rows), max(map(len, rows)), 4), np.float32)
        mask = np.zeros(boxes.shape[:2], bool)
        for i, row in enumerate(rows):
            boxes[i, : len(row)], mask[i, : len(row)] = row, True
        shape = len(ids), frames
        return boxes.reshape(*shape, -1, 4), mask.reshape(*shape, -1)

    def seen(self, aux: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
        """What both towers, the fusion and the boxes give, picture by picture."""
        maps = aux["high_maps"]
        side = maps[0].shape[1:3]
        joined = nchw(jnp.concatenate([resize_linear(m, side) for m in maps], -1))
        counts = mask.sum(-1).reshape(-1)
        tokens = np.asarray(aux["image_tokens"])
        out = {
            **{f"clip_hidden_{i}": state for i, state in enumerate(aux["low_states"])},
            **{f"convnext_stage_{i}": nchw(m) for i, m in enumerate(maps)},
            "convnext_concat": joined,
            "convnext_concat_ds8": joined[:, :, COARSE, COARSE],
            "gate_pre_tanh": aux["gate"][:, 0],
            "gate_input": aux["gate_input"][:, 0],
            "fused": aux["fused"],
            "image_tokens": tokens.reshape(len(counts), -1, tokens.shape[-1]),
        }
        for name in ("box_pooled", "box_tokens"):
            values = np.asarray(aux[name])
            out[name] = values.reshape(mask.size, -1)[mask.reshape(-1)]
            out[f"{name}_counts"] = counts
        return out


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Recorded rows with a placeholder for every visual vector.

    tokens, labels and valid [B,T]; `empty`: rows behind which upstream puts an empty one.
    """

    tokens: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    empty: np.ndarray

    @classmethod
    def expand(
        cls,
        cfg: Any,
        input_ids: np.ndarray,
        labels: np.ndarray | None = None,
        attention_mask: np.ndarray | None = None,
        *,
        boxes: np.ndarray,
    ) -> "Prompt":
        """Expand rows of ids [B,T0] for the boxes of mask `boxes` [B,F,R], frame by frame."""
        if labels is None:
            labels = np.full(input_ids.shape, NO_LABEL)
        if attention_mask is None:
            attention_mask = np.ones(input_ids.shape, bool)
        kept = attention_mask.astype(bool)
        rows = []
        for row, targets, keep, frames in zip(input_ids, labels, kept, boxes, strict=True):
            vectors = itertools.chain.from_iterable(
                [cfg.id("image")] * cfg.image_tokens(len(frames)) + [cfg.id("box")] * int(n)
                for n in frames.sum(-1)
            )
            slots = [(token, NO_LABEL) for token in vectors]
            pairs = zip(row[keep].tolist(), targets[keep].tolist(), strict=True)
            expanded = (slots if pair[0] in (IMAGE, VIDEO) else [pair] for pair in pairs)
            rows.append(list(itertools.chain.from_iterable(expanded)))
        shape = len(rows), max(map(len, rows))
        out = cls(
            np.zeros(shape, np.int32), np.full(shape, NO_LABEL), np.zeros(shape, bool),
            np.flatnonzero(~np.isin(input_ids, (IMAGE, VIDEO)).any(1)),
        )  # fmt: skip
        for i, pairs in enumerate(rows):
            out.tokens[i, : len(pairs)], out.labels[i, : len(pairs)] = np.transpose(pairs)
            out.valid[i, : len(pairs)] = True
        return out

    def joined(self, embeddings: np.ndarray, logits: jax.Array) -> dict[str, Any]:
        """What the language model is given and makes of it, in upstream's rows."""
        target = self.labels != NO_LABEL
        tokens = np.where(target, self.labels, self.tokens)
        loss, _ = losses.next_token_loss(logits, jnp.asarray(tokens), jnp.asarray(target))
        positions = np.cumsum(self.valid, 1) - 1
        valid = self.rows(self.valid, False)
        return {
            "inputs_embeds": self.rows(np.where(self.valid[..., None], embeddings, 0), 0),
            "llm_attention_mask": valid,
            "llm_position_ids": self.rows(np.where(self.valid, positions, 0), 0),
            "llm_labels": self.rows(self.labels, NO_LABEL),
            # what upstream computes at padding is neither used nor trained
            "logits": Masked(self.rows(np.asarray(logits), np.nan), valid),
            "loss": loss,
        }

    def rows(self, values: np.ndarray, fill: Any) -> np.ndarray:
        """`values` with upstream's empty rows put in."""
        return np.insert(values, self.empty + 1, fill, axis=0)
