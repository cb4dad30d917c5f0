"""What users get back.

A `RequestOutput` is one prompt's progress or result, with one `CompletionOutput` for each of its n outputs. By the
request's `output_kind` it holds everything so far, what is new, or everything once at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vllm.logprobs import Logprob, PromptLogprobs, SampleLogprobs
from vllm.lora.request import LoRARequest


@dataclass(slots=True)
class RequestStateStats:
    """When things happened to a request.

    arrival_time: seconds since the epoch. The others are monotonic seconds, 0.0 if it did not happen.
    first_token_latency: seconds from arrival to the first token. is_corrupted: NaN or infinite logits ended an output.
    num_preemptions: always 0.
    """

    num_generation_tokens: int = 0
    arrival_time: float = 0.0
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0
    is_corrupted: bool = False
    num_preemptions: int = 0


@dataclass(slots=True)
class CompletionOutput:
    """One output of a request.

    finish_reason: "stop", "length", "abort", "error", or None while it runs. stop_reason: the stop string or stop token
    id that ended it; None for EOS and every other reason. An EOS or stop token stays in token_ids, not in text.
    cumulative_logprob: of all tokens so far, if logprobs were asked for.
    spec_decode_metrics: a `core.outputs.SpecDecodeMetrics`: drafts, drafted and accepted tokens so far; None without.
    """

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    logprobs: SampleLogprobs | None = None
    routed_experts: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: LoRARequest | None = None
    sampling_mask: Any = None
    spec_decode_metrics: Any = None
    weight_versions: Any = None

    def finished(self) -> bool:
        return self.finish_reason is not None

    def _extend(self, following: CompletionOutput) -> None:
        """Append what a later DELTA output of the same index brought."""
        self.text += following.text
        self.token_ids = [*self.token_ids, *following.token_ids]
        if following.logprobs is not None:
            self.logprobs = _joined(self.logprobs, following.logprobs)
        self.cumulative_logprob = following.cumulative_logprob
        self.finish_reason = following.finish_reason
        self.stop_reason = following.stop_reason
        self.spec_decode_metrics = following.spec_decode_metrics


@dataclass(slots=True)
class RequestOutput:
    """A request's progress or result.

    prompt: its text, None if it was given as token ids. prompt_logprobs: one entry a prompt token, the first None.
    num_cached_tokens: prompt tokens whose KV was found in the prefix cache. What belongs to features that are not here
    (encoders, transfers of caches) is None.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int] | None
    prompt_logprobs: PromptLogprobs | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestStateStats | None = None
    lora_request: LoRARequest | None = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None
    num_cached_tokens: int | None = None
    num_cache_creation_tokens: int | None = None
    kv_transfer_params: dict[str, Any] | None = None
    ec_transfer_params: dict[str, Any] | None = None
    prompt_token_id_logprobs: list[Any] | None = None

    def add(self, next_output: RequestOutput, aggregate: bool) -> None:
        """Take in a later output of the same request: joined to what is here (aggregate), or in its place."""
        self.finished |= next_output.finished
        self.metrics = next_output.metrics
        self.num_cached_tokens = next_output.num_cached_tokens
        if next_output.prompt_logprobs is not None:
            self.prompt_logprobs = next_output.prompt_logprobs
        known = {output.index: position for position, output in enumerate(self.outputs)}
        for output in next_output.outputs:
            position = known.get(output.index)
            if position is None:
                self.outputs.append(output)
            elif aggregate:
                self.outputs[position]._extend(output)
            else:
                self.outputs[position] = output


def _joined(left: SampleLogprobs | None, right: SampleLogprobs) -> SampleLogprobs:
    if left is None:
        return right
    left.extend(iter(right))
    return left


@dataclass(slots=True)
class PoolingOutput:
    data: Any


@dataclass(slots=True)
class EmbeddingOutput:
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class ClassificationOutput:
    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


@dataclass(slots=True)
class ScoringOutput:
    score: float


Output = TypeVar("Output")


@dataclass(slots=True)
class PoolingRequestOutput(Generic[Output]):
    """The result of a request to a pooling model."""

    request_id: str
    outputs: Output
    prompt_token_ids: list[int]
    finished: bool
    num_cached_tokens: int = 0


class EmbeddingRequestOutput(PoolingRequestOutput[EmbeddingOutput]):
    pass


class ClassificationRequestOutput(PoolingRequestOutput[ClassificationOutput]):
    pass


class ScoringRequestOutput(PoolingRequestOutput[ScoringOutput]):
    pass


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam. tokens and text include the prompt; orig_prompt is the prompt as it was given."""

    orig_prompt: Any
    tokens: list[int]
    logprobs: list[dict[int, Logprob]]
    lora_request: LoRARequest | None = None
    cum_logprob: float = 0.0
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """The best beams of one prompt, best first."""

    sequences: list[BeamSearchSequence] = field(default_factory=list)
