"""ConvNeXt in timm's names: alone, as open_clip's image tower, and as MG-LLaVA's.

    timm       stem.0.weight                           stages.2.blocks.5.gamma
    open_clip  visual.trunk.stem.0.weight              visual.trunk.stages.2.blocks.5.gamma
    mg_llava   visual_encoder_aux.vision_stem.0.weight
               visual_encoder_aux.vision_stages.2.blocks.5.gamma

MG-LLaVA's is the tower in memory, as its recordings hold it: its published files leave the tower to
open_clip's. The others may hold heads and a text tower, which are left out (MG-LLaVA spec 1).
"""

from typing import Any, Literal

from conversion.engine import Drop, Entry, Rule, Table, bind, under
from conversion.tables.clip import NO_JOINT, NO_TEXT, RECOMPUTED, TEXT_LAYERS

NO_HEAD = "classification head and its norm: feature maps are read before them"

MARKS = {
    "open_clip": "visual.trunk.stem.0.weight",
    "mg_llava": "visual_encoder_aux.vision_stem.0.weight",
    "timm": "stem.0.weight",
}
# Prefix of the stem and of the stages
PREFIXES = {
    "open_clip": ("visual.trunk.stem.", "visual.trunk.stages."),
    "mg_llava": ("visual_encoder_aux.vision_stem.", "visual_encoder_aux.vision_stages."),
    "timm": ("stem.", "stages."),
}

STEM = (
    Rule("0.weight", "stem/kernel", "d c y x -> y x c d"),
    Rule("0.bias", "stem/bias", "d -> d"),
    Rule("1.weight", "stem_norm/scale", "d -> d"),
    Rule("1.bias", "stem_norm/bias", "d -> d"),
)
DOWN = (
    Rule("downsample.0.weight", "down_norm/scale", "c -> c"),
    Rule("downsample.0.bias", "down_norm/bias", "c -> c"),
    Rule("downsample.1.weight", "down/kernel", "d c u v -> u v c d"),
    Rule("downsample.1.bias", "down/bias", "d -> d"),
)
BLOCKS = (
    Rule("blocks.{l}.gamma", "blocks/scale", "d -> d"),
    Rule("blocks.{l}.conv_dw.weight", "blocks/conv/kernel", "d 1 y x -> y x d"),
    Rule("blocks.{l}.conv_dw.bias", "blocks/conv/bias", "d -> d"),
    Rule("blocks.{l}.norm.weight", "blocks/norm/scale", "d -> d"),
    Rule("blocks.{l}.norm.bias", "blocks/norm/bias", "d -> d"),
    Rule("blocks.{l}.mlp.fc1.weight", "blocks/mlp/up/kernel", "f d -> d f"),
    Rule("blocks.{l}.mlp.fc1.bias", "blocks/mlp/up/bias", "f -> f"),
    Rule("blocks.{l}.mlp.fc2.weight", "blocks/mlp/down/kernel", "d f -> f d"),
    Rule("blocks.{l}.mlp.fc2.bias", "blocks/mlp/down/bias", "d -> d"),
)
_KINDS = ("weight", "bias")
TIMM_HEAD: tuple[Entry, ...] = tuple(
    Drop(f"{part}.{kind}", NO_HEAD)
    for part in ("norm_pre", "head.norm", "head.pre_logits.fc", "head.fc")
    for kind in _KINDS
)
_TEXT_LAYER = [
    f"{part}.{kind}"
    for part in ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
    for kind in _KINDS
]
OPEN_CLIP: tuple[Entry, ...] = (
    *(Drop(f"visual.head.mlp.{fc}.{kind}", NO_JOINT) for fc in ("fc1", "fc2") for kind in _KINDS),
    *(Drop(f"visual.head.proj.{kind}", NO_JOINT) for kind in _KINDS),
    *(
        Drop(f"transformer.resblocks.{{t}}.{part}", NO_TEXT)
        for part in ("attn.in_proj_weight", "attn.in_proj_bias", *_TEXT_LAYER)
    ),
    *(
        Drop(name, NO_TEXT)
        for name in """positional_embedding token_embedding.weight ln_final.weight
        ln_final.bias""".split()
    ),
    Drop("attn_mask", RECOMPUTED),
    Drop("text_projection", NO_JOINT),
    Drop("logit_scale", NO_JOINT),
)


def table(cfg: Any, spelling: Literal["open_clip", "mg_llava", "timm"] = "open_clip") -> Table:
    """The table of an encoder of shape `cfg` (mg_jax.vision.convnext.ConvNeXtConfig)."""
    stem, stages = PREFIXES[spelling]
    out = under(stem, "", bind(STEM, dict(d=cfg.widths[0], c=3, y=4, x=4)))
    before = cfg.widths[0]
    for i, (width, depth) in enumerate(zip(cfg.widths, cfg.depths, strict=True)):
        sizes = dict(c=before, d=width, f=4 * width, l=depth, y=7, x=7, u=2, v=2)
        out += under(f"{stages}{i}.", f"stage{i}/", bind((*DOWN, *BLOCKS) if i else BLOCKS, sizes))
        before = width
    if spelling == "open_clip":
        out += under("visual.trunk.", "", bind(TIMM_HEAD, {}))
        out += bind(OPEN_CLIP, {"t": TEXT_LAYERS})
    elif spelling == "timm":
        out += bind(TIMM_HEAD, {})
    return out
