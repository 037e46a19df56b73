"""The region proposer: Groma's own names, and those of transformers' Deformable DETR.

Groma's are upstream's DeformableDetrTransformer and its input projections. The heads live in
`bbox_embed` and `class_embed_*`; upstream stores the same modules a second time under `decoder.`,
exact copies that an import checks and an export writes again (Groma spec 1.2).
"""

from typing import Any

from conversion.engine import Drop, Entry, Rule, Table, Tied, bind, under

LAYER_ATTENTION = (
    Rule("sampling_offsets.weight", "offsets/kernel", "(n m z two) d -> d n m z two"),
    Rule("sampling_offsets.bias", "offsets/bias", "(n m z two) -> n m z two"),
    Rule("attention_weights.weight", "weights/kernel", "(n m z) d -> d n m z"),
    Rule("attention_weights.bias", "weights/bias", "(n m z) -> n m z"),
    Rule("value_proj.weight", "value/kernel", "(n h) d -> d n h"),
    Rule("value_proj.bias", "value/bias", "(n h) -> n h"),
    Rule("output_proj.weight", "output/kernel", "d (n h) -> n h d"),
    Rule("output_proj.bias", "output/bias", "d -> d"),
)
SELF_ATTENTION = (
    Rule("q_proj.weight", "q/kernel", "(n h) d -> d n h"),
    Rule("q_proj.bias", "q/bias", "(n h) -> n h"),
    Rule("k_proj.weight", "k/kernel", "(n h) d -> d n h"),
    Rule("k_proj.bias", "k/bias", "(n h) -> n h"),
    Rule("v_proj.weight", "v/kernel", "(n h) d -> d n h"),
    Rule("v_proj.bias", "v/bias", "(n h) -> n h"),
    Rule("out_proj.weight", "o/kernel", "d (n h) -> n h d"),
    Rule("out_proj.bias", "o/bias", "d -> d"),
)
NORM = (Rule("weight", "scale", "d -> d"), Rule("bias", "bias", "d -> d"))
FEED_FORWARD = (
    Rule("fc1.weight", "mlp/up/kernel", "f d -> d f"),
    Rule("fc1.bias", "mlp/up/bias", "f -> f"),
    Rule("fc2.weight", "mlp/down/kernel", "d f -> f d"),
    Rule("fc2.bias", "mlp/down/bias", "d -> d"),
)
HEADS = (
    Rule("class_embed_enc.weight", "class_enc/kernel", "one d -> d one"),
    Rule("class_embed_enc.bias", "class_enc/bias", "one -> one"),
    Rule("class_embed_coco.{l}.weight", "class_coco/kernel", "one d -> d one"),
    Rule("class_embed_coco.{l}.bias", "class_coco/bias", "one -> one"),
    Rule("class_embed_sa1b.{l}.weight", "class_sa1b/kernel", "one d -> d one"),
    Rule("class_embed_sa1b.{l}.bias", "class_sa1b/bias", "one -> one"),
    Rule("bbox_embed.{b}.layers.0.weight", "boxes/fc1/kernel", "f d -> d f"),
    Rule("bbox_embed.{b}.layers.0.bias", "boxes/fc1/bias", "f -> f"),
    Rule("bbox_embed.{b}.layers.1.weight", "boxes/fc2/kernel", "g f -> f g"),
    Rule("bbox_embed.{b}.layers.1.bias", "boxes/fc2/bias", "g -> g"),
    Rule("bbox_embed.{b}.layers.2.weight", "boxes/fc3/kernel", "four f -> f four"),
    Rule("bbox_embed.{b}.layers.2.bias", "boxes/fc3/bias", "four -> four"),
)
COPIES = tuple(Tied(f"decoder.{rule.torch}", rule.torch) for rule in HEADS)
QUERIES = (
    Rule("level_embed", "level_embed", "m d -> m d"),
    Rule("query_position_embeddings.weight", "query_embed", "q d -> q d"),
    Rule("enc_output.weight", "enc_output/kernel", "e d -> d e"),
    Rule("enc_output.bias", "enc_output/bias", "e -> e"),
    Rule("enc_output_norm.weight", "enc_norm/scale", "d -> d"),
    Rule("enc_output_norm.bias", "enc_norm/bias", "d -> d"),
    Rule("pos_trans.weight", "pos_trans/kernel", "twice_out twice -> twice twice_out"),
    Rule("pos_trans.bias", "pos_trans/bias", "twice_out -> twice_out"),
    Rule("pos_trans_norm.weight", "pos_norm/scale", "twice -> twice"),
    Rule("pos_trans_norm.bias", "pos_norm/bias", "twice -> twice"),
)

