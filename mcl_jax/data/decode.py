"""Encoded image bytes -> a fixed-size uint8 RGB canvas with its valid extent.

Legend: h, w are the height and width of the image on the canvas in px, C the canvas side in px.

Road of a record: simplejpeg (strict: the only decoder that notices damaged scan data) for JPEG,
then OpenCV, then Pillow for what neither reads as wanted. What is decided here, once:

* EXIF rotation is ignored, as ImageNet's and COCO's own annotations and loaders do; boxes stay
  true.
* Transparency is composited over white, which is what an image viewer shows.
* Samples of more than 8 bits are scaled by the depth that the file's largest one needs: 8, 10, 12,
  14 or 16 bits, for cameras, scanners and microscopes store 12 bits in 16. A file that uses all 16
  keeps its high byte. Gray becomes three equal channels.
* An animation gives its first frame.
* A JPEG whose scan is damaged or cut short is refused, even where a decoder would fill in gray;
  stray bytes between markers, harmless and common in photographs, are accepted, and so is a file
  that lacks its end marker alone.

What was mended is told with the image (`Repair`), so that it can be counted.
"""

import enum
import io
import warnings
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

# RGB at this size takes 400 MB; no photograph is larger, decompression bombs are.
SAFE_PIXELS = 2**27

_OPENCV_MODES = frozenset({"RGB", "L", "1", "I;16", "I;16B", "I;16L", "I"})
# OpenCV takes the samples of these as they are, whatever largest one their header names.
_PILLOW_FORMATS = frozenset({"PPM"})
_JPEG_MAGIC = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_DEPTHS = (8, 10, 12, 14, 16, 24, 32)  # bits of a sample


class DecodeError(ValueError):
    """The bytes are no image that can be used; the message is the reason."""


class Repair(enum.IntEnum):
    """What had to be mended to decode an image."""

    NONE = 0
    END_MARKER = 1
    DEPTH = 2

    @property
    def words(self) -> str:
        """For the user."""
        return _REPAIRS[self]


_REPAIRS = {
    Repair.NONE: "as it should be",
    Repair.END_MARKER: "JPEG without its end marker, decoded whole",
    Repair.DEPTH: "16-bit image that uses fewer bits, scaled by what it uses",
}


class Decoded(NamedTuple):
    """An image on its canvas.

    Attributes:
      canvas: uint8 [C, C, 3] RGB.
      extent: (h, w) in px.
      repair: what had to be mended.
    """

    canvas: np.ndarray
    extent: tuple[int, int]
    repair: Repair


def decode_to_canvas(
    data: bytes, size: int, *, max_pixels: int = SAFE_PIXELS, out: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Canvas and extent of `decode`, for those who do not count repairs."""
    return decode(data, size, max_pixels=max_pixels, out=out)[:2]


def decode(
    data: bytes, size: int, *, max_pixels: int = SAFE_PIXELS, out: np.ndarray | None = None
) -> Decoded:
    """Decode `data` onto the top-left of a zero canvas, aspect kept.

    The image is shrunk (area interpolation) only if its longer side exceeds `size`; it is never
    enlarged. JPEGs far larger than the canvas are decoded at a reduced scale first.

    Args:
      data: an encoded image: JPEG, PNG, WebP, GIF, BMP, TIFF or what else Pillow knows.
      size: canvas side C in px.
      max_pixels: an image of more pixels is refused before decoding.
      out: uint8 [C, C, 3] of zeros to draw on, e.g. a row of a batch; None makes one. It is left as
        it was if decoding fails.

    Raises:
      DecodeError: empty, damaged or cut-short data, unknown format, or too many pixels.

    Example:
      canvas, (height, width), repair = decode(path.read_bytes(), 512)
    """
    image, repair = _decode(bytes(data), size, max_pixels)
    height, width = fitted_extent(image.shape[0], image.shape[1], size)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    canvas = np.zeros((size, size, 3), np.uint8) if out is None else out
    canvas[:height, :width] = image
    return Decoded(canvas, (height, width), repair)


def decode_whole(data: bytes, max_pixels: int = SAFE_PIXELS) -> np.ndarray:
    """uint8 [height, width, 3] RGB at the image's own size; errors as `decode`."""
    return _decode(bytes(data), max_pixels, max_pixels)[0]


def fitted_extent(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) in px after shrinking the longer side to `size` px; at least 1 px each."""
    scale = min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _decode(data: bytes, size: int, max_pixels: int) -> tuple[np.ndarray, Repair]:
    """uint8 [height, width, 3] RGB, at least as large as the canvas needs."""
    if not data:
        raise DecodeError("empty file")
    if data.startswith(_JPEG_MAGIC):
        result = _decode_jpeg(data, size, max_pixels)
        if result is not None:
            return result
    header = _check_header(data, max_pixels)
    if header.mode in _OPENCV_MODES and not header.animated and not header.scaled:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
        image = _decode_opencv(data, flags)
        if image is not None and image.dtype.kind in "ui":
            image, repair = _as_bytes(image)
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB), repair
    return _decode_pillow(data, header)


def _decode_jpeg(data: bytes, size: int, max_pixels: int) -> tuple[np.ndarray, Repair] | None:
    """RGB of a sound JPEG, None where another decoder should try (CMYK, stray bytes)."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        _check_pixels(height, width, max_pixels)
        # Twice the size on the canvas: the area interpolation after it then decides the pixels.
        rows, columns = (2 * side for side in fitted_extent(height, width, size))
        try:
            return _strict_jpeg(data, rows, columns), Repair.NONE
        except ValueError as error:
            if "premature end of jpeg file" not in str(error).lower():
                raise
        # With an end marker the decoder tells a whole scan from one that is cut.
        return _strict_jpeg(data + _JPEG_END, rows, columns), Repair.END_MARKER
    except DecodeError:
        raise
    except Exception as error:  # simplejpeg's header reader raises KeyError on some broken files.
        reason = str(error)
        lowered = reason.lower()
        damaged = any(s in lowered for s in ("corrupt jpeg", "premature", "unsupported marker"))
        if damaged and "extraneous bytes" not in lowered:
            raise DecodeError(f"damaged JPEG: {reason}") from error
        return None


def _strict_jpeg(data: bytes, rows: int, columns: int) -> np.ndarray:
    """RGB at a scale of at least so many px; ValueError at anything that libjpeg warns of."""
    return simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns, strict=True)


