"""Builds a layout: the small files, the weights, and the expected outputs."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from . import cases, expected, recipe, spm
from .families import open_checkpoint
from .layouts import LAYOUTS, PROMPTS, Layout


def write_small_files(layout: Layout, folder: Path) -> None:
    for name, content in ({"config.json": layout.config} | layout.files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def materialise(layout: Layout, seed: int, folder: Path) -> dict[str, str]:
    """A loadable checkpoint; returns the digests of its weight files."""
    write_small_files(layout, folder)
    if layout.sentencepiece:
        (folder / "tokenizer.model").write_bytes(spm.model(layout.sentencepiece))
    return recipe.write(folder, seed, layout.tensors.tensors)


def build(name: str, out: Path, images: Path, seed: int | None = None) -> dict:
    """Writes `out`/`name`: everything but generated safetensors weights and generated tokenizers."""
    layout = LAYOUTS[name]()
    seed = layout.seed if seed is None else seed
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        digests = materialise(layout, seed, Path(scratch))
        index, tensors = expected.record(open_checkpoint(Path(scratch)), layout.about, images, PROMPTS)
        write_small_files(layout, folder)
        for file in Path(scratch).rglob("*.bin*"):
            kept = folder / file.relative_to(scratch)
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, kept)
    document = recipe.document(seed, layout.tensors.tensors, digests, layout.sentencepiece)
    (folder / "recipe.json").write_text(one_line_per_tensor(document), encoding="utf-8")
    expected.write(folder / "expected", index, tensors)
    return index


def write_cases(out: Path) -> None:
    """beam_cases.json, and tokenizer_cases.json of every built layout (none repeats another's tokenizer)."""
    (out / "beam_cases.json").write_text(expected.compact(cases.beam_cases()) + "\n", encoding="utf-8")
    for name in ("uhd-v1", "llava-1.5", "llava-1.5-hf", "minicpmv-2.6", "minicpmv-4.5", "minicpmv-4.0"):
        with tempfile.TemporaryDirectory() as scratch:
            recipe.rebuild(out / name, Path(scratch))
            found = cases.tokenizer_cases(Path(scratch))
        (out / name / "tokenizer_cases.json").write_text(expected.compact(found) + "\n", encoding="utf-8")


def one_line_per_tensor(document: dict) -> str:
    rows = ",\n  ".join(json.dumps(t, ensure_ascii=False) for t in document["tensors"])
    rest = {k: v for k, v in document.items() if k not in ("tensors", "seed")}
    tail = ",\n ".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in rest.items())
    return f'{{\n "seed": {document["seed"]},\n "tensors": [\n  {rows}\n ],\n {tail}\n}}\n'


def try_seeds(name: str, images: Path, seeds: range) -> None:
    """Prints what a seed gives, without beams: choose one with a comfortable gap."""
    for seed in seeds:
        layout = LAYOUTS[name]()
        with tempfile.TemporaryDirectory() as scratch:
            materialise(layout, seed, Path(scratch))
            index, _ = expected.record(open_checkpoint(Path(scratch)), layout.about, images, PROMPTS, False)
        runs = [run for case in index["cases"] for run in case["runs"]]
        print(f"{name} seed {seed}: least gap {index['min_gap_over_all']:.5f}, "
              f"{index['distinct_outputs']} distinct of {index['runs']}, "
              f"{len({tuple(r['output_ids']) for r in runs if r['prompt'] == 0})} of them for prompt 0, "
              f"tokens {len({t for r in runs for t in r['output_ids']})}, "
              f"lengths {min(r['embeds_len'] for r in runs)}..{max(r['embeds_len_untruncated'] for r in runs)}, "
              f"deviation {runs[0]['logit_std']}, f64 differs {index['differing_in_f64']}", flush=True)
