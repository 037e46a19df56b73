"""Manifests of published checkpoints, covered by the tables in both directions at true size."""

import math
import re

import pytest

from conversion import engine, hf_config, manifests
from conversion.tables import llama, phi3, qwen2
from mg_jax.config import build
from mg_jax.errors import UserError
from mg_jax.lm import LMConfig

TABLES = {"llama": llama.table, "qwen2": qwen2.table, "phi3": phi3.table}
# Published numbers of parameters
SIZES = {
    "vicuna_7b_v15": 6_738_415_616,
    "vicuna_13b_v15": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "yi15_34b": 34_388_917_248,
    "qwen25_1_5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "qwen25_7b": 7_615_616_512,
    "phi3_mini_4k": 3_821_079_552,
}


@pytest.fixture(params=SIZES)
def checkpoint(request):
    """(name, LMConfig, table, shapes) of a stored manifest."""
    raw = manifests.config(request.param)
    kind = raw["model_type"]
    cfg = build(LMConfig, getattr(hf_config, f"read_{kind}")(raw, request.param))
    return request.param, cfg, TABLES[kind](cfg), manifests.read(request.param)


def test_covered_completely_in_both_directions(checkpoint):
    name, cfg, table, shapes = checkpoint
    plan = engine.plan(shapes, table, name)
    used = {source for leaf in plan.leaves for source in leaf.names}
    assert used == set(shapes) and not plan.dropped and not plan.tied
    copies = {"lm_head.weight": (cfg.vocab, cfg.width)} if cfg.tied else {}
    assert plan_shapes(table) == shapes | copies
    leaves = engine.flatten(plan.abstract())
    assert sum(math.prod(leaf.shape) for leaf in leaves.values()) == SIZES[name]


def plan_shapes(table):
    return engine.expand(table).torch_shapes()


def test_leaves_are_those_of_the_model(checkpoint):
    """jax.eval_shape of the module at true size."""
    import jax
    import jax.numpy as jnp

    from mg_jax.lm import LM

    _, cfg, table, _ = checkpoint
    model = LM(cfg)

    def touch(m):
        x, _ = m(m.embed(jnp.zeros((1, 2), jnp.int32)), jnp.ones((1, 2), bool))
        return m.logits(x)

    shapes = jax.eval_shape(lambda key: model.init(key, method=touch), jax.random.key(0))["params"]
    leaves = jax.tree.map(lambda x: x.value.shape, shapes, is_leaf=lambda x: hasattr(x, "value"))
    assert engine.flatten(leaves) == engine.expand(table).jax_shapes()


def test_older_files_with_rotary_buffers_and_tied_copies(checkpoint):
    _, cfg, table, shapes = checkpoint
    buffers = {
        f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (cfg.head // 2,)
        for i in range(cfg.layers)
    }
    copies = {"lm_head.weight": (cfg.vocab, cfg.width)} if cfg.tied else {}
    plan = engine.plan(shapes | buffers | copies, table)
    assert set(plan.dropped) == set(buffers) and set(plan.tied) == set(copies)


@pytest.mark.parametrize("change", ["extra", "missing", "shape"])
def test_every_mismatch_is_refused(checkpoint, change):
    _, cfg, table, shapes = checkpoint
    shapes = dict(shapes)
    name = f"model.layers.{cfg.layers - 1}.mlp.down_proj.weight"
    shape = [cfg.width, cfg.mlp]
    if change == "extra":
        name = f"model.layers.{cfg.layers}.mlp.down_proj.weight"
        shapes[name] = tuple(shape)
        expected = f"+ {name} {shape}"
    elif change == "missing":
        del shapes[name]
        expected = f"- {name} {shape}"
    else:
        shapes[name] = (3, 4)
        expected = f"! {name} [3, 4], expected {shape}"
    with pytest.raises(UserError, match=re.escape(expected)):
        engine.plan(shapes, table)


RESNET = {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
STORED = sorted(path.stem for path in manifests.FOLDER.glob("*.json"))


@pytest.mark.torch
@pytest.mark.parametrize("name", [x for x in STORED if "architectures" in manifests.config(x)])
def test_stored_equals_what_the_class_builds(name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from conversion.manifests.__main__ import shapes

    raw, stored = manifests.config(name), manifests.read(name)
    if "backbone" in raw:  # timm's, which is not here: transformers' own has the same channels
        raw |= {"backbone": None, "use_timm_backbone": False, "backbone_config": RESNET}
        stored = {x: shape for x, shape in stored.items() if not x.startswith("model.backbone.")}
    built = {x: shape for x, shape in shapes(raw).items() if not x.startswith("model.backbone.")}
    assert list(built.items()) == list(stored.items())


def test_every_manifest_has_a_config_that_says_where_it_is_from():
    """groma_7b comes from a recording; of the others three have classes that are not built here."""
    listed = {path.stem for path in manifests.FOLDER.glob("*.tsv")}
    assert listed == {*STORED, "groma_7b"}
    built = {name for name in STORED if "architectures" in manifests.config(name)}
    assert set(STORED) - built == {"convnext_large_d_320", "ferret_7b_v13", "mg_llava_vicuna_7b"}


def test_repeated_layers_are_written_once_and_keep_their_order():
    lines = ["a\t[1]", "x.{0..1}.b\t[2, 3]", "x.{0..1}.c.0\t[]", "y.{0..1}.b\t[4]", "z.0.d\t[5]"]
    shapes = {
        "a": (1,), "x.0.b": (2, 3), "x.0.c.0": (), "x.1.b": (2, 3), "x.1.c.0": (),
        "y.0.b": (4,), "y.1.b": (4,), "z.0.d": (5,),
    }  # fmt: skip
    assert list(manifests.expand(lines).items()) == list(shapes.items())
    assert list(manifests.compact(shapes)) == lines


@pytest.mark.parametrize(
    "shapes",
    [
        {"x.0.b": (2,), "x.1.b": (3,)},  # layers differ
        {"x.0.b": (2,), "x.0.c": (2,), "x.1.b": (2,)},
        {"x.0.b": (2,), "x.1.b": (2,), "x.0.c": (2,), "x.1.c": (2,)},  # another order
        {"x.1.b": (2,), "x.2.b": (2,)},
    ],
)
def test_what_does_not_repeat_is_written_out(shapes):
    lines = list(manifests.compact(shapes))
    assert len(lines) == len(shapes)
    assert list(manifests.expand(lines).items()) == list(shapes.items())


def test_the_plain_form_is_read():
    shapes = manifests.read("groma_7b")
    assert len(shapes) == 1177
    assert list(manifests.expand(manifests.compact(shapes)).items()) == list(shapes.items())


def test_an_unknown_manifest_is_told_in_a_line():
    from conversion.manifests.__main__ import main

    with pytest.raises(SystemExit, match=r"error: nothing\.json is not in "):
        main(["nothing"])
