"""MG-LLaVA's config.json. Upstream has none: what a model is, its training script says.

So this one is ours, in the fields of the recordings: `llm`, `clip` and `convnext` hold the configs
of the three public models as they publish them. A `config.json` of `model_type` mg_llava is read
strictly; a recording's has notes on how it was made, which are passed over.
"""

from collections.abc import Callable, Mapping
from typing import Any

from conversion.hf_config.convnext import read_convnext, write_convnext
from conversion.hf_config.language import read_llama, read_phi3, write_llama, write_phi3
from conversion.hf_config.sections import (
    GROUP,
    LAYER,
    SIZE,
    TEMPLATE,
    Section,
    check_model,
    read_section,
    write_section,
)
from conversion.hf_config.vision import read_clip, write_clip
from mg_jax.config import build, to_dict
from mg_jax.errors import UserError
from mg_jax.models.mg_llava import MGLLaVAConfig, check

PARTS = ("llm", "clip", "convnext")  # the models it is made of
STRIDE = 32  # pixels of a cell of ConvNeXt's last map, which the fusion lays on CLIP's patches
MG_LLAVA = Section(
    "MG-LLaVA",
    read={
        "llm": ("lm", {}),
        "clip": ("low", {}),
        "convnext": ("high", {}),
        "visual_select_layer": ("select_layer", -2, LAYER),
        "box_canvas": ("canvas", 768),
        "aux_size": ("side", None, SIZE.or_null()),
        "frames": ("frames", 8),
    },
    fixed={
        "roi_output_size": (56,),
        "roi_sampling_ratio": (-1,),
        "roi_aligned": (False,),
    },
    inert=frozenset(["llm_type"]),  # the class of `llm`
    elsewhere={"template": TEMPLATE, "text_tokens": SIZE},
)
LANGUAGES: dict[str, tuple[Callable, Callable]] = {
    "llama": (read_llama, write_llama),
    "phi3": (read_phi3, write_phi3),
}
# Fields of ours that say how to compute or train; none changes what the weights mean
NOT_WRITTEN = frozenset(
    "dtype remat scan drop_path max_boxes layer_scale label_words pointing_weight "
    "pointing_layer".split()
)


def is_mg_llava(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of MG-LLaVA: by its model_type, or a recording's by its parts."""
    kind = raw.get("model_type")
    return kind == "mg_llava" or (kind is None and raw.keys() >= set(PARTS))


def language_of(raw: Mapping[str, Any]) -> str:
    """The model_type of the language model in a config.json of MG-LLaVA."""
    inner = raw.get("llm")
    stated = inner.get("model_type") if isinstance(inner, Mapping) else None
    return str(stated or raw.get("llm_type") or "llama").lower()


def read_mg_llava(raw: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Values of mg_jax.models.mg_llava.MGLLaVAConfig, with the behaviour of the published code.

    Without `aux_size` the high resolution is the one whose last map covers CLIP's patches one by
    one. Raises UserError for an unsupported field, or sizes of the two towers that do not fit.
    """
    if "model_type" not in raw:
        known = {*MG_LLAVA.read, *MG_LLAVA.fixed, *MG_LLAVA.inert, *MG_LLAVA.elsewhere}
        raw = {name: value for name, value in raw.items() if name in known}
    absent = [name for name in PARTS if name not in raw]
    if absent:
        raise UserError(
            f"{where}: says nothing of {' and '.join(absent)}; pass --with for the folder of each"
        )
    kind = language_of(raw)
    if kind not in LANGUAGES:
        raise UserError(
            f"{where}.llm: model_type {kind!r} is not supported, only {', '.join(LANGUAGES)}"
        )
    values = read_section(raw, MG_LLAVA, where)
    lm = LANGUAGES[kind][0](values["lm"], f"{where}.llm")
    low = read_clip(values["low"], f"{where}.clip")
    high = read_convnext(_timm(values["high"]), f"{where}.convnext")
    patches = low["image_size"] // low["patch"]
    side = values.pop("side") or STRIDE * patches
    if side != STRIDE * patches:
        raise UserError(
            f"{where}.aux_size: {side} gives a map of {side / STRIDE:g} cells a side for CLIP's "
            f"{patches} patches; the published fusion lays one on the other: {STRIDE * patches}"
        )
    out = {
        **values, "lm": lm, "low": low, "high": high | {"image_size": side},
        "fusion": "conv_gate", "objects": "append", "refer": False, "video_pool": 1,
    }  # fmt: skip
    check_model(MGLLaVAConfig, out, check, where)
    return out


def write_mg_llava(cfg: Any, language: str = "llama") -> dict[str, Any]:
    """The config.json for an MGLLaVAConfig whose `language` model is of that model_type.

    Raises UserError naming a choice of ours that the published code does not compute.
    """
    values = {"lm": LANGUAGES[language][1](cfg.lm), "low": write_clip(cfg.low)}
    values |= {"high": write_convnext(cfg.high), "side": cfg.high.image_size}
    raw = {
        "architectures": ["MultiFuseObjectLLaVAModel"],
        "model_type": "mg_llava",
        **write_section(to_dict(cfg) | values, MG_LLAVA),
    }
    means = to_dict(build(type(cfg), read_mg_llava(raw), "config.json"))
    for name, mine in to_dict(cfg).items():
        if name not in ("lm", "low"):  # whose writers have looked themselves
            _check(mine, means[name], name)
    return raw


def _check(mine: Any, theirs: Any, path: str) -> None:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in mine:
            _check(mine[name], theirs.get(name), f"{path}.{name}")
    elif mine != theirs and path.rsplit(".", 1)[-1] not in NOT_WRITTEN:
        raise UserError(
            f"{path}: {mine!r} has no place in MG-LLaVA's layout; the published code computes "
            f"{theirs!r}, so the weights cannot be used with it"
        )


def _timm(raw: Any) -> Mapping[str, Any]:
    """A ConvNeXt's config as open_clip or timm write it; a recording's has its sizes alone."""
    GROUP.check(raw, "convnext")
    if raw.keys() & {"architecture", "model_cfg", "vision_cfg"}:
        return raw
    return {"architecture": "convnext_large", "model_args": raw}
