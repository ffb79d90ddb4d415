"""From an image file to normalised pixels, for every slicing rule of the supported families.

Plans follow one algorithm with a few parameters (`Policy`).  LLaVA-UHD floors
to multiples and puts the overview last; MiniCPM-V rounds half to even and puts
it first.  All resizes are Pillow's bicubic on u8, as in the published code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

PATCH = 14
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Policy:
    side: int
    max_slices: int
    half_even: bool  # how lengths become multiples: Python's round, or floor
    overview_first: bool
    long_side: int = 0  # resize the long side to this first; 0 leaves the image as it is


@dataclass(frozen=True)
class Plan:
    """`columns == 0`: the overview alone.  Sizes are (width, height)."""

    columns: int
    rows: int
    slice_size: tuple[int, int]
    overview_size: tuple[int, int]
    source_size: tuple[int, int]


@dataclass
class View:
    kind: str  # "slice", "overview" or "whole"
    u8: np.ndarray  # [height, width, 3]
    pixels: np.ndarray  # f32 [3, height, width]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        return self.u8.shape[0] // PATCH, self.u8.shape[1] // PATCH


def open_rgb(path, exif: bool = False) -> Image.Image:
    """Opens as the reference loaders do: alpha is dropped, EXIF ignored unless asked for."""
    image = Image.open(path)
    if exif:
        image = ImageOps.exif_transpose(image)
    return image.convert("RGB")


def to_multiple(length: float, step: int, half_even: bool) -> int:
    return max((round if half_even else math.floor)(length / step) * step, step)


def fit(width: float, height: float, policy: Policy, upscale: bool) -> tuple[int, int]:
    """At most side*side pixels of the same aspect, then multiples of the patch."""
    if width * height > policy.side * policy.side or upscale:
        ratio = width / height
        height = int(policy.side / math.sqrt(ratio))
        width = int(height * ratio)  # from the height already cut to an integer
    return to_multiple(width, PATCH, policy.half_even), to_multiple(height, PATCH, policy.half_even)


def scaled_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """The evaluation loaders' size: the long side exact, the other cut to an integer."""
    if not long_side:
        return width, height
    if width > height:
        return long_side, int((long_side / width) * height)
    return int((long_side / height) * width), long_side


def plan(width: int, height: int, policy: Policy) -> Plan:
    """The grid of N-1, N or N+1 cells whose aspect is nearest in log distance; first wins."""
    source = width, height = scaled_size(width, height, policy.long_side)
    ideal = min(math.ceil(width * height / (policy.side * policy.side)), policy.max_slices)
    if ideal <= 1:
        return Plan(0, 0, (0, 0), fit(width, height, policy, True), source)
    target, best, least = math.log(width / height), (1, 1), math.inf
    for count in (ideal - 1, ideal, ideal + 1):
        if count == 1 or count > policy.max_slices:
            continue
        for columns in (c for c in range(1, count + 1) if count % c == 0):
            error = abs(target - math.log(columns / (count // columns)))
            if error < least:
                best, least = (columns, count // columns), error
    cell = (to_multiple(width, best[0], policy.half_even) / best[0],
            to_multiple(height, best[1], policy.half_even) / best[1])
    return Plan(*best, fit(*cell, policy, True), fit(width, height, policy, False), source)


def clip_pixels(u8: np.ndarray) -> np.ndarray:
    """CLIP's image processor: rescale in f64, round to f32, normalise in f32."""
    scaled = (u8.astype(np.float64) * 0.00392156862745098).astype(np.float32)
    pixels = (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def half_pixels(u8: np.ndarray) -> np.ndarray:
    """MiniCPM-V: divide by 255, mean and deviation 0.5, all in f32."""
    half = np.float32(0.5)
    pixels = (u8.astype(np.float32) / np.float32(255) - half) / half
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def cut(image: Image.Image, the_plan: Plan, overview_first: bool, normalise) -> list[View]:
    """Views in the order of the language model; the slices are cut from one resized image."""
    if image.size != the_plan.source_size:
        image = image.resize(the_plan.source_size, Image.Resampling.BICUBIC)
    slices = []
    width, height = the_plan.slice_size
    if the_plan.columns:
        refined = image.resize((width * the_plan.columns, height * the_plan.rows),
                               Image.Resampling.BICUBIC)
        slices = [("slice", refined.crop((c * width, r * height, (c + 1) * width, (r + 1) * height)))
                  for r in range(the_plan.rows) for c in range(the_plan.columns)]
    overview = [("overview", image.resize(the_plan.overview_size, Image.Resampling.BICUBIC))]
    ordered = overview + slices if overview_first else slices + overview
    return [View(kind, u8, normalise(u8)) for kind, u8 in ((k, np.asarray(v)) for k, v in ordered)]


def padded_square(image: Image.Image) -> Image.Image:
    """LLaVA-1.5's `image_aspect_ratio: pad`: centred on a square of the mean colour."""
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(m * 255) for m in CLIP_MEAN))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def whole(image: Image.Image, side: int) -> list[View]:
    """CLIP's resize of the short side (bicubic), then the centre crop."""
    width, height = image.size
    if width <= height:
        size = (side, int(side * height / width))
    else:
        size = (int(side * width / height), side)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    u8 = np.asarray(image.crop((left, top, left + side, top + side)))
    return [View("whole", u8, clip_pixels(u8))]


def packed(pixels: np.ndarray) -> np.ndarray:
    """MiniCPM-V's transport form [3, 14, patches*14]: the patches side by side, row-major."""
    channels, height, width = pixels.shape
    blocks = pixels.reshape(channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3, 4).reshape(channels, PATCH, -1))
