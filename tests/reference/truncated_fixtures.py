"""Writes tests/data/images/truncated.csv: what Pillow makes of files that end too early, when it is told to load them.

    python tests/reference/truncated_fixtures.py

Run it after image_fixtures.py, whose files it cuts.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFile

from image_fixtures import OUT, digest

NAMES = ["baseline_420.jpg", "baseline_444.jpg", "noise_420.jpg", "noise_422_restarts.jpg", "gray.jpg",
         "cmyk_adobe.jpg", "rgb8.png", "interlaced_rgb8.png", "palette8.png", "palette8_trns.png", "gray8.png",
         "rgba8.png", "rgb16.png", "rgb24.bmp", "palette8.bmp", "top_down.bmp"]


def main() -> None:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    lines = ["file,bytes,rgb_sha256"]
    for name in NAMES:
        data = (OUT / name).read_bytes()
        for share in (0.5, 0.8, 0.93):
            cut = data[:int(len(data) * share)]
            try:
                image = Image.open(io.BytesIO(cut))
                image.load()
            except OSError:
                continue  # not even the palette is there
            lines.append(f"{name},{len(cut)},{digest(np.asarray(image.convert('RGB')))}")
    (OUT / "truncated.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
