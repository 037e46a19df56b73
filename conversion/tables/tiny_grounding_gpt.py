"""TinyGroundingGPT, of which nothing is published, in the names of its nearest public relatives.

    model.* lm_head.*               Qwen2.5, as Qwen2ForCausalLM
    model.mm_vision_projector.*     the projector, as GroundingGPT names its own (spec 7)
    clip.*  dinov2.*                the towers, as CLIPVisionModel and Dinov2Model

GroundingGPT's files leave their tower to its public files; ours may leave out both towers, and
those of the first stage the language model, in whose spellings they are read here.
"""

from collections.abc import Collection
from typing import Any

from conversion.engine import Rule, Table, bind, under
from conversion.tables import clip, dinov2, qwen2
from conversion.tables.spellings import spelling_of
from mg_jax.errors import UserError

LM, CLIP, DINO = "model.embed_tokens.", "clip.", "dinov2."
PROJECTOR = "model.mm_vision_projector."
RULES = (
    Rule("0.weight", "up/kernel", "d c -> c d"),
    Rule("0.bias", "up/bias", "d -> d"),
    Rule("2.weight", "down/kernel", "e d -> d e"),
    Rule("2.bias", "down/bias", "e -> e"),
)
# What a checkpoint may lack -> what holds it
PUBLIC = {
    LM: "Qwen2.5, by its folder",
    CLIP: "CLIP's tower: openai/clip-vit-large-patch14-336",
    DINO: "DINOv2: facebook/dinov2-large",
}


def table(cfg: Any, manifest: Collection[str] = ()) -> Table:
    """The table for the shape `cfg` (mg_jax.models.tiny_grounding_gpt.TinyGroundingGPTConfig).

    `manifest` names the tensors of a checkpoint, none for an export. Raises UserError when a whole
    tower or the language model is absent.
    """
    absent = [what for prefix, what in PUBLIC.items() if not holds(manifest, prefix)]
    if manifest and absent:
        raise UserError(
            "the weights lack what TinyGroundingGPT is made of: pass --with for each of "
            + "; ".join(absent)
        )
    inputs, width = cfg.clip.width + cfg.dino.width, cfg.lm.width
    return (
        under(PROJECTOR, "projector/", bind(RULES, dict(c=inputs, d=width, e=width)))
        + under("", "lm/", qwen2.table(cfg.lm))
        + under(CLIP, "clip/", clip.table(cfg.clip, _spelling(manifest, CLIP, clip.MARKS)))
        + under(DINO, "dino/", dinov2.table(cfg.dino, _spelling(manifest, DINO, dinov2.MARKS)))
    )


def holds(names: Collection[str], prefix: str) -> bool:
    """Whether any tensor is under `prefix`."""
    return any(name.startswith(prefix) for name in names)


def _spelling(manifest: Collection[str], prefix: str, marks: Any) -> Any:
    inner = {name.removeprefix(prefix) for name in manifest if name.startswith(prefix)}
    return spelling_of(inner, marks)
