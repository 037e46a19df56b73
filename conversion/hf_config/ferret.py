"""Ferret's config.json: Llama's fields, and what its training scripts add (Ferret spec 1, 7, 8).

It names CLIP's tower without describing it. Which tower it is tells, in this order, a config that
comes with it (`clip`, put there by --with), the tensors of a checkpoint that holds it, and the
name that all published ones have.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from conversion.hf_config.language import read_llama, write_llama
from conversion.hf_config.sections import (
    COUNT,
    GROUP,
    LAYER,
    SIZE,
    TEXT,
    Kind,
    Section,
    check_model,
    read_section,
    write_section,
)
from conversion.hf_config.vision import read_clip, write_clip
from conversion.tables.ferret import CLIP as PUBLISHED
from conversion.tables.ferret import tower_shapes
from mg_jax.config import build, to_dict
from mg_jax.errors import UserError
from mg_jax.models.ferret_config import FerretConfig, check

V1, UI = "ferret", "ferret_llama"
CLASSES = {V1: "FERRETLlamaForCausalLM", UI: "FerretLlamaForCausalLM"}
REFUSED = {"ferret_gemma": "Gemma", "ferret_mpt": "MPT"}
PINPOINTS = Kind(
    "a list of [width, height] in pixels",
    lambda x: (
        isinstance(x, list | tuple)
        and len(x) > 0
        and all(isinstance(y, list | tuple) and len(y) == 2 and all(map(SIZE.fits, y)) for y in x)
    ),
)
MERGES = ("spatial", "spatial_unpad")
PROJECTORS = {"linear": "linear", "mlp2x_gelu": "mlp"}
POOLERS = ("max", "mean")

FERRET = Section(
    "Ferret",
    read={
        "mm_hidden_size": ("inputs", 1024),
        "mm_vision_select_layer": ("low_layer", -2, LAYER),
        "mm_projector_type": ("projector", "linear"),
        "mm_patch_merge_type": ("merge", "flat"),
        "image_aspect_ratio": ("aspect", "square_nocrop"),
        "image_grid_pinpoints": ("pinpoints", None, PINPOINTS.or_null()),
        "region_geo_sampler": ("sampler", False),
        "region_fea_adapter": ("adapter", False),
        "sampler_pooler_mode": ("pooler", "mean"),
        "im_region_fea_token": ("region_token", None, COUNT.or_null()),
        "clip": ("clip", None, GROUP.or_null()),
        "mm_vision_tower": ("name", PUBLISHED, TEXT.or_null()),
    },
    fixed={
        "mm_vision_select_feature": ("patch",),
        "mm_use_im_start_end": (False,),
        "use_mm_proj": (True,),
    },
    # how it was trained, and how text is cut; patch tokens are added to the tokenizer and never
    # written in a prompt
    inert=frozenset(
        """freeze_mm_mlp_adapter mm_projector_lr mm_use_im_patch_token mm_vision_tower_lr
        tokenizer_model_max_length tokenizer_padding_side tune_mm_mlp_adapter
        unfreeze_mm_vision_tower""".split()
    ),
)
OWN = FERRET.read.keys() | FERRET.fixed.keys() | FERRET.inert
# What the published towers share that no tensor of theirs tells
ACTIVATION, EPS, HEAD = "quick_gelu", 1e-5, 64
NARROW, NARROW_HEAD = 256, 16  # recorded towers are narrower than any published, with such heads
PUBLISHED_LAYERS, PUBLISHED_PATCH, PUBLISHED_SIZE = 24, 14, 336
# Fields of ours that do not change what the weights mean
NOT_WRITTEN = frozenset(("text_positions", "pointing_weight", "pointing_layer"))


def is_ferret(raw: Mapping[str, Any], kind: str = "") -> bool:
    """Whether a config.json is of a Ferret, or of that `kind` of it: V1 or UI.

    Ferrets on other language models are taken for UI, and refused by name when they are read.
    """
    stated = raw.get("model_type")
    known = {V1: (V1,), UI: (UI, *REFUSED)}
    return any(stated in known[k] for k in ([kind] if kind else known))


def complete(raw: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with the tower that a checkpoint holds described in `clip`."""
    shapes = tower_shapes(manifest)
    if raw.get("clip") is not None or not shapes:
        return dict(raw)
    try:
        positions, width = shapes["embeddings.position_embedding.weight"]
        patch = shapes["embeddings.patch_embedding.weight"][-1]
        hidden = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError):
        return dict(raw)  # the table will name what is missing
    layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}
    return {
        **raw,
        "clip": _tower(width, hidden, len(layers), patch, math.isqrt(positions - 1) * patch),
    }