# Input projections, from the coarsest to the finest map they make. Transposed convolutions keep
# their [in, out] order of taps; the module does the arithmetic.
DOWN = (
    Rule("0.weight", "conv/kernel", "d c y x -> y x c d"),
    Rule("0.bias", "conv/bias", "d -> d"),
    Rule("1.weight", "norm/scale", "d -> d"),
    Rule("1.bias", "norm/bias", "d -> d"),
)
SAME = (Rule("0.weight", "conv/kernel", "d c 1 1 -> 1 1 c d"), *DOWN[1:])
UP2 = (
    Rule("0.weight", "up/kernel", "c half u v -> u v c half"),
    Rule("0.bias", "up/bias", "half -> half"),
    Rule("1.weight", "conv/kernel", "d half 1 1 -> 1 1 half d"),
    Rule("1.bias", "conv/bias", "d -> d"),
    Rule("2.weight", "norm/scale", "d -> d"),
    Rule("2.bias", "norm/bias", "d -> d"),
    Rule("3.weight", "out/kernel", "e d y x -> y x d e"),
    Rule("3.bias", "out/bias", "e -> e"),
)
UP4 = (
    Rule("0.weight", "up/kernel", "c half u v -> u v c half"),
    Rule("0.bias", "up/bias", "half -> half"),
    Rule("1.weight", "up_norm/scale", "half -> half"),
    Rule("1.bias", "up_norm/bias", "half -> half"),
    Rule("3.weight", "up2/kernel", "half quarter u v -> u v half quarter"),
    Rule("3.bias", "up2/bias", "quarter -> quarter"),
    Rule("4.weight", "conv/kernel", "d quarter 1 1 -> 1 1 quarter d"),
    Rule("4.bias", "conv/bias", "d -> d"),
    Rule("5.weight", "norm/scale", "d -> d"),
    Rule("5.bias", "norm/bias", "d -> d"),
    Rule("6.weight", "out/kernel", "e d y x -> y x d e"),
    Rule("6.bias", "out/bias", "e -> e"),
)
INPUTS = {1: (SAME,), 2: (SAME, DOWN), 3: (UP2, SAME, DOWN), 4: (UP4, UP2, SAME, DOWN)}


def transformer_table(cfg: Any) -> Table:
    """`ddetr_transformer.*` for the shape `cfg` (mg_jax.models.detr.DetrConfig)."""
    d, layers = cfg.width, cfg.decoder_layers
    heads = dict(d=d, f=cfg.box_hidden, g=cfg.box_hidden, l=layers, b=layers + 1, one=1, four=4)
    return bind(QUERIES, _query_sizes(cfg)) + bind((*HEADS, *COPIES), heads) + _layers(cfg)


def _query_sizes(cfg: Any) -> dict[str, int]:
    d = cfg.width
    return dict(d=d, e=d, m=cfg.levels, q=cfg.queries, twice=2 * d, twice_out=2 * d)


def _layers(cfg: Any) -> Table:
    """`encoder.layers.*` and `decoder.layers.*`."""
    d = cfg.width
    encoder = dict(
        d=d, f=cfg.encoder_ffn, l=cfg.encoder_layers, n=cfg.encoder_heads,
        h=d // cfg.encoder_heads, m=cfg.levels, z=cfg.encoder_points, two=2,
    )  # fmt: skip
    decoder = dict(
        d=d, f=cfg.decoder_ffn, l=cfg.decoder_layers, n=cfg.decoder_heads,
        h=d // cfg.decoder_heads, m=cfg.levels, z=cfg.decoder_points, two=2,
    )  # fmt: skip
    encoder_parts = (
        ("self_attn.", "attn/", LAYER_ATTENTION),
        ("self_attn_layer_norm.", "norm1/", NORM),
        ("", "", FEED_FORWARD),
        ("final_layer_norm.", "norm2/", NORM),
    )
    decoder_parts = (
        ("self_attn.", "self_attn/", SELF_ATTENTION),
        ("self_attn_layer_norm.", "norm1/", NORM),
        ("encoder_attn.", "cross_attn/", LAYER_ATTENTION),
        ("encoder_attn_layer_norm.", "norm2/", NORM),
        ("", "", FEED_FORWARD),
        ("final_layer_norm.", "norm3/", NORM),
    )
    out = Table(())
    for side, sizes, parts in (
        ("encoder", encoder, encoder_parts),
        ("decoder", decoder, decoder_parts),
    ):
        for torch, jax, rules in parts:
            out += under(f"{side}.layers.{{l}}.{torch}", f"{side}/{jax}", bind(rules, sizes))
    return out


