"""Groma in both published layouts: the detector alone (det-pretrain) and the whole model (7B)."""

from typing import Any

from conversion.engine import Rule, Table, bind, under
from conversion.tables import deformable_detr, dinov2, llama
from mg_jax.errors import UserError

PROJECTOR = (
    Rule("img_txt_bridge.0.weight", "projector/up/kernel", "d merged -> merged d"),
    Rule("img_txt_bridge.0.bias", "projector/up/bias", "d -> d"),
    Rule("img_txt_bridge.2.weight", "projector/down/kernel", "e d -> d e"),
    Rule("img_txt_bridge.2.bias", "projector/down/bias", "e -> e"),
)
REGION_ENCODER = (
    Rule("mlvl_fuse.input_conv.{level}.weight", "inputs/kernel", "o xyc 1 1 -> 1 1 xyc o"),
    Rule("mlvl_fuse.input_conv.{level}.bias", "inputs/bias", "o -> o"),
    Rule("mlvl_fuse.fuse_convs.{turn}.conv.weight", "fuse/conv/kernel", "o c y x -> y x c o"),
    Rule("mlvl_fuse.fuse_convs.{turn}.gn.weight", "fuse/norm/scale", "c -> c"),
    Rule("mlvl_fuse.fuse_convs.{turn}.gn.bias", "fuse/norm/bias", "c -> c"),
    Rule("roi_align.pconvs.{level}.weight", "roi_convs/kernel", "o c y x -> y x c o"),
    Rule("roi_align.pconvs.{level}.bias", "roi_convs/bias", "o -> o"),
    Rule("roi_align.pos_embedd.0.weight", "position/fc1/kernel", "p four -> four p"),
    Rule("roi_align.pos_embedd.0.bias", "position/fc1/bias", "p -> p"),
    Rule("roi_align.pos_embedd.2.weight", "position/norm1/scale", "p -> p"),
    Rule("roi_align.pos_embedd.2.bias", "position/norm1/bias", "p -> p"),
    Rule("roi_align.pos_embedd.3.weight", "position/fc2/kernel", "r p -> p r"),
    Rule("roi_align.pos_embedd.3.bias", "position/fc2/bias", "r -> r"),
    Rule("roi_align.pos_embedd.5.weight", "position/norm2/scale", "r -> r"),
    Rule("roi_align.pos_embedd.5.bias", "position/norm2/bias", "r -> r"),
    Rule("roi_align.flatten_linear.weight", "flatten/kernel", "r (c i j) -> i j c r"),
    Rule("roi_align.flatten_linear.bias", "flatten/bias", "r -> r"),
    Rule("roi_align.updims.weight", "output/kernel", "d r -> r d"),
    Rule("roi_align.updims.bias", "output/bias", "d -> d"),
)
NEW_TOKENS = (
    Rule("new_input_embs.weight", "new_tokens/embedding", "t d -> t d"),
    Rule("extra_lm_head.weight", "new_tokens/head", "t d -> d t"),
)


def detector_table(vision: Any, proposer: Any) -> Table:
    """det-pretrain layout: encoder and proposer.

    Raises UserError when the proposer has a single objectness head, which upstream cannot hold.
    """
    if not proposer.two_heads:
        raise UserError(
            "proposer.two_heads: upstream's layout has two objectness heads; "
            "a model trained with one cannot be written in it"
        )
    return (
        under("vis_encoder.", "vision/", dinov2.table(vision))
        + under("ddetr_transformer.", "proposer/", deformable_detr.transformer_table(proposer))
        + under("input_proj.", "proposer/", deformable_detr.input_table(proposer, vision.width))
    )


def table(cfg: Any) -> Table:
    """7B layout, for the shape `cfg` (mg_jax.models.groma.GromaConfig).

    Raises UserError for parts that upstream's layout has no place for.
    """
    for field, foreign, why in (
        ("regions.mlp", cfg.regions.mlp, "applies no MLP to region tokens"),
        ("token_merge", not cfg.token_merge, "always merges four patches into one token"),
        ("unit_vectors", cfg.unit_vectors, "joins image and region vectors as they are"),
        ("label_words", cfg.label_words, "has no vocabulary of labels"),
        ("taps", cfg.taps, "reads the encoder's last hidden states"),
    ):
        if foreign:
            raise UserError(
                f"{field}: upstream {why}; a model that differs cannot be written in its layout"
            )
    regions, width, channels = cfg.regions, cfg.lm.width, cfg.vision.width
    projector = dict(merged=4 * channels, d=width, e=width)
    sizes = dict(
        level=len(regions.upsample), turn=regions.rounds, c=regions.width, o=regions.width,
        xyc=channels + 2, y=3, x=3, p=regions.position_width, four=4, r=regions.hidden,
        i=regions.roi_size, j=regions.roi_size, d=width,
    )  # fmt: skip
    return (
        under("perceiver.", "", detector_table(cfg.vision, cfg.proposer))
        + under("llm.", "lm/", llama.table(cfg.lm))
        + bind(PROJECTOR, projector)
        + under("region_encoder.", "region_encoder/", bind(REGION_ENCODER, sizes))
        + bind(NEW_TOKENS, dict(t=cfg.new_tokens, d=width))
    )
