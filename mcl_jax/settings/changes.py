"""What differs between a checkpoint and the run that goes on from it, and what follows from that.

A checkpoint's `meta` holds the plain config, and where they are known `images` (of the training
split), `data_digest` (of the list of its files), `mcl_jax` (version) and `commit`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcl_jax.settings import door, effects
from mcl_jax.settings.keys import KEYS

OTHER_CODE = "results may differ from what the older code would have given"
OTHER_FILES = "other files: " + effects.ORDER
UNKNOWN_KEY = "a key of other code: it is not read"


@dataclass(frozen=True)
class Change:
    """One difference: what it is called, both values, what follows."""

    name: str
    before: Any
    now: Any
    effect: str

    def __str__(self) -> str:
        return f"{self.name} {self.before} -> {self.now}"

    @property
    def line(self) -> str:
        """For the user."""
        return f"{self}: {self.effect}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """All changes between two metas, keys first.

    A key that the checkpoint is too old to have, and data or code that it does not name, count as
    unchanged.
    """
    return [
        *_of_keys(before["config"], now["config"]),
        *_of_data(before, now),
        *_of_code(before, now),
    ]


def _of_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    old, new = (dict(door.flattened(config)) for config in (before, now))
    changes = []
    for key in old:
        if key.partition(".")[0] in door.OTHER_SECTIONS or old[key] == new.get(key, old[key]):
            continue
        effect = KEYS[key].changes if key in KEYS else UNKNOWN_KEY
        changes.append(Change(key, old[key], new[key], effect=effect))
    return changes


def _of_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    old, new = (x.get("images") for x in (before, now))
    if None not in (old, new) and old != new:
        return [Change("images", old, new, effect=effects.ORDER_AND_SCHEDULE)]
    old, new = (x.get("data_digest") for x in (before, now))
    if old and new and old != new:
        return [Change("data_digest", old[:12], new[:12], effect=OTHER_FILES)]
    return []


def _of_code(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    for name in ("mcl_jax", "commit"):
        old, new = before.get(name), now.get(name)
        if old and new and old != new:
            title = "code" if name == "commit" else "mcl_jax version"
            return [Change(title, _short(old), _short(new), effect=OTHER_CODE)]
    return []


def _short(commit: str) -> str:
    """Its first letters; a '+' behind it says that files differ from the commit."""
    return commit if len(commit) <= 12 else commit[:12] + "+" * commit.endswith("+")


def of_arrays(changes: list[Change]) -> list[Change]:
    """Those that may be why a checkpoint's arrays do not fit."""
    return [change for change in changes if change.effect in effects.STATE]
