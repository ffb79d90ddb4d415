"""Writes tests/data/images/kind_*.tif, one small TIFF of every kind that is decoded, and tiff.json: their pixels' hashes.

    python tests/reference/tiff_fixtures.py

Run it after image_fixtures.py, which empties the folder.  The pixels are Pillow's; where slicemill has a rule of its own
(see image_collections.py) they are computed here from the samples that are written.
"""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import PIL
from PIL import Image

import image_fixtures
from image_collections import flattened, pillow
from image_fixtures import OUT, digest, packed, saved, tiff

RNG = np.random.default_rng(20261122)
WIDTH, HEIGHT = 21, 14
ENTRIES: list[dict] = []


def record(name: str, data: bytes, rgb: np.ndarray | None = None) -> None:
    """Writes a file and notes what it must decode to."""
    (OUT / name).write_bytes(data)
    if rgb is None:
        kind, image = pillow(data)
        assert kind == "TIFF", f"{name}: {image}"
        hashes = {"white": digest(flattened(image, True)), "drop": digest(flattened(image, False))}
        transparent, size = image.has_transparency_data or image.mode == "La", image.size
        black = Image.new("RGB", size)
        if transparent:
            rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
            black.paste(rgba, mask=rgba.getchannel("A"))
            hashes["black"] = digest(np.asarray(black))
        else:
            hashes = {"rgb": hashes["drop"]}
    else:
        transparent, size, hashes = False, rgb.shape[1::-1], {"rgb": digest(rgb)}
    ENTRIES.append({"file": name, "format": "tiff", "stored": list(size), "orientation": 1, "has_alpha": transparent,
                    "size": list(size), **hashes})


