"""The comparison of docs/study.md: every method at one small budget on the built-in scenes.

    python scripts/compare_methods.py --config configs/study_scenes.py

All rows share data, images seen, network, optimiser and augmentation; a row changes what its method
is made of. The shared values are the demo's, which were once chosen for MCL at a short run; no other
method was searched values for. One choice no value suits all methods for: how fast the
target network follows. Keys in a queue must stay comparable for 16 steps, MCL has no queue. So every
method with a target network has a row with a fast and one with a slow target. In six epochs at seed
0, kNN accuracy was (fast, slow): MCL 25.5, 23.2; MoCo 14.3, 37.5; BYOL 14.4, 19.5. The better one
became the main row, DetCo's as MoCo's and mosaic's as MCL's; the other row has a suffix.
"""

from ml_collections import ConfigDict

from configs import demo


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
    fast = {"base": config.ema.base, "final": config.ema.final}  # the demo's
    slow = {"base": 0.99, "final": 1.0}  # MCL's and BYOL's published schedule
    config.knn.every_epochs = 6.0
    config.log.checkpoint_steps = 200
    config.log.keep_checkpoints = 1
    config.log.collapse_patience = 1_000_000  # a collapsed row is scored like any other

    study = config.study = ConfigDict()
    study.seeds = 3  # of the main rows; seed 0 of all rows comes first
    study.untrained = "random"  # the row that is scored as initialised
    study.main_rows = ("random", "supervised", "byol", "moco", "detco", "mosaic", "mcl")
    study.rows = (  # in the table's order
        *study.main_rows,
        *("byol_fast", "moco_fast", "detco_fast", "mosaic_slow", "mcl_slow"),
        *("mcl_s1", "mcl_s2", "mcl_s3", "mcl_b", "mcl_c", "mcl_d", "supervised_mcl"),
    )
    differs = study.differs = ConfigDict()  # row -> its values of the configuration's keys
    differs.random = {}
    differs.supervised = {"method": "supervised", "supervised": {"pooling": "image"}}
    for method in ("byol", "moco", "detco"):
        differs[method] = {"method": method, "ema": slow}
        differs[f"{method}_fast"] = {"method": method, "ema": fast}
    mosaic = {
        "montage": {"assembly": "mosaic", "levels": 2, "copies": (0, 4)},
        "loss": {"matching": "b", "level_weights": (0.0, 1.0)},
    }
    differs.mosaic = mosaic | {"ema": fast}
    differs.mosaic_slow = mosaic | {"ema": slow}
    differs.mcl = {"ema": fast}
    differs.mcl_slow = {"ema": slow}
    for levels in (1, 2, 3):
        differs[f"mcl_s{levels}"] = {"montage": {"levels": levels}}
    for mode in "bcd":
        differs[f"mcl_{mode}"] = {"loss": {"matching": mode}}
    differs.supervised_mcl = {"method": "supervised"}
    return config
