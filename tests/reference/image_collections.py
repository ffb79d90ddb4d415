"""Compares slicemill's decoders with Pillow's on the test images of well-known decoders.

    cargo build --release -p slicemill-image --example pixels
    python tests/reference/image_collections.py target/release/examples/pixels FOLDER...

FOLDER holds the image files of other projects, in any order: the test folders of Pillow, image-rs (image, png, gif,
tiff, webp, jpeg-decoder), libjpeg-turbo, PngSuite, BMP Suite, libwebp-test-data, libvips, stb, zune-image, corkami and
metadata-extractor.  Every file is counted; none may crash the decoder or keep it for longer than 20 seconds.  Where
Pillow decodes a format that slicemill reads, slicemill must: lossless formats to equal pixels, JPEG to within 3 grey
levels, both with alpha dropped and with alpha on white.  The exit status is 1 when one does not.

What is compared is the rule that slicemill documents, where that is not Pillow's or where Pillow has none:

  - unsigned samples of 12, 16 and 32 bits keep their upper byte, signed ones of 16 and 32 bits too once they are shifted
    so that the lowest is black (Pillow clips all of these at 0 and 255)
  - floating-point samples are white at 1 where most of those above 0 are not above 1, otherwise at 255 (as in Pillow)
  - YCbCr of TIFF without compression is converted as libtiff does that with compression (Pillow does not look at the
    coefficients and ranges of the file then): here it is compressed before Pillow reads it
  - CIELab becomes sRGB within a level of what LittleCMS makes of it when it does not interpolate in a table (Pillow lets
    it, which is up to nine levels off)

What Pillow decodes and slicemill does not is listed by its SHA-256 in image_collections.tsv, with what is wrong with the
file, so that a file that is refused anew is noticed.  They are of these kinds:

    damaged files         libjpeg, Pillow's PNG reader (which looks at no checksum of the pixels) and libtiff warn and go
                          on, with pixels that are wrong or missing; a row fails instead, as corrupt or truncated.  A
                          wrong checksum of a PNG chunk alone is no damage: the zlib stream inside has its own.
    what Pillow gets      an alpha or 16 bits in separate planes of TIFF, a transparent gray of 4 bits in PNG
    wrong
"""

from __future__ import annotations

import collections
import hashlib
import io
import os
import selectors
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

SECONDS = 20
FORMATS = {"JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF"}
ENDINGS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".bmp", ".dib", ".rle", ".tif", ".tiff",
           ".btf", ".bad", ".crash", ".test"}
# Files that Pillow decodes and slicemill does not, or otherwise: digest, kind, name.
KNOWN = Path(__file__).with_suffix(".tsv")
TOLERANCE = {"JPEG": 3, "MPO": 3}
LAB = 1


class Hang(Exception):
    pass


class Ours:
    """The example program; started again after a crash or a hang."""

    def __init__(self, program: str, *options: str) -> None:
        self.command, self.process = [program, *options], None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)

    def some(self) -> bytes:
        if not self.selector.select(SECONDS):
            self.stop()
            raise Hang
        data = os.read(self.process.stdout.fileno(), 1 << 20)
        if not data:
            raise RuntimeError(f"crashed with status {self.process.wait()}")
        return data

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = None

    def decode(self, path: Path) -> tuple[str, object]:
        """`("ok", [height, width, 3] u8)` or `("error" | "crash" | "hang", message)`."""
        if self.process is None or self.process.poll() is not None:
            self.start()
        try:
            self.process.stdin.write(os.fsencode(path) + b"\n")
            data = self.some()
            while b"\n" not in data:
                data += self.some()
            line, rest = data.split(b"\n", 1)
            words = line.decode().split(" ")
            if words[0] != "ok":
                return "error", " ".join(words[1:])
            width, height = int(words[1]), int(words[2])
            parts, have = [rest], len(rest)
            while have < width * height * 3:
                parts.append(self.some())
                have += len(parts[-1])
            return "ok", np.frombuffer(b"".join(parts), np.uint8).reshape(height, width, 3)
        except Hang:
            return "hang", f"more than {SECONDS} s"
        except (RuntimeError, BrokenPipeError) as error:
            return "crash", str(error)


def upper_byte(image: Image.Image) -> np.ndarray:
    """Gray samples of more than 8 bits by the rule of slicemill."""
    samples = np.asarray(image)
    if image.mode == "F":
        samples = np.nan_to_num(samples.astype(np.float64), nan=0.0)
        unit = (samples[samples > 0] <= 1).sum() >= (samples > 1).sum()
        samples = np.round(samples * 255) if unit else samples
        return samples.clip(0, 255).astype(np.uint8)
    tags = image.info["tags"]
    bits = tags.get(258, (16,))[0]
    shifted = samples.astype(np.int64) + (1 << bits - 1 if tags.get(339, (1,))[0] == 2 else 0)
    return (shifted >> bits - 8).astype(np.uint8)


