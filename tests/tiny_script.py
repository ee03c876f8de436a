"""A script of scripts/ with the tests' smallest networks: a process of its own, quick to compile.

python tests/tiny_script.py NAME.py ARGUMENTS
"""

import runpy
import sys
from pathlib import Path

from mcl_jax.models import resnet


def run(name: str) -> None:
    """scripts/NAME with the arguments of this process."""
    resnet.ARCHITECTURES["resnet10"] = ((1, 1, 1, 1), False)
    sys.modules["torch"] = None  # tensorboardX would import it: a second of every process
    script = Path(__file__).resolve().parent.parent / "scripts" / name
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    run(sys.argv.pop(1))
