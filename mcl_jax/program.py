"""From a config to the pure functions of a run: objective, optimiser, schedules, compiled step."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from mcl_jax import augment, montage, sharding
from mcl_jax import optimizer as optimizers
from mcl_jax.errors import UserError
from mcl_jax.keys import Purpose, key_for
from mcl_jax.models.encoder import Architecture
from mcl_jax.models.layers import Numerics
from mcl_jax.models.resnet import architecture
from mcl_jax.objectives.base import Objective
from mcl_jax.objectives.mcl import MCL, LossSettings
from mcl_jax.state import TrainState
from mcl_jax.train_step import train_step

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


@dataclass(frozen=True)
class Program:
    """One run's static parts. Build with `build`."""

    config: Mapping[str, Any]
    mesh: Mesh
    objective: Objective
    optimizer: optax.GradientTransformation
    lr: optimizers.Schedule
    ema: optimizers.Schedule
    steps_per_epoch: int
    total_steps: int


def settings(cls: type, section: Mapping[str, Any], **overrides: Any) -> Any:
    """Fills a settings dataclass from the config section whose keys are its field names."""
    names = [field.name for field in fields(cls) if field.name not in overrides]
    values = {name: section[name] for name in names}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values, **overrides)


def compute_dtype(name: str) -> jnp.dtype:
    """`numerics.compute_dtype` -> dtype; 'auto' is bfloat16 on TPU and GPU, float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in COMPUTE_DTYPES:
        raise UserError(
            f"numerics.compute_dtype {name!r} is not auto or one of {', '.join(COMPUTE_DTYPES)}"
        )
    return COMPUTE_DTYPES[name]


def make_objective(
    config: Mapping[str, Any], images_per_device: int, axis_name: str | None
) -> Objective:
    """The configured method for b images per device; validates the config on the way."""
    architecture(config["model"]["backbone"])
    numerics = config["numerics"]
    return MCL(
        architecture=settings(Architecture, config["model"]),
        numerics=Numerics(
            dtype=compute_dtype(numerics["compute_dtype"]),
            bn_momentum=numerics["bn_momentum"],
            bn_epsilon=numerics["bn_epsilon"],
            axis_name=axis_name,
        ),
        layout=settings(
            montage.Layout,
            config["montage"],
            boundary_sigma=config["montage"]["boundary_sigma"] or None,
        ),
        loss_settings=settings(LossSettings, config["loss"]),
        views=augment.Settings.from_config(config["augment"]),
        image_size=config["data"]["image_size"],
        images_per_device=images_per_device,
    )


def build(config: Mapping[str, Any], mesh: Mesh, images: int) -> Program:
    """Puts a run together.

    Args:
      config: as configs/base.py.
      mesh: devices to run on.
      images: in the training split; sets the length of an epoch.

    Raises:
      UserError: for any value that cannot work, naming it and what would.
    """
    data = config["data"]
    b = sharding.images_per_device(data["batch_size"], mesh)
    objective = make_objective(config, b, sharding.DATA_AXIS)
    steps_per_epoch = max(1, images // data["batch_size"])
    opt = settings(optimizers.Settings, config["optimizer"])
    if opt.epochs <= 0:
        raise UserError(f"optimizer.epochs must be > 0, got {opt.epochs}")
    total_steps = max(1, round(opt.epochs * steps_per_epoch))
    lr = optimizers.learning_rate(opt, data["batch_size"], steps_per_epoch)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    return Program(
        config=config,
        mesh=mesh,
        objective=objective,
        optimizer=optimizers.create(opt, shapes.params, lr),
        lr=lr,
        ema=optimizers.ema_momentum(config["ema"]["base"], config["ema"]["final"], total_steps),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def new_state(program: Program) -> TrainState:
    """The state of step 0; the target starts as a copy of the online encoder (paper 3.2)."""

    def create() -> TrainState:
        variables = program.objective.init(key_for(program.config["seed"], 0, 0, Purpose.INIT))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables.params,
            batch_stats=variables.batch_stats,
            target_params=variables.params["encoder"],
            target_batch_stats=variables.batch_stats["encoder"],
            opt_state=program.optimizer.init(variables.params),
            memory=variables.memory,
        )

    # One jit output per leaf: online and target get buffers of their own, as donation needs.
    return jax.jit(create, out_shardings=sharding.replicated(program.mesh))()


def abstract_state(program: Program) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it."""
    placed = sharding.replicated(program.mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        jax.eval_shape(partial(new_state, program)),
    )


def abstract_batch(program: Program) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the batch that the step reads (the whole mesh's)."""
    data = program.config["data"]
    b, side = data["batch_size"], data["canvas_size"]
    placed = NamedSharding(program.mesh, sharding.BATCH_SPEC)
    return {
        "image": jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8, sharding=placed),
        "extent": jax.ShapeDtypeStruct((b, 2), jnp.int32, sharding=placed),
    }


def lower_step(program: Program) -> jax.stages.Lowered:
    """The whole train step, traced and donated; `.compile()` gives what the loop runs."""
    body = partial(
        train_step,
        objective=program.objective,
        optimizer=program.optimizer,
        lr=program.lr,
        ema=program.ema,
        seed=program.config["seed"],
        axis_name=sharding.DATA_AXIS,
    )
    step = jax.jit(sharding.per_device(body, program.mesh), donate_argnums=0)
    return step.lower(abstract_state(program), abstract_batch(program))


def plain_config(config: Any) -> dict[str, Any]:
    """A ConfigDict as nested plain dicts that survive JSON (tuples become lists)."""
    return json.loads(config.to_json() if hasattr(config, "to_json") else json.dumps(config))
