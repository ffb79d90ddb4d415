"""Cases apart from any checkpoint's weights: tokenizers, and beam search over a table of logits."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer
from transformers import GenerationConfig, GenerationMixin, LlamaConfig, LlamaTokenizer, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from . import beams, recipe
from .layouts import PROMPTS, VICUNA

TEXTS = [
    "", " ", "  ", "a", " a", "  a", "a ", "a  b", "\n", " \n", "\n\n", "a\nb", "\ta",
    "Describe this image in detail.", *PROMPTS[1:], *VICUNA.format(q=PROMPTS[0]).split("<image>"),
    "USER: hello ASSISTANT: hi</s>USER: more ASSISTANT:", "</s>", "<s>", "<unk>", "a</s>b", "a </s> b",
    " </s>", "</s> ", "<s> a", "<s>a<s>", "</s></s>", "<unk>x", "</s", "<0x0A>", "\u2581", "a\u2581b",
    "\u2581\u2581 a", "caf\xe9 na\xefve", "cafe\u0301", "\u4e2d\u6587\u56fe\u50cf",
    "\u4e2d\u6587, \u56fe\u50cf\u7684\u5b57", "\u65e5\u672c\u8a9e\u306e\u8a00\u8449", "\U0001f600",
    "a \U0001f468\u200d\U0001f469\u200d\U0001f467 b", "\ufb01ne \u2460 \uff21", "\xa0x", "a\u200bb", "\r\n",
    "tab\tand\u3000wide", "1234567890", '3.14, 1e-5; (x+y)*2 = "z"', "filler300 \u2581filler300",
    "don't we'll I'M", "<image>", "<image>\nWhat is it?", "a <image> b", "<|im_start|>user\nhi<|im_end|>\n",
    "<image_id>0</image_id><image><unk><unk></image>", "<slice><unk></slice>\n<slice>",
    "<think>\n\n</think>\n\nyes", "x" * 40, " ".join(["the"] * 12),
]
DECODES = [[], [1], [2], [1, 2], [0], [3, 13, 258], [200, 201, 202], [231, 187, 176], [243, 162, 155, 131],
           [65, 200, 66], [13], [13, 13], [35], [35, 35, 68], [259], [259, 260, 261], [1, 259, 2],
           [259, 0, 260], [72, 2, 105]]


def sentencepiece_cases(folder) -> dict:
    """The slow LlamaTokenizer, both ways of treating text after a special token; BOS is added.

    `legacy` false is what tokenizer_config.json of the layouts says.
    """
    modes = {name: LlamaTokenizer(str(folder / "tokenizer.model"), legacy=legacy, add_bos_token=True,
                                  clean_up_tokenization_spaces=False)
             for name, legacy in (("ids", False), ("ids_legacy", True))}
    rows = [{"text": text} | {name: t(text).input_ids for name, t in modes.items()} for text in TEXTS]
    slow = modes["ids"]
    decodes = DECODES + [row["ids"] for row in rows[13:24]]
    return {"cases": rows,
            "decode": [{"ids": ids, "text": slow.decode(ids, skip_special_tokens=True)} for ids in decodes]}


def fast_cases(folder) -> dict:
    """tokenizer.json as the `tokenizers` library reads it, special tokens of the post-processor included."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [{"text": text, "ids": tokenizer.encode(text).ids} for text in TEXTS]
    decodes = DECODES + [row["ids"] for row in rows[13:24]]
    return {"cases": rows,
            "decode": [{"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=False),
                        "text_without_special": tokenizer.decode(ids, skip_special_tokens=True)} for ids in decodes]}


def tokenizer_cases(folder) -> dict:
    """`folder` is loadable; a layout may have both kinds of tokenizer."""
    kinds = ((fast_cases, "tokenizer.json"), (sentencepiece_cases, "tokenizer.model"))
    return {name: cases(folder) for cases, name in kinds if (folder / name).exists()}


class Table(PreTrainedModel, GenerationMixin):
    """A language model whose logits follow from the step and the last id, by the recipe's rule."""

    config_class = LlamaConfig

    def __init__(self, name: str, vocab: int, steps: int, scale: float):
        super().__init__(LlamaConfig(vocab_size=vocab, num_hidden_layers=1))
        values = recipe.uniform(name, 1, steps * vocab * vocab).reshape(steps, vocab, vocab)
        self.logits = torch.nn.Parameter(torch.from_numpy(values) * scale, requires_grad=False)

    def forward(self, input_ids, attention_mask=None, **_):
        rows = self.logits[input_ids.shape[1] - 1, input_ids[:, -1]]
        return CausalLMOutput(logits=rows[:, None].repeat(1, input_ids.shape[1], 1))

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids}


def without_end(ids: list[int], eos: list[int]) -> list[int]:
    """transformers ends with the real end token or with the first of the list, by version."""
    ends = [i for i, token in enumerate(ids) if token in eos]
    return ids[:ends[0]] if ends else ids


@torch.no_grad()
def beam_cases() -> dict:
    """Vocabulary 12, prompt of one id; many end tokens, so that hypotheses finish at all lengths.

    Recorded is `beams.search`; cases in which the installed transformers finds something else are named.
    """
    rows, other = [], []
    for index in range(90):
        scale, steps = [1.0, 2.0, 4.0][index % 3], [3, 8, 16][index // 3 % 3]
        model = Table(f"beam/{index}", 12, steps, scale)
        eos = [[2], [2, 5], [2, 5, 7, 9]][index // 9 % 3]
        count, penalty = [2, 3, 5][index // 5 % 3], [1.0, 0.0, 2.0, 0.5, 1.0][index % 5]
        config = GenerationConfig(num_beams=count, do_sample=False, max_new_tokens=steps, eos_token_id=eos,
                                  pad_token_id=0, bos_token_id=1, length_penalty=penalty, early_stopping=False,
                                  use_cache=False, return_dict_in_generate=True, output_scores=True)
        out = model.generate(torch.tensor([[1]]), attention_mask=torch.ones(1, 1, dtype=torch.long),
                             generation_config=config)
        ids, score = beams.search(lambda new: model.logits[len(new[0]), [(n or [1])[-1] for n in new]], eos, count,
                                  penalty, steps)
        name = f"beam/{index}"
        if ids != without_end(out.sequences[0, 1:].tolist(), eos) or abs(score - float(out.sequences_scores[0])) > 1e-5:
            other.append(name)
        rows.append({"name": name, "scale": scale, "steps": steps, "eos_token_ids": eos, "num_beams": count,
                     "length_penalty": penalty, "early_stopping": False, "beam_ids": ids,
                     "sequences_score": round(score, 6)})
    print(f"beam cases: transformers {transformers.__version__} differs in {other}")
    return {"vocab": 12, "seed": 1, "first_id": 1,
            "about": "logits[step][last id][next id] = f32(scale * v), v of the recipe for this name and seed, "
                     "i = (step * 12 + last) * 12 + next; at step 0 the last id is first_id; beam_ids lack "
                     "the end token",
            "cases": rows}
