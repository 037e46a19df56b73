"""Configs of the recorded instances and of 7B, and the leaves a model of a config must have."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conversion import hf_config, manifests
from mg_jax.disk import read_json

GOLDEN = Path(__file__).parents[1] / "golden" / "groma"
INSTANCES = ("a_lvl1_448", "c_ddetr_lvl4_224")

# What our config classes add to the values that a config.json holds.
REGION_DEFAULTS = dict(
    upsample=(4, 2, 1), rounds=5, roi_size=14, position_width=256, mlp=False, groups=64
)


def namespace(values):
    """Nested dicts as attributes, so that tables are tested without the models."""
    inner = {k: namespace(v) if isinstance(v, dict) else v for k, v in values.items()}
    return SimpleNamespace(**inner)


def config_of(raw):
    """(layout, config) of a config.json's dict."""
    values = hf_config.read_groma(raw)
    values["proposer"]["box_hidden"] = 256
    values["regions"] |= REGION_DEFAULTS
    values |= {"token_merge": True, "unit_vectors": False, "label_words": 0, "taps": ()}
    return ("full" if "lm" in values else "detector"), namespace(values)


PUBLISHED = {
    "model_type": "groma",
    "num_new_token": 114,
    "llm_cfg": {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32000},
    "perceiver_cfg": {
        "vis_encoder_cfg": {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 518,
        },
        "ddetr_cfg": {
            "auxiliary_loss": True, "class_cost": 2, "cls_loss_coefficient": 2,
            "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "num_feature_levels": 1,
            "two_stage": True, "with_box_refine": True,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="session", params=INSTANCES)
def instance(request):
    """(layout, config, manifest) of each recorded instance."""
    folder = GOLDEN / request.param
    layout, cfg = config_of(read_json(folder / "config.json"))
    return layout, cfg, manifests.expand((folder / "state_dict_keys.txt").read_text().splitlines())


@pytest.fixture(scope="session")
def published():
    """The 7B config as upstream stores it, defaults left out."""
    return PUBLISHED


@pytest.fixture
def expected_leaves():
    """A function: (layout, config) -> {path: shape}, written down apart from the tables."""
    return leaves


@pytest.fixture
def to_config():
    """`config_of` for tests that change a config.json."""
    return config_of


@pytest.fixture
def random_tensors(rng):
    """A function: {name: shape} -> {name: float16 array}."""

    def make(shapes, dtype=np.float16):
        return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}

    return make


def leaves(layout, cfg):
    out = vision(cfg.vision) | proposer(cfg.proposer, cfg.vision.width)
    if layout == "full":
        c, d, r = cfg.vision.width, cfg.lm.width, cfg.regions.hidden
        out |= linear("projector/up", (4 * c,), (d,)) | linear("projector/down", (d,), (d,))
        regions = (
            linear("inputs", (1, 1, c + 2), (c,), lead=(3,))
            | {"fuse/conv/kernel": (5, 3, 3, c, c)}
            | norm("fuse/norm", c, lead=(5,))
            | linear("roi_convs", (3, 3, c), (c,), lead=(3,))
            | linear("position/fc1", (4,), (256,))
            | norm("position/norm1", 256)
            | linear("position/fc2", (256,), (r,))
            | norm("position/norm2", r)
            | linear("flatten", (14, 14, c), (r,))
            | linear("output", (r,), (d,))
        )
        out |= {f"region_encoder/{path}": shape for path, shape in regions.items()}
        out |= {f"lm/{path}": shape for path, shape in language(cfg.lm).items()}
        out |= {"new_tokens/embedding": (114, d), "new_tokens/head": (d, 114)}
    return out


def linear(path, inputs, outputs, lead=()):
    return {f"{path}/kernel": (*lead, *inputs, *outputs), f"{path}/bias": (*lead, *outputs)}


def norm(path, width, lead=()):
    return {f"{path}/scale": (*lead, width), f"{path}/bias": (*lead, width)}


def vision(cfg):
    d, n, layers = cfg.width, cfg.heads, (cfg.layers,)
    side = cfg.image_size // cfg.patch
    out = linear("patch", (cfg.patch, cfg.patch, 3), (d,)) | norm("norm", d)
    out |= {"cls": (d,), "mask_token": (d,), "positions": (1 + side**2, d)}
    for name in "qkv":
        out |= linear(f"blocks/attn/{name}", (d,), (n, d // n), layers)
    out |= linear("blocks/attn/o", (n, d // n), (d,), layers)
    hidden = int(d * cfg.mlp_ratio)
    out |= linear("blocks/mlp/up", (d,), (hidden,), layers)
    out |= linear("blocks/mlp/down", (hidden,), (d,), layers)
    for name in ("norm1", "norm2"):
        out |= norm(f"blocks/{name}", d, layers)
    out |= {"blocks/scale1": (*layers, d), "blocks/scale2": (*layers, d)}
    return {f"vision/{path}": shape for path, shape in out.items()}


def deformable(path, d, n, levels, points, lead):
    samples = (n, levels, points)
    return (
        linear(f"{path}/offsets", (d,), (*samples, 2), lead)
        | linear(f"{path}/weights", (d,), samples, lead)
        | linear(f"{path}/value", (d,), (n, d // n), lead)
        | linear(f"{path}/output", (n, d // n), (d,), lead)
    )


def proposer(cfg, channels):
    d, m, layers = cfg.width, cfg.levels, (cfg.decoder_layers,)
    down = linear("conv", (3, 3, channels), (d,)) | norm("norm", d)
    same = linear("conv", (1, 1, channels), (d,)) | norm("norm", d)
    up2 = (
        linear("up", (2, 2, channels), (d // 2,)) | linear("conv", (1, 1, d // 2), (d,))
        | norm("norm", d) | linear("out", (3, 3, d), (d,))
    )  # fmt: skip
    up4 = (
        linear("up", (2, 2, channels), (d // 2,)) | norm("up_norm", d // 2)
        | linear("up2", (2, 2, d // 2), (d // 4,)) | linear("conv", (1, 1, d // 4), (d,))
        | norm("norm", d) | linear("out", (3, 3, d), (d,))
    )  # fmt: skip
    made = [down, same, up2, up4][:m][::-1] if m > 1 else [same]
    out = {f"input{i}/{path}": shape for i, x in enumerate(made) for path, shape in x.items()}
    out |= {"level_embed": (m, d), "query_embed": (cfg.queries, d)}
    out |= linear("enc_output", (d,), (d,)) | norm("enc_norm", d)
    out |= linear("pos_trans", (2 * d,), (2 * d,)) | norm("pos_norm", 2 * d)
    out |= linear("class_enc", (d,), (1,))
    for source in ("coco", "sa1b"):
        out |= linear(f"class_{source}", (d,), (1,), layers)
    boxes = (cfg.decoder_layers + 1,)
    out |= linear("boxes/fc1", (d,), (256,), boxes) | linear("boxes/fc2", (256,), (256,), boxes)
    out |= linear("boxes/fc3", (256,), (4,), boxes)
    lead = (cfg.encoder_layers,)
    out |= deformable("encoder/attn", d, cfg.encoder_heads, m, cfg.encoder_points, lead)
    out |= deformable("decoder/cross_attn", d, cfg.decoder_heads, m, cfg.decoder_points, layers)
    heads = (cfg.decoder_heads, d // cfg.decoder_heads)
    for name in "qkv":
        out |= linear(f"decoder/self_attn/{name}", (d,), heads, layers)
    out |= linear("decoder/self_attn/o", heads, (d,), layers)
    for side, hidden, count, norms in (
        ("encoder", cfg.encoder_ffn, lead, 2),
        ("decoder", cfg.decoder_ffn, layers, 3),
    ):
        out |= linear(f"{side}/mlp/up", (d,), (hidden,), count)
        out |= linear(f"{side}/mlp/down", (hidden,), (d,), count)
        for i in range(norms):
            out |= norm(f"{side}/norm{i + 1}", d, count)
    return {f"proposer/{path}": shape for path, shape in out.items()}


def language(cfg):
    d, f, h, layers = cfg.width, cfg.mlp, cfg.head, cfg.layers
    out = {
        "embed/embedding": (cfg.vocab, d), "norm/scale": (d,), "head/kernel": (d, cfg.vocab),
        "blocks/norm1/scale": (layers, d), "blocks/norm2/scale": (layers, d),
        "blocks/attn/q/kernel": (layers, d, cfg.heads, h),
        "blocks/attn/k/kernel": (layers, d, cfg.kv_heads, h),
        "blocks/attn/v/kernel": (layers, d, cfg.kv_heads, h),
        "blocks/attn/o/kernel": (layers, cfg.heads, h, d),
        "blocks/mlp/gate/kernel": (layers, d, f), "blocks/mlp/up/kernel": (layers, d, f),
        "blocks/mlp/down/kernel": (layers, f, d),
    }  # fmt: skip
    return out
