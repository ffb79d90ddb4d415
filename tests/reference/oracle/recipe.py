"""Weights as a rule: every value follows from the tensor's name, the seed and its index.

`recipe.json` lists the tensors; whoever can multiply 64-bit integers can
rebuild the checkpoint, bit for bit, without Python and without keeping it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


@dataclass
class Tensor:
    name: str
    shape: list[int]
    dtype: str  # F32, F16 or BF16
    scale: float
    offset: float
    file: str


def fnv1a64(text: str) -> int:
    state = 0xCBF29CE484222325
    for byte in text.encode("utf-8"):
        state = (state ^ byte) * 0x100000001B3 & MASK
    return state


def uniform(name: str, seed: int, count: int) -> np.ndarray:
    """f32 values in [-1, 1): splitmix64 of (name, seed, index), the top 24 bits kept."""
    start = (fnv1a64(name) + seed * GOLDEN) & MASK
    z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0 ** -24)
    return np.float32(2) * u - np.float32(1)


def to_bf16_bits(values: np.ndarray) -> np.ndarray:
    """The upper half of an f32, rounded to nearest, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def data(tensor: Tensor, seed: int) -> bytes:
    """Little-endian bytes, row-major.  Scale and offset are f32; each operation rounds on its own."""
    values = uniform(tensor.name, seed, prod(tensor.shape))
    values = values * np.float32(tensor.scale) + np.float32(tensor.offset)
    if tensor.dtype == "BF16":
        return to_bf16_bits(values).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[tensor.dtype]).tobytes()


def grouped(tensors: list[Tensor]) -> dict[str, list[Tensor]]:
    files: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        files.setdefault(tensor.file, []).append(tensor)
    return files


def safetensors_bytes(tensors: list[Tensor], seed: int) -> tuple[bytes, str]:
    """The file, and the sha256 of its data part (tensors in the order of the recipe)."""
    header, parts, at = {"__metadata__": {"format": "pt"}}, [], 0
    for tensor in tensors:
        part = data(tensor, seed)
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + len(part)]}
        parts.append(part)
        at += len(part)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    body = b"".join(parts)
    return struct.pack("<Q", len(text)) + text + body, hashlib.sha256(body).hexdigest()


def torch_tensor(tensor: Tensor, seed: int) -> torch.Tensor:
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    flat = torch.frombuffer(bytearray(data(tensor, seed)), dtype=dtypes[tensor.dtype])
    return flat.reshape(tensor.shape)


def index_text(tensors: list[Tensor]) -> str:
    """model.safetensors.index.json or pytorch_model.bin.index.json."""
    width = {"F32": 4, "F16": 2, "BF16": 2}
    total = sum(prod(t.shape) * width[t.dtype] for t in tensors)
    weight_map = {t.name: t.file for t in sorted(tensors, key=lambda t: t.name)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n"


def write(folder: Path, seed: int, tensors: list[Tensor]) -> dict[str, str]:
    """Writes the files and, where a name says "-of-", their index.  Returns data digests per file.

    Torch files (`.bin`) hold the same values; they have no digest, because their bytes are torch's.
    """
    digests = {}
    for file, members in grouped(tensors).items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".bin"):
            torch.save({t.name: torch_tensor(t, seed) for t in members}, path)
        else:
            content, digests[file] = safetensors_bytes(members, seed)
            path.write_bytes(content)
    sharded = [t for t in tensors if "-of-" in t.file]
    if sharded:
        kind = "pytorch_model.bin" if sharded[0].file.endswith(".bin") else "model.safetensors"
        (folder / f"{kind}.index.json").write_text(index_text(sharded), encoding="utf-8")
    return digests


def document(seed: int, tensors: list[Tensor], digests: dict[str, str], sentencepiece: dict | None) -> dict:
    recipe = {"seed": seed, "tensors": [asdict(t) for t in tensors], "data_sha256": digests}
    return recipe | ({"sentencepiece": sentencepiece} if sentencepiece else {})


def rebuild(folder: Path, out: Path) -> None:
    """Makes a loadable checkpoint of a committed folder: its small files, the weights, the tokenizer."""
    import shutil

    from . import spm
    recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    shutil.copytree(folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("expected", "recipe.json"))
    tensors = [Tensor(**t) for t in recipe["tensors"]]
    if any(t.file.endswith(".bin") for t in tensors):
        return  # committed as they are
    if write(out, recipe["seed"], tensors) != recipe["data_sha256"]:
        raise ValueError(f"{folder}: the rebuilt weights differ from those of the recipe")
    if "sentencepiece" in recipe:
        (out / "tokenizer.model").write_bytes(spm.model(recipe["sentencepiece"]))
