"""Supervised objectives: cross-entropy, labels that travel with their sub-images, bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from torch_or_skip import torch

from mcl_jax import program
from mcl_jax.errors import UserError
from mcl_jax.objectives.supervised import cross_entropy
from mcl_jax.settings import teaching


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6, 5)).astype(np.float32)
    classes = rng.integers(0, 5, 6)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(classes), label_smoothing=smoothing
    )
    assert float(cross_entropy(logits, classes, smoothing)) == pytest.approx(theirs.item(), 1e-6)


def objective_of(**supervised):
    config = tiny_config()
    config.method, config.data.image_size, config.data.canvas_size = "supervised", 32, 32
    config.augment.blur_prob = config.augment.solarize_prob = (0.0, 0.0)
    config.augment.jitter_prob = config.augment.grayscale_prob = 0.0
    config.montage.levels, config.model.head_convs = 2, 1
    config.supervised.update({"classes": 8} | supervised)
    return program.make_objective(program.plain_config(config), 8, None)


def plain_images():
    """Image i is uniformly of brightness 25 (i + 1): no view of it can look like another's."""
    image = np.full((8, 32, 32, 3), (25 * np.arange(1, 9))[:, None, None, None], np.uint8)
    label = np.array([3, 1, 4, 1, 5, 2, 6, 0], np.int32)
    return {"image": image, "extent": np.full((8, 2), 32, np.int32), "label": label}


def test_the_class_of_a_sub_image_is_its_images():
    objective, batch = objective_of(), plain_images()
    inputs = jax.jit(objective.inputs)(0, 0, batch, 0)
    mean, std = np.array(objective.views.mean), np.array(objective.views.std)
    brightness = np.rint((np.asarray(inputs.canvases) * std + mean) * 255)
    assert [x.shape for x in inputs.classes] == [(8,), (8,)]
    for s, (start, stop) in enumerate(objective.spans):
        r = 2**s
        cells = brightness[start:stop].reshape(stop - start, r, 32 // r, r, 32 // r, 3)
        numbers = cells[:, :, 3, :, 3, 0].reshape(-1) / 25 - 1  # row-major, as the labels
        np.testing.assert_array_equal(batch["label"][numbers.astype(int)], inputs.classes[s])
    assert not np.array_equal(inputs.classes[1], batch["label"])  # they were shuffled


@pytest.mark.parametrize("pooling", ["montage", "image"])
def test_loss_is_the_weighted_cross_entropy_of_its_own_features(pooling):
    objective, batch = objective_of(pooling=pooling), plain_images()
    variables = jax.jit(objective.init)(jax.random.key(0))
    kernel = np.random.default_rng(0).normal(size=variables.params["classifier"]["kernel"].shape)
    params = variables.params | {
        "classifier": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.arange(8.0)}
    }
    state = program.TrainState(0, params, variables.batch_stats, {}, {}, (), {})

    @jax.jit
    def everything(params, inputs):
        encoder = {"params": params["encoder"], "batch_stats": state.batch_stats["encoder"]}
        if pooling == "image":
            x, _ = objective.encoder.apply(
                encoder, inputs.canvases, train=True, method="stage5", mutable=["batch_stats"]
            )
            features = [x]
        else:
            flags = {"sides": 1, "full": False, "train": True}
            levels, _ = objective.encoder.apply(
                encoder,
                inputs.canvases,
                objective.spans,
                **flags,
                method="regions",
                mutable=["batch_stats"],
            )
            features = [x[0] for x in levels]
        return objective.loss(params, state, inputs, None), features

    inputs = jax.jit(objective.inputs)(0, 0, batch, 0)
    (loss, outcome), features = jax.device_get(everything(params, inputs))
    weights = (0.5, 0.25) if pooling == "montage" else (1.0,)
    total = 0.0
    for weight, x, classes in zip(weights, features, inputs.classes, strict=True):
        logits = torch.tensor(x.astype(np.float64) @ kernel + np.arange(8.0))
        total += weight * torch.nn.functional.cross_entropy(logits, torch.tensor(classes).long())
    assert float(loss) == pytest.approx(float(total), rel=1e-5)
    assert outcome.target_batch_stats == {} and set(outcome.metrics) >= {"top1/level0"}


class Labeled:
    class_names = ("disc", "star")

    def __init__(self, label):
        self.label = label

    def __getitem__(self, index):
        return self


def test_data_without_labels_or_with_other_classes_are_refused():
    config = {"method": "supervised", "data": {"dataset": "d"}, "supervised": {"classes": 8}}
    with pytest.raises(UserError, match="d has no labels"):
        teaching.check_labels(config, Labeled(-1))
    with pytest.raises(UserError, match="classes is 8, but d has 2"):
        teaching.check_labels(config, Labeled(0))
    teaching.check_labels(config | {"method": "mcl"}, Labeled(-1))
