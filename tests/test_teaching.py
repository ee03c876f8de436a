"""Runs that cannot teach anything, as devices and data show."""

import pytest
from conftest import tiny_config

from mcl_jax.data.record import Record
from mcl_jax.errors import UserError
from mcl_jax.settings import door, teaching


def run(**values):
    config = tiny_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in values.items()})
    door.check(config)
    return config


@pytest.mark.parametrize(
    "values, devices, message",
    [
        # one image a device, each with statistics of its own
        ({"data__batch_size": 8, "numerics__bn_devices": 1}, 8, "projector .*bn_devices 1; .*do$"),
        (
            {"data__batch_size": 8, "optimizer__micro_batches": 8, "loss__negatives": "step"},
            1,
            "single value.* data.batch_size 8 in optimizer.micro_batches 8",
        ),
        ({"data__batch_size": 1, "method": "byol"}, 1, "BatchNorm of the projector would see"),
        # the last map of a 32 px image is one value
        (
            {"data__batch_size": 1, "data__image_size": 32, "method": "supervised"},
            1,
            r"the last map \(1 x 1 at 32 px\) would see a single value",
        ),
        (
            {
                "method": "moco",
                "moco__norm": "shuffle",
                "moco__norm_group": 1,
                "data__image_size": 32,
            },
            1,
            "moco.norm_group is 1; 2 or more would do",
        ),
    ],
)
def test_batch_statistics_of_one_value_are_refused(values, devices, message):
    config = run(**values)
    with pytest.raises(UserError, match=message):
        teaching.check_run(config, devices, images=100)


@pytest.mark.parametrize(
    "values, devices",
    [
        ({"data__batch_size": 8}, 8),  # statistics of all devices
        ({"data__batch_size": 8, "numerics__bn_devices": 2}, 8),
        ({"data__batch_size": 1, "method": "supervised"}, 1),  # 2 x 2 values at 64 px
        ({"method": "moco", "moco__norm": "shuffle", "moco__norm_group": 1}, 1),
        ({"data__batch_size": 2, "data__image_size": 32}, 1),
    ],
)
def test_two_values_are_enough(values, devices):
    teaching.check_run(run(**values), devices, images=2)


def test_one_image_is_nothing_to_tell_apart():
    with pytest.raises(UserError, match="split 'train', holds 1 image: there is nothing to tell"):
        teaching.check_run(run(), 8, images=1)


class Labeled:
    """Four images of two named classes."""

    class_names = ("disc", "star")

    def __init__(self, labels):
        self.labels = labels

    def __getitem__(self, index):
        return Record(b"", self.labels[index], "")


def test_one_class_alone_is_refused():
    config = run(method="supervised", supervised__classes=2)
    teaching.check_labels(config, Labeled((0, 1, 1, 1)))
    with pytest.raises(UserError, match="images of one class alone.* mcl, byol"):
        teaching.check_labels(config, Labeled((1, 1, 1, 1)))
    teaching.check_labels(run(), Labeled((1, 1, 1, 1)))
