"""Google's client of buckets: what is set before it is used, and its errors as ours."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from mcl_jax.errors import UserError, one_line
from mcl_jax.runtime import quiet

_EMULATOR = "STORAGE_EMULATOR_HOST"  # of Google's clients: a server on this machine, no credentials


class BucketError(OSError, UserError):
    """A bucket that does not answer, or refuses; scripts tell it in one line."""


@contextlib.contextmanager
def client(place: os.PathLike) -> Iterator[Any]:
    """The client. Its errors become `BucketError`, but not FileNotFoundError and FileExistsError."""
    files = demand_client()
    files.invalidate_cache()  # of listings, which other processes change
    try:
        with quiet_client():
            yield files
    except (FileNotFoundError, FileExistsError):
        raise
    except Exception as error:  # of gcsfs, aiohttp, google.auth and requests
        raise BucketError(f"{place}: {one_line(error)}") from error


def quiet_client() -> contextlib.AbstractContextManager[None]:
    """Inside, the client raises what fails, and does not log its traceback as well."""
    return quiet.dropped("gcsfs", unwanted=lambda record: record.exc_info is not None)


def demand_client() -> Any:
    """Google's file system as etils asks for it, so that both share one client.

    Raises:
      UserError: gcsfs is not installed.
    """
    server = os.environ.get(_EMULATOR)
    if server:  # it speaks no gRPC, and wants no credentials
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", server)
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        raise UserError("gs:// needs gcsfs: pip install 'mcl_jax[gcs]'") from None
    import fsspec

    if server:
        fsspec.config.conf.setdefault("gcs", {}).setdefault("token", "anon")
    return fsspec.filesystem("gcs", finalize_on_close=True)
