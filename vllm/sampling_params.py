"""What a user asks of sampling.

Values are checked and brought to a normal form when a `SamplingParams` is made, so whoever reads one can rely on it:
lists are lists, numbers are plain ints and floats, and greedy means temperature 0 with top_k 0, top_p 1 and min_p 0.
What depends on a model or a target (vocabulary, context, capabilities) is checked when a request is made.
"""

from __future__ import annotations

import copy
import math
import operator
from enum import Enum, IntEnum
from typing import Any

import msgspec

from vllm import envs
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger

logger = init_logger(__name__)

GREEDY_TEMPERATURE = 1e-5
MIN_TEMPERATURE = 0.01
MAX_REPETITION_PENALTY = 1e6
MAX_TEMPERATURE = 2.0
MAX_SCHEMA_DEPTH = 64


class SamplingType(IntEnum):
    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


class RequestOutputKind(Enum):
    """What each `RequestOutput` of a request holds: all so far, what is new, or everything once at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class StructuredOutputsParams(msgspec.Struct, omit_defaults=True):
    """The form an output must have; exactly one of the first six fields says which.

    json: a JSON schema, as an object or its text. regex: a regular expression for the whole output. choice: the output
    is one of these texts. grammar: GBNF/EBNF (`root ::= ...`) or Lark (`start: ...`). json_object: any JSON object.
    structural_tag: schemas for marked parts of the output, as JSON text.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        given = self.kinds
        if len(given) > 1:
            raise _error(
                f"You can only use one kind of structured outputs constraint, but got {', '.join(given)}",
                "structured_outputs",
            )
        if not given:
            raise _error(
                f"You must use one kind of structured outputs constraint: {', '.join(_KINDS)}", "structured_outputs"
            )
        _check_constraint(given[0], getattr(self, given[0]))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in _KINDS if getattr(self, kind) is not None]


_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_CONSTRAINT_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "json": ((str, dict), "a JSON schema as an object or a text"),
    "regex": ((str,), "a text"),
    "choice": ((list, tuple), "a list of texts"),
    "grammar": ((str,), "a text"),
    "json_object": ((bool,), "true"),
    "structural_tag": ((str,), "a text"),
}


def _check_constraint(kind: str, value: Any) -> None:
    types, expected = _CONSTRAINT_TYPES[kind]
    name = f"structured_outputs.{kind}"
    if not any(isinstance(value, cls) for cls in types):
        raise _error(f"{name} must be {expected}, got {type(value).__name__}.", name, value)
    if isinstance(value, str) and not value.strip():
        raise _error(f"{name} cannot be an empty string.", name, value)
    if kind == "choice" and (not value or not all(isinstance(choice, str) and choice for choice in value)):
        raise _error(f"{name} must be a non-empty list of non-empty texts.", name, value)
    if kind == "json_object" and value is False:
        raise _error(f"{name} can only be true; leave it out to allow any text.", name, value)
    if kind == "regex" and "\0" in value:
        raise _error(f"{name} must not contain NUL characters.", name)
    if kind == "json" and isinstance(value, dict) and is_deeper(value, MAX_SCHEMA_DEPTH):
        raise _error(f"{name} is nested more than {MAX_SCHEMA_DEPTH} levels deep.", name)


def is_deeper(value: Any, limit: int) -> bool:
    """Whether lists and dicts are nested in more than `limit` levels."""
    level = _containers([value])
    for _ in range(limit):
        if not level:
            return False
        level = [child for node in level for child in _containers(node)]
    return bool(level)


def _containers(node: dict[Any, Any] | list[Any]) -> list[Any]:
    children = node.values() if isinstance(node, dict) else node
    return [child for child in children if isinstance(child, (dict, list))]


GuidedDecodingParams = StructuredOutputsParams
"""The name of `StructuredOutputsParams` in earlier releases."""


class RepetitionDetectionParams(msgspec.Struct, omit_defaults=True):
    """When an output that repeats itself is ended."""

    max_pattern_size: int = 0
    min_pattern_size: int = 0
    min_count: int = 0