class _Header(NamedTuple):
    mode: str  # Pillow's
    animated: bool  # it may have several frames
    scaled: bool  # it names a largest sample, which only Pillow heeds
    wide: bool  # there may be samples of 16 bits beside an alpha channel


def _check_header(data: bytes, max_pixels: int) -> _Header:
    """What the header alone tells, after the pixel guard."""
    try:
        with warnings.catch_warnings():
            # The pixel guard below is ours; damaged tags are no reason to refuse the pixels.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                transparent = "transparency" in image.info
                header = _Header(
                    mode=f"{image.mode}+transparency" if transparent else image.mode,
                    animated=getattr(image, "is_animated", False) or image.format == "GIF",
                    scaled=image.format in _PILLOW_FORMATS,
                    wide=image.mode in ("RGBA", "LA")
                    and (image.format == "TIFF" or (image.format == "PNG" and data[24] == 16)),
                )
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow's plugins raise anything on hostile bytes.
        head = data[:16]
        raise DecodeError(f"not an image in a known format (first bytes {head!r})") from error
    _check_pixels(height, width, max_pixels)
    return header


def _decode_opencv(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def _as_bytes(samples: np.ndarray) -> tuple[np.ndarray, Repair]:
    """Integers of any width as uint8, by the depth that the largest one needs."""
    if samples.dtype == np.uint8:
        return samples, Repair.NONE
    peak = int(samples.max(initial=0))
    depth = next(bits for bits in _DEPTHS if peak < 2**bits)
    scaled = samples.clip(0) >> (depth - 8)
    exact = depth == 16 or peak == 0
    return scaled.astype(np.uint8), Repair.NONE if exact else Repair.DEPTH


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise DecodeError(f"{width}x{height} px is more than the {max_pixels} px allowed")
    if height < 1 or width < 1:
        raise DecodeError(f"{width}x{height} px holds no pixel")


def _decode_pillow(data: bytes, header: _Header) -> tuple[np.ndarray, Repair]:
    """RGB of everything Pillow reads: palettes, alpha, CMYK, animations (first frame)."""
    if header.wide:
        pixels = _decode_opencv(data, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None and pixels.dtype == np.uint16 and pixels.shape[2:] == (4,):
            colors, repair = _as_bytes(pixels[..., 2::-1])
            alpha, _ = _as_bytes(pixels[..., 3:])
            return _on_white(Image.fromarray(np.concatenate([colors, alpha], axis=-1))), repair
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                image.seek(0)
                return _pillow_to_rgb(image)
    except Exception as error:  # As above: a bad file must never end the run by its exception type.
        raise DecodeError(f"cannot be decoded: {error}") from error


def _pillow_to_rgb(image: Image.Image) -> tuple[np.ndarray, Repair]:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit gray to white.
        gray, repair = _as_bytes(np.asarray(image).astype(np.int64))
        return np.repeat(gray[..., None], 3, axis=-1), repair
    if image.mode == "F":
        raise DecodeError("floating-point samples have no known range")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        return _on_white(image.convert("RGBA")), Repair.NONE
    return np.array(image.convert("RGB")), Repair.NONE


def _on_white(image: Image.Image) -> np.ndarray:
    """RGB of RGBA over white."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, image).convert("RGB"))
