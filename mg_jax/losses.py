"""Losses: set prediction (focal, L1, GIoU after Hungarian matching) and next token."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from optax.assignment import hungarian_algorithm

from mg_jax import boxes as box_ops
from mg_jax import ops
from mg_jax.nn import over_batch

# Above every cost of a valid pair, which is clipped to half of it (below 50 at published weights).
PAD_COST = 1e4


class SetLossConfig(Protocol):
    """What `detection_loss` reads of a config (models/detr.py: DetrConfig)."""

    @property
    def class_cost(self) -> float: ...

    @property
    def box_cost(self) -> float: ...

    @property
    def giou_cost(self) -> float: ...

    @property
    def class_weight(self) -> float: ...

    @property
    def box_weight(self) -> float: ...

    @property
    def giou_weight(self) -> float: ...

    @property
    def focal_alpha(self) -> float: ...

    @property
    def focal_gamma(self) -> float: ...

    @property
    def matcher(self) -> str: ...


def _power(x: jax.Array, exponent: float) -> jax.Array:
    return x ** (int(exponent) if float(exponent).is_integer() else exponent)


def sigmoid_focal(
    logits: Float[Array, "*A"], targets: Float[Array, "*A"], alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*A"]:
    """Focal loss of each logit against its 0/1 target, in float32 (RetinaNet)."""
    x = logits.astype(jnp.float32)
    p = jax.nn.sigmoid(x)
    ce = jnp.maximum(x, 0) - x * targets + jnp.log1p(jnp.exp(-jnp.abs(x)))
    wrong = p + targets - 2 * p * targets  # 1 - probability of the target
    return (1 - alpha + (2 * alpha - 1) * targets) * _power(wrong, gamma) * ce


def match_cost(
    logits: Float[Array, "*A Q"],
    boxes: Float[Array, "*A Q 4"],
    targets: Float[Array, "*A R 4"],
    cfg: SetLossConfig,
) -> Float[Array, "*A Q R"]:
    """Cost of giving target r to query q; boxes (cx, cy, w, h). Always finite.

    class_cost * (focal cost of "object" - of "nothing") + box_cost * L1 - giou_cost * GIoU.
    """
    p = jax.nn.sigmoid(logits.astype(jnp.float32))
    alpha, gamma = cfg.focal_alpha, cfg.focal_gamma
    nothing = (1 - alpha) * _power(p, gamma) * -jnp.log(1 - p + 1e-8)
    thing = alpha * _power(1 - p, gamma) * -jnp.log(p + 1e-8)
    l1 = sum(jnp.abs(boxes[..., :, None, i] - targets[..., None, :, i]) for i in range(4))
    giou = box_ops.paired_giou(
        box_ops.cxcywh_to_xyxy(boxes)[..., :, None, :],
        box_ops.cxcywh_to_xyxy(targets)[..., None, :, :],
    )
    cost = cfg.class_cost * (thing - nothing)[..., None] + cfg.box_cost * l1 - cfg.giou_cost * giou
    return jnp.clip(jnp.nan_to_num(cost, nan=PAD_COST), -PAD_COST / 2, PAD_COST / 2)


def match(
    cost: Float[Array, "L B Q R"], mask: Bool[Array, "B R"], how: str = "auto"
) -> tuple[Int[Array, "L B R"], Bool[Array, "L B R"]]:
    """Cheapest one-to-one assignment of the valid targets of each row to queries.

    Returns the query of every target and whether it got one: padded targets get none, nor do
    the most expensive ones where there are more targets than queries (their query reads 0).
    `how`: "jit", the Hungarian algorithm of optax inside the program; "scipy", SciPy's through a
    host callback; "auto" is "jit". On a mesh each device matches its own rows.
    """
    if how not in ("auto", "jit", "scipy"):
        raise ValueError(f"matcher={how!r} is not one of 'auto', 'jit', 'scipy'")
    assign = _assign_scipy if how == "scipy" else _assign_jit

    def local(cost, mask):
        layers, rows, queries, targets = cost.shape
        masks = jnp.broadcast_to(mask[None], (layers, rows, targets))
        index = assign(
            cost.reshape(layers * rows, queries, targets), masks.reshape(layers * rows, targets)
        )
        index = index.reshape(layers, rows, targets)
        found = masks & (index < queries)
        return jnp.where(found, index, 0), found

    return over_batch(local, (cost, mask), (1, 0), (1, 1))


def _assign_jit(cost: jax.Array, mask: jax.Array) -> jax.Array:
    """[B,Q,R], [B,R] -> query of each target [B,R]; Q or more means none.

    R more columns stand for "none": free and its own for a padded target, dearer than any query
    for a valid one. So padded targets take one step each, instead of one per padded target
    before them, as they would if all queries cost them the same.
    """
    _, queries, targets = cost.shape
    own = jnp.where(jnp.eye(targets, dtype=bool)[None], 0.0, PAD_COST)
    none = jnp.where(mask[:, :, None], PAD_COST, own)
    table = jnp.where(mask[:, :, None], cost.swapaxes(1, 2), PAD_COST)
    table = jnp.concatenate([table, none], 2)

    def one(table):
        target, query = hungarian_algorithm(table)
        return jnp.zeros(targets, jnp.int32).at[target].set(query.astype(jnp.int32))

    if ops.platform() == "cpu" and queries * targets > 4096:
        return jax.lax.map(one, table)  # rows side by side wait for the slowest at each step
    return jax.vmap(one)(table)


def _assign_scipy(cost: jax.Array, mask: jax.Array) -> jax.Array:
    """The same by `scipy.optimize.linear_sum_assignment` on the host."""
    shape = jax.ShapeDtypeStruct(mask.shape, jnp.int32)
    return jax.pure_callback(_solve_rows, shape, cost, mask)


def _solve_rows(cost: Any, mask: Any) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    cost, mask = np.asarray(cost), np.asarray(mask)
    index = np.full(mask.shape, cost.shape[1], np.int32)
    for row, (table, valid) in enumerate(zip(cost, mask, strict=True)):
        targets = np.flatnonzero(valid)
        queries, chosen = linear_sum_assignment(table[:, targets])
        index[row, targets[chosen]] = queries
    return index


def detection_loss(
    aux: dict[str, jax.Array], batch: dict[str, jax.Array], cfg: SetLossConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Set loss of the proposer (Groma spec 3): (total, named terms).

    `aux` is the output of models/detr.py. `batch`: boxes[B,R,4] xyxy in [0, 1] of the model's
    view, region_mask[B,R], and head[B], the class head that learns from each row (0 coco,
    1 SA-1B; absent: 0). Every decoder layer and the proposals of all encoder tokens are matched
    to the targets, with the same weights. Focal, L1 and 1 - GIoU are summed and divided by the
    number of targets in the batch (at least 1). Names: loss_ce, loss_bbox, loss_giou,
    cardinality_error of the last layer; with _0, _1, ... of the layers before it, and _enc of the
    encoder. Terms are unweighted. cardinality_error (no gradient) is upstream's: with one class
    its argmax never says "object", so that it equals the mean number of targets.
    """
    boxes, mask, head = batch["boxes"], batch["region_mask"], batch.get("head")
    valid = mask[..., None]
    targets = jnp.where(valid, box_ops.xyxy_to_cxcywh(boxes.astype(jnp.float32)), 0.5)
    count = jnp.maximum(mask.sum(), 1).astype(jnp.float32)
    logits = aux["logits_coco"]
    if head is not None:
        logits = jnp.where((head == 1)[:, None, None, None], aux["logits_sa1b"], logits)
    logits, predicted = logits[..., 0].swapaxes(0, 1), aux["boxes"].swapaxes(0, 1)
    encoder = jax.nn.sigmoid(aux["enc_coord_logits"])[None]

    layers = logits.shape[0]
    names = [*(f"_{i}" for i in range(layers - 1)), ""]
    terms: dict[str, jax.Array] = {}
    proposals = aux["enc_class_logits"][None, ..., 0]
    groups = ((names, logits, predicted), (["_enc"], proposals, encoder))
    for suffixes, scores, found in groups:
        ce, l1, giou = _layer_terms(scores, found, targets, mask, cfg)
        for i, suffix in enumerate(suffixes):
            terms[f"loss_ce{suffix}"] = ce[i] / count
            terms[f"loss_bbox{suffix}"] = l1[i] / count
            terms[f"loss_giou{suffix}"] = giou[i] / count
            terms[f"cardinality_error{suffix}"] = mask.sum(-1).astype(jnp.float32).mean()
    weights = (
        ("loss_ce", cfg.class_weight), ("loss_bbox", cfg.box_weight),
        ("loss_giou", cfg.giou_weight),
    )  # fmt: skip
    total = jnp.float32(0)
    for name, weight in weights:
        total = total + weight * sum(terms[name + s] for s in (*names, "_enc"))
    return total, terms


