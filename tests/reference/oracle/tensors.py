"""The tensor lists of the published layouts, with scales that keep random models lively.

Uniform weights in [-s, s) have deviation s/sqrt(3); `dense` chooses s so that
unit inputs give outputs of deviation `gain`.  Scales are multiples of 1/4096,
so that every decimal in recipe.json is exact in f32.
"""

from __future__ import annotations

from math import sqrt

from .recipe import Tensor


class Checkpoint:
    """Collects tensors; `file` of each is set at the end by `shard`."""

    def __init__(self, dtype: str):
        self.dtype = dtype
        self.tensors: list[Tensor] = []

    def add(self, name: str, shape: list[int], scale: float, offset: float = 0.0, dtype: str = "") -> None:
        scale = max(round(scale * 4096), 1) / 4096
        self.tensors.append(Tensor(name, shape, dtype or self.dtype, scale, offset, "model.safetensors"))

    def dense(self, name: str, outputs: int, inputs: int, gain: float = 1.0, bias: float = 0.0) -> None:
        self.add(f"{name}.weight", [outputs, inputs], gain * sqrt(3 / inputs))
        if bias:
            self.add(f"{name}.bias", [outputs], bias)

    def norm(self, name: str, width: int, bias: bool = True) -> None:
        self.add(f"{name}.weight", [width], 0.25, 1.0)
        if bias:
            self.add(f"{name}.bias", [width], 0.125)

    def blocks(self, prefix: str, config: dict) -> None:
        """Transformer blocks of a vision tower."""
        width, inner = config["hidden_size"], config["intermediate_size"]
        for i in range(config["num_hidden_layers"]):
            at = f"{prefix}encoder.layers.{i}"
            for name, gain in (("k", 1.5), ("v", 1.0), ("q", 1.5), ("out", 1.0)):
                self.dense(f"{at}.self_attn.{name}_proj", width, width, gain, 0.25)
            self.norm(f"{at}.layer_norm1", width)
            self.dense(f"{at}.mlp.fc1", inner, width, 1.0, 0.25)
            self.dense(f"{at}.mlp.fc2", width, inner, 1.0, 0.25)
            self.norm(f"{at}.layer_norm2", width)

    def clip(self, prefix: str, config: dict) -> None:
        width, patch = config["hidden_size"], config["patch_size"]
        positions = (config["image_size"] // patch) ** 2 + 1
        self.add(f"{prefix}embeddings.class_embedding", [width], 1.0)
        self.add(f"{prefix}embeddings.patch_embedding.weight", [width, 3, patch, patch], 0.0625)
        self.add(f"{prefix}embeddings.position_embedding.weight", [positions, width], 0.5)
        self.norm(f"{prefix}pre_layrnorm", width)
        self.blocks(prefix, config)
        self.norm(f"{prefix}post_layernorm", width)

    def siglip(self, prefix: str, config: dict) -> None:
        width, patch = config["hidden_size"], config["patch_size"]
        positions = (config["image_size"] // patch) ** 2
        self.add(f"{prefix}embeddings.patch_embedding.weight", [width, 3, patch, patch], 0.0625)
        self.add(f"{prefix}embeddings.patch_embedding.bias", [width], 0.25)
        self.add(f"{prefix}embeddings.position_embedding.weight", [positions, width], 0.5)
        self.blocks(prefix, config)
        self.norm(f"{prefix}post_layernorm", width)

    def resampler(self, prefix: str, queries: int, width: int, inputs: int, table: bool) -> None:
        """`table`: the position table is a parameter (LLaVA-UHD), not computed (MiniCPM-V)."""
        if table:
            self.add(f"{prefix}pos_embed", [queries, width], 0.75)
        self.add(f"{prefix}query", [queries, width], 1.0)
        self.add(f"{prefix}proj", [width, width], 1.5 * sqrt(3 / width))
        self.dense(f"{prefix}kv_proj", width, inputs)
        self.add(f"{prefix}attn.in_proj_weight", [3 * width, width], 1.5 * sqrt(3 / width))
        self.add(f"{prefix}attn.in_proj_bias", [3 * width], 0.25)
        self.dense(f"{prefix}attn.out_proj", width, width, 1.0, 0.25)
        for name in ("ln_q", "ln_kv", "ln_post"):
            self.norm(f"{prefix}{name}", width)

    def decoder(self, prefix: str, config: dict, qkv_bias: bool = False, qk_norm: bool = False,
                head: float = 10.0) -> None:
        """`head`: the deviation of the logits."""
        width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
        each = config.get("head_dim", width // heads)
        tied = config.get("tie_word_embeddings", False)
        # A tied head needs small embeddings: the norms scale them up again.
        self.add(f"{prefix}model.embed_tokens.weight", [vocab, width],
                 head * sqrt(3 / width) if tied else 2.0)
        for i in range(config["num_hidden_layers"]):
            at = f"{prefix}model.layers.{i}"
            for name, size, gain in (("q", heads, 1.5), ("k", groups, 1.5), ("v", groups, 1.5)):
                self.dense(f"{at}.self_attn.{name}_proj", size * each, width, gain, 0.5 if qkv_bias else 0.0)
            self.dense(f"{at}.self_attn.o_proj", width, heads * each, 1.5)
            if qk_norm:
                for name in ("q_norm", "k_norm"):
                    self.add(f"{at}.self_attn.{name}.weight", [each], 0.5, 1.5)
            self.dense(f"{at}.mlp.gate_proj", inner, width, 1.5)
            self.dense(f"{at}.mlp.up_proj", inner, width, 1.5)
            self.dense(f"{at}.mlp.down_proj", width, inner, 1.5)
            self.norm(f"{at}.input_layernorm", width, bias=False)
            self.norm(f"{at}.post_attention_layernorm", width, bias=False)
        self.norm(f"{prefix}model.norm", width, bias=False)
        if not tied:
            self.dense(f"{prefix}lm_head", vocab, width, head)

    def shard(self, count: int, kind: str = "model", suffix: str = "safetensors") -> None:
        """Cuts the list into `count` runs of about equal numbers of tensors."""
        for i, tensor in enumerate(self.tensors):
            number = i * count // len(self.tensors) + 1
            tensor.file = f"{kind}-{number:05}-of-{count:05}.{suffix}"
