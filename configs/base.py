"""Every hyper-parameter with its unit and source; the other files are overrides.

Defaults are the paper's ImageNet run (MCL section 4.1): ResNet-50, B = 4096, 100 epochs. Where the
paper is silent the authors' released code decides; 'design' marks a choice of this project.

    mcl-jax pretrain --config base --workdir runs/base --config.data.data_dir=/data

Data:     ImageNet-1k, 1.28 M images, prepared by `mcl-jax prepare imagenet`.
Chips:    256 of TPU v5e (v5e:16x16), or any number that divides B (docs/tpu.md).
Hours:    at least 67 chip-hours on v5e, 45 on v4 (plan: bounds of docs/tpu.md; not measured).
Expected: 42.5 box AP, 38.2 mask AP after Mask R-CNN's 1x schedule on COCO (paper, Table 3; not
          measured here).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of everything random: parameters, order of images, views, montages
    config.method = "mcl"  # mcl | supervised | byol | moco | detco

    data = config.data = ConfigDict()
    data.dataset = "tfds:imagenet2012"  # scenes | folder:/path | tfds:NAME[/CONFIG][:VERSION]
    data.split = "train"  # TFDS syntax: train+unlabeled, train[:10%]
    # of TFDS data sets; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets, for scenes $MCL_JAX_DATA or
    # ~/.cache/mcl_jax
    data.data_dir = ""
    data.batch_size = 4096  # images of all devices together (B)
    # images that share random keys and montages; 0: all that a device holds of a micro-batch. A fixed
    # number lets a run continue on other numbers of devices with the same views and montages
    data.group_size = 0
    data.image_size = 224  # px, side of views and canvases (H), a multiple of 32
    data.canvas_size = 512  # px, side of the decoded uint8 canvas; near the sources' own size
    data.workers = 0  # decoding processes per host; 0: decode in threads of this process
    # decoding threads per process, each makes a whole batch; 0: decode on demand
    data.threads = 8
    data.max_unreadable_share = 0.01  # of images seen; more stops the run
    data.unreadable_grace = 100  # images seen before that share is judged, at most once all

    model = config.model = ConfigDict()
    model.backbone = "resnet50"  # resnet18 | resnet34 | resnet50 | resnet101 | swin_t
    model.width = 64  # channels of the stem; ResNet stages have width * (1, 2, 4, 8) * expansion
    model.drop_path = 0.0  # highest probability of leaving out a residual branch (Swin only)
    model.neck = "fpn"  # fpn | c4 (the last map, resized; paper section 3.2 and Table 12)
    model.fpn_channels = 256  # of P2..P5 and the RoI head
    model.head_convs = 4  # 3x3 convolutions of the RoI head
    model.projector_hidden = 2048
    model.projector_out = 256  # dimensions of u and v
    model.predictor_hidden = 2048

    numerics = config.numerics = ConfigDict()
    # of activations: auto (bfloat16 on accelerators, float32 on CPU) | float32 | bfloat16 | float64
    # (with JAX_ENABLE_X64=1)
    numerics.compute_dtype = "auto"
    numerics.remat = False  # recompute residual blocks backward: less memory, more FLOPs
    numerics.bn_devices = 0  # devices whose images share BatchNorm statistics; 0: all of them
    numerics.bn_momentum = 0.9  # share of the running value kept (torch's 0.1)
    numerics.bn_epsilon = 1e-5  # added to variances

    montage = config.montage = ConfigDict()
    montage.assembly = "montage"  # montage | mosaic (level 1 alone) | copy_paste (paper Table 8)
    montage.levels = 4  # S; level s shrinks by 2^s (paper Table 10a: 1..4)
    montage.copies = (1, 1, 1, 2)  # times an image appears per level (released code)
    montage.shrink = "nearest"  # nearest | antialias
    montage.boundary_sigma = 0.0  # Gaussian mask std in sub-image widths; 0: none (Table 10c)

    loss = config.loss = ConfigDict()
    loss.pyramid = "assigned"  # assigned | full (the authors' computation)
    loss.matching = "a"  # a | b | c | d (paper section 3.3, Table 10b)
    loss.temperature = 1.0  # tau (released code)
    # micro_batch: negatives of the images that are computed together | step: of the whole batch, by
    # a forward pass more; the same unless optimizer.micro_batches > 1
    loss.negatives = "micro_batch"
    loss.level_weights = (1 / 2, 1 / 4, 1 / 8, 1 / 8)  # released; paper's text: 1/2^(s+1)

    supervised = config.supervised = ConfigDict()  # paper appendix A.1, Figure 4
    supervised.classes = 1000  # of the labels
    supervised.pooling = "montage"  # montage (multi-level, RoI features) | image (vanilla: res5)
    supervised.label_smoothing = 0.0

    moco = config.moco = ConfigDict()  # MoCo v2 (Chen et al., 2020); the first four also DetCo's
    moco.queue_size = 65_536  # keys per queue
    moco.temperature = 0.2
    moco.norm = "sync"  # sync: statistics over all devices | shuffle: MoCo's shuffled BN
    moco.norm_group = 32  # images normalized together under 'shuffle' (MoCo: one GPU's batch)

    detco = config.detco = ConfigDict()  # DetCo (Xie et al., 2021)
    detco.stage_weights = (0.1, 0.4, 0.7, 1.0)  # of res2..res5
    detco.crop_size = 255  # px of the crop that is cut in 3 x 3 cells
    detco.patch_size = 64  # px of the random patch out of each cell
    detco.local_area = (0.6, 1.0)  # share of the image that this crop covers (PIRL's jigsaw)
    detco.shuffle_patches = False  # concatenate the nine features in a random order

    augment = config.augment = ConfigDict()  # BYOL's, as released; per side: (q, k)
    augment.area = (0.2, 1.0)  # share of the image that a crop covers
    augment.aspect = (3 / 4, 4 / 3)  # width / height of a crop
    augment.flip_prob = 0.5
    augment.jitter_prob = 0.8
    augment.brightness = 0.4  # half width of the factor around 1
    augment.contrast = 0.4
    augment.saturation = 0.2
    augment.hue = 0.1  # turns
    augment.grayscale_prob = 0.2
    augment.blur_prob = (1.0, 0.1)
    augment.blur_sigma = (0.1, 2.0)  # px at a 224 px view
    augment.solarize_prob = (0.0, 0.2)
    augment.solarize_threshold = 128 / 255  # of [0, 1]
    augment.mean = (0.485, 0.456, 0.406)  # RGB in [0, 1] (torchvision)
    augment.std = (0.229, 0.224, 0.225)

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "lars"  # lars | sgd | adamw
    optimizer.base_lr = 1.0  # peak learning rate per 256 images
    optimizer.final_lr = 1e-4  # at the last step (released code)
    optimizer.epochs = 100.0  # length of the run
    optimizer.micro_batches = 1  # parts of a batch that are computed one after the other
    optimizer.warmup_epochs = 10.0
    optimizer.warmup_start = 1e-4  # share of the learning rate at step 0 (released code)
    optimizer.warmup_shape = "sequential"  # sequential (paper) | multiplied (released code)
    optimizer.momentum = 0.9
    optimizer.weight_decay = 1e-5
    optimizer.trust_coefficient = 1e-3  # LARS eta
    optimizer.trust_denominator = "sum"  # sum: |g| + wd |w| (released) | optax: |g + wd w|
    # from decay and trust ratio: norm_and_bias | authors | none (see optimizer.py)
    optimizer.excluded = "norm_and_bias"
    optimizer.clip_norm = 500.0  # global gradient norm; 0: no clipping

    ema = config.ema = ConfigDict()  # of the target network's parameters
    ema.base = 0.99  # at step 0
    ema.final = 1.0  # at the last step, by cosine

    knn = config.knn = ConfigDict()  # weighted kNN on average-pooled res5 (Wu et al., 2018)
    knn.bank_split = "train"  # labeled images that vote
    knn.query_split = "validation"  # labeled images that are classified
    knn.max_images = 50_000  # per split
    knn.batch_size = 512  # images of all devices together
    knn.every_epochs = 5.0  # 0: never
    knn.neighbors = 20
    knn.temperature = 0.07
    knn.shrinks = (2, 4, 8)  # queries are also classified when shrunk by these factors

    linear = config.linear = ConfigDict()  # linear evaluation (paper appendix B)
    linear.train_split = "train"
    linear.test_split = "validation"
    linear.batch_size = 256  # images of all devices together
    linear.lrs = (10.0,)  # at the start; one classifier each, trained on the same features
    linear.momentum = 0.9
    linear.weight_decay = 0.0
    linear.epochs = 100.0
    linear.schedule = "cosine"  # cosine (to 0) | constant; the paper gives the start alone
    linear.area = (0.08, 1.0)  # share of the image that a crop covers
    linear.aspect = (3 / 4, 4 / 3)
    linear.flip_prob = 0.5
    linear.checkpoint_epochs = 1.0

    # linear SVMs on frozen maps, one a class (VOC07 of Goyal et al., 2019; DetCo Table 10)
    svm = config.svm = ConfigDict()
    svm.train_split = "train"  # of tfds:voc/2007: train+validation
    svm.test_split = "validation"  # of tfds:voc/2007: test
    svm.batch_size = 256  # images of all devices together
    svm.stages = ("res5",)  # average-pooled maps: some of res2 | res3 | res4 | res5
    svm.costs = tuple(2.0**power for power in range(-7, 11))  # VISSL's range, .01 to 1000
    svm.folds = 3  # of the cross-validation that chooses a class's cost; from 2 on
    svm.positive_weight = 2.0  # of the errors of positives; negatives have 1 (VISSL)
    svm.max_iterations = 2000  # of the solver (VISSL)
    svm.tolerance = 1e-4  # of the solver's gradient (VISSL)
    svm.shots = (1, 2, 4, 8, 16, 32, 64)  # images that show the class in low-shot rows; (): none
    svm.samples = 5  # independent draws of them (VISSL)
    svm.threads = 0  # SVMs trained at a time; 0: as many as CPUs

    # detection probe: an FCOS head (Tian et al., 2019) on labeled images
    probe = config.probe = ConfigDict()
    # scenes | tfds:coco/2017, tfds:voc/2007, ... | coco_json: the four paths below
    probe.dataset = "scenes"
    probe.train_split = "train"  # of scenes and TFDS data sets
    probe.test_split = "validation"
    probe.train_json = ""  # annotation files in COCO's form; their file names are relative to ...
    probe.train_folder = ""
    probe.test_json = ""
    probe.test_folder = ""
    probe.image_size = 128  # px; the scenes' own size
    probe.train_images = 256  # the first so many of the training set; 0: all
    probe.eval_images = 512  # the first so many of the test set; 0: all
    probe.steps = 300
    probe.batch_size = 16  # images of all devices together
    # lowest and highest factor of a training image's size; (1, 1): mirrored and nothing else, so that
    # what frozen parts put out is computed once
    probe.scale_jitter = (1.0, 1.0)
    probe.min_visible = 0.25  # share of a box's area that must stay on the canvas
    probe.cache_gb = 2.0  # 10^9 bytes for decoded images, and as much for outputs of frozen parts
    probe.checkpoint_steps = 200  # steps between two saved states
    probe.eval_batch_size = 64  # images of all devices together
    probe.base_lr = 2e-3  # AdamW's, of everything that is trained
    probe.warmup_steps = 20
    probe.weight_decay = 1e-4
    probe.head_channels = 32
    probe.head_convs = 2  # of each tower
    probe.head_groups = 4  # of its group norms
    probe.prior = 0.01  # probability of an object that every location starts from
    probe.levels = ("P2", "P3", "P4", "P5")
    # px, largest distance from a location to its box's sides: P2 | P3 | P4 | P5
    probe.level_bounds = (12.0, 24.0, 48.0)
    probe.center_radius = 1.5  # strides around a box's center that count as positive
    probe.focal_alpha = 0.25
    probe.focal_gamma = 2.0
    probe.score_threshold = 0.05
    probe.candidates = 200  # per image, before suppression
    probe.nms_iou = 0.6
    probe.max_detections = 50  # per image
    # px, sides of squares between small, medium and large: terciles of the training boxes
    probe.area_bounds = (18.0, 35.0)

    export = config.export = ConfigDict()
    # what a finished run writes to WORKDIR/exports: some of detectron2 | torchvision | timm | mmdet |
    # safetensors, each in a folder of its name
    export.targets = ()

    log = config.log = ConfigDict()
    log.every_steps = 50  # steps between two records of metrics, also in the progress bar
    log.checkpoint_steps = 1000  # steps between checkpoints; the last step is always saved
    log.keep_checkpoints = 3
    # jsonl (the record, always) | tensorboard | wandb | mlflow
    log.writers = ("jsonl", "tensorboard")
    log.project = "mcl_jax"  # of wandb, and the experiment of mlflow
    log.progress_s = 60.0  # s between two lines of progress where stderr is no terminal
    log.page_s = 120.0  # s between two writings of card.html while the run goes on; 0: at its end
    log.lost_host_s = 60  # s without a sign of life after which a host counts as lost
    log.montages = 4  # canvases per level in montage.png; 0: no picture
    log.collapse_share = 0.05  # of 1/sqrt(D): feature std below it is a collapse
    log.collapse_patience = 10  # consecutive logs below it before the run stops
    return config
