"""Ferret v1 and Ferret-UI: a Llama whose `model.` also holds the projector, the sampler and, only
where a checkpoint was made with it in memory, CLIP's tower (Ferret spec 1).

Published files leave the tower to its public source, in whose names it is read here under the
prefix that it has in memory.
"""

from collections.abc import Collection, Mapping
from typing import Any

from conversion.engine import Drop, Rule, Table, bind, under
from conversion.tables import clip, llama
from conversion.tables.spellings import spelling_of
from mg_jax.errors import UserError

TOWER = "model.vision_tower.vision_tower."
SAMPLER, ADAPTER = "model.region_geo_sampler.", "model.region_fea_adapter."
PROJECTOR, NEWLINE = "model.mm_projector.", "model.image_newline"
CLIP = "openai/clip-vit-large-patch14-336"

LINEAR = (Rule("weight", "kernel", "d c -> c d"), Rule("bias", "bias", "d -> d"))
MLP = (
    Rule("0.weight", "up/kernel", "d c -> c d"),
    Rule("0.bias", "up/bias", "d -> d"),
    Rule("2.weight", "down/kernel", "e d -> d e"),
    Rule("2.bias", "down/bias", "e -> e"),
)


def table(cfg: Any, manifest: Collection[str]) -> Table:
    """The table for the shape `cfg` (mg_jax.models.ferret.FerretConfig).

    `manifest` names the tensors of a checkpoint, none for an export. Raises UserError when CLIP's
    tower is absent.
    """
    if manifest:
        check_whole(manifest)
    inner = {name.removeprefix(TOWER) for name in manifest if name.startswith(TOWER)}
    spelling: Any = spelling_of(inner, clip.MARKS)
    width = cfg.lm.width
    out = (
        under("", "lm/", llama.table(cfg.lm))
        + under(PROJECTOR, "projector/", projector(cfg.projector, cfg.low.width, width))
        + under(TOWER, "low/", clip.table(cfg.low, spelling))
    )
    if cfg.merge == "spatial_unpad":
        out += bind((Rule(NEWLINE, "newline", "d -> d"),), {"d": width})
    else:
        out += bind((Drop(NEWLINE, "ends the rows of merge spatial_unpad alone"),), {})
    if cfg.regions == "sampler":
        out += under(SAMPLER, "sampler/", sampler(cfg.sampler, cfg.map_width, width))
    elif cfg.regions == "mean":
        sizes = dict(c=cfg.map_width, d=width)
        out += under(ADAPTER, "region_adapter/", bind(LINEAR, sizes))
    return out


def check_whole(names: Collection[str]) -> None:
    """Raises UserError when CLIP's tower is absent."""
    if not holds(names, TOWER):
        raise UserError(
            f"the weights lack CLIP's tower, as Ferret's published files do: pass --with {CLIP}"
        )


def projector(kind: str, inputs: int, width: int) -> Table:
    """A projector's rules, "linear" or "mlp", without a prefix."""
    return bind(LINEAR if kind == "linear" else MLP, dict(c=inputs, d=width, e=width))


def sampler(cfg: Any, width: int, out: int) -> Table:
    """GeoRegionSampler's rules, for a map of `width` channels and vectors of `out`."""
    rules = []
    for i in range(len(cfg.anchors)):
        diff, mix = f"diff_projector_list.{i}.", f"agg_projector_list.{i}."
        rules += [
            Rule(f"{diff}weight", f"stage{i}/diff/kernel", "w v -> v w"),
            Rule(f"{diff}bias", f"stage{i}/diff/bias", "w -> w"),
            Rule(f"{mix}net.0.weight", f"stage{i}/mix/kernel", "c z 1 -> z c"),
            Rule(f"{mix}net.0.bias", f"stage{i}/mix/bias", "c -> c"),
            Rule(f"{mix}norm.weight", f"stage{i}/norm/scale", "c -> c"),
            Rule(f"{mix}norm.bias", f"stage{i}/norm/bias", "c -> c"),
        ]
    sizes = dict(
        c=width, v=width + 2, w=width + 2, z=2 * (width + 2), f=width * cfg.anchors[-1], d=out
    )
    rules += [
        Rule("flatten_projector.weight", "flatten/kernel", "c f -> f c"),
        Rule("flatten_projector.bias", "flatten/bias", "c -> c"),
        Rule("dim_projector.weight", "output/kernel", "d c -> c d"),
        Rule("dim_projector.bias", "output/bias", "d -> d"),
    ]
    return bind(tuple(rules), sizes)


def holds(names: Collection[str], prefix: str) -> bool:
    """Whether any tensor is under `prefix`."""
    return any(name.startswith(prefix) for name in names)


def tower_shapes(manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name in CLIPVisionModel: shape} of the tower in a checkpoint; empty where it has none."""
    prefix = f"{TOWER}vision_model."
    spelled = prefix if holds(manifest, prefix) else TOWER
    return {
        name.removeprefix(spelled): tuple(info.shape)
        for name, info in manifest.items()
        if name.startswith(spelled)
    }
