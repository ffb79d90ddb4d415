"""Writes tests/data/rare: files that few programs write, or that bend the rules around pixels that are whole.

    python tests/reference/rare_fixtures.py

What they must decode to are Pillow's pixels, as in image_fixtures.py; `rare.json` holds their hashes.  Arithmetic coding
is added by libjpeg-turbo's `jpegtran`, which must be on the path; lossless JPEG is written here.
"""

from __future__ import annotations

import json
import struct
import subprocess
import zlib

import numpy as np
import PIL
from PIL import Image

import image_fixtures
from image_fixtures import (ENTRIES, RNG, alpha_plane, bmp, bmp_rows, chunk, exif_block, gif, gif_frame, packed,
                            photo, png, record, saved)

OUT = image_fixtures.OUT.parent / "rare"


# ------------------------------------------------------------------ orientation

def xmp(orientation: int, element: bool = False) -> bytes:
    told = f"<tiff:Orientation>{orientation}</tiff:Orientation>" if element else ""
    attribute = "" if element else f' tiff:Orientation="{orientation}"'
    return (f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description{attribute}>{told}</rdf:Description>'
            "</rdf:RDF></x:xmpmeta>").encode()


def exif_without_orientation() -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    return exif.tobytes()


def write_orientation() -> None:
    rgb = photo(23, 14)
    image = Image.fromarray(rgb)
    record("xmp6.jpg", saved(image, format="JPEG", quality=85, xmp=xmp(6)))
    record("xmp8_element.jpg", saved(image, format="JPEG", quality=85, xmp=xmp(8, True)))
    record("exif3_xmp6.jpg", saved(image, format="JPEG", quality=85, xmp=xmp(6), exif=exif_block(3)), note="EXIF counts")
    record("exif_none_xmp5.jpg", saved(image, format="JPEG", quality=85, xmp=xmp(5), exif=exif_without_orientation()))
    record("xmp9.jpg", saved(image, format="JPEG", quality=85, xmp=xmp(9)), note="no orientation of the standard")
    record("xmp7.webp", saved(image, format="WEBP", lossless=True, xmp=xmp(7)))
    record("exif_none_xmp2.webp",
           saved(image, format="WEBP", lossless=True, xmp=xmp(2, True), exif=exif_without_orientation()))
    name = b"XML:com.adobe.xmp\0"
    samples = rgb.astype(int)
    record("xmp6.png", png(samples, 8, 2, chunk(b"iTXt", name + b"\0\0\0\0" + xmp(6))))
    record("xmp8_compressed.png", png(samples, 8, 2, chunk(b"iTXt", name + b"\1\0\0\0" + zlib.compress(xmp(8)))))
    for orientation, kind in ((5, b"tEXt"), (6, b"zTXt")):
        block = exif_block(orientation)
        digits = "\n".join(block.hex()[at:at + 72] for at in range(0, 2 * len(block), 72))
        text = f"\nexif\n{len(block):8}\n{digits}\n".encode()
        body = b"\0" + zlib.compress(text) if kind == b"zTXt" else text
        record(f"raw_profile{orientation}.png", png(samples, 8, 2, chunk(kind, b"Raw profile type exif\0" + body)))


# ------------------------------------------------------------------ PNG

def with_wrong_checksum(data: bytes) -> bytes:
    at = data.index(b"IDAT")
    length, = struct.unpack(">I", data[at - 4:at])
    return data[:at + 4 + length] + b"\0\1\2\3" + data[at + 8 + length:]


