"""Training batches: scenes of one size, their views, dense labels and packed prompts.

All scenes of a batch share one image size, hence one slicing plan, so neither
the vision tower nor the visual prefix needs padding.  Several question-answer
segments of an image are packed behind one visual prefix; an attention mask
lets a segment see the prefix and itself, and positions restart at the prefix
end, which equals asking each question alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch

import questions
from questions import BACKGROUNDS
from scenes import Scene, dense_scene, random_scene, render
from slicing import PATCH, PATCH_MEAN, PATCH_STD, Plan, cut, patchify, plan
from tokenizer import Encoder

IGNORE = -100
CELLS = 4
QUERIES = CELLS * CELLS
LEGIBLE_CAP = 8.0           # smallest cap height in a view that is labelled, px
# The heads have room for more classes than the scenes use.
CHARS = {c: i + 1 for i, c in enumerate("ACEFHJKLMNPRTUVWXY3479")}
HEAD_COLOURS = ["red", "orange", "yellow", "green", "blue", "purple"]
HEAD_SHAPES = ["circle", "square", "triangle", "star", "cross"]
ITEMS = {pair: i + 1 for i, pair in enumerate(product(HEAD_COLOURS, HEAD_SHAPES))}

# Training-only heads: name -> (feature level, classes).
AUX = {"patch_char": ("patch", len(CHARS) + 1), "patch_item": ("patch", len(ITEMS) + 1),
       "cell_char": ("cell", 3 * (len(CHARS) + 1)), "cell_item": ("cell", len(ITEMS) + 1),
       "cell_index": ("cell", QUERIES), "cell_background": ("cell", len(BACKGROUNDS))}


def size_for(slices: int, rng: random.Random) -> tuple[int, int]:
    """A random image size whose plan has exactly `slices` slices."""
    low, high = {0: (84, 112)}.get(slices, (112, 250) if slices < 5 else (250, 520))
    while True:
        spread = 2.0 if rng.random() < 0.6 else 6.0
        ratio = math.exp(rng.uniform(-math.log(spread), math.log(spread)))
        side = rng.uniform(low, high)
        width, height = round(side * math.sqrt(ratio)), round(side / math.sqrt(ratio))
        if plan(width, height).slices == slices:
            return width, height


@dataclass
class Labels:
    """Dense targets of one view group."""

    patch_char: list = field(default_factory=list)
    patch_item: list = field(default_factory=list)
    cell_char: list = field(default_factory=list)
    cell_item: list = field(default_factory=list)
    cell_background: list = field(default_factory=list)

    def add(self, scene: Scene, scale, offset, grid) -> None:
        """Labels the view `full pixel * scale - offset` with `grid` = (rows, columns) patches."""
        rows, columns = grid
        (sx, sy), (ox, oy) = scale, offset
        width, height = columns * PATCH, rows * PATCH
        chars = np.zeros((rows, columns), dtype=np.int64)
        items = np.zeros((rows, columns), dtype=np.int64)
        slots: list[list] = [[] for _ in range(QUERIES)]
        cell_item = np.zeros(QUERIES, dtype=np.int64)
        for item in scene.items:
            x, y, r = item.x * sx - ox, item.y * sy - oy, item.radius * sx
            if not (-r < x < width + r and -r < y < height + r):
                continue
            dx = (np.arange(columns) + 0.5) * PATCH - x
            dy = (np.arange(rows) + 0.5) * PATCH - y
            kind = ITEMS[item.colour, item.shape]
            items[dx[None] ** 2 + dy[:, None] ** 2 < (0.75 * r) ** 2] = kind
            if 0 <= x < width and 0 <= y < height:
                items[int(y / PATCH), int(x / PATCH)] = kind
                cell_item[_cell(x, y, width, height)] = kind
        for text in scene.texts:
            self._label_text(text, scale, offset, width, height, chars, slots)
        cell_char = np.zeros((QUERIES, 3), dtype=np.int64)
        for cell, found in enumerate(slots):
            lines = {baseline for _, _, baseline in found}
            if any(k == IGNORE for _, k, _ in found) or len(found) > 3 or len(lines) > 1:
                cell_char[cell] = IGNORE
            else:
                for slot, (_, kind, _) in enumerate(sorted(found)):
                    cell_char[cell, slot] = kind
        self.patch_char.append(chars.reshape(-1))
        self.patch_item.append(items.reshape(-1))
        self.cell_char.append(cell_char)
        self.cell_item.append(cell_item)
        self.cell_background.append(np.full(QUERIES, BACKGROUNDS.index(scene.background)))

    @staticmethod
    def _label_text(text, scale, offset, width, height, chars, slots) -> None:
        (sx, sy), (ox, oy) = scale, offset
        x0, y0, x1, y1 = text.box
        if not (x1 * sx > ox and x0 * sx < ox + width and y1 * sy > oy and y0 * sy < oy + height):
            return
        legible = text.cap * sy >= LEGIBLE_CAP
        y = text.centre_y * sy - oy
        row_first = max(0, math.ceil((y0 * sy - oy) / PATCH - 0.5))
        row_last = min(chars.shape[0] - 1, math.floor((y1 * sy - oy) / PATCH - 0.5))
        for character, (left, right) in zip(text.string, text.spans):
            x = (left + right) / 2 * sx - ox
            if not (0 <= x < width and 0 <= y < height):
                continue
            kind = CHARS[character] if legible else IGNORE
            first = max(0, math.ceil((left * sx - ox) / PATCH - 0.5))
            last = min(chars.shape[1] - 1, math.floor((right * sx - ox) / PATCH - 0.5))
            chars[row_first:row_last + 1, first:last + 1] = kind
            if chars[int(y / PATCH), int(x / PATCH)] == 0:
                chars[int(y / PATCH), int(x / PATCH)] = kind
            slots[_cell(x, y, width, height)].append((x, kind, text.baseline))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {k: torch.from_numpy(np.stack(v)) for k, v in vars(self).items()}


def _cell(x: float, y: float, width: float, height: float) -> int:
    return int(y * CELLS / height) * CELLS + int(x * CELLS / width)


@dataclass
class Batch:
    plan: Plan
    groups: list            # [(patches f32 [V, P, 588], (rows, columns), label tensors)]
    images: int
    tokens: torch.Tensor | None = None      # [B, T] ids; visual places hold -1 or separators
    positions: torch.Tensor | None = None
    bias: torch.Tensor | None = None        # [B, 1, T, T]
    targets: torch.Tensor | None = None     # [B, T] id to predict at each place, or IGNORE
    segments: torch.Tensor | None = None    # [B, T] running number of the answer
    kinds: list = field(default_factory=list)


def prefix_ids(the_plan: Plan, encoder: Encoder) -> list[int]:
    """Ids before the question; -1 marks a visual token."""
    ids = list(encoder.before)
    for row in range(the_plan.rows):
        for column in range(the_plan.columns):
            last = column == the_plan.columns - 1
            ids += [-1] * QUERIES + [encoder.newline if last else encoder.comma]
    return ids + [-1] * QUERIES


def view_groups(scenes: list[Scene], the_plan: Plan, labelled: bool = True) -> list:
    """Patches (and labels) of all slices, then of all overviews."""
    slices, overviews, slice_labels, overview_labels = [], [], Labels(), Labels()
    for scene in scenes:
        views = [patchify(v) for v in cut(render(scene), the_plan)]
        slices += views[:-1]
        overviews.append(views[-1])
        if not labelled:
            continue
        if the_plan.slices:
            w, h = the_plan.slice_size
            scale = the_plan.refine_size[0] / scene.width, the_plan.refine_size[1] / scene.height
            for row in range(the_plan.rows):
                for column in range(the_plan.columns):
                    slice_labels.add(scene, scale, (column * w, row * h), (h // PATCH, w // PATCH))
        w, h = the_plan.overview_size
        overview_labels.add(scene, (w / scene.width, h / scene.height), (0, 0),
                            (h // PATCH, w // PATCH))
    groups = []
    for views, size, labels in ((slices, the_plan.slice_size, slice_labels),
                                (overviews, the_plan.overview_size, overview_labels)):
        if views:
            pixels = (np.stack(views).astype(np.float32) / 255 - PATCH_MEAN) / PATCH_STD
            groups.append((torch.from_numpy(pixels), (size[1] // PATCH, size[0] // PATCH),
                           labels.tensors() if labelled else None))
    return groups


def visual_tokens(encoded: list[torch.Tensor], images: int) -> torch.Tensor:
    """[V, Q, E] of slices and overviews -> [B, (n+1)*Q, E] in prompt order."""
    parts = [tokens.reshape(images, -1, tokens.shape[-1]) for tokens in encoded]
    return torch.cat(parts, dim=1)


def pack(prefix: list[int], segments_of: list[list[tuple[list[int], list[int]]]]):
    """Packs (question ids, answer ids) segments of every image behind the prefix."""
    start = len(prefix)
    lengths = [sum(len(q) + len(a) - 1 for q, a in segments) for segments in segments_of]
    images, total = len(segments_of), start + max(lengths)
    tokens = np.zeros((images, total), dtype=np.int64)
    positions = np.zeros((images, total), dtype=np.int64)
    owner = np.full((images, total), -1, dtype=np.int64)
    targets = np.full((images, total), IGNORE, dtype=np.int64)
    numbers = np.zeros((images, total), dtype=np.int64)
    tokens[:, :start], owner[:, :start] = prefix, 0
    positions[:, :start] = np.arange(start)
    number = 0
    for image, segments in enumerate(segments_of):
        at = start
        for index, (question, answer) in enumerate(segments):
            ids = question + answer
            length = len(ids) - 1
            tokens[image, at:at + length] = ids[:-1]
            positions[image, at:at + length] = start + np.arange(length)
            owner[image, at:at + length] = index + 1
            targets[image, at + len(question) - 1:at + length] = answer
            numbers[image, at:at + length] = number
            number += 1
            at += length
    owner = torch.from_numpy(owner)
    visible = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
    visible &= torch.ones(total, total, dtype=torch.bool).tril()
    bias = torch.zeros(visible.shape).masked_fill_(~visible, -1e4).unsqueeze(1)
    arrays = (torch.from_numpy(a) for a in (tokens, positions, targets, numbers))
    tokens, positions, targets, numbers = arrays
    return tokens, positions, bias, targets, numbers


def choose_questions(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, str, str]]:
    """(kind, question, answer): the caption and `count` questions."""
    picked = [("caption", rng.choice(questions.CAPTION_PROMPTS), questions.caption(scene))]
    weights = {"count": 1.4, "colour": 0.8, "shape": 0.6, "exist": 0.9, "where": 1.0,
               "text": 1.6 if scene.text else 0.3, "background": 0.3}
    while len(picked) <= count:
        kind = rng.choices(list(weights), list(weights.values()))[0]
        pair = questions.ask(scene, kind, rng)
        if pair:
            picked.append((kind, *pair))
    return picked


def make_batch(rng: random.Random, slices: int, images: int, dense_share: float,
               encoder: Encoder | None, extra_questions: int = 4) -> Batch:
    """`encoder=None` makes a batch without language (dense stage)."""
    width, height = size_for(slices, rng)
    the_plan = plan(width, height)
    crammed = rng.random() < dense_share
    if encoder is None:
        scenes = [dense_scene(rng, width, height) if rng.random() < dense_share
                  else random_scene(rng, width, height) for _ in range(images)]
        return Batch(the_plan, view_groups(scenes, the_plan), images)
    if crammed:
        scenes = [dense_scene(rng, width, height) for _ in range(images)]
        return Batch(the_plan, view_groups(scenes, the_plan), images)
    scenes = [random_scene(rng, width, height, mix=(0.22, 0.33, 0.45), strict=False)
              for _ in range(images)]
    batch = Batch(the_plan, view_groups(scenes, the_plan), images)
    packed = []
    for scene in scenes:
        segments = []
        for kind, question, answer in choose_questions(scene, rng, extra_questions):
            segments.append((encoder.question(question), encoder.answer(answer)))
            size = scene.text.size if scene.text else "none"
            batch.kinds.append((kind, size, bool(scene.text and scene.text.straddles)))
        packed.append(segments)
    (batch.tokens, batch.positions, batch.bias, batch.targets,
     batch.segments) = pack(prefix_ids(the_plan, encoder), packed)
    return batch
