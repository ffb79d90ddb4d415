"""Writes a training state as a checkpoint in the published LLaVA-UHD v1 layout.

    python export.py --state DIR --out crates/slicemill-model/embedded
    python export.py --random --state DIR --out OUT       # before any training
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import tokenizer as tok
from batches import AUX
from model import Config, Llava
from slicing import CLIP_MEAN, CLIP_STD, MAX_SLICES, PATCH, SIDE
from train import FlatAdamW, small_config, warm_init


def config_json(cfg: Config) -> dict:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "hidden_size": cfg.hidden_size,
        "intermediate_size": cfg.intermediate_size,
        "num_hidden_layers": cfg.num_hidden_layers,
        "num_attention_heads": cfg.num_attention_heads,
        "num_key_value_heads": cfg.num_attention_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_theta": cfg.rope_theta,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": 1024,
        "tokenizer_model_max_length": 1024,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "bos_token_id": tok.BOS,
        "eos_token_id": tok.EOS,
        "torch_dtype": "float16",
        "mm_projector_type": "resampler",
        "mm_hidden_size": cfg.vision_size,
        "mm_num_queries": cfg.queries,
        "mm_resampler_heads": cfg.resampler_heads,
        "mm_vision_select_layer": -1,
        "mm_vision_select_feature": "patch",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": cfg.vision_size,
            "intermediate_size": cfg.vision_intermediate_size,
            "num_hidden_layers": cfg.vision_layers,
            "num_attention_heads": cfg.vision_heads,
            "image_size": cfg.image_size,
            "patch_size": cfg.patch_size,
            "num_channels": 3,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        "slicemill": {
            "policy": "llava-uhd-raw",
            "side": SIDE,
            "patch": PATCH,
            "max_slices": MAX_SLICES,
            "prompt_template": tok.PROMPT_BEFORE + "{image}" + tok.PROMPT_AFTER,
            "default_prompt": "Describe this image.",
            "separator_column": ",",
            "separator_row": "\n",
            "image_mean": [round(float(v), 8) for v in CLIP_MEAN],
            "image_std": [round(float(v), 8) for v in CLIP_STD],
            "max_new_tokens": 48,
        },
    }


def load_exported(folder: Path) -> tuple[Llava, tok.Encoder]:
    """The exported model in f32 (from its f16-rounded weights), and its tokenizer."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    vision = config["vision_config"]
    cfg = Config(
        vocab_size=config["vocab_size"], hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"], head_dim=config["head_dim"],
        rms_norm_eps=config["rms_norm_eps"], rope_theta=config["rope_theta"],
        vision_size=vision["hidden_size"], vision_intermediate_size=vision["intermediate_size"],
        vision_layers=vision["num_hidden_layers"], vision_heads=vision["num_attention_heads"],
        image_size=vision["image_size"], patch_size=vision["patch_size"],
        queries_side=round(config["mm_num_queries"] ** 0.5),
        resampler_heads=config["mm_resampler_heads"])
    model = Llava(cfg)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=True)
    return model.eval(), tok.load(folder / "tokenizer.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--random", action="store_true", help="export the initial weights")
    args = parser.parse_args()
    encoder = tok.load(args.state / "tokenizer.json")
    model = Llava(small_config(encoder.tokenizer.get_vocab_size()), AUX)
    if args.random:
        warm_init(model)
    else:
        optimiser = FlatAdamW(model)
        state = torch.load(args.state / "state.pt", map_location="cpu")
        optimiser.load(state["optimiser"])
        print(f"state after {state['optimiser']['steps']} steps, {state['images']} images")
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.half().contiguous() for k, v in model.checkpoint().items()}
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    (args.out / "config.json").write_text(
        json.dumps(config_json(model.cfg), indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(args.state / "tokenizer.json", args.out / "tokenizer.json")
    count = sum(t.numel() for t in tensors.values())
    print(f"{count} parameters, {sum(t.nbytes for t in tensors.values())} bytes")


if __name__ == "__main__":
    main()
