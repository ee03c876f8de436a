"""Digests of a folder's files, so that damage is noticed before it is trained on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

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
    """What is wrong with a sealed folder's files, in words; None if nothing is."""
    folder = Path(folder)
    try:
        digests = json.loads((folder / FILE).read_text())
        files = {folder / name: tuple(entry) for name, entry in digests.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"{FILE} cannot be read: {error}"
    for path, (size, digest) in files.items():
        name = path.relative_to(folder)
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if _sha256(path) != digest:
                return f"the content of {name} has changed"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
