"""From a user's prompt and parameters to requests the core can run: tokens, and parameters in which all is resolved.

Every front end comes through here: every check of a request is here or in `limits`. Nothing behind needs a tokenizer.
"""

from __future__ import annotations

import difflib
import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import Capabilities, PromptImages
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.place import Place
from vllm.engine.text.image_limits import most_images
from vllm.engine.text.images import ImagePreparer, hub_processor, images_of
from vllm.engine.text.limits import (
    check_bad_words,
    check_cache_salt,
    check_request_id,
    check_sampling_params,
    check_token_ids,
    served_defaults,
)
from vllm.engine.text.tokenizer import Tokenizer
from vllm.exceptions import VLLMValidationError
from vllm.inputs import PromptType
from vllm.lora.request import LoRARequest
from vllm.sample.table import ROWS
from vllm.sampling_params import SamplingParams

_PROMPT_KEYS = ("prompt", "prompt_token_ids", "cache_salt", "multi_modal_data")
_NO_USE_KEYS = ("multi_modal_uuids", "mm_processor_kwargs", "prompt_embeds")
_TOKENIZATION_KEYS = ("add_special_tokens", "truncate_prompt_tokens", "truncation_side")
_MASK = 2**64 - 1


@dataclass(slots=True)
class ProcessedRequest:
    """A user's request, ready to run.

    params: the user's, normalised. core_requests: one for each of its n outputs, in order; the ids of several are
    "<index>_<request_id>".
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    core_requests: list[EngineCoreRequest]
    arrival_time: float
    lora_request: LoRARequest | None = None


class InputProcessor:
    """Holds what requests are checked against.

    eos_token_ids: what ends an output: the EOS of the tokenizer, of the model's config and of its generation config.
    default_sampling_params: the checkpoint's defaults, as `SamplingParams` fields.
    images: prepares the images of prompts; None where the model takes none.
    """

    def __init__(
        self,
        config: VllmConfig,
        capabilities: Capabilities,
        tokenizer: Tokenizer | None,
        place: Place | None = None,
    ) -> None:
        """place: among the fronts of one core; by default this is the only one."""
        model = config.model_config
        self.tokenizer = tokenizer
        self.capabilities = capabilities
        self.max_model_len = model.max_len
        self.max_prompt_len = config.scheduler_config.max_prompt_len or self.max_model_len
        self.vocab_size = model.vocab_size
        self.max_logprobs = model.max_logprobs
        self.by_priority = config.scheduler_config.scheduling_policy == "priority"
        self.eos_token_ids = _eos_token_ids(config, tokenizer)
        self.default_sampling_params = served_defaults(
            default_sampling_params(model.hf_generation_config), capabilities
        )
        self.images = _image_preparer(config, capabilities)
        self._seed = model.seed
        self._place = place or Place()
        self._adapters = {
            name: (number, path) for number, (name, path) in enumerate(config.lora_config.adapters.items(), start=1)
        }
        self._num_core_requests = 0

    def process(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams,
        *,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
        prompt_text: str | None = None,
    ) -> ProcessedRequest:
        """Raises VLLMValidationError for what cannot be run, naming the parameter.

        arrival_time: seconds since the epoch.
        """
        check_request_id(request_id)
        self._check_options(params, priority)
        lora_id = self.lora_id(lora_request)
        self.check_params(params)
        fields = _as_dict(prompt)
        images = None
        if _has_images(fields):
            token_ids, images = self._with_images(fields, params, tokenization_kwargs or {})
        else:
            token_ids = self._token_ids(fields, params, tokenization_kwargs or {})
        resolved = self._resolve(params, len(token_ids))
        salt = fields.get("cache_salt")
        core_requests = self._fan_out(request_id, token_ids, resolved, priority, salt, lora_id, images)
        return ProcessedRequest(
            request_id,
            prompt_text if prompt_text is not None else fields.get("prompt"),
            token_ids,
            resolved,
            core_requests,
            time.time() if arrival_time is None else arrival_time,
            lora_request,
        )

    def check_params(self, params: SamplingParams) -> None:
        """Raises VLLMValidationError for parameters that no prompt can be run with."""
        most = self.vocab_size if self.max_logprobs == -1 else self.max_logprobs
        check_sampling_params(params, self.capabilities, vocab_size=self.vocab_size, max_logprobs=most)

    def _check_options(self, params: Any, priority: int) -> None:
        if not isinstance(params, SamplingParams):
            raise VLLMValidationError(
                f"a text generator takes SamplingParams, got {type(params).__name__}.", parameter="sampling_params"
            )
        if type(priority) is not int or not -(2**63) <= priority < 2**63:
            raise VLLMValidationError(f"priority must be an integer, got {priority!r}.", parameter="priority")
        if priority and not self.by_priority:
            raise VLLMValidationError(
                f"priority={priority} has no effect without --scheduling-policy priority.", parameter="priority"
            )

    def lora_id(self, request: LoRARequest | None) -> int:
        """The number of the adapter that a request names, 0 for none. Adapters are those of `lora_modules`."""
        names = ", ".join(self._adapters) or "none"
        if request is None:
            if self.capabilities.needs_adapter:
                raise VLLMValidationError(
                    f"this model cannot run without an adapter here: name one of {names}.", parameter="lora_request"
                )
            return 0
        if not self.capabilities.lora:
            raise VLLMValidationError(
                "no LoRA adapters are served: start with enable_lora and lora_modules, or leave lora_request out.",
                parameter="lora_request",
            )
        if request.lora_name not in self._adapters:
            raise VLLMValidationError(
                f"there is no adapter {request.lora_name!r}; served: {names}. Adapters are named at start, by "
                "lora_modules.",
                parameter="lora_request",
            )
        number, path = self._adapters[request.lora_name]
        if request.lora_path and Path(request.lora_path).expanduser() != Path(path).expanduser():
            raise VLLMValidationError(
                f"the adapter {request.lora_name!r} was loaded from {path}, not from {request.lora_path}.",
                parameter="lora_request",
            )
        return number

    @property
    def lora_ids(self) -> set[int]:
        """Numbers of the adapters that are served."""
        return {number for number, _ in self._adapters.values()} if self.capabilities.lora else set()

    # Prompts.

    def prompt_token_ids(self, prompt: PromptType) -> list[int]:
        """The tokens of a prompt of text. Raises VLLMValidationError for one that cannot be run."""
        fields = _as_dict(prompt)
        if _has_images(fields):
            raise VLLMValidationError("beam search takes no images.", parameter="multi_modal_data")
        return self._token_ids(fields, SamplingParams(), {})

    def _with_images(
        self, fields: Mapping[str, Any], params: SamplingParams, options: Mapping[str, Any]
    ) -> tuple[list[int], PromptImages]:
        """The tokens of a prompt with images, and these; prepared here, unless they were at the door."""
        check_cache_salt(fields.get("cache_salt"))
        if self.images is None:
            raise VLLMValidationError(
                "multi_modal_data is not supported: this model takes text only.", parameter="multi_modal_data"
            )
        if options.get("truncate_prompt_tokens", params.truncate_prompt_tokens) is not None:
            raise VLLMValidationError("a prompt with images cannot be cut.", parameter="truncate_prompt_tokens")
        prepared = fields["multi_modal_data"]
        if isinstance(prepared, PromptImages):
            token_ids = _integers(fields["prompt_token_ids"])
            self.images.check(token_ids, prepared)
        elif isinstance(fields.get("prompt"), str) and fields.get("prompt_token_ids") is None:
            add_special_tokens = bool(options.get("add_special_tokens", True))
            token_ids, prepared = self.images.prepare(fields["prompt"], images_of(prepared), add_special_tokens)
        else:
            raise VLLMValidationError(
                "a prompt with images must be a text: its image tokens are replaced by what stands for the images.",
                parameter="prompt_token_ids",
            )
        self._check_tokens(token_ids)
        return token_ids, prepared

    def _token_ids(self, fields: Mapping[str, Any], params: SamplingParams, options: Mapping[str, Any]) -> list[int]:
        check_cache_salt(fields.get("cache_salt"))
        for name in options:
            if name not in _TOKENIZATION_KEYS:
                raise _unknown("tokenization_kwargs", name, _TOKENIZATION_KEYS)
        if fields.get("prompt_token_ids") is not None:
            token_ids = _integers(fields["prompt_token_ids"])
        else:
            token_ids = self._encode(fields["prompt"], bool(options.get("add_special_tokens", True)))
        keep = options.get("truncate_prompt_tokens", params.truncate_prompt_tokens)
        if keep is not None:
            token_ids = self._truncate(token_ids, keep, options.get("truncation_side") or "left")
        self._check_tokens(token_ids)
        return token_ids

    def _encode(self, text: Any, add_special_tokens: bool) -> list[int]:
        if not isinstance(text, str):
            raise VLLMValidationError(f"a prompt must be a text, got {type(text).__name__}.", parameter="prompt")
        if self.tokenizer is None:
            raise VLLMValidationError(
                "there is no tokenizer (skip_tokenizer_init): give prompt_token_ids.", parameter="prompt"
            )
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _truncate(self, token_ids: list[int], keep: int, side: str) -> list[int]:
        if keep == -1:
            keep = self.max_prompt_len if self.max_prompt_len < self.max_model_len else self.max_model_len - 1
        if not 1 <= keep <= self.max_model_len:
            raise VLLMValidationError(
                f"truncate_prompt_tokens must be -1 or from 1 to {self.max_model_len} (max_model_len), got {keep}.",
                parameter="truncate_prompt_tokens",
            )
        if side not in ("left", "right"):
            raise VLLMValidationError(
                f"truncation_side must be left or right, got {side!r}.", parameter="truncation_side"
            )
        return token_ids[:keep] if side == "right" else token_ids[-keep:]

    def _check_tokens(self, token_ids: list[int]) -> None:
        num_tokens, limit = len(token_ids), self.max_model_len
        if not num_tokens:
            raise VLLMValidationError(
                "The decoder prompt cannot be empty: give at least one token.", parameter="prompt"
            )
        if num_tokens > limit:
            raise VLLMValidationError(
                f"The decoder prompt (length {num_tokens}) is longer than the maximum model length of {limit}. "
                "Shorten it, or raise max_model_len.",
                parameter="prompt",
                value=num_tokens,
            )
        if num_tokens == limit:
            raise VLLMValidationError(
                f"The decoder prompt (length {num_tokens}) plus the number of requested output tokens (at least 1) is "
                f"longer than the maximum model length of {limit}. Shorten it, or raise max_model_len.",
                parameter="prompt",
                value=num_tokens,
            )
        if num_tokens > self.max_prompt_len:
            raise VLLMValidationError(
                f"The decoder prompt (length {num_tokens}) is longer than the {self.max_prompt_len} tokens that a "
                "prompt may have (max_context_length). Shorten it.",
                parameter="prompt",
                value=num_tokens,
            )
        if min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            check_token_ids(token_ids, self.vocab_size, "prompt_token_ids")

    # Parameters.

    def _resolve(self, params: SamplingParams, num_prompt_tokens: int) -> SamplingParams:
        """A copy in which nothing is left open."""
        room = self.max_model_len - num_prompt_tokens
        resolved = params if params.skip_clone else params.clone()
        resolved.max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        if resolved.min_tokens > resolved.max_tokens:
            raise VLLMValidationError(
                f"min_tokens={params.min_tokens} is more than the {resolved.max_tokens} tokens that can follow.",
                parameter="min_tokens",
                value=params.min_tokens,
            )
        return resolved

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Each word as it is written within a text and, where that is another token, after a space."""
        if not words:
            return []
        if self.tokenizer is None:
            raise VLLMValidationError(
                "bad_words need a tokenizer (skip_tokenizer_init is set): use logit_bias.", parameter="bad_words"
            )
        sequences: list[list[int]] = []
        for word in words:
            bare = self.tokenizer.encode(word.lstrip(), add_special_tokens=False)
            spaced = self.tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
            sequences.extend([bare] if bare else [])
            if bare and spaced and spaced[0] != bare[0] and len(spaced) == len(bare):
                sequences.append(spaced)
        check_bad_words(sequences)
        for sequence in sequences:
            check_token_ids(sequence, self.vocab_size, "bad_words")
        return sequences

    def _fan_out(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        priority: int,
        cache_salt: str | None,
        lora_id: int,
        images: PromptImages | None = None,
    ) -> list[EngineCoreRequest]:
        """One core request an output. The prompt's log-probabilities are computed once, with the first."""
        arrival = time.monotonic()
        bad_words = self._bad_words(params.bad_words or ())
        requests = []
        for index in range(params.n):
            sampling = params.for_core(self.eos_token_ids, bad_words, self._seed_of(params, index))
            if index:
                sampling.prompt_logprobs = None
            requests.append(
                EngineCoreRequest(
                    self._place.core_id(request_id if params.n == 1 else f"{index}_{request_id}"),
                    token_ids,
                    sampling,
                    arrival,
                    priority,
                    lora_id,
                    cache_salt,
                    images=images,
                    front=self._place.index,
                )
            )
        return requests

    def _seed_of(self, params: SamplingParams, index: int) -> int | None:
        """The seed of output `index`; None where nothing is drawn, or the device draws as it likes."""
        number, self._num_core_requests = self._num_core_requests, self._num_core_requests + 1
        if params.seed is not None:
            return (params.seed + index) & _MASK
        if params.temperature > 0 and "seed" in self.capabilities.sampling:
            return derive_seed(self._seed, self._place.numbered(number))
        return None


