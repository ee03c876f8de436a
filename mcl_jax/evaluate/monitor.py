"""kNN accuracy during training, on the run's own devices."""

import logging

import jax
import numpy as np

from mcl_jax import sharding
from mcl_jax.data import pipeline
from mcl_jax.data.record import Source
from mcl_jax.data.sources import open_source
from mcl_jax.evaluate import knn
from mcl_jax.program import Program
from mcl_jax.state import TrainState

log = logging.getLogger(__name__)


class KnnMonitor:
    """Evaluates the online backbone every `knn.every_epochs`, before step 1 and at the end.

    Data without labels switches it off (with a message). Splits are opened at once, so that a
    wrong name fails before training, not after hours.

    Args:
      run: the program whose config says what to evaluate, and when.
      trained_on: the training split; its first record tells whether there are labels.
    """

    def __init__(self, run: Program, trained_on: Source):
        self._run = run
        settings = run.config["knn"]
        self._every = round(settings["every_epochs"] * run.steps_per_epoch)
        self._sources: list[Source] = []
        if settings["every_epochs"] <= 0:
            return
        data = run.config["data"]
        if trained_on[0].label < 0:
            log.warning("%s has no labels: kNN accuracy is not measured", data["dataset"])
            return
        splits = (settings["bank_split"], settings["query_split"])
        self._sources = [
            open_source(data["dataset"], split, data["data_dir"] or None) for split in splits
        ]
        sharding.images_per_device(settings["batch_size"], run.mesh, "knn.batch_size")
        self._features = knn.feature_function(run.config, run.objective.encoder, run.mesh)

    def due(self, step: int) -> bool:
        """Whether to evaluate after this many steps."""
        if not self._sources:
            return False
        return step == self._run.total_steps or (self._every > 0 and step % self._every == 0)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """{'knn': accuracy in [0, 1]} of the current online backbone; {} if switched off."""
        if not self._sources:
            return {}
        (bank, bank_labels), (queries, labels) = (self._collect(s, state) for s in self._sources)
        settings = self._run.config["knn"]
        predicted = knn.classify(
            bank,
            bank_labels,
            queries,
            neighbours=settings["neighbours"],
            temperature=settings["temperature"],
        )
        return {"knn": float(np.mean(predicted == labels))}

    def _collect(self, source: Source, state: TrainState) -> tuple[np.ndarray, np.ndarray]:
        data, settings = self._run.config["data"], self._run.config["knn"]
        with pipeline.evaluation_batches(
            source,
            canvas_size=data["canvas_size"],
            batch_size=settings["batch_size"],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            workers=data["workers"],
            threads=data["threads"],
            max_unreadable_share=data["max_unreadable_share"],
            min_images_judged=data["unreadable_grace"],
        ) as batches:
            return knn.collect(
                self._features,
                state.params["encoder"],
                state.batch_stats["encoder"],
                batches,
                self._run.mesh,
                settings["max_images"],
            )
