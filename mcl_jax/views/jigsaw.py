"""Nine patches out of a crop, DetCo's local views (Xie et al., 2021; PIRL's jigsaw).

Shapes: b crops [b, S, S, 3] of S px, cells of S / 3 px in row-major order, positions int32
[b, 9, 2] (top, left of a patch in px of its crop), patches [b, 9, p, p, 3].
"""

import jax
import jax.numpy as jnp

Array = jax.Array

GRID = 3  # cells per side: the jigsaw of Noroozi & Favaro, 2016
PATCHES = GRID * GRID


def draw_positions(key: Array, images: int, crop_size: int, patch_size: int) -> Array:
    """int32 [b, 9, 2]: for every cell a patch anywhere within it, uniformly."""
    cell = crop_size // GRID
    corners = jnp.stack(jnp.indices((GRID, GRID)), axis=-1).reshape(PATCHES, 2) * cell
    free = cell - patch_size + 1
    return corners + jax.random.randint(key, (images, PATCHES, 2), 0, free, jnp.int32)


def draw_orders(key: Array, images: int) -> Array:
    """int32 [b, 9]: for every image a random order of its cells."""
    cells = jnp.broadcast_to(jnp.arange(PATCHES, dtype=jnp.int32), (images, PATCHES))
    return jax.random.permutation(key, cells, axis=1, independent=True)


def reorder(positions: Array, orders: Array) -> Array:
    """positions [b, 9, 2] with entry j taken from cell orders[b, j]."""
    return jnp.take_along_axis(positions, orders[..., None], axis=1)


def cut(crops: Array, positions: Array, patch_size: int) -> Array:
    """[b, S, S, C] and positions [b, 9, 2] -> patches [b, 9, p, p, C], bit-equal to the crop."""
    size = (patch_size, patch_size, crops.shape[-1])

    def patch(crop: Array, position: Array) -> Array:
        return jax.lax.dynamic_slice(crop, (position[0], position[1], 0), size)

    return jax.vmap(jax.vmap(patch, (None, 0)))(crops, positions)
