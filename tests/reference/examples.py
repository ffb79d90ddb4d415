"""Renders `examples/images` and `examples/scenes.jsonl`: thirty fixed held-out scenes.

The sizes and file formats are a fixed list; the scenes follow from the seed
and were never chosen by what the model makes of them.

    python examples.py --out examples
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from scenes import random_scene, render, truth

SEED = 20240318
# (width, height, file extension)
FILES = [
    (96, 96, "png"), (104, 80, "bmp"), (150, 150, "gif"), (200, 140, "png"), (180, 260, "jpg"),
    (320, 240, "png"), (240, 320, "png"), (400, 400, "webp"), (336, 336, "png"), (480, 270, "jpg"),
    (512, 512, "png"), (640, 480, "jpg"), (480, 640, "png"), (600, 200, "png"), (200, 600, "png"),
    (720, 405, "tiff"), (800, 600, "png"), (768, 1024, "png"), (1024, 768, "jpg"),
    (900, 150, "png"), (150, 900, "png"), (1200, 240, "png"), (260, 1300, "png"),
    (1280, 720, "png"), (1080, 1080, "png"), (1500, 1000, "jpg"), (1920, 1080, "png"),
    (1400, 2100, "png"), (3000, 500, "png"), (3600, 2400, "png"),
]
OPTIONS = {"jpg": {"quality": 92, "subsampling": 0}, "webp": {"lossless": True},
           "tiff": {"compression": "tiff_lzw"}, "png": {"optimize": True}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    (out / "images").mkdir(parents=True, exist_ok=True)
    with open(out / "scenes.jsonl", "w", encoding="utf-8") as lines:
        for index, (width, height, extension) in enumerate(FILES):
            rng = random.Random(f"slicemill-example-{SEED}-{index}")
            scene = random_scene(rng, width, height)
            name = f"scene-{index:02d}.{extension}"
            image = render(scene)
            if extension == "gif":
                image = image.quantize(256)
            image.save(out / "images" / name, **OPTIONS.get(extension, {}))
            lines.write(json.dumps(truth(scene, name, rng)) + "\n")


if __name__ == "__main__":
    main()
