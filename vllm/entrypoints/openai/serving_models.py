"""`/v1/models`: which names are served, and what a request's `model` means."""

from __future__ import annotations

from typing import Any

from vllm.entrypoints.openai.protocol import ModelCard, ModelList, ModelPermission
from vllm.entrypoints.openai.protocol.base import now
from vllm.exceptions import VLLMNotFoundError

_SHOWN = 128


class OpenAIServingModels:
    """The base model under all its names. Adapters will be listed here too, with the base model as their parent."""

    def __init__(self, engine_client: Any, names: list[str] | None = None) -> None:
        config = engine_client.model_config
        self.names: list[str] = list(names or config.served_model_name or [config.model])
        self._root = config.model
        self._max_model_len = config.max_len
        self._created = now()

    @property
    def base_name(self) -> str:
        """The name that responses and metrics carry."""
        return self.names[0]

    def resolve(self, name: str | None) -> str:
        """The name to answer under. Raises VLLMNotFoundError for one that is not served; none means the first."""
        if not name or name in self.names:
            return self.base_name
        served = ", ".join(f"`{served}`" for served in self.names)
        raise VLLMNotFoundError(f"The model `{name[:_SHOWN]}` does not exist. Served: {served}.")

    def card(self, name: str) -> ModelCard:
        return ModelCard(
            id=name,
            created=self._created,
            root=self._root,
            max_model_len=self._max_model_len,
            permission=[ModelPermission(id=f"modelperm-{name}", created=self._created)],
        )

    def show(self, name: str) -> ModelCard:
        self.resolve(name)
        return self.card(name)

    def list_models(self) -> ModelList:
        return ModelList(data=[self.card(name) for name in self.names])
