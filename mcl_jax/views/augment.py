"""On-device augmentation: uint8 canvases in, normalized views out, a key per view (design section 3).

Shapes:
  b images of this device, V sides (q, k), S levels, C canvas side in px, H image side in px
  canvas  uint8   [C, C, 3]  one decoded RGB image at the top left, zeros around it
  extent  int32   [2]        its valid (height, width) in px
  box     int32   [4]        top, left, height, width in px of the canvas
  planes  float32 [H, 3, H]  a view at work: rows, channels, columns; values in [0, 1]

With the channels between rows and columns, crop and blur are plain matrix products over the first
axis and over the last, with no transposes in between. Every random decision of a view is drawn
from the view's own key, so a view depends on nothing but its key, its image and the settings.
"""

import dataclasses
import enum
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mcl_jax import sharding
from mcl_jax.views import color, resample

# What the keys of a view are for: the number is folded into the view's own key.
Draw = enum.IntEnum(
    "Draw", "CROP FLIP JITTERS JITTER GRAYSCALES BLURS BLUR_SIGMA SOLARIZES", start=0
)


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """The augmentation's numbers (design section 3, Views); probabilities in [0, 1].

    Attributes:
      area: (low, high) of the crop's share of the valid extent.
      aspect: (low, high) of the crop's width / height, drawn log-uniformly.
      flip_prob: of a horizontal flip.
      jitter_prob: of the color jitter.
      brightness, contrast, saturation: half widths of the jitter's factors around 1.
      hue: half width of the hue shift, in turns (at most 0.5).
      grayscale_prob: of dropping color.
      blur_prob: of the Gaussian blur, one per side.
      blur_sigma: (low, high) of the blur's standard deviation in px of a 224 px view; other view
        sizes scale it by image_size / 224, so that a view's content is blurred alike.
      solarize_prob: of solarizing, one per side.
      solarize_threshold: values at or above it are inverted; on the [0, 1] scale.
      mean, std: per RGB channel, on the [0, 1] scale.
    """

    area: tuple[float, float]
    aspect: tuple[float, float]
    flip_prob: float
    jitter_prob: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale_prob: float
    blur_prob: tuple[float, ...]
    blur_sigma: tuple[float, float]
    solarize_prob: tuple[float, ...]
    solarize_threshold: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def views(key, canvas, extent, settings, *, image_size, strides):
    """Draws and makes all views of a batch: one per side, level and image, each independent.

    Args:
      key: a PRNG key for this step and device.
      canvas: uint8 [b, C, C, 3].
      extent: int32 [b, 2].
      settings: `AugmentSettings`; its number of sides is V.
      image_size: H, side of the views in px.
      strides: of every level: of the rows and columns of its views, each stride-th is kept. What is
        behind the last operation that reads neighbors is computed for these alone.

    Returns:
      Per level s float32 [V, b, H / stride, H / stride, 3]; entry [v, i] is what `view` makes of
      image i with `view_key(key, i, v, s)`, whatever the rest of the batch holds.

    Example:
      settings = fill(AugmentSettings, config.augment)
      key = jax.random.key(0)
      (whole,) = views(key, canvas, extent, settings, image_size=224, strides=(1,))
    """

    counts = (len(canvas), len(settings.blur_prob), len(strides))
    image, side, level = np.indices(counts)
    keys = map_views(functools.partial(view_keys, key), image, side, level)
    draw = functools.partial(draw_crop, settings=settings)
    boxes, flips = map_views(draw, keys, jnp.broadcast_to(extent[:, None, None], (*counts, 2)))

    # Images outermost: the crops of all views of an image are one product with its canvas.
    crop = functools.partial(resample.crop, image_size=image_size)
    by_image = (x.reshape(len(canvas), -1, *x.shape[3:]) for x in (boxes, flips))
    planes = jax.vmap(jax.vmap(crop, (None, 0, 0)))(canvas, *by_image)
    planes = planes.reshape(*counts, *planes.shape[2:])
    planes = map_views(functools.partial(colored, settings=settings), keys, planes)

    levels_of_views = []
    for level, stride in enumerate(strides):
        end = functools.partial(finished, settings=settings, image_size=image_size, stride=stride)
        of_level = jax.tree.map(lambda x, level=level: x[:, :, level], (keys, planes, side))
        levels_of_views.append(map_views(end, *of_level).swapaxes(0, 1))
    return tuple(levels_of_views)


def map_views(function, *arguments):
    """`function` of one view, for all views.

    On CPUs under one `jax.vmap`, because each further one traces every operation again. On accelerators
    under one for each axis: a TPU's step moves 0.58 GB less so (docs/tpu.md, operation by operation).

    Args:
      function: of the values of one view; its results are arrays.
      arguments: these values for all views: arrays, or dicts of arrays, with the axes of views (images,
        sides, levels) in front. The first array has no other axes.
    """
    shape = jax.tree.leaves(arguments)[0].shape

    def under_one(*arguments):
        def flat(x):
            return x.reshape(-1, *x.shape[len(shape) :])

        results = jax.vmap(function)(*jax.tree.map(flat, arguments))
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), results)

    def under_one_an_axis(*arguments):
        mapped = function
        for _ in shape:
            mapped = jax.vmap(mapped)
        return mapped(*arguments)

    return sharding.by_platform(*arguments, cpu=under_one, default=under_one_an_axis)


