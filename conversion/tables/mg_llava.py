"""MG-LLaVA: its own 20 tensors, a language model under `llm.`, and the towers (MG-LLaVA spec 1).

    stage-1 file      projector. bbox_projector. fuse_module.
    stage-2 file      the same and llm.
    in memory         the same, visual_encoder. (CLIP) and visual_encoder_aux. (ConvNeXt)

The published files leave the frozen towers, and that of stage 1 the language model, to the public
files of each, in whose spellings they are read here under the prefixes above.
"""

from collections.abc import Callable, Collection
from typing import Any

from conversion.engine import Rule, Table, bind, under
from conversion.tables import clip, convnext
from conversion.tables.spellings import spelling_of
from mg_jax.errors import UserError

LM, LOW, HIGH = "llm.", "visual_encoder.", "visual_encoder_aux."
OWN = ("projector.", "bbox_projector.", "fuse_module.")

PROJECTOR = (
    Rule("model.0.weight", "up/kernel", "d c -> c d"),
    Rule("model.0.bias", "up/bias", "d -> d"),
    Rule("model.2.weight", "down/kernel", "e d -> d e"),
    Rule("model.2.bias", "down/bias", "e -> e"),
)
FUSION = (
    Rule("slow_conv.weight", "slow_conv/kernel", "h s 1 1 -> s h"),
    Rule("slow_conv.bias", "slow_conv/bias", "h -> h"),
    Rule("slow_proj.weight", "slow_proj/kernel", "d h 1 1 -> h d"),
    Rule("slow_proj.bias", "slow_proj/bias", "d -> d"),
    Rule("fast_conv.weight", "fast_conv/kernel", "d 1 y x -> y x d"),
    Rule("fast_conv.bias", "fast_conv/bias", "d -> d"),
    Rule("fast_proj.weight", "fast_proj/kernel", "e d 1 1 -> d e"),
    Rule("fast_proj.bias", "fast_proj/bias", "e -> e"),
    Rule("gate.0.weight", "gate/up/kernel", "g both -> both g"),
    Rule("gate.0.bias", "gate/up/bias", "g -> g"),
    Rule("gate.2.weight", "gate/down/kernel", "one g -> g one"),
    Rule("gate.2.bias", "gate/down/bias", "one -> one"),
)
HIGH_MARKS = {  # of the ConvNeXt behind its prefix; the first is the tower in memory
    "mg_llava": "vision_stem.0.weight",
    **{name: convnext.MARKS[name] for name in ("open_clip", "timm")},
}
# What a checkpoint may lack -> what holds it
PUBLIC = {
    LM: "the language model, by its folder",
    LOW: "CLIP's tower: openai/clip-vit-large-patch14-336",
    HIGH: "the ConvNeXt: laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
}


def table(cfg: Any, manifest: Collection[str], language: Callable[[Any], Table]) -> Table:
    """The table for the shape `cfg` (mg_jax.models.mg_llava.MGLLaVAConfig).

    `language` makes that of the language model; `manifest` names the tensors of a checkpoint, none
    for an export. Raises UserError for parts that upstream's layout has no place for, and when a
    whole tower or the language model is absent.
    """
    for field, mine, published in (
        ("fusion", cfg.fusion, "conv_gate"),
        ("objects", cfg.objects, "append"),
    ):
        if mine != published:
            raise UserError(
                f"{field}: upstream's layout is that of {published!r}; a model of {mine!r} cannot "
                "be written in it"
            )
    if manifest:
        check_whole(manifest)
    low, high, width = cfg.low.width, cfg.high.widths[-1], cfg.lm.width
    sizes = dict(s=high, h=high, d=low, e=low, y=7, x=7, g=low // 2, both=2 * low, one=1)
    return (
        under("fuse_module.", "fusion/", bind(FUSION, sizes))
        + under("projector.", "projector/", _projector(low, width))
        + under("bbox_projector.", "box_projector/", _projector(sum(cfg.high.widths), width))
        + under(LM, "lm/", language(cfg.lm))
        + under(LOW, "low/", clip.table(cfg.low, _spelling(manifest, LOW, clip.MARKS)))
        + _high(cfg.high, manifest)
    )


def check_whole(names: Collection[str]) -> None:
    """Raises UserError when a tower or the language model is absent as a whole."""
    absent = [what for prefix, what in PUBLIC.items() if not holds(names, prefix)]
    if absent:
        raise UserError(
            "the weights lack what MG-LLaVA's files leave to others: pass --with for each of "
            + "; ".join(absent)
        )


def holds(names: Collection[str], prefix: str) -> bool:
    """Whether any tensor is under `prefix`."""
    return any(name.startswith(prefix) for name in names)


def saved(name: str, stage: str) -> bool:
    """Whether upstream's trainer saves the tensor `name` in a stage ("pretrain" or "sft")."""
    return name.startswith(OWN + ((LM,) if stage == "sft" else ()))


def _projector(inputs: int, width: int) -> Table:
    return bind(PROJECTOR, dict(c=inputs, d=width, e=width))


def _high(cfg: Any, manifest: Collection[str]) -> Table:
    spelling = _spelling(manifest, HIGH, HIGH_MARKS)
    prefix = "" if spelling == "mg_llava" else HIGH  # that spelling brings its own
    return under(prefix, "high/", convnext.table(cfg, spelling))


def _spelling(manifest: Collection[str], prefix: str, marks: Any) -> Any:
    inner = {name.removeprefix(prefix) for name in manifest if name.startswith(prefix)}
    return spelling_of(inner, marks)
