"""Configuration keys that were renamed, so that old checkpoints stay readable."""

from collections.abc import Mapping
from typing import Any

RENAMED = {  # section -> old name -> new name
    "knn": {"neighbours": "neighbors"},
    "probe": {"centre_radius": "center_radius"},
}


def modern(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration under today's names; a copy as far as it differs.

    Example: `modern({"knn": {"neighbours": 20}})` is `{"knn": {"neighbors": 20}}`.
    """
    renamed = dict(config)
    for section, names in RENAMED.items():
        if isinstance(renamed.get(section), Mapping):
            own = renamed[section].items()
            renamed[section] = {names.get(key, key): value for key, value in own}
    return renamed
