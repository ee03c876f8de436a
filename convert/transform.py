"""Changes to a network before it is exported: averaging, division, folding of norms.

Shapes: states are nested dicts of arrays, as `mcl_jax.runtime.checkpoint.read` returns them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mcl_jax.convert.files import strict
from mcl_jax.convert.names.architectures import PARTS, from_config
from mcl_jax.convert.names.layouts import networks, roots
from mcl_jax.errors import UserError
from mcl_jax.models.backbone import is_swin

State = Mapping[str, Any]


def average(states: Iterable[State]) -> dict[str, Any]:
    """The mean of every parameter and statistic of several checkpoints of one run.

    Args:
      states: at least one; each is read once and let go, and summed up in float64.

    Raises:
      UserError: where the states do not have the same arrays.
    """
    sums: dict[str, np.ndarray] = {}
    types: dict[str, tuple] = {}
    count = 0
    for state in states:
        arrays = networks(state)
        kinds = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        if not count:
            types, sums = kinds, {name: np.zeros(x.shape) for name, x in arrays.items()}
        elif kinds != types:
            raise UserError("the checkpoints to average hold different networks")
        for name, x in arrays.items():
            sums[name] += x
        count += 1
    return strict.unflatten({name: (x / count).astype(types[name][1]) for name, x in sums.items()})


def divide(state: State, config: Mapping[str, Any], divisor: float) -> dict[str, Any]:
    """Divides what a detector takes, but for its norms, by a number (paper Table 10d).

    BN(W x / d) = BN(W x): a smaller weight gives the same features and larger gradients. In a
    detector's training the batch's statistics see to that; for running statistics (evaluation, and
    frozen norms) they are divided too, means by d and variances by its square. BN's epsilon stays,
    so features with running statistics change where a variance is not far above it.

    Args:
      state: of a ResNet; a Swin's linear layers have no norm behind them.
      config: of the run.
      divisor: 1.5 and 2 are the paper's.

    Raises:
      UserError: for a Swin or a divisor that is not positive.
    """
    a = from_config(config)
    if is_swin(a.backbone):
        raise UserError(
            f"--divide-weights needs a batch norm behind every layer; {a.backbone} has none"
        )
    if not divisor > 0 or not np.isfinite(divisor):
        raise UserError(f"--divide-weights {divisor:g}: must be above 0; the paper has 1.5 and 2")
    powers = {"kernel": 1, "mean": 1, "var": 2}
    where = roots(*PARTS)
    arrays = networks(state)
    for name, x in arrays.items():
        power = powers.get(name.rsplit("/", 1)[1])
        if power and name.startswith(where):
            arrays[name] = (x / np.float64(divisor) ** power).astype(x.dtype)
    return strict.unflatten(arrays)


def fold(state: State, parts: Sequence[str], epsilon: float) -> dict[str, Any]:
    """Lets convolutions absorb the norms behind them: for detectors whose FPN has none.

    kernel * s and bias - mean * s with s = scale / sqrt(variance + epsilon): the same features with
    running statistics. Norms disappear, biases appear beside the kernels.

    Args:
      state: of any network.
      parts: which of architectures.PARTS; the backbone keeps its norms, which detectors freeze.
      epsilon: BN's.
    """
    arrays = networks(state)
    for kernel in [name for name in arrays if name.endswith("/kernel")]:
        root, part = kernel.removesuffix("kernel"), kernel.split("/")[2]
        if part not in parts or part == "backbone" or not kernel.startswith(roots(part)):
            continue
        statistics = root.replace("params/", "batch_stats/", 1)
        scale, bias = (arrays.pop(f"{root}norm/{leaf}") for leaf in ("scale", "bias"))
        mean, var = (arrays.pop(f"{statistics}norm/{leaf}") for leaf in ("mean", "var"))
        factor = scale / np.sqrt(var.astype(np.float64) + epsilon)
        arrays[kernel] = (arrays[kernel] * factor).astype(np.float32)
        arrays[f"{root}bias"] = (bias - mean * factor).astype(np.float32)
    return strict.unflatten(arrays)
