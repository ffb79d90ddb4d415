"""The embedded model: CLIP-style vision tower, perceiver resampler, LLaMA decoder.

Module names are those of the published LLaVA-UHD v1 layout, so that
`state_dict()` without the `aux.` heads *is* the checkpoint.  Views of any
patch grid with at most 64 patches are padded to 64 and masked, which lets one
training step run all views of a batch as one dense tensor.

Shapes: V views, P=64 patches, D vision width, E decoder width, Q=16 queries.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

MAX_PATCHES = 64


@dataclass(frozen=True)
class Config:
    vocab_size: int = 600
    hidden_size: int = 224
    intermediate_size: int = 608
    num_hidden_layers: int = 5
    num_attention_heads: int = 7
    head_dim: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    vision_size: int = 160
    vision_intermediate_size: int = 640
    vision_layers: int = 5
    vision_heads: int = 5
    image_size: int = 112
    patch_size: int = 14
    queries_side: int = 4
    resampler_heads: int = 7

    @property
    def queries(self) -> int:
        return self.queries_side ** 2

    def to_dict(self) -> dict:
        return asdict(self)


@lru_cache(maxsize=4096)
def bicubic_matrix(source: int, rows: int, columns: int) -> torch.Tensor:
    """[rows*columns, source*source] matrix of `F.interpolate(mode="bicubic")`."""
    if rows == source and columns == source:
        return torch.eye(source * source)
    basis = torch.eye(source * source).reshape(source * source, 1, source, source)
    out = F.interpolate(basis, size=(rows, columns), mode="bicubic", align_corners=False)
    return out.reshape(source * source, rows * columns).t().contiguous()


@lru_cache(maxsize=4096)
def _padded_matrix(source: int, rows: int, columns: int, size: int) -> torch.Tensor:
    matrix = bicubic_matrix(source, rows, columns)
    return F.pad(matrix, (0, 0, 0, size - matrix.shape[0]))


class _Attention(torch.autograd.Function):
    """softmax(q k^T + bias) v with a backward pass made of few cheap kernels.

    On a CPU in bf16 the stock softmax backward costs more than the matrix
    products; `dS = P * (dP - rowsum(dO * O))` needs two element-wise kernels.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias):
        scores = torch.matmul(q, k.transpose(-1, -2))
        if bias is not None:
            scores += bias
        weights = torch.softmax(scores, dim=-1)
        out = torch.matmul(weights, v)
        ctx.save_for_backward(q, k, v, weights, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, weights, out = ctx.saved_tensors
        grad_v = torch.matmul(weights.transpose(-1, -2), grad)
        delta = (grad * out).sum(-1, keepdim=True)
        scores = torch.matmul(grad, v.transpose(-1, -2)).sub_(delta).mul_(weights)
        grad_q = torch.matmul(scores, k)
        grad_k = torch.matmul(scores.transpose(-1, -2), q)
        return grad_q, grad_k, grad_v, None


def attend(q, k, v, bias, scale):
    """Attention, [.., H, T, d]; `bias` is additive (0 or a large negative) or None."""
    with torch.autocast("cpu", enabled=False):
        q = (q * scale).expand(k.shape[0], -1, -1, -1)
        bias = None if bias is None else bias.to(q.dtype)
        return _Attention.apply(q.contiguous(), k.contiguous(), v.contiguous(), bias)


class _QuickGelu(torch.autograd.Function):
    """x * sigmoid(1.702 x), written with SiLU so that backward is one kernel."""

    @staticmethod
    def forward(ctx, x):
        z = x * 1.702
        ctx.save_for_backward(z)
        return F.silu(z).mul_(1 / 1.702)

    @staticmethod
    def backward(ctx, grad):
        return torch.ops.aten.silu_backward(grad.contiguous(), ctx.saved_tensors[0])


class _RmsNorm(torch.autograd.Function):
    """RMS normalisation with a closed-form backward pass."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        x = x.float()
        scale = torch.rsqrt(torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
                            .div_(x.shape[-1]).add_(eps))
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight

    @staticmethod
    def backward(ctx, grad):
        unit, scale, weight = ctx.saved_tensors
        product = (grad * unit).flatten(0, -2)
        inner = torch.mv(product, weight).div_(unit.shape[-1]).view(scale.shape)
        grad_x = (grad * weight).sub_(unit * inner).mul_(scale)
        return grad_x, product.sum(0), None


class VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4))

    def forward(self, x, bias):
        views, length, width = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        offset = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        qkv = F.linear(x, weight, offset).view(views, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v, bias, q.shape[-1] ** -0.5)
        return self.out_proj(out.transpose(1, 2).reshape(views, length, width))


class VisionMlp(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return self.fc2(_QuickGelu.apply(self.fc1(x)))


class VisionLayer(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(cfg.vision_size, eps=1e-5)
        self.self_attn = VisionAttention(cfg.vision_size, cfg.vision_heads)
        self.layer_norm2 = nn.LayerNorm(cfg.vision_size, eps=1e-5)
        self.mlp = VisionMlp(cfg.vision_size, cfg.vision_intermediate_size)

    def forward(self, x, bias):
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class VisionModel(nn.Module):
    """CLIP vision transformer up to (not including) `post_layernorm`."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.side = cfg.image_size // cfg.patch_size
        width = cfg.vision_size
        self.embeddings = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.embeddings.patch_embedding = nn.Conv2d(3, width, cfg.patch_size, cfg.patch_size,
                                                    bias=False)
        self.embeddings.position_embedding = nn.Embedding(self.side ** 2 + 1, width)
        self.pre_layrnorm = nn.LayerNorm(width, eps=1e-5)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(VisionLayer(cfg) for _ in range(cfg.vision_layers))

    def forward(self, patches, grids, bias):
        """patches [V, P, 588] normalised; grids: list of (rows, columns) -> [V, P, D]."""
        emb = self.embeddings
        matrices = torch.stack([_padded_matrix(self.side, h, w, patches.shape[1])
                                for h, w in grids])
        table = emb.position_embedding.weight
        with torch.autocast("cpu", enabled=False):
            place = torch.matmul(matrices, table[1:].float())
        x = F.linear(patches, emb.patch_embedding.weight.flatten(1)) + place
        first = (emb.class_embedding + table[0]).expand(x.shape[0], 1, -1)
        x = self.pre_layrnorm(torch.cat([first, x], dim=1).float())
        for layer in self.encoder.layers:
            x = layer(x, bias)
        return x[:, 1:]


class ResamplerAttention(nn.Module):
    """The parameters of `nn.MultiheadAttention`, used with shared queries."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, q, k, v, bias):
        """q [Q, E], k and v [V, P, E] -> [V, Q, E]."""
        width = q.shape[-1]
        views, length, _ = k.shape
        wq, wk, wv = self.in_proj_weight.split(width)
        bq, bk, bv = self.in_proj_bias.split(width)
        q = F.linear(q, wq, bq).view(-1, self.heads, width // self.heads).transpose(0, 1)
        k = F.linear(k, wk, bk).view(views, length, self.heads, -1).transpose(1, 2)
        v = F.linear(v, wv, bv).view(views, length, self.heads, -1).transpose(1, 2)
        out = attend(q.unsqueeze(0), k, v, bias, (width // self.heads) ** -0.5)
        return self.out_proj(out.transpose(1, 2).reshape(views, -1, width))


class Resampler(nn.Module):
    """Global perceiver resampler with grid x grid queries."""

    def __init__(self, cfg: Config):
        super().__init__()
        width = cfg.hidden_size
        self.grid = cfg.queries_side
        self.query = nn.Parameter(torch.randn(cfg.queries, width) * 0.02)
        self.pos_embed = nn.Parameter(sincos(self.grid, width))
        self.proj = nn.Parameter(torch.randn(width, width) * width ** -0.5)
        self.kv_proj = nn.Linear(cfg.vision_size, width, bias=False)
        self.attn = ResamplerAttention(width, cfg.resampler_heads)
        self.ln_q = nn.LayerNorm(width, eps=1e-6)
        self.ln_kv = nn.LayerNorm(width, eps=1e-6)
        self.ln_post = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features, grids, bias):
        """features [V, P, D] -> visual tokens [V, Q, E]."""
        x = self.ln_kv(self.kv_proj(features).float())
        matrices = torch.stack([_padded_matrix(self.grid, h, w, features.shape[1])
                                for h, w in grids])
        with torch.autocast("cpu", enabled=False):
            place = torch.matmul(matrices, self.pos_embed.float())
        q = self.ln_q(self.query) + self.pos_embed
        out = self.ln_post(self.attn(q, x + place, x, bias).float())
        return torch.matmul(out, self.proj)


def sincos(grid: int, width: int, base: float = 10000.0) -> torch.Tensor:
    """2-D sine-cosine table [grid*grid, width]; column first, then row."""
    omega = base ** (-torch.arange(width // 4, dtype=torch.float32) / (width / 4))

    def encode(position):
        angle = position[:, None].float() * omega[None]
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    index = torch.arange(grid * grid)
    return torch.cat([encode(index % grid), encode(index // grid)], dim=1)


class RmsNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return _RmsNorm.apply(x, self.weight, self.eps)


class DecoderAttention(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.heads, self.head_dim = cfg.num_attention_heads, cfg.head_dim
        inner = self.heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(cfg.hidden_size, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, cfg.hidden_size, bias=False)

    def forward(self, x, cos, sin, bias):
        batch, length, _ = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        qkv = F.linear(x, weight).view(batch, length, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, bias, self.head_dim ** -0.5)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))


def rotate(x, cos, sin):
    """Rotary embedding, rotate-half form; cos and sin are [B, 1, T, d]."""
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], dim=-1)
    return x * cos + turned * sin


class DecoderMlp(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.self_attn = DecoderAttention(cfg)
        self.mlp = DecoderMlp(cfg)
        self.input_layernorm = RmsNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(cfg.hidden_size, cfg.rms_norm_eps)

    def forward(self, x, cos, sin, bias):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llava(nn.Module):
    """The whole model; `aux` holds training-only heads and is never exported."""

    def __init__(self, cfg: Config, aux_classes: dict[str, tuple[str, int]] | None = None):
        super().__init__()
        self.cfg = cfg
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.model.layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.num_hidden_layers))
        self.model.norm = RmsNorm(cfg.hidden_size, cfg.rms_norm_eps)
        self.model.mm_projector = Resampler(cfg)
        self.model.vision_tower = nn.Module()
        self.model.vision_tower.vision_tower = nn.Module()
        self.model.vision_tower.vision_tower.vision_model = VisionModel(cfg)
        self.aux = nn.ModuleDict({
            name: nn.Linear(cfg.vision_size if level == "patch" else cfg.hidden_size, classes)
            for name, (level, classes) in (aux_classes or {}).items()})
        self._init_decoder()

    def _init_decoder(self):
        depth = math.sqrt(2 * self.cfg.num_hidden_layers)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.05)
        for name, weight in self.model.layers.named_parameters():
            if weight.dim() == 2:
                std = weight.shape[1] ** -0.5
                if "o_proj" in name or "down_proj" in name:
                    std /= depth
                nn.init.normal_(weight, std=std * 0.8)

    @property
    def vision(self) -> VisionModel:
        return self.model.vision_tower.vision_tower.vision_model

    def encode(self, patches, grids):
        """patches [V, P, 588] -> (visual tokens [V, Q, E], patch features [V, P, D])."""
        if all(h * w == patches.shape[1] for h, w in grids):
            features = self.vision(patches, grids, None)
            return self.model.mm_projector(features, grids, None), features
        counts = torch.tensor([h * w for h, w in grids])
        padded = torch.arange(patches.shape[1])[None] >= counts[:, None]
        bias = torch.zeros(padded.shape).masked_fill(padded, -1e4)
        bias_cls = F.pad(bias, (1, 0))[:, None, None, :]
        features = self.vision(patches, grids, bias_cls)
        return self.model.mm_projector(features, grids, bias[:, None, None, :]), features

    def decode(self, x, positions, bias):
        """Embeddings [B, T, E], positions [B, T], additive bias -> hidden states."""
        d = self.cfg.head_dim
        frequency = self.cfg.rope_theta ** (-torch.arange(0, d, 2, dtype=torch.float32) / d)
        angle = positions[:, None, :, None].float() * frequency
        angle = torch.cat([angle, angle], dim=-1)
        low = torch.is_autocast_cpu_enabled()
        cos, sin = (t.bfloat16() if low else t for t in (angle.cos(), angle.sin()))
        for layer in self.model.layers:
            x = layer(x, cos, sin, bias)
        return self.model.norm(x)

    def logits(self, hidden):
        return F.linear(hidden, self.model.embed_tokens.weight)

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """Tensors of the published layout, f32."""
        return {k: v.detach() for k, v in self.state_dict().items() if not k.startswith("aux.")}
