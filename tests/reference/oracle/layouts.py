"""What we build: one tiny checkpoint per published layout.

Every function returns a `Layout`: the small files as text or JSON, and the
tensors.  Config keys follow the published files, also where they are odd.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from . import bpe, spm
from .families import VICUNA
from .tensors import Checkpoint
from .views import CLIP_MEAN, CLIP_STD

PROMPTS = ["Describe this image in detail.", "What is the color of the largest object, and where is it?"]
CORPUS = " ".join([VICUNA.replace("<image>", " ").format(q="") * 4, *PROMPTS * 4,
                   "You are a helpful assistant. system user assistant image images slice",
                   "red green blue yellow purple white black circle square triangle star text reads background",
                   "the a an of in on and is are it at to with left right top bottom two three one no there",
                   "1 2 3 4 5 6 7 8 9 0 question answer option letter given choices directly single word phrase"])
TOWER = "./clip-vit-tiny-patch14-336"


@dataclass
class Layout:
    about: str
    config: dict
    tensors: Checkpoint
    files: dict = field(default_factory=dict)  # name -> JSON value
    sentencepiece: dict | None = None  # written into the recipe; None: tokenizer files are in `files`
    seed: int = 1


def clip_config(width: int, layers: int, inner: int, heads: int) -> dict:
    return {"attention_dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": width, "image_size": 336,
            "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": inner, "layer_norm_eps": 1e-05,
            "model_type": "clip_vision_model", "num_attention_heads": heads, "num_channels": 3,
            "num_hidden_layers": layers, "patch_size": 14, "projection_dim": width}


def clip_processor(**more) -> dict:
    return {"crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True,
            "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": list(CLIP_MEAN),
            "image_processor_type": "CLIPImageProcessor", "image_std": list(CLIP_STD), "resample": 3,
            "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336}, **more}


def llama_config(width: int, layers: int, inner: int, heads: int, groups: int, vocab: int, **more) -> dict:
    return {"attention_bias": False, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": width,
            "intermediate_size": inner, "max_position_embeddings": 4096, "num_attention_heads": heads,
            "num_hidden_layers": layers, "num_key_value_heads": groups, "pad_token_id": 0, "pretraining_tp": 1,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
            "use_cache": True, "vocab_size": vocab, **more}


def llava_keys(width: int, projector: str, limit: int) -> dict:
    """What the training script of LLaVA-1.5 and LLaVA-UHD leaves in config.json."""
    return {"freeze_mm_mlp_adapter": False, "image_aspect_ratio": "pad", "mm_hidden_size": width,
            "mm_patch_merge_type": "flat", "mm_projector_lr": None, "mm_projector_type": projector,
            "mm_use_im_patch_token": False, "mm_use_im_start_end": False, "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": -2, "mm_vision_tower": TOWER, "tokenizer_model_max_length": limit,
            "tokenizer_padding_side": "right", "tune_mm_mlp_adapter": False, "use_mm_proj": True,
            "transformers_version": "4.37.2"}


def llama_tokenizer(**more) -> dict:
    return {"tokenizer_config.json": {
                "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "pad_token": "<unk>", "clean_up_tokenization_spaces": False, "legacy": False,
                "model_max_length": 2048, "padding_side": "right", "sp_model_kwargs": {},
                "tokenizer_class": "LlamaTokenizer", **more},
            "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                                        "pad_token": "<unk>"}}


LLAMA_GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 4096,
                    "transformers_version": "4.37.2"}


def uhd(queries: int) -> tuple[dict, Checkpoint, dict]:
    """What both LLaVA-UHD layouts share: the tower lies in the shards, its config in a folder."""
    vision = clip_config(48, 4, 96, 3)
    checkpoint = Checkpoint("F16")
    layers, tied = (2, False) if queries == 144 else (3, True)
    text = llama_config(128, layers, 192, 4, 2 if queries == 144 else 4, 30000, tie_word_embeddings=tied)
    checkpoint.decoder("", text, head=16.0 if queries == 144 else 10.0)
    checkpoint.clip("model.vision_tower.vision_tower.vision_model.", vision)
    checkpoint.resampler("model.mm_projector.", queries, 128, 48, table=True)
    checkpoint.shard(2)
    files = llama_tokenizer() | {"generation_config.json": LLAMA_GENERATION, f"{TOWER[2:]}/config.json": vision,
                                 f"{TOWER[2:]}/preprocessor_config.json": clip_processor()}
    return text, checkpoint, files


def uhd_v1() -> Layout:
    """144 queries.  The length limit lies between the two prompts of a six-slice image."""
    text, checkpoint, files = uhd(144)
    config = {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "torch_dtype": "float16",
              **text, **llava_keys(48, "adapt_spatial_resampler", 1050)}
    return Layout("LLaVA-UHD v1 (144 queries)", config, checkpoint, files, spm.describe(30000, CORPUS, 300), seed=7)


def uhd_64() -> Layout:
    """64 queries: the public code's training script writes a projector type that the code ignores."""
    text, checkpoint, files = uhd(64)
    config = {"architectures": ["adapt_LlavaLlamaForCausalLM"], "model_type": "llava_uhd", "torch_dtype": "float16",
              **text, **llava_keys(48, "mlp2x_gelu", 2048)}
    return Layout("LLaVA-UHD with 64 queries", config, checkpoint, files, spm.describe(30000, CORPUS, 300), seed=2)