def write_png() -> None:
    rgb = photo(19, 15)
    samples, gray = rgb.astype(int), rgb[..., :1].astype(int)
    plain = png(samples, 8, 2)
    record("wrong_checksum.png", with_wrong_checksum(plain))
    record("wrong_checksum_interlaced.png", with_wrong_checksum(png(samples, 8, 2, interlaced=True)))
    record("no_end.png", plain[:-12])
    record("no_end_and_no_checksum.png", plain[:-16])
    record("unknown_critical_chunk.png", png(samples, 8, 2, chunk(b"XyZW", b"what?")))
    record("compression_number.png", plain.replace(
        plain[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 19, 15, 8, 2, 77, 0, 0))))
    record("palette_of_257_in_rgb.png", png(samples, 8, 2, chunk(b"PLTE", RNG.bytes(771))))
    record("empty_palette_in_rgb.png", png(samples, 8, 2, chunk(b"PLTE", b"")))
    transparent = [chunk(b"tRNS", struct.pack(">H", int(gray[at, at, 0]))) for at in (3, 8)]
    record("two_transparent_grays.png", png(gray, 8, 0, b"".join(transparent)))
    indices = RNG.integers(0, 10, (9, 12, 1))
    palettes = [chunk(b"PLTE", RNG.bytes(30)) for _ in range(2)]
    record("two_palettes.png", png(indices, 8, 3, b"".join(palettes)))
    record("more_transparencies_than_colours.png",
           png(indices, 8, 3, palettes[0] + chunk(b"tRNS", RNG.bytes(11))))
    record("empty_palette.png", png(indices, 8, 3, chunk(b"PLTE", b"")))
    record("indices_beyond_the_palette.png", png(indices, 4, 3, chunk(b"PLTE", RNG.bytes(15))))


# ------------------------------------------------------------------ BMP

def write_bmp() -> None:
    colours = b"".join(RNG.bytes(3) + b"\0" for _ in range(16))
    rle8 = bytes([3, 7, 0, 2, 2, 1, 1, 9, 0, 0, 0, 3, 1, 2, 3, 0, 4, 5, 0, 2, 0, 3, 5, 6, 0, 0, 9, 8, 0, 1])
    record("rle8_skips.bmp", bmp((9, 7), 8, 1, colours, rle8))
    rle4 = bytes([3, 0x71, 0, 2, 2, 1, 1, 0x90, 0, 0, 0, 5, 0x12, 0x34, 0x50, 0, 4, 0x56, 0, 2, 0, 3, 5, 0x60, 0, 0,
                  9, 0x88, 0, 1])
    record("rle4_skips.bmp", bmp((9, 7), 4, 2, colours, rle4))
    rows = b"".join(bytes([4, row, 5, 9 - row, 0, 0]) for row in range(7))
    record("rle8_top_down.bmp", bmp((9, -7), 8, 1, colours, rows + b"\0\1"))
    record("rle8_runs_too_long.bmp", bmp((9, 7), 8, 1, colours, rows.replace(bytes([5, 8]), bytes([200, 8])) + b"\0\1"))
    indices = RNG.integers(0, 16, (7, 9)).astype(np.uint8)
    record("indices_beyond_the_palette.bmp", bmp((9, 7), 8, 0, colours[:40], bmp_rows(indices)))
    whole = bmp((9, 7), 1, 0, colours[:8], bmp_rows(packed(indices & 1, 1)))
    record("many_planes.bmp", whole[:26] + struct.pack("<H", 30000) + whole[28:])
    whole = bmp((9, 7), 8, 0, colours, bmp_rows(indices))
    record("no_room_for_the_palette.bmp", whole[:10] + struct.pack("<I", 54) + whole[14:])


# ------------------------------------------------------------------ WebP, GIF

def write_webp() -> None:
    rgba = np.dstack([photo(24, 18), alpha_plane(24, 18)])
    frames = [Image.fromarray(np.roll(rgba, 3 * n, 1)) for n in range(2)]
    record("animated_alpha_lossy.webp",
           saved(frames[0], format="WEBP", save_all=True, append_images=frames[1:], quality=70, exact=True))
    animated = saved(frames[0], format="WEBP", save_all=True, append_images=frames[1:], lossless=True, exact=True)
    # A canvas that is larger than the frame, which is moved to 6, 4 on it.
    canvas = struct.pack("<I", 39)[:3] + struct.pack("<I", 29)[:3]
    at = animated.index(b"ANMF") + 8
    record("animated_offset.webp",
           animated[:24] + canvas + animated[30:at] + b"\3\0\0\2\0\0" + animated[at + 6:])


def write_gif() -> None:
    palette, indices = RNG.bytes(3 * 256), RNG.integers(0, 256, (6, 8))
    first = gif_frame(indices, (0, 0), 9)
    record("no_palette.gif", gif((8, 6), b"", [gif_frame(indices, (0, 0))]))
    record("second_frame_is_damaged.gif", gif((8, 6), palette, [first, first[:30]]))
    record("rubbish_behind_the_first_frame.gif", gif((8, 6), palette, [first, RNG.bytes(40)])[:-1])


# ------------------------------------------------------------------ JPEG

