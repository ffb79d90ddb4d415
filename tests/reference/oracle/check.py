"""Compares the oracle with expected outputs that were made elsewhere (or by an earlier oracle)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

from . import decoders
from .families import Look, f32_bytes, open_checkpoint
from .views import View, packed

ROW_TOLERANCE = 1e-4  # relative to the largest value of the compared rows
LOGIT_TOLERANCE = 1e-2


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def view_record(view: View, sliced: bool) -> dict:
    """A view as index.json describes it; MiniCPM-V hashes the packed form."""
    height, width = view.u8.shape[:2]
    record = {"kind": view.kind, "w": width, "h": height, "u8_rgb_sha256": sha256(view.u8.tobytes())}
    if sliced:
        return record | {"tgt_size_hw": list(view.grid), "f32_packed_sha256": sha256(f32_bytes(packed(view.pixels)))}
    return record | {"f32_chw_sha256": sha256(f32_bytes(view.pixels)), "vit_tokens": view.grid[0] * view.grid[1]}


def three_rows(tensors: list[torch.Tensor]) -> torch.Tensor:
    """First, middle and last row of every view: [views, 3, width]."""
    return torch.stack([t[[0, (len(t) - 1) // 2, len(t) - 1]] for t in tensors])


def row_choices(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The middle row may be counted from either side."""
    other = torch.stack([t[[0, len(t) // 2, len(t) - 1]] for t in tensors])
    return [three_rows(tensors), other]


class Tally:
    """Counts of agreeing and differing things, and the largest relative difference of each kind."""

    def __init__(self) -> None:
        self.same, self.different, self.worst = Counter(), Counter(), {}

    def equal(self, kind: str, ours, theirs, where: str) -> None:
        (self.same if ours == theirs else self.different)[kind] += 1
        if ours != theirs:
            print(f"  {where}: {kind} differ: {str(ours)[:200]} / {str(theirs)[:200]}")

    def near(self, kind: str, ours: list[torch.Tensor], theirs: torch.Tensor, tolerance: float, where: str,
             relative: bool = True) -> None:
        scale = float(theirs.abs().max()) if relative else 1.0
        error = min(float((o.reshape(theirs.shape) - theirs).abs().max()) / scale for o in ours)
        self.worst[kind] = max(self.worst.get(kind, 0.0), error)
        (self.same if error <= tolerance else self.different)[kind] += 1
        if error > tolerance:
            print(f"  {where}: {kind} differ by {error:.3g}")


def compare_look(tally: Tally, case: dict, look: Look, tensors: dict) -> None:
    key = case["key"]
    for i, (view, theirs) in enumerate(zip(look.views, case["views"], strict=True)):
        ours = view_record(view, "tgt_size_hw" in theirs)
        for kind in theirs.keys():
            tally.equal("pixels" if "sha256" in kind else "sizes", ours[kind], theirs[kind], f"{key}[{i}].{kind}")
    for kind, ours in (("vit_rows", look.features), ("projected_rows", look.tokens)):
        if f"{key}.{kind}" in tensors:
            tally.near(kind, row_choices(ours), tensors[f"{key}.{kind}"], ROW_TOLERANCE, key)


@torch.no_grad()
def check(folder: Path, checkpoint: Path | None = None, images: Path | None = None) -> bool:
    """`folder` has checkpoint/ and expected/; images are beside it unless given."""
    expected = json.loads((folder / "expected/index.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "expected/tensors.safetensors")
    family = open_checkpoint(checkpoint or folder / "checkpoint")
    tally = Tally()
    for case in expected["cases"]:
        look = family.look((images or folder.parent / "images") / case["image"], case.get("look", case["variant"]))
        if "plan" in case and hasattr(family, "separators") and "separators" in case["plan"]:
            tally.equal("separators", family.separators(look.plan), case["plan"]["separators"], case["key"])
        compare_look(tally, case, look, tensors)
        for run in case["runs"]:
            where = f"{case['key']} prompt {run['prompt']}"
            prompt = family.prompt(run["text"], look, case["variant"])
            tally.equal("prompt ids", prompt.ids, run["prompt_ids"], where)
            tally.equal("lengths", len(prompt.embeds), run["embeds_len"], where)
            if "chat_text" in run:
                tally.equal("chat text", prompt.text, run["chat_text"], where)
            found = decoders.greedy(family.decoder, prompt.embeds, family.eos)
            tally.equal("output ids", found.ids, run["output_ids"], where)
            tally.equal("text", family.text(found.ids, case["variant"]), run["text_out"], where)
            ours = found.logits[0][run["step0_top8_ids"]]
            tally.near("logits", [ours], torch.tensor(run["step0_top8"]), LOGIT_TOLERANCE, where, relative=False)
            for theirs in run.get("beams", []):
                settings = theirs["eos_token_ids"], theirs["num_beams"], theirs["length_penalty"]
                best = decoders.beam(family.decoder, prompt.embeds, *settings)
                if theirs["same_in_transformers"] or decoders.PINNED:
                    other = decoders.installed_beam(family.decoder, prompt.embeds, *settings)
                    tally.equal("beam ids of transformers", other.ids, theirs["beam_ids"], where)
                tally.equal("beam ids", best.ids, theirs["beam_ids"], where)
                tally.near("beam scores", [torch.tensor(best.score)], torch.tensor(theirs["sequences_score"]),
                           LOGIT_TOLERANCE, where, relative=False)
    for kind in sorted(tally.same | tally.different):
        worst = f", largest difference {tally.worst[kind]:.2g}" if kind in tally.worst else ""
        print(f"  {kind}: {tally.same[kind]} agree, {tally.different[kind]} differ{worst}")
    return not tally.different
