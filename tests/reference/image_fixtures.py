"""Writes tests/data/images: odd little images and what their pixels are, and the hashes of resized images.

    python tests/reference/image_fixtures.py

Pixels come from Pillow: decoded, turned upright (EXIF), converted to RGB with transparency on white, on black, or
dropped.  Where Pillow's own conversion is not what the format says (16-bit gray is clipped instead of scaled, tRNS of
gray images of few bits is compared after scaling), the expected pixels are computed here from the values written into
the file.  `images.json` holds SHA-256 hashes only, so that the tests need neither Python nor Pillow.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

OUT = Path(__file__).resolve().parents[1] / "data" / "images"
RNG = np.random.default_rng(20240318)
ENTRIES: list[dict] = []


# ------------------------------------------------------------------ pictures

def photo(width: int, height: int, channels: int = 3, noise: float = 6.0) -> np.ndarray:
    """A smooth picture with a few hard edges and noise: [height, width, channels] u8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = []
    for _ in range(channels):
        plane = np.full((height, width), 128.0)
        for _ in range(4):
            fx, fy, phase = RNG.uniform(-0.3, 0.3), RNG.uniform(-0.3, 0.3), RNG.uniform(0, 6)
            plane += RNG.uniform(10, 45) * np.sin(fx * x + fy * y + phase)
        planes.append(plane)
    image = np.stack(planes, -1)
    for _ in range(3):
        x0, y0 = RNG.integers(0, width), RNG.integers(0, height)
        image[y0:y0 + height // 3 + 1, x0:x0 + width // 3 + 1] = RNG.integers(0, 256, channels)
    image += RNG.normal(0, noise, image.shape)
    return image.clip(0, 255).astype(np.uint8)


def alpha_plane(width: int, height: int) -> np.ndarray:
    """Every kind of alpha: 0, 255 and what lies between."""
    plane = RNG.integers(0, 256, (height, width)).astype(np.uint8)
    plane[: height // 4] = 0
    plane[height // 4: height // 2] = 255
    return plane


# ------------------------------------------------------------------ expected pixels

def digest(rgb: np.ndarray) -> str:
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    return hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).hexdigest()


def flattened(image: Image.Image, background: int | None) -> np.ndarray:
    if background is None:
        return np.asarray(image.convert("RGB"))
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, (background,) * 3)
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(canvas)


def blended(rgba: np.ndarray, background: int) -> np.ndarray:
    colour, alpha = rgba[..., :3].astype(np.int64), rgba[..., 3:].astype(np.int64)
    return ((2 * (colour * alpha + background * (255 - alpha)) + 255) // 510).astype(np.uint8)


def record(name: str, data: bytes, rgba: np.ndarray | None = None, note: str = "") -> None:
    """Writes a file and notes what it must decode to: Pillow's pixels, or `rgba` where they are given."""
    (OUT / name).write_bytes(data)
    if rgba is not None:
        kind, orientation = {"tif": "tiff", "jpg": "jpeg"}.get(name.rsplit(".")[-1], name.rsplit(".")[-1]), 1
        stored = (rgba.shape[1], rgba.shape[0])
        white, black, drop = blended(rgba, 255), blended(rgba, 0), rgba[..., :3]
        transparent = bool((rgba[..., 3] != 255).any())
    else:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(0x0112, 1)
            stored, kind = image.size, image.format.lower()
            if kind == "tiff" and orientation >= 5:
                stored = stored[::-1]  # Pillow tells the upright size of these
            image.load()
            upright = ImageOps.exif_transpose(image)
            white, black, drop = (flattened(upright, background) for background in (255, 0, None))
            transparent = image.has_transparency_data
    hashes = {"white": digest(white), "black": digest(black), "drop": digest(drop)}
    if len(set(hashes.values())) == 1:
        hashes = {"rgb": hashes["white"]}
    ENTRIES.append({
        "file": name, "format": kind, "stored": list(stored),
        "orientation": orientation if orientation in range(1, 9) else 1,
        "has_alpha": transparent, "size": [white.shape[1], white.shape[0]], **hashes, **({"note": note} if note else {}),
    })


def saved(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def opaque(rgb: np.ndarray) -> np.ndarray:
    return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])


# ------------------------------------------------------------------ PNG

def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed(rows: np.ndarray, depth: int) -> np.ndarray:
    """Samples [height, samples per row] to bytes."""
    if depth == 16:
        return rows.astype(">u2").view(np.uint8).reshape(rows.shape[0], -1)
    if depth == 8:
        return rows.astype(np.uint8)
    bits = ((rows[..., None] >> np.arange(depth - 1, -1, -1)) & 1).reshape(rows.shape[0], -1)
    return np.packbits(bits.astype(np.uint8), axis=1)


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(samples: np.ndarray, depth: int, colour: int, before: bytes = b"", interlaced: bool = False,
        after: bytes = b"") -> bytes:
    """A PNG from [height, width, samples] integers, filter 0 throughout."""
    height, width, _ = samples.shape
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    raw = b""
    for x0, y0, dx, dy in passes:
        part = samples[y0::dy, x0::dx]
        if part.size:
            rows = packed(part.reshape(part.shape[0], -1), depth)
            raw += b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(raw, 9)) + after
            + chunk(b"IEND", b""))


