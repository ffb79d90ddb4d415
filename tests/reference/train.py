"""Trains the embedded model on a CPU: two processes, one thread each, by wall clock.

The processes never wait for each other: every few steps each one moves itself
and a shared copy of the weights to their midpoint (elastic averaging), so a
process that loses its core for a while does not stop the other.

Stages: dense (vision tower and resampler only, crammed scenes), overview-heavy
language modelling, then the full mix of slice counts.  Every scene is fresh,
so the accuracies in the log are held-out accuracies.

    python train.py --state DIR --minutes 100
    python train.py --state DIR --minutes 100          # again: resumes
    touch DIR/stop                                     # saves and ends
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

import tokenizer as tok
from batches import AUX, IGNORE, Batch, make_batch, size_for, view_groups, visual_tokens
from model import Config, Llava, sincos
from scenes import dense_scene, random_scene
from slicing import plan

MEET_EVERY = 4
IMAGES = {0: 16, 2: 9, 3: 7, 4: 6, 5: 5, 6: 5}          # per process and step
MIX_DENSE = {0: 1, 2: 1, 4: 1, 5: 1.5, 6: 3}
MIX_OVERVIEW = {0: 5, 2: 2.5, 3: 0.6, 4: 0.8, 5: 0.3, 6: 0.6}
MIX_MIDDLE = {0: 2, 2: 2.5, 3: 0.8, 4: 1.2, 5: 0.8, 6: 2}
MIX_FULL = {0: 1.0, 2: 0.6, 3: 0.2, 4: 0.5, 5: 1.2, 6: 4.2}


def small_config(vocab_size: int) -> Config:
    return Config(vocab_size=vocab_size, hidden_size=192, intermediate_size=512,
                  num_hidden_layers=5, num_attention_heads=6, head_dim=32, vision_size=128,
                  vision_intermediate_size=512, vision_layers=5, vision_heads=4,
                  resampler_heads=6)


def warm_init(model: Llava, seed: int = 0) -> None:
    """Whitened-PCA patches, sine-cosine places, and matched orthogonal Q and K."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def rotation(n):
        return torch.linalg.qr(torch.randn(n, n, generator=generator))[0]

    rows = []
    for index in range(120):
        width, height = size_for((0, 2, 6)[index % 3], rng)
        make = dense_scene if index % 2 else random_scene
        for patches, _, _ in view_groups([make(rng, width, height)], plan(width, height), False):
            rows.append(patches.reshape(-1, patches.shape[-1]))
    rows = torch.cat(rows)
    values, vectors = torch.linalg.eigh(rows.t() @ rows / len(rows))
    width = model.cfg.vision_size
    values, vectors = values[-width:].clamp_min(1e-4), vectors[:, -width:]
    weight = rotation(width) @ (values[:, None] ** -0.4 * vectors.t())
    weight /= (rows[:4096] @ weight.t()).square().mean().sqrt()
    vision, resampler = model.vision, model.model.mm_projector
    with torch.no_grad():
        vision.embeddings.patch_embedding.weight.copy_(weight.view(width, 3, 14, 14))
        place = 0.7 * 1.414 * sincos(vision.side, width, base=12.0) @ rotation(width)
        vision.embeddings.position_embedding.weight[1:] = place
        vision.embeddings.position_embedding.weight[0] *= 0.02
        for layer in vision.encoder.layers:
            layer.self_attn.q_proj.weight.copy_(1.2 * rotation(width))
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj,
                           layer.self_attn.v_proj, layer.self_attn.out_proj,
                           layer.mlp.fc1, layer.mlp.fc2):
                linear.bias.zero_()
            layer.self_attn.out_proj.weight.mul_(0.5)
            layer.mlp.fc2.weight.mul_(0.7)
        inner = model.cfg.hidden_size
        turned = rotation(inner)
        resampler.pos_embed.copy_(sincos(resampler.grid, inner, base=12.0))
        resampler.attn.in_proj_weight[:inner] = 1.6 * turned
        resampler.attn.in_proj_weight[inner:2 * inner] = 1.6 * turned
        resampler.ln_q.weight.fill_(0.3)
        resampler.proj.mul_(0.5)


def adamw_update(flat, grad, mean, square, decay, scalars):
    """In-place AdamW step; `grad` is cleared.  One fused loop when compiled."""
    lr, lr_mean, inv_square, b1, b2 = scalars.unbind()
    mean.copy_(mean * b1 + grad * (1 - b1))
    square.copy_(square * b2 + grad * grad * (1 - b2))
    flat.copy_(flat - flat * decay * lr - lr_mean * mean / ((square * inv_square).sqrt() + 1e-8))
    grad.zero_()


