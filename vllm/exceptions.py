"""Errors that users meet by name.

A client's mistake is a `VLLMClientError`: front ends answer it with a 4xx status. Anything else that ends a request
is the server's fault.
"""

from __future__ import annotations

from typing import Any


class VLLMError(Exception):
    """Root of the package's own errors."""


class VLLMClientError(VLLMError):
    """What the caller asked for cannot be done as asked."""


class VLLMServerError(VLLMError):
    """The engine's own fault."""


class VLLMValidationError(VLLMClientError, ValueError):
    """A parameter is wrong. `parameter` names it, `value` is what was given.

    Also a ValueError, which is what users of earlier releases catch.
    """

    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value


class VLLMNotFoundError(VLLMClientError):
    """A model, adapter or stored response of that name does not exist. `parameter` is where it was named."""

    def __init__(self, message: str, *, parameter: str | None = "model") -> None:
        super().__init__(message)
        self.parameter = parameter


class QueueFullError(VLLMError):
    """The waiting queue is at its bound: the request was not taken, and may be tried again later."""


class EngineGenerateError(VLLMServerError):
    """One request ended with an error of the engine's own. The engine goes on."""


class EngineDeadError(VLLMServerError):
    """The engine died or is stuck; nothing more can be asked of it. The message says what was its first fault."""
