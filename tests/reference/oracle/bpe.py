"""A small byte-level BPE tokenizer.json with Qwen2's pre-tokeniser and added tokens."""

from __future__ import annotations

from collections import Counter

from tokenizers import Regex, pre_tokenizers

from .spm import learn

PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins, in the order of Qwen's vocabulary: printable bytes first."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(rest))]


def tokenizer(text: str, merges: int, added: list[str], plain: tuple[str, ...] = ()) -> dict:
    """`added` follow the learned pieces; those in `plain` are not special, as Qwen3's think tags."""
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PATTERN), "isolated", invert=False),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = Counter(word for word, _ in split.pre_tokenize_str(text))
    pairs = learn(words, merges)
    vocab = {c: i for i, c in enumerate(byte_alphabet())}
    for pair in pairs:
        vocab.setdefault("".join(pair), len(vocab))
    tokens = [{"id": len(vocab) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": token not in plain} for i, token in enumerate(added)]
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": vocab, "merges": [" ".join(pair) for pair in pairs]}}
