"""Encoded image bytes -> a fixed-size uint8 RGB canvas with its valid extent.

Legend: h, w are the height and width of the image on the canvas in px, C the canvas side in px.

Road of a record: simplejpeg (strict: the only decoder that notices damaged scan data) for JPEG,
then OpenCV, then Pillow for what neither reads as wanted. What is decided here, once:

* EXIF rotation is ignored, as ImageNet's and COCO's own annotations and loaders do; boxes stay
  true.
* Transparency is composited over white, which is what an image viewer shows.
* 16-bit samples keep their high byte; gray becomes three equal channels.
* An animation gives its first frame.
* A JPEG whose scan is damaged or cut short is refused, even where a decoder would fill in gray;
  stray bytes between markers, harmless and common in photographs, are accepted.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import cv2
import numpy as np
import simplejpeg
from PIL import Image

# RGB at this size takes 400 MB; no photograph is larger, decompression bombs are.
SAFE_PIXELS = 2**27

_OPENCV_MODES = frozenset({"RGB", "L", "1", "I;16", "I;16B", "I;16L", "I"})
_JPEG_MAGIC = b"\xff\xd8\xff"


_OPENCV_LOCK = threading.Lock()
_opencv_users = 0
_opencv_before = (0, 0)


class DecodeError(ValueError):
    """The bytes are no image that can be used; the message is the reason."""


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """OpenCV without threads and messages of its own, until the last such context ends.

    One decoded image is too small to share out: the pipeline's own threads and workers hold the
    cores. And OpenCV would print every broken file on stderr; DecodeError carries the reason.
    """
    global _opencv_users, _opencv_before
    log = cv2.utils.logging
    with _OPENCV_LOCK:
        if _opencv_users == 0:
            _opencv_before = (cv2.getNumThreads(), log.getLogLevel())
            cv2.setNumThreads(1)
            log.setLogLevel(log.LOG_LEVEL_SILENT)
        _opencv_users += 1
    try:
        yield
    finally:
        with _OPENCV_LOCK:
            _opencv_users -= 1
            if _opencv_users == 0:
                cv2.setNumThreads(_opencv_before[0])
                log.setLogLevel(_opencv_before[1])


def decode_to_canvas(
    data: bytes, size: int, *, max_pixels: int = SAFE_PIXELS, out: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode `data` onto the top-left of a zero canvas, aspect kept.

    The image is shrunk (area interpolation) only if its longer side exceeds `size`; it is never
    enlarged. JPEGs far larger than the canvas are decoded at a reduced scale first.

    Args:
      data: an encoded image: JPEG, PNG, WebP, GIF, BMP, TIFF or what else Pillow knows.
      size: canvas side C in px.
      max_pixels: an image of more pixels is refused before decoding.
      out: uint8 [C, C, 3] of zeros to draw on, e.g. a row of a batch; None makes one. It is left as
        it was if decoding fails.

    Returns:
      canvas uint8 [C, C, 3] RGB, and the valid extent (h, w) in px.

    Raises:
      DecodeError: empty, damaged or cut-short data, unknown format, or too many pixels.
    """
    image = _decode(bytes(data), size, max_pixels)
    height, width = fitted_extent(image.shape[0], image.shape[1], size)
    if (height, width) != image.shape[:2]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    canvas = np.zeros((size, size, 3), np.uint8) if out is None else out
    canvas[:height, :width] = image
    return canvas, (height, width)


def fitted_extent(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) in px after shrinking the longer side to `size` px; at least 1 px each."""
    scale = min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _decode(data: bytes, size: int, max_pixels: int) -> np.ndarray:
    """uint8 [height, width, 3] RGB, at least as large as the canvas needs."""
    if not data:
        raise DecodeError("empty file")
    if data.startswith(_JPEG_MAGIC):
        image = _decode_jpeg(data, size, max_pixels)
        if image is not None:
            return image
    mode, animated = _check_header(data, max_pixels)
    if mode in _OPENCV_MODES and not animated:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
        if image is not None:
            return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return _decode_pillow(data)


def _decode_jpeg(data: bytes, size: int, max_pixels: int) -> np.ndarray | None:
    """RGB of a sound JPEG, None where another decoder should try (CMYK, stray bytes)."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        _check_pixels(height, width, max_pixels)
        # Twice the size on the canvas: the area interpolation after it then decides the pixels.
        rows, columns = (2 * side for side in fitted_extent(height, width, size))
        return simplejpeg.decode_jpeg(data, "RGB", min_height=rows, min_width=columns, strict=True)
    except DecodeError:
        raise
    except Exception as error:  # simplejpeg's header reader raises KeyError on some broken files.
        reason = str(error)
        lowered = reason.lower()
        damaged = any(s in lowered for s in ("corrupt jpeg", "premature", "unsupported marker"))
        if damaged and "extraneous bytes" not in lowered:
            raise DecodeError(f"damaged JPEG: {reason}") from error
        return None


def _check_header(data: bytes, max_pixels: int) -> tuple[str, bool]:
    """(Pillow mode, is animated) from the header alone, after the pixel guard."""
    try:
        with warnings.catch_warnings():
            # The pixel guard below is ours, Pillow's own limit is a warning at another number.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                transparent = "transparency" in image.info
                mode = f"{image.mode}+transparency" if transparent else image.mode
                animated = getattr(image, "is_animated", False) or image.format == "GIF"
    except Image.DecompressionBombError as error:
        raise DecodeError(f"too many pixels: {error}") from error
    except Exception as error:  # Pillow's plugins raise anything on hostile bytes.
        head = data[:16]
        raise DecodeError(f"not an image in a known format (first bytes {head!r})") from error
    _check_pixels(height, width, max_pixels)
    return mode, animated


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise DecodeError(f"{width}x{height} px is more than the {max_pixels} px allowed")
    if height < 1 or width < 1:
        raise DecodeError(f"{width}x{height} px holds no pixel")


def _decode_pillow(data: bytes) -> np.ndarray:
    """RGB of everything Pillow reads: palettes, alpha, CMYK, animations (first frame)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                image.seek(0)
                return _pillow_to_rgb(image)
    except Exception as error:  # As above: a bad file must never end the run by its exception type.
        raise DecodeError(f"cannot be decoded: {error}") from error


def _pillow_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit gray to white.
        gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.mode == "F":
        raise DecodeError("floating-point samples have no known range")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))
