"""From a config to the pure functions of a run: objective, optimizer, schedules, compiled step."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from mcl_jax import optimizer as optimizers
from mcl_jax import sharding
from mcl_jax.keys import Purpose, key_for
from mcl_jax.objectives.base import Objective, Variables
from mcl_jax.objectives.build import make_objective
from mcl_jax.settings.records import fill
from mcl_jax.state import TrainState
from mcl_jax.train_step import train_step


@dataclass(frozen=True)
class Program:
    """One run's static parts. Build with `build`.

    Attributes:
      init: the objective's, of which JAX keeps what it has traced.
    """

    config: Mapping[str, Any]
    mesh: Mesh
    objective: Objective
    init: Callable[[jax.Array], Variables]
    optimizer: optax.GradientTransformation
    lr: optimizers.Schedule
    ema: optimizers.Schedule
    steps_per_epoch: int
    total_steps: int

    @property
    def micro_batches(self) -> int:
        """Parts of a device's batch that are computed one after the other."""
        return self.config["optimizer"]["micro_batches"]

    @cached_property
    def first_state(self) -> jax.stages.Traced:
        """seed -> the state of step 0; kept, for a start asks for its shapes and for its values."""
        # One jit output per leaf: online and target get buffers of their own, as donation needs.
        placed = sharding.replicated(self.mesh)
        return jax.jit(self._create, out_shardings=placed).trace(seed_argument(self))

    def _create(self, seed: jax.Array) -> TrainState:
        variables = self.init(key_for(seed, 0, key_group=0, purpose=Purpose.INIT))
        has_target = self.objective.has_target
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables.params,
            batch_stats=variables.batch_stats,
            target_params=variables.params["encoder"] if has_target else {},
            target_batch_stats=variables.batch_stats["encoder"] if has_target else {},
            opt_state=self.optimizer.init(variables.params),
            memory=variables.memory,
        )


def build(config: Mapping[str, Any], mesh: Mesh, images: int) -> Program:
    """Puts a run together.

    Args:
      config: as configs/base.py, checked by `settings.door.check` where it comes from a user.
      mesh: devices to run on.
      images: in the training split; sets the length of an epoch.

    Raises:
      UserError: if the batch does not divide over the devices and groups, saying what would.

    Example:
      run = build(config, sharding.mesh_for(config), images=1_281_167)
      state = new_state(run)
    """
    data = config["data"]
    micro_batches = config["optimizer"]["micro_batches"]
    groups = mesh.size // (config["numerics"]["bn_devices"] or mesh.size)
    if mesh.shape[sharding.DEVICE_GROUP_AXIS] != groups:
        raise ValueError(f"numerics.bn_devices asks for {groups} groups, the mesh is {mesh.shape}")
    b = sharding.images_per_device(data["batch_size"], mesh, micro_batches=micro_batches)
    objective = make_objective(config, b, norm_axis=sharding.norm_axis(mesh))
    steps_per_epoch = max(1, images // data["batch_size"])
    opt = fill(optimizers.OptimizerSettings, config["optimizer"])
    total_steps = max(1, round(opt.epochs * steps_per_epoch))
    lr = optimizers.learning_rate(opt, data["batch_size"], steps_per_epoch)
    init = jax.jit(objective.init, inline=True)
    shapes = jax.eval_shape(init, jax.eval_shape(jax.random.key, 0))
    return Program(
        config=config,
        mesh=mesh,
        objective=objective,
        init=init,
        optimizer=optimizers.create(opt, shapes.params, lr),
        lr=lr,
        ema=optimizers.ema_momentum(config["ema"]["base"], config["ema"]["final"], total_steps),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def new_state(program: Program) -> TrainState:
    """The state of step 0; the target starts as a copy of the online encoder (paper 3.2)."""
    return compile_new_state(program)(seed_argument(program))


def compile_new_state(program: Program) -> jax.stages.Compiled:
    """seed -> the state of step 0, compiled."""
    return program.first_state.lower().compile()


def seed_argument(program: Program) -> np.ndarray:
    """The config's seed as the steps take it."""
    return np.asarray(program.config["seed"], np.uint32)


def abstract_state(program: Program) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it."""
    placed = sharding.replicated(program.mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        program.first_state.out_info,
    )


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the batch that the step reads (the whole mesh's)."""
    data = program.config["data"]
    b, side = data["batch_size"], data["canvas_size"]
    placed = NamedSharding(program.mesh, sharding.BATCH_SPEC)
    fields = {
        "image": jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8, sharding=placed),
        "extent": jax.ShapeDtypeStruct((b, 2), jnp.int32, sharding=placed),
        "label": jax.ShapeDtypeStruct((b,), jnp.int32, sharding=placed),
    }
    return {name: fields[name] for name in program.objective.batch_fields}


def random_batch(program: Program) -> dict[str, np.ndarray]:
    """A batch of noise in the shapes of `abstract_batch`, labels 0: for measuring."""
    rng, data = np.random.default_rng(0), program.config["data"]
    b, side = data["batch_size"], data["canvas_size"]
    batch = {
        "image": rng.integers(0, 256, (b, side, side, 3), dtype=np.uint8),
        "extent": np.full((b, 2), side, np.int32),
        "label": np.zeros(b, np.int32),
    }
    return {name: batch[name] for name in program.objective.batch_fields}


def trace_step(program: Program) -> jax.stages.Traced:
    """The whole train step, traced, its state donated; the mesh may be a shape alone."""
    body = partial(train_step, run=program)
    step = jax.jit(sharding.per_device(body, program.mesh), donate_argnums=0)
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(program.mesh))
    return step.trace(abstract_state(program), abstract_batch(program), seed)


def lower_step(program: Program) -> jax.stages.Lowered:
    """`trace_step` for the mesh's devices; `.compile()` gives what the loop runs."""
    return trace_step(program).lower()


def plain_config(config: Any) -> dict[str, Any]:
    """A ConfigDict as nested plain dicts that survive JSON (tuples become lists)."""
    return json.loads(config.to_json() if hasattr(config, "to_json") else json.dumps(config))
