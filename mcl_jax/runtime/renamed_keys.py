"""Names that were changed, so that old checkpoints and results stay readable."""

from collections.abc import Mapping
from typing import Any

RENAMED = {  # section -> old name -> new name
    "knn": {"neighbours": "neighbors"},
    "probe": {"centre_radius": "center_radius"},
}

SCORES = {"backbone/": "backbone@all/", "finetuned/": "tuned@all/"}  # beginnings of scores' names


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration under today's names; a copy as far as it differs.

    Example: `modern({"knn": {"neighbours": 20}})` is `{"knn": {"neighbors": 20}}`.
    """
    renamed = dict(config)
    for section, names in RENAMED.items():
        if isinstance(renamed.get(section), Mapping):
            items = renamed[section].items()
            renamed[section] = {names.get(key, key): value for key, value in items}
    return renamed


def modern_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """A finished run's scores under today's names.

    Example: `modern_scores({"finetuned/ap": 0.5})` is `{"tuned@all/ap": 0.5}`.
    """
    renamed = {}
    for name, value in scores.items():
        old = next((beginning for beginning in SCORES if name.startswith(beginning)), "")
        renamed[SCORES.get(old, "") + name.removeprefix(old)] = value
    return renamed
