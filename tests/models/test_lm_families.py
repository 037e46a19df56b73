"""The decoder by config: every family equal to its class of transformers, weights both ways."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conversion import engine, hf_config
from conversion.tables import llama, phi3, qwen2
from mg_jax.attention import RopeScaling, rope_frequencies
from mg_jax.config import build
from mg_jax.lm import LM, LMConfig

BASE = LMConfig(vocab=61, width=32, mlp=48, layers=3, heads=4, kv_heads=2, head=8, eps=1e-5)
WINDOW, LENGTH, NEW = 5, 11, 4
LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 512)  # keeps, blends and divides one pair or two


def of(**changes):
    return dataclasses.replace(BASE, **changes)


# name -> (family, config); every one but those named *_window sees all that went before
FAMILIES = {
    "vicuna": ("llama", of(kv_heads=4)),
    "vicuna_16k": ("llama", of(kv_heads=4, rope_scaling=RopeScaling("linear", 4.0))),
    "llama3": ("llama", of(rope_theta=5e5)),
    "llama3_scaled": ("llama", of(rope_theta=5e5, rope_scaling=LLAMA3)),
    "yi_one_key_head": ("llama", of(rope_theta=5e6, kv_heads=1, eps=1e-6)),
    "llama_tied_wide_heads": ("llama", of(tied=True, head=16)),
    "qwen_tied": ("qwen2", of(qkv_bias=True, tied=True, rope_theta=1e6, eps=1e-6)),
    "qwen_untied": ("qwen2", of(qkv_bias=True, rope_theta=1e6)),
    "qwen_window": ("qwen2", of(qkv_bias=True, window=WINDOW, window_from=1)),
    "phi": ("phi3", of(kv_heads=4)),
    "phi_window": ("phi3", of(kv_heads=4, window=WINDOW)),
    "phi_grouped_window": ("phi3", of(window=WINDOW)),
}
TABLES = {"llama": llama.table, "qwen2": qwen2.table, "phi3": phi3.table}
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "phi3": "Phi3ForCausalLM"}


@pytest.fixture(params=FAMILIES)
def named(request):
    family, cfg = FAMILIES[request.param]
    return family, cfg, TABLES[family](cfg)


def reference(family, cfg):
    """The class of transformers, built from the config.json we write, all weights random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    raw = getattr(hf_config, f"write_{family}")(cfg)
    kind = getattr(transformers, CLASSES[family])
    assert raw["architectures"] == [kind.__name__]
    torch.manual_seed(0)
    model = kind(kind.config_class.from_dict(json.loads(json.dumps(raw)))).eval()
    for parameter in model.parameters():  # norms and biases too: ones and zeros hide errors
        torch.nn.init.normal_(parameter, mean=0.05, std=0.25)
    return model


def ours(model, table):
    """The weights of a torch model as our parameters."""
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    return engine.to_jax(state.__getitem__, engine.plan(state, table))


def theirs(model, ids, valid, **more):
    import torch

    ids, valid = torch.tensor(np.asarray(ids)), torch.tensor(np.asarray(valid))
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with torch.no_grad():
        return model(ids, attention_mask=valid.long(), position_ids=positions, **more)


def batch(length=LENGTH):
    """Ids, and which are valid: rows that are whole, right-padded and left-padded."""
    ids = jax.random.randint(jax.random.key(5), (3, length), 0, BASE.vocab)
    valid = jnp.ones((3, length), bool).at[1, length - 3 :].set(False).at[2, :3].set(False)
    return ids, valid


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, ids, valid):
    def run(m):
        return m.logits(m(m.embed(ids), valid)[0])

    return model.apply({"params": params}, method=run)


@functools.partial(jax.jit, static_argnums=0)
def step(model, params, ids, valid, cache):
    """Logits of `ids` and the grown cache."""

    def run(m):
        x, grown = m(m.embed(ids), valid, cache)
        return m.logits(x), grown

    return model.apply({"params": params}, method=run)


def assert_close(got, expected, valid, atol=1e-5):
    mask = np.asarray(valid)
    np.testing.assert_allclose(np.asarray(got)[mask], np.asarray(expected)[mask], atol=atol)
    assert np.abs(np.asarray(expected)[mask]).max() > 0.1


@pytest.mark.torch
def test_full_forward_with_padding_on_either_side(named):
    family, cfg, table = named
    model = reference(family, cfg)
    ids, valid = batch()
    expected = theirs(model, ids, valid).logits
    assert_close(forward(LM(cfg), ours(model, table), ids, valid), expected, valid)


@pytest.mark.torch
def test_cached_decoding(named):
    """Left-padded rows beside transformers' own cache, token by token past the window."""
    family, cfg, table = named
    model = reference(family, cfg)
    params, lm = ours(model, table), LM(cfg)
    ids, _ = batch(LENGTH + NEW)
    valid = jnp.ones(ids.shape, bool).at[1, :2].set(False).at[2, :6].set(False)
    cache = lm.apply({"params": params}, 3, LENGTH + NEW, method=lm.empty_cache)
    past = None
    cuts = [0, LENGTH, *range(LENGTH + 1, LENGTH + NEW + 1)]
    for start, end in itertools.pairwise(cuts):
        part, seen = ids[:, start:end], valid[:, start:end]
        reply = theirs(model, part, valid[:, :end], past_key_values=past, use_cache=True)
        past = reply.past_key_values
        logits, cache = step(lm, params, part, seen, cache)
        assert_close(logits, reply.logits, seen)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["vicuna", "qwen_window", "phi_grouped_window"])
