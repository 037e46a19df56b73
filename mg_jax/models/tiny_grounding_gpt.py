"""TinyGroundingGPT: texts, coordinates and object images aligned (arXiv 2411.09691).

CLIP and DINOv2 see the same padded square; their patch tokens are joined channel by channel and
projected to vectors of the language model. An object image, a crop of the picture, goes the same
way; its tokens may be averaged to fewer. Boxes are text: the codec alone knows of them. The paper
leaves much open; docs/tiny_grounding_gpt.md tables what is chosen here.
"""

import dataclasses
import math
import operator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mg_jax import losses
from mg_jax.errors import UserError
from mg_jax.lm import LM, LMConfig
from mg_jax.models import System
from mg_jax.models.naming import PLACE_WEIGHT, label_shapes
from mg_jax.models.pointing import check_teaching, gaze_shapes, looking_loss
from mg_jax.models.vlm import VisionLM, pool, scatter, take, true_first, unit
from mg_jax.nn import MLP, Linear
from mg_jax.ops.box_mean import box_mean
from mg_jax.vision import preprocess
from mg_jax.vision.vit import ViT, ViTConfig

STAGES = ("projector", "llm", "local", "global")
PLACES = ("image", "object")  # placeholder ids follow the vocabulary in this order
CLIP_L = ViTConfig(kind="clip", activation="quick_gelu", image_size=336, eps=1e-5)
QWEN_3B = LMConfig(
    vocab=151936, width=2048, mlp=11008, layers=36, heads=16, kv_heads=2, eps=1e-6,
    rope_theta=1e6, max_positions=32768, tied=True, qkv_bias=True,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TinyGroundingGPTConfig:
    """Defaults: the paper's main model, of 3B.

    `clip.image_size`: side of both towers' pictures; positions of `dino` are interpolated to it.
    `select_layer`: which of CLIP's hidden states is read (negative: from the last); of DINOv2 it
    is the last one after its norm. `object_tokens`: vectors of an object image, those of the
    picture or means over squares of them. `dino_pixels`: "imagenet", as DINOv2 was trained, or
    "clip", the pixels that CLIP gets. `unit_vectors`: visual vectors are brought to unit mean
    square before they join the text; a language model that learns from nothing beside them needs
    it. `label_words`: size of a vocabulary of label words that stage "labels" has; there the
    towers learn to name and to place things linearly, which stands in for pretraining where there
    is none. `pointing_weight`: share of a loss that teaches the first heads of layer
    `pointing_layer` of the language model to look at what an answer is about, and that of the layer
    before to look from object images at where they are from, as a pretrained one would.
    """

    clip: ViTConfig = CLIP_L
    dino: ViTConfig = ViTConfig()
    lm: LMConfig = QWEN_3B
    select_layer: int = -2
    object_tokens: int = 144
    dino_pixels: Literal["imagenet", "clip"] = "imagenet"
    unit_vectors: bool = False
    label_words: int = 0
    pointing_weight: float = 0.0
    pointing_layer: int = 2

    @property
    def image_size(self) -> int:
        """Side of the padded square, of the picture and of a crop alike, pixels."""
        return self.clip.image_size

    @property
    def image_tokens(self) -> int:
        """Prompt positions of the picture."""
        return self.clip.grid**2

    @property
    def object_pool(self) -> int:
        """Side of the squares of tokens of an object image that are averaged into one."""
        return self.clip.grid // math.isqrt(self.object_tokens)

    def id(self, name: str) -> int:
        """Id of a placeholder, "image" or "object"; neither is ever embedded."""
        return self.lm.vocab + PLACES.index(name)


class TinyGroundingGPT(VisionLM):
    """Parameters: clip, dino, projector, lm; in stage "labels" clip, dino and labels alone."""

    cfg: TinyGroundingGPTConfig

    def setup(self):
        c = self.cfg
        self.clip, self.dino = ViT(c.clip), ViT(c.dino)
        width, dtype = c.lm.width, jnp.dtype(c.lm.dtype)
        self.projector = MLP(c.clip.width + c.dino.width, width, width, dtype=dtype)
        self.lm = LM(c.lm)
        if c.label_words:
            shape = (c.clip.width + c.dino.width, c.label_words + 4)
            self.labels = Linear(shape, ("embed", "new_vocab"))

    def see(self, pixels: Float[Array, "B S S 3"]) -> dict[str, jax.Array]:
        """Padded squares, normalised for CLIP -> `features` [B,P,C], channels of CLIP first."""
        c = self.cfg
        states, _ = self.clip(pixels)
        _, normed = self.dino(to_imagenet(pixels) if c.dino_pixels == "imagenet" else pixels)
        clip, dino = states[c.select_layer][:, 1:], normed[:, 1 + c.dino.registers :]
        joined = jnp.concatenate([clip.astype(jnp.float32), dino.astype(jnp.float32)], -1)
        return {"features": joined}

    def look(self, batch: dict[str, jax.Array]) -> tuple[Float[Array, "B N P C"], dict[str, Any]]:
        """Features of all pictures of a row, its own and then its object images', and what led
        there, whose batch axis is B*N."""
        pixels = jnp.concatenate([batch["image"][:, None], batch["objects"]], axis=1)
        b, n = pixels.shape[:2]
        aux: dict[str, Any] = self.see(pixels.reshape(b * n, *pixels.shape[2:]))
        return aux["features"].reshape(b, n, *aux["features"].shape[1:]), aux

    def pooled(self, crops: Float[Array, "B O P C"]) -> Float[Array, "B*O n C"]:
        """Features of object images as means over squares of their tokens."""
        b, o, *shape = crops.shape
        return pool(crops.reshape(b * o, *shape), self.cfg.object_pool)

    def name_things(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """What is read, linearly, of the token over the middle of each of `label_boxes`, of the
        mean of those in it, and of the mean of each object image.

        `words`, `mean_words` [B,K,W]: logits of the label words; `places` [B,K,4]: xyxy in [0, 1]
        of the padded square; `object_words` [B,O,W].
        """
        c, boxes = self.cfg, batch["label_boxes"]
        features, _ = self.look(batch)
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        at = jnp.clip((middle * c.clip.grid).astype(jnp.int32), 0, c.clip.grid - 1)
        things = self.labels(take(features[:, 0], at[..., 1] * c.clip.grid + at[..., 0]))
        words, places = jnp.split(things, [c.label_words], axis=-1)
        grid = features[:, 0].reshape(len(boxes), c.clip.grid, c.clip.grid, -1)
        mean = box_mean([grid], boxes - 0.5 / c.clip.grid, 1.0)  # a patch stands for its middle
        mean_words = self.labels(mean)[..., : c.label_words]
        shown = self.labels(features[:, 1:].mean(2))[..., : c.label_words]
        return {
            "words": words, "mean_words": mean_words, "places": places, "object_words": shown
        }  # fmt: skip

    def encode(self, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """Picture and crops -> `image_tokens` [B,P,D], `object_tokens` [B,O,n,D].

        Also the intermediates of `look`. Without a slot for crops there are no object tokens.
        """
        features, aux = self.look(batch)
        aux["image_tokens"] = self.projector(features[:, 0])
        if (slots := features.shape[1] - 1) > 0:
            tokens = self.projector(self.pooled(features[:, 1:]))
            aux["object_tokens"] = tokens.reshape(len(features), slots, *tokens.shape[1:])
        return aux

    def embed(self, batch: dict[str, jax.Array], aux: dict[str, Any]) -> dict[str, Any]:
        """Join: embeddings of `tokens` with visual vectors in place of placeholders.

        The n-th image slot of a row takes its n-th image vector; object slots take the vectors of
        the true object images one after the other.
        """
        c, tokens = self.cfg, batch["tokens"]
        x = self.lm.embed(tokens)

        def place(x, name, vectors):
            vectors = unit(vectors) if c.unit_vectors else vectors
            return scatter(x, tokens == c.id(name), vectors)

        x = place(x, "image", aux["image_tokens"])
        if "object_tokens" in aux:
            b, o, n, d = aux["object_tokens"].shape
            flat = aux["object_tokens"].reshape(b, o, n * d)
            vectors = true_first(flat, batch["object_mask"]).reshape(b, o * n, d)
            x = place(x, "object", vectors)
        return {"tokens": tokens, "valid": batch["valid"], "embeddings": x}


def to_imagenet(pixels: Float[Array, "B S S 3"]) -> Float[Array, "B S S 3"]:
    """Pixels normalised with CLIP's constants -> with ImageNet's."""
    mean, std, new_mean, new_std = (
        np.asarray(x, np.float64)
        for x in (
            preprocess.CLIP_MEAN, preprocess.CLIP_STD, preprocess.IMAGENET_MEAN,
            preprocess.IMAGENET_STD,
        )
    )  # fmt: skip
    scale, shift = std / new_std, (mean - new_mean) / new_std
    scale, shift = (x.astype(np.float32).reshape(1, 1, 1, 3) for x in (scale, shift))
    return pixels * scale + shift


def example_batch(
    cfg: TinyGroundingGPTConfig,
    stage: str,
    batch_size: int,
    *,
    tokens: int | None = None,
    objects: int = 1,
    targets: int = 8,
    gaze: int = 8,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch: text length, slots of object images, of labelled things, and looks of a
    sample."""
    b, s = batch_size, cfg.image_size
    t = tokens or cfg.image_tokens + objects * cfg.object_tokens + 8

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    seen = {"image": array(s, s, 3), "objects": array(objects, s, s, 3)}
    if stage == "labels":
        return seen | label_shapes(b, targets)
    return {
        **seen,
        "object_mask": array(objects, dtype=bool),
        "tokens": array(t, dtype=jnp.int32),
        "valid": array(t, dtype=bool),
        "loss_mask": array(t, dtype=bool),
        **(gaze_shapes(b, gaze) if cfg.pointing_weight else {}),
    }


def check(cfg: TinyGroundingGPTConfig) -> None:
    """Raises UserError when the sizes of a config do not fit each other, naming the key."""
    clip, dino = cfg.clip, cfg.dino
    for name, kind in (("clip", "clip"), ("dino", "dinov2")):
        if (found := getattr(cfg, name).kind) != kind:
            raise UserError(f"config.model.{name}.kind: {found!r} is not {kind!r}")
    for name in ("clip.patch", "clip.image_size", "dino.patch", "dino.image_size"):
        value = operator.attrgetter(name)(cfg)
        if value < 1:
            raise UserError(f"config.model.{name}: {value} is not at least 1")
    if clip.image_size % clip.patch or clip.image_size != clip.grid * dino.patch:
        raise UserError(
            f"config.model: clip.image_size={clip.image_size} must be a multiple of clip.patch="
            f"{clip.patch} and of an equal dino.patch, which is {dino.patch}"
        )
    if not -clip.layers - 1 <= cfg.select_layer <= clip.layers:
        raise UserError(
            f"config.model.select_layer: {cfg.select_layer} is not one of the {clip.layers + 1} "
            "hidden states of CLIP"
        )
    check_teaching(cfg)
    allowed = [(clip.grid // n) ** 2 for n in range(1, clip.grid + 1) if clip.grid % n == 0]
    if cfg.object_tokens not in allowed:
        raise UserError(
            f"config.model.object_tokens: {cfg.object_tokens} are no means over squares of the "
            f"{clip.grid}x{clip.grid} tokens: choose {', '.join(map(str, allowed))}"
        )


def system(cfg: TinyGroundingGPTConfig) -> System:
    """TinyGroundingGPT with its four stages, all of next-token loss (the config says what each of
    them trains), and "labels", which teaches the towers where `label_words` says so."""
    check(cfg)
    model = TinyGroundingGPT(cfg)

    def labels(params, batch, key):
        out: Any = model.apply({"params": params}, batch, method=model.name_things)
        known, given = batch["label_mask"], batch["labels"]
        shown = out["object_words"].shape[1]  # object images are of the first things
        loss, metrics = losses.label_loss(out["words"], given, known)
        mean, whole = losses.label_loss(out["mean_words"], given, known)  # reaches every token
        crops, crop = losses.label_loss(out["object_words"], given[:, :shown], known[:, :shown])
        place = losses.masked_l1(out["places"], batch["label_boxes"], known)
        metrics |= {"named_mean": whole["named"], "named_object": crop["named"], "place": place}
        return loss + mean + crops + PLACE_WEIGHT * place, metrics

    def language(params, batch, key):
        kept = ["intermediates"] if cfg.pointing_weight else []
        out: Any = model.apply({"params": params}, batch, mutable=kept)
        (logits, aux), maps = out
        loss, metrics = losses.next_token_loss(logits, aux["tokens"], batch["loss_mask"])
        count = batch["object_mask"].sum(1).astype(jnp.float32)
        metrics = {**metrics, "objects": count.mean()}
        if cfg.pointing_weight:
            look, found = looking(maps, batch)
            metrics |= {**found, "language": loss}
            loss = loss + cfg.pointing_weight * look
        return loss, metrics

    def looking(maps, batch):
        """Object images find where they are from in the layer before, apart from the answers, which
        need to know it."""
        origin, weight = batch["gaze"][..., 3] < 0, batch["gaze_weight"]
        answers = {**batch, "gaze_weight": jnp.where(origin, 0, weight)}
        objects = {**batch, "gaze_weight": jnp.where(origin, weight, 0)}
        look, found = looking_loss(maps, cfg.pointing_layer, answers)
        match, matched = looking_loss(maps, cfg.pointing_layer, objects)
        return look + match, {**found, "matching": match, "matched": matched["pointed"]}

    taught: dict[str, Any] = dict.fromkeys(STAGES, language)
    entry: dict[str, Any] = dict.fromkeys(STAGES, lambda m, batch: m(batch))
    if cfg.label_words:
        taught = {"labels": labels, **taught}
        entry["labels"] = lambda m, batch: m.name_things(batch)
    return System(
        "tiny_grounding_gpt", cfg, model, losses=taught, entry=entry, example=example_batch
    )