def by_libtiff(image: Image.Image) -> Image.Image:
    """What libtiff makes of YCbCr, which it reads only with compression; coefficients of 0 / 0 are left out."""
    tags = {tag: image.info["tags"][tag] for tag in (529, 532) if tag in image.info["tags"]}
    tags = {tag: values for tag, values in tags.items() if np.isfinite(np.array(values, float)).all()}
    buffer = io.BytesIO()
    Image.merge("YCbCr", image.split()).save(buffer, "TIFF", compression="tiff_lzw", tiffinfo=tags)
    return Image.open(buffer)


def flattened(image: Image.Image, white: bool) -> np.ndarray:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
        gray = upper_byte(image)
        if white and image.format == "PNG" and "transparency" in image.info:
            gray[np.asarray(image) == image.info["transparency"]] = 255
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.buildTransform(*profiles, "LAB", "RGB", flags=ImageCms.Flags.NOOPTIMIZE).apply(image)
    if image.mode == "YCbCr" and image.format == "TIFF":
        image = by_libtiff(image)
    if not white or not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(canvas)


def pillow(data: bytes) -> tuple[str, object]:
    """`(format, image)`, `("other", format)` for formats that slicemill does not read, or `("error", message)`."""

    def out_of_time(*_) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, out_of_time)
    signal.alarm(60)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format not in FORMATS:
                return "other", image.format
            kind = image.format
            image.load()
            upright = ImageOps.exif_transpose(image)
            upright.format = kind
            upright.info["tags"] = dict(image.tag_v2) if kind == "TIFF" else {}
            return kind, upright
    except Exception as error:  # noqa: BLE001 - whatever it says, it refuses the file
        return "error", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def compare(path: Path, ours: dict[bool, Ours]) -> tuple[str, str]:
    """What became of a file, and the details."""
    data = path.read_bytes()
    kind, reference = pillow(data)
    details = []
    for white, decoder in ours.items():
        outcome, result = decoder.decode(path)
        if outcome in ("crash", "hang"):
            return outcome, str(result)
        if kind == "other":
            return ("foreign", str(reference)) if outcome == "error" else ("only ours", f"Pillow: {reference}")
        if outcome == "error":
            if kind == "error":
                return "both refuse", str(result)
            return "only Pillow", f"{kind} {reference.mode} {reference.size}: {result}"
        if kind == "error":
            return "only ours", f"Pillow: {reference}"
        expected = flattened(reference, white)
        if expected.shape != result.shape:
            return "differ", f"{kind} {reference.mode}: {expected.shape[1::-1]} in Pillow, {result.shape[1::-1]} here"
        distance = np.abs(expected.astype(np.int16) - result)
        tolerance = LAB if reference.mode == "LAB" else TOLERANCE.get(kind, 0)
        if distance.max(initial=0) > tolerance:
            share = (distance.max(axis=2) > tolerance).mean()
            return "differ", (f"{kind} {reference.mode} {reference.size}{' on white' if white else ''}: "
                              f"{distance.max()} levels, {share:.1%} of the pixels")
        details.append(int(distance.max(initial=0)))
    return ("equal" if max(details) == 0 else "within 3"), f"{kind} {max(details)}"


def main() -> int:
    program, *folders = sys.argv[1:]
    warnings.simplefilter("ignore")
    ours = {False: Ours(program, "drop"), True: Ours(program)}
    files = sorted(path for folder in folders for path in Path(folder).rglob("*")
                   if path.is_file() and path.suffix.lower() in ENDINGS)
    known = dict(line.split("\t")[:2] for line in KNOWN.read_text().splitlines() if not line.startswith("#"))
    seen, counts, wrong = set(), collections.Counter(), 0
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        if digest in seen:
            counts["again"] += 1
            continue
        seen.add(digest)
        outcome, details = compare(path, ours)
        if outcome in ("only Pillow", "differ") and digest in known:
            outcome = f"{outcome}, known: {known[digest]}"
        counts[outcome] += 1
        if outcome in ("only Pillow", "differ", "crash", "hang"):
            wrong += 1
        if outcome in ("only Pillow", "differ", "crash", "hang") or "known" in outcome:
            print(f"{outcome}\t{digest}\t{path}\t{details}", flush=True)
    print(f"{len(files)} files, {len(seen)} different", flush=True)
    for outcome, count in sorted(counts.items()):
        print(f"{count:6} {outcome}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
