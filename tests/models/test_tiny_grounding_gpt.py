"""TinyGroundingGPT as a whole: joining, batching, decoding, sharding, and its public parts."""

import copy
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion import engine, hf_config, readers
from conversion.architectures import ARCHITECTURES
from mg_jax import sharding
from mg_jax.errors import UserError
from mg_jax.generate import decode_loop
from mg_jax.models import build
from mg_jax.models.tiny_grounding_gpt import (
    STAGES,
    TinyGroundingGPT,
    TinyGroundingGPTConfig,
    to_imagenet,
)
from mg_jax.vision import preprocess
from tests.drawn import drawn

V = 40
TINY = {
    "clip": {
        "kind": "clip", "activation": "quick_gelu", "width": 16, "layers": 3, "heads": 2,
        "mlp_ratio": 2, "patch": 4, "image_size": 16, "eps": 1e-5,
    },
    "dino": {
        "width": 8, "layers": 2, "heads": 2, "mlp_ratio": 2, "patch": 4, "image_size": 28,
    },
    "lm": {
        "vocab": V, "width": 16, "mlp": 24, "layers": 2, "heads": 2, "kv_heads": 1, "head": 8,
        "qkv_bias": True, "rope_theta": 1e6, "eps": 1e-6,
    },
    "object_tokens": 4,
}  # fmt: skip
IMAGE, OBJECT = V, V + 1
TOKENS = 16  # of the picture


@pytest.fixture(scope="module")
def tiny():
    system = build("tiny_grounding_gpt", TINY)
    return system, drawn(system, "local")


def make_batch(counts, text=(3, 4, 5, 6), *, slots=3, each=4, seed=0):
    """Rows of `counts` object images, None for text alone, right-padded with 0."""
    rng = np.random.default_rng(seed)
    rows, mask = [], np.zeros((len(counts), slots), bool)
    for i, n in enumerate(counts):
        row = [1, 2]
        if n is not None:
            row += [IMAGE] * TOKENS
            for k in range(n):
                row += [7 + k, *[OBJECT] * each]
            mask[i, :n] = True
        rows.append([*row, *text])
    length = max(map(len, rows))
    end = np.array([[len(r)] for r in rows])
    at = np.arange(length)[None]
    return {
        "tokens": np.array([r + [0] * (length - len(r)) for r in rows], np.int32),
        "valid": at < end,
        "loss_mask": (at < end) & (at >= end - 3),
        "image": rng.normal(size=(len(rows), 16, 16, 3)).astype(np.float32),
        "objects": rng.normal(size=(len(rows), slots, 16, 16, 3)).astype(np.float32),
        "object_mask": mask,
    }


@functools.cache
def compiled(cfg):
    return jax.jit(lambda p, b: TinyGroundingGPT(cfg).apply({"params": p}, b))


def run(system, params, batch):
    """(logits, aux), of one program for each config and shape."""
    return compiled(system.cfg)(params, batch)


def test_slots_take_their_vectors_in_order(tiny):
    """Ragged counts, a hole in the mask, a row of text alone."""
    system, params = tiny
    batch = make_batch([2, 2, None])
    batch["object_mask"][1] = [True, False, True]  # the true ones are not the first
    _, aux = run(system, params, batch)
    images, objects = (np.asarray(aux[k]) for k in ("image_tokens", "object_tokens"))
    words = np.asarray(params["lm"]["embed"]["embedding"])
    got, valid = np.asarray(aux["embeddings"]), batch["valid"]
    for row, (first, second) in enumerate(((0, 1), (0, 2))):
        want = [
            words[[1, 2]], images[row], words[[7]], objects[row, first], words[[8]],
            objects[row, second], words[[3, 4, 5, 6]],
        ]  # fmt: skip
        np.testing.assert_allclose(got[row][valid[row]], np.concatenate(want), atol=1e-6)
    np.testing.assert_array_equal(got[2][valid[2]], words[[1, 2, 3, 4, 5, 6]])
    assert np.abs(objects[0, 0] - objects[0, 1]).max() > 0.01


