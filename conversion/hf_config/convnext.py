"""ConvNeXt towers: open_clip_config.json and timm's config.json <-> values of ConvNeXtConfig.

Both name a timm architecture; timm's may change its arguments under `model_args`.
"""

from collections.abc import Mapping
from typing import Any

from conversion.hf_config.sections import GROUP, NUMBER, SIZES, TEXT, Section, read_section
from mg_jax.errors import UserError

# timm's name -> (depths, widths, eps of the norms)
ARCHITECTURES: dict[str, tuple[tuple[int, ...], tuple[int, ...], float]] = {
    "convnext_tiny": ((3, 3, 9, 3), (96, 192, 384, 768), 1e-6),
    "convnext_small": ((3, 3, 27, 3), (96, 192, 384, 768), 1e-6),
    "convnext_base": ((3, 3, 27, 3), (128, 256, 512, 1024), 1e-6),
    "convnext_large": ((3, 3, 27, 3), (192, 384, 768, 1536), 1e-6),
    "convnext_large_mlp": ((3, 3, 27, 3), (192, 384, 768, 1536), 1e-6),  # another head
    "convnext_xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048), 1e-6),
    "convnext_xxlarge": ((3, 4, 30, 3), (384, 768, 1536, 3072), 1e-5),
}
OPEN_CLIP = Section(
    "open_clip's model",
    read={"vision_cfg": ("vision", {})},
    fixed={},
    # texts, their joint space with pictures, and activations of towers that open_clip builds itself
    inert=frozenset(
        """embed_dim text_cfg quick_gelu custom_text multimodal_cfg init_logit_scale
        init_logit_bias nonscalar_logit_scale""".split()
    ),
)
OPEN_CLIP_VISION = Section(
    "open_clip's vision_cfg",
    read={
        "timm_model_name": ("architecture", None, TEXT),
        "image_size": ("image_size", 224),
    },
    fixed={},
    # pool, proj and drop belong to the head; stochastic depth acts in training only
    inert=frozenset(
        """timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop
        timm_drop_path""".split()
    ),
)
TIMM = Section(
    "timm's config",
    read={
        "architecture": ("architecture", None, TEXT),
        "model_args": ("arguments", None, GROUP.or_null()),
        "pretrained_cfg": ("pretrained", None, GROUP.or_null()),
    },
    fixed={},
    inert=frozenset("num_classes num_features global_pool label_names label_descriptions".split()),
)
TIMM_ARGUMENTS = Section(
    "timm's ConvNeXt",
    read={
        "depths": ("depths", None, SIZES.or_null()),
        "dims": ("widths", None, SIZES.or_null()),
        "norm_eps": ("eps", None, NUMBER.or_null()),
        "ls_init_value": ("layer_scale", 1e-6),
    },
    fixed={
        "in_chans": (3,),
        "output_stride": (32,),
        "kernel_sizes": (7,),
        "patch_size": (4,),
        "stem_type": ("patch",),
        "conv_mlp": (False,),
        "conv_bias": (True,),
        "use_grn": (False,),
        "act_layer": ("gelu",),
        "norm_layer": (None,),
    },
    inert=frozenset(
        """num_classes global_pool drop_rate drop_path_rate head_init_scale head_hidden_size
        head_norm_first""".split()
    ),
)


def read_convnext(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of mg_jax.vision.convnext.ConvNeXtConfig from an open_clip or timm config.

    Raises UserError naming a field that is unknown or asks for what the model does not compute.
    """
    arguments: Mapping[str, Any] = {}
    if "model_cfg" in raw or "vision_cfg" in raw:
        field = "vision_cfg.timm_model_name"
        if "model_cfg" in raw:
            for name in raw:
                if name not in ("model_cfg", "preprocess_cfg"):
                    raise UserError(f"{where}.{name}: unknown field of open_clip_config.json")
            where = f"{where}.model_cfg"
            raw = GROUP.check(raw["model_cfg"], where)
        vision = read_section(raw, OPEN_CLIP, where)["vision"]
        values = read_section(vision, OPEN_CLIP_VISION, f"{where}.vision_cfg")
        size = values["image_size"]
    else:
        values = read_section(raw, TIMM, where)
        # of the rest of pretrained_cfg nothing reaches the tower: a classifier, preprocessing
        sides = (values["pretrained"] or {}).get("input_size", (3, 224, 224))
        size = SIZES.check(sides, f"{where}.pretrained_cfg.input_size")[-1]
        arguments, field = values["arguments"] or {}, "architecture"
    name = values["architecture"]
    known = ARCHITECTURES.get(str(name).partition(".")[0])
    if known is None:
        raise UserError(
            f"{where}.{field}: {name!r} is not supported, only {', '.join(ARCHITECTURES)}"
        )
    changed = read_section(arguments, TIMM_ARGUMENTS, f"{where}.model_args")
    depths, widths, eps = known
    depths, widths = tuple(changed["depths"] or depths), tuple(changed["widths"] or widths)
    if len(depths) != len(widths):
        raise UserError(
            f"{where}.model_args: {len(depths)} depths and {len(widths)} dims; every stage has both"
        )
    return {
        "kind": "convnext",
        "depths": depths,
        "widths": widths,
        "image_size": size,
        "eps": changed["eps"] or eps,
    }


def write_convnext(cfg: Any) -> dict[str, Any]:
    """timm's config.json for a ConvNeXtConfig, without a classifier."""
    shape = (tuple(cfg.depths), tuple(cfg.widths), cfg.eps)
    named = [name for name, known in ARCHITECTURES.items() if known == shape]
    raw = {
        "architecture": named[0] if named else "convnext_large",
        "num_classes": 0,
        "num_features": cfg.widths[-1],
        "pretrained_cfg": {"input_size": [3, cfg.image_size, cfg.image_size]},
    }
    if not named:
        depths, widths = list(cfg.depths), list(cfg.widths)
        raw["model_args"] = {"depths": depths, "dims": widths, "norm_eps": cfg.eps}
    return raw