class FlatAdamW:
    """AdamW over one flat buffer, so that averaging weights is one kernel."""

    def __init__(self, model: torch.nn.Module, betas=(0.9, 0.98), decay=0.05,
                 fused: bool = True):
        parameters = list(model.parameters())
        self.flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        self.grad = torch.zeros_like(self.flat)
        self.mean, self.square = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.decay = torch.cat([torch.full((p.numel(),), decay if p.dim() >= 2 else 0.0)
                                for p in parameters])
        self.betas, self.step_count, at = betas, 0, 0
        self.update = torch.compile(adamw_update, dynamic=False) if fused else adamw_update
        for p in parameters:
            p.data = self.flat[at:at + p.numel()].view_as(p)
            p.grad = self.grad[at:at + p.numel()].view_as(p)
            at += p.numel()

    def step(self, lr: float, clip: float = 1.0) -> float:
        norm = float(self.grad.norm())
        if not math.isfinite(norm):
            self.grad.zero_()
            return norm
        if norm > clip:
            self.grad.mul_(clip / norm)
        self.step_count += 1
        b1, b2 = self.betas
        c1, c2 = 1 - b1 ** self.step_count, 1 - b2 ** self.step_count
        scalars = torch.tensor([lr, lr / c1, 1 / c2, b1, b2])
        self.update(self.flat, self.grad, self.mean, self.square, self.decay, scalars)
        return norm

    def meet(self, centre: torch.Tensor) -> None:
        """Moves these weights and the shared ones to their midpoint."""
        self.flat.add_(centre).mul_(0.5)
        centre.copy_(self.flat)

    def state(self) -> dict:
        return {"flat": self.flat, "mean": self.mean, "square": self.square,
                "steps": self.step_count}

    def load(self, state: dict) -> None:
        for name in ("flat", "mean", "square"):
            getattr(self, name).copy_(state[name])
        self.step_count = state["steps"]


def _balanced(logits, labels, stats, name):
    """Mean loss over labelled things plus mean loss over empty places."""
    logits, labels = logits.float().flatten(0, -2), labels.flatten()
    keep = labels != IGNORE
    if not keep.all():
        logits, labels = logits[keep], labels[keep]
    losses = F.cross_entropy(logits, labels, reduction="none")
    positive = labels > 0
    count = int(positive.sum())
    if count:
        right = (logits.argmax(-1)[positive] == labels[positive]).sum()
        stats[name] += np.array([int(right), count])
    positives = losses[positive].mean() if count else losses.sum() * 0
    return positives + (losses[~positive].mean() if count < len(labels) else 0)


def dense_loss(model: Llava, tokens, features, labels, stats):
    aux = model.aux
    views = tokens.shape[0]
    loss = _balanced(aux["patch_char"](features), labels["patch_char"], stats, "patch_char")
    loss = loss + _balanced(aux["patch_item"](features), labels["patch_item"], stats, "patch_item")
    chars = aux["cell_char"](tokens).view(views, tokens.shape[1], 3, -1)
    loss = loss + 2 * _balanced(chars, labels["cell_char"], stats, "cell_char")
    loss = loss + _balanced(aux["cell_item"](tokens), labels["cell_item"], stats, "cell_item")
    index = torch.arange(tokens.shape[1]).repeat(views)
    loss = loss + F.cross_entropy(aux["cell_index"](tokens).float().flatten(0, 1), index)
    return loss + F.cross_entropy(aux["cell_background"](tokens).float().flatten(0, 1),
                                  labels["cell_background"].flatten())


def language_loss(model: Llava, batch: Batch, encoded, stats):
    visual = visual_tokens(encoded, batch.images)
    x = model.model.embed_tokens(batch.tokens.clamp_min(0))
    spots = batch.tokens[0] == -1
    x = x.index_copy(1, spots.nonzero().squeeze(1), visual.to(x.dtype))
    hidden = model.decode(x, batch.positions, batch.bias)
    wanted = batch.targets != IGNORE
    targets, owners = batch.targets[wanted], batch.segments[wanted]
    logits = model.logits(hidden[wanted]).float()
    wrong = torch.zeros(len(batch.kinds)).index_add_(
        0, owners, (logits.argmax(-1) != targets).float())
    for (kind, size, straddles), misses in zip(batch.kinds, wrong.tolist()):
        result = np.array([misses == 0, 1])
        stats[kind] += result
        if kind in ("caption", "text"):
            stats[f"{kind}_{size}{'_cut' if straddles and size == 'small' else ''}"] += result
    return F.cross_entropy(logits, targets)


def learning_rate(now: float, start: float, end: float, step: int, peak: float) -> float:
    progress = min(1.0, max(0.0, (now - start) / (end - start)))
    return peak * min(1.0, step / 60) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * progress)))


