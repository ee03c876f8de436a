"""Color operations of the augmentation, on one view, in torchvision's float formulas.

Shapes:
  planes  float32 [H, 3, W]  rows, (red, green, blue), columns; values in [0, 1]

All operations but one mean are elementwise, so XLA fuses them. Nothing branches on data: under
`vmap` a `lax.switch` would compute every branch anyway.
"""

import enum
from functools import partial

import jax
import jax.numpy as jnp

from mcl_jax import sharding


class Op(enum.IntEnum):
    """The four color jitter operations, numbered as `torchvision.transforms.ColorJitter` does."""

    BRIGHTNESS = 0
    CONTRAST = 1
    SATURATION = 2
    HUE = 3


def draw_jitter(key, widths, hue):
    """Draws one color jitter by the rule of `torchvision.transforms.ColorJitter`.

    Args:
      key: a PRNG key.
      widths: (brightness, contrast, saturation), half widths of the factors, which are uniform in
        [max(0, 1 - width), 1 + width].
      hue: half width of the hue shift, uniform in [-hue, hue], in turns of the color circle.

    Returns:
      (amounts float32 [4], order int32 [4]): the amount of each `Op`, by number, and the `Op`s in
      the order in which they act, uniform over all 24.
    """
    amount_key, order_key = jax.random.split(key)
    widths = jnp.array(widths, jnp.float32)
    low = jnp.append(jnp.maximum(0.0, 1.0 - widths), -hue)
    high = jnp.append(1.0 + widths, hue)
    amounts = jax.random.uniform(amount_key, (len(Op),), minval=low, maxval=high)
    return amounts, jax.random.permutation(order_key, len(Op))


def recolor(planes, amounts, order, jitters, grays):
    """Brightness, contrast, saturation and hue in the given order, each clipped to [0, 1]; then luma.

    There are two formulations, equal up to rounding. `recolor_in_two_passes` reads memory least.
    XLA's CPU compiler, however, computes a shared value again for each use, exponentially often over
    such a chain. So CPUs take `recolor_slot_by_slot`.

    Args:
      planes: float32 [H, 3, W] in [0, 1].
      amounts: float32 [4], per `Op`: three factors (1 = unchanged), then the hue shift in turns.
      order: int32 [4], a permutation of the `Op` numbers.
      jitters: bool [], whether the four operations happen.
      grays: bool [], whether the result is in gray.

    Returns:
      float32 [H, 3, W] in [0, 1].
    """
    return sharding.by_platform(
        planes,
        amounts,
        order,
        jitters,
        grays,
        cpu=recolor_slot_by_slot,
        default=recolor_in_two_passes,
    )


def recolor_slot_by_slot(planes, amounts, order, jitters, grays):
    """`recolor`, one operation after the other."""
    planes = jnp.where(jitters, _jitter_slot_by_slot(planes, amounts, order), planes)
    return jnp.where(grays, grayscale(planes), planes)


def recolor_in_two_passes(planes, amounts, order, jitters, grays):
    """`recolor`, in two passes over the image where slot by slot takes a dozen.

    Only contrast needs to know more than its pixel: the mean gray of what comes before it. So the
    operations before it run once for that mean alone, and then all of them for the result.
    """
    channels = tuple(planes[:, channel] for channel in range(3))
    contrast_slot = jnp.argmax(order == Op.CONTRAST)
    before = _first_slots(channels, amounts, order=order, count=contrast_slot, mean=0.0)
    mean = jnp.mean(_luma(*before))
    jittered = _first_slots(channels, amounts, order=order, count=len(Op), mean=mean)
    # Channel by channel to the end: each array that is put together costs a pass.
    channels = tuple(map(partial(jnp.where, jitters), jittered, channels))
    gray = _luma(*channels)
    return jnp.stack([jnp.where(grays, gray, channel) for channel in channels], axis=1)


def _factors(amounts, order):
    """The amount of every slot."""
    chosen = order[:, None] == jnp.arange(len(Op))  # [slot, op]
    return jnp.sum(jnp.where(chosen, amounts, 0.0), axis=1)


