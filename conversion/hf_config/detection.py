"""transformers' DeformableDetrConfig as values of the region proposer."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from conversion.hf_config.groma import DEFORMABLE_DETR, check_levels
from conversion.hf_config.sections import SIZE, read_section

# two stages and refinement of boxes, as Groma's: queries are proposals, boxes move layer by layer
_FIXED = {x: allowed for x, allowed in DEFORMABLE_DETR.fixed.items() if x != "auxiliary_loss"}
DETECTION = dataclasses.replace(
    DEFORMABLE_DETR,
    fixed={**_FIXED, "return_intermediate": (True,)},
    inert=DEFORMABLE_DETR.inert | {"auxiliary_loss"},  # ours has a loss of every layer
)


def read_deformable_detr(raw: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values of mg_jax.models.detr.DetrConfig for a two-stage detector with box refinement.

    The backbone and the number of classes are not part of it (see tables/deformable_detr.py).
    Raises UserError naming a field that is unknown or asks for what the model does not compute.
    """
    raw = dict(raw)
    field = "two_stage_num_proposals"
    proposals = SIZE.check(raw.pop(field, 300), f"{where}.{field}")
    values = read_section(raw, DETECTION, where)
    # the detector keeps so many proposals; num_queries counts learned queries, which it has none of
    values |= {"queries": proposals, "box_hidden": values["width"]}
    check_levels(values, where)
    return {**values, "levels_from": "mean", "refinement": "iterative", "two_heads": False}