def derive_seed(seed: int, number: int) -> int:
    """A 63-bit seed for a request that brings none: by the engine's seed and the request's number (splitmix64)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return (z ^ (z >> 31)) >> 1


def default_sampling_params(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a generation config that are defaults of `SamplingParams` fields."""
    names = (name for name, row in ROWS.items() if row.from_checkpoint)
    defaults = {name: generation_config[name] for name in names if generation_config.get(name) is not None}
    if generation_config.get("max_new_tokens") is not None:
        defaults["max_tokens"] = generation_config["max_new_tokens"]
    return defaults


def _eos_token_ids(config: VllmConfig, tokenizer: Tokenizer | None) -> list[int]:
    model = config.model_config
    ids: list[int] = [] if tokenizer is None or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for source in (model.hf_config, model.hf_generation_config):
        given = source.get("eos_token_id")
        ids.extend([given] if isinstance(given, int) else given or [])
    return list(dict.fromkeys(ids))


def _as_dict(prompt: Any) -> dict[str, Any]:
    """One prompt in its dict form, checked for what cannot be used."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    if isinstance(prompt, Mapping):
        return _checked_dict(dict(prompt))
    if isinstance(prompt, Sequence) or hasattr(prompt, "tolist"):
        return {"prompt_token_ids": prompt}
    raise VLLMValidationError(
        f"a prompt must be a text, a list of token ids, or a dict with one of them, got {type(prompt).__name__}.",
        parameter="prompt",
    )


def _image_preparer(config: VllmConfig, capabilities: Capabilities) -> ImagePreparer | None:
    model, limits = config.model_config, capabilities.images
    most = most_images(model.limit_mm_per_prompt)
    return ImagePreparer(limits, hub_processor(model.model_path or model.model), most) if limits else None


def _has_images(fields: Mapping[str, Any]) -> bool:
    data = fields.get("multi_modal_data")
    return isinstance(data, PromptImages) or bool(data and images_of(data))


def _checked_dict(fields: dict[str, Any]) -> dict[str, Any]:
    for name, value in fields.items():
        if name in _NO_USE_KEYS:
            if value:
                raise VLLMValidationError(f"{name} is not supported: prompts are texts or token ids.", parameter=name)
        elif name not in _PROMPT_KEYS:
            raise _unknown("the prompt", str(name), _PROMPT_KEYS)
    if fields.get("prompt") is None and fields.get("prompt_token_ids") is None:
        raise VLLMValidationError("a prompt dict needs `prompt` or `prompt_token_ids`.", parameter="prompt")
    return fields


def _unknown(what: str, name: str, known: Sequence[str]) -> VLLMValidationError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return VLLMValidationError(f"{what} has an unknown key {name!r}; {hint}", parameter=name)


def _integers(token_ids: Any) -> list[int]:
    values = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
    if isinstance(values, list) and all(type(token_id) is int for token_id in values):
        return values
    try:
        if isinstance(values, (str, bytes)) or any(isinstance(token_id, bool) for token_id in values):
            raise TypeError
        return [operator.index(token_id) for token_id in values]
    except TypeError:
        raise VLLMValidationError(
            "prompt_token_ids must be a list of integers.", parameter="prompt_token_ids"
        ) from None
