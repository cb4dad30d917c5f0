"""Bounds on what one request may ask for, in one place behind every front end.

Sizes that cost memory or time are bounded whoever asks; token ids must be of the vocabulary; what the loaded model on
its target cannot do is refused by name. Each fault is a `VLLMValidationError` that names the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm import envs
from vllm.core.contract import HOST_SAMPLING, Capabilities
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.sampling_params import SamplingParams

logger = init_logger(__name__)

MAX_STOP_STRINGS = 128
MAX_STOP_STRING_LEN = 4096
MAX_STOP_TOKEN_IDS = 128
MAX_LOGPROB_TOKEN_IDS = 128
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORD_LEN = 4096
MAX_CACHE_SALT_LEN = 1024
MAX_REQUEST_ID_LEN = 1024

_DEFAULTS = SamplingParams()

_OF_NO_TARGET = {
    "extra_args": "no logits processor reads them",
    "thinking_token_budget": "the length of the reasoning is not bounded apart; use max_tokens",
    "repetition_detection": "use repetition_penalty, frequency_penalty or stop",
    "watermarking": "outputs are not watermarked",
    "prompt_logprob_token_ids": "use prompt_logprobs",
    "prompt_logprob_start": "prompt_logprobs cover the whole prompt",
    "routed_experts_prompt_start": "routed experts are not reported",
    "trace_decode_token_ids": "decoding is not traced",
}


def check_sampling_params(
    params: SamplingParams, capabilities: Capabilities, *, vocab_size: int, max_logprobs: int
) -> None:
    """Everything about a request's parameters that does not depend on its prompt."""
    _check_supported(params, capabilities)
    _check_sizes(params)
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias"):
        check_token_ids(getattr(params, name) or (), vocab_size, name)
    most = vocab_size if params._is_internal else max_logprobs
    for name in ("logprobs", "prompt_logprobs"):
        _check_logprobs(name, getattr(params, name), min(most, capabilities.max_logprobs), vocab_size)


def served_defaults(defaults: Mapping[str, Any], capabilities: Capabilities) -> dict[str, Any]:
    """The defaults of requests that the loaded model can honour on its target; what is left out is logged.

    defaults: `SamplingParams` fields that a checkpoint or the server set. Nobody asked for them in a request, so that
    none fails for them.
    """
    served, base = {}, {"temperature": 0.0} if capabilities.greedy_only else {}
    for name, value in defaults.items():
        try:
            _check_supported(SamplingParams.from_optional(**{**base, name: value}), capabilities)
        except VLLMValidationError:
            logger.warning(
                "the default %s=%r is left out: the %s target does not honour it here. %s",
                name,
                value,
                capabilities.target,
                "Speculation compares greedily, and requests that say nothing get temperature 0"
                if name == "temperature"
                else "--generation-config vllm leaves all defaults of the checkpoint out; sampling on the host "
                "(on_device_sampling_config: null) honours them",
            )
        else:
            served[name] = value
    if capabilities.greedy_only:
        served["temperature"] = 0.0
    return served


def check_token_ids(token_ids: Iterable[int], vocab_size: int, name: str) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise VLLMValidationError(
                f"Token id {token_id} is out of vocabulary: {name} may hold ids from 0 to {vocab_size - 1}.",
                parameter=name,
                value=token_id,
            )


def check_bad_words(token_ids: Sequence[Sequence[int]]) -> None:
    """After tokenisation, which may give two forms of a word."""
    _check_count("bad_words", len(token_ids), envs.VLLM_MAX_NUM_BAD_WORDS, "token sequences")


def check_cache_salt(salt: Any) -> None:
    if salt is None:
        return
    if not isinstance(salt, str) or not salt or len(salt) > MAX_CACHE_SALT_LEN or not salt.isprintable():
        raise VLLMValidationError(
            f"cache_salt must be a printable text of 1 to {MAX_CACHE_SALT_LEN} characters.", parameter="cache_salt"
        )


def check_request_id(request_id: Any) -> None:
    if not isinstance(request_id, str) or not 0 < len(request_id) <= MAX_REQUEST_ID_LEN:
        raise VLLMValidationError(
            f"request_id must be a text of 1 to {MAX_REQUEST_ID_LEN} characters, got {type(request_id).__name__}.",
            parameter="request_id",
        )


def _check_supported(params: SamplingParams, capabilities: Capabilities) -> None:
    for name, advice in _OF_NO_TARGET.items():
        if getattr(params, name):
            raise VLLMValidationError(f"{name} is not supported: {advice}.", parameter=name)
    for name in sorted(HOST_SAMPLING):
        if name not in capabilities.sampling and getattr(params, name) != getattr(_DEFAULTS, name):
            raise VLLMValidationError(
                f"{name} is not supported by this model on the {capabilities.target} target; it honours "
                f"{', '.join(sorted({'temperature', 'top_k', 'top_p', *capabilities.sampling}))}.",
                parameter=name,
                value=getattr(params, name),
            )
    if capabilities.greedy_only and params.temperature > 0:
        raise VLLMValidationError(
            f"temperature={params.temperature} cannot be honoured: speculation on the {capabilities.target} target "
            "compares greedily. Ask for temperature=0; where the model's own default is another, the server's "
            "--override-generation-config can say so.",
            parameter="temperature",
            value=params.temperature,
        )
    if params.top_k > capabilities.max_top_k:
        raise VLLMValidationError(
            f"top_k must be at most {capabilities.max_top_k} on the {capabilities.target} target, got {params.top_k}.",
            parameter="top_k",
            value=params.top_k,
        )


def _check_sizes(params: SamplingParams) -> None:
    _check_count("stop", len(params.stop or ()), MAX_STOP_STRINGS, "texts")
    for text in params.stop or ():
        _check_count("stop", len(text), MAX_STOP_STRING_LEN, "characters a text")
    _check_count("stop_token_ids", len(params.stop_token_ids or ()), MAX_STOP_TOKEN_IDS, "ids")
    _check_count("logprob_token_ids", len(params.logprob_token_ids or ()), MAX_LOGPROB_TOKEN_IDS, "ids")
    _check_count("logit_bias", len(params.logit_bias or ()), MAX_LOGIT_BIAS, "entries")
    _check_count("bad_words", len(params.bad_words or ()), envs.VLLM_MAX_NUM_BAD_WORDS, "texts")
    for text in params.bad_words or ():
        _check_count("bad_words", len(text), MAX_BAD_WORD_LEN, "characters a text")


def _check_count(name: str, count: int, limit: int, unit: str) -> None:
    if count > limit:
        raise VLLMValidationError(f"{name} may hold at most {limit} {unit}, got {count}.", parameter=name, value=count)


def _check_logprobs(name: str, count: int | None, limit: int, vocab_size: int) -> None:
    if count is None:
        return
    wanted = vocab_size if count == -1 else count
    if 0 <= limit < wanted:
        shown = f"{count} (all {vocab_size})" if count == -1 else str(count)
        raise VLLMValidationError(
            f"{name}={shown} is more than the {limit} that may be asked for (--max-logprobs).",
            parameter=name,
            value=count,
        )