def test_right_padded_rows_decode_over_their_padding(name):
    """As the systems decode: after the prompt a row goes on at its own length."""
    family, cfg = FAMILIES[name]
    model, table = reference(family, cfg), TABLES[family](cfg)
    params, lm = ours(model, table), LM(cfg)
    ids, _ = batch(LENGTH + NEW)
    lengths = np.array([LENGTH, LENGTH - 3, 2])
    valid = jnp.arange(LENGTH)[None] < lengths[:, None]
    cache = lm.apply({"params": params}, 3, LENGTH + NEW, method=lm.empty_cache)
    _, cache = step(lm, params, ids[:, :LENGTH], valid, cache)
    cache = cache.replace(length=jnp.asarray(lengths, jnp.int32))
    for i in range(NEW):
        new = ids[jnp.arange(3), lengths + i][:, None]
        logits, cache = step(lm, params, new, jnp.ones((3, 1), bool), cache)
        for row, length in enumerate(lengths + i + 1):
            whole = ids[row : row + 1, :length]
            expected = theirs(model, whole, np.ones(whole.shape, bool)).logits[:, -1]
            assert_close(logits[row], expected, np.ones(1, bool))


@pytest.mark.torch
def test_exported_weights_load_strictly(named, rng):
    torch = pytest.importorskip("torch")
    family, cfg, table = named
    shapes = engine.expand(table).jax_shapes()
    params = {path: 0.25 * rng.standard_normal(shape) for path, shape in shapes.items()}
    params = engine.unflatten({path: x.astype(np.float32) for path, x in params.items()})
    model = reference(family, cfg)
    state = {n: torch.from_numpy(x) for n, x in engine.to_torch(params, table).items()}
    model.load_state_dict(state, strict=True)
    ids, valid = batch()
    assert_close(forward(LM(cfg), params, ids, valid), theirs(model, ids, valid).logits, valid)


def test_both_ways_are_bit_equal(named, rng):
    _, cfg, table = named
    plan = engine.expand(table)
    state = {
        name: rng.standard_normal(shape).astype(np.float16)
        for name, shape in plan.torch_shapes().items()
    }
    for copy, source in plan.tied.items():
        state[copy] = state[source]
    assert bool(plan.tied) == cfg.tied
    params = engine.to_jax(state.__getitem__, engine.plan(state, table))
    back = engine.to_torch(params, table)
    assert set(back) == set(state)
    assert all(back[name].tobytes() == x.tobytes() for name, x in state.items())


def test_leaves_equal_those_of_the_module(named):
    _, cfg, table = named
    model = LM(cfg)

    def touch(m):
        x, _ = m(m.embed(jnp.zeros((1, 2), jnp.int32)), jnp.ones((1, 2), bool))
        return m.logits(x)

    shapes = jax.eval_shape(lambda key: model.init(key, method=touch), jax.random.key(0))["params"]
    leaves = jax.tree.map(lambda x: x.value.shape, shapes, is_leaf=lambda x: hasattr(x, "value"))
    assert engine.flatten(leaves) == engine.expand(table).jax_shapes()


def test_config_comes_back(named):
    family, cfg, _ = named
    raw = json.loads(json.dumps(getattr(hf_config, f"write_{family}")(cfg)))
    assert raw["model_type"] == family
    assert build(LMConfig, getattr(hf_config, f"read_{family}")(raw)) == cfg


@pytest.mark.torch
def test_config_written_by_transformers_is_read(named):
    """transformers 5 writes `rope_parameters`, defaults and all."""
    family, cfg, _ = named
    raw = json.loads(reference(family, cfg).config.to_json_string(use_diff=False))
    assert build(LMConfig, getattr(hf_config, f"read_{family}")(raw)) == cfg


@pytest.mark.torch
@pytest.mark.parametrize(
    ("theta", "head", "scaling"),
    [(1e4, 128, None), (5e5, 128, None), (5e6, 128, None), (1e6, 128, None), (1e4, 96, None),
     (1e4, 128, RopeScaling("linear", 4.0)), (5e5, 128, RopeScaling("llama3", 8.0))],
)  # fmt: skip
def test_frequencies_of_the_published_shapes(theta, head, scaling):
    """To the last bit or its neighbour: the angle at position 8000 is their product."""
    cfg = of(rope_theta=theta, head=head, rope_scaling=scaling)
    expected = reference("llama", cfg).model.rotary_emb.inv_freq.numpy()
    got = rope_frequencies(head, theta, scaling)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2.4e-7 if scaling is None else 5e-7)


def test_a_window_counts_valid_tokens_alone():
    """Holes in a row are not seen, so they do not use up the window either."""
    cfg = of(window=3)
    lm = LM(cfg)
    shapes = engine.expand(llama.table(cfg)).jax_shapes()
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = engine.unflatten(
        {p: 0.3 * jax.random.normal(k, s) for k, (p, s) in zip(keys, shapes.items(), strict=True)}
    )
    ids, _ = batch()
    keep = np.array([1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1], bool)
    holed = forward(lm, params, ids, jnp.asarray(keep)[None].repeat(3, 0))[:, keep]
    short = forward(lm, params, ids[:, keep], jnp.ones((3, keep.sum()), bool))
    np.testing.assert_allclose(holed, short, atol=1e-5)
    unlimited = forward(LM(of()), params, ids[:, keep], jnp.ones((3, keep.sum()), bool))
    assert np.abs(unlimited - short).max() > 1e-2
