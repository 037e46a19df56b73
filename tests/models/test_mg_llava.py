"""MG-LLaVA as a whole: joining, batching, decoding, sharding, full size."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mg_jax import sharding
from mg_jax.errors import UserError
from mg_jax.generate import decode_loop
from mg_jax.models import build
from mg_jax.models.mg_llava import MGLLaVA, MGLLaVAConfig
from mg_jax.ops.resize import resize_linear
from tests.drawn import drawn

V = 40
TINY = {
    "low": {
        "kind": "clip", "activation": "quick_gelu", "width": 16, "layers": 3, "heads": 2,
        "mlp_ratio": 2, "patch": 4, "image_size": 8, "eps": 1e-5,
    },
    "high": {"depths": [1, 2], "widths": [6, 12], "image_size": 16},
    "lm": {"vocab": V, "width": 16, "mlp": 24, "layers": 2, "heads": 2, "kv_heads": 1, "head": 8},
    "max_boxes": 4,
}  # fmt: skip
IMAGE, BOX, REFER = V, V + 1, V + 2


@pytest.fixture(scope="module")
def tiny():
    system = build("mg_llava", TINY)
    return system, drawn(system, "sft")


@functools.cache
def drawn_refer():
    """Parameters of a model that has places for the user's regions."""
    return drawn(build("mg_llava", {**TINY, "refer": True}), "sft")


def make_batch(counts, text=(3, 4, 5, 6), *, frames=1, slots=4, tokens=4, refer=0, seed=0):
    """Rows of `counts`: boxes of each frame, or () for text alone, right-padded with 0."""
    rng = np.random.default_rng(seed)
    rows, masks = [], np.zeros((len(counts), frames, slots), bool)
    for i, of_frames in enumerate(counts):
        row = [1, 2]
        for f, n in enumerate(of_frames):
            row += [IMAGE] * tokens + [BOX] * n
            masks[i, f, :n] = True
        rows.append([*row, *[REFER] * refer, *text])
    length = max(map(len, rows))
    corners = np.sort(rng.integers(0, 769, (len(rows), frames, slots, 2, 2)), axis=3)
    boxes = corners.reshape(len(rows), frames, slots, 4).astype(np.float32)
    end = np.array([[len(r)] for r in rows])
    at = np.arange(length)[None]
    batch = {
        "tokens": np.array([r + [0] * (length - len(r)) for r in rows], np.int32),
        "valid": at < end,
        "loss_mask": (at < end) & (at >= end - 3),
        "high": rng.normal(size=(len(rows), frames, 16, 16, 3)).astype(np.float32),
        "boxes": boxes,
        "box_mask": masks,
    }
    if refer:
        batch["refer_boxes"] = boxes[:, 0, ::-1] + 0
        batch["refer_mask"] = np.arange(slots)[None].repeat(len(rows), 0) < refer
    return batch


@functools.cache
def compiled(cfg):
    return jax.jit(lambda p, b: MGLLaVA(cfg).apply({"params": p}, b))


def run(system, params, batch):
    """(logits, aux), of one program for each config and shape."""
    return compiled(system.cfg)(params, batch)


def test_slots_take_their_vectors_in_order(tiny):
    """Frame by frame, ragged counts, a hole in the mask, a row of text alone."""
    system, params = tiny
    batch = make_batch([(2, 1), (0, 3), ()], frames=2)
    batch["box_mask"][1, 1] = [True, False, True, True]  # the true ones are not the first
    _, aux = run(system, params, batch)
    images = np.asarray(aux["image_tokens"])
    boxes = np.asarray(aux["box_tokens"]).reshape(3, 2, 4, -1)
    words = np.asarray(params["lm"]["embed"]["embedding"])
    text = words[[3, 4, 5, 6]]
    got, valid = np.asarray(aux["embeddings"]), batch["valid"]
    first = [words[[1, 2]], images[0, :4], boxes[0, 0, :2], images[0, 4:], boxes[0, 1, :1], text]
    np.testing.assert_allclose(got[0][valid[0]], np.concatenate(first), atol=1e-6)
    second = [words[[1, 2]], images[1], boxes[1, 1, [0, 2, 3]], text]
    np.testing.assert_allclose(got[1][valid[1]], np.concatenate(second), atol=1e-6)
    np.testing.assert_array_equal(got[2][valid[2]], words[[1, 2, 3, 4, 5, 6]])
    assert np.abs(images[0, :4] - images[0, 4:]).max() > 0.01  # the frames differ