def exif_block(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def write_png() -> None:
    rgb, rgba = photo(40, 30), np.dstack([photo(37, 29), alpha_plane(37, 29)])
    record("rgb8.png", saved(Image.fromarray(rgb), format="PNG"))
    record("rgba8.png", saved(Image.fromarray(rgba), format="PNG"))
    record("gray8.png", saved(Image.fromarray(rgb[..., 0]), format="PNG"))
    record("gray_alpha8.png", saved(Image.fromarray(rgba).convert("LA"), format="PNG"))
    record("one_pixel.png", saved(Image.new("RGB", (1, 1), (7, 200, 90)), format="PNG"))
    key = tuple(int(v) for v in rgb[10, 10])
    record("rgb8_trns.png", png(rgb.astype(int), 8, 2, chunk(b"tRNS", struct.pack(">HHH", *key))))
    record("gray8_trns.png", png(rgb[..., :1].astype(int), 8, 0, chunk(b"tRNS", struct.pack(">H", key[0]))))
    for depth in (1, 2, 4):
        values = RNG.integers(0, 1 << depth, (19, 23, 1))
        gray = (values * (255 // ((1 << depth) - 1))).astype(np.uint8).repeat(3, 2)
        record(f"gray{depth}.png", png(values, depth, 0), opaque(gray))
        clear = np.dstack([gray, np.where(values == 1, 0, 255).astype(np.uint8)])
        record(f"gray{depth}_trns.png", png(values, depth, 0, chunk(b"tRNS", struct.pack(">H", 1))), clear,
               "Pillow compares the transparent value after scaling")
    deep = RNG.integers(0, 65536, (17, 21, 4))
    high = (deep >> 8).astype(np.uint8)
    gray = high[..., :1].repeat(3, 2)
    record("gray16.png", png(deep[..., :1], 16, 0), opaque(gray), "Pillow clips 16-bit gray; here the high byte is kept")
    record("gray_alpha16.png", png(deep[..., :2], 16, 4), np.dstack([gray, high[..., 1]]))
    record("rgb16.png", png(deep[..., :3], 16, 2))
    record("rgba16.png", png(deep, 16, 6))
    hidden = struct.pack(">HHH", *(int(v) for v in deep[3, 4, :3]))
    alpha = np.full(high.shape[:2], 255, np.uint8)
    alpha[(deep[..., :3] == deep[3, 4, :3]).all(-1)] = 0
    record("rgb16_trns.png", png(deep[..., :3], 16, 2, chunk(b"tRNS", hidden)), np.dstack([high[..., :3], alpha]),
           "Pillow compares the transparent colour after dropping the low byte")
    for depth in (1, 2, 4, 8):
        count = 1 << depth
        palette = RNG.integers(0, 256, (count, 3)).astype(np.uint8)
        values = RNG.integers(0, count, (18, 25, 1))
        before = chunk(b"PLTE", palette.tobytes())
        record(f"palette{depth}.png", png(values, depth, 3, before))
        some = RNG.integers(0, 256, max(1, count // 2)).astype(np.uint8)
        record(f"palette{depth}_trns.png", png(values, depth, 3, before + chunk(b"tRNS", some.tobytes())))
    record("interlaced_rgb8.png", png(rgb.astype(int), 8, 2, interlaced=True))
    record("interlaced_palette4.png",
           png(RNG.integers(0, 16, (11, 13, 1)), 4, 3, chunk(b"PLTE", RNG.bytes(48)), interlaced=True))
    for orientation in (3, 6):
        record(f"exif{orientation}.png", saved(Image.fromarray(rgb), format="PNG", exif=exif_block(orientation)))
    record("exif_corrupt.png", png(rgb.astype(int), 8, 2, chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")), opaque(rgb))
    frames = [Image.fromarray(photo(24, 20)) for _ in range(3)]
    record("animated.png", saved(frames[0], format="PNG", save_all=True, append_images=frames[1:]))
    record("animated_default_image.png",
           saved(frames[0], format="PNG", save_all=True, append_images=frames[1:], default_image=True))
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(50_000_000), 9))
    record("text_bomb.png", png(rgb.astype(int), 8, 2, bomb), opaque(rgb), "50 MB of text in 49 kB")


# ------------------------------------------------------------------ JPEG

def write_jpeg() -> None:
    image = Image.fromarray(photo(61, 43))
    for name, sampling in (("444", 0), ("422", 1), ("420", 2)):
        record(f"baseline_{name}.jpg", saved(image, format="JPEG", quality=90, subsampling=sampling))
        record(f"progressive_{name}.jpg",
               saved(image, format="JPEG", quality=85, subsampling=sampling, progressive=True))
    record("gray.jpg", saved(image.convert("L"), format="JPEG", quality=88))
    record("gray_progressive.jpg", saved(image.convert("L"), format="JPEG", quality=88, progressive=True))
    record("quality1.jpg", saved(image, format="JPEG", quality=1))
    record("quality100.jpg", saved(image, format="JPEG", quality=100, subsampling=2))
    noise = Image.fromarray(RNG.integers(0, 256, (33, 47, 3), dtype=np.uint8))
    record("noise_420.jpg", saved(noise, format="JPEG", quality=95, subsampling=2))
    record("noise_422_restarts.jpg",
           saved(noise, format="JPEG", quality=40, subsampling=1, restart_marker_blocks=2))
    record("restarts_progressive.jpg",
           saved(image, format="JPEG", quality=80, progressive=True, restart_marker_rows=1))
    for width, height in ((1, 1), (2, 2), (3, 5), (5, 3), (8, 8), (16, 1), (1, 17), (17, 16)):
        small = Image.fromarray(photo(width, height))
        record(f"size_{width}x{height}.jpg", saved(small, format="JPEG", quality=92, subsampling=2))
    record("rgb.jpg", saved(image, format="JPEG", quality=90, keep_rgb=True))
    inks = Image.fromarray(photo(41, 35, 4), "CMYK")
    adobe = saved(inks, format="JPEG", quality=90)
    record("cmyk_adobe.jpg", adobe)
    at = adobe.index(b"\xff\xee\x00\x0eAdobe")
    record("cmyk_plain.jpg", adobe[:at] + adobe[at + 16:], note="no Adobe segment")
    record("ycck.jpg", adobe[:at + 15] + b"\x02" + adobe[at + 16:], note="transform 2: the inks are YCC")
    sampled = saved(image, format="JPEG", quality=90, subsampling=0)
    for name, factors in (("440", 0x12), ("411", 0x41), ("410", 0x42)):
        record(f"baseline_{name}.jpg", resampled(image, factors))
    for orientation in range(1, 9):
        record(f"exif{orientation}.jpg",
               saved(image, format="JPEG", quality=85, subsampling=2, exif=exif_block(orientation)))
    broken = b"\xff\xd8\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff"
    record("exif_corrupt.jpg", broken + sampled[2:])
    whole = np.asarray(Image.open(io.BytesIO(sampled)))
    record("no_eoi.jpg", sampled[:-2], opaque(whole), "only the end marker is missing; Pillow refuses it")
    record("trailing_bytes.jpg", sampled + b"after the end\xff\xd8\xff")
    record("fill_bytes.jpg", sampled[:2] + b"\xff\xff\xff" + sampled[2:])


def resampled(image: Image.Image, factors: int) -> bytes:
    """A file whose brightness has the sampling factors `factors` and whose colours have 1x1: four components' worth of
    blocks in one MCU are taken from gray images, so that any factors can be made."""
    h, v = factors >> 4, factors & 15
    width, height = image.size
    luma, cb, cr = image.convert("YCbCr").split()
    small = ((width + h - 1) // h, (height + v - 1) // v)
    planes = [luma, cb.resize(small), cr.resize(small)]
    return interleave([np.asarray(plane) for plane in planes], [(h, v), (1, 1), (1, 1)], (width, height))


def interleave(planes: list[np.ndarray], factors: list[tuple[int, int]], size: tuple[int, int]) -> bytes:
    """A baseline file of separate scans: every component is coded by Pillow as a gray image of its own, whose scan is
    taken over.  (The standard calls such scans non-interleaved; their blocks are not padded to whole MCUs.)"""
    scans, tables = b"", b""
    for index, plane in enumerate(planes):
        data = saved(Image.fromarray(plane), format="JPEG", quality=90)
        start = data.index(b"\xff\xda")
        tables = data[data.index(b"\xff\xdb"):data.index(b"\xff\xc0")]
        huffman = data[data.index(b"\xff\xc4"):start]
        body = data[start + 10:-2]
        scans += huffman + b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, index + 1, 0, 0, 63, 0) + body
    width, height = size
    frame = struct.pack(">BHHB", 8, height, width, len(planes))
    for index, (h, v) in enumerate(factors):
        frame += bytes([index + 1, h << 4 | v, 0])
    return (b"\xff\xd8" + tables + b"\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + scans + b"\xff\xd9")


# ------------------------------------------------------------------ WebP, GIF

def write_webp() -> None:
    rgb, rgba = photo(45, 34), np.dstack([photo(45, 34), alpha_plane(45, 34)])
    record("lossy.webp", saved(Image.fromarray(rgb), format="WEBP", quality=80))
    record("lossy_odd.webp", saved(Image.fromarray(photo(17, 9)), format="WEBP", quality=50))
    record("lossless.webp", saved(Image.fromarray(rgb), format="WEBP", lossless=True))
    record("lossy_alpha.webp", saved(Image.fromarray(rgba), format="WEBP", quality=80, exact=True))
    record("lossless_alpha.webp", saved(Image.fromarray(rgba), format="WEBP", lossless=True, exact=True))
    record("exif8.webp", saved(Image.fromarray(rgb), format="WEBP", lossless=True, exif=exif_block(8)))
    for name, source in (("animated", rgb), ("animated_alpha", rgba)):
        frames = [Image.fromarray(np.roll(source, 5 * n, 1)) for n in range(3)]
        record(f"{name}.webp", saved(frames[0], format="WEBP", save_all=True, append_images=frames[1:],
                                     lossless=True, exact=True))


def gif(size: tuple[int, int], palette: bytes, frames: list[bytes], background: int = 0) -> bytes:
    bits = (len(palette) // 3 - 1).bit_length()
    flags = 0x80 | (bits - 1) if palette else 0
    return b"GIF89a" + struct.pack("<HHBBB", *size, flags, background, 0) + palette + b"".join(frames) + b";"


def gif_frame(indices: np.ndarray, at: tuple[int, int], transparent: int | None = None, local: bytes = b"",
              interlaced: bool = False) -> bytes:
    """A frame whose LZW data never grows its table: a clear code before the codes would need another bit."""
    height, width = indices.shape
    control = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    flags = (0x80 | ((len(local) // 3 - 1).bit_length() - 1)) if local else 0
    flags |= 0x40 if interlaced else 0
    order = np.concatenate([np.arange(a, height, b) for a, b in ((0, 8), (4, 8), (2, 4), (1, 2))]) if interlaced \
        else np.arange(height)
    bits, pending, count, out = 0, [], 0, bytearray()
    for value in indices[order].reshape(-1):
        if count % 100 == 0:
            pending.append(256)
        pending.append(int(value))
        count += 1
    pending.append(257)
    for position, code in enumerate(pending):
        bits |= code << (9 * position)
    out = bits.to_bytes((9 * len(pending) + 7) // 8, "little")
    blocks = b"".join(bytes([len(out[i:i + 255])]) + out[i:i + 255] for i in range(0, len(out), 255))
    descriptor = b"," + struct.pack("<HHHHB", *at, width, height, flags)
    return control + descriptor + local + b"\x08" + blocks + b"\0"


def write_gif() -> None:
    image = Image.fromarray(photo(38, 27)).quantize(64)
    record("palette.gif", saved(image, format="GIF", interlace=0))
    record("interlaced.gif", saved(image, format="GIF", interlace=1))
    record("transparent.gif", saved(image, format="GIF", transparency=5))
    frames = [Image.fromarray(photo(30, 22)).quantize(32) for _ in range(3)]
    record("animated.gif", saved(frames[0], format="GIF", save_all=True, append_images=frames[1:], duration=50))
    palette = RNG.bytes(3 * 256)
    indices = RNG.integers(0, 256, (9, 14))
    record("offset_frame.gif", gif((31, 23), palette, [gif_frame(indices, (5, 7))], 3))
    record("offset_frame_transparent.gif", gif((31, 23), palette, [gif_frame(indices, (5, 7), 9)], 3))
    record("frame_beyond_screen.gif", gif((10, 8), palette, [gif_frame(indices, (5, 7))]))
    record("local_palette_interlaced.gif",
           gif((14, 9), RNG.bytes(12), [gif_frame(indices, (0, 0), None, RNG.bytes(768), True)]))
    short = gif((14, 9), palette[:96], [gif_frame(indices, (0, 0))])
    record("short_palette.gif", short, note="indices beyond the palette are black")


# ------------------------------------------------------------------ BMP

def bmp(size: tuple[int, int], depth: int, compression: int, palette: bytes, body: bytes, masks: bytes = b"",
        header_size: int = 40) -> bytes:
    header = struct.pack("<IiiHHIIiiII", header_size, *size, 1, depth, compression, len(body), 0, 0,
                         len(palette) // 4, 0)
    header += masks if header_size == 40 else masks.ljust(header_size - 40, b"\0")
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def bmp_rows(rows: np.ndarray) -> bytes:
    return b"".join(row.tobytes().ljust((len(row.tobytes()) + 3) // 4 * 4, b"\0") for row in rows)


def write_bmp() -> None:
    rgb = photo(35, 26)
    image = Image.fromarray(rgb)
    record("rgb24.bmp", saved(image, format="BMP"))
    record("gray8.bmp", saved(image.convert("L"), format="BMP"))
    record("palette8.bmp", saved(image.quantize(50), format="BMP"))
    record("one_bit.bmp", saved(image.convert("1"), format="BMP"))
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    record("top_down.bmp", bmp((35, -26), 24, 0, b"", bmp_rows(bgr)))
    unused = np.dstack([bgr, RNG.integers(0, 256, bgr.shape[:2]).astype(np.uint8)])
    record("rgb32_unused_byte.bmp", bmp((35, 26), 32, 0, b"", bmp_rows(unused[::-1])))
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    record("rgba32.bmp", bmp((35, 26), 32, 3, b"", bmp_rows(unused[::-1]), masks, 108))
    palette = b"".join(RNG.bytes(3) + b"\0" for _ in range(16))
    nibbles = RNG.integers(0, 16, (13, 11))
    record("palette4.bmp", bmp((11, 13), 4, 0, palette, bmp_rows(packed(nibbles, 4))))
    pixels = RNG.integers(0, 65536, (12, 9)).astype("<u2")
    masks565 = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    record("rgb565.bmp", bmp((9, 12), 16, 3, b"", bmp_rows(pixels), masks565))
    record("rgb555.bmp", bmp((9, 12), 16, 0, b"", bmp_rows(pixels)))
    runs = b""
    colours = b"".join(RNG.bytes(3) + b"\0" for _ in range(256))
    for row in range(7):
        runs += bytes([4, 10 + row, 0, 5, 1, 2, 3, 4, 5, 0, 3, 200, 0, 0])
    record("rle8.bmp", bmp((12, 7), 8, 1, colours, runs + b"\0\1"))
    core = struct.pack("<IHHHH", 12, 35, 26, 1, 24)
    body = bmp_rows(bgr[::-1])
    record("os2_core.bmp", b"BM" + struct.pack("<IHHI", 26 + len(body), 0, 0, 26) + core + body)


# ------------------------------------------------------------------ TIFF

TYPES = {1: "B", 3: "H", 4: "I"}


def tiff(tags: dict[int, tuple[int, list[int]]], blocks: list[bytes], order: str = "<",
         offsets_tag: int = 273, counts_tag: int = 279) -> bytes:
    """A TIFF whose blocks (strips or tiles) stand behind the directory."""
    tags = dict(tags)
    tags[offsets_tag] = (4, [0] * len(blocks))
    tags[counts_tag] = (4, [len(block) for block in blocks])

    def build() -> bytes:
        directory = struct.pack(order + "H", len(tags))
        extra = b""
        base = 8 + 2 + 12 * len(tags) + 4
        for tag, (kind, values) in sorted(tags.items()):
            data = struct.pack(f"{order}{len(values)}{TYPES[kind]}", *values)
            if len(data) > 4:
                field = struct.pack(order + "I", base + len(extra))
                extra += data + b"\0" * (len(data) % 2)
            else:
                field = data.ljust(4, b"\0")
            directory += struct.pack(order + "HHI", tag, kind, len(values)) + field
        magic = b"II*\0" if order == "<" else b"MM\0*"
        return magic + struct.pack(order + "I", 8) + directory + struct.pack(order + "I", 0) + extra

    at = len(build())
    positions = []
    for block in blocks:
        positions.append(at)
        at += len(block)
    tags[offsets_tag] = (4, positions)
    return build() + b"".join(blocks)


def write_tiff() -> None:
    rgb, rgba = photo(42, 31), np.dstack([photo(42, 31), alpha_plane(42, 31)])
    image = Image.fromarray(rgb)
    for name, compression in (("none", None), ("lzw", "tiff_lzw"), ("deflate", "tiff_adobe_deflate"),
                              ("packbits", "packbits")):
        record(f"rgb_{name}.tif", saved(image, format="TIFF", compression=compression))
    record("jpeg.tif", saved(image, format="TIFF", compression="jpeg", quality=90))
    record("gray_jpeg.tif", saved(image.convert("L"), format="TIFF", compression="jpeg", quality=90))
    record("gray8.tif", saved(image.convert("L"), format="TIFF"))
    record("rgba.tif", saved(Image.fromarray(rgba), format="TIFF", compression="tiff_lzw"))
    record("gray_alpha.tif", saved(Image.fromarray(rgba).convert("LA"), format="TIFF"))
    record("palette8.tif", saved(image.quantize(77), format="TIFF", compression="tiff_lzw"))
    record("one_bit.tif", saved(image.convert("1"), format="TIFF"))
    record("group4.tif", saved(image.convert("1"), format="TIFF", compression="group4"))
    record("cmyk.tif", saved(Image.fromarray(photo(23, 18, 4), "CMYK"), format="TIFF"))
    for orientation in (5, 8):
        info = {0x0112: orientation}
        record(f"orientation{orientation}.tif", saved(image, format="TIFF", tiffinfo=info))

    def tags(width: int, height: int, bits: list[int], photometric: int, **more) -> dict:
        known = {256: (4, [width]), 257: (4, [height]), 258: (3, bits), 259: (3, [1]), 262: (3, [photometric]),
                 277: (3, [len(bits)]), 278: (4, [height])}
        return known | more.get("extra", {})

    deep = RNG.integers(0, 65536, (14, 19, 3))
    high = (deep >> 8).astype(np.uint8)
    record("rgb16_big_endian.tif", tiff(tags(19, 14, [16] * 3, 2), [deep.astype(">u2").tobytes()], ">"))
    record("gray16.tif", tiff(tags(19, 14, [16], 1), [deep[..., 0].astype("<u2").tobytes()]),
           opaque(high[..., :1].repeat(3, 2)), "Pillow clips 16-bit gray; here the high byte is kept")
    record("white_is_zero.tif", tiff(tags(19, 14, [8], 0), [high[..., 0].tobytes()]))
    nibbles = RNG.integers(0, 16, (14, 19))
    record("gray4.tif", tiff(tags(19, 14, [4], 1), [packed(nibbles, 4).tobytes()]))
    colours = [int(v) for v in RNG.integers(0, 65536, 48)]
    record("palette4.tif", tiff(tags(19, 14, [4], 3, extra={320: (3, colours)}), [packed(nibbles, 4).tobytes()]))
    record("rgba_premultiplied.tif", tiff(tags(42, 31, [8] * 4, 2, extra={338: (3, [1])}), [rgba.tobytes()]))
    record("rgbx.tif", tiff(tags(42, 31, [8] * 4, 2, extra={338: (3, [0])}), [rgba.tobytes()]))
    strips = [rgb[row:row + 8].tobytes() for row in range(0, 31, 8)]
    record("strips.tif", tiff(tags(42, 31, [8] * 3, 2) | {278: (4, [8])}, strips))
    padded = np.zeros((32, 48, 3), np.uint8)
    padded[:31, :42] = rgb
    tiles = [padded[y:y + 16, x:x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    layout = {tag: value for tag, value in tags(42, 31, [8] * 3, 2).items() if tag != 278}
    record("tiles.tif", tiff(layout | {322: (4, [16]), 323: (4, [16])}, tiles, "<", 324, 325))


# ------------------------------------------------------------------ resizing

MASK = (1 << 64) - 1


def noise(seed: int, width: int, height: int) -> np.ndarray:
    """SplitMix64 of seed + n·0x9E3779B97F4A7C15, eight bytes each, least significant first; the top of the picture is
    made smoother by halving its contrast."""
    count = (width * height * 3 + 7) // 8
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    pixels = z.astype("<u8").view(np.uint8)[: width * height * 3].reshape(height, width, 3).copy()
    pixels[: height // 2] = 64 + pixels[: height // 2] // 2
    return pixels


def write_resizes() -> int:
    sizes = [
        (64, 48, 28, 14), (64, 48, 64, 48), (64, 48, 63, 48), (64, 48, 64, 47), (64, 48, 128, 96), (64, 48, 64, 96),
        (1, 1, 14, 14), (1, 1, 1, 1), (2, 2, 1, 1), (3, 3, 2, 2), (1, 300, 14, 280), (300, 1, 280, 14), (5, 7, 336, 336),
        (2000, 3, 7, 5), (3, 2000, 5, 7), (1023, 17, 14, 14), (17, 1023, 14, 14), (640, 480, 1, 1), (100, 100, 99, 101),
        (1500, 1000, 1024, 682), (1024, 682, 1008, 672), (1024, 682, 406, 266), (682, 1024, 672, 1008),
        (333, 500, 682, 1024), (336, 336, 1024, 1024), (500, 333, 504, 336), (97, 89, 13, 200), (97, 89, 200, 13),
    ]
    while len(sizes) < 240:
        limit = 40 if len(sizes) < 140 else 400
        sizes.append(tuple(int(v) for v in RNG.integers(1, limit, 4)))
    lines = ["seed,width,height,to_width,to_height,sha256"]
    for seed, (width, height, to_width, to_height) in enumerate(sizes):
        image = Image.fromarray(noise(seed, width, height))
        out = np.asarray(image.resize((to_width, to_height), Image.Resampling.BICUBIC))
        lines.append(f"{seed},{width},{height},{to_width},{to_height},{digest(out)}")
    (OUT / "resize.csv").write_text("\n".join(lines) + "\n")
    return len(sizes)


# ------------------------------------------------------------------ views

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def padded(image: Image.Image) -> Image.Image:
    """The image centred on a square of the mean colour (LLaVA-1.5)."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in CLIP_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def views(image: Image.Image, working: tuple, grid: tuple, cut: str, tile: tuple, overview: tuple,
          first: bool) -> list[np.ndarray]:
    """What the model sees: slices row by row, and the overview before or after them."""
    bicubic = Image.Resampling.BICUBIC
    if working != image.size:
        image = image.resize(working, bicubic)
    if cut == "pad_square":
        image = padded(image)
    (cols, rows), slices = grid, []
    if cut == "cut_then_resize":
        xs = [column * (image.width // cols) for column in range(cols)] + [image.width]
        ys = [row * (image.height // rows) for row in range(rows)] + [image.height]
        boxes = [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in range(rows) for c in range(cols)]
        slices = [image.crop(box).resize(tile, bicubic) for box in boxes]
    elif cols:
        refined = image.resize((cols * tile[0], rows * tile[1]), bicubic)
        slices = [refined.crop((c * tile[0], r * tile[1], (c + 1) * tile[0], (r + 1) * tile[1]))
                  for r in range(rows) for c in range(cols)]
    whole = image.resize(overview, bicubic)
    return [np.asarray(view) for view in ([whole] + slices if first else slices + [whole])]


def patches(view: np.ndarray, patch: int = 14) -> np.ndarray:
    """[height, width, 3] u8 to normalised [patches, 3 * patch * patch] f32, with CLIP's arithmetic."""
    scaled = (view.astype(np.float64) * 0.00392156862745098).astype(np.float32)
    scaled = (scaled - np.float32(CLIP_MEAN)) / np.float32(CLIP_STD)
    rows, columns = view.shape[0] // patch, view.shape[1] // patch
    blocks = scaled.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(rows * columns, 3 * patch * patch)


def write_views() -> None:
    cases = [
        ((300, 200), (1024, 682), (3, 2), "resize_then_cut", (336, 336), (406, 266), False),
        ((300, 200), (300, 200), (0, 0), "resize_then_cut", (0, 0), (406, 266), False),
        ((90, 400), (230, 1024), (1, 4), "resize_then_cut", (238, 462), (154, 700), False),
        ((500, 333), (500, 333), (2, 1), "resize_then_cut", (280, 392), (406, 266), True),
        ((401, 301), (401, 301), (3, 2), "cut_then_resize", (308, 350), (378, 280), False),
        ((97, 401), (97, 401), (1, 4), "cut_then_resize", (322, 336), (154, 672), True),
        ((201, 100), (201, 100), (2, 2), "pad_square", (336, 336), (336, 336), False),
        ((100, 203), (100, 203), (0, 0), "pad_square", (0, 0), (336, 336), False),
        ((77, 77), (77, 77), (2, 2), "pad_square", (112, 112), (112, 112), True),
    ]
    lines = ["seed,width,height,working_w,working_h,cols,rows,cut,slice_w,slice_h,overview_w,overview_h,overview,"
             "pixels_sha256,patches_sha256"]
    for seed, (size, working, grid, cut, tile, overview, first) in enumerate(cases):
        seen = views(Image.fromarray(noise(seed, *size)), working, grid, cut, tile, overview, first)
        pixels = hashlib.sha256(b"".join(view.tobytes() for view in seen)).hexdigest()
        values = hashlib.sha256(b"".join(patches(view).astype("<f4").tobytes() for view in seen)).hexdigest()
        numbers = ",".join(str(n) for n in (seed, *size, *working, *grid, cut, *tile, *overview))
        lines.append(f"{numbers},{'first' if first else 'last'},{pixels},{values}")
    (OUT / "views.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    for write in (write_png, write_jpeg, write_webp, write_gif, write_bmp, write_tiff):
        write()
    resizes = write_resizes()
    write_views()
    about = "SHA-256 of the upright RGB bytes, by alpha rule where it matters; made by tests/reference/image_fixtures.py"
    lines = ",\n  ".join(json.dumps(entry) for entry in ENTRIES)
    head = f'"about": {json.dumps(about)},\n "pillow": "{PIL.__version__}"'
    (OUT / "images.json").write_text(f'{{{head},\n "images": [\n  {lines}\n ]}}\n')
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{len(ENTRIES)} images, {resizes} resizes, {total} bytes, Pillow {PIL.__version__}")


if __name__ == "__main__":
    main()
