"""The training and the test set of a probe, opened as `config.probe` names them."""

import ast
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mcl_jax.errors import UserError
from mcl_jax.evaluate.detection.boxed_images import BoxedSet
from mcl_jax.evaluate.detection.boxed_sources import BoxedSource, CocoSource, open_boxes
from mcl_jax.settings import combinations, door

COCO_JSON = "coco_json"
_SIDES = ("train", "test")


class ProbeData(NamedTuple):
    """Labeled images to train on and to test on, of the same classes."""

    train: BoxedSet
    test: BoxedSet


def load(config: Mapping[str, Any]) -> ProbeData:
    """Opens what `probe.prepare` takes as `data`; the same configuration gives the same object again.

    Args:
      config: `probe` is read, and `data.data_dir`, `data.max_unreadable_share`.

    Raises:
      UserError: a data set or file that is missing, has no boxes, or is smaller than asked for;
        classes that differ between training and test.

    Example:
      data = load(config)
      prepared = prepare(config, architecture, numerics, variables, mode="tuned", seed=0, data=data)
    """
    probe, data = config["probe"], config["data"]
    names = ("dataset", "image_size", "train_images", "eval_images", "cache_gb")
    names += tuple(f"{side}_{kind}" for side in _SIDES for kind in ("split", "json", "folder"))
    values = tuple((name, probe[name]) for name in names)
    return _load(values, data["data_dir"] or None, data["max_unreadable_share"])


@functools.lru_cache(maxsize=4)
def _load(values: tuple, data_dir: str | None, max_unreadable: float) -> ProbeData:
    probe = dict(values)
    train, test = (_open(probe, side, data_dir) for side in _SIDES)
    if train.class_names != test.class_names:
        raise UserError(
            f"the classes differ: {', '.join(train.class_names)} in training, "
            f"{', '.join(test.class_names)} in the test"
        )

    def chosen(source: BoxedSource, key: str) -> BoxedSet:
        count = probe[key] or len(source)
        if count > len(source):
            raise UserError(f"probe.{key} is {count}, the data set has {len(source)} images")
        return BoxedSet(
            source=source,
            rows=range(count),
            image_size=probe["image_size"],
            cache_bytes=int(probe["cache_gb"] * 1e9),
            max_unreadable=max_unreadable,
        )

    return ProbeData(chosen(train, "train_images"), chosen(test, "eval_images"))


def _open(probe: Mapping[str, Any], side: str, data_dir: str | None) -> BoxedSource:
    if probe["dataset"] != COCO_JSON:
        return open_boxes(probe["dataset"], probe[f"{side}_split"], data_dir)
    for kind, meaning in (("json", "annotation file"), ("folder", "folder of images")):
        if not probe[f"{side}_{kind}"]:
            raise UserError(f"the {side} set's {meaning} is missing (probe.{side}_{kind})")
    return CocoSource(probe[f"{side}_json"], probe[f"{side}_folder"])


def choose(probe: dict[str, Any], assignments: Sequence[str]) -> None:
    """Completes the section `probe` with what a command line says.

    JSON paths imply the data set; on any but the scenes all images are used unless the assignments
    say otherwise.

    Args:
      probe: the section; changed.
      assignments: 'KEY=VALUE', values as Python writes them.

    Raises:
      UserError: an unknown key, a value that its key does not allow, or keys that do not go together.
    """
    if any(probe[f"{side}_json"] for side in _SIDES):
        probe["dataset"] = COCO_JSON
    if probe["dataset"] != "scenes":
        probe["train_images"] = probe["eval_images"] = 0
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or key not in probe:
            raise UserError(f"--set {assignment}: not KEY=VALUE with a key of {', '.join(probe)}")
        value = _value(text, probe[key], assignment)
        door.check_value(f"probe.{key}", value)
        probe[key] = value
    if problem := combinations.of_probe(probe):
        raise UserError(problem)


def _value(text: str, before: Any, assignment: str) -> Any:
    """The text as a value of the same type as the one before."""
    if isinstance(before, str):
        return text
    try:
        value = ast.literal_eval(text)
        if isinstance(before, tuple | list):
            value = tuple(value) if isinstance(value, tuple | list) else (value,)
            kinds = {type(item) for item in before}
            if float in kinds:
                return tuple(map(float, value))
            if all(type(item) in kinds for item in value):
                return value
        elif isinstance(before, float):
            return float(value)
        elif type(value) is type(before):
            return value
    except (SyntaxError, TypeError, ValueError):
        pass
    raise UserError(f"--set {assignment}: {text!r} is no value like {before!r}")
