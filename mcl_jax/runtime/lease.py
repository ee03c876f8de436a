"""One owner per folder: WORKDIR/owner/N.json says who works there.

File locks are missing on many network file systems and on buckets, so this is a lease: a small JSON
file that is created where there is none (which one of several can do), says who owns the folder,
and is written again every `HEARTBEAT_S` seconds. A new start takes a folder over if its owner is
gone. It knows

- at once, if the owner's machine is this one: its process is not there any more, or another one has
  its number; or the machine was started anew since;
- after `EXPIRED_S` seconds without a heartbeat, if it is another machine. A heartbeat in that time
  refuses the start. Clocks are not compared, for those of two machines may differ.

A process that was away for longer than `EXPIRED_S` (suspended, say) looks whether it still owns the
folder before it writes again. In a job of several processes the first one holds the lease for all.
"""

import contextlib
import errno
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mcl_jax.errors import CannotSave, UserError, one_line
from mcl_jax.runtime import leaving, machine, storage, workdir_names
from mcl_jax.runtime.optional import optional
from mcl_jax.runtime.storage import Place
from mcl_jax.settings.rules import whole_number

FOLDER = "owner"
HEARTBEAT_S = 10.0
EXPIRED_S = 60.0
_POLL_S = 1.0


class Held(UserError):
    """The folder belongs to another run."""


class Lease:
    """A folder that this process owns; made by `hold`."""

    def __init__(self, folder: Place, number: int, record: dict[str, Any]):
        self._folder, self._number, self._record = folder / FOLDER, number, record
        self._ended = threading.Event()
        self._lost: str | None = None
        self._renewed = time.monotonic()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raises `Held` if another run has taken the folder over; looks at nothing but memory."""
        if self._lost is not None:
            raise Held(self._lost)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            with optional("the owner's sign of life"):
                if time.monotonic() - self._renewed > EXPIRED_S and (owner := self._taken()):
                    self._lost = (
                        f"{self._folder.parent} was taken over by {who(owner)} while this process "
                        f"was away for more than {EXPIRED_S:.0f} s; it ends and leaves the folder alone"
                    )
                    return
                self._record["heartbeat"] += 1
                self._write()

    def _write(self) -> None:
        storage.write(self._folder / f"{self._number}.json", json.dumps(self._record))
        self._renewed = time.monotonic()

    def _taken(self) -> dict[str, Any] | None:
        """The record of a newer owner."""
        newer = [number for number in _numbers(self._folder) if number > self._number]
        return _read(self._folder, newer[-1]) if newer else None

    def release(self) -> None:
        """Gives the folder back; the lease's file and folder go away."""
        self._ended.set()
        if self._heart is not threading.current_thread():
            self._heart.join(2)
        with contextlib.suppress(OSError):
            storage.remove(self._folder / f"{self._number}.json")
            storage.remove_empty(self._folder)


_held: dict[str, tuple[int, Lease | None]] = {}  # folder -> thread, its lease


@contextlib.contextmanager
def hold(folder: str | os.PathLike) -> Iterator[Lease | None]:
    """Owns a folder (made if there is none) as long as the context is open.

    A caller that owns it already may ask again; the outermost context gives it back.

    Args:
      folder: that no other run shall write to.

    Yields:
      The lease; None on all but the first process of a job.

    Raises:
      Held: another run is at it; the message names its host, process and start.
      UserError: nothing can be written there (CannotSave if for want of room), or something else
        lies there under a name that a run uses.
    """
    place = storage.absolute(folder)
    thread, lease = _held.get(str(place), (None, None))
    if thread == threading.get_ident():
        yield lease
        return
    lease = _agreed(place)
    _held[str(place)] = (threading.get_ident(), lease)
    try:
        yield lease
    finally:
        del _held[str(place)]
        if lease is not None:
            lease.release()


def release_all() -> None:
    """Before this process ends without unwinding (os._exit)."""
    for _, lease in [*_held.values()]:
        if lease is not None:
            lease.release()


