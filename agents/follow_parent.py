"""Lets worker processes end when their parent does."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess


@functools.cache
def follow_parent() -> None:
    """Let this process end when its parent does, and not by itself; nothing in a main process.

    A parent that was killed cannot tell it; and Ctrl-C, which goes to both, could end it while it
    holds a lock that its parent waits for.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    try:
        parent.join()
    except ValueError:  # joblib's workers are not told how to wait for it
        while os.getppid() == parent.pid:
            time.sleep(1.0)
    os._exit(1)
