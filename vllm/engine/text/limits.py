"""Bounds on what one request may ask for, in one place behind every front end.

Sizes that cost memory or time are bounded whoever asks; token ids must be of the vocabulary; what the loaded model on
its target cannot do is refused by name. Each fault is a `VLLMValidationError` that names the parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vllm import envs
from vllm.core.contract import Capabilities
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.sample.table import ROWS, Runs
from vllm.sampling_params import SamplingParams

logger = init_logger(__name__)

MAX_CACHE_SALT_LEN = 1024
MAX_REQUEST_ID_LEN = 1024
MAX_ENTRIES = 512 << 10
"""Of a request's lists and maps of parameters, over all of its outputs: each output has its own."""
_LISTS = ("stop", "stop_token_ids", "logprob_token_ids", "logit_bias", "allowed_token_ids", "bad_words")

_DEFAULTS = SamplingParams()


def check_sampling_params(
    params: SamplingParams, capabilities: Capabilities, *, vocab_size: int, max_logprobs: int
) -> None:
    """Everything about a request's parameters that does not depend on its prompt."""
    _check_supported(params, capabilities)
    _check_sizes(params)
    most = min(vocab_size if params.is_internal else max_logprobs, capabilities.max_logprobs)
    for name, row in ROWS.items():
        if row.holds_token_ids:
            check_token_ids(getattr(params, name) or (), vocab_size, name)
        elif row.kind == "count":
            _check_logprobs(name, getattr(params, name), most, vocab_size)


def check_entries(params: SamplingParams, num_prompts: int) -> None:
    """Raises VLLMValidationError if so many prompts with these parameters are too much for one request to a server."""
    counts = {name: len(getattr(params, name) or ()) for name in _LISTS}
    num_outputs = params.n * num_prompts
    if num_outputs * sum(counts.values()) > MAX_ENTRIES:
        largest = max(counts, key=lambda name: counts[name])
        raise VLLMValidationError(
            f"{largest} holds {counts[largest]} entries for each of {num_outputs} outputs; one request may say "
            f"{MAX_ENTRIES} of all its outputs. Ask for fewer outputs at once.",
            parameter=largest,
        )


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
    for name, row in ROWS.items():
        value = getattr(params, name)
        if row.runs is Runs.NOWHERE and value:
            raise VLLMValidationError(f"{name} is not supported: {row.advice}.", parameter=name)
        is_asked = row.runs is Runs.LOGITS_NEEDED and value != getattr(_DEFAULTS, name)
        if is_asked and name not in capabilities.sampling:
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
    for name, row in ROWS.items():
        value = getattr(params, name)
        if not row.most or not value:
            continue
        _check_count(name, len(value), row.most() if callable(row.most) else row.most, row.unit)
        for text in value if row.longest else ():
            _check_count(name, len(text), row.longest, "characters a text")


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