leaving.before(release_all)


def who(record: Mapping[str, Any]) -> str:
    """'host h, process 12, since 2026-01-02 03:04:05': a holder in words."""
    return f"host {record['host']}, process {record['pid']}, since {record['since']}"


def _agreed(folder: Place) -> Lease | None:
    """The first process takes the lease; the others learn whether it could."""
    jax = sys.modules.get("jax")  # only a process that uses it may be one of several
    if jax is None or jax.process_count() == 1:
        return _take(folder)
    import numpy as np
    from jax.experimental import multihost_utils

    from mcl_jax.runtime import hosts

    lease, problem = None, None
    if jax.process_index() == 0:
        try:
            lease = _take(folder)
        except UserError as error:
            problem = error
    hosts.meet("owner known")
    failed = multihost_utils.broadcast_one_to_all(np.int32(problem is not None))
    if failed and problem is None:
        problem = UserError("process 0 could not take the folder; its message says why")
    if problem is not None:
        raise problem
    return lease


def _take(folder: Place) -> Lease:
    leases = folder / FOLDER
    workdir_names.demand_usable(folder)
    try:
        before = _numbers(leases)
        if before:
            _refuse_if_alive(folder, before[-1])
        number, record = before[-1] + 1 if before else 1, machine.myself()
        _create(leases, number, record)
        if {*_numbers(leases)} - {*before, number}:  # another start began again at 1
            storage.remove(leases / f"{number}.json")
            raise Held(f"{folder}: another run took it at this moment")
        for old in before:
            storage.remove(leases / f"{old}.json")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        kind = CannotSave if full else UserError
        raise kind(f"nothing can be written to {folder}: {one_line(error)}") from error
    return Lease(folder, number, record)


def _create(leases: Place, number: int, record: Mapping[str, Any]) -> None:
    for attempt in range(3):
        storage.make_folder(leases)
        try:
            storage.create(leases / f"{number}.json", json.dumps(record).encode())
            return
        except FileExistsError:
            raise Held(f"{leases.parent}: another run took it at this moment") from None
        except FileNotFoundError:  # its last owner has just tidied up
            if attempt == 2:
                raise
        except OSError:  # a full disk leaves an empty file
            with contextlib.suppress(OSError):
                storage.remove(leases / f"{number}.json")
            raise


def _refuse_if_alive(folder: Place, number: int) -> None:
    """Raises `Held` unless the owner is gone; may take `EXPIRED_S` for one on another machine."""
    leases = folder / FOLDER
    record = _read(leases, number)
    if record is None:
        return
    refusal = Held(
        f"{folder} is in use: {who(record)}. Wait for it, stop it, or give another folder"
    )
    answer = machine.can_look_up(record)
    if answer is not None:
        if answer and machine.runs(record):
            raise refusal
        return
    print(
        f"{folder} was last used by {who(record)}; waiting up to {EXPIRED_S:.0f} s for a sign of "
        "life from there",
        file=sys.stderr,
        flush=True,
    )
    deadline = time.monotonic() + EXPIRED_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        now = _read(leases, number)
        if now is None:
            return
        if now["heartbeat"] != record["heartbeat"]:
            raise refusal


def _numbers(leases: Place) -> list[int]:
    numbers = (whole_number(name.removesuffix(".json")) for name in storage.names(leases))
    return sorted(number for number in numbers if number is not None)


def _read(leases: Place, number: int) -> dict[str, Any] | None:
    """A lease's record; None if it is gone or was cut while it was written."""
    try:
        record = json.loads(storage.read(leases / f"{number}.json"))
    except FileNotFoundError:
        return None
    except ValueError:
        time.sleep(_POLL_S)  # it may be in the middle of being created
        try:
            record = json.loads(storage.read(leases / f"{number}.json"))
        except (FileNotFoundError, ValueError):
            return None
    keys = machine.myself().keys()
    return record if isinstance(record, dict) and keys <= record.keys() else None
