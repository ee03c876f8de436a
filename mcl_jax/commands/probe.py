"""Detection probe of a checkpoint: AP of a small FCOS detector on your own labeled images.

    mcl-jax probe --workdir runs/demo --output runs/demo/probe \\
        --train_json=train.json --train_images=photos --test_json=test.json --test_images=photos \\
        --labels=50,all
    mcl-jax probe --workdir runs/r50 --output runs/r50/voc \\
        --dataset=tfds:voc/2007 --train_split=train+validation --test_split=test \\
        --set image_size=320 --set steps=3000
    mcl-jax probe --workdir runs/demo --output runs/demo/scenes --dataset=scenes

The checkpoint's own config says the rest (section `probe`, see docs/probe.md); the same command
resumes.
"""

from collections.abc import Sequence

from absl import flags

from mcl_jax import cli, exit_codes
from mcl_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder, or one of its checkpoints")
OUTPUT = flags.DEFINE_string("output", None, "folder for results, pictures and saved states")
UNTRAINED = flags.DEFINE_bool("untrained", False, "probe random weights of the same network")
MODES = flags.DEFINE_list(
    "modes", [], "backbone | backbone+fpn (stay frozen) | tuned; all that fit"
)
LABELS = flags.DEFINE_list("labels", ["all"], "label budgets in images, e.g. 50,110,276,all")
SEED = flags.DEFINE_integer("seed", 0, "0: budgets are the first images; others: random ones")
OVERRIDES = {
    ("probe", "dataset"): flags.DEFINE_string(
        "dataset", None, "scenes | tfds:NAME; or --train_json"
    ),
    ("probe", "train_split"): flags.DEFINE_string("train_split", None, "of a TFDS data set"),
    ("probe", "test_split"): flags.DEFINE_string("test_split", None, "of a TFDS data set"),
    ("probe", "train_json"): flags.DEFINE_string("train_json", None, "COCO JSON to train on"),
    ("probe", "train_folder"): flags.DEFINE_string("train_images", None, "its images' folder"),
    ("probe", "test_json"): flags.DEFINE_string("test_json", None, "COCO JSON to test on"),
    ("probe", "test_folder"): flags.DEFINE_string("test_images", None, "its images' folder"),
    ("data", "data_dir"): flags.DEFINE_string("data_dir", None, "where TFDS data sets lie"),
}
SET = flags.DEFINE_multi_string("set", [], "KEY=VALUE of the section `probe`, e.g. steps=600")


def main(_: Sequence[str]) -> int:
    for name, flag in (("workdir", WORKDIR), ("output", OUTPUT)):
        if not flag.value:
            raise UserError(f"--{name} FOLDER is missing: {flags.FLAGS[name].help}")
    import jax

    from mcl_jax import sharding
    from mcl_jax.commands import checkpoints
    from mcl_jax.evaluate.detection import data, report
    from mcl_jax.evaluate.detection.training import Conduct, Stopped
    from mcl_jax.runtime.preemption import Preemption

    labels = report.budgets(LABELS.value)
    state, meta, config = checkpoints.read(WORKDIR.value, OVERRIDES)
    data.choose(config["probe"], SET.value)
    cli.set_value(config, "seed", SEED.value)
    about = {"method": config["method"], "step": int(meta["step"]), "workdir": WORKDIR.value}
    subject = (
        report.untrained(config) if UNTRAINED.value else report.pretrained(state, config, about)
    )
    with Preemption(owner=True) as preemption:

        def stops(step: int) -> bool:
            preemption.guard_work()
            return preemption.requested_after(step)

        conduct = Conduct(threads=config["data"]["threads"], progress=True, stops=stops)
        mesh = sharding.make_mesh(jax.local_devices())
        try:
            rows = report.run(
                subject, data.load(config), output=OUTPUT.value,
                modes=MODES.value, labels=labels, seed=SEED.value, mesh=mesh, conduct=conduct,
            )  # fmt: skip
        except Stopped:
            print(f"stopped on request; {OUTPUT.value} resumes")
            return exit_codes.STOPPED
        print(report.as_text(rows))
        return exit_codes.DONE
