"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from vllm.engine.client import EngineClient
from vllm.engine.text.limits import check_token_ids
from vllm.entrypoints.openai.errors import error_from
from vllm.entrypoints.openai.protocol import (
    DetokenizeRequest,
    DetokenizeResponse,
    ErrorResponse,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
    TokenizeResponse,
)
from vllm.entrypoints.openai.renderer import PromptRenderer
from vllm.entrypoints.openai.serving_models import OpenAIServingModels


class OpenAIServingTokenization:
    def __init__(self, engine_client: EngineClient, models: OpenAIServingModels, renderer: PromptRenderer) -> None:
        config = engine_client.model_config
        self._models = models
        self._renderer = renderer
        self._max_model_len: int = config.max_len
        self._vocab_size: int = config.vocab_size

    async def create_tokenize(
        self, request: TokenizeCompletionRequest | TokenizeChatRequest
    ) -> TokenizeResponse | ErrorResponse:
        try:
            return await self._tokenize(request)
        except Exception as exception:
            return error_from(exception)

    async def create_detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse | ErrorResponse:
        try:
            return await self._detokenize(request)
        except Exception as exception:
            return error_from(exception)

    async def _tokenize(self, request: TokenizeCompletionRequest | TokenizeChatRequest) -> TokenizeResponse:
        self._models.resolve(request.model)
        if isinstance(request, TokenizeChatRequest):
            ids = (await self._renderer.render_chat(request)).token_ids
        else:
            ids = await self._renderer.encode(request.prompt, request.add_special_tokens)
        strs = self._renderer.tokenizer.convert_ids_to_tokens(ids) if request.return_token_strs else None
        return TokenizeResponse(count=len(ids), max_model_len=self._max_model_len, tokens=ids, token_strs=strs)

    async def _detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        self._models.resolve(request.model)
        check_token_ids(request.tokens, self._vocab_size, "tokens")
        return DetokenizeResponse(prompt=await self._renderer.decode(request.tokens))
