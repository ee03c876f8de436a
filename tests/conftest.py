"""Eight CPU devices, and one tiny configuration that every test of the method shares."""

import gc
import importlib.util
import json
import os
from importlib.metadata import version
from pathlib import Path

# Compiling is what the tests spend their time on: a third of the time with these. The HLO is the
# same; what LLVM's optimizer and XLA's own emitters win is lost on networks this small. XLA aborts
# at a flag that it does not know; jaxlib 0.11 knows one less.
QUICK_COMPILE = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if version("jax").startswith("0.10."):
    QUICK_COMPILE += " --xla_cpu_use_fusion_emitters=false"
# All have to stand before JAX is imported anywhere.
FLAGS = ("--xla_force_host_platform_device_count=8", *QUICK_COMPILE.split())
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Of torch and numpy, in tests' processes too: several test processes share the cores already, and
# threads that wait for a core of their own spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
given = os.environ.get("XLA_FLAGS", "").split()
names = {flag.partition("=")[0] for flag in given}
os.environ["XLA_FLAGS"] = " ".join(given + [f for f in FLAGS if f.partition("=")[0] not in names])

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

from mcl_jax.configs import base  # noqa: E402
from mcl_jax.models import resnet, swin  # noqa: E402

# One block a stage: every kind of layer at the shortest compile time.
resnet.ARCHITECTURES["resnet10"] = ((1, 1, 1, 1), False)
resnet.ARCHITECTURES["resnet14"] = ((1, 1, 1, 1), True)
# Odd window: at 32 px every map is padded, the last ones are smaller than a window, res3 shifts.
swin.ARCHITECTURES["swin_tiny"] = swin.Size((1, 2, 1, 1), 3, 8, 2)

# Traced programs are millions of objects that live on: looking through them costs minutes in all.
gc.set_threshold(100_000, 20, 100)


def tiny_config():
    """All parts of the method at their smallest: one block a stage, width 4, 64 px, 4 levels."""
    config = base.get_config()
    config.data.batch_size = 64
    config.data.image_size = 64
    config.data.canvas_size = 64
    config.model.head_convs = 2
    shrink_networks(config)
    return config


def shrink_networks(config):
    """Any configuration with the smallest networks of its kind, on the built-in scenes."""
    swins = config.model.backbone == "swin_t"
    config.data.dataset, config.data.split = "scenes", "train"
    config.data.threads = 1
    config.model.backbone, config.model.width = ("swin_tiny", 8) if swins else ("resnet10", 4)
    config.model.fpn_channels = 8
    config.model.projector_hidden = 16
    config.model.projector_out = 8
    config.model.predictor_hidden = 16
    config.knn.every_epochs = 0.0


# Seconds of every file, as measured by `bash scripts/test.sh --record-seconds` on two idle cores.
SECONDS = Path(__file__).parent / "data" / "seconds.json"
spent: dict[str, float] = {}  # in this run, by file


def pytest_addoption(parser):
    text = "write each file's seconds to tests/data/seconds.json, by which files are ordered"
    parser.addoption("--record-seconds", action="store_true", help=text)


def pytest_collection_modifyitems(items):
    """Longest file first: a long one that starts last would leave the other processes idle."""
    known = json.loads(SECONDS.read_text())
    items.sort(key=lambda item: -known.get(item.path.name, np.inf))


def pytest_collection_finish():
    """What is imported by now stays: collections of garbage need not look through it again."""
    gc.freeze()


def pytest_runtest_logreport(report):
    name = Path(report.location[0]).name
    spent[name] = spent.get(name, 0.0) + report.duration


def pytest_sessionfinish(session):
    worker = hasattr(session.config, "workerinput")
    if session.config.getoption("--record-seconds") and not worker:
        rounded = {name: round(seconds, 1) for name, seconds in sorted(spent.items())}
        SECONDS.write_text(json.dumps(rounded, indent=1) + "\n")


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs of all files together would hold gigabytes and slow down every collection."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
    """Runs and commands in one file's process share the programs that they have in common."""
    values = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in values}

    def configure(settings):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()

    configure(values)
    yield
    configure(before)


@pytest.fixture(scope="session")
def gcs():
    """A Google Cloud Storage server on this machine with the bucket `mcl`; see gcs_server.py."""
    for name in ("gcsfs", "gcp_storage_emulator"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    import gcs_server

    with gcs_server.Service() as service, pytest.MonkeyPatch.context() as environment:
        environment.setenv("STORAGE_EMULATOR_HOST", service.url)
        yield service


@pytest.fixture
def config():
    return tiny_config()


def perturbed(tree, seed=0):
    """Norm scales, biases and running statistics away from 1, 0 (0.1-0.5 hides nothing)."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        name = str(path[-1].key)
        x = np.asarray(x)
        if name in ("scale", "var"):
            return (x * rng.uniform(0.6, 1.4, x.shape)).astype(x.dtype)
        if name in ("bias", "mean"):
            return (x + rng.normal(0, 0.2, x.shape)).astype(x.dtype)
        return x

    return jax.tree_util.tree_map_with_path(leaf, tree)
