"""What a Ferret is: sizes, and the choices in which v1, Ferret-UI and Ferret-v2 differ."""

import dataclasses
from typing import Any, Literal

from mg_jax.attention import RopeScaling
from mg_jax.errors import UserError
from mg_jax.lm import LMConfig
from mg_jax.models.pointing import check_teaching
from mg_jax.models.sampler import SamplerConfig
from mg_jax.vision.anyres import BUCKETS, GRIDS_UI, GRIDS_V2, Grid
from mg_jax.vision.vit import ViTConfig

CLIP_L = ViTConfig(kind="clip", activation="quick_gelu", image_size=336, eps=1e-5)
DINOV2_L = ViTConfig()
# Vicuna's 4,096 positions slowed down by an eighth: six tiles then leave 576 for text
VICUNA = LMConfig(max_positions=4608, rope_scaling=RopeScaling("linear", 1.125))
FEWER = "set lm.rope_scaling and lm.max_positions, tile_pool=2, or grids of fewer tiles"


@dataclasses.dataclass(frozen=True)
class FerretConfig:
    """Defaults: Ferret-v2-7B. Its paper leaves choices open; where an equation of it says something
    that is the default, and where it is silent, what the same authors' Ferret-UI code does.

    `low` sees the whole picture at `low_size` px; at another size than its own its positions are
    interpolated, which with `grids` () is the paper's direct upsampling. `tile` sees the tiles
    of `tile_size` px; None: `low` does, as in Ferret-UI. `grids`: (columns, rows) to choose from.
    `low_layer`, `tile_layer`: hidden state that is read; None is the last one, normed, which
    DINOv2's own heads were trained on (the paper does not say). Without a `tile`, low_layer's.
    `tile_pixels`: whose mean and deviation tiles are normalised with, those of the encoder that
    sees them ("own"), CLIP's or ImageNet's (DINOv2's); Ferret-UI's code gives all crops CLIP's.
    `tile_projector`: one of its own, begun with the global one's values, or that one.
    `region_map`: what regions are read from, both maps' sum or the whole picture's alone.
    `fusion`: the sum is of "projected" maps (paper's equations 2 to 4) or of "raw" ones
    (Ferret-UI), which is 1,024 wide and loads v1's sampler. `upsampling` of the global map:
    unstated; Ferret-UI's is "nearest".
    `transpose_sampling`: read the map mirrored at its diagonal, as all published weights expect
    (spec 4.2); not for training from scratch.
    `merge`: tokens of the merged map row by row, or cut to the picture's aspect and each row ended
    by a learned vector. `image_order`: whose tokens come first in the prompt, the whole picture's
    (Ferret-UI) or the tiles' (the paper does not say). `tile_pool`: side of the squares of a tile's
    tokens that are averaged into one; regions read the map before.
    `regions`: how they become vectors: the sampler, v1's mean of points, or not at all.
    `region_token`: id of `<region_fea>` where it is a row of the vocabulary (published weights).
    `unit_vectors`: visual vectors are brought to unit mean square before they join the text.
    `text_positions`: least that the largest picture must leave of lm.max_positions.
    `tile_places`: a learned vector for every tile of every grid joins the features of its tokens.
    No version has it: a pretrained language model tells tiles apart by their order.
    `label_words`: size of a vocabulary of label words that stage "labels" has; there the tokens of
    both encoders and the vectors of regions learn to name and to place things by one linear map,
    which stands in for pretraining where there is none.
    `pointing_weight`: share of a loss that teaches the first heads of layer `pointing_layer` of the
    language model to look at what an answer is about, as a pretrained one would.
    """

    low: ViTConfig = CLIP_L
    tile: ViTConfig | None = DINOV2_L
    lm: LMConfig = VICUNA
    low_size: int = 336
    tile_size: int = 336
    grids: tuple[Grid, ...] = GRIDS_V2
    low_layer: int = -2
    tile_layer: int | None = None
    tile_pixels: Literal["own", "clip", "imagenet"] = "own"
    projector: Literal["linear", "mlp"] = "mlp"
    tile_projector: Literal["own", "shared"] = "own"
    region_map: Literal["fused", "global"] = "fused"
    fusion: Literal["projected", "raw"] = "projected"
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    transpose_sampling: bool = False
    merge: Literal["spatial", "spatial_unpad"] = "spatial"
    image_order: Literal["whole_first", "tiles_first"] = "whole_first"
    tile_pool: int = 1
    regions: Literal["sampler", "mean", "none"] = "sampler"
    sampler: SamplerConfig = SamplerConfig()
    region_token: int | None = None
    unit_vectors: bool = False
    text_positions: int = 512
    tile_places: bool = False
    label_words: int = 0
    pointing_weight: float = 0.0
    pointing_layer: int = 2

    @property
    def low_side(self) -> int:
        """Cells a side of the whole picture's map."""
        return self.low_size // self.low.patch

    @property
    def tile_side(self) -> int:
        """Cells a side of a tile's map."""
        return self.tile_size // (self.tile or self.low).patch

    @property
    def token_side(self) -> int:
        """Tokens a side of a tile."""
        return self.tile_side // self.tile_pool

    @property
    def max_tiles(self) -> int:
        """Tiles of the largest grid; 0 without grids."""
        return max((columns * rows for columns, rows in self.grids), default=0)

    @property
    def tile_mean_std(self) -> str:
        """Whose mean and deviation tiles are normalised with: "clip" or "imagenet" (DINOv2's)."""
        if self.tile_pixels != "own":
            return self.tile_pixels
        return "imagenet" if self.tile and self.tile.kind == "dinov2" else "clip"

    @property
    def map_width(self) -> int:
        """Channels of the map that regions are read from."""
        return self.lm.width if self.fusion == "projected" else self.low.width

    def image_tokens(
        self, grid: Grid | None = None, window: tuple[int, int, int, int] | None = None
    ) -> int:
        """Prompt positions of a picture cut by `grid`; None: of the whole picture alone.

        `window`, of merge "spatial_unpad": what anyres.window gives for it, by default all of it.
        """
        tokens = self.low_side**2
        if grid is None:
            return tokens
        columns, rows = grid[0] * self.token_side, grid[1] * self.token_side
        if self.merge == "spatial":
            return tokens + columns * rows
        if window is not None:
            rows, columns = window[2:]
        return tokens + rows * (columns + 1)

    def whole_at(self, tokens: int) -> int:
        """Before which visual token of a picture of so many those of the whole one begin."""
        return 0 if self.image_order == "whole_first" else tokens - self.low_side**2

    def tiles_at(self) -> int:
        """The same of its tiles."""
        return self.low_side**2 if self.image_order == "whole_first" else 0

    @property
    def largest(self) -> int:
        """Prompt positions of the picture that takes most."""
        return self.most_tokens(self.max_tiles)

    def most_tokens(self, slots: int) -> int:
        """Prompt positions of the picture that takes most of those of up to `slots` tiles; with no
        such grid, of the whole picture alone."""
        grids = [g for g in self.grids if g[0] * g[1] <= slots]
        return max(map(self.image_tokens, grids), default=self.image_tokens())

    def id(self, name: str) -> int:
        """Id of a placeholder, "image" or "region"; neither is ever embedded."""
        if name == "region" and self.region_token is not None:
            return self.region_token
        return self.lm.vocab + ("image", "region").index(name)


