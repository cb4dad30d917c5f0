"""Every environment variable the package reads: name, type, default, one sentence. The only reader of os.environ.

`envs.NAME` reads the variable at each access, so tests and launchers can change it. A value that cannot be read as
the variable's type is an error that names the variable, the value and what would work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EnvVar:
    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("", "0", "false", "no", "off"):
        return False
    raise ValueError("expected one of 1, true, yes, on, 0, false, no, off")


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


_VARIABLES = [
    EnvVar("VLLM_LOGGING_LEVEL", str, "INFO", "Least severity that is logged."),
    EnvVar("VLLM_CONFIGURE_LOGGING", _boolean, True, "Whether the package configures its loggers at all."),
    EnvVar("VLLM_LOGGING_CONFIG_PATH", str, "", "A JSON file for logging.config.dictConfig, instead of the default."),
    EnvVar("VLLM_LOGGING_PREFIX", str, "", "Text put before each log line."),
    EnvVar("VLLM_NEURON_TARGET", str, "auto", "Device target: auto, neuronx, cpu or null."),
    EnvVar("VLLM_API_KEY", str, "", "Key that requests must bring, if --api-key gives none."),
    EnvVar("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", int, 5, "Seconds after which an idle connection is closed."),
    EnvVar(
        "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
        _boolean,
        False,
        "Answer 503 when the engine died, instead of exiting.",
    ),
    EnvVar("VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT", int, 30, "Seconds a chat template may run for one request."),
    EnvVar("VLLM_MAX_COMPLETION_PROMPTS", int, 1024, "Most prompts in one /v1/completions request."),
]

VARIABLES: dict[str, EnvVar] = {variable.name: variable for variable in _VARIABLES}


def __getattr__(name: str) -> Any:
    if name not in VARIABLES:
        raise AttributeError(f"module 'vllm.envs' has no variable {name!r}")
    variable = VARIABLES[name]
    text = os.environ.get(name)
    if text is None:
        return variable.default
    try:
        return variable.parse(text)
    except ValueError as error:
        raise ValueError(f"environment variable {name}={text!r} cannot be used: {error}") from None