def test_users_boxes_are_tokens_where_the_config_says(tiny):
    _, params = tiny
    system = build("mg_llava", {**TINY, "refer": True})
    batch = make_batch([(1,), (3,)], refer=2)
    _, aux = run(system, params, batch)
    slots = batch["tokens"] == REFER
    for row in range(2):
        np.testing.assert_allclose(
            aux["embeddings"][row][slots[row]], aux["refer_tokens"][row, :2], atol=1e-6
        )
    # the same box gives the same vector, whether detected or the user's
    np.testing.assert_allclose(
        aux["refer_tokens"][:, 3], aux["box_tokens"].reshape(2, 4, -1)[:, 0], atol=1e-5
    )
    assert set(system.example_batch("sft")) == set(batch)


def test_refer_tokens_of_a_video_are_of_its_first_frame(tiny):
    _, params = tiny
    system = build("mg_llava", {**TINY, "refer": True})
    batch = make_batch([(1, 1), (3, 2)], frames=2, refer=1)
    _, aux = run(system, params, batch)
    boxes = aux["box_tokens"].reshape(2, 2, 4, -1)
    np.testing.assert_allclose(aux["refer_tokens"][:, 3], boxes[:, 0, 0], atol=1e-5)


def test_padding_changes_nothing(tiny):
    """Padding of the text, at its end and inside it, and spare box slots with any content."""
    system, params = tiny
    batch = make_batch([(2,), (4,)])
    logits, _ = run(system, params, batch)
    wide = {**batch, "high": batch["high"]}
    at = [0, 1, 2, 2, *range(3, batch["tokens"].shape[1])]  # one position more inside
    for name in ("tokens", "valid", "loss_mask"):
        wide[name] = np.pad(batch[name][:, at], ((0, 0), (0, 3)))
    wide["tokens"][:, 3] = 7
    wide["valid"][:, 3] = False
    wide["boxes"] = np.pad(batch["boxes"], ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=99)
    wide["box_mask"] = np.pad(batch["box_mask"], ((0, 0), (0, 0), (0, 2)))
    again, _ = run(system, params, wide)
    np.testing.assert_allclose(
        np.asarray(again)[wide["valid"]], np.asarray(logits)[batch["valid"]], atol=1e-5
    )


def test_the_low_resolution_picture_is_made_from_the_high_one(tiny):
    system, params = tiny
    batch = make_batch([(1, 2)], frames=2)
    low = resize_linear(batch["high"], (8, 8))
    own, _ = run(system, params, batch)
    given, _ = run(system, params, {**batch, "low": np.asarray(low)})
    np.testing.assert_allclose(own, given, atol=1e-5)
    other, _ = run(system, params, {**batch, "low": np.asarray(low) + 0.5})
    assert np.abs(other - own).max() > 1e-3


def respond(system, params, batch, new=4):
    def run(m):
        cache = m.lm.empty_cache(batch["tokens"].shape[0], batch["tokens"].shape[1] + new)
        logits, cache, _ = m.prefill(batch, cache)
        return decode_loop(m.decode, logits, cache, max_new=new, end=-1, pad=0)

    return jax.jit(lambda p: system.module.apply({"params": p}, method=run))(params)


def test_cached_decoding_equals_the_full_forward(tiny):
    system, params = tiny
    batch = make_batch([(2, 0), (4, 1), ()], frames=2)
    out = respond(system, params, batch)
    end = batch["valid"].sum(1)
    wide = {k: np.pad(batch[k], ((0, 0), (0, 4))) for k in ("tokens", "valid", "loss_mask")}
    for i in range(4):
        logits, _ = run(system, params, {**batch, **wide})
        logp = jax.nn.log_softmax(logits)[np.arange(3), end + i - 1]
        np.testing.assert_array_equal(jnp.argmax(logp, -1), out.tokens[:, i])
        np.testing.assert_allclose(logp.max(-1), out.logprobs[:, i], atol=1e-4)
        wide["tokens"][np.arange(3), end + i] = out.tokens[:, i]
        wide["valid"][np.arange(3), end + i] = True


