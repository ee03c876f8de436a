"""A run's checkpoints as it writes them: asynchronous, atomic, sealed, the newest kept."""

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mcl_jax.errors import CannotSave, UserError, one_line
from mcl_jax.runtime import checkpoint_folders, hosts, integrity, saved_state, storage
from mcl_jax.runtime.checkpoint_folders import FOLDER, ITEMS
from mcl_jax.runtime.failed_saves import FailedSaves
from mcl_jax.runtime.orbax_parts import quiet_orbax, state_handler
from mcl_jax.settings.rules import whole_number
from mcl_jax.state import TrainState

PATIENCE_S = 120.0  # that a save may take longer than until the next one


class Checkpointer:
    """Asynchronous, atomic, sealed with digests, the newest `keep` kept. Use as a context manager.

    Orbax writes to a temporary name and renames when complete (or commits, in a bucket), so a killed
    save never looks like a checkpoint; what it left behind is removed at the next start. So this is
    for the folder's owner, see lease.py.

    A save that fails is reported, and the run goes on; after several in a row it ends.

    Attributes:
      before_commit: called in a background thread when a save is complete but for its name.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int):
        self._folder = storage.absolute(workdir) / FOLDER
        self._saving: int | None = None
        self._failed, self._untidy = FailedSaves(self._folder), False
        self.before_commit: Callable[[], None] = lambda: None
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(quiet_orbax())
        self._in_the_way: set[int] = set()  # steps of damaged ones that were not moved
        if jax.process_index() == 0:
            checkpoint_folders.clean(self._folder)
            leftovers = checkpoint_folders.unfinished(self._folder)
            self._in_the_way = {whole_number(folder.name) for folder in leftovers} - {None}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._seal,
                # else its threads wait five minutes for a folder that could not be made
                create_directories_asynchronously=not storage.renames(self._folder),
            ),
        )
        handlers = {"state": state_handler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        # with a process lost, closing would wait for it at a barrier; a save under way has no name
        lost = kind and issubclass(kind, jax.errors.JaxRuntimeError) and jax.process_count() > 1
        hopeless = kind and issubclass(kind, CannotSave) and self._is_saving()
        with self._quiet:
            try:
                if not (lost or hopeless):
                    self._manager.close()
            except Exception:  # the failed save that ends the run is told already
                if kind is None:
                    raise

    def latest_step(self) -> int | None:
        """Of the newest finished checkpoint; None: there is none."""
        # all_steps also lists a save that has only begun
        steps = {*self._manager.all_steps()} - {self._saving} - self._failed.steps
        return max(steps, default=None)

    def restore(
        self,
        abstract: TrainState,
        explain: Callable[[dict[str, Any]], str] = lambda meta: "",
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest intact checkpoint in the shapes and shardings of `abstract`; None: there is none.

        Damaged ones that are newer are moved to WORKDIR/damaged_checkpoints, with a warning.

        Args:
          abstract: what the state is to look like.
          explain: called with the checkpoint's meta before its arrays are looked at; says which keys
            would be the reason if they do not fit, '' for none.

        Raises:
          UserError: if it was written by another architecture, or there are only damaged ones.
        """
        step = self._agreed_step()
        return None if step is None else self._restore(step, abstract, explain)

    def _agreed_step(self) -> int | None:
        """Process 0 looks, for listings of a shared folder may differ between hosts for a while."""
        step, problem = -1, None
        if jax.process_index() == 0:
            try:
                steps = self._manager.all_steps()
                step, obstacles = checkpoint_folders.newest_intact(self._folder, steps)
                self._in_the_way |= obstacles
            except (OSError, UserError) as error:
                problem = error
        if jax.process_count() > 1:
            hosts.meet("checkpoints checked")
            verdict = np.asarray([step, problem is not None], np.int32)
            step, failed = multihost_utils.broadcast_one_to_all(verdict).tolist()
            if failed and problem is None:
                problem = UserError("process 0 found no usable checkpoint; its message says why")
        if problem is not None:
            raise (
                problem
                if isinstance(problem, UserError)
                else UserError(f"the checkpoints in {self._folder} cannot be read: {problem}")
            )
        self._manager.reload()
        return None if step < 0 else step

    def _restore(
        self, step: int, abstract: TrainState, explain: Callable[[dict[str, Any]], str]
    ) -> tuple[TrainState, dict[str, Any]]:
        reason = explain(saved_state.meta(self._folder / str(step)))
        # before orbax does, which reports every array that does not fit in a page of its own
        if difference := integrity.difference(
            saved_state.shapes(self._folder / str(step)), abstract
        ):
            raise UserError(
                f"the checkpoint of step {step} does not fit this config: "
                f"{reason + '; ' if reason else ''}{difference}. Use its own values or a new --workdir"
            )
        placed = ocp.checkpoint_utils.construct_restore_args(abstract)
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(item=abstract, restore_args=placed),
            meta=ocp.args.JsonRestore(),
        )
        restored = self._manager.restore(step, args=arguments)
        return restored.state, saved_state.modern(restored.meta)

    def save(self, state: TrainState, meta: dict[str, Any], *, last: bool = False) -> None:
        """Starts an asynchronous save, once the one before is on disk.

        A save that fails is reported and leaves older checkpoints as they are. A run of one process
        goes on. In a job, the process that failed ends at once, and the others as for a lost host.

        Args:
          state: of the step that it is named by.
          meta: see above.
          last: wait for the one before however long it takes, and try in any case.

        Raises:
          CannotSave: this many saves in a row have failed.
        """
        step = int(state.step)
        if not last and self._hangs():
            self._failed.left_out(step, self._saving, PATIENCE_S)
            self._failed.demand_hope(self.latest_step())
            return
        self._await_last()
        if not last:
            self._failed.demand_hope(self.latest_step())
        if step == self.latest_step():
            return
        arguments = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta | {"step": step})
        )
        self._saving = step
        try:
            if jax.process_count() == 1:  # one process of a job could not tell the others
                self._check_space(state)
            if step in self._in_the_way:
                storage.remove(self._folder / str(step))
                self._in_the_way.remove(step)
            if self._untidy:
                self._tidy()
            self._manager.save(step, args=arguments)
        except Exception as error:  # orbax and tensorstore raise many kinds
            self._report(error)

    def _check_space(self, state: TrainState) -> None:
        """Before orbax finds out page by page."""
        size = sum(x.nbytes for x in jax.tree.leaves(state))
        free = storage.free(self._folder)
        if free is not None and free < size:
            raise OSError(f"it takes {size / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")

    def _hangs(self) -> bool:
        """Whether the last save is still under way after `PATIENCE_S`: a bucket may be away for long.

        Processes of a job would not agree on it, so they wait.
        """
        deadline = time.monotonic() + PATIENCE_S
        while jax.process_count() == 1 and self._is_saving():
            if time.monotonic() > deadline:
                return True
            time.sleep(0.01)
        return False

    def _is_saving(self) -> bool:
        # orbax takes a save that failed at once for one under way
        return self._saving is not None and self._manager.is_saving_in_progress()

    def _await_last(self) -> None:
        if self._hangs():
            print(
                f"the checkpoint of step {self._saving} is still being written after "
                f"{PATIENCE_S:.0f} s; waiting for it",
                file=sys.stderr,
            )
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # as above
            self._report(error)
        else:
            if self._saving is not None:
                self._saving = None
                self._failed.succeeded()

    def _report(self, error: Exception) -> None:
        step, self._saving = self._saving, None
        if jax.process_count() > 1:
            hosts.leave(
                f"stopped: the checkpoint of step {step} was not written, unless its own disk failed "
                f"because another host was lost. Start all of them again with the same command; the "
                f"run goes on from the newest in {self._folder}. ({one_line(error)})"
            )
        self._failed.failed(step, error)
        self._untidy = True
        with contextlib.suppress(Exception):  # as above; the next save tries it again
            self._tidy()

    def _tidy(self) -> None:
        """After a save that failed; its threads may still write, and the next start cleans up."""
        checkpoint_folders.clean(self._folder)
        # orbax already dropped the oldest from its list, but its files are still there
        self._manager.reload()
        self._untidy = False

    def _seal(self) -> None:
        """Called by orbax when a save is complete, right before it gets its name."""
        if jax.process_index() == 0:
            self.before_commit()
            for folder in checkpoint_folders.unfinished(self._folder):
                if folder.name.partition(".")[0] == str(self._saving):
                    integrity.seal(folder, ITEMS)

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          CannotSave: if the last one could not be written.
        """
        self._await_last()
        self._failed.demand_last(self.latest_step())
