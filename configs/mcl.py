"""Every pre-training run of the paper, and of the methods it is compared with, as one function.

    mcl-jax pretrain --config "mcl:c4,loss=b,levels=3" --workdir runs/c4

The argument is a comma-separated list of words and key=value pairs; none: the paper's main run.
configs/README.md lists the paper's rows with their commands. Single keys can still be set after it:
`--config.data.data_dir=/data`.

Data:     ImageNet-1k; with `coco`: COCO's train and unlabeled images.
Chips:    256 of TPU v5e, or any number that divides B (docs/tpu.md).
Hours:    at least 67 chip-hours on v5e for the main run (plan, docs/tpu.md; not measured). Twice the
          epochs take twice the hours.
Expected: the paper's APs, row by row in configs/README.md (published; not measured here).

Words, in any order (`WORDS` below): first a method (byol, moco, detco, supervised, vanilla), the
rest on top. Pairs (`PAIRS`): loss=a..d, levels=1..4, mask=.75, wd=5e-6, epochs=200, batch=1024,
weights=text.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from mcl_jax.configs import base
from mcl_jax.errors import UserError


def get_config(variant: str = "") -> ConfigDict:
    """The main run with the changes that `variant` lists.

    Raises:
      UserError: for an unknown word or value, listing what there is.
    """
    config = base.get_config()
    words, pairs = [], []
    for item in filter(None, (part.strip() for part in variant.split(","))):
        (pairs if "=" in item else words).append(item)
    unknown = [word for word in words if word not in WORDS]
    if unknown:
        pair_names = ", ".join(f"{name}=" for name in PAIRS)
        raise UserError(
            f"unknown word {unknown[0]!r} in the config's argument; there are "
            f"{', '.join(WORDS)} and {pair_names}"
        )
    _check_combination(words, pairs)
    for word in sorted(words, key=list(WORDS).index):  # a method first, what modifies it after
        WORDS[word](config)
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in PAIRS:
            raise UserError(f"unknown key {name!r} in the config's argument: {', '.join(PAIRS)}")
        try:
            PAIRS[name](config, value)
        except ValueError as error:
            raise UserError(f"{name}={value} in the config's argument: {error}") from error
    return config


def _check_combination(words: list[str], pairs: list[str]) -> None:
    """UserError for two methods, or for a word or pair that the method does not read."""
    methods = [word for word in words if word in READS]
    if len(methods) > 1:
        raise UserError(
            f"{' and '.join(methods)} are both methods; the config's argument takes one"
        )
    if "copy_paste" in words and any(pair.startswith("mask=") for pair in pairs):
        raise UserError("copy_paste has no boundary mask; leave out mask=")
    if not methods:
        return
    choices = [word for word in words if word not in READS] + [p.partition("=")[0] for p in pairs]
    reads = (*READS[methods[0]], *EVERYWHERE)
    for name in choices:
        if name not in reads and (name in WORDS or name in PAIRS):
            raise UserError(
                f"method {methods[0]} has no {name!r}; it combines with {', '.join(reads)}"
            )


def _byol(c: ConfigDict) -> None:
    """BYOL, 300 epochs (Grill et al., 2020: base lr .3, decay 1e-6, EMA .99; crops from 8 %)."""
    c.method = "byol"
    c.model.projector_hidden = c.model.predictor_hidden = 4096
    c.optimizer.base_lr, c.optimizer.weight_decay, c.optimizer.epochs = 0.3, 1e-6, 300.0
    c.optimizer.final_lr = c.optimizer.clip_norm = 0.0
    c.augment.area = (0.08, 1.0)


def _moco(c: ConfigDict) -> None:
    """MoCo v2, 200 epochs (Chen et al., 2020)."""
    c.method = "moco"
    c.data.batch_size = 256
    c.model.projector_out = 128
    c.augment.saturation = 0.4
    c.augment.blur_prob, c.augment.solarize_prob = (0.5, 0.5), (0.0, 0.0)
    c.ema.base = c.ema.final = 0.999
    _sgd(c, base_lr=0.03, epochs=200.0, warmup_epochs=0.0)


def _detco(c: ConfigDict) -> None:
    """DetCo, 200 epochs (Xie et al., 2021): MoCo v2's recipe at learning rate .06."""
    _moco(c)
    c.method = "detco"
    c.optimizer.base_lr = 0.06


def _supervised(c: ConfigDict) -> None:
    """Supervised MCL (paper appendix A.1, Figure 4, Table 7): ResNet-50, SGD, 100 epochs."""
    c.method = "supervised"
    c.data.batch_size = 1024
    a = c.augment  # crop and flip, as torchvision's reference training
    a.area, a.jitter_prob, a.grayscale_prob = (0.08, 1.0), 0.0, 0.0
    a.blur_prob, a.solarize_prob = (0.0, 0.0), (0.0, 0.0)
    _sgd(c, base_lr=0.1, epochs=100.0, warmup_epochs=5.0)