def llava_15() -> Layout:
    """LLaVA-1.5 as its authors publish it: torch shards, and CLIP in a folder of its own.

    The tower folder is a whole CLIP: nested configs, and tensors of the text side that nobody asks for.
    """
    vision = clip_config(32, 3, 64, 2)
    text = llama_config(32, 2, 64, 4, 4, 300)
    checkpoint = Checkpoint("F16")
    checkpoint.decoder("", text)
    checkpoint.dense("model.mm_projector.0", 32, 32, 1.5, 0.25)
    checkpoint.dense("model.mm_projector.2", 32, 32, 1.5, 0.25)
    checkpoint.shard(2, "pytorch_model", "bin")
    tower = Checkpoint("F16")
    tower.clip("vision_model.", vision)
    tower.add("logit_scale", [], 1.0, 2.5)
    tower.dense("text_projection", 32, 16)
    tower.dense("visual_projection", 32, 32)
    for tensor in tower.tensors:
        tensor.file = f"{TOWER[2:]}/pytorch_model.bin"
    checkpoint.tensors += tower.tensors
    clip = {"architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
            "model_type": "clip", "projection_dim": 32, "torch_dtype": "float32", "vision_config": vision,
            "text_config": {"hidden_size": 16, "intermediate_size": 32, "model_type": "clip_text_model",
                            "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 99}}
    config = {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama", "torch_dtype": "float16",
              **text, **llava_keys(32, "mlp2x_gelu", 2048)}
    files = llama_tokenizer() | {"generation_config.json": LLAMA_GENERATION, f"{TOWER[2:]}/config.json": clip,
                                 f"{TOWER[2:]}/preprocessor_config.json": clip_processor(),
                                 "tokenizer.model": spm.model(spm.describe(300, CORPUS, 12, 29))}
    return Layout("LLaVA-1.5, original layout", config, checkpoint, files, seed=17)


def llava_15_hf() -> Layout:
    """LLaVA-1.5 for transformers: three prefixes, defaults left out of text_config, `<image>` a token."""
    vision = clip_config(48, 4, 96, 3)
    text = llama_config(64, 3, 128, 4, 2, 640)
    checkpoint = Checkpoint("BF16")
    checkpoint.decoder("language_model.", text)
    checkpoint.dense("multi_modal_projector.linear_1", 64, 48, 1.5, 0.25)
    checkpoint.dense("multi_modal_projector.linear_2", 64, 64, 1.5, 0.25)
    checkpoint.clip("vision_tower.vision_model.", vision)
    checkpoint.shard(2)
    kept = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "vocab_size", "rms_norm_eps", "max_position_embeddings")
    config = {"architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 600,
              "model_type": "llava", "pad_token_id": 601, "projector_hidden_act": "gelu", "torch_dtype": "bfloat16",
              "text_config": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
              | {k: text[k] for k in kept},
              "tie_word_embeddings": False, "transformers_version": "4.37.2", "vision_config": vision,
              "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 640}
    pieces, added = spm.describe(600, CORPUS, 210), ["<image>", "<pad>"]
    special = {str(i): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                        "special": True} for i, t in enumerate(["<unk>", "<s>", "</s>"])}
    special |= {str(600 + i): special["0"] | {"content": t} for i, t in enumerate(added)}
    files = llama_tokenizer(pad_token="<pad>", added_tokens_decoder=special, processor_class="LlavaProcessor") | {
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 601},
        "preprocessor_config.json": clip_processor(processor_class="LlavaProcessor"),
        "added_tokens.json": {"<image>": 600, "<pad>": 601},
        "tokenizer.model": spm.model(pieces), "tokenizer.json": spm.fast(pieces, added)}
    return Layout("LLaVA-1.5, transformers layout", config, checkpoint, files, seed=3)


