"""Runs a checkpoint over the images and records what it answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import PIL
import torch
import transformers
from PIL import Image
from safetensors.torch import save

from . import decoders
from .check import three_rows, view_record
from .families import Family, Llava, Look, Prompt
from .pictures import PICTURES
from .views import open_rgb

BEAMS = (3, 5)


def compact(value, depth: int = 0) -> str:
    """JSON with one line per entry, and lists of plain values on a line of their own."""
    pad = " " * (depth + 1)
    if isinstance(value, dict) and value:
        rows = [f"{pad}{json.dumps(k)}: {compact(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + pad[1:] + "}"
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return "[\n" + ",\n".join(pad + compact(v, depth + 1) for v in value) + "\n" + pad[1:] + "]"
    return json.dumps(value, ensure_ascii=False)


def rounded(values, digits: int = 5) -> list[float]:
    return [round(float(v), digits) for v in values]


class Recorder:
    def __init__(self, family: Family, images: Path, with_beams: bool):
        self.family, self.images, self.with_beams = family, images, with_beams
        self.exact = decoders.double(family.decoder)
        self.tensors: dict[str, torch.Tensor] = {}
        self.runs = self.unstable = 0

    def beams(self, prompt: Prompt, greedy: decoders.Greedy, alone: bool) -> list[dict]:
        """With the real end tokens, and with frequent tokens as end tokens: hypotheses then finish early."""
        records = []
        for count in BEAMS:
            best = decoders.beam(self.family.decoder, prompt.embeds, self.family.eos, count)
            records.append((count, 1.0, self.family.eos, best))
        ids = records[-1][3].ids
        early = sorted({*ids[len(ids) // 3:][:1], *ids[-1:], greedy.ids[len(greedy.ids) // 2]})
        if alone:
            for count, penalty in ((3, 1.0), (5, 1.0), (5, 0.0), (3, 2.0)):
                best = decoders.beam(self.family.decoder, prompt.embeds, early, count, penalty)
                records.append((count, penalty, early, best))
        out = []
        for count, penalty, eos, best in records:
            stable = decoders.beam(self.exact, prompt.embeds, eos, count, penalty).ids == best.ids
            other = decoders.installed_beam(self.family.decoder, prompt.embeds, eos, count, penalty).ids
            self.unstable += not stable
            out.append({"num_beams": count, "length_penalty": penalty, "early_stopping": False, "eos_token_ids": eos,
                        "beam_ids": best.ids, "sequences_score": round(best.score, 6), "same_in_f64": stable,
                        "same_in_transformers": other == best.ids})
        return out

    def run(self, index: int, question: str, look: Look, variant: str) -> dict:
        family = self.family
        prompt = family.prompt(question, look, variant)
        found = decoders.greedy(family.decoder, prompt.embeds, family.eos)
        self.runs += 1
        self.unstable += decoders.greedy(self.exact, prompt.embeds, family.eos).ids != found.ids
        top = found.logits[0].topk(8)
        record = {"prompt": index, "text": question}
        record |= {"full_prompt" if isinstance(family, Llava) else "chat_text": prompt.text, "prompt_ids": prompt.ids}
        if prompt.bounds:
            record["image_bound"] = [list(b) for b in prompt.bounds]
        record |= {"embeds_len": len(prompt.embeds), "embeds_len_untruncated": prompt.full_length,
                   "output_ids": found.ids, "text_out": family.text(found.ids, variant), "gap": found.gaps,
                   "min_gap": min(found.gaps), "logit_std": round(float(found.logits[0].std()), 4),
                   "step0_top8_ids": top.indices.tolist(), "step0_top8": rounded(top.values)}
        scaling = family.config.get("rope_scaling") or {}
        if original := scaling.get("original_max_position_embeddings"):
            ends = len(prompt.embeds) + len(found.ids) - 1  # the last id is not fed back
            short, long = ends <= original, len(prompt.embeds) > original
            record["longrope"] = "short" if short else "long" if long else "crosses"
        if self.with_beams:
            record["beams"] = self.beams(prompt, found, index == 0)
        return record

    def case(self, image: str, variant: str, prompts: list[tuple[int, str]]) -> dict:
        look = self.family.look(self.images / image, variant)
        key = f"{Path(image).stem}.{variant}"
        record = {"image": image, "variant": variant, "key": key}
        if look.plan:
            plan = look.plan
            record["plan"] = {"cols": plan.columns, "rows": plan.rows, "slice_w": plan.slice_size[0],
                              "slice_h": plan.slice_size[1], "overview_w": plan.overview_size[0],
                              "overview_h": plan.overview_size[1]}
            if isinstance(self.family, Llava):
                record["plan"] = {"pre_resize": list(plan.source_size), **record["plan"],
                                  "separators": self.family.separators(plan)}
        record["views"] = [view_record(v, not isinstance(self.family, Llava)) for v in look.views]
        if variant != "thinking":  # the same pixels as `raw`
            self.tensors[f"{key}.vit_rows"] = three_rows(look.features).contiguous()
            self.tensors[f"{key}.projected_rows"] = three_rows(look.tokens).contiguous()
        record["runs"] = [self.run(i, text, look, variant) for i, text in prompts]
        return record


@torch.no_grad()
def record(family: Family, about: str, images: Path, prompts: list[str], with_beams: bool = True) -> tuple[dict, dict]:
    recorder = Recorder(family, images, with_beams)
    cases = []
    for name, *_ in PICTURES:
        for variant, which in family.variants.items():
            chosen = [(i, p) for i, p in enumerate(prompts) if which is None or i in which]
            cases.append(recorder.case(name, variant, chosen))
    runs = [run for case in cases for run in case["runs"]]
    least = min(run["min_gap"] for run in runs)
    index = {
        "family": about,
        "env": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__,
                "pillow": PIL.__version__, "device": "cpu", "threads": 1},
        "compute_dtype": "float32", "alpha": "drop", "orientation": "ignore",
        "generation": {"do_sample": False, "num_beams": 1, "max_new_tokens": decoders.NEW_TOKENS, "use_cache": True,
                       "eos_token_ids": family.eos},
        "prompts": prompts, "min_gap_over_all": least,
        "runs": len(runs), "distinct_outputs": len({tuple(r["output_ids"]) for r in runs}),
        "differing_in_f64": recorder.unstable, "cases": cases}
    return index, recorder.tensors


def write(folder: Path, index: dict, tensors: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(compact(index) + "\n", encoding="utf-8")
    (folder / "tensors.safetensors").write_bytes(save(tensors))  # save_file would make it private


def describe_images(folder: Path) -> None:
    """images.json: the decoded bytes, so that a decoder's fault is not taken for a model's."""
    rows = []
    for name, *_ in PICTURES:
        with Image.open(folder / name) as image:
            mode, size = image.mode, image.size
        digest = hashlib.sha256(open_rgb(folder / name).tobytes()).hexdigest()
        rows.append({"file": name, "mode": mode, "width": size[0], "height": size[1], "rgb_sha256": digest})
    (folder / "images.json").write_text(compact({"images": rows}) + "\n", encoding="utf-8")
