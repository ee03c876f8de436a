"""Which arrays of a file go where in a torchvision detector, by name and shape alone.

A part of the detector comes from the file completely or not at all, so that no network is trained
that is neither new nor pre-trained. Shapes are torch's; a *model* or *file* here is name -> shape.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mcl_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

BODY = "backbone.body."
STEM = f"{BODY}conv1.weight"
COUNTER = (
    ".num_batches_tracked"  # of a norm; files of other libraries lack it, and nothing needs it
)
# Part -> how its names begin. The first one that fits counts.
PARTS = {
    "backbone": r"backbone\.body\.",
    "fpn": r"backbone\.fpn\.(inner|layer)_blocks\.",
    "P6 and P7": r"backbone\.fpn\.extra_blocks\.",
    "rpn": r"rpn\.",
    "box head's convolutions": r"roi_heads\.box_head\.\d+\.\d+\.",
    "box head's linear layer": r"roi_heads\.box_head\.",
    "box predictor": r"roi_heads\.box_predictor\.",
    "mask head": r"roi_heads\.mask_head\.",
    "mask predictor": r"roi_heads\.mask_predictor\.",
    "class predictor": r"head\.classification_head\.cls_logits\.",
    "subnets": r"head\.",
}
# What is new wherever the number of classes is another.
OF_CLASSES = ("box predictor", "mask predictor", "class predictor")
# `--parts` of the user -> parts.
CHOICES = {
    "backbone": ("backbone",),
    "fpn": ("fpn", "P6 and P7"),
    "head": tuple(PARTS)[3:],
}
BLOCKS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
}
# Names that tell another file apart -> what it is.
STRANGERS = {
    "stem.conv1.weight": "Detectron2's names",
    "backbone.conv1.weight": "MMDetection's names",
    "encoder_q.0.conv1.weight": "the names of MCL's authors",
    "features.0.0.weight": "a Swin, of which torchvision has no detector",
    "backbone.patch_embed.projection.weight": "a Swin, of which torchvision has no detector",
}
EXPORT = "mcl-jax convert RUN --to torchvision --parts all"


@dataclass(frozen=True)
class Match:
    """What a model takes from a file.

    Attributes:
      names: the model's name -> the file's.
      parts: those that come from the file.
      scratch: parts that start anew.
      unused: names of the file that go nowhere.
    """

    names: Mapping[str, str]
    parts: tuple[str, ...]
    scratch: tuple[str, ...]
    unused: tuple[str, ...]

    def lines(self) -> list[str]:
        """In words."""
        few = ", ".join(self.unused[:3]) + (", ..." if len(self.unused) > 3 else "")
        unused = f"not used: {len(self.unused)} arrays of the file ({few})"
        return [
            f"from the file: {', '.join(self.parts)} ({len(self.names)} arrays)",
            f"from scratch: {', '.join(self.scratch) or 'nothing'}",
            *([unused] if self.unused else []),
        ]


def part_of(name: str) -> str:
    """The part that an array of the model belongs to."""
    return next(part for part, start in PARTS.items() if re.match(start, name))


def match(model: Shapes, file: Shapes, choice: str | None = None) -> Match:
    """Which arrays of a file a model takes.

    Args:
      model: of the detector.
      file: of a torchvision classifier or detector, as exported here or by torchvision.
      choice: some of CHOICES with commas, all that may come from the file; None: no limit.

    Raises:
      UserError: the file holds no ResNet under torchvision's names, another one than the model's,
        or only some arrays of a part.

    Example:
      shapes = {name: tuple(x.shape) for name, x in detector.state_dict().items()}
      found = match(shapes, {name: x.shape for name, x in arrays.items()}, "backbone,fpn")
    """
    choices = _chosen(choice)
    targets = _targets(file, model)
    _demand_same_backbone(model, file, targets)
    _demand_same_sizes(model, file, targets, choices)
    learned = [name for name in model if not name.endswith(COUNTER)]
    parts = {part: [n for n in learned if part_of(n) == part] for part in PARTS}
    parts_of_file, problems = [], []
    for part, names in parts.items():
        if part not in choices or not names:
            continue
        mistakes = _wrong(names, model, file, targets)
        present = [name for name in names if name in targets]
        if not mistakes:
            parts_of_file.append(part)
        elif present and not (part in OF_CLASSES and len(present) == len(names)):
            problems.append(
                f"{part}: {'; '.join(mistakes[:3])}" + ("; ..." if mistakes[3:] else "")
            )
    if problems:
        raise UserError(
            f"the weights do not fit the detector: {' | '.join(problems)}; --parts "
            "leaves parts of the file out"
        )
    names = {n: targets[n] for n in model if n in targets and part_of(n) in parts_of_file}
    sources = set(names.values())
    scratch = tuple(part for part, arrays in parts.items() if arrays and part not in parts_of_file)
    unused = tuple(n for n in file if n not in sources and not n.endswith(COUNTER))
    return Match(names, tuple(parts_of_file), scratch, unused)


def _chosen(choice: str | None) -> set[str]:
    words = list(CHOICES) if choice in (None, "all") else choice.split(",")
    for word in words:
        if word not in CHOICES:
            raise UserError(
                f"--parts {choice}: {word!r} is not one of {', '.join(CHOICES)}, or all"
            )
    if "backbone" not in words:
        raise UserError(f"--parts {choice}: without the backbone, the rest of a file is of no use")
    return {part for word in words for part in CHOICES[word]}


def _targets(file: Shapes, model: Shapes) -> dict[str, str]:
    """The model's name, if it has such an array, -> the file's name."""
    if "conv1.weight" in file and "layer1.0.conv1.weight" in file:  # a classifier
        return {BODY + name: name for name in file if re.match(r"(conv1|bn1|layer\d)\.", name)}
    if STEM not in file:
        kind = next((words for name, words in STRANGERS.items() if name in file), None)
        description = f"it has {kind}" if kind else f"it begins with {', '.join(list(file)[:3])}"
        raise UserError(f"the weights are not torchvision's: {description}; {EXPORT} writes them")
    skipped = _levels(file) - _levels(model)  # RetinaNet has no P2
    if not 0 < skipped < _levels(file):
        return {name: name for name in file}
    targets = {}
    for name in file:
        level = re.match(r"(backbone\.fpn\.(?:inner|layer)_blocks\.)(\d+)(\..*)", name)
        if level is None:
            targets[name] = name
        elif int(level[2]) >= skipped:
            targets[f"{level[1]}{int(level[2]) - skipped}{level[3]}"] = name
    return targets


def _levels(shapes: Shapes) -> int:
    """How many levels an FPN has."""
    return len({m[1] for n in shapes if (m := re.match(r"backbone\.fpn\.inner_blocks\.(\d+)", n))})


def _wrong(names: list[str], model: Shapes, file: Shapes, targets: Mapping[str, str]) -> list[str]:
    """What keeps a part from being taken: too few arrays, or arrays of another shape."""
    missing, mistakes = [name for name in names if name not in targets], []
    if missing and all(re.search(r"fpn\..*_blocks\.\d+\.1\.", name) for name in missing):
        mistakes = ["the file's FPN has no norms (folded, or torchvision's first version)"]
    elif missing:
        mistakes = [f"{len(missing)} of {len(names)} arrays are missing, first {missing[0]}"]
    shapes = [
        f"{name} is {tuple(file[targets[name]])} in the file, {tuple(model[name])} in the detector"
        for name in names
        if name in targets and tuple(file[targets[name]]) != tuple(model[name])
    ]
    return mistakes + shapes


def _demand_same_backbone(model: Shapes, file: Shapes, targets: Mapping[str, str]) -> None:
    theirs, ours = backbone(targets), backbone(model)
    if theirs != ours:
        raise UserError(f"the weights are of a {theirs}, --backbone is {ours}")
    width, stock = file[targets[STEM]][0], model[STEM][0]
    if width != stock:
        raise UserError(
            f"the weights are of a {theirs} of width {width}, torchvision's has {stock}: pre-train "
            f"with --config.model.width={stock}"
        )


def _demand_same_sizes(
    model: Shapes, file: Shapes, targets: Mapping[str, str], parts: set[str]
) -> None:
    """UserError that names the flag for a size of FPN or box head that is not the file's."""
    lateral = "backbone.fpn.inner_blocks.0.0.weight"
    if "fpn" in parts and lateral in targets:
        theirs, ours = file[targets[lateral]][0], model[lateral][0]
        if theirs != ours:
            raise UserError(
                f"the weights' FPN has {theirs} channels, --fpn_channels is {ours}: give it to all "
                "runs that are compared"
            )
    part = "box head's convolutions"
    theirs, ours = (
        len({name.split(".")[2] for name in names if re.match(PARTS[part], name)})
        for names in (targets, model)
    )
    is_rcnn = any(re.match(PARTS["rpn"], name) for name in model)
    if part in parts and is_rcnn and theirs and theirs != ours:
        raise UserError(
            f"the weights' box head has {theirs} convolutions, --head_convs is {ours}: give it to "
            "all runs that are compared"
        )


def backbone(names: Mapping[str, object]) -> str:
    """The ResNet below `backbone.body.`, in words if it is none of BLOCKS."""
    counts = tuple(
        1
        + max(
            (int(m[1]) for n in names if (m := re.match(rf"{BODY}layer{i}\.(\d+)", n))), default=-1
        )
        for i in (1, 2, 3, 4)
    )
    bottleneck = f"{BODY}layer1.0.conv3.weight" in names
    kind = "bottleneck" if bottleneck else "basic"
    return BLOCKS.get((counts, bottleneck), f"ResNet of {counts} {kind} blocks")
