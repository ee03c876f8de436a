"""Decoding: real photographs and every kind of broken or unusual file onto a canvas."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mcl_jax.data.decode import (
    DecodeError,
    Repair,
    decode,
    decode_to_canvas,
    decode_whole,
    fitted_extent,
)

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def photo():
    """uint8 [300, 451, 3]."""
    return skimage_data.chelsea()


def encode(image, fmt, mode=None, **options):
    picture = Image.fromarray(image)
    buffer = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(buffer, fmt, **options)
    return buffer.getvalue()


def test_jpeg_that_fits_is_the_full_decode_top_left_on_zeros(photo):
    data = encode(photo, "JPEG", quality=90)
    canvas, extent = decode_to_canvas(data, 512)
    assert canvas.dtype == np.uint8 and canvas.shape == (512, 512, 3)
    assert extent == (300, 451)
    np.testing.assert_array_equal(canvas[:300, :451], simplejpeg.decode_jpeg(data, "RGB"))
    assert not canvas[300:].any() and not canvas[:, 451:].any()


@pytest.mark.parametrize("size", [400, 200, 96, 33])
def test_shrinking_keeps_aspect_and_agrees_with_area_interpolation(photo, size):
    data = encode(photo, "JPEG", quality=95)
    canvas, (height, width) = decode_to_canvas(data, size)
    assert (height, width) == (round(300 * size / 451), size)
    full = simplejpeg.decode_jpeg(data, "RGB")
    expected = cv2.resize(full, (width, height), interpolation=cv2.INTER_AREA)
    error = np.abs(canvas[:height, :width].astype(int) - expected)
    # The reduced-scale decode is a slightly different low-pass filter than a pixel area: measured
    # means are up to 1.4 levels, an image unfiltered or one pixel off gives 4 and more.
    assert error.mean() < 2
    assert not canvas[height:].any()


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(photo, fmt):
    canvas, extent = decode_to_canvas(encode(photo, fmt), 451)
    assert extent == (300, 451)
    np.testing.assert_array_equal(canvas[:300], photo)


def test_lossless_shrink_is_exactly_area_interpolation(photo):
    canvas, (height, width) = decode_to_canvas(encode(photo, "PNG"), 100)
    expected = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(canvas[:height, :width], expected)


def test_grayscale_jpeg_gives_three_equal_channels(photo):
    canvas, _ = decode_to_canvas(encode(photo, "JPEG", "L", quality=95), 451)
    np.testing.assert_array_equal(canvas[..., 0], canvas[..., 1])
    np.testing.assert_array_equal(canvas[..., 0], canvas[..., 2])
    assert 50 < canvas[:300].mean() < 200


def test_cmyk_jpeg_is_not_inverted(photo):
    canvas, _ = decode_to_canvas(encode(photo, "JPEG", "CMYK", quality=95), 451)
    # JPEG noise at quality 95 is 1 to 2 levels; an inverted image is off by about 80.
    assert np.abs(canvas[:300].astype(int) - photo).mean() < 4


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_sixteen_bit_keeps_the_high_byte(photo, extension):
    gray = photo[..., 0]
    data = cv2.imencode(extension, gray.astype(np.uint16) * 256 + 77)[1].tobytes()
    canvas, _ = decode_to_canvas(data, 451)
    # OpenCV rounds or cuts by format: one level at most, never white.
    assert np.abs(canvas[:300, :, 0].astype(int) - gray).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("form", [".png", ".tif", ".jp2", ".pgm", "rgb .png", "rgba .png"])
def test_fewer_bits_in_sixteen_are_scaled_by_what_the_file_holds(photo, bits, form):
    wide = photo.astype(np.uint16) << (bits - 8)
    colors, _, extension = form.rpartition(" ")
    if colors == "rgba":
        samples = np.dstack([wide[..., ::-1], np.full(wide.shape[:2], 2**bits - 1, np.uint16)])
    else:
        samples = wide[..., ::-1] if colors else wide[..., 0]
    data = cv2.imencode(extension, samples)[1].tobytes()
    canvas, _, repair = decode(data, 451)
    expected = photo if colors else photo[..., :1]
    # JPEG 2000 as OpenCV writes it is not lossless
    assert np.abs(canvas[:300].astype(int) - expected).max() <= (4 if extension == ".jp2" else 0)
    assert repair is Repair.DEPTH


def test_sixteen_bits_beside_alpha_lie_on_white(photo):
    alpha = np.where(np.arange(451) < 200, 0, 65535).astype(np.uint16)
    samples = np.dstack([photo[..., ::-1].astype(np.uint16) * 257, np.tile(alpha, (300, 1))])
    canvas, _, repair = decode(cv2.imencode(".png", samples)[1].tobytes(), 451)
    np.testing.assert_array_equal(canvas[:300, 200:], photo[:, 200:])
    assert (canvas[:300, :200] == 255).all() and repair is Repair.NONE


@pytest.mark.parametrize("largest", [15, 255, 1000, 4095, 65535])
def test_largest_sample_that_a_pgm_names_is_white(largest):
    samples = np.linspace(0, largest, 16).astype(">u2" if largest > 255 else "u1")
    canvas, _ = decode_to_canvas(f"P5\n4 4\n{largest}\n".encode() + samples.tobytes(), 4)
    np.testing.assert_allclose(canvas[..., 0].ravel(), np.arange(16) * 17, atol=1)


def test_transparency_lies_on_white():
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, 4:] = (200, 10, 30, 255)
    canvas, _ = decode_to_canvas(encode(rgba, "PNG"), 8)
    assert (canvas[:, :4] == 255).all()
    assert (canvas[:, 4:] == (200, 10, 30)).all()


def test_animated_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    canvas, extent = decode_to_canvas(buffer.getvalue(), 20)
    assert extent == (10, 20)
    assert (canvas[:10] == (255, 0, 0)).all()


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_exif_rotation_is_ignored(photo, fmt):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn by a quarter to show upright.
    _, extent = decode_to_canvas(encode(photo, fmt, exif=exif.tobytes()), 451)
    assert extent == (300, 451)


def test_stray_bytes_between_markers_are_accepted(photo):
    data = encode(photo, "JPEG", quality=90)
    canvas, _ = decode_to_canvas(data[:-2] + b"\x00" * 64 + data[-2:], 451)
    np.testing.assert_array_equal(canvas[:300], simplejpeg.decode_jpeg(data, "RGB"))


JPEGS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_blocks": 4},
    "full color": {"subsampling": 0},
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_that_lacks_its_end_marker_alone_is_decoded_whole(photo, kind):
    data = encode(photo, "JPEG", quality=90, **JPEGS[kind])
    expected = simplejpeg.decode_jpeg(data, "RGB")
    for lacks in (1, 2):  # half of the marker, or all of it
        canvas, _, repair = decode(data[:-lacks], 512)
        assert repair is Repair.END_MARKER
        np.testing.assert_array_equal(canvas[:300, :451], expected)
        np.testing.assert_array_equal(decode_whole(data[:-lacks]), expected)
    assert decode(data, 512).repair is Repair.NONE
    for lacks in (3, 4, 5, 6, 9, 20, 300, len(data) // 2):  # of the scan
        with pytest.raises(DecodeError, match="damaged JPEG"):
            decode(data[:-lacks], 512)


def broken_files(photo):
    jpeg = encode(photo, "JPEG", quality=90)
    damaged = bytearray(jpeg)
    middle = len(jpeg) // 2
    damaged[middle : middle + 400] = b"\xff\x3f" * 200
    return {
        "empty": (b"", "empty"),
        "html": (b"<html>404</html>", "not an image"),
        "zeros": (bytes(1000), "not an image"),
        "magic only": (jpeg[:3], "not an image"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "damaged JPEG"),
        "jpeg header": (jpeg[:200], "."),
        "damaged scan": (bytes(damaged), "damaged JPEG"),
        "truncated png": (encode(photo, "PNG")[:20000], "."),
        "truncated gif": (encode(photo, "GIF")[:5000], "."),
        "truncated webp": (encode(photo, "WEBP")[:3000], "."),
    }


@pytest.mark.parametrize("kind", sorted(broken_files(np.zeros((4, 4, 3), np.uint8))))
def test_broken_files_raise_decode_error_with_the_reason(photo, kind):
    data, reason = broken_files(photo)[kind]
    with pytest.raises(DecodeError, match=reason):
        decode_to_canvas(data, 64)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_absurd_dimensions_are_refused_before_decoding(photo, fmt, monkeypatch):
    data = encode(photo, fmt)

    def decoded(*unused, **unused_too):
        raise AssertionError("decoded")

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decoded)
    monkeypatch.setattr(cv2, "imdecode", decoded)
    with pytest.raises(DecodeError, match="451x300"):
        decode_to_canvas(data, 64, max_pixels=300 * 451 - 1)


def test_extreme_aspect_keeps_at_least_one_pixel():
    canvas, extent = decode_to_canvas(encode(np.full((2, 900, 3), 9, np.uint8), "PNG"), 64)
    assert extent == (1, 64) == fitted_extent(2, 900, 64)
    assert (canvas[0] == 9).all() and not canvas[1:].any()
