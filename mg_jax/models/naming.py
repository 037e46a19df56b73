"""Stage "labels" of systems whose towers nobody has pretrained: they learn to name things.

Words and boxes of things are read linearly of the vectors that shall tell them.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mg_jax import losses

LABELS = 4  # label words of a thing at most
PLACE_WEIGHT = 5.0  # of where things are, beside what they are; a detector's for its boxes


def label_shapes(rows: int, count: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of `count` named boxes of a picture, as data/samples gives them."""
    return {
        "label_boxes": jax.ShapeDtypeStruct((rows, count, 4), jnp.float32),
        "label_mask": jax.ShapeDtypeStruct((rows, count), jnp.bool_),
        "labels": jax.ShapeDtypeStruct((rows, count, LABELS), jnp.int32),
    }


def naming_loss(
    read: Mapping[str, jax.Array], words: int, batch: Mapping[str, jax.Array]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(loss, metrics) of what each of several parts says of the things in `label_boxes`.

    read: by part [B,K,words+4], logits of the label words, then xyxy in the units of the boxes.
    Metrics: "named_PART" and "place_PART".
    """
    total = jnp.zeros(())
    metrics: dict[str, jax.Array] = {}
    known = batch["label_mask"]
    for part, values in read.items():
        loss, found = losses.label_loss(values[..., :words], batch["labels"], known)
        place = losses.masked_l1(values[..., words:], batch["label_boxes"], known)
        total += loss + PLACE_WEIGHT * place
        metrics |= {f"named_{part}": found["named"], f"place_{part}": place}
    return total, metrics
