"""ml_collections configurations; base.py holds every key."""

from pathlib import Path


def path_of(name: str) -> str:
    """The file that a short name means: 'demo', or 'mcl:c4,loss=b' with arguments for it.

    What names a file already, or nothing of this folder, stays as it is.

    Example:
      >>> path_of("mcl:c4").endswith("configs/mcl.py:c4")
      True
      >>> path_of("own/config.py")
      'own/config.py'
    """
    stem, colon, argument = name.partition(":")
    if not stem.isidentifier() or Path(stem).is_file():
        return name
    path = Path(__file__).with_name(f"{stem}.py")
    return f"{path}{colon}{argument}" if path.is_file() else name
