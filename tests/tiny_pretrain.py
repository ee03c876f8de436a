"""scripts/pretrain.py with the tests' smallest networks: a process of a job, quick to compile."""

import runpy
import sys
from pathlib import Path

from mcl_jax.models import resnet

if __name__ == "__main__":
    resnet.ARCHITECTURES["resnet10"] = ((1, 1, 1, 1), False)
    script = Path(__file__).resolve().parent.parent / "scripts/pretrain.py"
    sys.argv[0] = str(script)
    runpy.run_path(str(script), run_name="__main__")
