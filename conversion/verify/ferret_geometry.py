"""Which grid a picture gets and how it is cut, against Ferret's recorded tables (spec 7.1)."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion.verify import Case, npz_names, npz_read
from conversion.verify.parts import gather
from mg_jax.disk import read_json
from mg_jax.vision import anyres

TABLE, CUTS = "select_best_resolution.json", "anyres_resize.npz"
COLUMNS = ("best_resolution_wh", "grid_wh", "unpad_feature_hw")  # behind a picture's size
PATCH = 14
THUMBNAIL = "global_"  # and its side


def case(folder: Path) -> Case:
    """The tables of a folder, of which either may be absent.

    Recorded names: `select_best_resolution/<list>@<tile>/<column>`, a row a picture, and
    `anyres_resize/<array>`.
    """
    table, cuts = folder / TABLE, folder / CUTS
    lists = read_json(table) if table.exists() else {}
    rows = {f"{table.stem}/{k}/{c}": (k, i) for k in lists for i, c in enumerate(COLUMNS)}
    arrays = {f"{cuts.stem}/{n}": n for n in (npz_names(cuts) if cuts.exists() else [])}

    def parts() -> Iterator[tuple[str, Any]]:
        for name, content in lists.items():
            yield name, lambda n=name, c=content: _selected(f"{table.stem}/{n}", c)
        if arrays:
            yield cuts.stem, lambda: _cut(cuts)

    def recorded(name: str) -> np.ndarray:
        if name in rows:
            key, i = rows[name]
            return np.array([row[2 + i] for row in lists[key]["rows"]])
        return npz_read(cuts, [arrays[name]])[arrays[name]]

    given = {f"{cuts.stem}/image": "input"} if arrays else {}
    return Case("ferret geometry", (*rows, *arrays), given, lambda: gather(parts()), recorded)


def _selected(name: str, content: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns of one list of resolutions; its name ends in @ and the side of a tile."""
    tile = int(name.rpartition("@")[2])
    grids = [(w // tile, h // tile) for w, h in content["pinpoints_wh_in_order"]]
    found: list[list[tuple[int, ...]]] = [[], [], []]
    for width, height, *_ in content["rows"]:
        grid = grids[anyres.select(width, height, grids, tile)]
        window = anyres.window(width, height, grid, tile // PATCH)
        for column, value in zip(
            found, ((grid[0] * tile, grid[1] * tile), grid, window[2:]), strict=True
        ):
            column.append(value)
    return {f"{name}/{c}": np.array(v) for c, v in zip(COLUMNS, found, strict=True)}


def _cut(path: Path) -> dict[str, np.ndarray]:
    """One picture on the canvas of the recorded list, filled and padded, and in tiles."""
    image = npz_read(path, ["image"])["image"]
    sides = [n.removeprefix(THUMBNAIL) for n in npz_names(path) if n.startswith(THUMBNAIL)]
    tile = int(sides[0])
    made = anyres.prepare(image, tile, anyres.GRIDS_UI, tile)
    columns, rows = anyres.GRIDS_UI[int(made["grid"])]
    size = columns * tile, rows * tile
    return {
        f"{path.stem}/{name}": np.asarray(value)
        for name, value in {
            "best_wh": size,
            "crops": made["tiles"],
            f"{THUMBNAIL}{tile}": made["low"],
            "resized_nopad": anyres.squash(image, *size),
            "resized_pad": _padded(image, *size),
        }.items()
    }


def _padded(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [h,w,3] fitted into `width` x `height` px, in the middle of black.

    Upstream has it for merge "spatial_unpad" and never calls it (spec 7.1).
    """
    across, down = width / image.shape[1], height / image.shape[0]
    if across < down:
        inner = width, min(math.ceil(image.shape[0] * across), height)
    else:
        inner = min(math.ceil(image.shape[1] * down), width), height
    out = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    out[top : top + inner[1], left : left + inner[0]] = anyres.squash(image, *inner)
    return out
