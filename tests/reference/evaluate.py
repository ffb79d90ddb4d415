"""Scores an exported model on held-out scenes through the full-size pipeline.

Scenes are rendered at full size and cut with PIL; answers are checked for
exact match.  Teacher-forced arg-max on every answer token equals greedy
decoding, so one forward pass scores all questions of an image.

    python evaluate.py --model crates/slicemill-model/embedded --count 1000
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import questions
from batches import IGNORE, pack, prefix_ids, visual_tokens
from export import load_exported
from scenes import held_out, render
from slicing import Plan, cut, normalise, patchify, plan

TEST_SEED = 424242


def encode_image(model, image, the_plan: Plan):
    """Visual tokens [(n+1)*Q, E] of one image."""
    views = cut(image, the_plan)
    encoded = []
    for group in (views[:-1], views[-1:]):
        if group:
            pixels = torch.from_numpy(np.stack([normalise(patchify(v)) for v in group]))
            grid = (group[0].shape[0] // 14, group[0].shape[1] // 14)
            encoded.append(model.encode(pixels, [grid] * len(group))[0])
    return visual_tokens(encoded, 1)[0]


def score(model, encoder, visual, the_plan: Plan, asked) -> list[tuple[bool, float]]:
    """Per (question, answer): exact match, and the share of right answer tokens."""
    segments = [(encoder.question(q), encoder.answer(a)) for q, a in asked]
    prefix = prefix_ids(the_plan, encoder)
    tokens, positions, bias, targets, numbers = pack(prefix, [segments])
    x = model.model.embed_tokens(tokens.clamp_min(0))
    x[0, tokens[0] == -1] = visual
    guess = model.logits(model.decode(x, positions, bias))[0].argmax(-1)
    wanted = targets[0] != IGNORE
    right = (guess == targets[0])[wanted]
    owner = numbers[0][wanted]
    return [(bool(right[owner == i].all()), float(right[owner == i].float().mean()))
            for i in range(len(asked))]


@torch.no_grad()
def evaluate(model, encoder, count: int, seed: int, views: str):
    """Results as {name: [exact, total]}; `views` is "slices" or "overview"."""
    table = defaultdict(lambda: [0, 0])

    def note(name, exact):
        table[name][0] += int(exact)
        table[name][1] += 1

    for index in range(count):
        scene, rng = held_out(seed, index)
        the_plan = plan(scene.width, scene.height)
        image = render(scene)
        if views == "overview":
            the_plan = Plan(0, 0, (0, 0), the_plan.overview_size)
        visual = encode_image(model, image, the_plan)
        items = [{"kind": "caption", "question": questions.CAPTION_PROMPT,
                  "answer": questions.caption(scene)}] + questions.all_questions(scene, rng)
        results = score(model, encoder, visual, the_plan,
                        [(i["question"], i["answer"]) for i in items])
        size = scene.text.size if scene.text else "none"
        small = size == "small"
        for item, (exact, _) in zip(items, results):
            note(item["kind"], exact)
            if item["kind"] in ("caption", "text"):
                note(f"{item['kind']}, {size} text", exact)
                if small:
                    where = "straddling a cut" if scene.text.straddles else "inside one slice"
                    note(f"{item['kind']}, small text {where}", exact)
        slices = plan(scene.width, scene.height).slices
        note(f"caption, {slices} slices", results[0][0])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=TEST_SEED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slices-only", action="store_true", help="skip the overview-only column")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, encoder = load_exported(args.model)
    started = time.time()
    full = evaluate(model, encoder, args.count, args.seed, "slices")
    bare = {} if args.slices_only else evaluate(model, encoder, args.count, args.seed, "overview")
    print(f"{args.count} held-out scenes, seed {args.seed}, {time.time() - started:.0f} s")
    print("| exact match | slices + overview | overview only | n |\n|---|---|---|---|")
    for name in sorted(full):
        exact, total = full[name]
        other = f"{100 * bare[name][0] / bare[name][1]:.1f} %" if name in bare else "-"
        print(f"| {name} | {100 * exact / total:.1f} % | {other} | {total} |")


if __name__ == "__main__":
    main()
