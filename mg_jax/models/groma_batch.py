"""What Groma's batches are made of, as shapes."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from mg_jax.models.groma import GromaConfig


def example_batch(
    cfg: "GromaConfig",
    stage: str,
    batch_size: int,
    *,
    tokens: int | None = None,
    refer: int = 4,
    ground: int = 4,
    targets: int = 8,
    gaze: int = 8,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch: text length, slots of refer and ground boxes, detection targets, gaze.

    A batch may have `states` float16 [B, M, P, C], the encoder's hidden states, for its `pixels`.
    """
    b, s = batch_size, cfg.image_size

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((b, *shape), dtype)

    pixels = array(s, s, 3)
    found = {
        "boxes": array(targets, 4),
        "region_mask": array(targets, dtype=bool),
        "head": array(dtype=jnp.int32),
    }
    if cfg.label_words:
        found["labels"] = array(targets, 4, dtype=jnp.int32)
    if stage == "detection":
        return {"pixels": pixels, **found}
    t = tokens or cfg.image_tokens + 2 * cfg.max_regions + 8
    looks = {"gaze": array(gaze, 2, dtype=jnp.int32), "gaze_weight": array(gaze)}
    return {
        "pixels": pixels,
        **(found if cfg.detection_weight else {}),
        "tokens": array(t, dtype=jnp.int32),
        "valid": array(t, dtype=bool),
        "loss_mask": array(t, dtype=bool),
        "refer_boxes": array(refer, 4),
        "refer_mask": array(refer, dtype=bool),
        "ground_boxes": array(ground, 4),
        "ground_mask": array(ground, dtype=bool),
        **(looks if cfg.pointing_weight else {}),
    }
