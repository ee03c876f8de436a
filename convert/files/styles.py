"""Styles: how other libraries and projects call the arrays of a network in a file of weights.

A file is nested containers; the path to an array and its name are one dotted *name* here:
`state_dict.module.encoder_q.conv1.weight`. A *style* is how a library calls the arrays of a network
(`conv1.weight`, `layer1.0.bn1.bias`, ...); what stands before those is the network's *prefix*.
A prefix is found by the names behind it, so it needs no list. What projects write, from their own
code (facebookresearch/moco, moco-v3, simsiam, swav, barlowtwins, dino; lucidrains/byol-pytorch;
sthalles/PyTorch-BYOL; WXinlong/DenseCL; xieenze/DetCo; hologerry/SoCo; vturrisi/solo-learn;
lightly-ai/lightly; microsoft/Swin-Transformer; open-mmlab/mmselfsup, mmpretrain, mmdetection;
facebookresearch/detectron2):

  MoCo v1, v2             {"state_dict"}, module.encoder_q. and module.encoder_k.
  MoCo v3                 {"state_dict"}, module.base_encoder. and module.momentum_encoder.
  SimSiam, SwAV           {"state_dict"}, module.encoder.; SwAV: module.
  Barlow Twins            {"model"}, module.backbone.; and a bare state_dict
  BYOL of lucidrains      net. = online_encoder.net., and target_encoder.net.
  BYOL of sthalles        {"online_network_state_dict", "target_network_state_dict"}, encoder.0. ...
  DenseCL, OpenSelfSup    {"state_dict"}, backbone. = encoder_q.0., and encoder_k.0.
  mmselfsup, mmpretrain   {"state_dict", "meta"}, backbone., and encoder_k.module.0.,
                          target_net.module.0. or momentum_encoder.module.0.
  DetCo                   {"state_dict"} of a bare backbone, in a file named .pkl
  SoCo                    {"model", "opt"}, module.encoder. and module.encoder_k.; {"model_ema"},
                          encoder.; "opt" is an argparse.Namespace, which is refused: save again
  solo-learn              {"state_dict"} of Lightning, backbone. (before: encoder.), momentum_backbone.
  lightly                 {"state_dict"} of Lightning, backbone. and teacher_, student_ or
                          key_backbone.; its examples: backbone.0. ... of a torch.nn.Sequential
  DINO                    {"student", "teacher", "args"}, module.backbone.; "args" as SoCo's
  Swin (microsoft)        {"model"}; timm's names, but for the patch mergings
  timm, torchvision       bare, or {"state_dict", "state_dict_ema"}, {"model", "model_ema"}; with
                          "args" as SoCo's in checkpoints of their training scripts
  Lightning               {"state_dict"}, model. or net., or what else the user calls it
  MMDetection             {"state_dict", "meta"}, and with EMA {"ema_state_dict"}, module.
  Detectron2              .pkl {"model", "__author__"}; its trainer's model_final.pth {"model",
                          "optimizer", "scheduler", "iteration"}

Needs nothing: the fine-tuning scripts run without JAX.
"""

from __future__ import annotations  # Detectron2's environments go down to Python 3.9

import re
from typing import NamedTuple

SEQUENTIAL = {"0": "conv1", "1": "bn1", "9": "fc"} | {str(i + 3): f"layer{i}" for i in (1, 2, 3, 4)}
DETECTRON2_INNER = ("backbone.bottom_up.", "backbone.", "roi_heads.")


class Style(NamedTuple):
    """How a library calls a network's arrays.

    Attributes:
      words: what it is, for people.
      origin: what to give as `--from`.
      landmark: names that tell it, behind a prefix; the group is the part of the network.
      parts: so many different parts make a network. Some may be missing: what reads the arrays
        then names them.
    """

    words: str
    origin: str
    landmark: str
    parts: int

    def own_name(self, name: str) -> str:
        """The name that the library's table has, of one behind the prefix."""
        if self is STYLES["sequential"]:
            first, _, rest = name.partition(".")
            return f"{SEQUENTIAL.get(first, first)}.{rest}"
        if self is STYLES["first swin"]:
            return re.sub(r"^layers\.(\d)\.downsample\.", _next_stage, name)
        if self is STYLES["detectron2"]:
            inner = next((start for start in DETECTRON2_INNER if name.startswith(start)), "")
            return name[len(inner) :]
        return name


def _next_stage(match: re.Match) -> str:
    """What ended a stage in the first code of Swin begins the next one in timm's."""
    return f"layers.{int(match[1]) + 1}.downsample."


_LAYERS = r"(conv1|bn1|layer[1-4])\.[\w.]+"
_INDICES = r"(0(?=\.weight)|1(?=\.\w+$)|[4-7](?=\.\d+\.(?:conv|bn|downsample)))\.[\w.]+"
_INNER = "|".join(re.escape(start) for start in DETECTRON2_INNER)
STYLES = {
    "torchvision detector": Style(
        "torchvision's detector", "torchvision", rf"backbone\.body\.{_LAYERS}", parts=4
    ),
    "mmdet": Style("MMDetection's ResNet", "mmdet", rf"backbone\.{_LAYERS}", parts=4),
    "mmdet swin": Style(
        "MMDetection's Swin", "mmdet", r"backbone\.(patch_embed|stages\.[0-3])\.[\w.]+", parts=4
    ),
    "detectron2": Style(
        "Detectron2's ResNet", "detectron2", rf"(?:{_INNER})?(stem|res[2-5])\.[\w.]+", parts=3
    ),
    "resnet": Style("torchvision's ResNet", "torchvision", _LAYERS, parts=4),
    "sequential": Style(
        "torchvision's ResNet as a torch.nn.Sequential", "torchvision", _INDICES, parts=4
    ),
    "torchvision swin": Style(
        "torchvision's Swin", "torchvision", r"(features\.[0-7])\.[\w.]+", parts=6
    ),
    "first swin": Style(
        "Swin of its authors", "timm", r"(patch_embed|layers\.[0-2]\.downsample)\.[\w.]+", parts=4
    ),
    "timm swin": Style("timm's Swin", "timm", r"(patch_embed|layers\.[0-3])\.[\w.]+", parts=4),
}


class Origin(NamedTuple):
    """What `--from` can be: what it reads in words, and the styles, the most specific first."""

    words: str
    styles: tuple[str, ...]


ORIGINS = {
    "torchvision": Origin(
        "torchvision detector or classifier",
        ("torchvision detector", "resnet", "sequential", "torchvision swin"),
    ),
    "timm": Origin("timm classifier", ("resnet", "sequential", "first swin", "timm swin")),
    "mmdet": Origin("mmdet detector", ("mmdet", "mmdet swin")),
    "detectron2": Origin("detectron2 detector", ("detectron2",)),
}