def _jitter_slot_by_slot(planes, amounts, order):
    """The four operations.

    Three of the operations are one formula: a blend with black, with the mean gray or with the
    pixel's own gray. The shift of hue costs most, so it stands in the program once. Slots before it
    and behind it hold the blends; a slot that is not used gets factor 1, which changes nothing.
    """
    factors, hue_slot = _factors(amounts, order), jnp.argmax(order == Op.HUE)

    def blend_slot(planes, slot, active):
        gray = _luma(planes[:, 0:1], planes[:, 1:2], planes[:, 2:3])
        towards_mean = jnp.where(order[slot] == Op.CONTRAST, jnp.mean(gray), 0.0)
        towards = jnp.where(order[slot] == Op.SATURATION, gray, towards_mean)
        factor = jnp.where(active, factors[slot], 1.0)
        return jnp.clip(factor * planes + (1.0 - factor) * towards, 0.0, 1.0)

    for slot in (0, 1, 2):
        planes = blend_slot(planes, slot, slot < hue_slot)
    turned = _shift_hue(
        red=planes[:, 0], green=planes[:, 1], blue=planes[:, 2], turns=amounts[Op.HUE]
    )
    planes = jnp.stack(turned, axis=1)
    for slot in (1, 2, 3):
        planes = blend_slot(planes, slot, slot > hue_slot)
    return planes


def _first_slots(channels, amounts, order, count, mean):
    """The first `count` operations of an order, on three channels [H, W] of their own.

    Three arrays, not one: as slices of one, each operation would be evaluated anew per channel. Every
    slot holds a blend, as in `_jitter_slot_by_slot` with contrast's mean given, and the hue's shift:
    more arithmetic than with one place for the hue, and fewer results in memory.
    """
    factors = _factors(amounts, order)
    for slot in range(len(Op)):
        towards_mean = jnp.where(order[slot] == Op.CONTRAST, mean, 0.0)
        towards = jnp.where(order[slot] == Op.SATURATION, _luma(*channels), towards_mean)
        factor = factors[slot]
        blended = [jnp.clip(factor * x + (1.0 - factor) * towards, 0.0, 1.0) for x in channels]
        turned = _shift_hue(*channels, amounts[Op.HUE])
        changed = map(partial(jnp.where, order[slot] == Op.HUE), turned, blended)
        channels = tuple(map(partial(jnp.where, slot < count), changed, channels))
    return channels


def _shift_hue(red, green, blue, turns):
    """Turns the hue of every pixel; HSV value and saturation stay.

    A pixel's largest and smallest channel stay what they are and each channel is a trapezoid of the
    hue between them: torchvision's RGB -> HSV -> RGB without its six cases.

    Args:
      red, green, blue: float32 [H, W] in [0, 1].
      turns: float32 [], the shift; 1 is the whole circle.
    """
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    per_chroma = 1.0 / jnp.where(chroma > 0.0, chroma, 1.0)
    green_or_blue_largest = jnp.where(
        value == green, 2.0 + (blue - red) * per_chroma, 4.0 + (red - green) * per_chroma
    )
    sextant = jnp.where(value == red, (green - blue) * per_chroma, green_or_blue_largest)
    sextant = sextant + 6.0 * turns

    def channel(offset):
        angle = sextant + offset
        angle = angle - 6.0 * jnp.floor(angle / 6.0)
        return value - chroma * jnp.clip(jnp.minimum(angle, 4.0 - angle), 0.0, 1.0)

    return channel(5.0), channel(3.0), channel(1.0)


def _luma(red, green, blue):
    """ITU-R 601 luma with torchvision's weights."""
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def grayscale(planes):
    """Luma in all three channels: float32 [H, 3, W] -> [H, 3, W]."""
    luma = _luma(planes[:, 0:1], planes[:, 1:2], planes[:, 2:3])
    return jnp.broadcast_to(luma, planes.shape)


def solarize(planes, threshold):
    """Inverts (x -> 1 - x) the values at or above `threshold` (in [0, 1]); [H, 3, W] both ways."""
    return jnp.where(planes >= threshold, 1.0 - planes, planes)


def standardize(planes, mean, std):
    """(x - mean) / std per channel; mean and std are three numbers each, on the [0, 1] scale."""
    mean, std = (jnp.array(numbers, planes.dtype)[:, None] for numbers in (mean, std))
    return (planes - mean) / std
