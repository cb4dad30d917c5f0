"""Threads without which a process must not go on: half dead, it would hold its requests for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from vllm.logger import init_logger

logger = init_logger(__name__)


def start_vital_thread(work: Callable[[], None], name: str) -> None:
    """What `work` raises is logged and ends the process with status 1, which a parent sees at once."""

    def run() -> None:
        try:
            work()
        except BaseException:
            logger.exception("the thread %s failed: the process ends", name)
            os._exit(1)

    threading.Thread(target=run, daemon=True, name=name).start()
