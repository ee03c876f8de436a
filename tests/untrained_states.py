"""States of a run that cost no compilation, for tests that do not ask how a run begins."""

import jax
import numpy as np

from mcl_jax import program


def untrained_state(run):
    """A state of the run's shapes in numpy: kernels of He's spread, norms and momenta as at first."""
    shapes, rng = program.abstract_state(run), np.random.default_rng(0)

    def leaf(path, x):
        name = str(path[-1].key) if hasattr(path[-1], "key") else ""
        if name in ("scale", "var"):
            return np.ones(x.shape, x.dtype)
        if len(x.shape) < 2:
            return np.zeros(x.shape, x.dtype)
        fan_in = np.prod(x.shape[:-1])
        return (rng.normal(size=x.shape) * np.sqrt(2 / fan_in)).astype(x.dtype)

    state = jax.tree_util.tree_map_with_path(leaf, shapes)
    # momenta and counts start at zero in every optimizer that there is
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.opt_state)
    return state.replace(opt_state=zeros)