def test_an_object_image_goes_the_way_of_the_picture(tiny):
    """The same pixels give the same vectors, or means of their features before the projector."""
    _, params = tiny
    for tokens, side in ((16, 1), (4, 2), (1, 4)):
        system = build("tiny_grounding_gpt", {**TINY, "object_tokens": tokens})
        assert system.cfg.object_pool == side and system.cfg.image_tokens == TOKENS
        batch = make_batch([1], each=tokens)
        batch["objects"][:, 0] = batch["image"]
        _, aux = run(system, params, batch)
        features = np.asarray(aux["features"])[0].reshape(4 // side, side, 4 // side, side, -1)
        means = features.mean((1, 3)).reshape(1, tokens, -1)
        want = system.module.apply(
            {"params": params}, method=lambda m, means=means: m.projector(means)
        )
        np.testing.assert_allclose(aux["object_tokens"][:, 0], want, atol=1e-5)
        np.testing.assert_allclose(aux["object_tokens"].shape, (1, 3, tokens, 16))
    assert set(system.example_batch("local")) == set(batch)
    # no output that nothing reads: states of a tower are as large as all its activations
    seen = {"features", "image_tokens", "object_tokens"}
    assert set(aux) == seen | {"tokens", "valid", "embeddings", "last_hidden"}


def test_padding_changes_nothing(tiny):
    """Padding of the text, at its end and inside it, and spare slots with any content."""
    system, params = tiny
    batch = make_batch([2, 3])
    logits, _ = run(system, params, batch)
    at = [0, 1, 2, 2, *range(3, batch["tokens"].shape[1])]  # one position more inside
    wide = dict(batch)
    for name in ("tokens", "valid", "loss_mask"):
        wide[name] = np.pad(batch[name][:, at], ((0, 0), (0, 3)))
    wide["tokens"][:, 3] = 7
    wide["valid"][:, 3] = False
    spare = ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0))
    wide["objects"] = np.pad(batch["objects"], spare, constant_values=9)
    wide["object_mask"] = np.pad(batch["object_mask"], ((0, 0), (0, 2)))
    again, _ = run(system, params, wide)
    np.testing.assert_allclose(
        np.asarray(again)[wide["valid"]], np.asarray(logits)[batch["valid"]], atol=1e-5
    )


def test_a_batch_without_slots_is_one_without_object_images(tiny):
    system, params = tiny
    batch = make_batch([0, None])
    logits, _ = run(system, params, batch)
    bare = batch | {"objects": batch["objects"][:, :0], "object_mask": batch["object_mask"][:, :0]}
    again, aux = run(system, params, bare)
    assert "object_tokens" not in aux
    np.testing.assert_allclose(again, logits, atol=1e-6)


def test_cached_decoding_equals_the_full_forward(tiny):
    system, params = tiny
    batch = make_batch([2, 0, None])

    def respond(m):
        cache = m.lm.empty_cache(*batch["tokens"].shape[:1], batch["tokens"].shape[1] + 4)
        logits, cache, _ = m.prefill(batch, cache)
        return decode_loop(m.decode, logits, cache, max_new=4, end=-1, pad=0)

    out = jax.jit(lambda p: system.module.apply({"params": p}, method=respond))(params)
    end = batch["valid"].sum(1)
    wide = {k: np.pad(batch[k], ((0, 0), (0, 4))) for k in ("tokens", "valid", "loss_mask")}
    for i in range(4):
        logits, _ = run(system, params, {**batch, **wide})
        logp = jax.nn.log_softmax(logits)[np.arange(3), end + i - 1]
        np.testing.assert_array_equal(jnp.argmax(logp, -1), out.tokens[:, i])
        np.testing.assert_allclose(logp.max(-1), out.logprobs[:, i], atol=1e-4)
        wide["tokens"][np.arange(3), end + i] = out.tokens[:, i]
        wide["valid"][np.arange(3), end + i] = True


def test_sharded_equals_unsharded(tiny):
    system, params = tiny
    batch = make_batch([i % 4 if i != 5 else None for i in range(8)])

    def loss(p, b):
        return system.loss("local")(p, b, jax.random.key(0))[0]

    value, grads = jax.jit(jax.value_and_grad(loss))(params, batch)
    mesh = sharding.make_mesh(2, 2, 2)
    boxed = sharding.abstract_params(system.init("local"), jax.random.key(0))
    layout = sharding.param_shardings(boxed, mesh, "fsdp_tensor")
    assert any(s.spec != jax.P() for s in jax.tree.leaves(layout["projector"]))
    with sharding.use(mesh, "fsdp_tensor"):
        split = jax.jit(jax.value_and_grad(loss), out_shardings=(None, layout))
        v2, g2 = split(jax.device_put(params, layout), sharding.put_batch(batch, mesh))
        bare = {k: v[:, :0] if k.startswith("object") else v for k, v in batch.items()}
        sharding.put_batch(bare, mesh)  # no slot at all is a shape like any other
    np.testing.assert_allclose(value, v2, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), grads, g2)


