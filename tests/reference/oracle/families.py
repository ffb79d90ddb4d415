"""A checkpoint folder of any supported family, from an image and a question to embeddings.

`open_checkpoint` reads the published layout; nothing here knows how a
checkpoint was made, so the same code runs on ours and on anyone's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaTokenizer

from . import decoders, projectors, towers, views
from .views import Plan, Policy, View

COMMA, NEWLINE = 29892, 13  # ids in LLaMA's vocabulary, looked up in the embedding table
IMAGE_SLOT = -200
VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives "
          "helpful, detailed, and polite answers to the user's questions. USER: <image>\n{q} ASSISTANT:")
SHORT = "USER: <image>\n{q} ASSISTANT:"
BRIDGE_LENGTH = 4096  # the 64-query code ignores tokenizer_model_max_length


@dataclass
class Look:
    """What the vision side makes of one image under one variant."""

    plan: Plan | None
    views: list[View]
    features: list[Tensor]
    tokens: list[Tensor]


@dataclass
class Prompt:
    text: str  # before tokenisation
    ids: list[int]
    embeds: Tensor
    full_length: int  # before truncation
    bounds: list[tuple[int, int]]  # where the visual tokens are, MiniCPM-V only


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_weights(folder: Path) -> towers.Weights:
    """All tensors as f32, from safetensors or torch files, sharded or not."""
    weights = {}
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        weights |= load_file(file)
    for file in () if files else sorted(folder.glob("pytorch_model*.bin")):
        weights |= torch.load(file, map_location="cpu", weights_only=True)
    return {name: tensor.float() for name, tensor in weights.items()}


def under(weights: towers.Weights, prefix: str) -> towers.Weights:
    return {name[len(prefix):]: t for name, t in weights.items() if name.startswith(prefix)}


class Family:
    """Shared: reading, the decoder, the end tokens."""

    def __init__(self, folder: Path, config: dict, weights: towers.Weights, prefix: str = ""):
        self.folder, self.config = folder, config
        language = {k: v for k, v in under(weights, prefix).items()
                    if k.startswith(("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head."))}
        self.decoder = decoders.load(config.get("text_config", config), language)
        eos = read_json(folder / "generation_config.json").get("eos_token_id", config.get("eos_token_id", 2))
        self.eos = eos if isinstance(eos, list) else [eos]

    def embed(self, ids: list[int]) -> Tensor:
        return self.decoder.get_input_embeddings()(torch.tensor(ids, dtype=torch.long)).float()

    def look(self, path: Path, variant: str) -> Look:
        image = views.open_rgb(path, exif=variant.endswith("_exif"))
        the_plan, cut = self.cut(image, variant.removesuffix("_exif"))
        features = [self.tower(torch.from_numpy(v.pixels)) for v in cut]
        tokens = [self.project(x, v.grid) for x, v in zip(features, cut)]
        return Look(the_plan, cut, features, tokens)


class Llava(Family):
    """LLaVA-1.5 in both layouts, and LLaVA-UHD with 144 or 64 queries."""

    def __init__(self, folder: Path, config: dict, weights: towers.Weights):
        self.hf = "text_config" in config
        super().__init__(folder, config, weights, "language_model." if self.hf else "")
        self.tokenizer = LlamaTokenizer.from_pretrained(folder)
        if self.hf:
            self.fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.vision = config.get("vision_config")
        prefix = "model.vision_tower.vision_tower.vision_model."
        if self.hf:
            prefix = "vision_tower.vision_model."
        else:  # `mm_vision_tower` is a folder, beside the checkpoint's files or inside
            tower = folder / config["mm_vision_tower"]
            self.vision = read_json(tower / "config.json")
            self.vision = self.vision.get("vision_config", self.vision)
            if not under(weights, prefix):
                weights, prefix = weights | read_weights(tower), "vision_model."
        self.tower_weights = under(weights, prefix)
        self.projector = under(weights, "multi_modal_projector." if self.hf else "model.mm_projector.")
        self.select = config.get("vision_feature_layer", config.get("mm_vision_select_layer", -2))
        self.queries = len(self.projector["query"]) if "query" in self.projector else 0
        self.image_id = config.get("image_token_index", IMAGE_SLOT)
        self.limit = config.get("tokenizer_model_max_length", 1 << 30) if self.queries != 64 else BRIDGE_LENGTH

    @property
    def variants(self) -> dict[str, list[int]]:
        """Names, and which prompts to run for each; None means all."""
        if not self.queries:
            return {"pad": None, "hf_processor": [0]} if self.hf else {"pad": None}
        return {"eval1024": None, "raw": [0]} if self.queries == 144 else {"raw": None}

    def cut(self, image, variant: str):
        side = self.vision["image_size"]
        if not self.queries:
            return None, views.whole(views.padded_square(image) if variant == "pad" else image, side)
        policy = Policy(side, 7, False, False, 1024 if variant == "eval1024" else 0)
        the_plan = views.plan(*image.size, policy)
        return the_plan, views.cut(image, the_plan, False, views.clip_pixels)

    def tower(self, pixels: Tensor) -> Tensor:
        return towers.clip(self.tower_weights, self.vision, pixels, self.select)

    def project(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.queries == 144:
            return projectors.spatial_resampler(self.projector, features, grid)
        if self.queries:
            return projectors.global_resampler(self.projector, features, grid)
        first, second = ("linear_1", "linear_2") if self.hf else ("0", "2")
        return projectors.mlp(self.projector, first, second, features)

    @staticmethod
    def separators(the_plan: Plan | None) -> list[int]:
        """After every slice: a comma, or a newline at the end of a row."""
        if the_plan is None:
            return []
        return ([COMMA] * (the_plan.columns - 1) + [NEWLINE]) * the_plan.rows if the_plan.columns else []

    def prompt(self, question: str, look: Look, variant: str) -> Prompt:
        text = (SHORT if variant == "hf_processor" else VICUNA).format(q=question)
        if variant == "hf_processor":  # the fast tokenizer, where `<image>` is an added token
            ids = self.fast.encode(text).ids
        else:  # chunks around `<image>`, each tokenised on its own, one BOS in all
            before, after = (self.tokenizer(chunk).input_ids for chunk in text.split("<image>"))
            ids = before + [self.image_id] + after[1:]
        visual = []
        for token, tokens in zip(self.separators(look.plan) + [None], look.tokens):
            visual += [tokens] if token is None else [tokens, self.embed([token])]
        at = ids.index(self.image_id)
        embeds = torch.cat([self.embed(ids[:at]), *visual, self.embed(ids[at + 1:])])
        return Prompt(text, ids, embeds[:self.limit], len(embeds), [])

    def text(self, ids: list[int], variant: str) -> str:
        """The two tokenizers differ in what they make of bytes that are not UTF-8."""
        if variant == "hf_processor":
            return self.fast.decode(ids, skip_special_tokens=True).strip()
        known = [i for i in ids if i < len(self.tokenizer)]  # embedding tables are padded
        return self.tokenizer.decode(known, skip_special_tokens=True).strip()


class MiniCpmV(Family):
    """MiniCPM-V 2.6, 4.0, 4.5 (and the image path of o-2.6, o-4.5)."""

    POLICY = Policy(448, 9, True, True)

    def __init__(self, folder: Path, config: dict, weights: towers.Weights):
        super().__init__(folder, config, weights, "llm.")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.settings = read_json(folder / "tokenizer_config.json")
        self.processor = read_json(folder / "preprocessor_config.json")
        self.tower_weights, self.resampler = under(weights, "vpm."), under(weights, "resampler.")

    @property
    def variants(self) -> dict[str, list[int]]:
        return {"raw": None, "thinking": [0]} if self.config["version"] == 4.5 else {"raw": None}

    def cut(self, image, variant: str):
        the_plan = views.plan(*image.size, self.POLICY)
        return the_plan, views.cut(image, the_plan, True, views.half_pixels)

    def tower(self, pixels: Tensor) -> Tensor:
        config = self.config["vision_config"]
        return towers.siglip(self.tower_weights, config, pixels, self.config["drop_vision_last_layer"])

    def project(self, features: Tensor, grid: tuple[int, int]) -> Tensor:
        return projectors.minicpm_resampler(self.resampler, features, grid)

    def chat(self, question: str, **switches) -> str:
        """The chat template of tokenizer_config.json, rendered as transformers does."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(self.settings["chat_template"])
        message = {"role": "user", "content": f"(<image>./</image>)\n{question}"}
        special = {k: v for k, v in self.settings.items() if k.endswith("_token") and isinstance(v, str)}
        return template.render(messages=[message], add_generation_prompt=True, **special, **switches)

    def placeholder(self, the_plan: Plan) -> str:
        """The image's number, the overview, then rows of slices; no newline after the last row."""
        filler = "<unk>" * self.config["query_num"]
        text = f"<image>{filler}</image>"
        if self.config.get("use_image_id", True):
            text = "<image_id>0</image_id>" + text
        row = f"<slice>{filler}</slice>" * the_plan.columns
        return text + "\n".join([row] * the_plan.rows)

    def prompt(self, question: str, look: Look, variant: str) -> Prompt:
        switches = {"enable_thinking": variant == "thinking"} if self.config["version"] == 4.5 else {}
        chat = self.chat(question, **switches)
        text = chat.replace("(<image>./</image>)", self.placeholder(look.plan))
        ids = self.tokenizer.encode(text).ids
        opening = [self.tokenizer.token_to_id(t) for t in ("<image>", "<slice>")]
        closing = [self.tokenizer.token_to_id(t) for t in ("</image>", "</slice>")]
        bounds = list(zip([i + 1 for i, t in enumerate(ids) if t in opening],
                          [i for i, t in enumerate(ids) if t in closing]))
        embeds = self.embed(ids)
        for (start, end), tokens in zip(bounds, look.tokens, strict=True):
            embeds[start:end] = tokens
        return Prompt(chat, ids, embeds, len(embeds), bounds)

    def text(self, ids: list[int], variant: str) -> str:
        """The remote code drops id 0 anywhere, one leading BOS, and a final end token."""
        ids = [i for i in ids if i != 0]
        if ids and ids[0] == self.tokenizer.token_to_id(self.settings["bos_token"]):
            ids = ids[1:]
        if ids and ids[-1] in self.eos:
            ids = ids[:-1]
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip()


def open_checkpoint(folder: Path) -> Family:
    config = read_json(folder / "config.json")
    family = MiniCpmV if config["model_type"] == "minicpmv" else Llava
    with torch.no_grad():
        return family(folder, config, read_weights(folder))


def f32_bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, dtype="<f4").tobytes()