def picture(channels: int, top: int = 256) -> np.ndarray:
    """Stripes, an edge and noise: [height, width, channels] integers below `top`."""
    y, x, c = np.mgrid[0:HEIGHT, 0:WIDTH, 0:channels]
    image = (x * (9 + c) + y * 11 + 60 * c) % 256 + RNG.integers(-12, 12, x.shape)
    image[4:9, 5:13] = RNG.integers(0, 256, channels)
    return (image.clip(0, 255) * top // 256).astype(np.int64)


def tags(bits: list[int], photometric: int, compression: int = 1, rows: int = HEIGHT, **more: tuple) -> dict:
    known = {256: (4, [WIDTH]), 257: (4, [HEIGHT]), 258: (3, bits), 259: (3, [compression]), 262: (3, [photometric]),
             277: (3, [len(bits)]), 278: (4, [rows])}
    return known | {int(tag[1:]): value for tag, value in more.items()}


def gray(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint8)[..., None].repeat(3, 2)


def write_samples() -> None:
    deep = picture(3, 65536)
    record("kind_gray12.tif", tiff(tags([12], 1), [twelve(picture(1, 4096)[..., 0])]))
    record("kind_int8.tif", tiff(tags([8], 1, t339=(3, [2])), [picture(1).astype(np.uint8).tobytes()]))
    for bits, order in ((16, "<"), (16, ">"), (32, "<"), (32, ">")):
        samples = (RNG.integers(-1 << bits - 1, 1 << bits - 1, (HEIGHT, WIDTH))).astype(f"{order}i{bits // 8}")
        end = "le" if order == "<" else "be"
        record(f"kind_int{bits}_{end}.tif", tiff(tags([bits], 1, t339=(3, [2])), [samples.tobytes()], order))
    record("kind_uint32.tif", tiff(tags([32], 1), [RNG.integers(0, 1 << 32, (HEIGHT, WIDTH)).astype("<u4").tobytes()]))
    unit = RNG.random((HEIGHT, WIDTH)) * 1.2 - 0.2
    unit[3, 4] = np.nan
    bright = np.where(RNG.random(unit.shape) < 0.1, unit * 400, unit)
    for name, values in (("unit", unit), ("byte", unit * 300), ("bright", bright)):
        for order in "<>":
            end = "le" if order == "<" else "be"
            record(f"kind_float_{name}_{end}.tif",
                   tiff(tags([32], 1, t339=(3, [3])), [values.astype(f"{order}f4").tobytes()], order))
    for bits in (16, 64):
        data = unit.astype(f"<f{bits // 8}")
        known = np.nan_to_num(data.astype(np.float64), nan=0)
        white = np.floor(known * 255 + 0.5).clip(0, 255)
        record(f"kind_float{bits}.tif", tiff(tags([bits], 1, t339=(3, [3])), [data.tobytes()]), gray(white))
    for bits in (16, 32, 64):
        values = RNG.random((HEIGHT, WIDTH)).astype(f">f{bits // 8}")
        known = np.floor(values.astype(np.float64) * 255 + 0.5)
        data = zlib.compress(sorted_bytes(values))
        record(f"kind_float{bits}_predicted.tif", tiff(tags([bits], 1, 8, t339=(3, [3]), t317=(3, [3])), [data]),
               gray(known))
    for order in "<>":
        end = "le" if order == "<" else "be"
        for bits in (8, 16, 32):
            samples = (picture(3, 1 << bits) if bits < 32 else picture(3, 1 << 31) * 2).astype(np.uint64)
            differences = np.diff(samples, axis=1, prepend=np.zeros((HEIGHT, 1, 3), np.uint64)) % (1 << bits)
            data = zlib.compress(differences.astype(f"{order}u{bits // 8}").tobytes())
            record(f"kind_predicted{bits}_{end}.tif", tiff(tags([bits] * 3, 2, 8, t317=(3, [2])), [data], order),
                   (samples >> (bits - 8)).astype(np.uint8))
    high = (deep >> 8).astype(np.uint8)
    record("kind_one_bits.tif", tiff(tags([8] * 3, 2) | {258: (3, [8])}, [high.tobytes()]), high)
    record("kind_no_counts.tif", without_counts(tiff(tags([8] * 3, 2, 8), [zlib.compress(high.tobytes())])))


def twelve(values: np.ndarray) -> bytes:
    return packed(values, 12).tobytes()


def sorted_bytes(values: np.ndarray) -> bytes:
    """Rows of numbers with the highest byte first: bytes by their place, then differences of bytes."""
    rows = values.view(np.uint8).reshape(HEIGHT, WIDTH, -1).transpose(0, 2, 1).reshape(HEIGHT, -1)
    return np.diff(rows, axis=1, prepend=np.zeros((HEIGHT, 1), np.uint8)).astype(np.uint8).tobytes()


def without_counts(data: bytes) -> bytes:
    """The tag of the byte counts becomes one that says nothing."""
    at = data.index(struct.pack("<HHI", 279, 4, 1))
    return data[:at] + struct.pack("<H", 280) + data[at + 2:]


def write_planes() -> None:
    for name, top, kind, order in (("8", 256, "u1", "<"), ("16", 65536, ">u2", ">")):
        colours, bits = picture(4, top), 8 * np.dtype(kind).itemsize
        strips = [zlib.compress(colours[row:row + 5, :, plane].astype(kind).tobytes())
                  for plane in range(3) for row in range(0, HEIGHT, 5)]
        record(f"kind_planes{name}.tif", tiff(tags([bits] * 3, 2, 8, 5, t284=(3, [2])), strips, order))
        inks = [zlib.compress(colours[..., plane].astype(kind).tobytes()) for plane in range(4)]
        record(f"kind_planes{name}_inks.tif", tiff(tags([bits] * 4, 5, 8, t284=(3, [2])), inks, order))
    colours = picture(4).astype(np.uint8)
    whole = [colours[..., plane].tobytes() for plane in range(4)]
    record("kind_planes_alpha.tif", tiff(tags([8] * 4, 2, t284=(3, [2]), t338=(3, [2])), whole))
    squeezed = [zlib.compress(plane) for plane in whole]
    record("kind_planes_extra.tif", tiff(tags([8] * 4, 2, 8, t284=(3, [2]), t338=(3, [0])), squeezed))
    padded = np.zeros((16, 32, 3), np.uint8)
    padded[:HEIGHT, :WIDTH] = colours[..., :3]
    tiles = [padded[:, x:x + 16, plane].tobytes() for plane in range(3) for x in (0, 16)]
    layout = {tag: value for tag, value in tags([8] * 3, 2, t284=(3, [2])).items() if tag != 278}
    record("kind_planes_tiles.tif", tiff(layout | {322: (4, [16]), 323: (4, [16])}, tiles, "<", 324, 325))
    planes = [saved(Image.fromarray(colours[..., plane]), format="JPEG", quality=90) for plane in range(3)]
    record("kind_planes_jpeg.tif", tiff(tags([8] * 3, 2, 7, t284=(3, [2])), planes))
    for extra in (0, 2):
        body = colours[..., :2].tobytes()
        record(f"kind_gray_extra{extra}.tif", tiff(tags([8] * 2, 1, t338=(3, [extra])), [body]))
        palette = [int(v) for v in RNG.integers(0, 65536, 768)]
        record(f"kind_palette_extra{extra}.tif", tiff(tags([8] * 2, 3, t338=(3, [extra]), t320=(3, palette)), [body]))
    record("kind_gray_premultiplied.tif", tiff(tags([8] * 2, 1, t338=(3, [1])), [colours[..., :2].tobytes()]))


def write_facsimile() -> None:
    image = Image.fromarray((picture(1)[..., 0] > 110).astype(np.uint8) * 255).convert("1")
    wide = Image.new("1", (5001, 3), 1)
    wide.paste(0, (4998, 1, 5000, 3))
    wide.paste(0, (1, 0, 2700, 1))
    for name, compression, options in (
            ("huffman", "tiff_ccitt", {}), ("group3", "group3", {}), ("group3_2d", "group3", {292: 1}),
            ("group3_fill", "group3", {292: 4}), ("group3_2d_fill", "group3", {292: 5}), ("group4", "group4", {})):
        record(f"kind_{name}.tif", saved(image, format="TIFF", compression=compression, tiffinfo=options))
        record(f"kind_{name}_lsb.tif", saved(image, format="TIFF", compression=compression, tiffinfo=options | {266: 2}))
        record(f"kind_{name}_wide.tif", saved(wide, format="TIFF", compression=compression, tiffinfo=options))
    record("kind_group4_inverted.tif", saved(image, format="TIFF", compression="group4", tiffinfo={262: 0}))


def write_compressions() -> None:
    image = Image.fromarray(picture(3).astype(np.uint8))
    for name in ("zstd", "lzma"):
        record(f"kind_{name}.tif", saved(image, format="TIFF", compression=name))
        record(f"kind_{name}_predicted.tif", saved(image, format="TIFF", compression=name, tiffinfo={317: 2}))
    big = Image.fromarray(RNG.integers(0, 3, (70, 90), dtype=np.uint8))
    record("kind_lzma_long.tif", saved(big, format="TIFF", compression="lzma"))
    record("kind_lzw_predicted.tif", saved(image, format="TIFF", compression="tiff_lzw", tiffinfo={317: 2}))
    record("kind_lzw_old.tif", tiff(tags([8] * 3, 2, 5), [lowest_bit_first(np.asarray(image).tobytes())]))
    record("kind_inks_jpeg.tif", saved(Image.fromarray(picture(4).astype(np.uint8), "CMYK"), format="TIFF",
                                       compression="jpeg", quality=90))
    record("kind_white_is_zero_jpeg.tif",
           tiff(tags([8], 0, 7), [saved(image.convert("L"), format="JPEG", quality=90)]))


def lowest_bit_first(data: bytes) -> bytes:
    """LZW from before TIFF 6.0: 9-bit codes for single bytes, cleared before they grow."""
    codes = []
    for at in range(0, len(data), 200):
        codes += [256, *data[at:at + 200]]
    bits = "".join(f"{code:09b}"[::-1] for code in codes + [257])
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at:at + 8][::-1], 2) for at in range(0, len(bits), 8))


