"""Linear evaluation of a checkpoint (paper appendix B):

    mcl-jax linear --workdir runs/demo --output runs/demo/linear
    mcl-jax linear --workdir runs/r50 --output runs/r50/linear --lrs=1,10,30 \\
        --dataset=tfds:imagenet2012

The checkpoint's own config says the rest (section `linear`); the same command resumes.
"""

from collections.abc import Sequence

from absl import flags

from mcl_jax import cli, exit_codes
from mcl_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder, or one of its checkpoints")
OUTPUT = flags.DEFINE_string("output", None, "folder for classifiers, metrics and result.json")
OVERRIDES = {
    ("data", "dataset"): flags.DEFINE_string("dataset", None, "labeled data set"),
    ("data", "data_dir"): flags.DEFINE_string("data_dir", None, "where TFDS data sets lie"),
    ("linear", "train_split"): flags.DEFINE_string("train_split", None, "trains the classifiers"),
    ("linear", "test_split"): flags.DEFINE_string("test_split", None, "tests them"),
    ("linear", "epochs"): flags.DEFINE_float("epochs", None, "length of the training"),
    ("linear", "batch_size"): flags.DEFINE_integer("batch_size", None, "images of all devices"),
    ("linear", "schedule"): flags.DEFINE_string("schedule", None, "cosine | constant"),
}
LRS = flags.DEFINE_list("lrs", None, "learning rates at the start, one classifier each: 1,10,30")
PROCESSES = flags.DEFINE_bool("distributed", False, "one process of several that form a job")


def main(_: Sequence[str]) -> int:
    for name, flag in (("workdir", WORKDIR), ("output", OUTPUT)):
        if not flag.value:
            raise UserError(f"--{name} FOLDER is missing: {flags.FLAGS[name].help}")
    import jax

    from mcl_jax import sharding
    from mcl_jax.commands import checkpoints
    from mcl_jax.evaluate.linear import evaluation as linear
    from mcl_jax.evaluate.linear import loop
    from mcl_jax.runtime import hosts

    if PROCESSES.value:
        hosts.join()
    state, meta, config = checkpoints.read(WORKDIR.value, OVERRIDES)
    if LRS.value is not None:
        try:
            lrs = [float(lr) for lr in LRS.value]
        except ValueError:
            raise UserError(f"--lrs {','.join(LRS.value)} is not numbers, e.g. 1,10,30") from None
        cli.set_value(config, "linear.lrs", lrs)
    evaluation = linear.build(config, linear.frozen_backbone(state), sharding.make_mesh())
    result = loop.run(evaluation, OUTPUT.value, owner=True)
    if jax.process_index() == 0:
        print(loop.as_text(result) if result else f"stopped on request; {OUTPUT.value} resumes")
    return exit_codes.DONE if result else exit_codes.STOPPED