CHATML = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
          "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
          "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
PLAIN_CHATML = CHATML.replace(CHATML[CHATML.index("{% if loop"):CHATML.index("{{'<|im_start|>' +")], "")
THINKING_CHATML = (
    "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n"
    "    {%- if enable_thinking is defined and enable_thinking is true %}\n"
    "        {{- '<think>\\n' }}\n    {%- endif %}\n{%- endif %}")
IMAGE_TOKENS = ["<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "<unk>"]


def minicpm(version: float, text: dict, checkpoint: Checkpoint, template: str, tokenizer: dict, ends: list[str],
            **more) -> tuple[dict, dict]:
    """config.json and the small files that all MiniCPM-V layouts share."""
    vision = {"hidden_size": 48, "image_size": 980, "intermediate_size": 88, "model_type": "siglip_vision_model",
              "num_attention_heads": 2, "num_hidden_layers": 3, "patch_size": 14}
    checkpoint.siglip("vpm.", vision)
    checkpoint.resampler("resampler.", 64, text["hidden_size"], 48, table=False)
    ids = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    config = {"architectures": ["MiniCPMV"], "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMVConfig",
                                                           "AutoModel": "modeling_minicpmv.MiniCPMV"},
              "model_type": "minicpmv", "version": version, **text, "torch_dtype": "bfloat16",
              "batch_vision_input": True, "drop_vision_last_layer": False, "image_size": 448, "patch_size": 14,
              "query_num": 64, "slice_config": {"max_slice_nums": 9, "patch_size": 14, "model_type": "minicpmv"},
              "slice_mode": True, "use_image_id": True, "vision_batch_size": 16, "vision_config": vision, **more}
    added = {str(t["id"]): {k: t[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
             for t in tokenizer["added_tokens"]}
    bos, end = ("<s>", "</s>") if "<s>" in ids else ("<|im_start|>", "<|im_end|>")
    config |= {"bos_token_id": ids[bos], "eos_token_id": ids[end]}
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"added_tokens_decoder": added, "bos_token": bos, "eos_token": end,
                                  "unk_token": "<unk>", "chat_template": template, "model_max_length": 8192,
                                  "clean_up_tokenization_spaces": False, "tokenizer_class": "MiniCPMVTokenizerFast"},
        "generation_config.json": {"bos_token_id": ids[bos], "eos_token_id": [ids[e] for e in ends],
                                   "pad_token_id": 0},
        "preprocessor_config.json": {
            "image_processor_type": "MiniCPMVImageProcessor", "processor_class": "MiniCPMVProcessor",
            "max_slice_nums": 9, "scale_resolution": 448, "patch_size": 14, "use_image_id": True,
            "image_feature_size": 64, "im_start": "<image>", "im_end": "</image>", "slice_start": "<slice>",
            "slice_end": "</slice>", "unk": "<unk>", "im_id_start": "<image_id>", "im_id_end": "</image_id>",
            "slice_mode": True, "norm_mean": [0.5] * 3, "norm_std": [0.5] * 3, "version": version}}
    return config, files