class ReasoningGate(msgspec.Struct, omit_defaults=True):
    """Where a structured output begins in an output that may think first: behind `close`.

    open_id: the token that opens the reasoning, where the output may begin with it. begun: the prompt opened it.
    """

    close: str
    open_id: int | None = None
    begun: bool = False


class SamplingParams(msgspec.Struct, omit_defaults=True):
    """How one request is sampled, when it ends, and what is reported of it. Use keywords.

    n: outputs for the prompt. presence_penalty, frequency_penalty: -2 to 2, over the output. repetition_penalty: more
    than 0, to 1e6, over prompt and output. temperature: 0 is greedy. top_k: 0 or -1 disable it. min_p: tokens less
    likely than this share of the most likely one are dropped. seed: -1 is none.
    stop, stop_token_ids: what ends the output; its text is cut off unless include_stop_str_in_output.
    max_tokens: None is what the context holds. min_tokens: no EOS and no stop token before.
    logprobs, prompt_logprobs: how many most likely tokens to report; 0 the sampled one only, -1 all.
    output_kind, stream_interval: what each `RequestOutput` holds, and after how many tokens one comes.
    logit_bias: token id -> what is added to its logit. bad_words: texts that are not generated.
    truncate_prompt_tokens: keep this many prompt tokens, counted from the end; -1: what the context holds.
    guided_decoding: the older name of structured_outputs.

    The fields that begin with an underscore are filled by whoever has a tokenizer and the prompt's text, so
    that nothing behind needs either. _is_internal: a request that the engine makes for a user's, such as a step of beam
    search; it reports to the engine alone, so bounds on what users are told do not apply.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    flat_logprobs: bool = False
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    extra_args: dict[str, Any] | None = None
    truncate_prompt_tokens: int | None = None
    skip_reading_prefix_cache: bool | None = None
    skip_clone: bool = False
    thinking_token_budget: int | None = None
    repetition_detection: RepetitionDetectionParams | None = None
    watermarking: bool | None = None
    prompt_logprob_token_ids: list[int] | None = None
    prompt_logprob_start: int | None = None
    routed_experts_prompt_start: int = 0
    trace_decode_token_ids: list[int] | None = None
    guided_decoding: StructuredOutputsParams | None = None

    _eos_token_ids: list[int] = []
    _bad_words_token_ids: list[list[int]] = []
    _reasoning_gate: ReasoningGate | None = None
    _is_internal: bool = False

    @classmethod
    def from_optional(cls, **fields: Any) -> SamplingParams:
        """As the constructor, with None meaning "the default" (but for max_tokens, where it means no limit).

        The keys of logit_bias may be texts, its values are limited to -100 to 100.
        """
        given = {name: value for name, value in fields.items() if value is not None or name == "max_tokens"}
        if "logit_bias" in given:
            given["logit_bias"] = _clamped_bias(given["logit_bias"])
        return cls(**given)

    def __post_init__(self) -> None:
        self._normalise()
        self._check_ranges()
        self._check_lists()
        if self.temperature < GREEDY_TEMPERATURE:
            self._make_greedy()

    @property
    def sampling_type(self) -> SamplingType:
        if self.temperature < GREEDY_TEMPERATURE:
            return SamplingType.GREEDY
        return SamplingType.RANDOM if self.seed is None else SamplingType.RANDOM_SEED

    @property
    def all_stop_token_ids(self) -> set[int]:
        """Every token that ends the output: stop_token_ids, and EOS unless ignore_eos."""
        return {*(self.stop_token_ids or ()), *self._eos_token_ids}

    def update_from_generation_config(
        self, generation_config: dict[str, Any], eos_token_id: int | list[int] | None = None
    ) -> None:
        """Set the EOS tokens from those of the tokenizer and of the checkpoint's generation config."""
        ids = [*_as_ids(eos_token_id), *_as_ids(generation_config.get("eos_token_id"))]
        self._eos_token_ids = [] if self.ignore_eos else list(dict.fromkeys(ids))

    def clone(self) -> SamplingParams:
        """A copy that shares no list or dict with this one, but for those inside structured_outputs and extra_args."""
        twin = copy.copy(self)
        for name in _CONTAINERS:
            value = getattr(twin, name)
            if value is not None:
                setattr(twin, name, value.copy())
        return twin

    def __repr__(self) -> str:
        return f"SamplingParams({', '.join(f'{name}={getattr(self, name)!r}' for name in _SHOWN)})"

    def _normalise(self) -> None:
        for name in _INTEGERS:
            setattr(self, name, _integer(name, getattr(self, name)))
        for name in _FLOATS:
            setattr(self, name, _number(name, getattr(self, name)))
        for name in _OPTIONAL_INTEGERS:
            if (value := getattr(self, name)) is not None:
                setattr(self, name, _integer(name, value))
        self.logprobs = _count("logprobs", self.logprobs)
        self.prompt_logprobs = _count("prompt_logprobs", self.prompt_logprobs)
        self.stop = _texts("stop", self.stop)
        self.bad_words = _texts("bad_words", self.bad_words)
        self.stop_token_ids = list(dict.fromkeys(_token_ids("stop_token_ids", self.stop_token_ids) or []))
        self.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
        self.logprob_token_ids = _token_ids("logprob_token_ids", self.logprob_token_ids)
        if self.logit_bias is not None:
            self.logit_bias = _bias(self.logit_bias)
        self._normalise_choices()

    def _normalise_choices(self) -> None:
        if self.seed == -1:
            self.seed = None
        if self.top_k == -1:
            self.top_k = 0
        if 0 < self.temperature < MIN_TEMPERATURE:
            logger.warning("temperature %g is raised to %g: less overflows", self.temperature, MIN_TEMPERATURE)
            self.temperature = MIN_TEMPERATURE
        if self.guided_decoding is not None:
            if self.structured_outputs is not None:
                raise _error("guided_decoding is the older name of structured_outputs: give one.", "guided_decoding")
            self.structured_outputs, self.guided_decoding = self.guided_decoding, None
        if isinstance(self.structured_outputs, dict):
            self.structured_outputs = StructuredOutputsParams(**self.structured_outputs)
        if not isinstance(self.output_kind, RequestOutputKind):
            raise _error(f"output_kind must be a RequestOutputKind, got {self.output_kind!r}.", "output_kind")

    def _check_ranges(self) -> None:
        _check("n", self.n, self.n >= 1, "must be at least 1")
        most = envs.VLLM_MAX_N_SEQUENCES
        _check("n", self.n, self.n <= most, f"must be at most {most} (VLLM_MAX_N_SEQUENCES)")
        for name in ("presence_penalty", "frequency_penalty"):
            _check(name, getattr(self, name), -2.0 <= getattr(self, name) <= 2.0, "must be in [-2, 2]")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, penalty > 0.0, "must be greater than zero")
        _check("repetition_penalty", penalty, penalty <= MAX_REPETITION_PENALTY, "must be at most 1e6")
        _check("temperature", self.temperature, self.temperature >= 0.0, "must be non-negative")
        _check("temperature", self.temperature, self.temperature <= MAX_TEMPERATURE, "must be at most 2")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "must be in (0, 1]")
        _check("top_k", self.top_k, self.top_k >= 0, "must be 0 or -1 (disabled), or at least 1")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "must be in [0, 1]")
        _check("min_tokens", self.min_tokens, self.min_tokens >= 0, "must be greater than or equal to 0")
        if self.seed is not None:
            _check("seed", self.seed, -(2**63) <= self.seed < 2**64, "must fit in 64 bits")
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "must be at least 1")
            within = self.min_tokens <= self.max_tokens
            _check("min_tokens", self.min_tokens, within, f"must be less than or equal to max_tokens={self.max_tokens}")
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                _check(name, count, count >= -1, "must be non-negative or -1 (all)")
        if self.stream_interval is not None:
            _check("stream_interval", self.stream_interval, self.stream_interval >= 1, "must be at least 1")
        if (kept := self.truncate_prompt_tokens) is not None:
            _check("truncate_prompt_tokens", kept, kept == -1 or kept >= 1, "must be -1 or at least 1")

    def _check_lists(self) -> None:
        if self.stop and not self.detokenize:
            raise _error("stop strings need the text: set detokenize=True to use stop.", "stop", self.stop)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise _error("allowed_token_ids is empty: no token could be generated.", "allowed_token_ids")

    def _make_greedy(self) -> None:
        if self.n > 1:
            raise _error(f"n must be 1 when using greedy sampling, got {self.n}.", "n", self.n)
        self.temperature, self.top_p, self.top_k, self.min_p = 0.0, 1.0, 0, 0.0


