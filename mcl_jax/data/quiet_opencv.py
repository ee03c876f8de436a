"""OpenCV without threads and messages of its own."""

import contextlib
import threading
from collections.abc import Iterator

import cv2

_OPENCV_LOCK = threading.Lock()
_opencv_users = 0
_opencv_before = (0, 0)


@contextlib.contextmanager
def quiet_opencv() -> Iterator[None]:
    """OpenCV without threads and messages of its own, until the last such context ends.

    One decoded image is too small to share out: the pipeline's own threads and workers hold the
    cores. And OpenCV would print every broken file on stderr; DecodeError carries the reason.
    """
    global _opencv_users, _opencv_before
    log = cv2.utils.logging
    with _OPENCV_LOCK:
        if _opencv_users == 0:
            _opencv_before = (cv2.getNumThreads(), log.getLogLevel())
            cv2.setNumThreads(1)
            log.setLogLevel(log.LOG_LEVEL_SILENT)
        _opencv_users += 1
    try:
        yield
    finally:
        with _OPENCV_LOCK:
            _opencv_users -= 1
            if _opencv_users == 0:
                cv2.setNumThreads(_opencv_before[0])
                log.setLogLevel(_opencv_before[1])
