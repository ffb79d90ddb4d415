"""SentencePiece models by rule: BPE with byte fallback and LLaMA's settings, written field by field.

A model is described by its size and its meaningful pieces; all other ids are
fillers that no text can reach, because no pair of pieces merges into them.
"""

from __future__ import annotations

import struct
from collections import Counter

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
SPACE = "\u2581"
FIRST = 259  # after <unk> <s> </s> and 256 bytes; ids 3..258 are <0x00>..<0xFF>
# In this order 29,871 is the space and 29,892 the comma when the table ends at 30,000.
CHARACTERS = list(SPACE + "etainorsldhcumpgf.by,wkvISTADCEMxqjzBNFLRPHOUGWYVKJXQZ0123456789"
                  + "'\"?!:;-()/&*+=_<>@#$%[]{}|\\~^`"
                  + "éüñßøçàèöäáíóúαβγабвг中文图像的是一你好日本語。,、∑→°€£”’")


def learn(words: Counter, count: int) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding: most frequent pair first, ties by text."""
    split = {word: list(word) for word in words}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        for parts in split.values():
            for i in range(len(parts) - 2, -1, -1):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    parts[i:i + 2] = ["".join(best)]
    return merges


def describe(size: int, text: str, merges: int, characters: int = 0) -> dict:
    """Learned pieces from id 259 on, single characters at the end, fillers between.

    With 30,000 pieces the characters start at 29,871, as in LLaMA's model of 32,000.
    """
    words = Counter(SPACE + word for word in text.split())
    learned = list(dict.fromkeys("".join(pair) for pair in learn(words, merges)))
    single = list(dict.fromkeys(CHARACTERS))
    single = single[:characters or size - FIRST - len(learned)]
    start = size - len(single)
    if size == 30000:
        start, single = 29871, single[:size - 29871]
    table = {FIRST + i: text for i, text in enumerate(learned)}
    table |= {start + i: text for i, text in enumerate(single)}
    return {"size": size, "filler": SPACE + "filler{id}",
            "pieces": {str(i): [text, float(FIRST - i)] for i, text in table.items()}}


def piece(description: dict, index: int) -> tuple[str, float, int]:
    """Text, score and type of one id."""
    if index < 3:
        return ["<unk>", "<s>", "</s>"][index], 0.0, UNKNOWN if index == 0 else CONTROL
    if index < FIRST:
        return f"<0x{index - 3:02X}>", 0.0, BYTE
    if str(index) in description["pieces"]:
        return *description["pieces"][str(index)], NORMAL
    return description["filler"].replace("{id}", str(index)), float(FIRST - index), NORMAL


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, value) -> bytes:
    """One protobuf field; the Python type says how it is written."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode("utf-8") if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def model(description: dict) -> bytes:
    """A ModelProto: pieces (1), trainer_spec (2), normalizer_spec (3)."""
    pieces = b""
    for index in range(description["size"]):
        text, score, kind = piece(description, index)
        pieces += field(1, field(1, text) + field(2, score) + field(3, kind))
    trainer = (field(3, 2) + field(4, description["size"]) + field(35, True) + field(40, 0) + field(41, 1)
               + field(42, 2) + field(43, -1))  # BPE, size, byte_fallback, unk, bos, eos, no pad
    normalizer = field(1, "identity") + field(3, True) + field(4, False) + field(5, True)
    return pieces + field(2, trainer) + field(3, normalizer)


def fast(description: dict, added: list[str], bos: bool = True) -> dict:
    """The same tokenizer as a tokenizer.json, with added special tokens from `size` on."""
    rows = [piece(description, i) for i in range(description["size"])]
    vocab = {text: i for i, (text, _, _) in enumerate(rows)}
    merges = []
    for text, score, kind in rows:
        if kind == NORMAL:
            splits = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in vocab and text[i:] in vocab]
            merges += [(score, left, right) for left, right in sorted(splits, key=lambda s: (vocab[s[0]], vocab[s[1]]))]
    merges.sort(key=lambda m: -m[0])
    special = [(i, rows[i][0]) for i in range(3)] + [(len(rows) + i, t) for i, t in enumerate(added)]
    sequence = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    start = [{"SpecialToken": {"id": "<s>", "type_id": 0}}] if bos else []
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i, t in special],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": start + sequence[:1], "pair": start + sequence,
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}} if bos else {}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": [f"{left} {right}" for _, left, right in merges]}}