MAX_LENGTH_PENALTY = 32
"""Beyond it, and well within it, length alone decides; far beyond, its power is no number."""


class BeamSearchParams(msgspec.Struct, omit_defaults=True):
    """How `LLM.beam_search` searches. Beams are ranked by cumulative log-probability / length ** length_penalty."""

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        for name in ("beam_width", "max_tokens"):
            setattr(self, name, _integer(name, getattr(self, name)))
            _check(name, getattr(self, name), getattr(self, name) >= 1, "must be at least 1")
        most = MAX_LENGTH_PENALTY
        in_range = -most <= self.length_penalty <= most
        _check("length_penalty", self.length_penalty, in_range, f"must be between -{most} and {most}")


_INTEGERS = ("n", "top_k", "min_tokens")
_FLOATS = ("presence_penalty", "frequency_penalty", "repetition_penalty", "temperature", "top_p", "min_p")
_OPTIONAL_INTEGERS = ("max_tokens", "seed", "stream_interval", "truncate_prompt_tokens", "thinking_token_budget")
_CONTAINERS = (
    "stop",
    "stop_token_ids",
    "logprob_token_ids",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "extra_args",
    "_eos_token_ids",
    "_bad_words_token_ids",
)
_SHOWN = (
    "n",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stop_token_ids",
    "bad_words",
    "include_stop_str_in_output",
    "ignore_eos",
    "max_tokens",
    "min_tokens",
    "logprobs",
    "prompt_logprobs",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "structured_outputs",
    "extra_args",
)