def transcoded(data: bytes, *options: str) -> bytes:
    return subprocess.run(["jpegtran", *options], input=data, capture_output=True, check=True).stdout


def write_arithmetic() -> None:
    image, noise = Image.fromarray(photo(37, 29)), Image.fromarray(RNG.integers(0, 256, (17, 21, 3), dtype=np.uint8))
    plain = saved(image, format="JPEG", quality=85, subsampling=2)
    record("arithmetic.jpg", transcoded(plain, "-arithmetic"))
    record("arithmetic_restarts.jpg", transcoded(plain, "-arithmetic", "-restart", "1"))
    record("arithmetic_progressive.jpg", transcoded(plain, "-arithmetic", "-progressive"))
    record("arithmetic_noise.jpg", transcoded(saved(noise, format="JPEG", quality=97, subsampling=0), "-arithmetic"))
    record("arithmetic_noise_progressive.jpg",
           transcoded(saved(noise.convert("L"), format="JPEG", quality=99), "-arithmetic", "-progressive"))


def lossless(samples: np.ndarray, predictor: int, shift: int = 0, restart_rows: int = 0) -> bytes:
    """Lossless JPEG (T.81, annex H) of samples [height, width, components], whose low `shift` bits are dropped."""
    height, width, count = samples.shape
    values = samples.astype(int) >> shift
    bits, body = "", b""

    def padded(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return bytes(int(bits[at:at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")

    for y in range(height):
        first = y == 0 or bool(restart_rows) and y % restart_rows == 0
        if first and y:
            body += padded(bits) + bytes([0xFF, 0xD0 + (y // restart_rows - 1) % 8])
            bits = ""
        for x in range(width):
            for c in range(count):
                a, b = values[y, x - 1, c], values[y - 1, x, c]
                d = values[y - 1, x - 1, c]
                if first:
                    expected = a if x else 1 << (7 - shift)
                elif x == 0:
                    expected = b
                else:
                    expected = {1: a, 2: b, 3: d, 4: a + b - d, 5: a + ((b - d) >> 1), 6: b + ((a - d) >> 1),
                                7: (a + b) >> 1}[predictor]
                difference = int(values[y, x, c] - expected)
                size = abs(difference).bit_length()
                # Codes of four bits for sizes 0 to 9.
                bits += f"{size:04b}"
                if size:
                    bits += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
    body += padded(bits)
    table = bytes([0]) + bytes([0, 0, 0, 10] + [0] * 12) + bytes(range(10))
    out = b"\xff\xd8\xff\xc4" + struct.pack(">H", len(table) + 2) + table
    if restart_rows:
        out += b"\xff\xdd\0\4" + struct.pack(">H", restart_rows * width)
    out += b"\xff\xc3" + struct.pack(">HBHHB", 8 + 3 * count, 8, height, width, count)
    out += b"".join(bytes([c + 1, 0x11, 0]) for c in range(count))
    out += b"\xff\xda" + struct.pack(">HB", 6 + 2 * count, count) + b"".join(bytes([c + 1, 0]) for c in range(count))
    return out + bytes([predictor, 0, shift]) + body + b"\xff\xd9"


def write_lossless() -> None:
    rgb = photo(13, 11)
    for predictor in range(1, 8):
        record(f"lossless{predictor}.jpg", lossless(rgb[..., :1], predictor))
    record("lossless_rgb.jpg", lossless(rgb, 4))
    record("lossless_restarts.jpg", lossless(rgb[..., :1], 7, restart_rows=2))
    record("lossless_shifted.jpg", lossless(rgb[..., :1], 5, shift=2))


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    image_fixtures.OUT = OUT
    for write in (write_orientation, write_png, write_bmp, write_webp, write_gif, write_arithmetic, write_lossless):
        write()
    about = "SHA-256 of the upright RGB bytes, by alpha rule where it matters; made by tests/reference/rare_fixtures.py"
    lines = ",\n  ".join(json.dumps(entry) for entry in ENTRIES)
    head = f'"about": {json.dumps(about)},\n "pillow": "{PIL.__version__}"'
    (OUT / "rare.json").write_text(f'{{{head},\n "images": [\n  {lines}\n ]}}\n')
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{len(ENTRIES)} images, {total} bytes, Pillow {PIL.__version__}")


if __name__ == "__main__":
    main()
