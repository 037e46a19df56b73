"""What Ferret's host side makes of the pictures and regions of a recorded instance: pixels, masks,
and the points that were drawn of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mg_jax.data.regions import rasterise
from mg_jax.data.samples.ferret import Picture, normalised
from mg_jax.data.sources.outlines import outline
from mg_jax.disk import read_json
from mg_jax.example import Region

INPUTS = "inputs/"  # before the names of arrays of inputs.npz that are compared too
META = "meta.json"

Arrays = Mapping[str, np.ndarray]


def required(folder: Path, held: Sequence[str]) -> list[str]:
    """Names, of those in inputs.npz, of what is made of the pictures, and of the regions where
    meta.json describes them."""
    count = sum(name.endswith("_uint8") for name in held)
    names = ["pixel_values", *(f"pixel_values_image{i}" for i in range(count))]
    made = [*names, "best_resolution_wh"] if count else []
    if (folder / META).exists():
        made += [f"region{r}_mask_wh" for r in range(len(held))]
    return [INPUTS + name for name in made if name in held]


def pictures(cfg: Any, given: Arrays) -> dict[str, Any]:
    """Pixels of every picture, and the canvas of its tiles."""
    count = sum(name.endswith("_uint8") for name in given)
    crops, canvases = [], []
    for i in range(count):
        whole, tiles, grid = seen(cfg, given[f"image{i}_uint8"])
        crops.append(np.concatenate([whole, tiles]) if cfg.grids else whole)
        canvases.append([n * cfg.tile_size for n in grid])
    if not cfg.grids:
        return {f"{INPUTS}pixel_values": np.concatenate(crops)}
    out: dict[str, Any] = {f"{INPUTS}pixel_values_image{i}": x for i, x in enumerate(crops)}
    return out | {f"{INPUTS}best_resolution_wh": np.array(canvases)}


def seen(cfg: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """([1,3,S,S], tiles [N,3,s,s], grid) of uint8 [h,w,3], as a model is given it; without grids
    no tiles."""
    height, width = image.shape[:2]
    picture = Picture(width, height, cfg, bool(cfg.grids))
    pixels = {k: v for k, v in picture.arrays(image, cfg).items() if k in ("low", "tiles")}
    found = {k: np.moveaxis(v, -1, -3) for k, v in normalised(pixels, cfg).items()}
    grid = cfg.grids[picture.grid] if cfg.grids else (0, 0)
    return found["low"][None], found.get("tiles", np.empty(0)), grid


def masks(folder: Path, given: Arrays) -> list[np.ndarray]:
    """uint8 [W,H] of every region: ours of what meta.json describes, else as recorded."""
    owners = given["region_image_index"]
    if not (folder / META).exists():
        return [given[f"region{r}_mask_wh"] for r in range(len(owners))]
    rows = read_json(folder / META)["regions"]
    sizes = given["image_sizes_wh"].tolist()
    return [mask(row, *sizes[i]) for row, i in zip(rows, owners, strict=True)]


def mask(row: Mapping[str, Any], width: int, height: int) -> np.ndarray:
    """uint8 [W,H] of a described region: `kind`, `coor`, `box` and `polygon` in pixels."""
    x0, y0, x1, y1 = row["box"]
    place = x0 / width, y0 / height, x1 / width, y1 / height
    rle = outline([row["polygon"]], width, height) if row.get("polygon") else None
    if row["kind"] == "point":
        x, y = row["coor"]
        region = Region("point", place, points=((x / width, y / height),), mask=rle)
    else:
        outlined = row["kind"] != "box" and rle is not None
        region = Region("mask", place, mask=rle) if outlined else Region("box", place)
    return rasterise(region, width, height).whole().astype(np.uint8)


def drawn(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Recorded points [n,2] as we write the pixels that they are; NaN outside of a mask [W,H]."""
    pixels = np.rint(points * np.array(mask.shape)).astype(int)
    within = ((pixels >= 0) & (pixels < mask.shape)).all(1)
    x, y = np.where(within[:, None], pixels, 0).T
    within &= mask[x, y] > 0
    ours = pixels.astype(np.float32) / np.array(mask.shape, np.float32)
    return np.where(within[:, None], ours, np.float32(np.nan))
