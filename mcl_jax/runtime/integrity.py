"""Is a checkpoint what was saved, and what is expected? Digests of its files, shapes of its arrays."""

import json
from collections.abc import Sequence
from typing import Any

import jax

from mcl_jax.runtime import storage
from mcl_jax.runtime.storage import Place

FILE = "sha256.json"


def seal(folder: Place, parts: Sequence[str]) -> None:
    """Writes `sha256.json` into the folder: size and digest of every file in those sub-folders.

    Digests are SHA-256; of objects in a bucket the MD5 that it has of each ('md5:...').
    """
    digests = {
        name: [stat.size, stat.digest or storage.digest(folder / name)]
        for name, stat in storage.stats(folder).items()
        if name.partition("/")[0] in parts
    }
    storage.write(folder / FILE, json.dumps(digests, indent=1) + "\n")


def damage(folder: Place) -> str | None:
    """What is wrong with a sealed folder's files, in words; None if nothing is.

    Raises:
      OSError: if a file that is there cannot be read, which need not be damage (a file system away).
    """
    try:
        sealed = json.loads(storage.read(folder / FILE))
        expected = {name: (int(size), str(digest)) for name, (size, digest) in sealed.items()}
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (ValueError, AttributeError, TypeError) as error:
        return f"{FILE} is no list of digests: {error}"
    if not expected:
        return f"{FILE} lists no file"
    files = storage.stats(folder)
    for name in files:
        if name not in expected and _is_sealed(name):
            return f"{FILE} does not list {name}"
    for name, (size, digest) in expected.items():
        if name not in files:
            return f"{name} is missing"
        if files[name].size != size:
            return f"{name} has {files[name].size} bytes instead of {size}"
        if files[name].digest != digest and storage.digest(folder / name, like=digest) != digest:
            return f"the content of {name} has changed"
    return None


def _is_sealed(name: str) -> bool:
    """Whether `seal` would list it: in a sub-folder, and nothing that a system put there (.nfs...)."""
    return "/" in name and not any(part.startswith(".") for part in name.split("/"))


def difference(saved: Any, expected: Any) -> str | None:
    """The first entry in which two states differ in name or shape, in words."""
    saved, expected = _shapes(saved), _shapes(expected)
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            saved_value, expected_value = (x.get(name, "missing") for x in (saved, expected))
            return f"{name} is {saved_value} there and {expected_value} here"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """'params/encoder/...' -> shape; fields, keys and positions alike are names."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in flat}
