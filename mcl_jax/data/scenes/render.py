"""Procedural scenes: textured shapes of eight classes at many scales on cluttered ground.

Legend: H, W image size in px; N objects; P side of an object's patch in supersampled px.

A class is a shape with a texture (4 shapes x 2 textures); neither alone tells it, and colors,
position, size and angle are drawn independently of it. As in photographs, surroundings hint at the
class: most often its objects lie on the ground they like, among others of their kind.
"""

import dataclasses
import itertools

import cv2
import numpy as np

SHAPES = ("disc", "square", "triangle", "star")
TEXTURES = ("striped", "dotted")
CLASS_NAMES = tuple(f"{texture}_{shape}" for shape, texture in itertools.product(SHAPES, TEXTURES))

# (pattern, coarse?) of the ground that is typical of a class, in the order of CLASS_NAMES.
GROUNDS = tuple(itertools.product(("waves", "weave", "rings", "speckle"), (True, False)))
# Share of scenes whose ground is the typical one of the dominant class, and of smaller objects that
# are of the class typical beside it. The others are any of the eight.
TYPICAL_SHARE = 0.9

# The dominant object covers at least this share of all visible object pixels.
DOMINANT_SHARE = 0.6
# An object that shows less of itself than this is taken out of the scene.
VISIBLE_SHARE = 0.35
_SUPERSAMPLE = 2
_SMALLEST_PX = 12