def _error(message: str, parameter: str, value: Any = None) -> VLLMValidationError:
    return VLLMValidationError(message, parameter=parameter, value=value)


def _check(name: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise _error(f"{name} {rule}, got {value}.", name, value)


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise _error(f"{name} must be an integer, got {value!r} ({type(value).__name__}).", name, value) from None


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise _error(f"{name} must be a number, got {value!r} ({type(value).__name__}).", name, value)
    number = float(value)
    if not math.isfinite(number):
        raise _error(f"{name} must be finite, got {value}.", name, value)
    return number


def _count(name: str, value: Any) -> int | None:
    """A number of log-probabilities; True asks for one, False for none."""
    if value is None or value is False:
        return None
    return 1 if value is True else _integer(name, value)


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if texts is None:
        return []
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise _error(f"{name} must be a text or a list of texts, got {value!r}.", name, value)
    if not all(texts):
        raise _error(f"{name} cannot contain an empty string.", name, value)
    return list(texts)


def _token_ids(name: str, value: Any) -> list[int] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        raise _error(f"{name} must be a list of token ids, got {value!r}.", name, value)
    return [_integer(name, token_id) for token_id in value]


def _bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise _error(f"logit_bias must map token ids to numbers, got {type(value).__name__}.", "logit_bias", value)
    return {_integer("logit_bias", token_id): _number("logit_bias", bias) for token_id, bias in value.items()}


def _clamped_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        return _bias(value)
    bias: dict[int, float] = {}
    for token, amount in value.items():
        try:
            token_id = int(token)
        except (TypeError, ValueError):
            raise _error(f"logit_bias maps token ids to numbers; {token!r} is no token id.", "logit_bias") from None
        bias[token_id] = min(max(_number("logit_bias", amount), -100.0), 100.0)
    return bias


def _as_ids(value: int | list[int] | tuple[int, ...] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)
