"""The language models: transformers' own classes, in f32 and eager attention, fed with embeddings."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM

from . import beams
from .towers import Weights

NEW_TOKENS = 24
# The generation that the published evaluation scripts pin (4.37).
PINNED = tuple(map(int, transformers.__version__.split(".")[:2])) < (4, 40)


def with_rope_scaling(config: dict) -> dict:
    """Moves longrope's original length where transformers 4.5x looks for it.

    Published MiniCPM-V 4.0 keeps `original_max_position_embeddings` inside
    `rope_scaling`; transformers 4.5x reads it only beside `max_position_embeddings`.
    """
    scaling = config.get("rope_scaling") or {}
    original = scaling.get("original_max_position_embeddings")
    return config | {"original_max_position_embeddings": original} if original else config


def architecture(weights: Weights):
    """The tensors say which decoder it is: norms of q and k are Qwen3's, biases Qwen2's."""
    if "model.layers.0.self_attn.q_norm.weight" in weights:
        return transformers.Qwen3Config, transformers.Qwen3ForCausalLM
    if "model.layers.0.self_attn.q_proj.bias" in weights:
        return transformers.Qwen2Config, transformers.Qwen2ForCausalLM
    return LlamaConfig, LlamaForCausalLM


def load(config: dict, weights: Weights, dtype: torch.dtype = torch.float32):
    """`weights` has names from `model.` and `lm_head.` on; a missing head is the tied embedding."""
    config_class, model_class = architecture(weights)
    drop = {"model_type", "architectures", "auto_map", "vision_config", "torch_dtype", "version",
            "transformers_version"}
    config = {k: v for k, v in with_rope_scaling(config).items() if k not in drop}
    settings = config_class(**config, attn_implementation="eager")
    model = model_class(settings).to(dtype).eval()
    weights = {k: v for k, v in weights.items() if "rotary_emb" not in k}
    if settings.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True)
    return model


@dataclass
class Greedy:
    ids: list[int]  # with the end token, if it came
    logits: Tensor  # [steps, vocab]

    @property
    def gaps(self) -> list[float]:
        best = self.logits.topk(2, dim=-1).values
        return [round(float(g), 6) for g in best[:, 0] - best[:, 1]]


@dataclass
class Beam:
    ids: list[int]  # without the end token, which depends on the version of transformers
    score: float


def generate(model, embeds: Tensor, eos: list[int], **settings):
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=eos, pad_token_id=0,
                              bos_token_id=1, return_dict_in_generate=True, output_scores=True, **settings)
    batch = embeds[None].to(model.dtype)
    mask = torch.ones(batch.shape[:2], dtype=torch.long)
    return model.generate(inputs_embeds=batch, attention_mask=mask, generation_config=config)


def new_ids(output) -> list[int]:
    """transformers before 4.40 puts a BOS in front."""
    ids = output.sequences[0].tolist()
    return ids[1:] if PINNED else ids


def until_end(ids: list[int], eos: list[int], keep: bool) -> list[int]:
    ends = [i for i, token in enumerate(ids) if token in eos]
    return ids[:ends[0] + int(keep)] if ends else ids


@torch.no_grad()
def greedy(model, embeds: Tensor, eos: list[int]) -> Greedy:
    output = generate(model, embeds, eos, num_beams=1)
    logits = torch.cat(list(output.scores)).to(torch.float32)
    return Greedy(until_end(new_ids(output), eos, keep=True), logits)


class Cached:
    """Logits for beams of new ids after a prompt of embeddings; the cache follows the beams."""

    def __init__(self, model, embeds: Tensor):
        self.model, self.embeds, self.running = model, embeds[None].to(model.dtype), [[]]
        self.cache = DynamicCache()

    def __call__(self, running: list[list[int]]) -> Tensor:
        if not running[0]:
            out = self.model(inputs_embeds=self.embeds, past_key_values=self.cache, use_cache=True)
            return out.logits[:, -1].expand(len(running), -1)
        sources = torch.tensor([self.running.index(ids[:-1]) for ids in running])
        self.cache.reorder_cache(sources)
        self.running = [list(ids) for ids in running]
        last = torch.tensor([ids[-1:] for ids in running])
        return self.model(input_ids=last, past_key_values=self.cache, use_cache=True).logits[:, -1]


@torch.no_grad()
def beam(model, embeds: Tensor, eos: list[int], count: int, length_penalty: float = 1.0) -> Beam:
    return Beam(*beams.search(Cached(model, embeds), eos, count, length_penalty, NEW_TOKENS))


@torch.no_grad()
def installed_beam(model, embeds: Tensor, eos: list[int], count: int, length_penalty: float = 1.0) -> Beam:
    """The beam search of the installed transformers, early_stopping false."""
    output = generate(model, embeds, eos, num_beams=count, length_penalty=length_penalty, early_stopping=False)
    return Beam(until_end(new_ids(output), eos, keep=False), float(output.sequences_scores[0]))


def double(model):
    """A copy in f64, to see which answers hang on rounding."""
    return copy.deepcopy(model).double()