@dataclasses.dataclass(frozen=True)
class Scene:
    """One rendered scene.

    Attributes:
      image: uint8 [H, W, 3] RGB.
      boxes: float64 [N, 4], (ymin, xmin, ymax, xmax) in px around the visible pixels.
      labels: int64 [N], indices into CLASS_NAMES.
      areas: int64 [N], visible px.
      dominant: index of the object with the largest visible area.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    dominant: int


@dataclasses.dataclass(frozen=True)
class _Object:
    """label; alpha float32 [h, w] and color float32 [h, w, 3] of its patch; top-left corner in
    px."""

    label: int
    alpha: np.ndarray
    color: np.ndarray
    top: int
    left: int


def render_scene(rng: np.random.Generator, longer_side: int) -> Scene:
    """Render a scene whose longer side is `longer_side` px; the rng decides everything."""
    shorter = int(longer_side * rng.uniform(0.75, 1.0))
    height, width = (longer_side, shorter) if rng.random() < 0.5 else (shorter, longer_side)
    main = int(rng.integers(len(CLASS_NAMES)))
    canvas = _background(rng, height, width)
    pattern, coarse = GROUNDS[_typical(rng, main)]
    canvas += _ground(rng, height, width, pattern, coarse=coarse)[..., None]
    objects = _draw_objects(rng, height, width=width, main=main)
    objects, owner = _keep_visible(objects, height, width)
    for item in objects:
        _shadow(canvas, item)
        _paste(canvas, item)
    grain = cv2.resize(rng.standard_normal((height // 2, width // 2), np.float32), (width, height))
    canvas += grain[..., None] * np.float32(rng.uniform(0.0, 7.0))
    boxes = np.array([_box(owner == i) for i in range(len(objects))], np.float64)
    areas = np.array([int((owner == i).sum()) for i in range(len(objects))], np.int64)
    labels = np.array([item.label for item in objects], np.int64)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Scene(image, boxes, labels=labels, areas=areas, dominant=int(areas.argmax()))


def _typical(rng: np.random.Generator, main: int) -> int:
    """The main class in TYPICAL_SHARE of the cases, otherwise any."""
    return main if rng.random() < TYPICAL_SHARE else int(rng.integers(len(CLASS_NAMES)))


def _draw_objects(rng: np.random.Generator, height: int, width: int, main: int) -> list[_Object]:
    """Back-to-front: one large object of class `main` at a random depth among up to six smaller."""
    side = min(height, width)
    main_size = side * rng.uniform(0.4, 0.85)
    count = int(rng.integers(1, 7))
    # Sizes are log-uniform: every octave of sizes has the same number of objects.
    sizes = np.exp(rng.uniform(np.log(_SMALLEST_PX), np.log(0.7 * main_size), count))
    order = [(float(size), _typical(rng, main)) for size in sizes]
    order.insert(int(rng.integers(0, count + 1)), (main_size, main))
    objects = []
    for size, label in order:
        alpha, color = _object_patch(rng, label, size)
        # Up to a fifth of an object may leave the image.
        slack = 0.2 * size
        center_y = rng.uniform(size / 2 - slack, height - size / 2 + slack)
        center_x = rng.uniform(size / 2 - slack, width - size / 2 + slack)
        top, left = round(center_y - alpha.shape[0] / 2), round(center_x - alpha.shape[1] / 2)
        objects.append(_Object(label, alpha, color=color, top=top, left=left))
    return objects


def _object_patch(
    rng: np.random.Generator, label: int, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """(alpha [h, w] in 0..1, color [h, w, 3] in 0..255) of one object `size` px across."""
    shape, texture = divmod(label, len(TEXTURES))
    out = int(np.ceil(size)) + 2
    patch = out * _SUPERSAMPLE
    radius = size * _SUPERSAMPLE / 2
    angle = rng.uniform(0, 2 * np.pi)
    outline = _outline(SHAPES[shape], radius, angle) + patch / 2
    mask = np.zeros((patch, patch), np.uint8)
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    rim = cv2.erode(mask, np.ones((3, 3), np.uint8), iterations=max(1, round(radius * 0.05)))
    pattern = _texture(rng, TEXTURES[texture], patch=patch, radius=radius)
    # Only the three one-channel maps are drawn finely; color is mixed at the final size.
    alpha, rim, pattern = (
        cv2.resize(layer, (out, out), interpolation=cv2.INTER_AREA).astype(np.float32)
        for layer in (mask, rim, pattern)
    )
    dark, light = _color_pair(rng)
    # A light from a random side gives the object depth; the rim separates it from the ground.
    ramp = np.linspace(-1, 1, out, dtype=np.float32)
    towards = rng.uniform(0, 2 * np.pi)
    light_x, light_y = np.float32(0.18 * np.cos(towards)), np.float32(0.18 * np.sin(towards))
    shade = 1 + light_x * ramp[None, :] + light_y * ramp[:, None]
    shade *= np.float32(0.6) + rim * np.float32(0.4 / 255)
    color = (dark + pattern[..., None] * (light - dark)) * shade[..., None]
    alpha /= 255
    return alpha, color


def _outline(shape: str, radius: float, angle: float) -> np.ndarray:
    """Polygon float [points, 2] (x, y) around the origin, turned by `angle` radians."""
    points = {"disc": 48, "square": 4, "triangle": 3, "star": 10}[shape]
    turns = angle + np.arange(points) * 2 * np.pi / points
    radii = np.full(points, radius)
    if shape == "star":
        radii[1::2] *= 0.42
    return np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=-1)


def _texture(rng: np.random.Generator, texture: str, patch: int, radius: float) -> np.ndarray:
    """float32 [P, P] in 0..1: stripes, or dots on a square grid, at a random angle and period."""
    period = max(2.2 * _SUPERSAMPLE, radius * rng.uniform(0.28, 0.5))
    angle, phase = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
    axis = np.arange(patch, dtype=np.float32) * np.float32(2 * np.pi / period)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = cos * axis[None, :] + sin * axis[:, None] + np.float32(phase[0])
    if texture == "striped":
        wave = np.sin(u)
    else:
        v = cos * axis[:, None] - sin * axis[None, :] + np.float32(phase[1])
        wave = np.sin(u) + np.sin(v) - np.float32(0.55)
    return np.clip(wave * np.float32(4) + np.float32(0.5), 0, 1)


def _color_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two float32 [3] RGB colors, clearly different in lightness, of any hue."""
    hues = rng.uniform(0, 180, 2)
    saturation = rng.uniform(90, 230, 2)
    value = np.array([rng.uniform(60, 130), rng.uniform(185, 250)])
    pair = _hsv(np.stack([hues, saturation, value], axis=-1))
    return (pair[0], pair[1]) if rng.random() < 0.5 else (pair[1], pair[0])