def write_differences() -> None:
    samples = picture(3).astype(np.uint8)
    for h, v in ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (4, 2), (4, 4)):
        data = zlib.compress(grouped(samples, h, v))
        record(f"kind_ycbcr{h}{v}.tif", tiff(tags([8] * 3, 6, 8, t530=(3, [h, v])), [data]))
    rows = [zlib.compress(grouped(samples[row:row + 4], 2, 2)) for row in range(0, HEIGHT, 4)]
    record("kind_ycbcr_strips.tif", tiff(tags([8] * 3, 6, 8, 4, t530=(3, [2, 2])), rows))
    record("kind_ycbcr_default.tif", tiff(tags([8] * 3, 6, 8), [zlib.compress(grouped(samples, 2, 2))]))
    fractions = lambda *values: (5, [n for value in values for n in (round(value * 10000), 10000)])  # noqa: E731
    video = tiff(tags([8] * 3, 6, 8, t530=(3, [1, 1]), t529=fractions(0.2126, 0.7152, 0.0722),
                      t532=fractions(16, 235, 128, 240, 128, 240)), [zlib.compress(samples.tobytes())])
    for tag, count in ((529, 3), (532, 6)):  # a fraction is two numbers
        video = video.replace(struct.pack("<HHI", tag, 5, 2 * count), struct.pack("<HHI", tag, 5, count))
    record("kind_ycbcr_video.tif", video)
    record("kind_ycbcr_planes.tif", tiff(tags([8] * 3, 6, 8, t530=(3, [1, 1]), t284=(3, [2])),
                                         [zlib.compress(samples[..., plane].tobytes()) for plane in range(3)]))
    stream = saved(Image.fromarray(samples), format="JPEG", quality=90, subsampling=2)
    at = len(tiff(tags([8] * 3, 6, 6, t513=(4, [0]), t514=(4, [0]), t530=(3, [2, 2])), [b""]))
    record("kind_old_jpeg.tif", tiff(tags([8] * 3, 6, 6, t513=(4, [at]), t514=(4, [len(stream)]), t530=(3, [2, 2])),
                                     [stream]))
    record("kind_old_jpeg_tables.tif", old_jpeg(stream))


