"""The one place where a configuration is checked, before anything is opened, built or written.

    from mcl_jax.settings import door
    door.check(config)  # UserError in one line: the key, its value, what would be right

A configuration that a checkpoint holds passes `completed` instead: it is not refused for being old.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mcl_jax.errors import UserError
from mcl_jax.settings import combinations
from mcl_jax.settings.keys import KEYS, OTHER_SECTIONS, SECTIONS

# What other programs call a key: (their name, the end of ours).
SYNONYMS = {
    "lr": "base_lr",
    "learning_rate": "base_lr",
    "wd": "weight_decay",
    "tau": "temperature",
    "bs": "batch_size",
    "num_workers": "workers",
    "arch": "backbone",
    "num_classes": "classes",
}
LIKENESS = 0.6  # difflib's ratio from which a name counts as meant


def check(config: Any) -> None:
    """Refuses a configuration that cannot work.

    Args:
      config: as configs/base.py: a ConfigDict or nested dicts; lists count as tuples. A section
        `study` may be there too.

    Raises:
      UserError: an unknown, missing or wrong value, or keys that do not go together.

    Example:
      >>> from mcl_jax.configs import base
      >>> config = base.get_config()
      >>> config.log.keep_checkpoints = 0
      >>> check(config)
      Traceback (most recent call last):
      mcl_jax.errors.UserError: log.keep_checkpoints is 0; it must be a whole number from 1 to ...
    """
    plain = as_dict(config)
    values = dict(flattened(plain))
    for key in values:
        check_name(key)
    for key in KEYS:
        if key not in values:
            raise UserError(
                f"the configuration lacks {key}; start from get_config() of configs/base.py"
            )
    for key in KEYS:
        check_value(key, values[key])
    if problem := combinations.problem(plain):
        raise UserError(problem)


def check_name(key: str) -> None:
    """UserError for a key that there is not, with the nearest one."""
    if key in KEYS or key.partition(".")[0] in OTHER_SECTIONS:
        return
    if key in SECTIONS:
        leaves = [name.partition(".")[2] for name in KEYS if name.startswith(key + ".")]
        raise UserError(f"{key} is a section, not a value; its keys are {', '.join(leaves)}")
    if near := nearest(key):
        raise UserError(f"no key {key}; did you mean {near}?")
    section, dot, _ = key.partition(".")
    if dot and (sections := difflib.get_close_matches(section, SECTIONS, 1)):
        raise UserError(f"no key {key}; did you mean a key of the section {sections[0]}?")
    raise UserError(f"no key {key}; configs/base.py lists the keys there are")


def check_value(key: str, value: Any) -> None:
    """UserError for a value that is not of the key's type or outside its range."""
    if not KEYS[key].allows(value):
        raise UserError(f"{key} is {_shown(value)}; it must be {KEYS[key].words()}")


def nearest(key: str) -> str | None:
    """The known key that an unknown one most likely means; None if none is like it."""
    section, dot, leaf = key.rpartition(".")
    candidates = dict.fromkeys((key, f"{section}{dot}{SYNONYMS.get(leaf, leaf)}"))
    scored = [(_likeness(name, other), other) for name in reversed(candidates) for other in KEYS]
    score, best = max(scored, key=lambda pair: pair[0])
    return best if score >= LIKENESS else None


def _likeness(name: str, candidate: str) -> float:
    """1 for equal names; a right last part under another section counts almost as much."""
    (section, _, leaf), (other, _, candidate_leaf) = name.rpartition("."), candidate.rpartition(".")
    of_name, of_leaf, of_section = (
        difflib.SequenceMatcher(None, a, b).ratio()
        for a, b in ((name, candidate), (leaf, candidate_leaf), (section, other))
    )
    return max(of_name, 0.9 * of_leaf + 0.05 * of_section)


def completed(stored: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration with today's keys.

    Keys that are younger than the checkpoint get their defaults; keys that are no more are dropped.

    Args:
      stored: as the checkpoint holds it.
      defaults: configs/base.py's.
    """
    result: dict[str, Any] = {}
    for name, default in defaults.items():
        entry = stored.get(name, default)
        if isinstance(default, Mapping):
            entry = entry if isinstance(entry, Mapping) else {}
            result[name] = {key: entry.get(key, value) for key, value in default.items()}
        else:
            result[name] = entry
    return result


def as_dict(config: Any) -> dict[str, Any]:
    """A ConfigDict, or a mapping, as nested plain dicts; tuples stay tuples."""
    if hasattr(config, "to_dict"):
        return config.to_dict()
    if isinstance(config, Mapping):
        return {name: as_dict(x) if _is_section(x) else x for name, x in config.items()}
    raise UserError(
        f"the configuration is a {type(config).__name__}; get_config() must return a ConfigDict as "
        "configs/base.py does"
    )


def flattened(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """('section.key', value) of nested dicts; an empty section is a value of its own."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and (value or key not in SECTIONS):
            yield from flattened(value, f"{key}.") if value else ((key, value),)
        elif not isinstance(value, Mapping):
            yield key, value


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "to_dict")


def _shown(value: Any) -> str:
    text = repr(tuple(value) if isinstance(value, list) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
