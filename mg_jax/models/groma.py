"""Groma: propose regions, encode them as tokens, answer with `<r_k>` proxies (arXiv 2404.13013).

Where paper and published code differ the choice is a field of a config (GromaConfig, DetrConfig,
RegionConfig); docs/groma.md tables them. Boxes at the interface are xyxy in [0,1]; inside the
detector and the region encoder they are normalised cxcywh.
"""

import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mg_jax import losses
from mg_jax.boxes import cxcywh_to_xyxy, iou, nms, xyxy_to_cxcywh
from mg_jax.errors import UserError
from mg_jax.lm import LM, LMConfig
from mg_jax.models import System
from mg_jax.models.detr import DetrConfig, Proposer
from mg_jax.models.groma_batch import example_batch
from mg_jax.models.pointing import check_teaching, pointing_loss, region_slots
from mg_jax.models.regions import RegionConfig, RegionEncoder
from mg_jax.models.vlm import NewTokens, VisionLM, occurrence, scatter, take, unit
from mg_jax.nn import MLP, Linear, over_batch
from mg_jax.vision.vit import ViT, ViTConfig

WHOLE = np.array([[[0.0, 0.0, 1.0, 1.0]]], np.float32)  # a box that stands in for none
REFER_SCORE, GROUND_SCORE = 1.0, 0.2  # of boxes given by the user / by training data (spec 2.4)


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Offsets of the added tokens from the base vocabulary, as the codec has them (spec 2.6)."""

    pad: int = 0
    image: int = 8
    region: int = 9
    refer_box: int = 10
    ground_box: int = 11
    refer_feat: int = 12
    first_region: int = 14  # <r0>; <r_k> is first_region + k


@dataclasses.dataclass(frozen=True)
class GromaConfig:
    """`region_order` "random" shuffles the selected regions in training (key "regions").

    `frozen_dropout`: the proposer keeps its dropout while frozen, as the published training
    loop did. `token_merge`: four neighbouring patches make one image token.
    `encoder_gradient`: the language loss reaches the image encoder (upstream runs it under
    no_grad); the choice of regions never has a gradient. `detection_weight`: share of the set
    loss in the language stages, so that the proposer keeps up with an encoder that moves.
    `unit_vectors`: image and region vectors are brought to unit mean square before they join the
    text. A language model that learns beside them needs it: they would outgrow its stream.
    `pointing_weight`: share of a loss that teaches the first head of layer `pointing_layer` of the
    language model to look at the regions that an answer is about, and the one of the layer before
    to tell regions their numbers. A pretrained model has such heads; one that starts from nothing
    had not found them after 3,000 steps of the tiny training.
    `taps`: hidden states of the encoder that are read, by number (0: what enters the first layer),
    in place of all of them: proposer, region encoder and projector take the last of these.
    `label_words`: size of a vocabulary of label words that regions are named by, linearly, and
    4 numbers more, their boxes, in the stages that have boxes: it teaches an encoder that starts
    from nothing what things are, and their vectors what a language model will ask for.
    """

    vision: ViTConfig = ViTConfig()
    proposer: DetrConfig = DetrConfig()
    regions: RegionConfig = RegionConfig()
    lm: LMConfig = LMConfig()
    new_tokens: int = 114
    nms_threshold: float = 0.6
    score_threshold: float = 0.15
    max_regions: int = 100
    token_merge: bool = True
    region_order: Literal["score", "random"] = "score"
    frozen_dropout: bool = False
    encoder_gradient: bool = False
    detection_weight: float = 0.0
    unit_vectors: bool = False
    pointing_weight: float = 0.0
    pointing_layer: int = 2
    taps: tuple[int, ...] = ()
    label_words: int = 0
    image_size: int = 448
    tokens: TokenIds = TokenIds()

    @property
    def image_tokens(self) -> int:
        """Prompt positions a picture takes."""
        patches = (self.image_size // self.vision.patch) ** 2
        return patches // 4 if self.token_merge else patches

    def id(self, name: str) -> int:
        """Token id of an added token by its name in TokenIds."""
        return self.lm.vocab + getattr(self.tokens, name)


class Regions(flax.struct.PyTreeNode):
    """Selected regions: boxes [B,R,4] normalised cxcywh, scores [B,R], valid [B,R].

    `index` [B,R]: row of the candidates (proposals, then refer, then ground boxes).
    """

    boxes: Any
    scores: Any
    valid: Any
    index: Any


def merge_patches(x: Float[Array, "B P C"]) -> Float[Array, "B P/4 4*C"]:
    """Join 2x2 neighbouring patches on channels: top-left, bottom-left, top-right, bottom-right."""
    b, p, c = x.shape
    side = int(p**0.5)
    if side % 2:
        raise ValueError(
            f"{side}x{side} patches cannot be joined two by two: make image_size an even multiple "
            "of vision.patch, or token_merge False"
        )
    x = x.reshape(b, side // 2, 2, side // 2, 2, c)
    return x.transpose(0, 1, 3, 4, 2, 5).reshape(b, p // 4, 4 * c)


class Groma(VisionLM):
    """Parameters: vision, proposer, projector, region_encoder, lm, new_tokens."""

    cfg: GromaConfig

    def setup(self):
        c = self.cfg
        self.vision = ViT(c.vision)
        self.proposer = Proposer(c.proposer)
        self.projector = MLP(
            c.vision.width * (4 if c.token_merge else 1),
            c.lm.width, c.lm.width, dtype=jnp.dtype(c.lm.dtype),
        )  # fmt: skip
        self.region_encoder = RegionEncoder(c.regions, c.lm.width)
        self.lm = LM(c.lm)
        self.new_tokens = NewTokens(c.new_tokens, c.lm.width, jnp.dtype(c.lm.dtype))
        if c.label_words:
            self.labels = Linear((c.lm.width, c.label_words + 4), ("embed", "new_vocab"))

    def detect(
        self,
        pixels: Float[Array, "B S S 3"] | None = None,
        states: Float[Array, "B M P C"] | None = None,
    ) -> dict[str, Any]:
        """Encoder and proposer only: every intermediate of models/detr.py, and hidden states.

        `states`: the last ones of a frozen encoder (or its taps), made before, in place of the
        pixels.
        """
        if states is not None:
            seen = {"hidden_states": states.astype(jnp.float32).swapaxes(0, 1)}
        elif pixels is None:
            raise ValueError("a batch has pixels or states")
        else:
            found, normed = self.vision(pixels)
            found = found[np.array(self.cfg.taps)] if self.cfg.taps else found
            seen = {"hidden_states": found, "last_hidden_state": normed}
        return {**self.proposer(seen["hidden_states"]), **seen}

    def name_regions(
        self, states: Float[Array, "M B P C"], boxes: Float[Array, "B R 4"]
    ) -> Float[Array, "B R W+4"]:
        """Logits of the label words of xyxy boxes, and 4 numbers more: each box as cxcywh, read
        from its vector. `states` are the encoder's hidden states."""
        features, _ = self.region_encoder(states, xyxy_to_cxcywh(boxes))
        return self.labels(unit(features) if self.cfg.unit_vectors else features)

    def detection(self, batch: dict[str, jax.Array]) -> dict[str, Any]:
        """`detect`, and the given boxes named where there is a vocabulary for it."""
        aux = self.detect(batch.get("pixels"), batch.get("states"))
        if self.cfg.label_words:
            boxes = jnp.where(batch["region_mask"][..., None], batch["boxes"], WHOLE)
            aux["labels"] = self.name_regions(aux["hidden_states"], boxes)
        return aux

    def select(
        self,
        proposals: dict[str, Any],
        refer: tuple[jax.Array, jax.Array] | None = None,
        ground: tuple[jax.Array, jax.Array] | None = None,
        order: Int[Array, "B R"] | None = None,
    ) -> Regions:
        """Merge proposals with given boxes, NMS, keep the best `max_regions` (spec 2.4).

        `refer`, `ground`: (boxes [B,n,4] xyxy, valid [B,n]). `order` permutes the kept regions
        (default: by descending score, or random in training by config).
        """
        c = self.cfg
        boxes, scores = proposals["boxes"][:, -1], proposals["scores"]
        valid = jnp.ones(scores.shape, bool)
        for given, score in ((refer, REFER_SCORE), (ground, GROUND_SCORE)):
            if given is not None:
                boxes = jnp.concatenate([boxes, xyxy_to_cxcywh(given[0])], 1)
                scores = jnp.concatenate([scores, jnp.full(given[1].shape, score)], 1)
                valid = jnp.concatenate([valid, given[1]], 1)

        def one(boxes, scores, valid):
            return nms(
                cxcywh_to_xyxy(boxes), scores, valid, c.nms_threshold, c.score_threshold,
                c.max_regions, fallback=True,
            )  # fmt: skip

        index, keep = over_batch(jax.vmap(one), (boxes, scores, valid), (0, 0, 0), (0, 0))
        if order is None and c.region_order == "random" and self.has_rng("regions"):
            noise = jax.random.uniform(self.make_rng("regions"), keep.shape)
            order = jnp.argsort(jnp.where(keep, noise, 2.0), axis=1)
        if order is not None:
            index, keep = take(index, order), take(keep, order)
        boxes = jnp.where(keep[..., None], take(boxes, index), 0.0)
        scores = jnp.where(keep, take(scores, index), 0.0)
        return jax.lax.stop_gradient(Regions(boxes, scores, keep, index))

    def encode(self, batch: dict[str, jax.Array], order=None) -> dict[str, Any]:
        """Pixels and given boxes -> selected regions, image vectors and region vectors.

        Without `encoder_gradient` the image encoder gets none here (as upstream's no_grad).
        """
        aux = self.detect(batch.get("pixels"), batch.get("states"))
        if not (self.cfg.encoder_gradient or self.cfg.detection_weight):
            aux = jax.lax.stop_gradient(aux)
        aux["regions"] = self.select(
            aux,
            (batch["refer_boxes"], batch["refer_mask"]) if "refer_boxes" in batch else None,
            (batch["ground_boxes"], batch["ground_mask"]) if "ground_boxes" in batch else None,
            order,
        )
        seen = aux["hidden_states"][-len(self.cfg.regions.upsample) :]
        if not self.cfg.encoder_gradient:
            seen = jax.lax.stop_gradient(seen)
        merged = seen[-1][:, 1:]
        if self.cfg.token_merge:
            merged = merge_patches(merged)
        aux["image_tokens_merged"] = merged
        aux["image_tokens"] = self.projector(merged)
        features, more = self.region_encoder(seen, aux["regions"].boxes)
        return {**aux, **more, "region_features": features}

    def embed(self, batch: dict[str, jax.Array], aux: dict[str, Any]) -> dict[str, Any]:
        """Join: tokens with boxes replaced by `<r_k>`, their embeddings, and which are valid.

        Prompts hold `<image>` once per image vector, and every pair `<r_k><region>` up to
        max_regions; pairs past the selected regions become invalid.
        """
        c = self.cfg
        tokens, valid, regions = batch["tokens"], batch["valid"], aux["regions"]
        nearest = {}
        for kind in ("refer", "ground"):
            if f"{kind}_boxes" in batch:
                nearest[kind] = match(batch[f"{kind}_boxes"], regions)
                slot = batch["tokens"] == c.id(f"{kind}_box")
                proxy = c.id("first_region") + take(nearest[kind], occurrence(slot))
                tokens = jnp.where(slot, proxy, tokens)
        is_region = tokens == c.id("region")
        pair = is_region | jnp.roll(is_region, -1, axis=1)
        number = jnp.cumsum(jnp.roll(is_region, -1, axis=1), axis=1) - 1
        number = jnp.where(is_region, occurrence(is_region), number)
        valid = valid & (~pair | take(regions.valid, number))

        x = self.embed_tokens(tokens)
        images, features = aux["image_tokens"], aux["region_features"]
        if c.unit_vectors:
            images, features = unit(images), unit(features)
        x = scatter(x, tokens == c.id("image"), images)
        x = scatter(x, is_region, features)
        if "refer" in nearest:
            x = scatter(x, tokens == c.id("refer_feat"), take(features, nearest["refer"]))
        return {"tokens": tokens, "valid": valid, "embeddings": x, "matched": nearest}

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Embeddings from the base table or the table of added tokens."""
        return self.new_tokens.embed(tokens, self.cfg.lm.vocab, self.lm.embed(tokens))

    def logits(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V+new"]:
        """Logits over base and added vocabulary, float32."""
        return jnp.concatenate([self.lm.logits(hidden), self.new_tokens.logits(hidden)], -1)


def match(boxes: Float[Array, "B n 4"], regions: Regions) -> Int[Array, "B n"]:
    """Number of the selected region that overlaps each xyxy box most (first of equals)."""
    overlap = jax.vmap(iou)(boxes, cxcywh_to_xyxy(regions.boxes))
    return jnp.argmax(jnp.where(regions.valid[:, None], overlap, -1.0), axis=-1)


def system(cfg: GromaConfig) -> System:
    """Groma with its three stages: detection (set loss), alignment and instruction (next token).

    Raises UserError for a `pointing_layer` that the language model does not have, and for `taps`
    that the encoder does not have, or fewer than are read.
    """
    count = 4 if cfg.proposer.levels_from == "mean" else cfg.proposer.levels
    count = max(count, len(cfg.regions.upsample))
    known = range(cfg.vision.layers + 1)
    if cfg.taps and (len(cfg.taps) < count or not set(cfg.taps) <= set(known)):
        raise UserError(
            f"config.model.taps is {cfg.taps}: give at least {count} numbers from 0 to "
            f"{cfg.vision.layers}, the layers of the encoder"
        )
    check_teaching(cfg, first=1, heads=1)  # one head, which looks at what the layer before names
    model = Groma(cfg)

    def detection(params, batch, key):
        out: Any = model.apply(
            {"params": params}, batch, rngs={"dropout": key}, method=model.detection
        )
        loss, terms = losses.detection_loss(out, batch, cfg.proposer)
        if cfg.label_words:
            words, places = jnp.split(out["labels"], [cfg.label_words], axis=-1)
            labels, named = losses.label_loss(words, batch["labels"], batch["region_mask"])
            found = xyxy_to_cxcywh(batch["boxes"])
            place = losses.masked_l1(places, found, batch["region_mask"])
            loss = loss + labels + cfg.proposer.box_weight * place
            terms = {**terms, **named, "loss_labels": labels, "place": place}
        return loss, {k: v for k, v in terms.items() if "cardinality" not in k}

    def language(params, batch, key):
        keys = dict(zip(("regions", "dropout"), jax.random.split(key), strict=True))
        if not cfg.frozen_dropout:
            del keys["dropout"]
        kept = ["intermediates"] if cfg.pointing_weight else []
        out: Any = model.apply({"params": params}, batch, rngs=keys, mutable=kept)
        (logits, aux), maps = out
        loss, metrics = losses.next_token_loss(logits, aux["tokens"], batch["loss_mask"])
        metrics = {**metrics, "regions": aux["regions"].valid.sum(1).mean()}
        if cfg.pointing_weight:
            (maps,) = maps["intermediates"]["lm"]["blocks"]["attn"]["attention"]
            slots = region_slots(aux["tokens"], cfg.id("region"), cfg.max_regions)
            pointing, looks = pointing_loss(
                maps, cfg.pointing_layer, slots, aux["regions"].valid, aux["matched"]["ground"],
                batch["gaze"], batch["gaze_weight"],
            )  # fmt: skip
            metrics |= {"pointing": pointing, **looks, "language": loss}
            loss = loss + cfg.pointing_weight * pointing
        if cfg.detection_weight:
            found, _ = losses.detection_loss(aux, batch, cfg.proposer)
            metrics = {"language": loss, **metrics, "detection": found}
            loss = loss + cfg.detection_weight * found
        return loss, metrics

    return System(
        "groma",
        cfg,
        model,
        losses={"detection": detection, "alignment": language, "instruction": language},
        entry={
            "detection": lambda m, batch: m.detection(batch),
            "alignment": lambda m, batch: m(batch),
            "instruction": lambda m, batch: m(batch),
        },
        example=example_batch,
    )
