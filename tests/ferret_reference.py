"""Ferret's sampler and its map, literally as the spec says, in NumPy; one region at a time."""

import numpy as np


def grid_sample(features, at):
    """Bilinear values of [Y,X,C] at shares (row, column) of it; zero outside. [P,C]."""
    rows, columns, channels = features.shape
    out = np.zeros((len(at), channels), np.float64)
    for p, (y, x) in enumerate(np.asarray(at, np.float64) * (rows - 1, columns - 1)):
        for i in (int(np.floor(y)), int(np.floor(y)) + 1):
            for j in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= i < rows and 0 <= j < columns:
                    out[p] += (1 - abs(y - i)) * (1 - abs(x - j)) * features[i, j]
    return out


def farthest(points, count, start):
    """Indexes of `count` points of [P,2], greedily, in float32 as upstream."""
    distance, chosen = np.full(len(points), 1e10, np.float32), []
    for _ in range(count):
        chosen.append(start)
        distance = np.minimum(distance, np.square(points - points[start]).sum(-1))
        start = int(distance.argmax())
    return np.array(chosen)


def nearest(points, anchors, count):
    """Indexes of the `count` points of [P,2] nearest to each of [n,2]; ties by index."""
    apart = np.square(anchors[:, None] - points[None]).sum(-1)
    return np.argsort(apart, 1, kind="stable")[:, :count]


def upsample(features, rows, columns, rule):
    """[y,x,C] -> [rows,columns,C] as PyTorch's interpolate by size, corners not aligned."""
    out = features.astype(np.float64)
    for axis, size in enumerate((rows, columns)):
        source = out.shape[axis]
        if rule == "nearest":
            out = np.take(out, [i * source // size for i in range(size)], axis)
            continue
        at = np.maximum((np.arange(size) + 0.5) * source / size - 0.5, 0)
        low = np.minimum(at.astype(int), source - 1)
        share = (at - low).reshape(-1, *(1,) * (2 - axis))
        high = np.minimum(low + 1, source - 1)
        out = np.take(out, low, axis) * (1 - share) + np.take(out, high, axis) * share
    return out


def merged(tiles, grid):
    """Tiles [n,s,s,C], row by row of a grid (columns, rows) -> [rows*s, columns*s, C]."""
    columns, rows = grid
    side = tiles.shape[1]
    tiles = tiles[: columns * rows].reshape(rows, columns, side, side, -1)
    return tiles.swapaxes(1, 2).reshape(rows * side, columns * side, -1)


def sample_region(params, features, points, indexes, pooler):
    """(vector [D], of every stage (points, features)) of features [P,C] at points [P,2].

    `params` nested as in our trees; `indexes`: (fps [n], knn [n,k]) of every stage.
    """
    seen = []
    for i, (fps, knn) in enumerate(indexes):
        p = params[f"stage{i}"]
        both = np.concatenate([features, points], -1)
        anchors = np.broadcast_to(both[fps][:, None], (*knn.shape, both.shape[-1]))
        diff = (both[knn] - anchors) @ p["diff"]["kernel"] + p["diff"]["bias"]
        x = np.concatenate([diff, anchors], -1) @ p["mix"]["kernel"] + p["mix"]["bias"]
        x = np.maximum(x, 0)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        x = x * p["norm"]["scale"] + p["norm"]["bias"]
        features, points = getattr(x, pooler)(1), points[fps]
        seen.append((points, features))
    flat = features.reshape(-1) @ params["flatten"]["kernel"] + params["flatten"]["bias"]
    return flat @ params["output"]["kernel"] + params["output"]["bias"], seen
