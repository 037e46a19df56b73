"""TinyGroundingGPT's config.json: ours, for its authors have published none.

`llm`, `clip` and `dinov2` hold the configs of the three public models as they publish them; the
other fields are those of mg_jax.models.tiny_grounding_gpt.TinyGroundingGPTConfig.
"""

from collections.abc import Mapping
from typing import Any

from conversion.hf_config.language import read_qwen2, write_qwen2
from conversion.hf_config.sections import (
    COUNT,
    LAYER,
    SIZE,
    TEMPLATE,
    Section,
    check_model,
    read_section,
    write_section,
)
from conversion.hf_config.vision import read_clip, read_dinov2, write_clip, write_dinov2
from mg_jax.config import to_dict
from mg_jax.errors import UserError
from mg_jax.models.tiny_grounding_gpt import TinyGroundingGPTConfig, check

MODEL_TYPE = "tiny_grounding_gpt"
PARTS = ("llm", "clip", "dinov2")  # the models it is made of
TINY_GROUNDING_GPT = Section(
    "TinyGroundingGPT",
    read={
        "llm": ("lm", {}),
        "clip": ("clip", {}),
        "dinov2": ("dino", {}),
        "mm_vision_select_layer": ("select_layer", -2, LAYER),
        "object_tokens": ("object_tokens", None, SIZE),
        "dinov2_pixels": ("dino_pixels", "imagenet"),
        "unit_vectors": ("unit_vectors", False),
    },
    fixed={},
    elsewhere={"template": TEMPLATE, "text_tokens": SIZE, "object_slots": COUNT},
)


def read_tiny_grounding_gpt(raw: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Values of TinyGroundingGPTConfig. Raises UserError for an unsupported field, or a part of
    which nothing is said."""
    absent = [name for name in PARTS if name not in raw]
    if absent:
        raise UserError(
            f"{where}: says nothing of {' and '.join(absent)}; pass --with for the folder of each"
        )
    values = read_section(raw, TINY_GROUNDING_GPT, where)
    out = values | {
        "lm": read_qwen2(values["lm"], f"{where}.llm"),
        "clip": read_clip(values["clip"], f"{where}.clip"),
        "dino": read_dinov2(values["dino"], f"{where}.dinov2"),
    }
    if out["object_tokens"] is None:  # means over 2 x 2, as of the published 24 x 24
        grid = out["clip"]["image_size"] // out["clip"]["patch"]
        out["object_tokens"] = grid**2 // 4 if grid % 2 == 0 else grid**2
    check_model(TinyGroundingGPTConfig, out, check, where)
    return out


def write_tiny_grounding_gpt(cfg: Any) -> dict[str, Any]:
    """The config.json for a TinyGroundingGPTConfig. Raises UserError where a part has none."""
    values = to_dict(cfg) | {
        "lm": write_qwen2(cfg.lm), "clip": write_clip(cfg.clip), "dino": write_dinov2(cfg.dino),
    }  # fmt: skip
    return {
        "architectures": ["TinyGroundingGPT"],
        "model_type": MODEL_TYPE,
        **write_section(values, TINY_GROUNDING_GPT),
    }
