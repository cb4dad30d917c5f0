"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from vllm.entrypoints.fields import Unsupported
from vllm.entrypoints.openai.protocol.base import ClosedModel, OpenAIBaseModel, TokenIds
from vllm.entrypoints.openai.protocol.chat import TemplateFields


class TokenizeCompletionRequest(OpenAIBaseModel):
    model: str | None = Field(None, description="Served model name. Default: the first served.")
    prompt: str = Field(description="The text.")
    add_special_tokens: bool = Field(True, description="Add the tokenizer's special tokens, such as BOS.")
    return_token_strs: bool | None = Field(False, description="Add each token's own form in the vocabulary.")


class TokenizeChatRequest(TemplateFields):
    unsupported: ClassVar[dict[str, Unsupported]] = {
        name: Unsupported("images are prepared as the checkpoint says.", (None, {}))
        for name in ("media_io_kwargs", "mm_processor_kwargs")
    }

    model: str | None = Field(None, description="Served model name. Default: the first served.")
    return_token_strs: bool | None = Field(False, description="Add each token's own form in the vocabulary.")


class TokenizeResponse(ClosedModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(OpenAIBaseModel):
    model: str | None = Field(None, description="Served model name. Default: the first served.")
    tokens: TokenIds = Field(description="The token ids.")


class DetokenizeResponse(ClosedModel):
    prompt: str
