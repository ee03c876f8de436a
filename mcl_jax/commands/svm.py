"""Linear SVMs on a checkpoint's frozen backbone: mAP of image-level labels (DetCo Table 10):

    mcl-jax svm --workdir runs/r50 --dataset=tfds:voc/2007 \\
        --train_split=train+validation --test_split=test --json=runs/r50/svm.json
    mcl-jax svm --workdir runs/demo --dataset=folder:/photos --shots= \\
        --train_split='train[:80%]' --test_split='train[80%:]' --stages=res3,res5
    mcl-jax svm --workdir runs/demo --train_json=train.json --train_images=train \\
        --test_json=test.json --test_images=test

The checkpoint's own config says the rest (section `svm`). See docs/measures.md.
"""

from collections.abc import Sequence

from absl import flags

from mcl_jax import cli
from mcl_jax.commands import results
from mcl_jax.errors import UserError

WORKDIR = flags.DEFINE_string("workdir", None, "a run's folder, or one of its checkpoints")
OVERRIDES = {
    ("data", "dataset"): flags.DEFINE_string("dataset", None, "labeled data set"),
    ("data", "data_dir"): flags.DEFINE_string("data_dir", None, "where TFDS data sets lie"),
    ("svm", "train_split"): flags.DEFINE_string("train_split", None, "trains the SVMs"),
    ("svm", "test_split"): flags.DEFINE_string("test_split", None, "tests them"),
    ("svm", "stages"): flags.DEFINE_list("stages", None, "maps to read: res2,res3,res4,res5"),
    ("svm", "threads"): flags.DEFINE_integer("threads", None, "SVMs trained at a time; 0: CPUs"),
}
SHOTS = flags.DEFINE_list("shots", None, "images per class of low-shot rows: 1,2,4; empty: none")
COCO = {
    f"{part}_{kind}": flags.DEFINE_string(f"{part}_{kind}", None, what)
    for part in ("train", "test")
    for kind, what in (("json", "COCO's annotations, for a data set"), ("images", "their folder"))
}
JSON = flags.DEFINE_string("json", None, "also write the result to this file")
PROCESSES = flags.DEFINE_bool("distributed", False, "one process of several that form a job")


def main(_: Sequence[str]) -> None:
    files = {name: flag.value for name, flag in COCO.items()}
    missing = [name for name, value in files.items() if not value]
    if not WORKDIR.value or 0 < len(missing) < len(files):
        name = missing[0] if WORKDIR.value else "workdir"
        raise UserError(f"--{name} is missing: {flags.FLAGS[name].help}")
    import jax

    from mcl_jax import sharding
    from mcl_jax.commands import checkpoints
    from mcl_jax.evaluate.linear import evaluation, svm, svm_measure
    from mcl_jax.runtime import hosts

    if PROCESSES.value:
        hosts.join()
    state, meta, config = checkpoints.read(WORKDIR.value, OVERRIDES)
    if SHOTS.value is not None:
        cli.set_value(config, "svm.shots", cli.whole_numbers("shots", SHOTS.value))
    train, test = svm.open_splits(config, None if missing else files)
    mesh, backbone = sharding.make_mesh(), evaluation.frozen_backbone(state)
    result = svm.run(config, backbone, train=train, test=test, mesh=mesh)
    if jax.process_index() != 0:
        return
    head = f"{train.name} -> {test.name}, step {meta['step']}"
    print(head, svm_measure.as_text(result, config["svm"]["costs"]), sep="\n")
    described = {"step": meta["step"]} | svm.described(config, files)
    results.write_json(JSON.value, described | result)