def work(rank: int, args, centre: torch.Tensor, counts: torch.Tensor, lock) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(1)
    encoder = tok.load(args.state / "tokenizer.json")
    model = Llava(small_config(encoder.tokenizer.get_vocab_size()), AUX)
    saved = args.state / "state.pt"
    start = args.started
    if saved.exists():
        optimiser = FlatAdamW(model)
        state = torch.load(saved)
        optimiser.load(state["optimiser"])
        start = state["start"]
    else:
        warm_init(model)
        optimiser = FlatAdamW(model)
    end = args.until or start + args.minutes * 60
    with lock:
        if counts[1] == 0:      # the first process to get here sets the shared weights
            centre.copy_(optimiser.flat)
            counts[1] = 1
    rng = random.Random((time.time_ns() // 1000) ^ (rank * 7919))
    stats = defaultdict(lambda: np.zeros(2))
    last_log, last_save, since = time.time(), time.time(), int(counts[0])
    losses = []
    while True:
        now = time.time()
        if now >= end or (args.state / "stop").exists():
            break
        minutes = (now - start) / 60
        step = optimiser.step_count
        dense_only = minutes < args.dense_minutes
        mix = (MIX_DENSE if dense_only else MIX_OVERVIEW if minutes < args.overview_minutes
               else MIX_MIDDLE if minutes < args.middle_minutes else MIX_FULL)
        slices = rng.choices(list(mix), list(mix.values()))[0]
        images = IMAGES[slices]
        crammed = args.crammed if minutes < args.overview_minutes else args.crammed_late
        crammed = (not dense_only) and rng.random() < crammed
        if crammed and rng.random() < 0.7:
            slices, images = 0, 28      # most characters per view
        share = 0.75 if dense_only else float(crammed)
        batch = make_batch(rng, slices, images, share, None if dense_only else encoder)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, encoded = 0.0, []
            for patches, grid, labels in batch.groups:
                tokens, features = model.encode(patches, [grid] * len(patches))
                encoded.append(tokens)
                loss = loss + dense_loss(model, tokens, features, labels, stats) / len(batch.groups)
            if batch.tokens is not None:
                text_loss = language_loss(model, batch, encoded, stats)
                losses.append(float(text_loss))
                loss = text_loss + args.dense_weight * loss
        loss.backward()
        lr = learning_rate(now, start, end, step + 1, args.lr)
        norm = optimiser.step(lr)
        with lock:
            counts[0] += batch.images
            if step % MEET_EVERY == 0:
                optimiser.meet(centre)
        trained = int(counts[0])
        if rank == 0 and now - last_log > 40:
            line = {"min": round(minutes, 1), "step": step, "images": trained,
                    "per_s": round((trained - since) / (now - last_log), 1), "lr": round(lr, 6),
                    "norm": round(norm, 2), "lm": round(float(np.mean(losses or [0])), 3)}
            line |= {k: f"{100 * v[0] / v[1]:.1f}" for k, v in sorted(stats.items()) if v[1]}
            with open(args.state / "log.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            stats.clear()
            losses.clear()
            last_log, since = now, trained
        if rank == 0 and now - last_save > 150:
            _save(saved, optimiser, start, trained)
            last_save = now
    with lock:
        optimiser.meet(centre)
        counts[2] += 1
        last = int(counts[2]) == args.processes
    if last:
        _save(saved, optimiser, start, int(counts[0]))
        (args.state / "stop").unlink(missing_ok=True)


def _save(path: Path, optimiser: FlatAdamW, start: float, images: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"optimiser": optimiser.state(), "start": start, "images": images}, partial)
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of checkpoint and log")
    parser.add_argument("--minutes", type=float, default=100, help="whole run, from its first start")
    parser.add_argument("--until", type=float, help="end at this Unix time instead")
    parser.add_argument("--dense-minutes", type=float, default=15)
    parser.add_argument("--overview-minutes", type=float, default=50)
    parser.add_argument("--middle-minutes", type=float, default=72)
    parser.add_argument("--dense-weight", type=float, default=0.3)
    parser.add_argument("--crammed", type=float, default=0.4,
                        help="share of batches without language in the overview stage")
    parser.add_argument("--crammed-late", type=float, default=0.12, help="the same, afterwards")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.started = time.time()
    args.state.mkdir(parents=True, exist_ok=True)
    if not (args.state / "tokenizer.json").exists():
        tok.build().save(str(args.state / "tokenizer.json"))
    size = sum(p.numel() for p in Llava(small_config(tok.load(args.state / "tokenizer.json")
                                                     .tokenizer.get_vocab_size()), AUX).parameters())
    centre = torch.zeros(size).share_memory_()
    counts = torch.zeros(3, dtype=torch.int64).share_memory_()   # images, set up, finished
    if (args.state / "state.pt").exists():
        counts[0] = torch.load(args.state / "state.pt")["images"]
    mp.spawn(work, (args, centre, counts, mp.get_context("spawn").Lock()), nprocs=args.processes)


if __name__ == "__main__":
    main()
