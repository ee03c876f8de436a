"""Where metrics can be looked at while a run goes on: TensorBoard, Weights & Biases, MLflow.

The record is metrics.jsonl (metrics.py); these sinks get copies of its rows. One that fails is left,
with one warning: training goes on.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Protocol

from mcl_jax.errors import UserError, one_line
from mcl_jax.runtime import growing_log, storage
from mcl_jax.runtime.storage import Place
from mcl_jax.settings import door

logger = logging.getLogger(__name__)
# What pip installs, by the writer.
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
_PREFIX = "mcl_jax"  # of paths whose event files are logs of ours
ID_FILE = "{}_run.txt"  # in the workdir: by which id a service knows this run


@dataclass(frozen=True)
class About:
    """What a run's writers are told.

    Attributes:
      writers: `log.writers`.
      project: `log.project`.
      config: of the run, plain.
    """

    writers: tuple[str, ...] = ("jsonl", "tensorboard")
    project: str = "mcl_jax"
    config: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """One writer."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def demand_installed(writers: tuple[str, ...]) -> None:
    """UserError for a writer whose package is not there."""
    for name in writers:
        if name in PACKAGES and find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"log.writers holds {name!r}, but its package is not installed: "
                f"pip install 'mcl_jax[{name}]'"
            )


def demand_place(writers: tuple[str, ...], workdir: Place) -> None:
    """UserError for a writer that has nowhere to write to."""
    if (
        "mlflow" in writers
        and storage.local(workdir) is None
        and not os.environ.get("MLFLOW_TRACKING_URI")
    ):
        raise UserError(
            f"log.writers holds 'mlflow', which cannot write to {workdir}: set MLFLOW_TRACKING_URI to "
            "a server, or to a folder of this machine (file:///FOLDER)"
        )


def open_sinks(workdir: Place, resume_step: int, about: About) -> list[Sink]:
    """The sinks that `log.writers` names, in its order."""
    return [
        _Guarded(name, lambda make=SINKS[name]: make(workdir, resume_step, about))
        for name in about.writers
        if name in SINKS
    ]


class TensorBoard:
    """Event files in WORKDIR/tensorboard."""

    def __init__(self, workdir: Place, resume_step: int, about: About):
        self._folder, self._resume_step = workdir / "tensorboard", resume_step
        storage.make_folder(self._folder)

    @cached_property
    def _events(self) -> Any:
        # At the first write, when the first step is under way: it imports torch where there is one,
        # seconds that only the writing process needs.
        from tensorboardX import SummaryWriter, record_writer

        record_writer.register_writer_factory(_PREFIX, _EventFiles)
        folder = f"{_PREFIX}:{self._folder}"
        return SummaryWriter(folder, purge_step=self._resume_step + 1, flush_secs=30)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        if "_events" in self.__dict__:
            self._events.close()


class _EventFiles:
    """How tensorboardX opens a file: its own writing thread would die of a full disk."""

    @staticmethod
    def directory_check(path: str) -> None:
        """The folder was made before."""

    @staticmethod
    def open(path: str) -> growing_log.Log:
        return growing_log.open_log(storage.locate(path.removeprefix(f"{_PREFIX}:")))


class Wandb:
    """Weights & Biases: project `log.project`, the run's name is the workdir's.

    $WANDB_MODE=offline leaves everything in WORKDIR/wandb, for `wandb sync`; if the workdir is in a
    bucket, in $WANDB_DIR/wandb or ./wandb. A resumed run goes on under its id; steps that it had
    reported already are kept as they were.
    """

    def __init__(self, workdir: Place, resume_step: int, about: About):
        import wandb

        id_file = workdir / ID_FILE.format("wandb")
        folder = storage.local(workdir) or os.environ.get("WANDB_DIR") or os.getcwd()
        self._run = wandb.init(
            project=about.project,
            name=_name(workdir),
            dir=str(folder),
            id=_known(id_file),
            resume="allow",
            config=dict(about.config),
            settings=wandb.Settings(silent=True, console="off"),
        )
        storage.write(id_file, f"{self._run.id}\n")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """MLflow: experiment `log.project`, at $MLFLOW_TRACKING_URI or in WORKDIR/mlruns.

    In a bucket there is the first alone, see `demand_place`.
    """

    def __init__(self, workdir: Place, resume_step: int, about: About):
        from mlflow import MlflowClient

        with _file_store_allowed():
            demand_place(("mlflow",), workdir)
            folder = storage.local(workdir)
            uri = os.environ.get("MLFLOW_TRACKING_URI")
            if not uri and folder is not None:
                uri = (folder / "mlruns").resolve().as_uri()
            self._client = MlflowClient(tracking_uri=uri)
            place = workdir / ID_FILE.format("mlflow")
            if number := _known(place):
                self._id = number
                self._client.update_run(self._id, status="RUNNING")
            else:
                self._id = self._new(_name(workdir), about)
                storage.write(place, f"{self._id}\n")

    def _new(self, name: str, about: About) -> str:
        """The id of a run that is begun."""
        from mlflow.entities import Param

        project = self._client.get_experiment_by_name(about.project)
        number = project.experiment_id if project else self._client.create_experiment(about.project)
        run = self._client.create_run(number, run_name=name).info.run_id
        for batch in _batches(
            [Param(key, str(x)[:500]) for key, x in door.flattened(about.config)]
        ):
            self._client.log_batch(run, params=batch)
        return run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1e3 * time.time())
        for batch in _batches([Metric(name, x, now, step) for name, x in values.items()]):
            self._client.log_batch(self._id, metrics=batch)

    def close(self) -> None:
        self._client.set_terminated(self._id)


SINKS: dict[str, Callable[[Place, int, About], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def _known(place: Place) -> str | None:
    """The id that a service gave this run; None: it is new."""
    return storage.read(place).decode().strip() if storage.is_file(place) else None


def _name(workdir: Place) -> str:
    folder = storage.local(workdir)
    return workdir.name if folder is None else folder.resolve().name


class _Guarded:
    """A sink that does not end the run when it fails."""

    def __init__(self, name: str, make: Callable[[], Sink]):
        self._name = name
        self._sink: Sink | None = None
        self._try(lambda: setattr(self, "_sink", make()))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if sink := self._sink:
            self._try(lambda: sink.write(step, values))

    def close(self) -> None:
        if sink := self._sink:
            self._try(sink.close)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # a service may raise anything
            self._sink = None
            logger.warning(
                "writer %s failed, the run goes on without it: %s", self._name, one_line(error)
            )


@contextlib.contextmanager
def _file_store_allowed() -> Iterator[None]:
    """MLflow keeps runs in plain files only where it is told that this is meant."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    before = os.environ.get(name)
    os.environ[name] = before or "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _batches(items: list[Any], size: int = 100) -> Iterator[list[Any]]:
    """MLflow takes so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