def _vanilla(c: ConfigDict) -> None:
    """The supervised baseline of Table 7: one view, pooled res5, cross-entropy."""
    _supervised(c)
    c.supervised.pooling = "image"


def _sgd(c: ConfigDict, base_lr: float, epochs: float, warmup_epochs: float) -> None:
    """SGD as the cited methods use it: everything decays by 1e-4, nothing is clipped."""
    o = c.optimizer
    o.name, o.base_lr, o.final_lr, o.epochs = "sgd", base_lr, 0.0, epochs
    o.warmup_epochs, o.weight_decay, o.excluded, o.clip_norm = warmup_epochs, 1e-4, "none", 0.0


def _swin_t(c: ConfigDict) -> None:
    """Swin-T with FPN; AdamW, 300 epochs (Liu et al., 2021; paper Table 7).

    Of Swin's augmentation, RandAugment, mixup, cutmix and random erasing are not included.
    """
    c.model.backbone, c.model.width, c.model.drop_path = "swin_t", 96, 0.2
    c.data.batch_size = 1024
    o = c.optimizer
    o.name, o.base_lr, o.final_lr, o.epochs = "adamw", 2.5e-4, 1e-5, 300.0
    o.warmup_epochs, o.weight_decay, o.excluded, o.clip_norm = 20.0, 0.05, "norm_and_bias", 5.0
    c.supervised.label_smoothing = 0.1


def _c4(c: ConfigDict) -> None:
    """No FPN: every level reads the last map, resized (Table 12). Detectron2's C4 detectors have
    no convolutional box head to load, so none is trained."""
    c.model.neck, c.model.head_convs = "c4", 0


def _coco(c: ConfigDict) -> None:
    """COCO train2017 + unlabeled2017 (241k images), 530 epochs (section 4.1, Table 1)."""
    c.data.dataset, c.data.split = "tfds:coco/2017", "train+unlabeled"
    c.data.canvas_size = 640  # px, the longer side of COCO's images
    c.optimizer.epochs = 530.0
    c.knn.every_epochs = 0.0  # COCO images have no single label


def _mosaic(c: ConfigDict) -> None:
    """Canvases of 2 x 2 images alone (Table 8); as many canvases as images, as in YOLO's mosaic."""
    c.montage.assembly, c.montage.levels, c.montage.copies = "mosaic", 2, (0, 4)
    c.loss.matching, c.loss.level_weights = "b", (0.0, 1.0)


def _copy_paste(c: ConfigDict) -> None:
    """A shrunk view of another image pasted into every view (Table 8)."""
    c.montage.assembly = "copy_paste"


def _authors(c: ConfigDict) -> None:
    """The released code's choices where they differ from the paper's text (design section 6)."""
    c.loss.pyramid = "full"
    c.optimizer.excluded, c.optimizer.warmup_shape = "authors", "multiplied"


WORDS: dict[str, Callable[[ConfigDict], None]] = {
    "byol": _byol,
    "moco": _moco,
    "detco": _detco,
    "supervised": _supervised,
    "vanilla": _vanilla,
    "swin_t": _swin_t,
    "c4": _c4,
    "coco": _coco,
    "mosaic": _mosaic,
    "copy_paste": _copy_paste,
    "authors": _authors,
}


def _loss(c: ConfigDict, value: str) -> None:
    c.loss.matching = value


def _levels(c: ConfigDict, value: str) -> None:
    c.montage.levels = int(value)


def _mask(c: ConfigDict, value: str) -> None:
    c.montage.boundary_sigma = 0.0 if value.lower() == "none" else float(value)


def _weight_decay(c: ConfigDict, value: str) -> None:
    c.optimizer.weight_decay = float(value)


def _epochs(c: ConfigDict, value: str) -> None:
    c.optimizer.epochs = float(value)


def _batch(c: ConfigDict, value: str) -> None:
    c.data.batch_size = int(value)


def _weights(c: ConfigDict, value: str) -> None:
    """'released' (1/2, 1/4, 1/8, 1/8) or 'text' (1/2^(s+1))."""
    choices = {"released": (1 / 2, 1 / 4, 1 / 8, 1 / 8), "text": (1 / 2, 1 / 4, 1 / 8, 1 / 16)}
    if value not in choices:
        raise ValueError(f"not one of {', '.join(choices)}")
    c.loss.level_weights = choices[value]


PAIRS: dict[str, Callable[[ConfigDict, str], None]] = {
    "loss": _loss,
    "levels": _levels,
    "mask": _mask,
    "wd": _weight_decay,
    "epochs": _epochs,
    "batch": _batch,
    "weights": _weights,
}

# What a method combines with, besides what every run has; MCL itself reads everything.
EVERYWHERE = ("swin_t", "coco", "wd", "epochs", "batch")
READS = {
    "byol": (),
    "moco": (),
    "detco": (),
    "supervised": ("c4", "mosaic", "levels", "mask", "weights"),
    "vanilla": (),
}