def test_stages_have_one_loss_and_its_metrics(tiny):
    system, params = tiny
    batch = make_batch([2, 3])
    assert system.stages == STAGES == ("projector", "llm", "local", "global")
    logits, _ = run(system, params, batch)
    logp = np.asarray(jax.nn.log_softmax(logits))
    rows, at = np.nonzero(batch["loss_mask"])
    want = -logp[rows, at - 1, batch["tokens"][rows, at]]
    assert len({id(system.loss(s)) for s in STAGES}) == 1
    loss, metrics = jax.jit(lambda p: system.loss("global")(p, batch, jax.random.key(0)))(params)
    np.testing.assert_allclose(loss, np.mean(want), rtol=1e-5)
    assert float(metrics["targets"]) == 6 and float(metrics["objects"]) == 2.5


def test_unit_vectors_join_at_one_length(tiny):
    _, params = tiny
    batch = make_batch([2, 3])
    _, aux = run(build("tiny_grounding_gpt", {**TINY, "unit_vectors": True}), params, batch)
    square = np.square(np.asarray(aux["embeddings"])).mean(-1)
    vectors = np.isin(batch["tokens"], [IMAGE, OBJECT])
    np.testing.assert_allclose(square[vectors], 1, rtol=1e-2)
    assert np.abs(square[~vectors] - 1).min() > 0.1


def test_pixels_of_one_tower_become_those_of_the_other():
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    clip = preprocess.normalize(image, preprocess.CLIP_MEAN, preprocess.CLIP_STD)
    np.testing.assert_allclose(
        to_imagenet(jnp.asarray(clip)), preprocess.normalize(image), atol=1e-5
    )


