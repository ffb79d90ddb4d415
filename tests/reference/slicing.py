"""Slice planning and cutting, as released with LLaVA-UHD (July 2024 rules).

A plan needs only width and height.  `plan` gives the grid and the exact pixel
sizes; `cut` applies it to a PIL image and returns the views in the order in
which the language model sees them: slices row-major, the overview last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

SIDE = 112
PATCH = 14
MAX_SLICES = 6

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True)
class Plan:
    """Sizes are (width, height) in pixels; `columns == 0` means overview only."""

    columns: int
    rows: int
    slice_size: tuple[int, int]
    overview_size: tuple[int, int]

    @property
    def slices(self) -> int:
        return self.columns * self.rows

    @property
    def refine_size(self) -> tuple[int, int]:
        return self.slice_size[0] * self.columns, self.slice_size[1] * self.rows


def _floor_to_multiple(length: float, step: int) -> int:
    return max(math.floor(length / step) * step, step)


def _fit(width: float, height: float, side: int, patch: int, upscale: bool) -> tuple[int, int]:
    """Scale to at most side*side pixels keeping the aspect, then floor to patches."""
    if width * height > side * side or upscale:
        ratio = width / height
        height = int(side / math.sqrt(ratio))
        width = int(height * ratio)
    return _floor_to_multiple(width, patch), _floor_to_multiple(height, patch)


@lru_cache(maxsize=65536)
def plan(width: int, height: int, side: int = SIDE, patch: int = PATCH,
         max_slices: int = MAX_SLICES) -> Plan:
    """Chooses the grid whose aspect is nearest to the image's (log distance)."""
    ideal = min(math.ceil(width * height / (side * side)), max_slices)
    if ideal <= 1:
        return Plan(0, 0, (0, 0), _fit(width, height, side, patch, True))
    target = math.log(width / height)
    best, best_error = (1, 1), math.inf
    for count in (ideal - 1, ideal, ideal + 1):
        if count == 1 or count > max_slices:
            continue
        for columns in range(1, count + 1):
            if count % columns:
                continue
            error = abs(target - math.log(columns / (count // columns)))
            if error < best_error:
                best, best_error = (columns, count // columns), error
    columns, rows = best
    cell_w = _floor_to_multiple(width, columns) / columns
    cell_h = _floor_to_multiple(height, rows) / rows
    return Plan(columns, rows, _fit(cell_w, cell_h, side, patch, True),
                _fit(width, height, side, patch, False))


def cut(image: Image.Image, the_plan: Plan) -> list[np.ndarray]:
    """Returns u8 views [height, width, 3]: slices row-major, then the overview."""
    views = []
    if the_plan.slices:
        width, height = the_plan.slice_size
        refined = np.asarray(image.resize(the_plan.refine_size, Image.Resampling.BICUBIC))
        for row in range(the_plan.rows):
            for column in range(the_plan.columns):
                views.append(refined[row * height:(row + 1) * height,
                                     column * width:(column + 1) * width])
    views.append(np.asarray(image.resize(the_plan.overview_size, Image.Resampling.BICUBIC)))
    return views


def patchify(view: np.ndarray, patch: int = PATCH) -> np.ndarray:
    """[h*patch, w*patch, 3] u8 -> [h*w, 3*patch*patch] u8, channel-major patches."""
    rows, columns = view.shape[0] // patch, view.shape[1] // patch
    blocks = view.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(rows * columns, 3 * patch * patch)


# Normalisation of a channel-major patch row: (u8 / 255 - mean) / std.
PATCH_MEAN = np.repeat(CLIP_MEAN, PATCH * PATCH)
PATCH_STD = np.repeat(CLIP_STD, PATCH * PATCH)


def normalise(patches: np.ndarray) -> np.ndarray:
    """u8 patch rows -> f32, with the arithmetic of CLIP's image processor."""
    scaled = (patches.astype(np.float64) * 0.00392156862745098).astype(np.float32)
    return (scaled - PATCH_MEAN) / PATCH_STD
