"""Which process on which machine: who somebody was, and whether that process still runs."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def myself() -> dict[str, Any]:
    """This process, as a record that another machine can read; 'heartbeat' counts from 0."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "process_started": start_of(pid),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "machine": _text("/etc/machine-id"),
        "processes_of": _link("/proc/self/ns/pid"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "heartbeat": 0,
    }


def can_look_up(record: Mapping[str, Any]) -> bool | None:
    """Whether a holder's process can be looked up here.

    True: yes. False: it was this machine, before it was started anew. None: it cannot be known.
    """
    own_record = myself()
    if all(own_record[key] == record[key] for key in ("host", "boot", "processes_of")):
        return True
    same = all(own_record[key] == record[key] != "" for key in ("host", "machine"))
    return False if same and own_record["boot"] != record["boot"] else None


def runs(record: Mapping[str, Any]) -> bool:
    """Whether the holder's process is there, and no other one that got its number."""
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return start_of(record["pid"]) == record["process_started"]


def start_of(pid: int) -> str:
    """When a process started, in clock ticks since boot; '' where the system does not tell."""
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
