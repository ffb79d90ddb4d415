"""The images: drawn by rule, small as PNG, chosen for their plans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .recipe import uniform

# name, (width, height), cell in pixels, mode; what it is for
PICTURES = [
    ("grid_1280x960.png", (1280, 960), 40, "RGB"),  # six slices everywhere
    ("pair_460x460.png", (460, 460), 23, "RGB"),  # two slices without a pre-resize
    ("tiny_40x30.png", (40, 30), 3, "RGB"),  # no slices without a pre-resize, upscaled
    ("alpha_320x200.png", (320, 200), 16, "RGBA"),  # alpha is dropped by the reference
    ("tower_140x1500.png", (140, 1500), 25, "RGB"),  # extreme aspect, one column
    ("palette_500x300.png", (500, 300), 20, "P"),  # 25 patch columns: an odd bucket of positions
]


def colours(name: str, size: tuple[int, int], cell: int, channels: int) -> np.ndarray:
    """Flat cells of hashed colours, with darker bands of growing frequency across them."""
    width, height = size
    columns, rows = -(-width // cell), -(-height // cell)
    cells = ((uniform(name, 1, rows * columns * channels) + 1) * 127.5).astype(np.uint8)
    image = np.kron(cells.reshape(rows, columns, channels), np.ones((cell, cell, 1), np.uint8))[:height, :width]
    bands = (np.arange(width) ** 2 // (16 * width) % 2 == 1)[None, :] & ((np.arange(height) // 10) % 3 == 0)[:, None]
    image[bands, :3] //= 3
    return image


def draw(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, size, cell, mode in PICTURES:
        image = Image.fromarray(colours(name, size, cell, 4 if mode == "RGBA" else 3))
        if mode == "P":
            image = image.quantize(32)
        image.save(folder / name, optimize=True)
