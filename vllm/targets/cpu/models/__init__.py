"""The models of the `cpu` target: one short file a family, found by the architecture's name.

A model file has `ARCHITECTURES`, the names in a checkpoint's `architectures` that it serves, and
`build(config, max_len)`, which emits the graph. To add one, see docs/adding_a_model.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from vllm.targets.cpu.graph import Graph
from vllm.targets.cpu.models import llama, qwen2, qwen3

_BUILDERS: dict[str, Callable[[dict[str, Any], int | None], Graph]] = {
    name: module.build for module in (llama, qwen2, qwen3) for name in module.ARCHITECTURES
}


def supported_architectures() -> list[str]:
    """The names that `build_graph` knows, sorted."""
    return sorted(_BUILDERS)


def resolve_architecture(config: dict[str, Any]) -> str:
    """The first supported name in the config's `architectures`. Raises ValueError if there is none, listing all."""
    names = [str(name) for name in config.get("architectures") or []]
    for name in names:
        if name in _BUILDERS:
            return name
    nearest = difflib.get_close_matches(names[0], _BUILDERS, n=1) if names else []
    raise ValueError(
        f"the cpu target cannot run architecture {', '.join(names) or '(none named in the config)'}; supported: "
        f"{', '.join(supported_architectures())}{f' (nearest: {nearest[0]})' if nearest else ''}"
    )


def build_graph(config: dict[str, Any], max_len: int | None = None) -> Graph:
    """The forward of a model, from its config in normal form (`vllm.checkpoint.config`).

    max_len: the longest sequence that will be run; matters only for rope scaling that depends on it. Raises ValueError
    for an architecture or a setting that is not supported, naming what is.
    """
    return _BUILDERS[resolve_architecture(config)](config, max_len)
