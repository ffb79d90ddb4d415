"""The two vision towers, in plain eager torch: CLIP with interpolated positions, and SigLIP NaViT.

Weights are dictionaries from published tensor names (without their prefix) to
f32 tensors.  One view at a time: there is no padding, hence no mask.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """[..., n, width] tensors, already projected; softmax over all keys."""
    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(-3, -2)
    q, k, v = split(q), split(k), split(v)
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1), dim=-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


def block(w: Weights, at: str, x: Tensor, heads: int, eps: float, activation) -> Tensor:
    """A pre-norm transformer block; both towers name its tensors alike."""
    y = norm(w, f"{at}.layer_norm1", x, eps)
    q, k, v = (linear(w, f"{at}.self_attn.{n}_proj", y) for n in "qkv")
    x = x + linear(w, f"{at}.self_attn.out_proj", attention(q, k, v, heads))
    y = norm(w, f"{at}.layer_norm2", x, eps)
    return x + linear(w, f"{at}.mlp.fc2", activation(linear(w, f"{at}.mlp.fc1", y)))


def clip_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """[1 + g*g, width] -> [1 + h*w, width]: bicubic a=-0.75 unless the grid is the table's own."""
    side = round((table.shape[0] - 1) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[1:].T.reshape(1, -1, side, side)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], patches[0].flatten(1).T])


def clip(w: Weights, config: dict, pixels: Tensor, select_layer: int = -2) -> Tensor:
    """Patch features [h*w, width] = hidden_states[select_layer] without the class token.

    hidden_states[0] is the output of `pre_layrnorm`, so -2 leaves out the last block.
    """
    eps = config.get("layer_norm_eps", 1e-5)
    patches = F.conv2d(pixels[None], w["embeddings.patch_embedding.weight"], stride=config["patch_size"])
    grid = (patches.shape[2], patches.shape[3])
    x = torch.cat([w["embeddings.class_embedding"][None], patches[0].flatten(1).T])
    x = x + clip_positions(w["embeddings.position_embedding.weight"], grid)
    x = norm(w, "pre_layrnorm", x, eps)
    layers = config["num_hidden_layers"]
    for index in range(layers + 1 + select_layer if select_layer < 0 else select_layer):
        x = block(w, f"encoder.layers.{index}", x, config["num_attention_heads"], eps, quick_gelu)
    return x[1:]


def buckets(count: int, table_side: int) -> Tensor:
    """Row or column of the position table for each of `count` patches (NaViT).

    The published code is bucketize(arange(0, 1 - 1e-6, 1 / count), arange(1 / side, 1, 1 / side),
    right=True) in f32.  torch's arange rounds by vector lanes, which differ between processors, so
    its result is not floor(i * side / count) for every count and not even fixed.  This is the
    result of the 8-lane kernel (AVX2), spelled out.
    """
    step = float(np.float32(1) / np.float32(count))
    vectorised = 16 * (count // 16)
    x = np.empty(count, np.float32)
    for i in range(count):
        base = 8 * (i // 8)
        x[i] = float(np.float32(step * base)) + (i - base) * step if i < vectorised else step * i
    cell = 1 / table_side
    boundaries = np.array([cell + k * cell for k in range(table_side - 1)], np.float32)
    return torch.from_numpy((boundaries[None] <= x[:, None]).sum(axis=1))


def siglip(w: Weights, config: dict, pixels: Tensor, drop_last: bool = False) -> Tensor:
    """[h*w, width] after `post_layernorm`; the table has (image_size / patch)**2 positions."""
    patch, eps = config["patch_size"], config.get("layer_norm_eps", 1e-6)
    patches = F.conv2d(pixels[None], w["embeddings.patch_embedding.weight"],
                       w["embeddings.patch_embedding.bias"], stride=patch)
    side = config["image_size"] // patch
    rows, columns = (buckets(n, side) for n in patches.shape[2:])
    ids = (rows[:, None] * side + columns).flatten()
    x = patches[0].flatten(1).T + w["embeddings.position_embedding.weight"][ids]
    for index in range(config["num_hidden_layers"] - int(drop_last)):
        x = block(w, f"encoder.layers.{index}", x, config["num_attention_heads"], eps, gelu_tanh)
    return norm(w, "post_layernorm", x, eps)
