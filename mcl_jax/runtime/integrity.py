"""Is a checkpoint what was saved, and what is expected? Digests of its files, shapes of its arrays."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

FILE = "sha256.json"


def seal(folder: str | Path, parts: Sequence[str]) -> None:
    """Writes `sha256.json` into the folder: size and SHA-256 of every file in those sub-folders."""
    folder = Path(folder)
    digests = {
        str(path.relative_to(folder)): [path.stat().st_size, _sha256(path)]
        for part in parts
        for path in sorted((folder / part).rglob("*"))
        if path.is_file()
    }
    (folder / FILE).write_text(json.dumps(digests, indent=1) + "\n")


def damage(folder: str | Path) -> str | None:
    """What is wrong with a sealed folder's files, in words; None if nothing is.

    Raises:
      OSError: if a file that is there cannot be read, which need not be damage (a file system away).
    """
    folder = Path(folder)
    try:
        digests = json.loads((folder / FILE).read_text())
        files = {folder / name: tuple(entry) for name, entry in digests.items()}
    except FileNotFoundError:
        return f"{FILE} is missing"
    except (ValueError, AttributeError, TypeError) as error:
        return f"{FILE} is no list of digests: {error}"
    for path, (size, digest) in files.items():
        name = path.relative_to(folder)
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if _sha256(path) != digest:
                return f"the content of {name} has changed"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def difference(saved: Any, expected: Any) -> str | None:
    """The first entry in which two states differ in name or shape, in words."""
    saved, expected = _shapes(saved), _shapes(expected)
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            found, wanted = (x.get(name, "missing") for x in (saved, expected))
            return f"{name} is {found} there and {wanted} here"
    return None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """'params/encoder/...' -> shape; fields, keys and positions alike are names."""
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x.shape for path, x in flat}
