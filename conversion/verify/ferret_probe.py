"""From which cell of the map upstream reads a region's first pixel: the mirrored one."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from conversion.verify.ferret_inputs import mask
from mg_jax.disk import read_json
from mg_jax.models.ferret import Ferret

PROBE = "orientation_probe/"
ASKED = "mask"  # of the file: "[w=640,h=480], pixels x 600..610, y 40..50"


def recorded(folder: Path) -> dict[str, np.ndarray]:
    """What the file holds beside its question, by the names it is compared under; nothing where
    there is none."""
    file = folder / "orientation_probe.json"
    held = read_json(file) if file.exists() else {}
    return {PROBE + name: np.asarray(value) for name, value in held.items() if name != ASKED}


def made(folder: Path, cfg: Any, params: Any) -> dict[str, Any]:
    """The same by our masks and our model, which is given a map of row and column numbers."""
    asked = re.findall(r"\d+", read_json(folder / "orientation_probe.json")[ASKED])
    width, height, x0, x1, y0, y1 = map(int, asked)
    held = mask({"kind": "box", "box": [x0, y0, x1, y1]}, width, height)
    point = (np.argwhere(held)[0] / held.shape).astype(np.float32)
    row, column = read(cfg, params, point)
    upright = read(dataclasses.replace(cfg, transpose_sampling=False), params, point)
    return {
        f"{PROBE}first_point_xy_norm": point,
        f"{PROBE}feature_row_read": row,
        f"{PROBE}feature_col_read": column,
        f"{PROBE}expected_row_if_correct": upright[0],
        f"{PROBE}expected_col_if_correct": upright[1],
    }


def read(cfg: Any, params: Any, point: np.ndarray) -> np.ndarray:
    """(row, column) of the whole picture's map that a region of one point (x, y) is read from."""
    cells = np.indices((cfg.low_side, cfg.low_side), np.float32).reshape(2, -1).T
    ramp = np.zeros((1, len(cells), cfg.map_width), np.float32)
    ramp[0, :, :2] = cells
    points = np.broadcast_to(point, (1, 1, cfg.sampler.points, 2))
    batch = {"points": points, "point_count": np.ones((1, 1), np.int32)}
    describe = jax.jit(partial(Ferret(cfg).apply, method="describe"))
    aux = describe({"params": params}, {"low_features": ramp, "low_tokens": ramp}, batch)
    return np.asarray(aux["point_features"])[0, 0, 0, :2]