def test_frames_of_a_video_are_pooled_and_pictures_are_not(tiny):
    system, params = tiny
    pooled = build("mg_llava", {**TINY, "video_pool": 2})
    assert (pooled.cfg.image_tokens(), pooled.cfg.image_tokens(8)) == (4, 1)
    video = make_batch([(1, 2)], frames=2, tokens=1)
    _, aux = run(pooled, params, video)
    assert aux["image_tokens"].shape == (1, 2, 16)
    mean = np.asarray(aux["fused"]).mean(1)  # of the fused grid, before the projector

    def projected(m):
        return m.projector(mean[None])

    want = pooled.module.apply({"params": params}, method=projected)
    np.testing.assert_allclose(aux["image_tokens"], want, atol=1e-5)
    picture = make_batch([(1,)])
    np.testing.assert_array_equal(*(run(s, params, picture)[0] for s in (system, pooled)))


def test_sharded_equals_unsharded(tiny):
    _, params = tiny
    system = build("mg_llava", {**TINY, "refer": True})
    batch = make_batch([(i % 3, 4 - i % 4) if i != 5 else () for i in range(8)], frames=2, refer=1)

    def loss(p, b):
        return system.loss("sft")(p, b, jax.random.key(0))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = sharding.make_mesh(2, 2, 2)
    boxed = sharding.abstract_params(system.init("sft"), jax.random.key(0))
    layout = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    assert any(s.spec != jax.P() for s in jax.tree.leaves(layout["fusion"]))
    with sharding.use(mesh, "fsdp_tensor"):
        split = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))
        v2, g2 = split(jax.device_put(params, layout), sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(value, v2, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), grads, g2)


def test_stages_have_one_loss_and_its_metrics(tiny):
    system, params = tiny
    batch = make_batch([(2,), (4,)])
    assert system.stages == ("pretrain", "sft")
    logits, _ = run(system, params, batch)
    losses = [
        jax.jit(lambda p, s=s: system.loss(s)(p, batch, jax.random.key(0)))(params)
        for s in system.stages
    ]
    logp = np.asarray(jax.nn.log_softmax(logits))
    rows, at = np.nonzero(batch["loss_mask"])
    want = -logp[rows, at - 1, batch["tokens"][rows, at]]
    for loss, metrics in losses:
        np.testing.assert_allclose(loss, np.mean(want), rtol=1e-5)
        assert float(metrics["targets"]) == 6 and float(metrics["boxes"]) == 3


def test_stochastic_depth_is_off_by_default_and_follows_the_key(tiny):
    system, params = tiny
    batch = make_batch([(2,), (4,)])
    noisy = build("mg_llava", {**TINY, "drop_path": 0.9})

    def losses(of, keys):
        loss = jax.jit(lambda key: of.loss("sft")(params, batch, key)[0])
        return [float(loss(jax.random.key(k))) for k in keys]

    assert len(set(losses(system, range(2)))) == 1
    drawn_twice = losses(noisy, [0, 1, 2, 3, 0])
    assert len(set(drawn_twice)) > 1 and drawn_twice[0] == drawn_twice[-1]
    logits = [run(s, params, batch)[0] for s in (system, noisy)]  # answering draws nothing
    np.testing.assert_array_equal(*logits)


def test_unit_vectors_join_at_one_length(tiny):
    _, params = tiny
    batch = make_batch([(2,), (4,)])
    _, aux = run(build("mg_llava", {**TINY, "unit_vectors": True}), params, batch)
    square = np.square(np.asarray(aux["embeddings"])).mean(-1)
    vectors = np.isin(batch["tokens"], [IMAGE, BOX])
    np.testing.assert_allclose(square[vectors], 1, rtol=1e-2)
    assert np.abs(square[~vectors] - 1).min() > 0.1


