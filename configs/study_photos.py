"""The comparison of docs/study.md: every method at one small budget on photographs.

    mcl-jax study --config study_photos:cpu
    mcl-jax study --config study_photos:gpu,/data/photos

Data:     photographs, `photos` in the current folder unless the argument names another folder: with
          `pretrain/CLASS/*.jpg` and `detection/instances_{train,test}.json`, which name their images
          from `detection/` on (docs/study.md says which photographs we used).
Chips:    `cpu`: one core a run; a ResNet-18 of width 16 at 64 px, three levels, 20 epochs.
          `gpu`: one GPU; a ResNet-18 of width 64 at 128 px, four levels, 40 epochs.
Hours:    `cpu`: 22 minutes a row and seed on one idle core, and as long again for the scores
          (measured). `gpu`: not measured yet; made for a minute of steps a row on one H100, and on a GPU
          every new program is compiled for a minute or two.
Expected: the table of docs/study.md (measured).

All rows share photographs seen, network, optimizer, learning rate, augmentation and the target
network's speed (momentum .99 to 1, MCL's and BYOL's published schedule); a row changes what its
method is made of. No row is searched values for.
"""

from pathlib import PurePath

from ml_collections import ConfigDict

from mcl_jax.configs import demo
from mcl_jax.errors import UserError

SIZES = ("cpu", "gpu")
CLASSES, TRAIN_IMAGES = 104, 1106  # of the photographs that we used
MOSAIC = {
    "montage": {"assembly": "mosaic", "levels": 2, "copies": (0, 4)},
    "loss": {"matching": "b", "level_weights": (0.0, 1.0)},
}
ROWS = {  # row -> its values of the configuration's keys
    "random": {},
    "supervised": {"method": "supervised", "supervised": {"pooling": "image"}},
    "byol": {"method": "byol"},
    "moco": {"method": "moco"},
    "detco": {"method": "detco"},
    "mosaic": MOSAIC,
    "mcl_s1": {"montage": {"levels": 1}},
    "mcl_b": {"loss": {"matching": "b"}},
    "mcl": {},
}


def get_config(argument: str = "cpu") -> ConfigDict:
    """`argument`: SIZE[,FOLDER]."""
    size, _, folder = argument.partition(",")
    if size not in SIZES:
        raise UserError(f"study_photos.py:{size} is not one of {', '.join(SIZES)}")
    photos = PurePath(folder or "photos")
    config = demo.get_config()
    config.data.dataset = f"folder:{photos / 'pretrain'}"
    config.data.split = config.knn.bank_split = "train[:90%]"
    config.knn.query_split = "train[90%:]"
    config.knn.every_epochs = 10.0
    config.data.canvas_size = 128
    config.montage.levels = 3  # a fourth would be views of 8 px
    config.supervised.classes = CLASSES
    config.moco.queue_size = 4096
    fit_methods(config)
    config.optimizer.epochs = 20.0
    config.ema.base, config.ema.final = 0.99, 1.0
    config.log.checkpoint_steps = 300
    config.log.montages = 0
    if size == "gpu":
        _enlarge(config)
    _probe(config, photos / "detection", size)
    _study(config, size)
    return config


def fit_methods(config: ConfigDict) -> None:
    """The demo's network and views for MoCo v2 and DetCo, and for rows that collapse."""
    config.moco.temperature = config.loss.temperature
    config.moco.norm = "shuffle"  # one device: without it, keys share their queries' statistics
    config.moco.norm_group = 16
    config.detco.crop_size = 72  # px; 255 of 224 in proportion, a multiple of 3
    config.detco.patch_size = 16
    config.log.keep_checkpoints = 1
    config.log.collapse_patience = 1_000_000  # a collapsed row is scored like any other


def _enlarge(config: ConfigDict) -> None:
    """One H100 for a minute a row."""
    config.data.image_size = 128
    config.data.canvas_size = 192
    config.data.batch_size = 256
    config.data.threads = 16
    config.montage.levels = 4
    config.model.width = 64
    config.model.fpn_channels = 128
    config.model.head_convs = 2
    config.model.projector_hidden = config.model.predictor_hidden = 512
    config.model.projector_out = 128
    config.moco.norm_group = 32
    config.detco.crop_size, config.detco.patch_size = 144, 32
    config.optimizer.epochs = 40.0
    config.knn.every_epochs = 40.0


def _probe(config: ConfigDict, folder: PurePath, size: str) -> None:
    """An FCOS head at 160 px; bounds in px of these photographs."""
    probe = config.probe
    probe.dataset = "coco_json"
    for side in ("train", "test"):
        probe[f"{side}_json"] = str(folder / f"instances_{side}.json")
        probe[f"{side}_folder"] = str(folder)  # its files are named train/000002.jpg
    probe.train_images = probe.eval_images = 0
    probe.image_size = 160
    probe.steps = 600 if size == "cpu" else 1500
    probe.head_channels = config.model.fpn_channels  # with 64 towers take 3 times the products
    probe.level_bounds = (16.0, 32.0, 64.0)
    probe.area_bounds = (32.0, 80.0)


def _study(config: ConfigDict, size: str) -> None:
    study = config.study = ConfigDict()
    study.results = f"docs/study/{size}"  # folder of finished rows
    study.modes = ("backbone", "tuned")  # of the detection probe
    study.labels = (110, 0)  # budgets of labeled images; 0: all
    study.train_images = TRAIN_IMAGES  # how many that is
    study.shown = "tuned@all"  # of the picture by IoU threshold
    study.caption = (
        "Box AP of a small FCOS probe on 800 test photographs against labeled images, by what the "
        "network was pre-trained with; bars reach from the lowest to the highest seed."
    )
    study.seeds = 3  # of the main rows; seed 0 of all rows comes first
    study.untrained = "random"  # the row that is scored as initialized
    study.main_rows = ("random", "supervised", "byol", "moco", "mcl_s1", "mcl")
    study.rows = tuple(ROWS)  # in the table's order
    study.differs = ConfigDict({name: ROWS[name] for name in study.rows})
