"""`/v1/models`: which names are served, and what a request's `model` means."""

from __future__ import annotations

from vllm.engine.client import EngineClient
from vllm.entrypoints.openai.protocol import ModelCard, ModelList, ModelPermission
from vllm.entrypoints.openai.protocol.base import now
from vllm.exceptions import VLLMNotFoundError
from vllm.lora.request import LoRARequest

_SHOWN = 128


class OpenAIServingModels:
    """The base model under all its names, and its adapters, which have it as their parent."""

    def __init__(self, engine_client: EngineClient, names: list[str] | None = None) -> None:
        config = engine_client.model_config
        self.names: list[str] = list(names or config.served_model_name or [config.model])
        adapters = engine_client.vllm_config.lora_config.adapters
        if twins := sorted(set(self.names) & set(adapters)):
            raise ValueError(f"lora_modules: {', '.join(twins)} is the name of the model itself; use another one")
        self._adapters = {
            name: LoRARequest(name, number, path) for number, (name, path) in enumerate(adapters.items(), start=1)
        }
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
        if name in self._adapters:
            return name
        served = ", ".join(f"`{served}`" for served in (*self.names, *self._adapters))
        raise VLLMNotFoundError(f"The model `{name[:_SHOWN]}` does not exist. Served: {served}.")

    def lora_request(self, name: str | None) -> LoRARequest | None:
        """The adapter that a request's `model` names; None for the base model."""
        return self._adapters.get(name or "")

    def card(self, name: str) -> ModelCard:
        adapter = self._adapters.get(name)
        return ModelCard(
            id=name,
            created=self._created,
            root=adapter.lora_path if adapter else self._root,
            parent=self.base_name if adapter else None,
            max_model_len=self._max_model_len,
            permission=[ModelPermission(id=f"modelperm-{name}", created=self._created)],
        )

    def show(self, name: str) -> ModelCard:
        self.resolve(name)
        return self.card(name)

    def list_models(self) -> ModelList:
        return ModelList(data=[self.card(name) for name in (*self.names, *self._adapters)])
