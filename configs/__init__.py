"""ml_collections configurations; base.py holds every key."""

import difflib
from pathlib import Path

from mcl_jax import paths
from mcl_jax.errors import UserError


def path_of(name: str) -> str:
    """The file that a short name means: 'demo', or 'mcl:c4,loss=b' with arguments for it.

    What names a file already, or has more than letters, digits and underscores, stays as it is. A
    folder of that name is no file.

    Raises:
      UserError: for a short name that is none of this folder's, with the nearest.

    Example:
      >>> path_of("mcl:c4").endswith("configs/mcl.py:c4")
      True
      >>> path_of("own/config.py")
      'own/config.py'
    """
    stem, argument = paths.split_argument(name)
    if not stem.isidentifier() or Path(stem).is_file():
        return name
    if stem not in (stems := names()):
        if Path(stem).exists():
            return name
        near = difflib.get_close_matches(stem, stems, n=1)
        did_you_mean = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(
            f"no configuration {stem!r}{did_you_mean} There are {', '.join(stems)}; of a file of your "
            "own give the path, with its .py"
        )
    file = Path(__file__).with_name(f"{stem}.py")
    return str(file) if argument is None else f"{file}:{argument}"


def names() -> list[str]:
    """The short names of all configurations."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
