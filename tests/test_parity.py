"""`pyramid='full'` against the torch restatement: loss, gradients, LARS, EMA, running statistics.

The official weights arrive through `convert`, so names and layouts are tested on the way.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import perturbed, tiny_config
from torch_or_skip import module_on_torch, torch
from untrained_states import untrained_state

from mcl_jax import program, sharding
from mcl_jax.convert.files import strict
from mcl_jax.convert.names import table
from mcl_jax.convert.names.layouts import NETWORKS
from mcl_jax.convert.targets import authors
from mcl_jax.objectives.mcl import Inputs
from mcl_jax.state import TrainState
from mcl_jax.train_step import apply_gradients

torch_mcl = module_on_torch("mcl_jax.bench.torch_mcl")
IMAGES = 32
STEPS = 2
# Rounding of two frameworks over some thirty layers. Measured, relative to the largest entry of each
# tensor: gradients 9.0e-6 (float32) and 2.5e-13 (float64), the state after a step 4.0e-7 and 1.0e-14.
TOLERANCES = {"float32": 1e-4, "float64": 1e-11}


def single_device_program(dtype, backbone):
    config = tiny_config()
    config.model.backbone = backbone
    config.data.batch_size = IMAGES
    config.loss.pyramid = "full"
    config.loss.temperature = 0.5
    config.optimizer.epochs = 10
    config.optimizer.warmup_epochs = 0.0
    config.numerics.compute_dtype = dtype
    mesh = sharding.make_mesh(jax.devices()[:1])
    return program.build(config, mesh, images=IMAGES)


def random_inputs(counts, dtype, seed):
    rng = np.random.default_rng(seed)
    canvases = rng.normal(size=(2, sum(counts), 64, 64, 3)).astype(dtype)
    labels = []
    for level, count in enumerate(counts):
        tiles = count * 4**level
        orders = [rng.permutation(tiles) % IMAGES for _ in range(2)]
        labels.append(np.stack([np.arange(IMAGES)] * 2 if level == 0 else orders))
    return canvases, tuple(labels)


def imported(names, architecture):
    """The state's trees from the authors' names."""
    return strict.unflatten(authors.layout(architecture, 4).from_file(names, "test"))


def official_names(state, architecture):
    """The state under the authors' names, by the converter's table, in the state's own dtype."""
    arrays = strict.flatten({field: getattr(state, field) for field in NETWORKS})
    return {t.authors: table.to_torch(arrays[t.source]) for t in authors.tensors(architecture, 4)}


def feeds_a_norm(name):
    """Linear biases that a BatchNorm's mean takes away: their true gradient is zero."""
    return name.endswith(("mlp.0.bias", "encoder_q.2.mlp.3.bias"))


def worst(ours, theirs):
    """Largest difference relative to the tensor's own largest entry, over all tensors."""
    errors = {}
    for name, theirs_value in theirs.items():
        theirs_value = theirs_value.detach().numpy()
        scale = max(float(np.abs(theirs_value).max()), 1e-6)
        errors[name] = float(np.abs(np.asarray(ours[name]) - theirs_value).max()) / scale
    name = max(errors, key=errors.get)
    return errors[name], name


def starting_state(run, dtype):
    """Weights that differ from their initial values, the target's from the online network's."""
    fresh = untrained_state(run)
    params = jax.tree.map(lambda x: np.asarray(x, dtype), perturbed(fresh.params))
    stats = jax.tree.map(lambda x: np.asarray(x, dtype), fresh.batch_stats)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=stats,
        # a target that differs from the online network, or mixing them up would not show
        target_params=perturbed(params["encoder"], seed=1),
        target_batch_stats=stats["encoder"],
        opt_state=run.optimizer.init(params),
        memory={},
    )


def assert_gradients_agree(ours, gradients, grad_norm, tolerance):
    """Every gradient; those of layers in front of a norm are zero but for rounding."""
    zero = {name: gradients[name] for name in gradients if feeds_a_norm(name)}
    assert len(zero) == 6
    norm = torch.sqrt(sum(g.square().sum() for g in gradients.values())).item()
    assert abs(grad_norm - norm) < tolerance * norm
    for name, value in zero.items():
        assert np.abs(ours[name]).max() < tolerance * norm, name
        assert value.abs().max() < tolerance * norm, name
    rest = {name: gradients[name] for name in gradients if name not in zero}
    assert worst(ours, rest) < (tolerance, "")


@pytest.mark.parametrize("dtype, backbone", [("float32", "resnet10"), ("float64", "resnet14")])
def test_full_pyramid_equals_the_torch_restatement(dtype, backbone):
    with jax.enable_x64(dtype == "float64"):
        run = single_device_program(dtype, backbone)
        config = run.config
        objective = program.make_objective(config, IMAGES, None)
        state = starting_state(run, dtype)
        names = official_names(state, objective.architecture)
        weights = torch_mcl.from_names(names)
        if dtype == "float32":  # as a file would arrive; the converter insists on float32
            state = state.replace(**imported(names, objective.architecture))

        @jax.jit
        def step(state, canvases, labels):
            grad = jax.value_and_grad(objective.loss, has_aux=True)
            inputs = Inputs(canvases.reshape(-1, *canvases.shape[2:]), labels)
            (loss, outcome), grads = grad(state.params, state, inputs, None)
            new, metrics = apply_gradients(state, grads, outcome=outcome, run=run)
            return new, metrics | {"loss": loss}, grads

        buffers = {}
        for k in range(STEPS):
            canvases, labels = random_inputs(objective.counts, dtype, seed=k)
            state, metrics, grads = step(state, jnp.asarray(canvases), labels)

            loss = torch_mcl.loss(
                weights,
                torch.tensor(canvases).permute(0, 1, 4, 2, 3).contiguous(),
                [torch.tensor(level) for level in labels],
                objective.counts,
                config["loss"]["level_weights"],
                config["loss"]["temperature"],
            )
            gradients = torch_mcl.gradients(weights, loss)
            tolerance = TOLERANCES[dtype]
            assert abs(float(metrics["loss"]) - loss.item()) < tolerance * loss.item()
            zeros = jax.tree.map(jnp.zeros_like, state)
            ours = official_names(zeros.replace(params=grads), objective.architecture)
            assert_gradients_agree(ours, gradients, float(metrics["grad_norm"]), tolerance)

            options = config["optimizer"]
            torch_mcl.lars_step(
                weights,
                gradients,
                buffers,
                lr=float(run.lr(jnp.int32(k))),
                eta=options["trust_coefficient"],
                momentum=options["momentum"],
                decay=options["weight_decay"],
                clip=options["clip_norm"],
                excluded=lambda name: weights[name].ndim == 1,
            )
            torch_mcl.ema_step(weights, float(run.ema(jnp.int32(k))))
            # parameters, targets and both networks' running statistics after the step
            ours = official_names(state, objective.architecture)
            assert worst(ours, weights) < (tolerance, "")
