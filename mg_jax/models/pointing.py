"""A loss on attention: it brings along what a pretrained language model would know.

`pointing_weight` of a config is its share. It trains the parameters that are there and adds none.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mg_jax import losses
from mg_jax.errors import UserError
from mg_jax.lm import TAUGHT
from mg_jax.models.vlm import take


def region_slots(tokens: Int[Array, "B T"], region: int, count: int) -> Int[Array, "B R"]:
    """Positions of the `count` tokens `region`, each after its `<r_k>`, in every row."""
    return jnp.argmax(tokens == region, axis=1)[:, None] + 2 * jnp.arange(count)[None]


def looking_loss(
    kept: Any, layer: int, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of heads that read what `gaze` of a batch says: [B,P,4] of position, position
    read, head, and layer counted from `layer`, the first one at least and the last one at most.

    kept: the language model's mutable collections after a forward pass with "intermediates".
    """
    (maps,) = kept["intermediates"]["lm"]["blocks"]["attn"]["attention"]
    at, target, head, later = jnp.moveaxis(batch["gaze"], -1, 0)
    layers = jnp.clip(layer + later, 0, len(maps) - 1)
    look, pointed = losses.pointing_loss(maps, layers, head, at, target, batch["gaze_weight"])
    return look, {"pointing": look, "pointed": pointed}


def with_looks(
    loss: jax.Array,
    metrics: Mapping[str, jax.Array],
    kept: Any,
    cfg: Any,
    batch: Mapping[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of a language stage with the share of `looking_loss` that the model's config
    gives it; both as they are where that is none. "language" is then the loss without."""
    if not cfg.pointing_weight:
        return loss, dict(metrics)
    look, found = looking_loss(kept, cfg.pointing_layer, batch)
    return loss + cfg.pointing_weight * look, {**metrics, **found, "language": loss}


def check_teaching(cfg: Any, first: int = 0, heads: int = TAUGHT) -> None:
    """Raises UserError for a `pointing_layer` before layer `first`, or heads, that the language
    model does not have, and for a weight or a number of `label_words` below 0."""
    if cfg.label_words < 0:
        raise UserError(f"config.model.label_words: {cfg.label_words}; give a count from 0 up")
    if cfg.pointing_weight < 0:
        raise UserError(f"config.model.pointing_weight: {cfg.pointing_weight} is negative")
    if cfg.pointing_weight and not first <= cfg.pointing_layer < cfg.lm.layers:
        raise UserError(
            f"config.model.pointing_layer: {cfg.pointing_layer} is not one of the language model's "
            f"layers {first} to {cfg.lm.layers - 1}"
        )
    if cfg.pointing_weight and cfg.lm.heads < heads:
        raise UserError(
            f"config.model.pointing_weight: {heads} heads are taught, but the language model has "
            f"lm.heads={cfg.lm.heads}: set it to 0, or give the model more"
        )


def gaze_shapes(rows: int, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of what `looking_loss` takes of a batch."""
    return {
        "gaze": jax.ShapeDtypeStruct((rows, count, 4), jnp.int32),
        "gaze_weight": jax.ShapeDtypeStruct((rows, count), jnp.float32),
    }


def pointing_loss(
    maps: Float[Array, "L B N T T"],
    layer: int,
    slots: Int[Array, "B R"],
    valid: Bool[Array, "B R"],
    matched: Int[Array, "B n"],
    gaze: Int[Array, "B P 2"],
    weight: Float[Array, "B P"],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, mean probabilities) of first heads that read what they should; `maps` are logs.

    In `layer` it is the regions of the codec's gaze (-1: the first token of the text), in the layer
    before, from each region, the `<r_k>` that introduces it: without it a region that was found
    could not be called by its number. slots: of the regions; matched: region of each ground box.
    """
    region = take(matched, gaze[..., 1])
    target = jnp.where(gaze[..., 1] < 0, 0, take(slots, region))

    def first_head(at, position, target, weight):
        head = jnp.zeros_like(position)
        return losses.pointing_loss(maps, head + at, head, position, target, weight)

    look, pointed = first_head(layer, gaze[..., 0], target, weight)
    known = valid.astype(jnp.float32)
    name, introduced = first_head(layer - 1, slots, slots - 1, known)
    return look + name, {"pointed": pointed, "introduced": introduced}
