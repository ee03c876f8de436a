"""Restatements of torchvision's and Pillow's formulas in numpy, float64, and images to try them on.

Shapes: image [H, W, 3] in [0, 1]; planes float32 [H, 3, W], the library's layout.
"""

import math

import jax.numpy as jnp
import numpy as np

from mcl_jax.views import color

LUMA = np.array([0.2989, 0.587, 0.114])


def pil_resample(image, top, left, height, width, target_size):
    """Pillow's precompute_coeffs with the triangle filter, on rows and columns of a cropped box."""

    def matrix(length):
        scale = length / target_size
        support = max(scale, 1.0)
        weights = np.zeros((target_size, length))
        for target in range(target_size):
            center = (target + 0.5) * scale
            first = max(int(center - support + 0.5), 0)
            for source in range(first, min(int(center + support + 0.5), length)):
                weights[target, source] = max(0, 1 - abs(source + 0.5 - center) / support)
        return weights / weights.sum(1, keepdims=True)

    box = image[top : top + height, left : left + width]
    return np.einsum("hr,rwc,xw->hxc", matrix(height), box, matrix(width))


def torchvision_jitter(image, op, amount):
    """adjust_brightness, adjust_contrast, adjust_saturation and adjust_hue of float images."""
    if op == color.Op.HUE:
        return torchvision_hue(image, amount)
    gray = (image @ LUMA)[..., None]
    other = {0: 0.0, 1: gray.mean(), 2: gray}[int(op)]
    return np.clip(amount * image + (1 - amount) * other, 0, 1)


def torchvision_hue(image, shift):
    """RGB -> HSV by masks on the largest channel, shift, HSV -> RGB by the table of six cases."""
    r, g, b = np.moveaxis(image, -1, 0)
    value, least = image.max(-1), image.min(-1)
    chroma = value - least
    saturation = chroma / np.where(chroma == 0, 1, value)
    divisor = np.where(chroma == 0, 1, chroma)
    rc, gc, bc = (value - r) / divisor, (value - g) / divisor, (value - b) / divisor
    hue = (value == r) * (bc - gc)
    hue += ((value == g) & (value != r)) * (2 + rc - bc)
    hue += ((value != g) & (value != r)) * (4 + gc - rc)
    hue = np.mod(np.fmod(hue / 6 + 1, 1) + shift, 1)
    case = np.floor(hue * 6)
    rest = hue * 6 - case
    p = value * (1 - saturation)
    q = value * (1 - saturation * rest)
    t = value * (1 - saturation * (1 - rest))
    v = value
    table = np.array([(v, t, p), (q, v, p), (p, v, t), (p, q, v), (t, p, v), (v, p, q)])
    return np.einsum("k...,kc...->...c", case == np.arange(6)[:, None, None], table)


def torchvision_blur(image, sigma):
    """gaussian_blur with the widest kernel that reflect padding allows, axis by axis."""
    for axis in (0, 1):
        radius = image.shape[axis] - 1
        taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        taps /= taps.sum()
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(image, pad, mode="reflect") if radius else image
        image = np.apply_along_axis(np.convolve, axis, padded, taps, mode="valid")
    return image


def torchvision_box(rng, height, width, area, aspect):
    """RandomResizedCrop.get_params: (top, left, height, width)."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(*np.log(aspect)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    h, w = height, width
    if width / height < aspect[0]:
        h = round(w / aspect[0])
    elif width / height > aspect[1]:
        w = round(h * aspect[1])
    return (height - h) // 2, (width - w) // 2, h, w


def photo(seed, height, width):
    """uint8 [height, width, 3]: coarse noise under fine noise, all 256 values in use."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    coarse = coarse.repeat(8, 0).repeat(8, 1)[:height, :width]
    return np.clip(coarse + rng.integers(-40, 41, coarse.shape), 0, 255).astype(np.uint8)


def colors():
    """[12, 10, 3]: noise with gray, black, white, primary and two-equal-channels pixels."""
    image = np.random.default_rng(2).random((12, 10, 3)).astype(np.float32).astype(float)
    image[0, :9] = [*np.eye(3), *(1 - np.eye(3)), (0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5)]
    image[1, :3] = [(0.75, 0.75, 0.25), (0.25, 0.75, 0.75), (0.75, 0.25, 0.75)]
    return image


def planes_of(image):
    return jnp.asarray(image.transpose(0, 2, 1), jnp.float32)


def image_of(planes):
    return np.asarray(planes, np.float64).transpose(0, 2, 1)
