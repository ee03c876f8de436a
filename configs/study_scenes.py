"""Every method at one small budget on the built-in scenes: a test of the machinery.

    mcl-jax study --config study_scenes --document runs/scenes.md

Data:     the built-in scenes, rendered at the first start.
Chips:    a CPU of two cores.
Hours:    one for every seed.
Expected: nothing that tells methods apart. Seeds differ more than methods here, and views of 8 px
          hold nothing to learn. configs/study_photos.py is the comparison to read.

All rows share data, images seen, network, optimizer, learning rate, augmentation and the target
network's speed (momentum .99 to 1, MCL's and BYOL's published schedule); a row changes what its
method is made of. No row is searched values for.
"""

from ml_collections import ConfigDict

from mcl_jax.configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.supervised.classes = 8
    config.moco.queue_size = 1024
    config.moco.temperature = config.loss.temperature
    config.moco.norm = "shuffle"  # one device: without it, keys share their queries' statistics
    config.moco.norm_group = 16
    config.detco.crop_size = 72  # px; 255 of 224 in proportion, a multiple of 3
    config.detco.patch_size = 16
    config.optimizer.epochs = 12.0
    config.ema.base = 0.99
    config.ema.final = 1.0
    config.knn.every_epochs = 6.0
    config.log.checkpoint_steps = 200
    config.log.keep_checkpoints = 1
    config.log.collapse_patience = 1_000_000  # a collapsed row is scored like any other

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
    differs = study.differs = ConfigDict()  # row -> its values of the configuration's keys
    differs.random = {}
    differs.supervised = {"method": "supervised", "supervised": {"pooling": "image"}}
    for method in ("byol", "moco", "detco"):
        differs[method] = {"method": method}
    differs.mosaic = {
        "montage": {"assembly": "mosaic", "levels": 2, "copies": (0, 4)},
        "loss": {"matching": "b", "level_weights": (0.0, 1.0)},
    }
    differs.mcl = {}
    differs.mcl_fast = {"ema": {"base": 0.9, "final": 0.99}}  # the demo's
    for levels in (1, 2, 3):
        differs[f"mcl_s{levels}"] = {"montage": {"levels": levels}}
    for mode in "bcd":
        differs[f"mcl_{mode}"] = {"loss": {"matching": mode}}
    differs.supervised_mcl = {"method": "supervised"}
    return config
