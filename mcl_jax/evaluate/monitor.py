"""kNN accuracy and scale consistency during and after training, on the run's own devices."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mcl_jax import sharding
from mcl_jax.data import loader_settings, pipeline
from mcl_jax.data.record import Source, why_unlabeled
from mcl_jax.data.sources import open_source
from mcl_jax.errors import EmptySplit, UserError
from mcl_jax.evaluate import embedding, knn
from mcl_jax.models.backbone import Architecture, check_backbone
from mcl_jax.models.encoder import Encoder
from mcl_jax.models.pyramid import COARSEST, PYRAMID_LEVELS
from mcl_jax.objectives.build import make_objective, numerics_of
from mcl_jax.program import Program
from mcl_jax.report.progress import Bar
from mcl_jax.settings.records import fill
from mcl_jax.state import TrainState

logger = logging.getLogger(__name__)

# px; smaller images than this say nothing about a backbone of stride 32
LEAST_SIDE = 8


def shrink_factors(shrinks: Iterable[int], image_size: int) -> tuple[int, ...]:
    """The factors of `knn.shrinks` that leave at least 8 px."""
    return tuple(factor for factor in shrinks if image_size // factor >= LEAST_SIDE)


class KnnEvaluation:
    """What `config.knn` describes, for any encoder; compiled at its first call.

    Queries are classified at full size and shrunk by `knn.shrinks`; the bank is always at full
    size. Splits are opened at once, so that a wrong name fails before hours of work.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        encoder: nn.Module,
        mesh: Mesh,
        levels: Sequence[int] = (),
    ):
        """
        Args:
          config: as configs/base.py; sections data, augment and knn are read.
          encoder: see `embedding.feature_functions`.
          mesh: devices to run on.
          levels: montage levels that the encoder was trained on; see `embedding.feature_functions`.

        Raises:
          UserError: for a wrong value, data set or split, and for images without labels.
        """
        data, knn_settings = config["data"], config["knn"]
        sharding.images_per_device(knn_settings["batch_size"], mesh, "knn.batch_size")
        self._config, self._mesh = config, mesh
        factors = (1, *shrink_factors(knn_settings["shrinks"], data["image_size"]))
        self._splits = (knn_settings["bank_split"], knn_settings["query_split"])
        self._sources = [
            open_source(data["dataset"], split, data["data_dir"] or None) for split in self._splits
        ]
        for source, split in zip(self._sources, self._splits, strict=True):
            if reason := why_unlabeled(source):
                raise UserError(
                    f"split {split!r} of {data['dataset']} has no labels ({reason}); kNN accuracy "
                    "needs a TFDS data set with a label, or a folder whose sub-folders are the classes"
                )
        self._view = embedding.view_function(config, mesh)
        self._features = embedding.feature_functions(encoder, mesh, factors, levels=levels)

    def __call__(
        self, params: Any, batch_stats: Any, *, progress: bool = False
    ) -> dict[str, float]:
        """Accuracies in [0, 1] under the names of `knn.measure`.

        Args:
          params: of the encoder.
          batch_stats: its running statistics; empty if it has none.
          progress: show a bar.

        Raises:
          UserError: for a split without a readable, labeled image.
        """
        variables = {"params": params} | ({"batch_stats": batch_stats} if batch_stats else {})
        variables = jax.device_put(variables, sharding.replicated(self._mesh))
        knn_settings = self._config["knn"]
        bank = self._collect(0, variables, features=self._features[:1], progress=progress)
        queries = self._collect(1, variables, features=self._features, progress=progress)
        return knn.measure(
            bank,
            queries,
            neighbors=knn_settings["neighbors"],
            temperature=knn_settings["temperature"],
            mesh=self._mesh,
            chunk=knn_settings["batch_size"],
        )

    def _collect(
        self, which: int, variables: Any, features: Sequence, *, progress: bool
    ) -> dict[str, knn.Rows]:
        data, knn_settings = self._config["data"], self._config["knn"]
        source, split = self._sources[which], self._splits[which]
        count = min(len(source), knn_settings["max_images"])
        loader = loader_settings.of_this_process(data, knn_settings["batch_size"])
        batches = pipeline.evaluation_batches(source, loader)
        total = -(-count // knn_settings["batch_size"])
        first_batches = islice(batches, total)
        with batches, Bar(first_batches, split, total, unit="batch", disable=not progress) as bar:
            rows = knn.collect(
                bar, variables, view=self._view, features=features, mesh=self._mesh, limit=count
            )
        if not knn.images(rows[""]):
            raise UserError(
                f"split {split!r} of {data['dataset']} holds no readable image with a label among "
                f"the first {count}"
            )
        return rows


def evaluate_checkpoint(
    state: Mapping[str, Any], config: Mapping[str, Any], mesh: Mesh
) -> dict[str, float]:
    """The values of `knn.measure` for the online backbone of a checkpoint of any method.

    Args:
      state: of `checkpoint.read`.
      config: the checkpoint's, with the `knn` and `data` sections to evaluate by; a `knn.batch_size`
        that does not divide over the devices is rounded (it changes no result).
      mesh: devices to run on.

    Raises:
      UserError: as `KnnEvaluation`; for a backbone that the config does not describe.

    Example:
      state, meta = checkpoint.read("runs/mcl")
      evaluate_checkpoint(state, meta["config"], sharding.make_mesh())["knn"]
    """
    encoder = encoder_of(config)
    batch_size = max(1, config["knn"]["batch_size"] // mesh.size) * mesh.size
    config = {**config, "knn": {**config["knn"], "batch_size": batch_size}}
    params, stats = (read_parts(state.get(part)) for part in ("params", "batch_stats"))
    evaluation = KnnEvaluation(config, encoder, mesh=mesh, levels=trained_levels(params, config))
    return evaluation(params, stats, progress=jax.process_index() == 0)


def encoder_of(config: Mapping[str, Any]) -> Encoder:
    """The online network of a checkpoint of any method, for one device or as part of a mesh.

    All methods' encoders have the same backbone under this name; this one's pyramid and head are to
    be read only where the method trained them.

    Raises:
      UserError: for a backbone that there is not.
    """
    check_backbone(config["model"]["backbone"])
    return Encoder(fill(Architecture, config["model"]), numerics_of(config))


def trained_levels(params: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, ...]:
    """Montage levels that the online encoder with these parameters was trained on."""
    if "head" not in params:  # a method without a pyramid
        return ()
    # the levels are the same for every number of images that fills canvases
    return make_objective(config, 4**PYRAMID_LEVELS, norm_axis=None).trained_levels


def read_parts(collection: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is read of encoder/; a network without BN has no such statistics."""
    encoder = (collection or {}).get("encoder") or {}
    return {part: encoder[part] for part in ("backbone", "fpn", "head") if encoder.get(part)}


def as_text(values: Mapping[str, float]) -> str:
    """The values of `knn.measure` as lines of text."""
    lines = ["queries       read at   own class   own image"]
    for name, value in values.items():
        measured, slash, reading = name.partition("/")
        if measured != "knn":
            continue
        image = values.get(f"retrieval{slash}{reading}")
        place = reading if reading.startswith("P") else "res5"
        factor = 2 ** (COARSEST - int(reading[1:])) if place == reading else reading[6:]
        size = f"shrunk {factor}x" if str(factor) not in ("", "1") else "full size"
        lines.append(
            f"{size:<13} {place:<7} {value:>11.1%}   " + ("" if image is None else f"{image:>9.1%}")
        )
    return "\n".join(line.rstrip() for line in lines)


class KnnMonitor:
    """Evaluates the online backbone every `knn.every_epochs`, before step 1 and at the end.

    Data without labels, or with a split that is empty, switches it off (with a message).

    Args:
      run: the program whose config says what to evaluate, and when.
      trained_on: the training split; its first record tells whether there are labels.
    """

    def __init__(self, run: Program, trained_on: Source):
        self._total_steps = run.total_steps
        every_epochs = run.config["knn"]["every_epochs"]
        self._every = round(every_epochs * run.steps_per_epoch)
        self._evaluation: KnnEvaluation | None = None
        if every_epochs <= 0:
            return
        if why_unlabeled(trained_on):
            dataset = run.config["data"]["dataset"]
            logger.warning("%s has no labels: kNN accuracy is not measured", dataset)
            return
        encoder, levels = run.objective.encoder, run.objective.trained_levels
        try:
            self._evaluation = KnnEvaluation(run.config, encoder, mesh=run.mesh, levels=levels)
        except EmptySplit as error:  # too few images for the configured shares
            logger.warning("%s: kNN accuracy is not measured", error)

    def due(self, step: int) -> bool:
        """Whether to evaluate after this many steps."""
        if self._evaluation is None:
            return False
        return step == self._total_steps or (self._every > 0 and step % self._every == 0)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Accuracies of the current online backbone (`knn.measure`); {} if switched off."""
        if self._evaluation is None:
            return {}
        return self._evaluation(*_read_of(state))

    def later(self, state: TrainState) -> Callable[[], dict[str, float]]:
        """A call that gives what `evaluate` would give now, after a step has overwritten the state."""
        if self._evaluation is None:
            return dict
        return partial(self._evaluation, *_copied(_read_of(state)))


def _read_of(state: TrainState) -> tuple[Any, Any]:
    return state.params["encoder"], state.batch_stats.get("encoder", {})


@jax.jit
def _copied(arrays: Any) -> Any:
    """The same values in buffers of their own."""
    return jax.tree.map(jnp.copy, arrays)
