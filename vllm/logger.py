"""Loggers of the package: `init_logger(__name__)`. Level, prefix and configuration file come from `envs`."""

from __future__ import annotations

import json
import logging
import logging.config
from pathlib import Path

from vllm import envs

_FORMAT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"
_configured = False


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
    handler.setFormatter(logging.Formatter(envs.VLLM_LOGGING_PREFIX + _FORMAT, datefmt="%m-%d %H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(envs.VLLM_LOGGING_LEVEL)
    root.propagate = False


def init_logger(name: str) -> logging.Logger:
    """The logger `name`, under the package's configuration."""
    _configure()
    return logging.getLogger(name)
