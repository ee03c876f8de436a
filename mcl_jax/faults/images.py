"""Broken and odd image files of twelve kinds, made on purpose (see runs.py)."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 48  # px


def photograph(rng: np.random.Generator) -> Image.Image:
    """A smooth random picture, as large as JPEG needs to have a scan worth damaging."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((SIDE * 4 // 3, SIDE), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(rng: np.random.Generator) -> bytes:
    return encoded(photograph(rng), "JPEG", quality=90)


def _rotated(rng: np.random.Generator) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(rng), "JPEG", exif=exif.tobytes())


def _animation(rng: np.random.Generator) -> bytes:
    more = [photograph(rng) for _ in range(2)]
    return encoded(photograph(rng), "GIF", save_all=True, append_images=more)


def _sixteen_bit(rng: np.random.Generator) -> bytes:
    gray = np.asarray(photograph(rng).convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(gray), "PNG")


def _damaged(rng: np.random.Generator) -> bytes:
    data = bytearray(_jpeg(rng))
    middle = len(data) // 2
    data[middle : middle + 200] = b"\xff\x3f" * 100
    return bytes(data)


def _png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that many pixels and whose data hold none."""

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def _huge_jpeg(rng: np.random.Generator) -> bytes:
    data = bytearray(_jpeg(rng))
    offset = data.index(b"\xff\xc0") + 5  # height and width of the frame header
    data[offset : offset + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


# kind -> (whether it can be used, its bytes)
KINDS: dict[str, tuple[bool, Callable[[np.random.Generator], bytes]]] = {
    "empty": (False, lambda rng: b""),
    "truncated JPEG": (False, lambda rng: _jpeg(rng)[: len(_jpeg(rng)) // 2]),
    "truncated PNG": (False, lambda rng: encoded(photograph(rng), "PNG")[:700]),
    "damaged scan": (False, _damaged),
    "HTML": (False, lambda rng: b"<!doctype html><title>404</title>" * 20),
    "random bytes": (False, lambda rng: rng.bytes(500)),
    "bomb": (False, lambda rng: _png_of(60_000, 60_000)),
    "huge header": (False, _huge_jpeg),
    "CMYK": (True, lambda rng: encoded(photograph(rng).convert("CMYK"), "JPEG", quality=90)),
    "16-bit": (True, _sixteen_bit),
    "EXIF-rotated": (True, _rotated),
    "GIF": (True, _animation),
}


def fill(folder: Path, good: int, of_each_kind: int, seed: int) -> dict[str, bool]:
    """Writes good JPEGs and files of every kind, all named .jpg; name -> whether it can be used."""
    rng, usable = np.random.default_rng(seed), {}
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(good):
        usable[f"good{i:05}.jpg"] = True
        (folder / f"good{i:05}.jpg").write_bytes(_jpeg(rng))
    for kind, (works, make) in KINDS.items():
        for i in range(of_each_kind):
            name = f"{kind.replace(' ', '-')}-{i:05}.jpg"
            usable[name] = works
            (folder / name).write_bytes(make(rng))
    return usable
