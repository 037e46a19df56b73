"""COCO's run-length encoding of masks."""

from typing import Any

import numpy as np

from mg_jax.errors import UserError


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO run-length encoding (uncompressed counts, column-major) of a bool array [H, W]."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat.size and flat[0]:
        counts.insert(0, 0)  # counts start with a run of zeros
    return {"size": [int(n) for n in mask.shape], "counts": counts}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Bool array [H, W] of a COCO RLE dict, compressed (str, bytes) or not (list of int).

    Raises UserError for missing keys or counts that do not fill the size.
    """
    height, width, runs = rle_runs(rle)
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    return flat.reshape((height, width), order="F")


def rle_runs(rle: dict[str, Any]) -> tuple[int, int, np.ndarray]:
    """(height, width, lengths of the runs) of a COCO RLE dict: zeros, ones, zeros, ... down the
    columns. Raises UserError as `decode_rle` does."""
    try:
        height, width = (int(n) for n in rle["size"])
        counts = rle["counts"]
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise UserError(
            'mask is no COCO RLE: expected {"size": [height, width], "counts": ...}'
        ) from e
    if isinstance(counts, str | bytes):
        counts = _uncompress(
            counts if isinstance(counts, bytes) else counts.encode(errors="surrogatepass")
        )
    try:
        runs = np.asarray(counts, np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as e:
        raise UserError("mask RLE counts are neither numbers nor a COCO string") from e
    if height <= 0 or width <= 0 or (runs < 0).any() or runs.sum() != height * width:
        raise UserError(
            f"mask RLE counts sum to {int(runs.sum())}, but its size {[height, width]} "
            f"has {height * width} pixels"
        )
    return height, width, runs


def _uncompress(text: bytes) -> np.ndarray:
    """Run lengths of COCO's compressed counts: 5 bits a character, low first, sign-extended,
    each run from the fourth on stored as the difference to the one two before."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    wrong = np.flatnonzero((codes < 0) | (codes >= 64))
    if wrong.size:
        raise UserError(
            f"mask RLE counts hold the character {chr(text[wrong[0]])!r}: not COCO's coding"
        )
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends + 1])
    if starts[-1] != codes.size:
        raise UserError("mask RLE counts are cut off in the middle of a number")
    lengths = np.diff(starts)
    if (lengths > 12).any():
        raise UserError("mask RLE counts hold a number of more than 60 bits")
    if not lengths.size:
        return lengths
    place = np.arange(codes.size) - np.repeat(starts[:-1], lengths)
    counts = np.add.reduceat((codes & 31) << 5 * place, starts[:-1])
    counts -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    counts[1::2], counts[2::2] = np.cumsum(counts[1::2]), np.cumsum(counts[2::2])
    return counts
