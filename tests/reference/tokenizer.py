"""The embedded model's tokenizer: byte-level BPE over a tiny fixed corpus.

Every frequent word is one token, every capital letter and digit stands alone
(apart from the role words `USER:` and `ASSISTANT:`), and the full byte
alphabet makes it total: any text has a tokenisation.

    python tokenizer.py --out tokenizer.json
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import questions

SPECIALS = ["<unk>", "<s>", "</s>"]
UNK, BOS, EOS = range(3)
# A word may start with one capital only when lower-case letters follow.
PATTERN = r"USER:| ASSISTANT:|ASSISTANT:| ?[A-Z]?[a-z]+|[A-Z]|[0-9]|[^A-Za-z0-9]"

PROMPT_BEFORE = "USER: "
PROMPT_AFTER = "\n{question} ASSISTANT:"


def build() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, show_progress=False,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(questions.corpus(), trainer)
    return tokenizer


class Encoder:
    """Token ids of prompts and answers, memoised."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.ids = lru_cache(maxsize=100_000)(self._ids)
        self.comma, self.newline = self.ids(",")[0], self.ids("\n")[0]
        self.before = [BOS] + self.ids(PROMPT_BEFORE)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def question(self, question: str) -> list[int]:
        return self.ids(PROMPT_AFTER.format(question=question))

    def answer(self, answer: str) -> list[int]:
        return self.ids(" " + answer) + [EOS]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def load(path: Path) -> Encoder:
    return Encoder(Tokenizer.from_file(str(path)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    build().save(str(parser.parse_args().out))
