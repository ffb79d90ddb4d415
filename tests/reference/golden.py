"""Reference numbers of the exported model for a few example images.

Everything is computed in f32 from the f16-rounded weights.  `golden.json` has
the plan, the prompt ids (-1 marks a visual token), and greedy answers;
`golden.safetensors` has visual tokens and first-step logits:

    {file}.visual    [slices + 1, 16, hidden]  row-major slices, then the overview
    {file}.logits.k  [vocab]                   prompt k, before the first new token

    python golden.py --model crates/slicemill-model/embedded \\
        --examples examples --out tests/data/embedded
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import tokenizer as tok
from batches import prefix_ids
from evaluate import encode_image
from export import load_exported
from slicing import cut, plan

FILES = ["scene-00.png", "scene-03.png", "scene-05.png", "scene-13.png", "scene-17.png",
         "scene-25.jpg"]
MAX_NEW_TOKENS = 48


def hidden_at_end(model, ids: list[int], visual) -> torch.Tensor:
    """Logits [vocab] after the last id of one unpadded sequence."""
    tokens = torch.tensor([ids])
    x = model.model.embed_tokens(tokens.clamp_min(0))
    x[0, tokens[0] == -1] = visual
    length = len(ids)
    bias = torch.full((length, length), -1e4).triu(1)[None, None]
    hidden = model.decode(x, torch.arange(length)[None], bias)
    return model.logits(hidden)[0, -1]


def greedy(model, ids: list[int], visual) -> tuple[list[int], torch.Tensor]:
    """Greedy ids without the end token, and the first step's logits."""
    first = logits = hidden_at_end(model, ids, visual)
    found: list[int] = []
    while len(found) < MAX_NEW_TOKENS:
        token = int(logits.argmax())
        if token == tok.EOS:
            break
        found.append(token)
        logits = hidden_at_end(model, ids + found, visual)
    return found, first


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, encoder = load_exported(args.model)
    width = model.cfg.hidden_size
    weights = (args.model / "model.safetensors").read_bytes()
    lines = (args.examples / "scenes.jsonl").read_text(encoding="utf-8").splitlines()
    truths = {t["file"]: t for t in map(json.loads, lines)}
    tensors, images = {}, []
    for name in FILES:
        image = Image.open(args.examples / "images" / name).convert("RGB")
        the_plan = plan(*image.size)
        visual = encode_image(model, image, the_plan)
        tensors[f"{name}.visual"] = visual.reshape(-1, model.cfg.queries, width).contiguous()
        asked = [("Describe this image.", truths[name]["caption"])]
        asked += [(q["question"], q["answer"]) for q in truths[name]["questions"]
                  if q["kind"] in ("count", "text")]
        prompts = []
        for index, (question, answer) in enumerate(asked):
            ids = prefix_ids(the_plan, encoder) + encoder.question(question)
            found, logits = greedy(model, ids, visual)
            tensors[f"{name}.logits.{index}"] = logits.contiguous()
            prompts.append({"question": question, "prompt_ids": ids, "greedy_ids": found,
                            "greedy_text": encoder.decode(found), "true_answer": answer})
        images.append({
            "file": name, "width": image.width, "height": image.height,
            "columns": the_plan.columns, "rows": the_plan.rows,
            "slice_size": list(the_plan.slice_size), "overview_size": list(the_plan.overview_size),
            "view_pixel_sums": [int(v.astype(np.int64).sum()) for v in cut(image, the_plan)],
            "prompts": prompts})
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.out / "golden.safetensors")
    document = {"weights_sha256": hashlib.sha256(weights).hexdigest(), "images": images}
    (args.out / "golden.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for image in images:
        for prompt in image["prompts"]:
            print(image["file"], "|", prompt["question"], "|", prompt["greedy_text"].strip(), "|",
                  prompt["true_answer"])


if __name__ == "__main__":
    main()