def _hsv(values: np.ndarray) -> np.ndarray:
    """[N, 3] of OpenCV's HSV (0..180, 0..255, 0..255) -> float32 [N, 3] RGB 0..255."""
    rows = np.rint(values).astype(np.uint8)[None]
    return cv2.cvtColor(rows, cv2.COLOR_HSV2RGB)[0].astype(np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float32 [H, W, 3]: a gradient, soft noise over it, and often muted clutter."""
    colors = _hsv(
        np.stack([rng.uniform(0, 180, 3), rng.uniform(0, 80, 3), rng.uniform(70, 195, 3)], axis=-1)
    )
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    down = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    ramp = np.clip(cos * across + sin * down + np.float32(0.5), 0, 1)[..., None]
    canvas = colors[0] * ramp + colors[1] * (1 - ramp)
    cells = int(rng.integers(3, 12))
    noise = rng.standard_normal((cells, cells, 1), np.float32)
    noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    canvas = canvas + noise * np.float32(rng.uniform(0, 22))
    return _clutter(rng, canvas, colors[2]) if rng.random() < 0.6 else canvas


def _ground(
    rng: np.random.Generator, height: int, width: int, pattern: str, *, coarse: bool
) -> np.ndarray:
    """float32 [H, W] lightness pattern around 0 at a random angle, place and strength."""
    period = rng.uniform(14, 20) if coarse else rng.uniform(6, 8)  # px
    angle = rng.uniform(0, 2 * np.pi)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32(rng.uniform(0, height))
    x = np.arange(width, dtype=np.float32)[None, :] - np.float32(rng.uniform(0, width))
    scale = np.float32(2 * np.pi / period)
    u = scale * (np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y)
    v = scale * (np.float32(np.cos(angle)) * y - np.float32(np.sin(angle)) * x)
    if pattern == "waves":
        layer = np.sin(u)
    elif pattern == "weave":
        layer = np.sin(u) * np.sin(v)
    elif pattern == "rings":
        layer = np.sin(scale * np.sqrt(x * x + y * y))
    else:
        cells = (max(2, round(height * 2 / period)), max(2, round(width * 2 / period)))
        noise = rng.standard_normal(cells, np.float32)
        layer = cv2.resize(np.sign(noise), (width, height), interpolation=cv2.INTER_CUBIC)
    return layer * np.float32(rng.uniform(30, 60))


def _clutter(rng: np.random.Generator, canvas: np.ndarray, tint: np.ndarray) -> np.ndarray:
    """Lines and filled quadrangles in muted colors near the tint: no class of object looks so."""
    height, width = canvas.shape[:2]
    layer = canvas.copy()
    for _ in range(int(rng.integers(4, 18))):
        color = np.clip(tint + rng.normal(0, 30, 3), 0, 255).tolist()
        start = rng.uniform(0, [width, height])
        ends = start + rng.normal(0, 0.25 * width, (3, 2))
        points = np.rint(np.vstack([start, ends])).astype(np.int32)
        if rng.random() < 0.6:
            thickness = int(rng.integers(1, 4))
            cv2.line(layer, points[0].tolist(), points[1].tolist(), color, thickness, cv2.LINE_AA)
        else:
            cv2.fillConvexPoly(layer, cv2.convexHull(points), color, cv2.LINE_AA)
    weight = np.float32(rng.uniform(0.25, 0.7))
    return canvas * (1 - weight) + layer * weight


def _window(item: _Object, height: int, width: int) -> tuple[tuple, tuple]:
    """Slices of the image and of the patch where the two overlap."""
    rows, columns = item.alpha.shape
    top, left = max(item.top, 0), max(item.left, 0)
    bottom, right = min(item.top + rows, height), min(item.left + columns, width)
    bottom, right = max(bottom, top), max(right, left)
    inner = np.s_[top - item.top : bottom - item.top, left - item.left : right - item.left]
    return np.s_[top:bottom, left:right], inner


def _keep_visible(
    objects: list[_Object], height: int, width: int
) -> tuple[list[_Object], np.ndarray]:
    """Take objects out until the rest is visible and one dominates; also int [H, W] owner, -1
    ground."""
    while True:
        owner = np.full((height, width), -1, np.int64)
        for i, item in enumerate(objects):
            outer, inner = _window(item, height, width)
            owner[outer][item.alpha[inner] > 0.5] = i
        areas = np.bincount(owner[owner >= 0], minlength=len(objects))
        full = np.array([int((item.alpha > 0.5).sum()) for item in objects])
        main = int(areas.argmax())
        hidden = areas < VISIBLE_SHARE * full
        hidden[main] = False
        if not hidden.any() and areas[main] >= DOMINANT_SHARE * areas.sum():
            return objects, owner
        others = np.where(hidden, areas + height * width, areas)
        others[main] = -1
        drop = int(others.argmax())
        objects = objects[:drop] + objects[drop + 1 :]


def _shadow(canvas: np.ndarray, item: _Object) -> None:
    """Darken the ground below and right of the object."""
    shift = max(1, round(item.alpha.shape[0] * 0.04))
    soft = cv2.blur(item.alpha, (2 * shift + 1, 2 * shift + 1))
    fallen = dataclasses.replace(item, alpha=soft, top=item.top + shift, left=item.left + shift)
    outer, inner = _window(fallen, *canvas.shape[:2])
    canvas[outer] *= 1 - 0.4 * soft[inner][..., None]


def _paste(canvas: np.ndarray, item: _Object) -> None:
    outer, inner = _window(item, *canvas.shape[:2])
    alpha = item.alpha[inner][..., None]
    canvas[outer] = canvas[outer] * (1 - alpha) + item.color[inner] * alpha


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
