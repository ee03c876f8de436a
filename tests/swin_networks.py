"""What the tests of Swin share: a tiny network, and the golden forward's weights.

Shapes: here NHWC and [in, out]; torchvision's arrays OIHW and [out, in].
"""

import ast
import zlib
from dataclasses import replace

import numpy as np
from convert_states import DATA, NARROW_R50, R50

from mcl_jax.convert.files import strict
from mcl_jax.convert.names import classifiers
from mcl_jax.convert.names.classifiers import TORCHVISION

TINY = replace(
    NARROW_R50, backbone="swin_tiny", width=8, head_convs=1, projector_out=8, predictor_hidden=16
)
SWIN_T = replace(R50, backbone="swin_t", width=96)


def keys_of(name, library="torchvision"):
    """The library's name -> (shape, dtype)."""
    lines = (DATA / f"keys_{library}_{name}.txt").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return {row[0]: (ast.literal_eval(row[1]), row[2]) for row in rows}


def rule_made(name, shape):
    """The rule by which the golden forwards' weights were made, as the float32 they were."""
    r = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    if name.endswith("running_var"):
        x = 1 + 0.2 * r.rand(*shape)
    elif len(shape) >= 2:
        x = r.randn(*shape) * np.sqrt(1 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        x = 1 + 0.2 * r.randn(*shape)
    else:
        x = 0.1 * r.randn(*shape)
    return x.astype(np.float32)


def rule_made_state(name, a):
    """(state of the online backbone, torchvision's arrays it came from, without the classifier)."""
    keys = keys_of(name)
    last = classifiers.classifier_name(a, TORCHVISION)
    arrays = {
        key: rule_made(key, shape)
        for key, (shape, dtype) in keys.items()
        if dtype == "float32" and not key.startswith(f"{last}.")
    }
    flat = {}
    for entry in classifiers.layout(a, TORCHVISION, classes=None).entries:
        if entry.name:
            flat[entry.source] = entry.from_file(arrays[entry.name])
        else:  # output norms, which torchvision does not have
            flat[entry.source] = rule_made(entry.source, entry.shape)
        assert flat[entry.source].shape == entry.shape
    return strict.unflatten(flat), arrays