def grouped(samples: np.ndarray, h: int, v: int) -> bytes:
    """For every h by v pixels their brightnesses, then the colour differences of the first."""
    height, width, _ = samples.shape
    padded = np.pad(samples, ((0, -height % v), (0, -width % h), (0, 0)), "edge")
    blocks = padded.reshape(padded.shape[0] // v, v, padded.shape[1] // h, h, 3).transpose(0, 2, 1, 3, 4)
    return b"".join(block[..., 0].tobytes() + block[0, 0, 1:].tobytes() for row in blocks for block in row)


def old_jpeg(stream: bytes) -> bytes:
    """The tables of a stream behind its bare data, with tags that point to them."""
    quantisation, huffman, at = [], {}, 2
    while stream[at + 1] != 0xDA:
        size = struct.unpack(">H", stream[at + 2:at + 4])[0]
        body = stream[at + 4:at + 2 + size]
        while stream[at + 1] == 0xDB and body:
            quantisation.append(body[1:65])
            body = body[65:]
        while stream[at + 1] == 0xC4 and body:
            count = 17 + sum(body[1:17])
            huffman[body[0]] = body[1:count]
            body = body[count:]
        at += 2 + size
    data = stream[at + 2 + struct.unpack(">H", stream[at + 2:at + 4])[0]:-2]
    tables = [*(quantisation[index] for index in (0, 1, 1)), *(huffman[index] for index in (0, 1, 1)),
              *(huffman[16 + index] for index in (0, 1, 1))]

    def build(places: list[int]) -> bytes:
        return tiff(tags([8] * 3, 6, 6, t512=(3, [1]), t519=(4, places[:3]), t520=(4, places[3:6]),
                         t521=(4, places[6:]), t530=(3, [2, 2])), [data])

    start = len(build([0] * 9))
    places = [start + sum(len(table) for table in tables[:index]) for index in range(9)]
    return build(places) + b"".join(tables)


def main() -> None:
    for old in OUT.glob("kind_*.tif"):
        old.unlink()
    image_fixtures.TYPES[5] = "I"
    for write in (write_samples, write_planes, write_facsimile, write_compressions, write_differences):
        write()
    lines = ",\n  ".join(json.dumps(entry) for entry in ENTRIES)
    (OUT / "tiff.json").write_text(f'{{"about": "made by tests/reference/tiff_fixtures.py",\n "pillow": '
                                   f'"{PIL.__version__}",\n "images": [\n  {lines}\n ]}}\n')
    print(f"{len(ENTRIES)} images, {sum(path.stat().st_size for path in OUT.glob('kind_*.tif'))} bytes")


if __name__ == "__main__":
    main()
