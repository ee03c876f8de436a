"""Which code made something."""

import subprocess
from pathlib import Path


def commit() -> str:
    """The git commit of this checkout, with '+' if files differ from it; '' outside a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():  # installed: a repository around it would be somebody else's
        return ""
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()
