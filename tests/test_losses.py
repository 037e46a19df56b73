"""Set loss, matching and next-token loss against plain NumPy, SciPy and transformers."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import losses, sharding
from mg_jax.boxes import xyxy_to_cxcywh
from mg_jax.models.detr import DetrConfig

CFG = DetrConfig()
set_loss = jax.jit(lambda aux, batch: losses.detection_loss(aux, batch, CFG))


def draw_boxes(rng, *shape):
    """Random (cx, cy, w, h) inside the picture."""
    side = rng.uniform(0.05, 0.4, (*shape, 2))
    centre = side / 2 + rng.uniform(0, 1, (*shape, 2)) * (1 - side)
    return np.concatenate([centre, side], -1).astype(np.float32)


def corners(boxes):
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return np.concatenate([centre - half, centre + half], -1)


def plain_focal(x, t, alpha=0.25, gamma=2.0):
    p = 1 / (1 + np.exp(-np.float64(x)))
    right = p if t else 1 - p
    return -(alpha if t else 1 - alpha) * (1 - right) ** gamma * np.log(right)


def plain_giou(a, b):
    """GIoU of two corner boxes."""
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def output(rng, rows=3, layers=2, queries=6, tokens=11):
    """What detection_loss reads of the proposer."""

    def logits(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "logits_coco": logits(rows, layers, queries, 1),
        "logits_sa1b": logits(rows, layers, queries, 1),
        "boxes": jnp.asarray(draw_boxes(rng, rows, layers, queries)),
        "enc_class_logits": logits(rows, tokens, 1),
        "enc_coord_logits": logits(rows, tokens, 4).at[:, 0].set(jnp.inf),
    }


def target_batch(rng, counts, slots=4):
    boxes = corners(draw_boxes(rng, len(counts), slots))
    mask = np.arange(slots)[None] < np.asarray(counts)[:, None]
    return {"boxes": jnp.asarray(boxes), "region_mask": jnp.asarray(mask)}


# -- terms -----------------------------------------------------------------------------------


def test_focal_equals_its_formula(rng):
    x = np.concatenate([rng.normal(0, 3, 20), [60, -60]]).astype(np.float32)
    for target in (0, 1):
        got = losses.sigmoid_focal(jnp.asarray(x), jnp.full(x.shape, float(target)))
        with np.errstate(divide="ignore"):
            expected = [plain_focal(v, target) for v in x]
        finite = np.isfinite(expected)  # the plain form ends in log(0)
        np.testing.assert_allclose(got[finite], np.asarray(expected)[finite], rtol=1e-4, atol=1e-7)
        slope = jax.grad(lambda v, t=target: losses.sigmoid_focal(v, float(t)))
        assert all(np.isfinite(slope(v)) for v in x)
        assert np.isfinite(got).all()


def test_match_cost_equals_its_formula(rng):
    logits = rng.normal(size=(2, 5)).astype(np.float32)
    boxes, targets = draw_boxes(rng, 2, 5), draw_boxes(rng, 2, 3)
    got = losses.match_cost(jnp.asarray(logits), jnp.asarray(boxes), jnp.asarray(targets), CFG)
    for b, q, r in itertools.product(range(2), range(5), range(3)):
        p = 1 / (1 + np.exp(-logits[b, q]))
        focal = 0.25 * (1 - p) ** 2 * -np.log(p) - 0.75 * p**2 * -np.log(1 - p)
        l1 = np.abs(boxes[b, q] - targets[b, r]).sum()
        giou = plain_giou(corners(boxes[b, q]), corners(targets[b, r]))
        np.testing.assert_allclose(got[b, q, r], 2 * focal + 5 * l1 - 2 * giou, atol=1e-5)


def test_an_unusable_prediction_has_a_finite_cost():
    logits = jnp.asarray([[jnp.nan, jnp.inf, -jnp.inf, 200.0]])
    boxes = jnp.asarray([[[jnp.nan] * 4, [1.0] * 4, [0.0] * 4, [1e30] * 4]])
    cost = losses.match_cost(logits, boxes, jnp.full((1, 2, 4), 0.5), CFG)
    assert np.isfinite(cost).all()


# -- matching --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["jit", "scipy"])
@pytest.mark.parametrize(("queries", "slots"), [(12, 5), (4, 6), (3, 3), (90, 60)])
def test_matching_is_the_cheapest(rng, how, queries, slots):
    """Against SciPy on the valid targets alone, whatever their places among the slots."""
    optimize = pytest.importorskip("scipy.optimize")
    cost = rng.normal(size=(2, 4, queries, slots)).astype(np.float32) * 3
    cost[1, 0] = cost[1, 0].round()  # ties
    mask = rng.random((4, slots)) < 0.6
    mask[2], mask[3] = False, True
    index, matched = jax.jit(losses.match, static_argnums=2)(cost, mask, how)
    assert index.shape == matched.shape == (2, 4, slots)
    assert not (matched & ~mask[None]).any()
    for layer, row in itertools.product(range(2), range(4)):
        table = cost[layer, row]
        chosen = np.asarray(matched[layer, row])
        assert chosen.sum() == min(queries, mask[row].sum())
        used = np.asarray(index[layer, row])[chosen]
        assert len(set(used)) == len(used) and (used < queries).all()
        best = table[:, mask[row]]
        best = best[optimize.linear_sum_assignment(best)].sum()
        np.testing.assert_allclose(table[used, np.flatnonzero(chosen)].sum(), best, atol=1e-4)


def test_matching_equals_brute_force(rng):
    cost = rng.normal(size=(1, 1, 5, 3)).astype(np.float32)
    index, matched = losses.match(cost, np.ones((1, 3), bool))
    best = min(itertools.permutations(range(5), 3), key=lambda q: cost[0, 0, q, range(3)].sum())
    assert matched.all() and tuple(np.asarray(index[0, 0])) == best


def test_an_unknown_matcher_is_named():
    with pytest.raises(ValueError, match="matcher='auction'"):
        losses.match(np.zeros((1, 1, 2, 2), np.float32), np.ones((1, 2), bool), "auction")


@pytest.mark.parametrize("how", ["jit", "scipy"])
def test_devices_match_their_own_rows(rng, how):
    """On a mesh: the same matching, and not one collective in the compiled program."""
    cost = rng.normal(size=(2, 8, 10, 4)).astype(np.float32)
    mask = rng.random((8, 4)) < 0.7
    expected = losses.match(jnp.asarray(cost), jnp.asarray(mask))
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    rows = jax.sharding.PartitionSpec(None, ("data", "fsdp"))
    cost = jax.device_put(cost, jax.sharding.NamedSharding(mesh, rows))
    mask = sharding.put_batch(mask, mesh)
    with sharding.use(mesh):
        program = jax.jit(losses.match, static_argnums=2).lower(cost, mask, how).compile()
    got = program(cost, mask)
    for a, b in zip(got, expected, strict=True):
        assert not a.sharding.is_fully_replicated
        np.testing.assert_array_equal(a, b)
    text = program.as_text()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective|reduce-scatter", text)


# -- set loss --------------------------------------------------------------------------------


def plain_set_loss(logits, boxes, targets):
    """(focal, L1, 1 - GIoU) sums of one row; targets as (cx, cy, w, h)."""
    cost = losses.match_cost(logits[None], boxes[None], targets[None], CFG)
    index, _ = losses.match(cost[None], np.ones((1, len(targets)), bool))
    pairs = list(zip(np.asarray(index[0, 0]), range(len(targets)), strict=True))
    hit = {q for q, _ in pairs}
    ce = sum(plain_focal(x, q in hit) for q, x in enumerate(np.asarray(logits)))
    l1 = sum(np.abs(boxes[q] - targets[r]).sum() for q, r in pairs)
    giou = sum(1 - plain_giou(corners(boxes[q]), corners(targets[r])) for q, r in pairs)
    return np.asarray([ce, l1, giou])


def test_set_loss_equals_its_definition(rng):
    aux, counts = output(rng), (4, 1, 0)
    batch = target_batch(rng, counts) | {"head": jnp.asarray([0, 1, 0])}
    total, terms = set_loss(aux, batch)
    numpy = {k: np.asarray(v) for k, v in aux.items()}
    logits = np.stack([numpy[n][i] for i, n in enumerate(["logits_coco", "logits_sa1b"])])
    logits = np.concatenate([logits, numpy["logits_coco"][2:]])[..., 0]
    encoder = (numpy["enc_class_logits"][..., 0], 1 / (1 + np.exp(-numpy["enc_coord_logits"])))
    given = np.asarray(xyxy_to_cxcywh(batch["boxes"]))
    expected = 0.0
    for suffix, scores, boxes in (
        ("_0", logits[:, 0], numpy["boxes"][:, 0]),
        ("", logits[:, 1], numpy["boxes"][:, 1]),
        ("_enc", *encoder),
    ):
        sums = sum(plain_set_loss(scores[b], boxes[b], given[b, :n]) for b, n in enumerate(counts))
        for name, value, weight in zip(("ce", "bbox", "giou"), sums / 5, (2, 5, 2), strict=True):
            np.testing.assert_allclose(terms[f"loss_{name}{suffix}"], value, rtol=1e-4)
            expected += weight * value
        np.testing.assert_allclose(terms[f"cardinality_error{suffix}"], 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert len(terms) == 12


def test_padding_order_and_wild_padded_boxes_change_nothing(rng):
    aux, batch = output(rng), target_batch(rng, (3, 2, 1))
    base = set_loss(aux, batch)[0]
    wide = {
        "boxes": jnp.pad(batch["boxes"], ((0, 0), (0, 3), (0, 0)), constant_values=jnp.nan),
        "region_mask": jnp.pad(batch["region_mask"], ((0, 0), (0, 3))),
    }
    order = jnp.asarray([6, 2, 0, 4, 1, 3, 5])
    mixed = {k: v[:, order] for k, v in wide.items()}
    for other in (wide, mixed):
        np.testing.assert_allclose(set_loss(aux, other)[0], base, rtol=1e-5)


@pytest.mark.parametrize("counts", [(0, 0, 0), (4, 4, 4)])
def test_gradients_stay_finite(rng, counts):
    """Without any target, and with more targets than queries; a border token has +inf logits."""
    aux, batch = output(rng, queries=3, tokens=5), target_batch(rng, counts)
    loss, grads = jax.value_and_grad(lambda aux: set_loss(aux, batch)[0])(aux)
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert (grads["enc_coord_logits"][:, 0] == 0).all()
    assert not np.asarray(grads["logits_sa1b"]).any()
    assert bool(np.asarray(grads["boxes"]).any()) == bool(sum(counts))


@pytest.mark.torch
def test_matching_and_set_loss_equal_transformers(rng):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.loss.loss_deformable_detr")
    aux, batch = output(rng, layers=1), target_batch(rng, (4, 2, 1))
    _, terms = set_loss(aux, batch)
    given = np.asarray(xyxy_to_cxcywh(batch["boxes"]))
    targets = [
        {"class_labels": torch.zeros(n, dtype=torch.long), "boxes": torch.tensor(given[b, :n])}
        for b, n in enumerate((4, 2, 1))
    ]
    matcher = theirs.DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = theirs.DeformableDetrImageLoss(
        matcher=matcher, num_classes=1, focal_alpha=0.25, losses=["labels", "boxes"]
    )
    outputs = {
        "logits": torch.tensor(np.asarray(aux["logits_coco"][:, 0])),
        "pred_boxes": torch.tensor(np.asarray(aux["boxes"][:, 0])),
    }
    expected = criterion(outputs, targets)
    for name in ("loss_ce", "loss_bbox", "loss_giou"):
        np.testing.assert_allclose(terms[name], expected[name].item(), rtol=1e-4, err_msg=name)


# -- next token ------------------------------------------------------------------------------


def test_next_token_loss_equals_its_definition(rng):
    logits = rng.normal(size=(2, 6, 9)).astype(np.float32) * 3
    tokens = rng.integers(0, 9, (2, 6))
    mask = rng.random((2, 6)) < 0.5
    mask[0, 0] = mask[0, 3] = True  # the first token has nothing before it
    loss, metrics = losses.next_token_loss(jnp.asarray(logits), jnp.asarray(tokens), mask)
    each, right = [], []
    for b, t in itertools.product(range(2), range(1, 6)):
        if mask[b, t]:
            x = np.float64(logits[b, t - 1])
            each.append(np.log(np.exp(x).sum()) - x[tokens[b, t]])
            right.append(x.argmax() == tokens[b, t])
    np.testing.assert_allclose(loss, np.mean(each), rtol=1e-5)
    assert metrics["targets"] == len(each)
    np.testing.assert_allclose(metrics["accuracy"], np.mean(right), rtol=1e-6)


def test_next_token_loss_of_nothing_and_in_half_precision(rng):
    logits = jnp.asarray(rng.normal(size=(2, 4, 5)), jnp.bfloat16)
    tokens = jnp.zeros((2, 4), jnp.int32)
    loss, metrics = losses.next_token_loss(logits, tokens, jnp.zeros((2, 4), bool))
    assert loss == 0 and metrics["targets"] == 0 and metrics["accuracy"] == 0
    full = losses.next_token_loss(logits.astype(jnp.float32), tokens, jnp.ones((2, 4), bool))
    half = losses.next_token_loss(logits, tokens, jnp.ones((2, 4), bool))
    assert half[0].dtype == jnp.float32 and half[0] == full[0]
    flat = losses.next_token_loss(jnp.zeros((2, 4, 5)), tokens, jnp.ones((2, 4), bool))
    assert flat[1]["accuracy"] == 0  # a model that says nothing is never right


def test_next_token_loss_of_a_split_vocabulary(rng):
    logits = rng.normal(size=(4, 6, 16)).astype(np.float32)
    tokens = rng.integers(0, 16, (4, 6)).astype(np.int32)
    mask = rng.random((4, 6)) < 0.5
    step = jax.value_and_grad(losses.next_token_loss, has_aux=True)
    (expected, _), slope = step(jnp.asarray(logits), tokens, mask)
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    split = jax.sharding.PartitionSpec(("data", "fsdp"), None, "tensor")
    split = jax.sharding.NamedSharding(mesh, split)
    (got, _), grad = jax.jit(step)(
        jax.device_put(logits, split), *sharding.put_batch((tokens, mask), mesh)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, slope, atol=1e-6)
    assert not grad.sharding.is_fully_replicated


def test_label_loss_equals_a_plain_loop_and_needs_labels():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2, 4, 6)).astype(np.float32)
    labels = np.array([[[0, 3], [2, -1], [-1, -1], [5, 1]], [[4, 0], [1, 2], [3, -1], [0, 1]]])
    mask = np.array([[True, True, True, False], [True, False, True, True]])
    parts, hits = [], []
    for b, r in zip(*np.nonzero(mask), strict=True):
        x = logits[b, r].astype(np.float64)
        own = [k for k in labels[b, r] if k >= 0]
        for k in own:
            parts.append(np.log(np.exp(x).sum()) - x[k])
            hits.append(x[k] > max(v for i, v in enumerate(x) if i not in own))
    loss, metrics = losses.label_loss(logits, jnp.asarray(labels), jnp.asarray(mask))
    np.testing.assert_allclose(loss, np.mean(parts), rtol=1e-5)
    np.testing.assert_allclose(metrics["named"], np.mean(hits), rtol=1e-6)
    assert losses.label_loss(logits, jnp.full_like(labels, -1), jnp.asarray(mask))[0] == 0


def test_masked_l1_equals_a_plain_loop():
    rng = np.random.default_rng(4)
    found, given = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    mask = np.array([[True, False, True], [False, False, True]])
    plain = np.mean([abs(a - b) for a, b in zip(found[mask], given[mask], strict=True)])
    np.testing.assert_allclose(losses.masked_l1(found, given, jnp.asarray(mask)), plain, rtol=1e-5)
    assert losses.masked_l1(found, given, jnp.zeros_like(mask)) == 0
