"""Region proposer: a class-agnostic two-stage deformable DETR on hidden states of an encoder.

Groma spec 2.3. Everything between is returned by name, which is how recordings are compared.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen import initializers as init

from mg_jax.models.detr_layers import (
    NORM_EPS,
    BoxHeads,
    DecoderBlock,
    DetrConfig,
    EncoderBlock,
    InputLevel,
    Shapes,
    Stacked,
    anchor_logits,
    box_change,
    grid_points,
    inverse_sigmoid,
    xavier,
)
from mg_jax.nn import LayerNorm, Linear, dropout, over_batch, param, stack
from mg_jax.ops.sine import sine, sine_grid
from mg_jax.sharding import shard

__all__ = ["DetrConfig", "Proposer"]

CLASS_BIAS = -math.log(99)  # an objectness of 0.01 before training


class Proposer(nn.Module):
    """Parameters: input{i}, level_embed, encoder, enc_output, enc_norm, pos_trans, pos_norm,
    query_embed, class_enc, class_coco, class_sa1b (when `two_heads`), boxes, decoder."""

    cfg: DetrConfig

    @nn.compact
    def __call__(
        self,
        states: jax.Array | Sequence[jax.Array],
        grid: tuple[int, int] | None = None,
    ) -> dict[str, jax.Array]:
        """Boxes and scores from hidden states [K, B, 1+P, C] (CLS first; the last four count).

        `grid` is (rows, columns) of the patches, by default a square. Dropout is active only
        with an rng "dropout". Returns, for levels i, S tokens of all levels, L layers, Q queries:
          mean_feature [B,Y,X,C] ("mean" only), src{i} [B,y,x,d], pos_embed{i} [1,y,x,d] (without
          the level embedding), encoder_last_hidden [B,S,d], enc_class_logits [B,S,1],
          enc_coord_logits [B,S,4] (+inf at unusable border tokens), topk_proposal_idx [B,Q]
          (by score, defines the order of queries), init_reference_points [B,Q,4],
          dec_hidden [B,L,Q,d], dec_reference_points [B,L,Q,4], logits_coco and logits_sa1b
          [B,L,Q,1], boxes [B,L,Q,4], scores [B,Q]: sigmoid(coco)^0.4 * sigmoid(sa1b)^0.6 of the
          last layer. Boxes are (cx, cy, w, h) in [0, 1].
        Raises ValueError when states, grid, width or queries do not fit.
        """
        c = self.cfg
        dtype = jnp.dtype(c.dtype)
        maps, aux = self._levels(states, grid)
        shapes = tuple((x.shape[1], x.shape[2]) for x in maps)
        memory = aux["encoder_last_hidden"] = self._encode(maps, shapes, aux)
        heads = BoxHeads(c.decoder_layers + 1, c.width, c.box_hidden, name="boxes")()
        start = self._propose(memory, shapes, heads, aux)

        pos = Linear(
            (2 * c.width, 2 * c.width), ("embed", None), dtype=dtype, kernel_init=xavier(1),
            name="pos_trans",
        )(sine(start, c.width // 2))  # fmt: skip
        pos = LayerNorm(2 * c.width, NORM_EPS, dtype, name="pos_norm")(pos)[..., : c.width]
        content = param(self, "query_embed", (c.queries, c.width), (None, "embed"), xavier(1))
        x = jnp.broadcast_to(content.astype(dtype)[None], pos.shape)
        decoder = stack(DecoderBlock, c.decoder_layers, 2, c.remat)(c, shapes, name="decoder")
        each = jax.tree.map(lambda p: p[:-1], heads)
        _, (hidden, change, moved) = decoder((x, start), each, pos, memory)

        boxes = moved
        if c.refinement != "iterative":  # gradients reach the change of the layer before
            before = jnp.concatenate([start[None], moved[:-1]])
            boxes = jax.nn.sigmoid(change + inverse_sigmoid(before))
        coco = self._classes("class_coco", hidden)
        sa1b = self._classes("class_sa1b", hidden) if c.two_heads else coco
        score = [jax.nn.log_sigmoid(x[-1, ..., 0]) for x in (coco, sa1b)]
        aux["scores"] = jnp.exp(0.4 * score[0] + 0.6 * score[1])
        found = dict(
            dec_hidden=hidden, dec_reference_points=moved, boxes=boxes, logits_coco=coco,
            logits_sa1b=sa1b,
        )  # fmt: skip
        return aux | {name: x.swapaxes(0, 1) for name, x in found.items()}

    def _levels(self, states, grid) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        """Feature maps of all levels, finest first, and their names in the output."""
        c = self.cfg
        if not 1 <= c.levels <= 4:
            raise ValueError(f"proposer.levels={c.levels}: there are 1 to 4 feature levels")
        if c.width % 4:
            raise ValueError(f"proposer.width={c.width} is no multiple of 4")
        patches = states[-1].shape[1] - 1
        rows, cols = grid or (math.isqrt(patches),) * 2
        if rows * cols != patches:
            raise ValueError(f"{patches} patches do not fill a {rows}x{cols} grid: pass grid=")

        def as_map(x):
            return x[:, 1:].reshape(x.shape[0], rows, cols, x.shape[-1])

        aux = {}
        if c.levels_from == "mean":
            mean = sum(states[-k] for k in range(1, 5)) / 4
            aux["mean_feature"] = as_map(mean)
            sources = [aux["mean_feature"]] * c.levels
        else:
            sources = [as_map(states[i - c.levels]) for i in range(c.levels)]
        factors = (1.0,) if c.levels == 1 else (0.5, 1.0, 2.0, 4.0)[: c.levels][::-1]
        maps = []
        for i, (source, factor) in enumerate(zip(sources, factors, strict=True)):
            x = InputLevel(c.width, factor, jnp.dtype(c.dtype), name=f"input{i}")(source)
            maps.append(x)
            aux[f"src{i}"] = x
            aux[f"pos_embed{i}"] = sine_grid(x.shape[1], x.shape[2], c.width)[None]
        return maps, aux

    def _encode(self, maps, shapes: Shapes, aux) -> jax.Array:
        c = self.cfg
        level = param(
            self, "level_embed", (c.levels, c.width), ("levels", "embed"), init.normal(1.0)
        )
        flat = [x.reshape(x.shape[0], -1, c.width) for x in maps]
        pos = [
            aux[f"pos_embed{i}"].reshape(1, -1, c.width) + level[i][None, None]
            for i in range(c.levels)
        ]
        x = dropout(self, jnp.concatenate(flat, 1), c.dropout)
        x = shard(x, "batch", "seq", "act_embed")
        pos = jnp.concatenate(pos, 1).astype(x.dtype)
        reference = jnp.asarray(grid_points(shapes))[None]
        encoder = stack(EncoderBlock, c.encoder_layers, 2, c.remat)(c, shapes, name="encoder")
        return encoder(x, None, pos, reference)[0]

    def _propose(self, memory, shapes: Shapes, heads, aux) -> jax.Array:
        """Score every token's box, keep the best; adds to `aux`, returns [B,Q,4], detached."""
        c = self.cfg
        tokens = memory.shape[1]
        if c.queries > tokens:
            raise ValueError(f"proposer.queries={c.queries} of only {tokens} tokens: lower it")
        dtype = jnp.dtype(c.dtype)
        anchors, usable = anchor_logits(shapes)
        x = jnp.where(usable[None, :, None], memory, 0)
        x = Linear(
            (c.width, c.width), ("embed", None), dtype=dtype, kernel_init=xavier(1),
            name="enc_output",
        )(x)  # fmt: skip
        x = LayerNorm(c.width, NORM_EPS, dtype, name="enc_norm")(x)
        scores = Linear(
            (c.width, 1), ("embed", None), kernel_init=xavier(1),
            bias_init=init.constant(CLASS_BIAS), name="class_enc",
        )(x)  # fmt: skip
        logits = box_change(jax.tree.map(lambda p: p[-1], heads), x) + anchors[None]
        ranked = jax.lax.stop_gradient(scores[..., 0])
        best = over_batch(lambda x: jax.lax.top_k(x, c.queries)[1], (ranked,), (0,), 0)
        start = jnp.take_along_axis(jax.lax.stop_gradient(logits), best[..., None], 1)
        start = jax.nn.sigmoid(start)
        aux |= dict(
            enc_class_logits=scores, enc_coord_logits=logits, topk_proposal_idx=best,
            init_reference_points=start,
        )  # fmt: skip
        return start

    def _classes(self, name: str, hidden) -> jax.Array:
        c = self.cfg
        head = Stacked(
            (c.decoder_layers, c.width, 1), ("embed", None), xavier(1),
            init.constant(CLASS_BIAS), name=name,
        )()  # fmt: skip
        logits = jnp.einsum("lbqd,ldo->lbqo", hidden.astype(jnp.float32), head["kernel"])
        return logits + head["bias"][:, None, None]