def test_vectors_know_their_places():
    """Each by its middle, frame and size; box slots in the order of true boxes."""
    batch = make_batch([(2, 1), (0, 3)], frames=2, refer=2)
    batch["box_mask"][0, 0] = [False, True, False, True]
    plain, placed = (
        run(build("mg_llava", {**TINY, "refer": True, "places": p}), drawn_refer(), batch)[1]
        for p in (False, True)
    )
    change = np.asarray(placed["embeddings"] - plain["embeddings"])
    known = np.isin(batch["tokens"], [IMAGE, BOX, REFER])
    assert not change[~known].any()

    def code(x, y, frame, size):  # wavelengths 1 and 100 of each number's circle
        angle = [np.array([1, 1e-2]) * v * 2 * np.pi for v in (x, y, frame, size)]
        return np.concatenate([np.stack([np.sin(a), np.cos(a)], -1).ravel() for a in angle])

    def of(box, frame):
        (x0, y0, x1, y1) = box / 768
        return code((x0 + x1) / 2, (y0 + y1) / 2, frame, np.sqrt((x1 - x0) * (y1 - y0)))

    cells = [code(x, y, f, 0.5) for f in (0, 0.5) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    boxes, refer = batch["boxes"], batch["refer_boxes"]
    want = {
        IMAGE: [cells, cells],
        BOX: [
            [of(boxes[0, 0, 1], 0), of(boxes[0, 0, 3], 0), of(boxes[0, 1, 0], 0.5)],
            [of(boxes[1, 1, i], 0.5) for i in range(3)],
        ],
        REFER: [[of(box, 0) for box in row[:2]] for row in refer],
    }
    for token, rows in want.items():
        for row, expected in enumerate(rows):
            got = change[row][batch["tokens"][row] == token]
            np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(("change", "message"), [
    ({"lm": {**TINY["lm"], "width": 20}, "places": True}, "places: lm.width=20"),
    ({"high": {**TINY["high"], "image_size": 24}}, "use high.image_size=16"),
    ({"high": {**TINY["high"], "image_size": 20}}, "multiple"),
    ({"video_pool": 3}, "video_pool: 3"),
    ({"select_layer": -5}, "select_layer: -5"),
    ({"drop_path": 0.1, "high": {**TINY["high"], "scan": False}}, "drop_path: 0.1 needs high.scan"),
    ({"drop_path": 1.0}, "drop_path: 1.0 is not in 0 <= share < 1"),
    ({"max_boxes": 0}, "max_boxes: 0 is not at least 1"),
    ({"canvas": 0}, "canvas: 0 is not"),
    ({"frames": 0}, "frames: 0 is not"),
    ({"pointing_weight": -1.0}, "pointing_weight: -1.0 is negative"),
    ({"fusion": "gate"}, "fusion: 'gate'"),
    ({"objects": "prepend"}, "objects: 'prepend'"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build("mg_llava", {**TINY, **change})


def test_full_size_has_upstreams_parameter_count():
    """MG-LLaVA-7B as published (spec 1): its own 20 tensors, Vicuna, CLIP-L and ConvNeXt-L."""
    system = build("mg_llava", {})
    assert system.cfg == MGLLaVAConfig()
    shapes = sharding.abstract_params(system.init("sft"), jax.random.key(0))
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(sharding.unbox(part)))
        for name, part in shapes.items()
    }
    assert sizes["lm"] == 6_738_415_616
    assert sizes["high"] == 196_227_264
    assert sizes["low"] == 303_507_456
    assert sizes["projector"] == 1024 * 4096 + 4096 * 4096 + 2 * 4096
    assert sizes["box_projector"] == 2880 * 4096 + 4096 * 4096 + 2 * 4096
    assert sizes["fusion"] == 6_085_121
    assert "merging" not in sizes and len(jax.tree.leaves(shapes["fusion"])) == 12
    video = dataclasses.replace(system.cfg, video_pool=2)
    assert 8 * system.cfg.image_tokens(8) == 4608 and 8 * video.image_tokens(8) == 1152