def input_table(cfg: Any, channels: int) -> Table:
    """`input_proj.*`: one projection per level of encoder features with `channels`.

    Level 0 is the finest. Upstream builds them coarsest first and reverses the list (spec 1.2).
    """
    d = cfg.width
    sizes = dict(c=channels, d=d, e=d, half=d // 2, quarter=d // 4, y=3, x=3, u=2, v=2)
    out = Table(())
    for level, rules in enumerate(INPUTS[cfg.levels]):
        out += under(f"{level}.", f"input{level}/", bind(rules, sizes))
    return out


# -- transformers' DeformableDetrForObjectDetection -------------------------------------------

NO_BACKBONE = "convolutional backbone: the proposer reads the vision tower's hidden states"
NO_INPUTS = "input projections of the backbone's maps, of other widths and norms"
NO_CLASSES = "one output per category: the proposer's heads have one, objectness"
MOST = {"s": 6, "b": 40, "k": 5, "i": 4}  # stages, blocks, convolutions, maps of any backbone

_BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_TIMM_RESNET = (
    "conv1.weight",
    "layer{s}.{b}.conv{k}.weight",
    "layer{s}.{b}.downsample.0.weight",
    *(f"{norm}.{x}" for x in _BATCH_NORM for norm in ("bn1", "layer{s}.{b}.bn{k}")),
    *(f"layer{{s}}.{{b}}.downsample.1.{x}" for x in _BATCH_NORM),
)
_HF_RESNET = tuple(
    f"{part}.{tensor}"
    for part in (
        "embedder.embedder",
        "encoder.stages.{s}.layers.{b}.shortcut",
        "encoder.stages.{s}.layers.{b}.layer.{k}",
    )
    for tensor in ("convolution.weight", *(f"normalization.{x}" for x in _BATCH_NORM))
)
BACKBONE = tuple(
    Drop(f"model.backbone.conv_encoder.model.{name}", NO_BACKBONE)
    for name in (*_TIMM_RESNET, *_HF_RESNET)
) + tuple(
    Drop(f"model.input_proj.{{i}}.{j}.{x}", NO_INPUTS) for j in (0, 1) for x in ("weight", "bias")
)


CLASSES = (
    Rule("class_embed.{l}.weight", "class_coco/kernel", "one d -> d one"),
    Rule("class_embed.{l}.bias", "class_coco/bias", "one -> one"),
)
BOXES = tuple(rule for rule in HEADS if rule.torch.startswith("bbox_embed."))
PROPOSALS = tuple(rule for rule in QUERIES if rule.jax != "query_embed")


def detection_table(cfg: Any, labels: int) -> Table:
    """transformers' two-stage detector with box refinement and `labels` categories.

    `cfg`: a DetrConfig of one class head. Maps the transformer (encoder, decoder, level embedding,
    proposals from tokens), the box heads, and with one label the class heads. Dropped are the
    backbone, its input projections, and class heads of several categories. No source here have
    `input{i}` and `query_embed` of the proposer, and then its class heads: transformers takes a
    query's content from `pos_trans`, where Groma learns it.
    """
    d, layers = cfg.width, cfg.decoder_layers
    sizes = dict(d=d, f=cfg.box_hidden, g=cfg.box_hidden, l=layers, b=layers + 1, one=1, four=4)
    heads: tuple[Entry, ...] = BOXES
    if labels == 1:
        last = f"class_embed.{layers}."  # of the tokens; the others are the decoder's layers
        heads += (
            *CLASSES,
            Rule(f"{last}weight", "class_enc/kernel", "one d -> d one"),
            Rule(f"{last}bias", "class_enc/bias", "one -> one"),
        )
    copies: tuple[Entry, ...] = tuple(
        Tied(f"model.decoder.{x.torch}", x.torch) for x in heads if isinstance(x, Rule)
    )
    if labels != 1:
        names = ("class_embed.{b}.weight", "class_embed.{b}.bias")
        copies += tuple(
            Drop(f"{at}{x}", NO_CLASSES) for at in ("", "model.decoder.") for x in names
        )
    transformer = bind(PROPOSALS, _query_sizes(cfg)) + _layers(cfg)
    return under("model.", "", transformer) + bind((*heads, *copies), sizes) + bind(BACKBONE, MOST)