def _layer_terms(logits, boxes, targets, mask, cfg):
    """Sums over batch of focal, L1 and 1 - GIoU, one per layer, of logits [L,B,Q]."""
    still = jax.lax.stop_gradient
    cost = match_cost(still(logits), still(boxes), targets[None], cfg)
    index, matched = match(cost, mask, cfg.matcher)

    queries = logits.shape[-1]

    def one_hot(index):
        return jnp.zeros(queries, jnp.float32).at[index].set(1.0, mode="drop")

    hot = jax.vmap(jax.vmap(one_hot))(jnp.where(matched, index, queries))  # out of range: dropped
    ce = sigmoid_focal(logits, hot, cfg.focal_alpha, cfg.focal_gamma).sum((1, 2))

    chosen = jnp.take_along_axis(boxes, index[..., None], axis=2)
    chosen = jnp.where(matched[..., None], chosen, 0.5)
    target = jnp.where(matched[..., None], targets[None], 0.5)
    l1 = jnp.abs(chosen - target).sum((1, 2, 3))
    giou = box_ops.paired_giou(box_ops.cxcywh_to_xyxy(chosen), box_ops.cxcywh_to_xyxy(target))
    return ce, l1, jnp.where(matched, 1 - giou, 0).sum((1, 2))


def next_token_loss(
    logits: Float[Array, "B T V"], tokens: Int[Array, "B T"], loss_mask: Bool[Array, "B T"]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross-entropy of predicting tokens[t] from the position before, and metrics.

    `loss_mask[b, t]`: token t is a target (the first token never is). float32 throughout; the
    mean of no targets is 0. Metrics: "targets", their number, and "accuracy", the share whose
    logit is the highest (a tie counts as wrong).
    """
    target = jnp.concatenate([tokens[:, 1:], tokens[:, :1]], 1)
    counted = jnp.concatenate([loss_mask[:, 1:], jnp.zeros_like(loss_mask[:, :1])], 1)
    x = logits.astype(jnp.float32)
    # A comparison instead of a gather, so that a vocabulary split over devices stays split.
    own = jnp.arange(x.shape[-1], dtype=target.dtype)[None, None] == target[..., None]
    label = jnp.where(own, x, 0).sum(-1)
    others = jax.lax.stop_gradient(jnp.where(own, -jnp.inf, x).max(-1))
    ce = jax.nn.logsumexp(x, axis=-1) - label
    count = counted.sum()
    per = jnp.maximum(count, 1).astype(jnp.float32)
    mean = jnp.where(counted, ce, 0).sum() / per
    accuracy = (counted & (label > others)).sum() / per
    return mean, {"targets": count, "accuracy": accuracy}


def label_loss(
    logits: Float[Array, "B R W"], labels: Int[Array, "B R K"], mask: Bool[Array, "B R"]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of naming regions by up to K words each (-1: no word), every word alike.

    The mean is over all words of regions in `mask`; of none it is 0. Metric "named": the share of
    words whose logit is higher than that of every word which is not the region's.
    """
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool).any(-2)  # -1 gives no true
    known = (labels >= 0) & mask[..., None]
    x = logits.astype(jnp.float32)
    score = jnp.take_along_axis(x, jnp.maximum(labels, 0), -1)
    count = jnp.maximum(known.sum(), 1).astype(jnp.float32)
    ce = jax.nn.logsumexp(x, -1, keepdims=True) - score
    best = jnp.where(own, -jnp.inf, jax.lax.stop_gradient(x)).max(-1, keepdims=True)
    named = (known & (score > best)).sum() / count
    return jnp.where(known, ce, 0).sum() / count, {"named": named}


def masked_l1(
    found: Float[Array, "B R D"], given: Float[Array, "B R D"], mask: Bool[Array, "B R"]
) -> jax.Array:
    """Mean absolute difference over all numbers of the rows in `mask`; of none it is 0."""
    off = jnp.abs(found.astype(jnp.float32) - given).mean(-1)
    return jnp.where(mask, off, 0).sum() / jnp.maximum(mask.sum(), 1)


def pointing_loss(
    attention: Float[Array, "L B N T S"],
    layer: Int[Array, "B P"],
    head: Int[Array, "B P"],
    position: Int[Array, "B P"],
    target: Int[Array, "B P"],
    weight: Float[Array, "B P"],
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of heads' log-probabilities with the keys they should read, by weight.

    Returns the mean over all weights, 0 of none, and the mean probability of those keys.
    """
    row = jnp.arange(len(position))[:, None]
    found = attention[layer, row, head, position, target]
    share = weight / jnp.maximum(weight.sum(), 1e-6)
    return -(share * found).sum(), (share * jnp.exp(found)).sum()
