"""From patch features to visual tokens: MLP, global resampler, spatially constrained resampler."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .towers import Weights, attention, linear, norm

EPS = 1e-6
# Pooled keys per window as (width, height); the first one nearest in log aspect wins.
WINDOWS = [(4, 2), (3, 2), (4, 3), (3, 3), (2, 4), (2, 3), (3, 4)]


def mlp(w: Weights, first: str, second: str, x: Tensor) -> Tensor:
    """LLaVA-1.5's `mlp2x_gelu`, with the exact (erf) GELU."""
    return linear(w, second, F.gelu(linear(w, first, x)))


def sincos(width: int, rows: int, columns: int) -> Tensor:
    """[rows*columns, width]: the first half encodes the column, the second the row (numpy f32)."""
    omega = np.arange(width // 4, dtype=np.float32) / np.float32(width / 4.0)
    omega = 1.0 / 10000 ** omega
    def axis(positions: np.ndarray) -> np.ndarray:
        angles = positions.astype(np.float32)[:, None] * omega[None]
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    x = np.broadcast_to(axis(np.arange(columns))[None], (rows, columns, width // 2))
    y = np.broadcast_to(axis(np.arange(rows))[:, None], (rows, columns, width // 2))
    return torch.from_numpy(np.concatenate([x, y], axis=2).reshape(rows * columns, width))


def resized_table(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A stored [g*g, E] table as [h*w, E], bicubic a=-0.75 without antialiasing."""
    side = math.isqrt(table.shape[0])
    image = table.T.reshape(1, -1, side, side)
    return F.interpolate(image, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T


def attend(w: Weights, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's MultiheadAttention with packed input weights; a head has 128 channels."""
    weights, biases = w["attn.in_proj_weight"].chunk(3), w["attn.in_proj_bias"].chunk(3)
    q, k, v = (F.linear(x, a, b) for x, a, b in zip((q, k, v), weights, biases))
    return linear(w, "attn.out_proj", attention(q, k, v, q.shape[-1] // 128))


def keys_and_values(w: Weights, features: Tensor) -> Tensor:
    if "kv_proj.weight" in w:  # absent where the widths are equal
        features = linear(w, "kv_proj", features)
    return norm(w, "ln_kv", features, EPS)


def finish(w: Weights, x: Tensor) -> Tensor:
    return norm(w, "ln_post", x, EPS) @ w["proj"]  # not transposed


def minicpm_resampler(w: Weights, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """MiniCPM-V 2.5 and later: no position on the queries, fresh sin-cos on the keys, none on values."""
    v = keys_and_values(w, features)
    k = v + sincos(v.shape[1], *grid).to(v)
    return finish(w, attend(w, norm(w, "ln_q", w["query"], EPS), k, v))


def global_resampler(w: Weights, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """The 64-query LLaVA-UHD: the stored table on the queries, interpolated on the keys."""
    v = keys_and_values(w, features)
    q = norm(w, "ln_q", w["query"], EPS) + w["pos_embed"]
    return finish(w, attend(w, q, v + resized_table(w["pos_embed"], grid), v))


def spatial_resampler(w: Weights, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """LLaVA-UHD with 144 queries: each sees only its own window, pooled by RoIAlign."""
    v = keys_and_values(w, features)
    k = v + resized_table(w["pos_embed"], grid)
    q = norm(w, "ln_q", w["query"], EPS) + w["pos_embed"]
    side = math.isqrt(q.shape[0])
    rows, columns = grid
    boxes = window_boxes(rows, columns, side)
    target = math.log(columns / rows)
    pooled = min(WINDOWS, key=lambda size: abs(target - math.log(size[0] / size[1])))
    k, v = (roi_align(x.T.reshape(-1, rows, columns), boxes, pooled) for x in (k, v))
    return finish(w, attend(w, q[:, None], k, v)[:, 0])


def window_boxes(rows: int, columns: int, side: int) -> Tensor:
    """side*side boxes (x0, y0, x1, y1), row-major, computed in f64 and rounded to f32."""
    height = math.sqrt(rows * columns / (side * side) / (columns / rows))
    width = height * (columns / rows)
    return torch.tensor([[j * width, i * height, j * width + width, i * height + height]
                         for i in range(side) for j in range(side)], dtype=torch.float32)


def bilinear_rows(start: Tensor, end: Tensor, bins: int, length: int) -> Tensor:
    """[bins, length]: the weights with which RoIAlign pools one axis of a box.

    As torchvision with aligned=False and sampling_ratio=-1: no half-pixel shift,
    at least one pixel wide, ceil(extent / bins) samples per bin.
    """
    extent = torch.clamp(end - start, min=1.0)
    samples = int(torch.ceil(extent / bins))
    size = extent / bins
    weights = torch.zeros(bins, length)
    for b in range(bins):
        for s in range(samples):
            at = float(start + b * size + torch.tensor(s + 0.5) * size / samples)
            if at < -1.0 or at > length:
                continue
            at = max(at, 0.0)
            low = min(int(at), length - 1)
            if low >= length - 1:
                weights[b, low] += 1.0
            else:
                weights[b, low] += 1.0 - (at - low)
                weights[b, low + 1] += at - low
    return weights / samples


def roi_align(features: Tensor, boxes: Tensor, pooled: tuple[int, int]) -> Tensor:
    """[E, h, w] -> [boxes, height*width of a window, E]; bilinear pooling is separable."""
    width, height = pooled
    windows = []
    for x0, y0, x1, y1 in boxes:
        vertical = bilinear_rows(y0, y1, height, features.shape[1]).to(features)
        horizontal = bilinear_rows(x0, x1, width, features.shape[2]).to(features)
        windows.append(torch.einsum("pi,eij,qj->pqe", vertical, features, horizontal).flatten(0, 1))
    return torch.stack(windows)
