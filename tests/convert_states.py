"""What the tests of convert/ share: networks, states, and both sides' files of them.

Shapes: here HWIO and [in, out]; Detectron2's and the authors' arrays OIHW and [out, in].
"""

import ast
import pickle
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from torch_or_skip import need_torch, torch

from mcl_jax import program
from mcl_jax.configs import base
from mcl_jax.convert import export as exports
from mcl_jax.convert.checks.report import Snapshot
from mcl_jax.convert.files import strict
from mcl_jax.convert.names import table
from mcl_jax.convert.targets import authors
from mcl_jax.convert.targets.registry import TARGETS
from mcl_jax.models.backbone import Architecture
from mcl_jax.models.layers import Numerics

DATA = Path(__file__).parent / "data"
NUMERICS = Numerics(jnp.float32, bn_momentum=0.9, bn_epsilon=1e-5, axis_name=None)
R50 = Architecture(
    backbone="resnet50",
    width=64,
    fpn_channels=256,
    head_convs=4,
    projector_hidden=2048,
    projector_out=256,
    predictor_hidden=2048,
    neck="fpn",
    drop_path=0.0,
)
NARROW_R50 = replace(
    R50, width=4, fpn_channels=8, projector_hidden=16, projector_out=12, predictor_hidden=24
)
NARROW_R34 = replace(NARROW_R50, backbone="resnet34", head_convs=3)
R18 = replace(
    NARROW_R34, backbone="resnet18", width=8, fpn_channels=16, head_convs=2, projector_hidden=32
)
LEVELS = 4
STEP = 1234


def random_state(a, seed):
    """A state with perturbed norms and running statistics, activations of order one."""
    r = np.random.RandomState(seed)
    flat = {}
    for t in table.online(a) + table.target(a) + table.predictor(a, 4):
        leaf = t.source.rsplit("/", 1)[1]
        x = r.randn(*t.shape)
        if leaf == "kernel":
            x *= np.sqrt(2 / np.prod(t.shape[:-1]))
        else:
            x = {"scale": 1 + 0.2 * x, "var": 1 + 0.2 * np.abs(x)}.get(leaf, 0.1 * x)
        flat[t.source] = x.astype(np.float32)
    return strict.unflatten(flat)


def full_meta_of(a, step=3):
    """With all sections of a configuration, as a checkpoint has them."""
    config = program.plain_config(base.get_config())
    return {"config": config | {"model": vars(a)}, "step": step}


def meta_of(a, step=3):
    return {"config": {"model": vars(a), "montage": {"levels": 4}}, "step": step}


def need_torch_for(target):
    """Skips where the target's file needs torch and torch is not installed."""
    if TARGETS[target].format.suffix == ".pth":
        need_torch()


def export_to(target, state, meta, out, parts=None, *, folded=False, **origin):
    """`--to` target with `--parts`, of a checkpoint in memory; returns the written files."""
    need_torch_for(target)
    snapshot = Snapshot(state, meta, "runs/test", **origin)
    return exports.export(TARGETS[target], snapshot, out, parts=parts, folded=folded)


def job_of(target, state, meta, parts=None, folded=False):
    part_names = exports.chosen_parts(TARGETS[target], request=parts, config=meta["config"])
    return exports.ExportJob(
        Snapshot(state, meta), part_names, weights=Path("weights"), folded=folded
    )


def layout_of(target, state, meta, parts=None):
    """What the target's file would hold."""
    return TARGETS[target].layout(job_of(target, state, meta=meta, parts=parts))


def arrays_of(target, state, meta, parts=None):
    """The file's arrays, not written."""
    return layout_of(target, state, meta=meta, parts=parts).to_file(state, "the checkpoint")


def export(a, state, out):
    export_to("detectron2", state, meta=meta_of(a), out=out)
    with (out / f"mcl_{a.backbone}.pkl").open("rb") as file:
        return pickle.load(file)


def model_keys(name):
    """Detectron2 name -> shape of a running model."""
    rows = [line.split("\t") for line in (DATA / f"keys_{name}.txt").read_text().splitlines()]
    return {row[0]: ast.literal_eval(row[1]) for row in rows}


def matches(model, names):
    """Detectron2's matching heuristics: the longest name that is a dot-suffix of the model's."""
    arrays = {}
    for key in model:
        fitting = [name for name in names if key == name or key.endswith("." + name)]
        if fitting:
            arrays[key] = max(fitting, key=len)
    assert len(set(arrays.values())) == len(arrays), "ambiguous: Detectron2 raises"
    return arrays


def make_arrays(a, seed=0):
    """The authors' names -> arrays without a common value, in the modules' order."""
    r = np.random.RandomState(seed)
    rows = authors.tensors(a, LEVELS)
    arrays = {}
    for t in rows:
        x = r.randn(*t.torch_shape)
        if len(t.shape) > 1:
            x *= np.sqrt(2 / np.prod(t.shape[:-1]))
        elif t.authors.endswith("running_var"):
            x = 1 + 0.2 * np.abs(x)
        arrays[t.authors] = x.astype(np.float32)
    order = ("encoder_q", "encoder_k", "head")
    return {name: arrays[name] for top in order for name in arrays if name.startswith(top)}


def write_npz(path, arrays, **extra):
    np.savez(path, **arrays, **extra)
    return path


def as_tensors(arrays, prefix=""):
    return {prefix + name: torch.from_numpy(x) for name, x in arrays.items()}


def optimizer_dict(arrays, prefixes, seed=1):
    """torch's optimizer state_dict with a group per parameter, as the authors build it."""
    names = [n for n in arrays if "running" not in n and n.startswith(prefixes)]
    r = np.random.RandomState(seed)
    buffers = {n: r.randn(*arrays[n].shape).astype(np.float32) for n in names}
    trained = {n: x for n, x in buffers.items() if not n.startswith("encoder_k")}
    states = {
        i: {"momentum_buffer": torch.from_numpy(trained[n])}
        for i, n in enumerate(names)
        if n in trained
    }
    groups = [{"params": [i], "lr": 4.8, "momentum": 0.9} for i in range(len(names))]
    return {"state": states, "param_groups": groups}, trained


def config_file(folder, model, **optimizer_keys):
    """A config file of the user's: base.py with this section `model`."""
    path = folder / "given.py"
    lines = [
        "from mcl_jax.configs import base",
        "def get_config():",
        "    config = base.get_config()",
    ]
    lines += [f"    config.model.{key} = {value!r}" for key, value in model.items()]
    lines += [f"    config.optimizer.{key} = {value!r}" for key, value in optimizer_keys.items()]
    path.write_text("\n".join([*lines, "    return config", ""]))
    return path
