"""What a user asks of sampling: `SamplingParams`, whose fields are the table's (`vllm.sample.table`).

Values are checked and brought to a normal form when a `SamplingParams` is made, so whoever reads one can rely on it:
lists are lists, numbers are plain ints and floats, and greedy means temperature 0 with no bound on the candidates.
What depends on a model or a target (vocabulary, context, capabilities) is checked when a request is made.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any

import msgspec

from vllm import envs
from vllm.logger import init_logger
from vllm.sample.core_sampling import CoreSampling
from vllm.sample.forms import (
    ReasoningGate,
    RepetitionDetectionParams,
    RequestOutputKind,
    StructuredOutputsParams,
    is_deeper,
    parameter_error,
)
from vllm.sample.table import COLUMN_DEFAULTS, ROWS, Effect, Kind, Parameters

__all__ = [
    "BeamSearchParams",
    "GuidedDecodingParams",
    "ReasoningGate",
    "RepetitionDetectionParams",
    "RequestOutputKind",
    "SamplingParams",
    "SamplingType",
    "StructuredOutputsParams",
    "is_deeper",
]

logger = init_logger(__name__)

GREEDY_TEMPERATURE = 1e-5
MIN_TEMPERATURE = 0.01
_MASK64 = 2**64 - 1

GuidedDecodingParams = StructuredOutputsParams
"""The name of `StructuredOutputsParams` in earlier releases."""


class SamplingType(IntEnum):
    GREEDY = 0
    RANDOM = 1
    RANDOM_SEED = 2


class SamplingParams(Parameters, omit_defaults=True):
    """How one request is sampled, when it ends, and what is reported of it. Use keywords.

    The fields, their defaults and ranges are those of `vllm.sample.table.Parameters`.
    """

    _eos_token_ids: list[int] = []

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
        for name in self.__struct_fields__:
            value = getattr(twin, name)
            if isinstance(value, (list, dict)):
                setattr(twin, name, value.copy())
        return twin

    def for_core(
        self, eos_token_ids: Iterable[int] = (), bad_words: Iterable[list[int]] = (), seed: int | None = None
    ) -> CoreSampling:
        """What the core needs of it for one output.

        eos_token_ids: the model's. bad_words: token sequences. seed: this output's own, where it has another one.
        """
        seed = self.seed if seed is None else seed
        values = {name: getattr(self, name) for name in COLUMN_DEFAULTS} | {"seed": (seed or 0) & _MASK64}
        return CoreSampling(
            columns={name: value for name, value in values.items() if value != COLUMN_DEFAULTS[name]},
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            eos_token_ids=[] if self.ignore_eos else list(eos_token_ids),
            stop_token_ids=self.stop_token_ids or [],
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            logprob_token_ids=self.logprob_token_ids or [],
            logit_bias=self.logit_bias or {},
            allowed_token_ids=self.allowed_token_ids,
            bad_words=list(bad_words),
            skip_reading_prefix_cache=bool(self.skip_reading_prefix_cache),
            reasoning_gate=self.reasoning_gate,
        )

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name, row in ROWS.items() if row.is_shown)
        return f"SamplingParams({', '.join(shown)})"

    def _normalise(self) -> None:
        for name, read in _READERS:
            setattr(self, name, read(name, getattr(self, name)))
        self.stop_token_ids = list(dict.fromkeys(self.stop_token_ids or []))
        if self.seed == -1:
            self.seed = None
        if self.top_k == -1:
            self.top_k = 0
        if 0 < self.temperature < MIN_TEMPERATURE:
            logger.warning("temperature %g is raised to %g: less overflows", self.temperature, MIN_TEMPERATURE)
            self.temperature = MIN_TEMPERATURE
        if self.guided_decoding is not None:
            if self.structured_outputs is not None:
                raise parameter_error(
                    "guided_decoding is the older name of structured_outputs: give one.", "guided_decoding"
                )
            self.structured_outputs, self.guided_decoding = self.guided_decoding, None
        if isinstance(self.structured_outputs, dict):
            self.structured_outputs = StructuredOutputsParams(**self.structured_outputs)
        if not isinstance(self.output_kind, RequestOutputKind):
            raise parameter_error(f"output_kind must be a RequestOutputKind, got {self.output_kind!r}.", "output_kind")

    def _check_ranges(self) -> None:
        for name, rule in _RULES:
            value = getattr(self, name)
            if value is not None and not rule.holds(value):
                raise parameter_error(f"{name} {rule.text}, got {value}.", name, value)
        most = envs.VLLM_MAX_N_SEQUENCES
        _check("n", self.n, self.n <= most, f"must be at most {most} (VLLM_MAX_N_SEQUENCES)")
        if self.max_tokens is not None:
            within = self.min_tokens <= self.max_tokens
            _check("min_tokens", self.min_tokens, within, f"must be less than or equal to max_tokens={self.max_tokens}")

    def _check_lists(self) -> None:
        if self.stop and not self.detokenize:
            raise parameter_error("stop strings need the text: set detokenize=True to use stop.", "stop", self.stop)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise parameter_error("allowed_token_ids is empty: no token could be generated.", "allowed_token_ids")

    def _make_greedy(self) -> None:
        if self.n > 1:
            raise parameter_error(f"n must be 1 when using greedy sampling, got {self.n}.", "n", self.n)
        self.temperature = 0.0
        for name in _CANDIDATES:
            setattr(self, name, ROWS[name].default)


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


def _check(name: str, value: Any, holds: bool, rule: str) -> None:
    if not holds:
        raise parameter_error(f"{name} {rule}, got {value}.", name, value)


def _integer(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise parameter_error(
            f"{name} must be an integer, got {value!r} ({type(value).__name__}).", name, value
        ) from None


def _number(name: str, value: Any) -> float:
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise parameter_error(f"{name} must be a number, got {value!r} ({type(value).__name__}).", name, value)
    number = float(value)
    if not math.isfinite(number):
        raise parameter_error(f"{name} must be finite, got {value}.", name, value)
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
        raise parameter_error(f"{name} must be a text or a list of texts, got {value!r}.", name, value)
    if not all(texts):
        raise parameter_error(f"{name} cannot contain an empty string.", name, value)
    return list(texts)


def _token_ids(name: str, value: Any) -> list[int]:
    if isinstance(value, (str, bytes, dict)) or not hasattr(value, "__iter__"):
        raise parameter_error(f"{name} must be a list of token ids, got {value!r}.", name, value)
    return [_integer(name, token_id) for token_id in value]


def _bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise parameter_error(f"{name} must map token ids to numbers, got {type(value).__name__}.", name, value)
    return {_integer(name, token_id): _number(name, bias) for token_id, bias in value.items()}


def _clamped_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        return _bias("logit_bias", value)
    bias: dict[int, float] = {}
    for token, amount in value.items():
        try:
            token_id = int(token)
        except (TypeError, ValueError):
            raise parameter_error(
                f"logit_bias maps token ids to numbers; {token!r} is no token id.", "logit_bias"
            ) from None
        bias[token_id] = min(max(_number("logit_bias", amount), -100.0), 100.0)
    return bias


def _as_ids(value: int | list[int] | tuple[int, ...] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


_READ: dict[Kind, Callable[[str, Any], Any]] = {
    "integer": _integer,
    "count": _count,
    "number": _number,
    "text list": _texts,
    "token ids": _token_ids,
    "bias": _bias,
}
"""What brings a value of each kind to its normal form, or raises VLLMValidationError."""


def _reader(read: Callable[[str, Any], Any], *, is_optional: bool) -> Callable[[str, Any], Any]:
    if is_optional and read is not _texts:
        return lambda name, value: None if value is None else read(name, value)
    return read


_READERS = tuple(
    (name, _reader(_READ[row.kind], is_optional=row.is_optional)) for name, row in ROWS.items() if row.kind in _READ
)
_RULES = tuple((name, rule) for name, row in ROWS.items() for rule in row.rules)
_CANDIDATES = tuple(name for name, row in ROWS.items() if row.effect is Effect.CANDIDATES)
