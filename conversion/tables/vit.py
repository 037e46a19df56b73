"""What the tables of CLIP's and DINOv2's vision transformers share: one block, and the sizes."""

from typing import Any

from conversion.engine import Rule


def block(layer: str, q: str, k: str, v: str, o: str, norms: tuple[str, str]) -> tuple[Rule, ...]:
    """The rules of the blocks under `layer`, whose projections and norms have these names."""
    return (
        *(
            rule
            for ours, theirs in (("q", q), ("k", k), ("v", v))
            for rule in (
                Rule(f"{layer}{theirs}.weight", f"blocks/attn/{ours}/kernel", "(n h) d -> d n h"),
                Rule(f"{layer}{theirs}.bias", f"blocks/attn/{ours}/bias", "(n h) -> n h"),
            )
        ),
        Rule(f"{layer}{o}.weight", "blocks/attn/o/kernel", "d (n h) -> n h d"),
        Rule(f"{layer}{o}.bias", "blocks/attn/o/bias", "d -> d"),
        Rule(f"{layer}{norms[0]}.weight", "blocks/norm1/scale", "d -> d"),
        Rule(f"{layer}{norms[0]}.bias", "blocks/norm1/bias", "d -> d"),
        Rule(f"{layer}{norms[1]}.weight", "blocks/norm2/scale", "d -> d"),
        Rule(f"{layer}{norms[1]}.bias", "blocks/norm2/bias", "d -> d"),
        Rule(f"{layer}mlp.fc1.weight", "blocks/mlp/up/kernel", "f d -> d f"),
        Rule(f"{layer}mlp.fc1.bias", "blocks/mlp/up/bias", "f -> f"),
        Rule(f"{layer}mlp.fc2.weight", "blocks/mlp/down/kernel", "d f -> f d"),
        Rule(f"{layer}mlp.fc2.bias", "blocks/mlp/down/bias", "d -> d"),
    )


def sizes(cfg: Any) -> dict[str, int]:
    """The sizes of the axes of an encoder of shape `cfg` (mg_jax.vision.vit.ViTConfig)."""
    return dict(
        d=cfg.width,
        f=round(cfg.width * cfg.mlp_ratio),
        l=cfg.layers,
        n=cfg.heads,
        h=cfg.width // cfg.heads,
        c=3,
        y=cfg.patch,
        x=cfg.patch,
        p=1 + (cfg.image_size // cfg.patch) ** 2,
        r=cfg.registers,
    )
