"""Where every random number comes from: a key folded from (seed, step, key group, purpose).

Any step of a run can be replayed from these four numbers alone. A *key group* is a set of images
that share keys: what a device holds of a micro-batch, or `data.group_size` images of it. Its number
is that of its first image in the global batch, divided by its size, whichever device holds it.
"""

import enum

import jax

Array = jax.Array


class Purpose(enum.IntEnum):
    """What a key is drawn for. Values are part of a run's identity: append, never renumber."""

    INIT = 0
    AUGMENT = 1
    MONTAGE = 2
    SHUFFLE = 3  # of MoCo's key batch, before parts of it are normalized
    JIGSAW = 4  # DetCo's local patches
    DROP_PATH = 5  # residual branches left out (Swin)
    PROBE = 6  # detection probe and linear classifiers
    LABEL_BUDGET = 7  # which labeled images the detection probe may see
    PROBE_AUGMENT = 8  # size and place of the detection probe's training images


def key_for(seed: int, step: Array | int, key_group: Array | int, purpose: Purpose) -> Array:
    """The key of one purpose at one step for one key group.

    Example:
      >>> key = key_for(seed=0, step=10, key_group=0, purpose=Purpose.AUGMENT)
    """
    key = jax.random.key(seed)
    for number in (step, key_group, int(purpose)):
        key = jax.random.fold_in(key, number)
    return key
