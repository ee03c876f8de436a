"""Every method at one small budget on the built-in scenes: a test of the machinery.

    mcl-jax study --config study_scenes --document runs/scenes.md

Data:     the built-in scenes, rendered at the first start.
Chips:    a CPU of two cores.
Hours:    one for every seed (not measured).
Expected: nothing that tells methods apart (measured; docs/study.md). Seeds differ more than methods
          here, and views of 8 px hold nothing to learn. configs/study_photos.py is the comparison to
          read.

All rows share data, images seen, network, optimizer, learning rate, augmentation and the target
network's speed (momentum .99 to 1, MCL's and BYOL's published schedule); a row changes what its
method is made of. No row is searched values for.
"""

from ml_collections import ConfigDict

from mcl_jax.configs import demo, study_photos


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.supervised.classes = 8
    config.moco.queue_size = 1024
    study_photos.fit_methods(config)
    config.optimizer.epochs = 12.0
    config.ema.base = 0.99
    config.ema.final = 1.0
    config.knn.every_epochs = 6.0
    config.log.checkpoint_steps = 200

    study = config.study = ConfigDict()
    study.results = "runs/study_scenes"  # folder of finished rows
    study.modes = ("backbone", "backbone+fpn", "tuned")  # of the detection probe
    study.labels = (0,)  # budgets of labeled images; 0: all
    study.train_images = 256  # how many that is
    study.shown = "tuned@all"  # of the picture by IoU threshold
    study.seeds = 3  # of the main rows; seed 0 of all rows comes first
    study.untrained = "random"  # the row that is scored as initialized
    study.main_rows = ("random", "supervised", "byol", "moco", "detco", "mosaic", "mcl")
    study.main_rows += ("mcl_s1", "mcl_fast")
    study.rows = (  # in the table's order
        *study.main_rows,
        *("mcl_s2", "mcl_s3", "mcl_b", "mcl_c", "mcl_d", "supervised_mcl"),
    )
    differs = {name: study_photos.ROWS[name] for name in study.rows if name in study_photos.ROWS}
    differs["mcl_fast"] = {"ema": {"base": 0.9, "final": 0.99}}  # the demo's
    for levels in (2, 3):
        differs[f"mcl_s{levels}"] = {"montage": {"levels": levels}}
    for mode in "cd":
        differs[f"mcl_{mode}"] = {"loss": {"matching": mode}}
    differs["supervised_mcl"] = {"method": "supervised"}
    study.differs = ConfigDict(differs)
    return config
