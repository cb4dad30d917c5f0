"""The API's requests, responses and errors. One file a topic; users import from here."""

from vllm.entrypoints.openai.protocol.base import (
    ErrorInfo,
    ErrorResponse,
    PromptTokensDetails,
    StreamOptions,
    UsageInfo,
)
from vllm.entrypoints.openai.protocol.chat import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatMessage,
    FunctionCall,
    ToolCallMessage,
)
from vllm.entrypoints.openai.protocol.completion import (
    CompletionRequest,
    CompletionResponse,
    CompletionResponseChoice,
)
from vllm.entrypoints.openai.protocol.logprobs import ChatLogprobs, CompletionLogProbs, PromptLogprobs
from vllm.entrypoints.openai.protocol.models import ModelCard, ModelList, ModelPermission
from vllm.entrypoints.openai.protocol.responses import DeletedResponse, ResponsesRequest, ResponsesResponse
from vllm.entrypoints.openai.protocol.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeChatRequest,
    TokenizeCompletionRequest,
    TokenizeResponse,
)

__all__ = [
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatCompletionResponseChoice",
    "ChatLogprobs",
    "ChatMessage",
    "CompletionLogProbs",
    "CompletionRequest",
    "CompletionResponse",
    "CompletionResponseChoice",
    "DeletedResponse",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "ErrorInfo",
    "ErrorResponse",
    "FunctionCall",
    "ModelCard",
    "ModelList",
    "ModelPermission",
    "PromptLogprobs",
    "PromptTokensDetails",
    "ResponsesRequest",
    "ResponsesResponse",
    "StreamOptions",
    "TokenizeChatRequest",
    "TokenizeCompletionRequest",
    "TokenizeResponse",
    "ToolCallMessage",
    "UsageInfo",
]
