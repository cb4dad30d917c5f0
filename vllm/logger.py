"""Loggers of the package: `init_logger(__name__)`. Level, prefix and configuration file come from `envs`.

Messages may hold texts of clients and models. So control characters are made visible, and lines after a record's first
are indented: no text can pass for a record, or change the terminal that shows it.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import time
from pathlib import Path

from vllm import envs

_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"
_DATES = "%m-%d %H:%M:%S"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_configured = False


def visible(text: str) -> str:
    """`text` with its control characters written as escapes, but for line feeds and tabs."""
    return _CONTROL.sub(lambda match: rf"\x{ord(match[0]):02x}", text)


class RecordFormatter(logging.Formatter):
    """For handlers of a VLLM_LOGGING_CONFIG_PATH too: `"()": "vllm.logger.RecordFormatter"`."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record)).replace("\n", "\n    ")


def _configure() -> None:
    global _configured
    if _configured:
        return
    _configured = True
    if not envs.VLLM_CONFIGURE_LOGGING:
        return
    if envs.VLLM_LOGGING_CONFIG_PATH:
        logging.config.dictConfig(json.loads(Path(envs.VLLM_LOGGING_CONFIG_PATH).read_text()))
        return
    root = logging.getLogger("vllm")
    handler = logging.StreamHandler()
    handler.setFormatter(RecordFormatter(envs.VLLM_LOGGING_PREFIX + _FORMAT, datefmt=_DATES))
    root.addHandler(handler)
    root.setLevel(envs.VLLM_LOGGING_LEVEL)
    root.propagate = False


def use_record_format(name: str) -> None:
    """Have the handlers of a logger of others write records as ours do."""
    for handler in logging.getLogger(name).handlers:
        handler.setFormatter(RecordFormatter(envs.VLLM_LOGGING_PREFIX + _FORMAT, datefmt=_DATES))


def init_logger(name: str) -> logging.Logger:
    """The logger `name`, under the package's configuration."""
    _configure()
    return logging.getLogger(name)


class RecurringFault:
    """A fault that may recur with every block or step: the first one is a line, the following ones are a count.

    what: begins the line and says what fails. interval: seconds from one line to the next while it goes on.
    """

    def __init__(self, logger: logging.Logger, what: str, interval: float = 60.0) -> None:
        self._logger = logger
        self._what = what
        self._interval = interval
        self._told_at = 0.0
        self._num_untold = 0
        self.count = 0

    def note(self, error: object, exc_info: bool = False) -> None:
        """It happened. exc_info: with the traceback of the exception in hand, where a line is written."""
        self.count += 1
        now = time.monotonic()
        if self.count > 1 and now - self._told_at < self._interval:
            self._num_untold += 1
            return
        more = f" ({self._num_untold + 1} times since the last such line)" if self._num_untold else ""
        self._told_at, self._num_untold = now, 0
        self._logger.warning("%s: %s%s", self._what, error, more, exc_info=exc_info)

    def end(self) -> None:
        """Nothing more will be tried: log how often it happened, if lines were left out."""
        if self._num_untold:
            self._logger.warning("%s: %d times in all", self._what, self.count)
        self.count = self._num_untold = 0
