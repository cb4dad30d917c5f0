"""`/v1/models`: the list of what is served."""

from __future__ import annotations

from pydantic import Field

from vllm.entrypoints.openai.protocol.base import ClosedModel, now


class ModelPermission(ClosedModel):
    id: str
    object: str = "model_permission"
    created: int = Field(default_factory=now)
    allow_create_engine: bool = False
    allow_sampling: bool = True
    allow_logprobs: bool = True
    allow_search_indices: bool = False
    allow_view: bool = True
    allow_fine_tuning: bool = False
    organization: str = "*"
    group: str | None = None
    is_blocking: bool = False


class ModelCard(ClosedModel):
    """`root` is the checkpoint; `parent` the base model of an adapter."""

    id: str
    object: str = "model"
    created: int = Field(default_factory=now)
    owned_by: str = "vllm"
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    permission: list[ModelPermission] = Field(default_factory=list)


class ModelList(ClosedModel):
    object: str = "list"
    data: list[ModelCard] = Field(default_factory=list)
