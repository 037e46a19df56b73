"""MG-LLaVA: two resolutions joined by a gate, and detected boxes as tokens (arXiv 2406.17770).

Where paper and published code differ, the choice is a field of MGLLaVAConfig; docs/mg_llava.md
tables them. Pictures are padded squares; boxes are xyxy in units in which that square is `canvas`
wide, the units of the published box files after preparation (spec 4).
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mg_jax import losses
from mg_jax.errors import UserError
from mg_jax.lm import LM, LMConfig
from mg_jax.models import System
from mg_jax.models.fusion import Fusion, Widths, fused_width, fusion_module
from mg_jax.models.merging import WITH_TOKENS, Merge, Objects
from mg_jax.models.naming import label_shapes
from mg_jax.models.pointing import check_teaching, gaze_shapes, with_looks
from mg_jax.models.vlm import VisionLM, pool, scatter, true_first, unit
from mg_jax.nn import MLP, Linear
from mg_jax.ops.box_mean import box_mean
from mg_jax.ops.resize import resize_linear
from mg_jax.ops.sine import sine
from mg_jax.vision.convnext import ConvNeXt, ConvNeXtConfig
from mg_jax.vision.vit import ViT, ViTConfig

CLIP_L = ViTConfig(kind="clip", activation="quick_gelu", image_size=336, eps=1e-5)
PLACES = ("image", "box", "refer")  # placeholder ids follow the vocabulary in this order


@dataclasses.dataclass(frozen=True)
class MGLLaVAConfig:
    """Defaults: MG-LLaVA-7B (Vicuna) as published.

    `select_layer`: which of the ViT's hidden states is read (negative: from the last).
    `canvas`: side of the padded square in units of boxes, whatever the size of the pictures.
    `fusion`: models/fusion.py; `objects`: models/merging.py.
    `frames`: pictures of a video. `video_pool`: side of the squares of image tokens of a frame that
    are averaged into one; 1, as published, makes 8 frames 4,608 tokens.
    `max_boxes`: slots a frame; data with more leaves out those of the lowest score, and counts it.
    `refer`: regions of the user become object tokens of their own; published weights know them by
    their text alone.
    `drop_path`: stochastic depth of the ConvNeXt while training. Upstream trained with 0.1, though
    the tower is frozen, for it was left in training mode (spec 2.2).
    `unit_vectors`: image and object vectors are brought to unit mean square before they join the
    text; a language model that learns from nothing beside them needs it.
    `places`: sine embeddings of where they are (middle, frame and size, as shares of their whole)
    are added to image and object vectors: pretrained towers know where their patches are, those
    of stage "labels" learn names alone. Published weights have none.
    `label_words`: size of a vocabulary of label words that stage "labels" has; there both towers
    learn to name boxes linearly, which stands in for pretraining where there is none.
    `pointing_weight`: share of a loss that teaches the first heads of layer `pointing_layer` of the
    language model to look at what an answer is about, as a pretrained one would; of videos also,
    one layer before, from what is in the last frame at the same in the first.
    """

    low: ViTConfig = CLIP_L
    high: ConvNeXtConfig = ConvNeXtConfig(image_size=768)
    lm: LMConfig = LMConfig()
    select_layer: int = -2
    canvas: int = 768
    fusion: Fusion = "conv_gate"
    objects: Objects = "append"
    frames: int = 8
    video_pool: int = 1
    max_boxes: int = 256
    refer: bool = False
    drop_path: float = 0.0
    unit_vectors: bool = False
    places: bool = False
    label_words: int = 0
    pointing_weight: float = 0.0
    pointing_layer: int = 2

    @property
    def low_size(self) -> int:
        """Side of the picture that the ViT sees, pixels."""
        return self.low.image_size

    @property
    def high_size(self) -> int:
        """Side of the picture that the ConvNeXt sees, pixels."""
        return self.high.image_size

    def image_tokens(self, frames: int = 1) -> int:
        """Prompt positions of each of `frames` pictures: a video's may be pooled."""
        return (self.low.grid // (self.video_pool if frames > 1 else 1)) ** 2

    def id(self, name: str) -> int:
        """Id of a placeholder, "image", "box" or "refer"; none of them is ever embedded."""
        return self.lm.vocab + PLACES.index(name)

    @property
    def box_tokens(self) -> bool:
        """Whether a detected box is a token of the prompt."""
        return self.objects in WITH_TOKENS

    @property
    def sees_high(self) -> bool:
        """Whether anything is read from the high-resolution tower."""
        return self.fusion != "none" or self.objects != "none" or self.refer


class MGLLaVA(VisionLM):
    """Parameters: low, high, fusion, projector, box_projector, merging, lm; in stage "labels" low,
    high, labels_low and labels_high alone.

    A part that a choice of `fusion` or `objects` does not use has no parameters.
    """

    cfg: MGLLaVAConfig

    def setup(self):
        c, dtype = self.cfg, jnp.dtype(self.cfg.lm.dtype)
        widths = Widths(c.low.width, c.high.widths, c.low.heads, c.lm.dtype)
        self.low = ViT(c.low)
        self.high = ConvNeXt(c.high, c.drop_path)
        self.fusion = fusion_module(c.fusion, widths)
        fused = fused_width(c.fusion, widths)
        self.projector = MLP(fused, c.lm.width, c.lm.width, dtype=dtype)
        self.box_projector = MLP(sum(c.high.widths), c.lm.width, c.lm.width, dtype=dtype)
        self.merging = Merge(c.objects, c.lm.width, c.lm.heads, dtype)
        self.lm = LM(c.lm)
        if c.label_words:
            axes = ("embed", "new_vocab")
            self.labels_low = Linear((c.low.width, c.label_words), axes)
            self.labels_high = Linear((sum(c.high.widths), c.label_words), axes)

    def name_boxes(self, batch: dict[str, jax.Array]) -> dict[str, Float[Array, "B K W"]]:
        """Logits of the label words of `label_boxes`, as each tower by itself names them."""
        c, high = self.cfg, batch["high"][:, 0]
        boxes = batch["label_boxes"]
        low = resize_linear(high, (c.low_size, c.low_size))
        patches = self.low(low)[0][c.select_layer][:, 1:]
        grid = patches.reshape(len(patches), c.low.grid, c.low.grid, -1)
        centred = boxes - 0.5 * c.canvas / c.low.grid  # a patch stands for its middle
        return {
            "low": self.labels_low(box_mean([grid], centred, c.canvas)),
            "high": self.labels_high(box_mean(self.high(high), boxes, c.canvas)),
        }

    def encode(self, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """Pictures and boxes -> `image_tokens` [B,n,D] frame by frame, `box_tokens` [B,F*R,D].

        Also every intermediate of both paths, whose batch axis is B*F.
        """
        c = self.cfg
        b, f = batch["high"].shape[:2]
        high = batch["high"].reshape(b * f, *batch["high"].shape[2:])
        if "low" in batch:
            low = batch["low"].reshape(b * f, *batch["low"].shape[2:])
        else:  # as upstream made it: neither antialiased nor from the original (spec 5)
            low = resize_linear(high, (c.low_size, c.low_size))
        states, _ = self.low(low)
        maps = self.high(high) if c.sees_high else ()
        fused, aux = self.fusion(states[c.select_layer][:, 1:], maps)
        aux |= {"low_states": states, "high_maps": maps, "fused": fused}
        if f > 1 and c.video_pool > 1:
            fused = pool(fused, c.video_pool)
        image = self.projector(fused)
        if c.objects != "none":
            boxes, mask = (
                batch[k].reshape(b * f, *batch[k].shape[2:]) for k in ("boxes", "box_mask")
            )
            aux["box_pooled"], objects = self.describe(maps, boxes)
            image, objects = self.merging(image, objects, mask)
            aux["box_tokens"] = objects.reshape(b, -1, objects.shape[-1])
        if c.refer:  # of the first frame
            first = [x.reshape(b, f, *x.shape[1:])[:, 0] for x in maps]
            _, aux["refer_tokens"] = self.describe(first, batch["refer_boxes"])
        return {**aux, "image_tokens": image.reshape(b, -1, image.shape[-1])}

    def describe(
        self, maps: Any, boxes: Float[Array, "B R 4"]
    ) -> tuple[Float[Array, "B R C"], Float[Array, "B R D"]]:
        """Mean features of boxes in canvas units, and their vectors for the language model."""
        pooled = box_mean(maps, boxes, self.cfg.canvas)
        return pooled, self.box_projector(pooled)

    def embed(self, batch: dict[str, jax.Array], aux: dict[str, Any]) -> dict[str, Any]:
        """Join: embeddings of `tokens` with visual vectors in place of placeholders.

        The n-th image slot of a row takes its n-th image vector, the n-th box slot its n-th true
        box. Box slots are invalid where `objects` gives boxes no token.
        """
        c, tokens, valid = self.cfg, batch["tokens"], batch["valid"]
        x = self.lm.embed(tokens)

        def put(x, name, vectors, mask=None):
            vectors = unit(vectors) if c.unit_vectors else vectors
            if c.places:
                vectors = vectors + self.place(name, batch).astype(vectors.dtype)
            vectors = vectors if mask is None else true_first(vectors, mask)
            return scatter(x, tokens == c.id(name), vectors)

        x = put(x, "image", aux["image_tokens"])
        if c.box_tokens:
            x = put(x, "box", aux["box_tokens"], batch["box_mask"].reshape(len(tokens), -1))
        else:
            valid = valid & (tokens != c.id("box"))
        if c.refer:
            x = put(x, "refer", aux["refer_tokens"], batch["refer_mask"])
        return {"tokens": tokens, "valid": valid, "embeddings": x}

    def place(self, name: str, batch: dict[str, jax.Array]) -> Float[Array, "B n D"]:
        """Sine embeddings of where the vectors of "image", "box" or "refer" are."""
        c, (b, frames) = self.cfg, batch["high"].shape[:2]
        if name == "image":
            side = math.isqrt(c.image_tokens(frames))
            frame, row, column = np.indices((frames, side, side)).reshape(3, -1)
            size = np.full(row.shape, 1 / side)
            at = np.stack([(column + 0.5) / side, (row + 0.5) / side, frame / frames, size], -1)
            return sine(jnp.asarray(at, jnp.float32)[None], c.lm.width // 4)
        boxes = batch["boxes"] if name == "box" else batch["refer_boxes"][:, None]
        low, high = jnp.split(boxes / c.canvas, 2, axis=-1)
        size = jnp.sqrt(jnp.prod(jnp.maximum(high - low, 0), axis=-1, keepdims=True))
        frame = jnp.broadcast_to(jnp.arange(boxes.shape[1])[:, None, None] / frames, size.shape)
        at = jnp.concatenate([(low + high) / 2, frame, size], -1)
        return sine(at.reshape(b, -1, 4), c.lm.width // 4)


def example_batch(
    cfg: MGLLaVAConfig,
    stage: str,
    batch_size: int,
    *,
    tokens: int | None = None,
    frames: int = 1,
    boxes: int | None = None,
    refer: int = 8,
    targets: int = 8,
    gaze: int = 8,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch: text length, frames, box slots a frame, slots of the user's boxes, of
    labelled boxes, and of looks."""
    b, s, r = batch_size, cfg.high_size, boxes or cfg.max_boxes
    t = tokens or frames * (cfg.image_tokens(frames) + 1) + 8

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    if stage == "labels":
        return {"high": array(1, s, s, 3), **label_shapes(b, targets)}
    given = {"refer_boxes": array(refer, 4), "refer_mask": array(refer, dtype=bool)}
    return {
        "high": array(frames, s, s, 3),
        "boxes": array(frames, r, 4),
        "box_mask": array(frames, r, dtype=bool),
        "tokens": array(t, dtype=jnp.int32),
        "valid": array(t, dtype=bool),
        "loss_mask": array(t, dtype=bool),
        **(given if cfg.refer else {}),
        **(gaze_shapes(b, gaze) if cfg.pointing_weight else {}),
    }


def check(cfg: MGLLaVAConfig) -> None:
    """Raises UserError when the sizes of a config do not fit each other, naming the key."""
    grid, cells = cfg.low.grid, cfg.high_size / cfg.high.stride
    if cfg.low_size % cfg.low.patch or cfg.high_size % cfg.high.stride:
        raise UserError(
            f"config.model: low.image_size={cfg.low_size} must be a multiple of low.patch="
            f"{cfg.low.patch}, and high.image_size={cfg.high_size} of {cfg.high.stride}"
        )
    if cfg.fusion != "none" and grid != cells:
        raise UserError(
            f"config.model: fusion={cfg.fusion!r} needs a cell of the last map per patch, but "
            f"high.image_size={cfg.high_size} gives {cells:g} a side and low.image_size="
            f"{cfg.low_size} {grid}: use high.image_size={grid * cfg.high.stride}"
        )
    if cfg.video_pool < 1 or grid % cfg.video_pool:
        raise UserError(
            f"config.model.video_pool: {cfg.video_pool} does not divide the {grid} patches a side"
        )
    if not -cfg.low.layers - 1 <= cfg.select_layer <= cfg.low.layers:
        raise UserError(
            f"config.model.select_layer: {cfg.select_layer} is not one of the {cfg.low.layers + 1} "
            "hidden states of the low-resolution tower"
        )
    for name in ("max_boxes", "canvas", "frames"):
        if getattr(cfg, name) < 1:
            raise UserError(f"config.model.{name}: {getattr(cfg, name)} is not at least 1")
    if not 0 <= cfg.drop_path < 1:
        raise UserError(f"config.model.drop_path: {cfg.drop_path} is not in 0 <= share < 1")
    if cfg.drop_path and not cfg.high.scan:
        raise UserError(
            f"config.model.drop_path: {cfg.drop_path} needs high.scan=True: blocks that are not "
            "scanned are never left out"
        )
    if cfg.places and cfg.lm.width % 8:
        raise UserError(f"config.model.places: lm.width={cfg.lm.width} is no multiple of 8")
    check_teaching(cfg)


def system(cfg: MGLLaVAConfig) -> System:
    """MG-LLaVA with its two stages, both of next-token loss (the config says what they train), and
    "labels", which teaches the towers where `label_words` says so."""
    check(cfg)
    model = MGLLaVA(cfg)

    def labels(params, batch, key):
        out: Any = model.apply({"params": params}, batch, method=model.name_boxes)
        total, metrics = jnp.zeros(()), {}
        for tower, logits in out.items():
            loss, found = losses.label_loss(logits, batch["labels"], batch["label_mask"])
            total, metrics[f"named_{tower}"] = total + loss, found["named"]
        return total, metrics

    def language(params, batch, key):
        rngs = {"dropout": key} if cfg.drop_path else {}
        kept = ["intermediates"] if cfg.pointing_weight else []
        out: Any = model.apply({"params": params}, batch, rngs=rngs, mutable=kept)
        (logits, aux), maps = out
        loss, metrics = losses.next_token_loss(logits, aux["tokens"], batch["loss_mask"])
        count = batch["box_mask"].sum((1, 2)).astype(jnp.float32)
        metrics = {**metrics, "boxes": count.mean()}
        return with_looks(loss, metrics, maps, cfg, batch)

    taught: dict[str, Any] = {"pretrain": language, "sft": language}
    entry: dict[str, Any] = dict.fromkeys(taught, lambda m, batch: m(batch))
    if cfg.label_words:
        taught = {"labels": labels, **taught}
        entry["labels"] = lambda m, batch: m.name_boxes(batch)
    return System("mg_llava", cfg, model, losses=taught, entry=entry, example=example_batch)
