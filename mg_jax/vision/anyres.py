"""Pictures of any resolution as a grid of square tiles (Ferret spec 7; NumPy and Pillow).

A grid is (columns, rows). The picture is squeezed to the grid's canvas, its aspect not kept, so
that coordinates in [0, 1] of the original stay what they are; tiles are cut row by row. A map over
all tiles is thought of as merged, rows x columns cells, and never built: tables tell where in the
tiles each of its cells lies.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mg_jax.errors import UserError

Grid = tuple[int, int]

# Ferret-v2's list, in the order of the paper (section 3.1)
GRIDS_V2: tuple[Grid, ...] = (
    (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 2), (2, 3),
    (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (3, 2),
)  # fmt: skip
# Ferret-UI's training script
GRIDS_UI: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
BUCKETS = (1, 2, 4, 6)  # tile slots of a batch


def up_to(grids: Sequence[Grid], tiles: int) -> tuple[Grid, ...]:
    """The grids of at most `tiles` tiles."""
    return tuple(g for g in grids if g[0] * g[1] <= tiles)


def bucket(tiles: int, most: int) -> int:
    """Slots for `tiles` tiles: the least of BUCKETS, but no more than `most`, that the model's
    largest grid has. Raises UserError for more tiles than that."""
    if tiles > most:
        raise UserError(f"{tiles} tiles: the model's largest grid has {most}")
    return min([b for b in BUCKETS if tiles <= b < most], default=most)


def select(width: int, height: int, grids: Sequence[Grid], tile: int) -> int:
    """Index of the grid for a picture: the one that keeps most of its pixels, then the one that
    leaves the least of its canvas unused (upstream's select_best_resolution, truncating as it).

    Raises UserError for a picture without pixels, or no grids.
    """
    if width < 1 or height < 1 or not grids:
        raise UserError(f"no grid for a picture of {width}x{height} px among {len(grids)} grids")
    best, most, least = 0, 0, math.inf
    for i, (columns, rows) in enumerate(grids):
        canvas = columns * tile, rows * tile
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = canvas[0] * canvas[1] - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = i, kept, wasted
    return best


def squash(image: np.ndarray, width: int, height: int | None = None) -> np.ndarray:
    """uint8 [h,w,3] squeezed to `width` x `height` px (default: a square) by Pillow's bicubic."""
    size = width, height or width
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def cut(canvas: np.ndarray, tile: int) -> np.ndarray:
    """uint8 [rows*tile, columns*tile, 3] -> [n,tile,tile,3], row by row."""
    rows, columns = (n // tile for n in canvas.shape[:2])
    tiles = canvas.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(-1, tile, tile, 3))


def prepare(
    image: np.ndarray, low: int, grids: Sequence[Grid], tile: int
) -> dict[str, np.ndarray | int]:
    """What a model sees of uint8 [h,w,3]: "low" uint8 [low,low,3], the whole picture; and where
    there are grids, "tiles" uint8 [n,tile,tile,3] and "grid", the index of the one chosen."""
    out: dict[str, np.ndarray | int] = {"low": squash(image, low)}
    if grids:
        index = select(image.shape[1], image.shape[0], grids, tile)
        columns, rows = grids[index]
        canvas = squash(image, columns * tile, rows * tile)
        out |= {"tiles": cut(canvas, tile), "grid": index}
    return out


def window(width: int, height: int, grid: Grid, side: int) -> tuple[int, int, int, int]:
    """(top, left, rows, columns): the cells of the merged map, `side` a tile, that merge
    "spatial_unpad" keeps of a picture of `width` x `height` px.

    They are those that a picture of its aspect would cover in the middle of the canvas; as the
    canvas is filled instead, real content is cut (spec 7.1).
    """
    columns, rows = grid[0] * side, grid[1] * side
    if width / height > columns / rows:
        margin = (rows - int(height * (columns / width))) // 2
        return margin, 0, rows - 2 * margin, columns
    margin = (columns - int(width * (rows / height))) // 2
    return 0, margin, rows, columns - 2 * margin


def merged_order(grids: Sequence[Grid], side: int) -> np.ndarray:
    """int32 [G, M]: where each cell of the merged map, row by row, lies in the tiles put one after
    the other, `side` x `side` cells each. Shorter maps are followed by zeros."""
    most = max(columns * rows for columns, rows in grids)
    out = np.zeros((len(grids), most * side**2), np.int32)
    for index, (columns, rows) in zip(out, grids, strict=True):
        row, column = np.divmod(np.arange(columns * rows * side**2), columns * side)
        index[: len(row)] = tile_cell(row, column, columns, side)
    return out


def tile_cell(row, column, columns, side: int):
    """Where the merged map's cell (row, column) lies in the tiles, `columns` of them across;
    integers, NumPy arrays or traced ones alike."""
    tile = row // side * columns + column // side
    return (tile * side + row % side) * side + column % side
