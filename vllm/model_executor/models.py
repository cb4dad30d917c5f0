"""`ModelRegistry`: which architectures are served. None can be added at run time."""

from __future__ import annotations

from typing import Any


class _ModelRegistry:
    def get_supported_archs(self) -> frozenset[str]:
        """Those of config.json that a target of this package runs by itself; `neuronx` has its library's too."""
        from vllm.settings.target import TARGETS, find_target

        return frozenset(name for target in TARGETS for name in find_target(target).architectures())

    def register_model(self, model_arch: str, model_cls: Any) -> None:
        raise NotImplementedError(
            f"{model_arch} cannot be registered: models are compiled ahead of time from graphs, not run as torch "
            "modules; docs/adding_a_model.md shows how one is added"
        )


ModelRegistry = _ModelRegistry()