def _tower(width: int, hidden: int, layers: int, patch: int, size: int) -> dict[str, Any]:
    head = NARROW_HEAD if width < NARROW else HEAD
    return {
        "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": hidden,
        "num_hidden_layers": layers, "num_attention_heads": max(width // head, 1),
        "patch_size": patch, "image_size": size, "hidden_act": ACTIVATION, "layer_norm_eps": EPS,
    }  # fmt: skip


def check_language(raw: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a Ferret on a language model that is not supported, by its name."""
    kind = raw.get("model_type")
    if kind in REFUSED:
        raise UserError(
            f"{where}: model_type {kind!r}: a Ferret on {REFUSED[kind]}, a language model that is "
            "not supported; Ferret-UI on Llama-3-8B and Ferret v1 are"
        )


def read_ferret(raw: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """Values of mg_jax.models.ferret.FerretConfig, with the behaviour of the published code.

    Raises UserError for an unsupported field, another language model than Llama, a tower of
    another width than the projector was made for, or values that no model can be built of.
    """
    check_language(raw, where)
    own = read_section({k: v for k, v in raw.items() if k in OWN}, FERRET, where)
    rest = {k: v for k, v in raw.items() if k not in OWN and k != "model_type"}
    lm = read_llama(rest, where)
    width = own["inputs"]
    tower = own["clip"] or _tower(
        width, 4 * width, PUBLISHED_LAYERS, PUBLISHED_PATCH, PUBLISHED_SIZE
    )
    low = read_clip(tower, f"{where}.clip")
    if low["width"] != width:
        raise UserError(
            f"{where}.mm_hidden_size: {width}, but CLIP's tower has {low['width']}: give the one "
            f"it was trained with, {own['name']}"
        )
    size = low["image_size"]
    grids, merge = _grids(own, size, where)
    pooler = own["pooler"]
    _among(own["projector"], PROJECTORS, f"{where}.mm_projector_type")
    _among(pooler, POOLERS, f"{where}.sampler_pooler_mode")
    regions = "sampler" if own["sampler"] else "mean" if own["adapter"] else "none"
    if regions == "mean" and grids:
        raise UserError(f"{where}.region_fea_adapter: upstream's works at one resolution alone")
    if regions != "none" and own["region_token"] is None:
        raise UserError(f"{where}.im_region_fea_token: missing; which id is <region_fea>?")
    out = {
        "low": low, "tile": None, "lm": lm, "low_size": size, "tile_size": size, "grids": grids,
        "low_layer": own["low_layer"], "projector": PROJECTORS[own["projector"]],
        "tile_projector": "shared", "region_map": "fused", "fusion": "raw",
        "upsampling": "nearest", "transpose_sampling": True, "merge": merge, "regions": regions,
        "sampler": {"pooler": pooler}, "region_token": own["region_token"],
        # upstream cuts a text that is too long, whatever the picture leaves
        "text_positions": 0,
    }  # fmt: skip
    check_model(FerretConfig, out, check, where)
    return out


def _grids(own: Mapping[str, Any], size: int, where: str) -> tuple[list[list[int]], str]:
    """(columns, rows) of every grid, and the merge; no grids where the picture stays whole."""
    if own["aspect"] != "anyres":
        _among(own["aspect"], ("square_nocrop",), f"{where}.image_aspect_ratio")
        return [], "spatial"
    if own["pinpoints"] is None:
        raise UserError(f"{where}.image_grid_pinpoints: missing, though pictures are cut in tiles")
    _among(own["merge"], MERGES, f"{where}.mm_patch_merge_type")
    if any(side % size for pair in own["pinpoints"] for side in pair):
        raise UserError(
            f"{where}.image_grid_pinpoints: {own['pinpoints']} are no multiples of CLIP's {size} px"
        )
    return [[side // size for side in pair] for pair in own["pinpoints"]], own["merge"]


def _among(value: Any, known: Collection[str], where: str) -> None:
    if value not in known:
        raise UserError(f"{where}: {value!r} is not supported, only {', '.join(known)}")


def write_ferret(cfg: Any) -> dict[str, Any]:
    """The config.json of Ferret v1 for a FerretConfig of one resolution, of Ferret-UI for one of
    several; the tower is described beside (`clip`), which upstream passes over.

    Raises UserError naming a choice of ours that the published code does not compute.
    """
    if cfg.tile is not None:
        raise UserError(
            "tile: an encoder of the tiles' own, as Ferret-v2 has, which was never published: only "
            "Ferret v1 and Ferret-UI, whose CLIP sees everything, have a layout to write"
        )
    if cfg.regions != "none" and cfg.region_token is None:
        raise UserError(
            "region_token: null, but Ferret's layout has <region_fea> as a row of the vocabulary: "
            "a model without that row cannot be written"
        )
    kind = UI if cfg.grids else V1
    pinpoints: Sequence[Any] = [[side * cfg.tile_size for side in grid] for grid in cfg.grids]
    values = {
        "inputs": cfg.low.width,
        "low_layer": cfg.low_layer,
        "projector": {ours: theirs for theirs, ours in PROJECTORS.items()}[cfg.projector],
        "merge": cfg.merge if cfg.grids else "flat",
        "aspect": "anyres" if cfg.grids else "square_nocrop",
        "pinpoints": pinpoints or None,
        "sampler": cfg.regions == "sampler",
        "adapter": cfg.regions == "mean",
        "pooler": cfg.sampler.pooler,
        "region_token": cfg.region_token,
        "clip": write_clip(cfg.low),
        "name": PUBLISHED,
    }
    own = {k: v for k, v in write_section(values, FERRET).items() if v is not None}
    for part in ("region_geo_sampler", "region_fea_adapter"):
        if not own[part]:
            del own[part]  # upstream builds a part wherever its field is, whatever its value
    raw = write_llama(cfg.lm) | own | {
        "architectures": [CLASSES[kind]], "model_type": kind, "use_mm_proj": True,
        "mm_vision_select_feature": "patch", "mm_use_im_start_end": False,
    }  # fmt: skip
    means = to_dict(build(type(cfg), read_ferret(raw), "config.json"))
    for name, mine in to_dict(cfg).items():
        if name not in ("lm", "low"):  # whose writers have looked themselves
            _check(mine, means[name], name, cfg)
    return raw


def _check(mine: Any, theirs: Any, path: str, cfg: Any) -> None:
    tiles = (
        "tile_size", "tile_pixels", "merge", "image_order", "tile_pool", "region_map", "upsampling"
    )  # fmt: skip
    if not cfg.grids and path in tiles:
        return  # of no meaning at one resolution
    if path == "tile_pixels":
        mine, theirs = cfg.tile_mean_std, "clip"
    if mine != theirs and path not in NOT_WRITTEN:
        raise UserError(
            f"{path}: {mine!r} has no place in Ferret's layout; the published code computes "
            f"{theirs!r}, so the weights cannot be used with it"
        )