def view_key(key, image, side, level):
    """The key of one view: `key` folded with the image's position, the side and the level."""
    return functools.reduce(jax.random.fold_in, (image, side, level), key)


def view_keys(key, image, side, level):
    """The keys of one view by `Draw`."""
    base = view_key(key, image, side=side, level=level)
    return {draw: jax.random.fold_in(base, draw) for draw in Draw}


def view(key, canvas, extent, settings, *, side, image_size, stride=1):
    """One view: crop, flip, jitter, grayscale, blur, solarize, normalize.

    Args:
      key: the view's own PRNG key, see `view_key`.
      canvas: uint8 [C, C, 3].
      extent: int32 [2], (height, width) in px.
      settings: `AugmentSettings`.
      side: 0 (q) or 1 (k); may be traced. It picks the probabilities of blur and solarize.
      image_size: H in px.
      stride: see `views`.

    Returns:
      float32 [H / stride, H / stride, 3], normalized RGB.
    """
    keys = {draw: jax.random.fold_in(key, draw) for draw in Draw}
    planes = resample.crop(canvas, *draw_crop(keys, extent, settings), image_size=image_size)
    planes = colored(keys, planes, settings)
    return finished(keys, planes, side, settings=settings, image_size=image_size, stride=stride)


def draw_crop(keys, extent, settings):
    """What `view` crops: (box int32 [4], whether it is mirrored bool [])."""
    box = draw_box(keys[Draw.CROP], extent, area=settings.area, aspect=settings.aspect)
    return box, _happens(keys[Draw.FLIP], settings.flip_prob)


def colored(keys, planes, settings):
    """The colors of `view`, on what it cropped: float32 [H, 3, H], all that a blur reads."""
    widths = (settings.brightness, settings.contrast, settings.saturation)
    amounts, order = color.draw_jitter(keys[Draw.JITTER], widths, settings.hue)
    jitters = _happens(keys[Draw.JITTERS], settings.jitter_prob)
    grays = _happens(keys[Draw.GRAYSCALES], settings.grayscale_prob)
    return color.recolor(planes, amounts, order, jitters=jitters, grays=grays)


def finished(keys, planes, side, *, settings, image_size, stride):
    """The rest of `view`, at each stride-th row and column: [H / stride, H / stride, 3]."""
    sigma = draw_sigma(keys[Draw.BLUR_SIGMA], settings.blur_sigma, image_size=image_size)
    blurs = _happens(keys[Draw.BLURS], jnp.array(settings.blur_prob)[side])
    planes = jnp.where(blurs, resample.blur(planes, sigma, stride), planes[::stride, :, ::stride])

    solarizes = _happens(keys[Draw.SOLARIZES], jnp.array(settings.solarize_prob)[side])
    planes = jnp.where(solarizes, color.solarize(planes, settings.solarize_threshold), planes)

    return color.standardize(planes, settings.mean, settings.std).transpose(0, 2, 1)


def _happens(key, probability):
    return jax.random.bernoulli(key, jnp.float32(probability))


def draw_box(key, extent, *, area, aspect):
    """Draws a crop by the rule of `torchvision.transforms.RandomResizedCrop`.

    Ten candidates of random area and aspect, rounded to whole px; the first one that fits, or else
    the largest center crop whose aspect is in range. All are drawn at once, without a loop.

    Args:
      key: a PRNG key.
      extent: int32 [2], (height, width) in px, at most C; 0 counts as 1.
      area, aspect: (low, high) of the share of the extent's area and of width / height.

    Returns:
      int32 [4]: top, left, height, width in px.
    """
    tries = 10  # torchvision's own number
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    extent = jnp.maximum(extent, 1)
    whole_height, whole_width = extent.astype(jnp.float32)

    areas = jax.random.uniform(area_key, (tries,), minval=area[0], maxval=area[1])
    areas = areas * whole_height * whole_width
    low, high = jnp.log(jnp.array(aspect, jnp.float32))
    root_aspects = jnp.exp(0.5 * jax.random.uniform(aspect_key, (tries,), minval=low, maxval=high))
    heights = jnp.round(jnp.sqrt(areas) / root_aspects)
    widths = jnp.round(jnp.sqrt(areas) * root_aspects)

    fits = (jnp.minimum(heights, widths) > 0) & (heights <= whole_height) & (widths <= whole_width)
    first = fits & (jnp.arange(tries) == jnp.argmax(fits))
    drawn = jnp.sum(jnp.where(first, jnp.stack([heights, widths]), 0.0), axis=1)
    tallest, widest = whole_width / aspect[0], whole_height * aspect[1]
    centered = jnp.minimum(jnp.round(jnp.stack([tallest, widest])), extent)
    size = jnp.where(jnp.any(fits), drawn, jnp.maximum(centered, 1)).astype(jnp.int32)
    free = extent - size
    place = (jax.random.uniform(place_key, (2,)) * (free + 1)).astype(jnp.int32)
    place = jnp.where(jnp.any(fits), place, free // 2)
    return jnp.concatenate([place, size])


def draw_sigma(key, blur_sigma, *, image_size):
    """Draws a blur's sigma, uniform in `blur_sigma` (px at 224), in px of an H px view."""
    low, high = blur_sigma
    return jax.random.uniform(key, minval=low, maxval=high) * (image_size / 224)
