"""Synthetic scenes: coloured shapes on a plain background and one optional text.

A scene is laid out for its own slicing plan: small text has a cap height of
about 12..16 px in the slices, which leaves 5..6.6 px in the overview, so that
it can be read only through the slices.  Shapes are large enough to be counted
in the overview, and every shape centre has a cell of a 4x4 grid to itself.

    python scenes.py render --count 100 --seed 7 --out DIR
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import questions
from questions import ALPHABET, BACKGROUNDS, COLOURS, SHAPES
from slicing import SIDE, Plan, plan

PALETTE = {"red": (222, 38, 38), "yellow": (250, 222, 40), "green": (38, 160, 66), "blue": (40, 84, 222), "purple": (150, 56, 184)}
BACKGROUND_LEVEL = {"white": 248, "gray": 140, "black": 10}
CAP_HEIGHT_EM = 0.729       # DejaVu Sans Bold
TEXT_LENGTH = 3             # distinct characters
TRACKING_EM = 0.20          # extra space between characters
SMALL_CAP = (12.5, 16.1)    # cap height in a slice, px
SMALL_CAP_OVERVIEW_MAX = 6.6
LARGE_CAP_OVERVIEW = (12.5, 18.0)


@dataclass
class Item:
    colour: str
    shape: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int] = (0, 0, 0)


@dataclass
class Text:
    string: str
    x: float                # left edge of the first character, px
    baseline: float
    cap: float              # cap height, px
    size: str               # "large" or "small"
    straddles: bool = False
    spans: list[tuple[float, float]] = field(default_factory=list)

    @property
    def box(self):
        return self.x, self.baseline - self.cap, self.spans[-1][1], self.baseline

    @property
    def centre_x(self):
        return (self.x + self.spans[-1][1]) / 2

    @property
    def centre_y(self):
        return self.baseline - self.cap / 2


@dataclass
class Scene:
    width: int
    height: int
    background: str
    groups: list[tuple[int, str, str]]
    items: list[Item]
    text: Text | None
    base: tuple[int, int, int]
    ink: tuple[int, int, int]
    extra_texts: list[Text] = field(default_factory=list)

    @property
    def texts(self):
        return ([self.text] if self.text else []) + self.extra_texts


def font_path() -> str:
    """DejaVu Sans Bold: $SLICEMILL_FONT, Debian's fonts-dejavu-core, or matplotlib's copy."""
    candidates = [os.environ.get("SLICEMILL_FONT", ""),
                  "/usr/share/fonts/truetype/dejavu/DejaVuSans-Bold.ttf"]
    try:
        import matplotlib
        candidates.append(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"))
    except ImportError:
        pass
    for path in candidates:
        if path and Path(path).is_file():
            return path
    raise FileNotFoundError("DejaVuSans-Bold.ttf: install fonts-dejavu-core or matplotlib")


@lru_cache(maxsize=1024)
def _font(quarter_pixels: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_path(), quarter_pixels / 4,
                              layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=256)
def _advance(character: str) -> float:
    """Advance width in em."""
    return ImageFont.truetype(font_path(), 1000).getlength(character) / 1000


def make_text(string: str, x: float, baseline: float, cap: float, size: str) -> Text:
    em = cap / CAP_HEIGHT_EM
    text = Text(string, x, baseline, cap, size)
    for character in string:
        text.spans.append((x, x + _advance(character) * em))
        x += (_advance(character) + TRACKING_EM) * em
    return text


def text_width(string: str, cap: float) -> float:
    em = cap / CAP_HEIGHT_EM
    return em * (sum(map(_advance, string)) + TRACKING_EM * (len(string) - 1))


def random_string(rng: random.Random) -> str:
    return "".join(rng.sample(ALPHABET, TEXT_LENGTH))


def random_size(rng: random.Random, longest: int = 4200) -> tuple[int, int]:
    """Full-size image dimensions: mostly 150..1500 px, some several thousand."""
    spread = 2.0 if rng.random() < 0.6 else 6.0
    ratio = math.exp(rng.uniform(-math.log(spread), math.log(spread)))
    kind = rng.random()
    if kind < 0.06:
        side = rng.uniform(84, 111)
    elif kind < 0.18:
        side = rng.uniform(114, 245)
    elif kind < 0.92:
        side = math.exp(rng.uniform(math.log(252), math.log(1300)))
    else:
        side = math.exp(rng.uniform(math.log(1300), math.log(2800)))
    width, height = side * math.sqrt(ratio), side / math.sqrt(ratio)
    shrink = min(1.0, longest / max(width, height))
    return max(24, round(width * shrink)), max(24, round(height * shrink))


def _overlaps(a, b, gap: float) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _place_text(rng, width, height, the_plan: Plan, size: str, strict: bool) -> Text | None:
    unit = math.sqrt(width * height) / SIDE
    string = random_string(rng)
    if size == "small":
        slice_unit = width / the_plan.refine_size[0]
        low, high = SMALL_CAP
        if strict:
            high = min(high, SMALL_CAP_OVERVIEW_MAX * unit / slice_unit)
        if high < low:
            return None
        cap = rng.uniform(low, high) * slice_unit
    else:
        cap = rng.uniform(*LARGE_CAP_OVERVIEW) * unit
        cap = min(cap, 0.6 * width * CAP_HEIGHT_EM / len(string))
        if cap < LARGE_CAP_OVERVIEW[0] * unit * 0.92:
            return None
    w, gap = text_width(string, cap), 1.6 * unit
    left, top, right, bottom = gap, gap, width - gap, height - gap
    inside = size == "small" and rng.random() < 0.85
    if inside:
        tile_w, tile_h = width / the_plan.columns, height / the_plan.rows
        column, row = rng.randrange(the_plan.columns), rng.randrange(the_plan.rows)
        margin = 0.12 * cap
        left, right = max(left, column * tile_w + margin), min(right, (column + 1) * tile_w - margin)
        top, bottom = max(top, row * tile_h + margin), min(bottom, (row + 1) * tile_h - margin)
    if right - left < w or bottom - top < cap:
        return None
    text = make_text(string, rng.uniform(left, right - w), rng.uniform(top + cap, bottom), cap, size)
    text.straddles = _straddles(text, width, height, the_plan)
    return text


def _straddles(text: Text, width: int, height: int, the_plan: Plan) -> bool:
    if not the_plan.slices:
        return False
    x0, y0, x1, y1 = text.box
    cuts_x = (width * c / the_plan.columns for c in range(1, the_plan.columns))
    cuts_y = (height * r / the_plan.rows for r in range(1, the_plan.rows))
    return any(x0 < c < x1 for c in cuts_x) or any(y0 < c < y1 for c in cuts_y)


def _jitter(rng, rgb, amount=14):
    return tuple(max(0, min(255, round(v + rng.uniform(-amount, amount)))) for v in rgb)


def _place_items(rng, width, height, wanted, blocked) -> list[Item] | None:
    """Rejection sampling: own 4x4 cell, no overlap with each other or with `blocked`."""
    unit = math.sqrt(width * height) / SIDE
    items, cells = [], set()
    for colour, shape in wanted:
        for _ in range(60):
            radius = min(rng.uniform(9.0, 13.5) * unit, 0.34 * min(width, height))
            gap = 1.5 * unit
            x, y = rng.uniform(radius + gap, width - radius - gap), rng.uniform(
                radius + gap, height - radius - gap)
            fx, fy = 4 * x / width, 4 * y / height
            cell = int(fx), int(fy)
            if cell in cells or not all(0.2 < f % 1 < 0.8 for f in (fx, fy)):
                continue
            if any(math.hypot(x - i.x, y - i.y) < radius + i.radius + 2 * unit for i in items):
                continue
            if any(_overlaps((x - radius, y - radius, x + radius, y + radius), box, unit)
                   for box in blocked):
                continue
            cells.add(cell)
            items.append(Item(colour, shape, x, y, radius, rng.uniform(-9, 9)))
            break
        else:
            return None
    return items


def random_scene(rng: random.Random, width: int, height: int,
                 mix=(0.30, 0.32, 0.38), strict: bool = True) -> Scene:
    """`mix`: shares of no text, large text, small text (where small is possible).

    `strict=False` (training) also allows text of the small size where the image
    has so few slices that the overview shows it too.
    """
    the_plan = plan(width, height)
    size = rng.choices(["none", "large", "small"], mix)[0]
    if size == "small" and the_plan.slices < (4 if strict else 2):
        size = "large"
    text = None
    for _ in range(20 if size != "none" else 0):
        text = _place_text(rng, width, height, the_plan, size, strict)
        if text:
            break
    blocked = [text.box] if text else []
    while True:
        number = rng.choice([1, 2])
        colours, shapes = rng.sample(COLOURS, number), rng.sample(SHAPES, number)
        counts = [rng.choices([1, 2, 3], [38, 34, 28])[0] for _ in range(number)]
        if sum(counts) > 4:
            continue
        wanted = [(c, s) for n, c, s in zip(counts, colours, shapes) for _ in range(n)]
        items = _place_items(rng, width, height, wanted, blocked)
        if items is not None:
            break
    groups = sorted(zip(counts, colours, shapes), key=lambda g: COLOURS.index(g[1]))
    return _finish(rng, width, height, groups, items, text)


def _finish(rng, width, height, groups, items, text, extra=()):
    background = rng.choice(BACKGROUNDS)
    level = BACKGROUND_LEVEL[background] + rng.uniform(-7, 7)
    shade = {c: _jitter(rng, PALETTE[c]) for c in COLOURS}
    for item in items:
        item.rgb = shade[item.colour]
    ink = 250 if background == "black" else 8
    return Scene(width, height, background, groups, items, text,
                 (round(level),) * 3, _jitter(rng, (ink,) * 3, 5), list(extra))


def dense_scene(rng: random.Random, width: int, height: int) -> Scene:
    """A training-only scene crammed with strings and a few shapes."""
    the_plan = plan(width, height)
    unit = math.sqrt(width * height) / SIDE
    slice_unit = width / the_plan.refine_size[0] if the_plan.slices else unit
    items = []
    for _ in range(rng.randint(1, 4) if the_plan.slices else rng.randint(0, 2)):
        wanted = [(rng.choice(COLOURS), rng.choice(SHAPES))]
        items += _place_items(rng, width, height, wanted,
                              [(i.x - i.radius, i.y - i.radius, i.x + i.radius, i.y + i.radius)
                               for i in items]) or []
    boxes = [(i.x - i.radius, i.y - i.radius, i.x + i.radius, i.y + i.radius) for i in items]
    texts, y = [], rng.uniform(0.5, 8) * slice_unit
    while True:
        small = the_plan.slices >= 2 and rng.random() < 0.75
        cap = rng.uniform(*SMALL_CAP) * slice_unit if small else (
            rng.uniform(*LARGE_CAP_OVERVIEW) * unit)
        if y + cap > height:
            break
        x = rng.uniform(0.1, 2.5) * cap
        while True:
            string = random_string(rng)
            text = make_text(string, x, y + cap + rng.uniform(0, 0.2) * cap, cap,
                             "small" if small else "large")
            if text.box[2] > width - 1 or text.baseline > height:
                break
            if not any(_overlaps(text.box, b, unit * 0.5) for b in boxes):
                texts.append(text)
            x = text.box[2] + rng.uniform(0.8, 2.2) * cap
        y += cap * rng.uniform(1.6, 2.5)
    return _finish(rng, width, height, [], items, None, texts)


def _polygon(item: Item) -> np.ndarray:
    r = item.radius
    if item.shape == "square":
        s = 0.84 * r
        points = [(-s, -s), (s, -s), (s, s), (-s, s)]
    elif item.shape == "triangle":
        points = [(r * math.cos(a), r * math.sin(a) + 0.12 * r)
                  for a in (-math.pi / 2, math.pi / 6, 5 * math.pi / 6)]
    else:
        points = [((r if k % 2 == 0 else 0.42 * r) * math.cos(k * math.pi / 5 - math.pi / 2),
                   (r if k % 2 == 0 else 0.42 * r) * math.sin(k * math.pi / 5 - math.pi / 2))
                  for k in range(10)]
    turn = math.radians(item.angle)
    c, s = math.cos(turn), math.sin(turn)
    return np.array([(item.x + c * px - s * py, item.y + s * px + c * py) for px, py in points])


def render(scene: Scene) -> Image.Image:
    canvas = np.empty((scene.height, scene.width, 3), dtype=np.uint8)
    canvas[:] = scene.base
    for item in scene.items:
        if item.shape == "circle":
            cv2.circle(canvas, (round((item.x - 0.5) * 16), round((item.y - 0.5) * 16)),
                       round(item.radius * 0.94 * 16), item.rgb, -1, cv2.LINE_AA, 4)
        else:
            points = np.round((_polygon(item) - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(canvas, [points], item.rgb, cv2.LINE_AA, 4)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    for text in scene.texts:
        font = _font(max(8, round(4 * text.cap / CAP_HEIGHT_EM)))
        for character, (left, _) in zip(text.string, text.spans):
            draw.text((left, text.baseline), character, fill=scene.ink, font=font, anchor="ls")
    return image


def held_out(seed: int, index: int) -> tuple[Scene, random.Random]:
    """Scene `index` of a held-out set, independent of how many are asked for."""
    rng = random.Random(f"slicemill-scene-{seed}-{index}")
    return random_scene(rng, *random_size(rng)), rng


def truth(scene: Scene, name: str, rng: random.Random) -> dict:
    return {
        "file": name, "width": scene.width, "height": scene.height,
        "caption": questions.caption(scene),
        "groups": [{"count": n, "colour": c, "shape": s} for n, c, s in scene.groups],
        "background": scene.background,
        "text": scene.text.string if scene.text else None,
        "text_size": scene.text.size if scene.text else "none",
        "straddles": bool(scene.text and scene.text.straddles),
        "questions": questions.all_questions(scene, rng),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("render", help="write images and truth.jsonl")
    command.add_argument("--count", type=int, default=100)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--jpeg-every", type=int, default=0,
                         help="write every n-th image as JPEG (quality 92); 0: all PNG")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "truth.jsonl", "w", encoding="utf-8") as lines:
        for index in range(args.count):
            scene, rng = held_out(args.seed, index)
            jpeg = args.jpeg_every and index % args.jpeg_every == args.jpeg_every - 1
            name = f"scene-{index:05d}.{'jpg' if jpeg else 'png'}"
            options = {"quality": 92, "subsampling": 0} if jpeg else {}
            render(scene).save(args.out / name, **options)
            lines.write(json.dumps(truth(scene, name, rng)) + "\n")


if __name__ == "__main__":
    main()
