"""The host stage with Pillow and numpy: what slicemill is measured against.

    python tests/reference/host_stage.py generate DIR    # writes JPEG files
    python tests/reference/host_stage.py run DIR [ROUNDS]

The steps are those of the July 2024 evaluation path: decode, resize so that the long side is 1024, resize to the grid,
cut, resize to the overview, normalise with CLIP's mean and deviation (by a table, which is numpy's fastest way), and
order as patches.  One thread.
"""

from __future__ import annotations

import io
import math
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, PATCH, MAX_SLICES, LONG_SIDE = 336, 14, 7, 1024
MEAN = np.float32((0.48145466, 0.4578275, 0.40821073))
STD = np.float32((0.26862954, 0.26130258, 0.27577711))
SCALED = (np.arange(256, dtype=np.float64)[:, None] * 0.00392156862745098).astype(np.float32)
TABLE = np.ascontiguousarray(((SCALED - MEAN) / STD).T)


def floored(length: float, step: int) -> int:
    return max(math.floor(length / step) * step, step)


def fitted(width: float, height: float, upscale: bool) -> tuple[int, int]:
    if width * height > SIDE * SIDE or upscale:
        ratio = width / height
        height = int(SIDE / math.sqrt(ratio))
        width = int(height * ratio)
    return floored(width, PATCH), floored(height, PATCH)


def plan(width: int, height: int) -> tuple:
    """Working size, columns, rows, slice size, overview size."""
    if width > height:
        width, height = LONG_SIDE, int((LONG_SIDE / width) * height)
    else:
        width, height = int((LONG_SIDE / height) * width), LONG_SIDE
    ideal = min(math.ceil(width * height / (SIDE * SIDE)), MAX_SLICES)
    if ideal <= 1:
        return (width, height), 0, 0, (0, 0), fitted(width, height, True)
    best, error = (1, 1), math.inf
    for count in (n for n in (ideal - 1, ideal, ideal + 1) if n != 1 and n <= MAX_SLICES):
        for columns in (n for n in range(1, count + 1) if count % n == 0):
            distance = abs(math.log(width / height) - math.log(columns / (count // columns)))
            if distance < error:
                best, error = (columns, count // columns), distance
    columns, rows = best
    tile = fitted(floored(width, columns) / columns, floored(height, rows) / rows, True)
    return (width, height), columns, rows, tile, fitted(width, height, False)


def patches(view: np.ndarray) -> np.ndarray:
    """[height, width, 3] u8 -> [patches, 3 * PATCH * PATCH] f32."""
    high, wide = view.shape[0] // PATCH, view.shape[1] // PATCH
    blocks = view.reshape(high, PATCH, wide, PATCH, 3).transpose(0, 2, 4, 1, 3)
    out = np.empty((high, wide, 3, PATCH, PATCH), np.float32)
    for channel in range(3):
        np.take(TABLE[channel], blocks[:, :, channel], out=out[:, :, channel], mode="clip")
    return out.reshape(high * wide, 3 * PATCH * PATCH)


def host_stage(data: bytes, times: list[float]) -> list[np.ndarray]:
    start = time.perf_counter()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    decoded = time.perf_counter()
    working, columns, rows, (width, height), overview = plan(*image.size)
    image = image.resize(working, Image.Resampling.BICUBIC)
    views = []
    if columns:
        refined = np.asarray(image.resize((columns * width, rows * height), Image.Resampling.BICUBIC))
        views = [refined[r * height:(r + 1) * height, c * width:(c + 1) * width]
                 for r in range(rows) for c in range(columns)]
    views.append(np.asarray(image.resize(overview, Image.Resampling.BICUBIC)))
    cut = time.perf_counter()
    out = [patches(view) for view in views]
    end = time.perf_counter()
    times[0] += decoded - start
    times[1] += cut - decoded
    times[2] += end - cut
    return out


def run(directory: Path, rounds: int) -> None:
    images = [path.read_bytes() for path in sorted(directory.glob("*.jpg"))]
    best, steps, digest = math.inf, [0.0] * 3, 0
    for _ in range(rounds):
        started, times, digest = time.perf_counter(), [0.0] * 3, 0
        for data in images:
            for view in host_stage(data, times):
                sampled = view.reshape(-1)[::97].view(np.uint32)
                digest = (digest + int(sampled.sum(dtype=np.uint64))) & 0xFFFF_FFFF_FFFF
        seconds = time.perf_counter() - started
        if seconds < best:
            best, steps = seconds, times
    decode, cut, normalise = (1e3 * step / len(images) for step in steps)
    print(f"pillow images_per_s={len(images) / best:.2f} decode_ms={decode:.2f} cut_ms={cut:.2f} "
          f"normalise_ms={normalise:.2f} digest={digest}")


def generate(directory: Path) -> None:
    """Photographs of usual sizes: gradients, edges, texture, camera noise."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    sizes = [(1500, 1000), (1024, 768), (640, 480), (4000, 3000), (800, 1200), (1920, 1080), (1200, 900), (500, 333),
             (3000, 2000), (1080, 1350)]
    for index, (width, height) in enumerate(sizes):
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        image = np.full((height, width, 3), 128, np.float32)
        for channel in range(3):
            for _ in range(8):
                fx, fy, phase = rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03), rng.uniform(0, 6)
                image[..., channel] += rng.uniform(5, 30) * np.sin(fx * x + fy * y + phase)
        for _ in range(60):
            x0, y0 = rng.integers(0, width), rng.integers(0, height)
            w, h = rng.integers(4, width // 5), rng.integers(4, height // 5)
            image[y0:y0 + h, x0:x0 + w] = 0.5 * image[y0:y0 + h, x0:x0 + w] + 0.5 * rng.integers(0, 256, 3)
        image += rng.normal(0, 5, image.shape)
        options = {"quality": (75, 85, 90, 95)[index % 4], "subsampling": (2, 2, 1, 2, 0)[index % 5],
                   "progressive": index % 5 == 3 and width < 2000}
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(directory / f"{index:02}.jpg", **options)


if __name__ == "__main__":
    verb, where = sys.argv[1], Path(sys.argv[2])
    if verb == "generate":
        generate(where)
    else:
        run(where, int(sys.argv[3]) if len(sys.argv) > 3 else 3)
