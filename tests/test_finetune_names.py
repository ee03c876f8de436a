"""Which arrays of a file a torchvision detector takes, by lists of torchvision's own names.

Shapes: torch's.
"""

import ast
from pathlib import Path

import pytest

from mcl_jax.errors import UserError
from mcl_jax.finetune import names

DATA = Path(__file__).parent / "data"


def keys_of(name):
    """Name -> shape of a model of torchvision's."""
    rows = [x.split("\t") for x in (DATA / f"keys_torchvision_{name}.txt").read_text().splitlines()]
    return {name: ast.literal_eval(shape) for name, shape, _ in rows}


@pytest.fixture(scope="module")
def mask_rcnn():
    return keys_of("maskrcnn_resnet18")


@pytest.fixture(scope="module")
def retinanet():
    return keys_of("retinanet_resnet18")


@pytest.fixture(scope="module")
def export(mask_rcnn):
    """What `python -m convert --to torchvision --parts all` writes of a ResNet-18."""
    linear = "roi_heads.box_head.5."
    ours = ("backbone.", "roi_heads.box_head.")
    return {n: s for n, s in mask_rcnn.items() if n.startswith(ours) and not n.startswith(linear)}


def classifier_of(detector):
    body = {n.removeprefix(names.BODY): s for n, s in detector.items() if n.startswith(names.BODY)}
    return body | {"fc.weight": (1000, 512), "fc.bias": (1000,)}


def test_every_array_of_a_detector_is_in_one_part(mask_rcnn, retinanet):
    for model in (mask_rcnn, retinanet):
        assert {names.part_of(name) for name in model} <= set(names.PARTS)


def test_an_export_fills_backbone_fpn_and_the_heads_convolutions(mask_rcnn, export):
    found = names.match(mask_rcnn, export)
    assert found.parts == ("backbone", "fpn", "box head's convolutions")
    assert dict(found.names) == {name: name for name in export}
    assert found.unused == ()
    assert "box head's linear layer" in found.scratch
    assert "from scratch: rpn, box head's linear layer" in "\n".join(found.lines())


def test_parts_can_be_left_out(mask_rcnn, export):
    found = names.match(mask_rcnn, export, "backbone")
    assert found.parts == ("backbone",)
    assert all(name.startswith("backbone.body.") for name in found.names)
    assert any(name.startswith("backbone.fpn.") for name in found.unused)
    with pytest.raises(UserError, match="'neck' is not one of backbone, fpn, head, or all"):
        names.match(mask_rcnn, export, "backbone,neck")
    with pytest.raises(UserError, match="without the backbone"):
        names.match(mask_rcnn, export, "fpn")


def test_retinanets_fpn_starts_one_level_higher(retinanet, export):
    """P3 is the second level of an export and the first one of RetinaNet."""
    found = names.match(retinanet, export)
    assert found.parts == ("backbone", "fpn")
    first, second = (f"backbone.fpn.inner_blocks.{i}.0.weight" for i in (0, 1))
    assert found.names[first] == second
    assert found.names["backbone.fpn.layer_blocks.2.1.bias"] == "backbone.fpn.layer_blocks.3.1.bias"
    assert first in found.unused  # P2
    assert found.scratch == ("P6 and P7", "class predictor", "subnets")
    for name, theirs in found.names.items():
        assert export[theirs] == retinanet[name]


def test_a_classifier_fills_the_backbone(mask_rcnn):
    file = classifier_of(mask_rcnn)
    found = names.match(mask_rcnn, file)
    assert found.parts == ("backbone",)
    assert found.names["backbone.body.layer1.0.conv1.weight"] == "layer1.0.conv1.weight"
    assert found.unused == ("fc.weight", "fc.bias")
    counters = [name for name in file if name.endswith(names.COUNTER)]
    assert counters and names.match(mask_rcnn, {n: s for n, s in file.items() if n not in counters})


def test_a_detector_of_other_classes_keeps_all_but_its_predictors(mask_rcnn):
    of_classes = ("box_predictor", "mask_fcn_logits")
    file = {n: (6, *s[1:]) if any(x in n for x in of_classes) else s for n, s in mask_rcnn.items()}
    found = names.match(mask_rcnn, file)
    assert found.scratch == ("box predictor", "mask predictor")
    assert not names.match(mask_rcnn, mask_rcnn).scratch


def test_torchvisions_first_version_gives_its_backbone_alone():
    model = keys_of("maskrcnn_resnet50_fpn_v2")
    file = keys_of("maskrcnn_resnet50_fpn")
    with pytest.raises(UserError, match="FPN has no norms .*--parts leaves parts of the file out"):
        names.match(model, file)
    assert names.match(model, file, "backbone").parts == ("backbone",)


def test_what_does_not_fit_is_named(mask_rcnn, export):
    def refused(file, words, model=mask_rcnn):
        with pytest.raises(UserError, match=words):
            names.match(model, file)

    refused(classifier_of(keys_of("maskrcnn_resnet50_fpn_v2")), "of a resnet50, --backbone is resn")
    refused({n: s for n, s in export.items() if n != "backbone.body.bn1.bias"}, "1 of 100 arrays")
    narrow = {n: (32, *s[1:]) if "fpn" in n else s for n, s in export.items()}
    refused(narrow, "FPN has 32 channels, --fpn_channels is 256")
    head = "roi_heads.box_head"
    fewer = {n: s for n, s in export.items() if not n.startswith((f"{head}.2", f"{head}.3"))}
    refused(fewer, "box head has 2 convolutions, --head_convs is 4")
    more = export | {f"{head}.4.0.weight": (256, 256, 3, 3)}
    refused(more, "box head has 5 convolutions, --head_convs is 4")
    wider = export | {f"{head}.1.0.weight": (256, 256, 1, 1)}
    refused(wider, r"box_head.1.0.weight is \(256, 256, 1, 1\) in the file")
    refused(export | {names.STEM: (16, 3, 7, 7)}, "of width 16, torchvision's has 64")
    refused({"stem.conv1.weight": (64, 3, 7, 7)}, "Detectron2's names; mcl-jax convert RUN")
    refused({"features.0.0.weight": (96, 3, 4, 4)}, "a Swin, of which torchvision has no detector")
    refused({"x": (1,), "y": (2,)}, "it begins with x, y")
