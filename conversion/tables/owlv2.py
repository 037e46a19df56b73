"""OWLv2's vision tower: CLIP's under its own spelling, `pre_layernorm`.

Maps `vision_model.*` of Owlv2VisionModel and Owlv2Model, and of Owlv2ForObjectDetection, where it
lies under `owlv2.`. The detector's heads and the text tower have no place here: its boxes come as
files (MG-LLaVA spec 9).
"""

from typing import Any, Literal

from conversion.engine import Drop, Entry, Table, bind, under
from conversion.tables import clip

NO_HEAD = "detection head: open-vocabulary boxes are made beforehand and read from files"

MARKS = {
    "detector": "owlv2.vision_model.embeddings.class_embedding",
    "files": "vision_model.embeddings.class_embedding",
}

_DENSE = {"class_head": 1, "box_head": 3, "objectness_head": 3}
HEADS: tuple[Entry, ...] = (
    *(
        Drop(f"{head}.dense{i}.{kind}", NO_HEAD)
        for head, count in _DENSE.items()
        for i in range(count)
        for kind in ("weight", "bias")
    ),
    *(
        Drop(f"class_head.{name}.{kind}", NO_HEAD)
        for name in ("logit_shift", "logit_scale")
        for kind in ("weight", "bias")
    ),
    Drop("layer_norm.weight", NO_HEAD),
    Drop("layer_norm.bias", NO_HEAD),
    Drop("box_bias", NO_HEAD),
)


def table(cfg: Any, spelling: Literal["detector", "files"] = "detector") -> Table:
    """The table of a tower of shape `cfg` (mg_jax.vision.vit.ViTConfig, kind "clip")."""
    model = under("vision_model.", "", clip.tower(cfg, "pre_layernorm")) + clip.rest()
    return model if spelling == "files" else under("owlv2.", "", model) + bind(HEADS, {})