@pytest.mark.parametrize(("change", "message"), [
    ({"clip": {**TINY["clip"], "image_size": 18}}, "multiple of clip.patch=4"),
    ({"dino": {**TINY["dino"], "patch": 2}}, "equal dino.patch, which is 2"),
    ({"clip": {**TINY["clip"], "patch": 0}}, "config.model.clip.patch: 0 is not at least 1"),
    ({"dino": {**TINY["dino"], "patch": -4}}, "config.model.dino.patch: -4 is not at least 1"),
    ({"clip": {**TINY["clip"], "image_size": 0}}, "clip.image_size: 0 is not at least 1"),
    ({"select_layer": -5}, "select_layer: -5"),
    ({"object_tokens": 9}, "object_tokens: 9 are no means .* choose 16, 4, 1"),
    ({"dino": {"kind": "clip"}}, "dino.kind: 'clip' is not 'dinov2'"),
    ({"label_words": -1}, "label_words: -1; give a count from 0 up"),
    ({"dino_pixels": "raw"}, "dino_pixels: 'raw'"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build("tiny_grounding_gpt", {**TINY, **change})


def test_full_size_has_the_towers_and_the_projector_of_the_paper():
    system = build("tiny_grounding_gpt", {})
    assert system.cfg == TinyGroundingGPTConfig()
    assert (system.cfg.image_tokens, system.cfg.object_tokens) == (576, 144)
    shapes = sharding.abstract_params(system.init("local"), jax.random.key(0))
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(sharding.unbox(part)))
        for name, part in shapes.items()
    }
    assert sizes["lm"] == 3_085_938_688  # Qwen2.5-3B, head tied
    assert sizes["clip"] == 303_507_456 and sizes["dino"] == 304_368_640
    assert sizes["projector"] == 2048 * 2048 + 2048 * 2048 + 2 * 2048


# -- equal to its public parts put together --------------------------------------------------


@pytest.fixture(scope="module", params=["tied", "untied"])
def parts(request):
    """transformers' four models with random weights, and the config they have."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    lm = {**TINY["lm"], "tied": request.param == "tied"}
    cfg = build("tiny_grounding_gpt", {**TINY, "lm": lm}).cfg
    raw = json.loads(json.dumps(hf_config.write_tiny_grounding_gpt(cfg)))
    kinds = {
        "llm": transformers.Qwen2ForCausalLM,
        "clip": transformers.CLIPVisionModel,
        "dinov2": transformers.Dinov2Model,
    }
    torch.manual_seed(0)
    models = {
        role: kind(kind.config_class.from_dict(raw[role])).eval() for role, kind in kinds.items()
    }
    widths = cfg.clip.width + cfg.dino.width, cfg.lm.width
    models["mlp"] = torch.nn.Sequential(
        torch.nn.Linear(*widths), torch.nn.GELU(), torch.nn.Linear(widths[1], widths[1])
    )
    for model in models.values():
        for parameter in model.parameters():  # norms and biases too: ones and zeros hide errors
            torch.nn.init.normal_(parameter, mean=0.03, std=0.2)
    return cfg, models


# Where the table has the tensors of each
PREFIXES = {"llm": "", "clip": "clip.", "dinov2": "dinov2.", "mlp": "model.mm_vision_projector."}


def state_of(models):
    """The checkpoint that the four make, under the names of the table."""
    return {
        prefix + name: x.detach().numpy()
        for role, prefix in PREFIXES.items()
        for name, x in models[role].state_dict().items()
    }


def reference(models, batch):
    """Logits of every position, by transformers."""
    import torch

    def see(pixels):
        pixels = torch.tensor(np.asarray(pixels)).permute(0, 3, 1, 2)
        clip = models["clip"](pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        low, std = (torch.tensor(x).reshape(1, 3, 1, 1)
                    for x in (preprocess.CLIP_MEAN, preprocess.CLIP_STD))  # fmt: skip
        mean, new = (torch.tensor(x).reshape(1, 3, 1, 1)
                     for x in (preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD))  # fmt: skip
        dino = models["dinov2"]((pixels * std + low - mean) / new).last_hidden_state[:, 1:]
        return torch.cat([clip, dino], -1)

    with torch.no_grad():
        image = models["mlp"](see(batch["image"]))
        b, o = batch["objects"].shape[:2]
        crops = see(batch["objects"].reshape(b * o, 16, 16, 3))
        grid = crops.reshape(b * o, 4, 4, -1).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.avg_pool2d(grid, 2).flatten(2).permute(0, 2, 1)
        objects = models["mlp"](pooled).reshape(b, o, 4, -1)
        tokens = torch.tensor(batch["tokens"]).long()
        x = models["llm"].get_input_embeddings()(tokens.clamp(max=V - 1)).clone()
        for row in range(b):
            x[row, tokens[row] == IMAGE] = image[row][: int((tokens[row] == IMAGE).sum())]
            x[row, tokens[row] == OBJECT] = objects[row][batch["object_mask"][row]].flatten(0, 1)
        valid = torch.tensor(batch["valid"]).long()
        out = models["llm"](inputs_embeds=x, attention_mask=valid)
    return out.logits.numpy()


@pytest.mark.torch
def test_assembled_system_equals_its_parts(parts):
    cfg, models = parts
    state = state_of(models)
    table = ARCHITECTURES["tiny_grounding_gpt"].table(cfg, state)
    params = engine.to_jax(state.__getitem__, engine.plan(state, table))
    batch = make_batch([2, 3, 0, None])
    logits, _ = compiled(cfg)(jax.tree.map(jnp.asarray, params), batch)
    want = reference(models, batch)
    assert np.abs(want[batch["valid"]]).max() > 0.5
    np.testing.assert_allclose(
        np.asarray(logits)[batch["valid"]], want[batch["valid"]], atol=1e-4, rtol=0
    )


@pytest.mark.torch
def test_the_way_out_loads_into_the_public_classes(parts, tmp_path):
    """Strictly, part by part, with the prefixes taken off, and tensor for tensor."""
    import torch

    cfg, models = parts
    state = state_of(models)
    entry = ARCHITECTURES["tiny_grounding_gpt"]
    params = engine.to_jax(state.__getitem__, engine.plan(state, entry.table(cfg, state)))
    out = engine.to_torch(params, entry.table(cfg))
    for role, prefix in reversed(PREFIXES.items()):  # the empty one takes what is left
        names = [name for name in out if name.startswith(prefix)]
        given = {name.removeprefix(prefix): np.asarray(out.pop(name)) for name in names}
        loaded = load_strictly(tmp_path / role, models[role], given).state_dict()
        wanted = models[role].state_dict()
        assert loaded.keys() == wanted.keys()
        for name, x in loaded.items():
            assert torch.equal(x, wanted[name]), (role, name)


def load_strictly(folder, model, given):
    """Another of the model's class, of the tensors `given` alone."""
    import torch

    if isinstance(model, torch.nn.Sequential):
        blank = copy.deepcopy(model)
        blank.load_state_dict({name: torch.tensor(x) for name, x in given.items()}, strict=True)
        return blank
    model.config.save_pretrained(folder)
    readers.write_safetensors(folder / "model.safetensors", given)
    # by its files: in memory transformers 5 has other names than public files
    made, info = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return made
