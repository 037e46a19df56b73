"""Ferret: regions of any shape described by a sampler, pictures of any resolution as tiles.

One module by config: Ferret v1 (one resolution), Ferret-UI (CLIP on all crops) and Ferret-v2 (CLIP
on the whole picture, DINOv2 on up to six tiles); see ferret_config.py. Spec: Ferret. Tiles
stay apart, [B, N, ...]: the map over all of them is never built, vision/anyres.py's tables tell
where its cells lie. Points are shares (x/W, y/H) of the original picture, which is squeezed, not
padded, so they need no transform.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers as init
from jaxtyping import Array, Float, Int

from mg_jax import losses
from mg_jax.lm import LM
from mg_jax.models import System
from mg_jax.models.ferret_config import TRAINABLE, FerretConfig, check, version
from mg_jax.models.naming import label_shapes, naming_loss
from mg_jax.models.pointing import gaze_shapes, with_looks
from mg_jax.models.sampler import GeoRegionSampler
from mg_jax.models.vlm import VisionLM, pool, scatter, take, unit
from mg_jax.nn import MLP, Linear, param
from mg_jax.ops.point_sample import (
    bilinear_taps,
    crossed,
    gather_weighted,
    sample_map,
    upsampled_taps,
)
from mg_jax.vision.anyres import merged_order, tile_cell
from mg_jax.vision.vit import ViT

__all__ = ["TRAINABLE", "Ferret", "FerretConfig", "example_batch", "system", "version"]


class Ferret(VisionLM):
    """Parameters: low, tile, projector, tile_projector, tile_places, newline, sampler or
    region_adapter, lm; in stage "labels" labels in place of lm.

    A part that the config has no use for has no parameters.
    """

    cfg: FerretConfig

    def setup(self):
        c, dtype = self.cfg, jnp.dtype(self.cfg.lm.dtype)
        tower = c.tile or c.low

        def projector(width):
            if c.projector == "linear":
                return Linear((width, c.lm.width), ("embed", "mlp"), dtype=dtype)
            return MLP(width, c.lm.width, c.lm.width, dtype=dtype)

        self.low = ViT(c.low)
        self.projector = projector(c.low.width)
        if c.tile:
            self.tile = ViT(c.tile)
        if c.tile_projector == "own":
            self.tile_projector = projector(tower.width)
        if c.tile_places and c.grids:
            self.tile_places = TilePlaces((len(c.grids), c.max_tiles, tower.width))
        if c.merge == "spatial_unpad":
            std = init.normal(c.lm.width**-0.5)
            self.newline = param(self, "newline", (c.lm.width,), (None,), std)
        if c.regions == "sampler":
            self.sampler = GeoRegionSampler(c.sampler, c.map_width, c.lm.width)
        elif c.regions == "mean":
            shape = (c.map_width, c.lm.width)
            self.region_adapter = Linear(shape, ("embed", "mlp"), dtype=dtype)
        self.lm = LM(c.lm)
        if c.label_words:
            self.labels = Linear((c.lm.width, c.label_words + 4), ("embed", "new_vocab"))

    def encode(self, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """Pictures and points -> `image_tokens` [B,n,D] in the prompt's order, and `region_tokens`
        [B,Q,D]; also every intermediate of both.

        Without tiles in the batch only the whole picture is seen, without points no region.
        """
        aux = {"low_features": self.see(self.low, batch["low"], self.cfg.low_layer)}
        aux["low_tokens"] = self.project(self.projector, aux["low_features"])
        image = aux["low_tokens"]
        if "tiles" in batch:
            aux |= self.see_tiles(batch["tiles"], batch["grid"])
            image = self.joined(image, self.merge(aux["tile_tokens"], batch), batch)
        aux["image_tokens"] = image
        if "points" in batch and self.cfg.regions != "none":
            aux |= self.describe(aux, batch)
        return aux

    def see(self, tower: ViT, pixels: Float[Array, "B Y X 3"], layer: int | None) -> jax.Array:
        """Patch features [B,P,C] of hidden state `layer`, or of the last one, normed."""
        states, normed = tower(pixels)
        return (normed if layer is None else states[layer])[:, 1 + tower.cfg.registers :]

    def project(self, projector: nn.Module, features: Float[Array, "B P C"]) -> jax.Array:
        """Tokens [B,P,D] of features."""
        tokens = projector(features)
        return unit(tokens) if self.cfg.unit_vectors else tokens

    def see_tiles(self, tiles: Float[Array, "B N s s 3"], grid: Int[Array, " B"]) -> dict[str, Any]:
        """`tile_features` [B,N*P,C] and their projections `tile_tokens` [B,N*P,D]."""
        c, (b, n) = self.cfg, tiles.shape[:2]
        tower, layer = (self.tile, c.tile_layer) if c.tile else (self.low, c.low_layer)
        features = self.see(tower, tiles.reshape(b * n, *tiles.shape[2:]), layer)
        features = features.reshape(b, -1, features.shape[-1])
        own = self.tile_projector if c.tile_projector == "own" else self.projector
        known = features
        if c.tile_places:
            places = self.tile_places(grid)[:, :n].astype(features.dtype)
            known = features + jnp.repeat(places, c.tile_side**2, axis=1)
        return {"tile_features": features, "tile_tokens": self.project(own, known)}

    def merge(
        self, tokens: Float[Array, "B N*P D"], batch: Mapping[str, jax.Array]
    ) -> Float[Array, "B n D"]:
        """Tokens of the tiles in the order of the merged map; those past a row's map mean
        nothing."""
        c, (b, n) = self.cfg, batch["tiles"].shape[:2]
        if c.tile_pool > 1:
            pooled = pool(tokens.reshape(b * n, -1, tokens.shape[-1]), c.tile_pool)
            tokens = pooled.reshape(b, -1, tokens.shape[-1])
        table = jnp.asarray(merged_order(c.grids, c.token_side))
        order = table[batch["grid"]]
        if c.merge == "spatial":
            return take(tokens, order[:, : tokens.shape[1]])
        top, left, _, columns = (batch["window"][:, i, None] for i in range(4))
        at = jnp.arange(tokens.shape[1] + n * c.token_side)[None]
        row, column = at // (columns + 1), at % (columns + 1)
        across = self.grid_size(batch["grid"], c.token_side)[:, 1, None]
        cell = jnp.take_along_axis(
            order, jnp.clip((top + row) * across + left + column, 0, order.shape[1] - 1), 1
        )
        ends = (column == columns)[..., None]
        return jnp.where(ends, self.newline.astype(tokens.dtype)[None, None], take(tokens, cell))

    def joined(
        self,
        whole: Float[Array, "B P D"],
        merged: Float[Array, "B n D"],
        batch: Mapping[str, jax.Array],
    ) -> Float[Array, "B m D"]:
        """Both sequences by `image_order`; what lies past a row's last token means nothing."""
        both, c, first = jnp.concatenate([whole, merged], 1), self.cfg, whole.shape[1]
        if c.image_order == "whole_first":
            return both
        if c.merge == "spatial":
            rows, columns = jnp.moveaxis(self.grid_size(batch["grid"], c.token_side), 1, 0)
        else:
            rows, columns = batch["window"][:, 2], batch["window"][:, 3] + 1
        count, at = (rows * columns)[:, None], jnp.arange(both.shape[1])[None]
        return take(both, jnp.where(at < count, at + first, at - count))

    def grid_size(self, grid: Int[Array, " B"], side: int) -> Int[Array, "B 2"]:
        """(rows, columns) of the merged map of tiles `side` cells a side."""
        sizes = np.array([g[::-1] for g in self.cfg.grids], np.int32) * side
        return jnp.asarray(sizes)[grid]

    # -- regions -----------------------------------------------------------------------------

    def describe(self, aux: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """`region_tokens` [B,Q,D] of the regions whose points are [B,Q,P,2], and what led there."""
        c, points = self.cfg, batch["points"]
        b, q, p = points.shape[:3]
        at = (points if c.transpose_sampling else points[..., ::-1]).reshape(b, q * p, 2)
        features = self.read(aux, at, batch).reshape(b, q, p, -1)
        out: dict[str, Any] = {"point_features": features}
        if c.regions == "sampler":
            tokens, out["sampler"] = self.sampler(features, points, batch)
        else:
            count = batch["point_count"][..., None]
            known = (jnp.arange(p)[None, None] < count)[..., None]
            mean = jnp.where(known, features, 0).sum(2) / jnp.maximum(count, 1)
            tokens = self.region_adapter(mean)
        return {**out, "region_tokens": tokens}

    def read(
        self, aux: Mapping[str, Any], at: Float[Array, "B P 2"], batch: Mapping[str, jax.Array]
    ) -> Float[Array, "B P C"]:
        """Bilinear values at shares (row, column) of the map that regions are read from.

        That is the merged map of the tiles and on it the whole picture's, upsampled to it; either
        is read where it lies.
        """
        c = self.cfg
        kind = "tokens" if c.fusion == "projected" else "features"
        low, side = aux[f"low_{kind}"], c.low_side
        if "tiles" not in batch or c.region_map == "global":
            return sample_map(low.reshape(len(low), side, side, -1), at)
        size = self.grid_size(batch["grid"], c.tile_side)[:, None]
        fine = [bilinear_taps(at[..., i] * (size[..., i] - 1), size[..., i]) for i in range(2)]
        coarse = [upsampled_taps(t, size[..., i], side, c.upsampling) for i, t in enumerate(fine)]
        row, column, weight = crossed(*coarse)
        whole = gather_weighted(low, row * side + column, weight)
        row, column, weight = crossed(*fine)
        across = size[..., 1, None] // c.tile_side
        cells = tile_cell(row, column, across, c.tile_side)
        return whole + gather_weighted(aux[f"tile_{kind}"], cells, weight)

    def name_things(self, batch: Mapping[str, jax.Array]) -> dict[str, Float[Array, "B K W+4"]]:
        """What is read, by one linear map, of the tokens over the middle of each of `label_boxes`
        (xyxy in [0, 1]) and of the vector of each region, of which there are as many.

        By part ("low", "tile", "region"): logits of the label words, then xyxy in [0, 1]. One map,
        so that the sum of both encoders' tokens, which regions are read from, tells it too.
        """
        aux, side = self.encode(batch), self.cfg.low_side
        middle = (batch["label_boxes"][..., :2] + batch["label_boxes"][..., 2:]) / 2

        def cell(rows, columns):
            x, y = (jnp.floor(middle[..., i] * n) for i, n in enumerate((columns, rows)))
            x, y = jnp.clip(x, 0, columns - 1), jnp.clip(y, 0, rows - 1)
            return y.astype(jnp.int32), x.astype(jnp.int32)

        row, column = cell(side, side)
        found = {"low": take(aux["low_tokens"], row * side + column)}
        if "tile_tokens" in aux:
            side = self.cfg.tile_side
            size = self.grid_size(batch["grid"], side)[..., None]
            row, column = cell(size[:, 0], size[:, 1])
            at = tile_cell(row, column, size[:, 1] // side, side)
            found["tile"] = take(aux["tile_tokens"], at)
        if "region_tokens" in aux:
            vectors = aux["region_tokens"]
            found["region"] = unit(vectors) if self.cfg.unit_vectors else vectors
        return {part: self.labels(x.astype(jnp.float32)) for part, x in found.items()}

    # -- language ----------------------------------------------------------------------------

    def embed(self, batch: Mapping[str, jax.Array], aux: Mapping[str, Any]) -> dict[str, Any]:
        """Join: embeddings of `tokens` with visual vectors in place of placeholders, the n-th
        image slot of a row taking its n-th image vector, the n-th region slot its n-th region."""
        c, tokens = self.cfg, batch["tokens"]
        x = self.lm.embed(tokens)
        for name in ("image", "region"):
            if f"{name}_tokens" in aux:
                vectors = aux[f"{name}_tokens"]
                vectors = unit(vectors) if c.unit_vectors else vectors
                x = scatter(x, tokens == c.id(name), vectors)
        return {"tokens": tokens, "valid": batch["valid"], "embeddings": x}


class TilePlaces(nn.Module):
    """A vector for every tile of every grid. Parameters: table [grids, tiles, C]."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, grid: Int[Array, " B"]) -> Float[Array, "B tiles C"]:
        axes = (None, None, "embed")
        return param(self, "table", self.shape, axes, init.normal(0.1))[grid]


def example_batch(
    cfg: FerretConfig,
    stage: str,
    batch_size: int,
    *,
    tokens: int | None = None,
    tiles: int | None = None,
    regions: int = 8,
    targets: int = 8,
    gaze: int = 8,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch: text length, tile slots, slots of regions, of labelled things, and looks
    of a sample.

    Stage "caption" sees the whole picture alone and no regions; in "labels" every labelled thing
    is a region.
    """
    tiled = bool(cfg.grids) and stage != "caption"
    n, side = tiles or cfg.max_tiles, cfg.tile_size
    t = tokens or (cfg.largest if tiled else cfg.image_tokens()) + 8

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    out = {"low": array(cfg.low_size, cfg.low_size, 3)}
    if stage == "labels":
        out, regions = out | label_shapes(batch_size, targets), targets
    else:
        out["tokens"] = array(t, dtype=jnp.int32)
        out |= {name: array(t, dtype=bool) for name in ("valid", "loss_mask")}
        out |= gaze_shapes(batch_size, gaze) if cfg.pointing_weight else {}
    if tiled:
        out |= {"tiles": array(n, side, side, 3), "grid": array(dtype=jnp.int32)}
        if cfg.merge == "spatial_unpad":
            out["window"] = array(4, dtype=jnp.int32)
    if cfg.regions != "none" and stage != "caption":
        out["points"] = array(regions, cfg.sampler.points, 2)
        out["point_count"] = array(regions, dtype=jnp.int32)
    return out


def system(cfg: FerretConfig) -> System:
    """Ferret with its three stages, all of next-token loss (TRAINABLE says what they train), and
    "labels", which teaches the encoders where `label_words` says so.

    The first has no tiles and no regions, so neither has its checkpoint; v1 has the last alone.
    """
    check(cfg)
    model = Ferret(cfg)

    def language(params, batch, key):
        kept = ["intermediates"] if cfg.pointing_weight else []
        out: Any = model.apply({"params": params}, batch, rngs={"points": key}, mutable=kept)
        (logits, aux), maps = out
        loss, metrics = losses.next_token_loss(logits, aux["tokens"], batch["loss_mask"])
        if "point_count" in batch:
            count = (batch["point_count"] > 0).sum(1).astype(jnp.float32)
            metrics = {**metrics, "regions": count.mean()}
        return with_looks(loss, metrics, maps, cfg, batch)

    def labels(params, batch, key):
        variables, rngs = {"params": params}, {"points": key}
        read: Any = model.apply(variables, batch, rngs=rngs, method=model.name_things)
        return naming_loss(read, cfg.label_words, batch)

    stages = ("caption", "dense", "instruction")
    taught: dict[str, Any] = dict.fromkeys(stages, language)
    entry: dict[str, Any] = dict.fromkeys(stages, lambda m, batch: m(batch))
    if cfg.label_words:
        taught = {"labels": labels, **taught}
        entry["labels"] = lambda m, batch: m.name_things(batch)
    return System("ferret", cfg, model, losses=taught, entry=entry, example=example_batch)
