"""Where every random number comes from: a key folded from (seed, step, device, purpose).

Any step of a run can be replayed from these four numbers alone.
"""

import enum

import jax

Array = jax.Array


class Purpose(enum.IntEnum):
    """What a key is drawn for. Values are part of a run's identity: append, never renumber."""

    INIT = 0
    AUGMENT = 1
    MONTAGE = 2
    SHUFFLE = 3  # of MoCo's key batch, before groups of it are normalised
    JIGSAW = 4  # DetCo's local patches
    DROP_PATH = 5  # residual branches left out (Swin)
    PROBE = 6  # detection probe and linear classifiers


def key_for(seed: int, step: Array | int, device: Array | int, purpose: Purpose) -> Array:
    """The key of one purpose at one step on one device (its index along the data axis)."""
    key = jax.random.key(seed)
    for number in (step, device, int(purpose)):
        key = jax.random.fold_in(key, number)
    return key