def qwen_config(vocab: int, **more) -> dict:
    return {"attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 128, "initializer_range": 0.02,
            "intermediate_size": 192, "max_position_embeddings": 32768, "max_window_layers": 2,
            "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": False, "use_cache": True,
            "use_sliding_window": False, "vocab_size": vocab, **more}


QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS]


def minicpmv_26() -> Layout:
    """Qwen2: biases on q, k and v.  One file, no index."""
    text = qwen_config(448)
    checkpoint = Checkpoint("BF16")
    checkpoint.decoder("llm.", text, qkv_bias=True)
    tokenizer = bpe.tokenizer(CORPUS, 150, QWEN_TOKENS)
    config, files = minicpm(2.6, text, checkpoint, CHATML, tokenizer, ["<|im_end|>", "<|endoftext|>"])
    return Layout("MiniCPM-V 2.6", config, checkpoint, files, seed=14)


def minicpmv_45() -> Layout:
    """Qwen3: norms of q and k, a head width of its own; three shards, with parts of other modalities."""
    text = qwen_config(448, head_dim=48, sliding_window=None, attention_bias=False, rope_scaling=None)
    checkpoint = Checkpoint("BF16")
    checkpoint.decoder("llm.", text, qk_norm=True)
    checkpoint.add("apm.conv1.weight", [16, 8, 3], 0.5, dtype="F32")
    checkpoint.add("tts.emb_text.weight", [20, 16], 0.5)
    checkpoint.add("audio_projection_layer.linear1.weight", [16, 16], 0.5, dtype="F16")
    tokenizer = bpe.tokenizer(CORPUS, 150, [*QWEN_TOKENS, "<think>", "</think>"], plain=("<think>", "</think>"))
    config, files = minicpm(4.5, text, checkpoint, THINKING_CHATML, tokenizer, ["<|im_end|>", "<|endoftext|>"],
                            batch_3d_resampler=True)
    checkpoint.shard(3)
    return Layout("MiniCPM-V 4.5", config, checkpoint, files, seed=6)


def minicpmv_40() -> Layout:
    """LLaMA with a head width of its own and longrope.

    The published factors are equal; here they differ, and the original length
    lies between the shortest and the longest prompt.  `factor` agrees with
    max / original, so every reading of the config gives the same scaling.
    """
    tokenizer = spm.fast(spm.describe(600, CORPUS, 210), ["<|im_end|>", "<|im_start|>", *IMAGE_TOKENS[:-1]])
    each = 40
    short = [round(1 + 0.5 * i / (each // 2), 4) for i in range(each // 2)]
    long = [round(math.exp(2.5 * i / (each // 2)), 4) for i in range(each // 2)]
    scaling = {"factor": 8.0, "long_factor": long, "short_factor": short, "original_max_position_embeddings": 224,
               "rope_type": "longrope"}
    text = llama_config(128, 2, 192, 4, 2, 640, head_dim=each, max_position_embeddings=1792, mlp_bias=False,
                        rope_scaling=scaling, rms_norm_eps=1e-06)
    checkpoint = Checkpoint("BF16")
    checkpoint.decoder("llm.", text)
    config, files = minicpm(4.0, text, checkpoint, PLAIN_CHATML, tokenizer, ["</s>", "<|im_end|>"])
    checkpoint.shard(2)
    return Layout("MiniCPM-V 4.0", config, checkpoint, files, seed=6)


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "uhd-v1": uhd_v1, "minicpmv-2.6": minicpmv_26, "llava-1.5-hf": llava_15_hf, "minicpmv-4.5": minicpmv_45,
    "llava-1.5": llava_15, "uhd-64": uhd_64, "minicpmv-4.0": minicpmv_40}