# Fields of FerretConfig in which the published versions differ; the language model aside
VERSIONS: dict[str, dict[str, Any]] = {
    "v1": dict(
        tile=None, grids=(), projector="linear", tile_projector="shared", fusion="raw",
        transpose_sampling=True,
    ),
    "ui": dict(
        tile=None, grids=GRIDS_UI, tile_projector="shared", fusion="raw", transpose_sampling=True
    ),
    "v2": {},
}  # fmt: skip
# Between encoders and language model: one pattern, for no config has all of them
OWN = ("(projector|tile_projector|tile_places|sampler|region_adapter|newline)(/.*)?",)
# What each stage trains (spec 8); v1, which has the last alone, leaves its encoder frozen
TRAINABLE = {"caption": ("projector/.*",), "dense": OWN, "instruction": (".*",)}


def version(name: str) -> dict[str, Any]:
    """Fields of FerretConfig for Ferret "v1", "ui" (Ferret-UI) or "v2", but its language model.

    v1 and ui read maps as their published weights expect: transpose_sampling, which configs of
    runs from scratch leave out. Raises UserError for another name.
    """
    if name not in VERSIONS:
        raise UserError(f"version={name!r}: choose one of {', '.join(VERSIONS)}")
    return dict(VERSIONS[name])


def check(cfg: FerretConfig) -> None:
    """Raises UserError when the values of a config do not fit each other, naming the key."""
    where, tower = "config.model", cfg.tile or cfg.low
    for name, size, vit in (
        ("low_size", cfg.low_size, cfg.low), ("tile_size", cfg.tile_size, tower),
    ):  # fmt: skip
        if size < 1 or size % vit.patch:
            raise UserError(f"{where}.{name}: {size} must be a multiple of the patch, {vit.patch}")
    if cfg.text_positions < 0:
        raise UserError(f"{where}.text_positions: {cfg.text_positions}; give a count from 0 up")
    if cfg.tile_pool < 1 or cfg.tile_side % cfg.tile_pool:
        raise UserError(
            f"{where}.tile_pool: {cfg.tile_pool} does not divide the {cfg.tile_side} cells a side "
            "of a tile"
        )
    for grid in cfg.grids:
        if min(grid) < 1:
            raise UserError(f"{where}.grids: {list(grid)}; a grid is [columns, rows] from 1 up")
        if grid[0] * grid[1] > BUCKETS[-1]:
            raise UserError(
                f"{where}.grids: {list(grid)} has {grid[0] * grid[1]} tiles; a batch has room for "
                f"{BUCKETS[-1]} a picture"
            )
    for name, layer, vit in (
        ("low_layer", cfg.low_layer, cfg.low), ("tile_layer", cfg.tile_layer, tower),
    ):  # fmt: skip
        if layer is not None and not -vit.layers - 1 <= layer <= vit.layers:
            raise UserError(
                f"{where}.{name}: {layer} is not one of the {vit.layers + 1} hidden states"
            )
    fused = bool(cfg.grids) and cfg.region_map == "fused" and cfg.regions != "none"
    if cfg.tile and cfg.tile.width != cfg.low.width:
        for name, value in (("fusion", "raw"), ("tile_projector", "shared")):
            if getattr(cfg, name) == value and (fused or name == "tile_projector"):
                raise UserError(
                    f"{where}.{name}: {value!r} needs encoders of one width, but low.width="
                    f"{cfg.low.width} and tile.width={cfg.tile.width}"
                )
    token = cfg.region_token
    if cfg.regions != "none" and token is not None and not 0 <= token < cfg.lm.vocab:
        raise UserError(
            f"{where}.region_token: {token} is no row of the vocabulary: lm.vocab={cfg.lm.vocab}, "
            "counted from 0; null gives <region_fea> no row"
        )
    check_sampler(cfg.sampler, f"{where}.sampler")
    check_teaching(cfg)
    if cfg.sampler.residual and cfg.map_width != cfg.lm.width:
        raise UserError(
            f"{where}.sampler.residual: points of {cfg.map_width} channels are no vectors of "
            f"lm.width={cfg.lm.width}: set fusion='projected'"
        )
    room = cfg.lm.max_positions - cfg.largest
    if room < cfg.text_positions:
        raise UserError(
            f"{where}: a picture of {cfg.max_tiles} tiles is {cfg.largest:,} tokens, which leaves "
            f"{room:,} of lm.max_positions={cfg.lm.max_positions:,} for text, less than "
            f"text_positions={cfg.text_positions}: {FEWER}"
        )


def check_sampler(cfg: SamplerConfig, where: str) -> None:
    """Raises UserError when a stage of the sampler needs more points than it is given."""
    if not cfg.anchors or len(cfg.anchors) != len(cfg.neighbours):
        raise UserError(
            f"{where}: {len(cfg.anchors)} anchors and {len(cfg.neighbours)} neighbours; give both "
            "for every stage"
        )
    sizes = (cfg.points, *cfg.anchors)
    for points, anchors, near in zip(sizes, sizes[1:], cfg.neighbours, strict=False):
        if not 1 <= anchors <= points or not 1 <= near <= points:
            raise UserError(
                f"{where}: {anchors} anchors of {near} neighbours each among {points} points"
            )
