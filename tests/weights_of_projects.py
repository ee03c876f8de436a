"""Files of weights as other projects write them, of one small ResNet-18 and a second one beside it.

Each function takes two state_dicts under torchvision's names (the network, and the slower copy that
many methods keep) and returns what the project gives to torch.save; convert/files/styles.py says
whose code it follows. Shapes: as torchvision has them.
"""

from typing import NamedTuple


class Project(NamedTuple):
    """How a project's file is read.

    Attributes:
      content: (network, copy) -> what it saves.
      prefix: what the reader says it took the names from; '' for nothing.
      networks: of the file, as the reader lists them; empty where it is one alone.
      network: the flag that chooses the first argument of `content`.
      origin: for `--from`.
    """

    content: callable
    prefix: str
    networks: tuple[str, ...] = ()
    network: str | None = None
    origin: str = "torchvision"


def behind(prefix, arrays):
    return {prefix + name: x for name, x in arrays.items()}


def sequential(arrays):
    """As torch.nn.Sequential(*resnet.children()) calls them."""
    places = {"conv1": "0", "bn1": "1", "fc": "9"} | {f"layer{i}": str(i + 3) for i in (1, 2, 3, 4)}
    parts = (name.partition(".") for name in arrays)
    renamed = (f"{places[first]}.{rest}" for first, _, rest in parts)
    return dict(zip(renamed, arrays.values(), strict=True))


def two(first, second, **others):
    """A function that saves both networks in one state_dict, with what else there is beside it."""
    return lambda q, k: {"state_dict": behind(first, q) | behind(second, k), "epoch": 200} | others


def pair(first, second, prefix="", others=dict):
    """A function that saves each network in a dict of its own."""
    return lambda q, k: {first: behind(prefix, q), second: behind(prefix, k)} | others()


PROJECTS = {
    "torchvision": Project(lambda q, k: q, ""),
    "torchvision reference": Project(lambda q, k: {"model": q, "epoch": 89, "lr": 0.1}, "model."),
    "torchvision ema": Project(
        pair("model", "model_ema", "module."),
        "model.module.",
        networks=("model", "model_ema"),
        network="model",
    ),
    "moco v2": Project(
        two("module.encoder_q.", "module.encoder_k.", arch="resnet18", optimizer={"state": {}}),
        "state_dict.module.encoder_q.",
        networks=("encoder_q", "encoder_k"),
        network="encoder_q",
    ),
    "moco v3": Project(
        two("module.base_encoder.", "module.momentum_encoder.", scaler={"scale": 65536.0}),
        "state_dict.module.base_encoder.",
        networks=("base_encoder", "momentum_encoder"),
        network="base_encoder",
    ),
    "moco without module": Project(
        two("encoder_q.", "encoder_k."),
        "state_dict.encoder_q.",
        networks=("encoder_q", "encoder_k"),
        network="encoder_q",
    ),
    "simsiam": Project(
        lambda q, k: {"state_dict": behind("module.encoder.", q)}, "state_dict.module.encoder."
    ),
    "swav": Project(lambda q, k: {"state_dict": behind("module.", q)}, "state_dict.module."),
    "barlow twins": Project(
        lambda q, k: {"epoch": 1, "model": behind("module.backbone.", q)}, "model.module.backbone."
    ),
    "byol of lucidrains": Project(
        lambda q, k: (
            behind("net.", q) | behind("online_encoder.net.", q) | behind("target_encoder.net.", k)
        ),
        "net.",
        networks=("unprefixed (also as online_encoder)", "target_encoder"),
        network="online_encoder",
    ),
    "byol of sthalles": Project(
        lambda q, k: {
            "online_network_state_dict": behind("encoder.", sequential(q)),
            "target_network_state_dict": behind("encoder.", sequential(k)),
        },
        "online_network_state_dict.encoder.",
        networks=("online_network_state_dict", "target_network_state_dict"),
        network="online_network_state_dict",
    ),
    "densecl": Project(
        lambda q, k: {
            "meta": {"iter": 3},
            "state_dict": behind("encoder_q.0.", q)
            | behind("encoder_k.0.", k)
            | behind("backbone.", q),
        },
        "state_dict.encoder_q.0.",
        networks=("encoder_q.0 (also as backbone)", "encoder_k.0"),
        network="backbone",
    ),
    "detco": Project(lambda q, k: {"state_dict": q, "author": "OpenSelfSup"}, "state_dict."),
    "soco": Project(
        two("module.encoder.", "module.encoder_k."),
        "state_dict.module.encoder.",
        networks=("encoder", "encoder_k"),
        network="encoder",
    ),
    "mmselfsup moco": Project(
        two("backbone.", "encoder_k.module.0."),
        "state_dict.backbone.",
        networks=("backbone", "encoder_k.0"),
        network="backbone",
    ),
    "mmselfsup byol for mmdet": Project(
        two("backbone.", "target_net.module.0."), "state_dict.", origin="mmdet"
    ),
    "mmpretrain": Project(
        lambda q, k: {"state_dict": behind("backbone.", q), "meta": {"dataset_meta": {}}},
        "state_dict.",
        origin="mmdet",
    ),
    "mmpretrain as torchvision": Project(
        lambda q, k: {"state_dict": behind("backbone.", q)}, "state_dict.backbone."
    ),
    "mmengine ema": Project(
        lambda q, k: {
            "state_dict": behind("backbone.", q),
            "ema_state_dict": behind("module.backbone.", k),
        },
        "state_dict.",
        networks=("state_dict", "ema_state_dict"),
        network="state_dict",
        origin="mmdet",
    ),
    "solo-learn": Project(
        two("backbone.", "momentum_backbone.", hyper_parameters={"max_epochs": 400}),
        "state_dict.backbone.",
        networks=("backbone", "momentum_backbone"),
        network="backbone",
    ),
    "lightly benchmark": Project(
        two("backbone.", "teacher_backbone."),
        "state_dict.backbone.",
        networks=("backbone", "teacher_backbone"),
        network="backbone",
    ),
    "lightly example": Project(
        lambda q, k: {"state_dict": behind("backbone.", sequential(q))}, "state_dict.backbone."
    ),
    "dino": Project(
        pair("student", "teacher", "module.backbone."),
        "student.module.backbone.",
        networks=("student", "teacher"),
        network="student",
    ),
    "timm": Project(
        pair("state_dict", "state_dict_ema"),
        "state_dict.",
        networks=("state_dict", "state_dict_ema"),
        network="state_dict",
        origin="timm",
    ),
    "lightning": Project(
        lambda q, k: {
            "epoch": 9,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": behind("model.", q),
            "loops": {"fit_loop": {"state_dict": {}}},
            "callbacks": {"EarlyStopping": {"best_score": 0.1}},
        },
        "state_dict.model.",
    ),
    "compiled lightning": Project(
        lambda q, k: {"state_dict": behind("net._orig_mod.", q)}, "state_dict.net._orig_mod."
    ),
    "model_state_dict": Project(
        lambda q, k: {"model_state_dict": q, "optimizer_state_dict": {}}, "model_state_dict."
    ),
}
