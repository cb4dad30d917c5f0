"""From what the core reports (tokens) to what users get: text, stop strings, log-probabilities, `RequestOutput`s.

A user's request with n > 1 is n requests of the core; they are joined here. The first of them brings the prompt's
log-probabilities; the outputs of its siblings wait for these. A stop string is found here, since the core has no text:
the output ends, and the core's request is to be aborted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vllm.core.outputs import EngineCoreOutput, RequestTimes, SpecDecodeMetrics
from vllm.engine.text.detokenizer import Detokenizer
from vllm.engine.text.input_processor import ProcessedRequest
from vllm.engine.text.logprobs import LogprobsBuilder, PromptLogprobsBuilder
from vllm.engine.text.tokenizer import Tokenizer
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.logprobs import PromptLogprobs, SampleLogprobs
from vllm.outputs import CompletionOutput, RequestOutput, RequestStateStats
from vllm.sampling_params import RequestOutputKind, SamplingParams

logger = init_logger(__name__)

Sink = Callable[[RequestOutput], None]


class CompletionState:
    """One output of a request, as it grows. num_sent: the tokens that users were told of."""

    def __init__(
        self, request: RequestState, req_id: str, index: int, params: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self.request = request
        self.req_id = req_id
        self.index = index
        self.detokenizer = Detokenizer(tokenizer, params)
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.spec_decode_metrics: SpecDecodeMetrics | None = None
        self.num_generated = 0
        self.num_sent = 0
        self.is_end_told = False
        self._logprobs = None if params.logprobs is None else LogprobsBuilder(tokenizer, params, params.logprobs)

    def update(self, output: EngineCoreOutput) -> None:
        """Take in a step's tokens, up to the one that completes a stop string."""
        ended_by_token = output.finish_reason == "stop"
        taken = self.detokenizer.update(
            output.new_token_ids, finished=output.finished, ends_in_stop_token=ended_by_token
        )
        self.token_ids += output.new_token_ids[:taken]
        self.num_generated += taken
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason
        self.spec_decode_metrics = output.spec_decode_metrics or self.spec_decode_metrics
        if self.detokenizer.stop_reason is not None:
            self.finish_reason, self.stop_reason = "stop", self.detokenizer.stop_reason
        elif output.finish_reason == "error":
            self.stop_reason = output.error
        if self._logprobs is not None:
            self._logprobs.add((output.logprobs or ())[:taken])

    def take(self) -> CompletionOutput:
        """What came since this was last called."""
        token_ids, self.token_ids = self.token_ids, []
        self.num_sent += len(token_ids)
        return self._output(self.detokenizer.take(), token_ids, self._logprobs.take() if self._logprobs else None)

    def snapshot(self) -> CompletionOutput:
        """All so far."""
        self.num_sent = len(self.token_ids)
        logprobs = None if self._logprobs is None else self._logprobs.logprobs
        if self.finish_reason is None and logprobs is not None:
            logprobs = logprobs[:]
        return self._output(self.detokenizer.text, self.token_ids.copy(), logprobs)

    def _output(self, text: str, token_ids: list[int], logprobs: SampleLogprobs | None) -> CompletionOutput:
        self.is_end_told = self.finish_reason is not None
        return CompletionOutput(
            self.index,
            text,
            token_ids,
            self._logprobs.cumulative_logprob if self._logprobs else None,
            logprobs,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            spec_decode_metrics=self.spec_decode_metrics,
        )


class RequestState:
    """A user's request and its n outputs."""

    def __init__(
        self, request: ProcessedRequest, tokenizer: Tokenizer | None, sink: Sink | None, *, with_metrics: bool
    ) -> None:
        params = request.params
        self.request = request
        self.sink = sink
        self.kind = params.output_kind
        self.interval = params.stream_interval or 1
        self.with_metrics = with_metrics
        self.times: RequestTimes | None = None
        self.num_cached_tokens: int | None = None
        self.is_corrupted = False
        self._prompt: PromptLogprobsBuilder | None = None
        if (count := params.prompt_logprobs) is not None:
            self._prompt = PromptLogprobsBuilder(tokenizer, params, count, request.prompt_token_ids[0])
        self._held: dict[CompletionState, None] = {}
        self.completions = [
            CompletionState(self, core.req_id, index, params, tokenizer)
            for index, core in enumerate(request.core_requests)
        ]

    @property
    def finished(self) -> bool:
        return all(completion.finish_reason is not None for completion in self.completions)

    @property
    def unfinished_ids(self) -> list[str]:
        return [completion.req_id for completion in self.completions if completion.finish_reason is None]

    def update(self, completion: CompletionState, output: EngineCoreOutput) -> RequestOutput | None:
        """Take in what the core reports of one output; what users are told, if anything."""
        if output.times is not None:
            self.times = output.times
        self.is_corrupted |= output.has_bad_logits
        self.num_cached_tokens = max(output.num_cached_tokens, self.num_cached_tokens or 0)
        if output.prompt_logprobs is not None and self._prompt is not None:
            self._prompt.add(output.prompt_logprobs)
        if not output.new_token_ids and not output.finished:
            return None
        completion.update(output)
        return self._progress(completion)

    def _progress(self, completion: CompletionState) -> RequestOutput | None:
        if self.kind is RequestOutputKind.FINAL_ONLY:
            return self._build([each.snapshot() for each in self.completions]) if self.finished else None
        if self._waits_for_prompt:
            self._held[completion] = None
            return None
        if self._held:
            news, self._held = self._held | {completion: None}, {}
            return self._build_progress(list(news))
        num_new = len(completion.token_ids) - (completion.num_sent if self.kind is RequestOutputKind.CUMULATIVE else 0)
        if completion.finish_reason is None and completion.num_sent and num_new < self.interval:
            return None
        return self._build_progress([completion])

    @property
    def _waits_for_prompt(self) -> bool:
        """Whether the prompt's log-probabilities are still to come, with the first output."""
        return self._prompt is not None and self._prompt_logprobs is None and self.completions[0].finish_reason is None

    @property
    def _prompt_logprobs(self) -> PromptLogprobs | None:
        """All of them, or none."""
        found = None if self._prompt is None else self._prompt.logprobs
        return found if found is not None and len(found) == len(self.request.prompt_token_ids) else None

    def _build_progress(self, news: list[CompletionState]) -> RequestOutput:
        """news: the outputs that users are to be told of."""
        if self.kind is RequestOutputKind.DELTA:
            return self._build([each.take() for each in news])
        return self._build([each.snapshot() for each in self.completions])

    def abort(self) -> RequestOutput:
        """End what still runs; the last word to the user."""
        return self._end("abort")

    def fail(self, message: str) -> RequestOutput:
        """The same, for a fault of ours."""
        return self._end("error", message)

    def _end(self, finish_reason: str, stop_reason: str | None = None) -> RequestOutput:
        for completion in self.completions:
            if completion.finish_reason is None:
                completion.finish_reason, completion.stop_reason = finish_reason, stop_reason
                completion.detokenizer.update([], finished=True)
        return self._build_progress([completion for completion in self.completions if not completion.is_end_told])

    def _build(self, outputs: list[CompletionOutput]) -> RequestOutput:
        request = self.request
        prompt_logprobs = self._prompt_logprobs
        if self.kind is RequestOutputKind.DELTA:
            self._prompt = None
        return RequestOutput(
            request.request_id,
            request.prompt,
            request.prompt_token_ids,
            prompt_logprobs,
            outputs,
            self.finished,
            self._metrics() if self.with_metrics else None,
            request.lora_request,
            num_cached_tokens=self.num_cached_tokens,
        )

    def _metrics(self) -> RequestStateStats:
        num_generated = sum(completion.num_generated for completion in self.completions)
        stats = RequestStateStats(num_generated, self.request.arrival_time, is_corrupted=self.is_corrupted)
        if self.times is not None:
            stats.queued_ts = self.times.queued
            stats.scheduled_ts = self.times.scheduled
            stats.first_token_ts = self.times.first_token
            stats.last_token_ts = self.times.last_token
            if self.times.first_token:
                stats.first_token_latency = self.times.first_token - self.times.arrival
        return stats


@dataclass(slots=True)
class Processed:
    """request_outputs: of requests without a sink. abort_ids: requests of the core that a stop string ended."""

    request_outputs: list[RequestOutput] = field(default_factory=list)
    abort_ids: list[str] = field(default_factory=list)


class OutputProcessor:
    """Knows every unfinished request, by the user's id and by the core's ids."""

    def __init__(self, tokenizer: Tokenizer | None, *, with_metrics: bool, stream_interval: int = 1) -> None:
        """with_metrics: whether `RequestOutput.metrics` is filled."""
        self._tokenizer = tokenizer
        self._with_metrics = with_metrics
        self._stream_interval = stream_interval
        self._requests: dict[str, RequestState] = {}
        self._completions: dict[str, CompletionState] = {}
        self._waiting_tokens: dict[str, int] = {}

    @property
    def num_unfinished(self) -> int:
        """Users' requests."""
        return len(self._requests)

    @property
    def num_core_requests(self) -> int:
        return len(self._completions)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of the core's requests that have brought no token yet."""
        return sum(self._waiting_tokens.values())

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def add(self, request: ProcessedRequest, sink: Sink | None = None) -> None:
        """Raises VLLMValidationError if one of the ids is in use."""
        state = RequestState(request, self._tokenizer, sink, with_metrics=self._with_metrics)
        if request.params.stream_interval is None:
            state.interval = self._stream_interval
        taken = request.request_id in self._requests or any(c.req_id in self._completions for c in state.completions)
        if taken:
            raise VLLMValidationError(
                f"request id {request.request_id!r} is in use; ids must be unique among unfinished requests.",
                parameter="request_id",
            )
        self._requests[request.request_id] = state
        for completion in state.completions:
            self._completions[completion.req_id] = completion
            self._waiting_tokens[completion.req_id] = len(request.prompt_token_ids)

    def abort(self, request_ids: Iterable[str]) -> list[str]:
        """End requests, by the user's ids; unknown ones are no fault. Returns the core's ids that are to be aborted."""
        core_ids: list[str] = []
        for request_id in request_ids:
            if (state := self._requests.get(request_id)) is not None:
                core_ids += state.unfinished_ids
                self._remove(state)
                self._deliver(state, state.abort())
        return core_ids

    def abort_all(self) -> list[str]:
        return self.abort(list(self._requests))

    def fail_all(self) -> list[RequestState]:
        """Forget every request, as the engine is dead; returns them, so that their users can be told."""
        states = list(self._requests.values())
        for state in states:
            self._remove(state)
        return states

    def process(self, outputs: list[EngineCoreOutput]) -> Processed:
        """Take in a step's outputs. A fault in one request's ends that request."""
        processed = Processed()
        for output in outputs:
            completion = self._completions.get(output.req_id)
            if completion is None:
                continue
            state = completion.request
            try:
                result = state.update(completion, output)
            except Exception as error:
                logger.exception("the output of request %s cannot be processed", state.request.request_id)
                processed.abort_ids += state.unfinished_ids
                result = state.fail(f"the output cannot be processed: {error}")
            self._settle(state, completion, output, processed)
            if result is not None and not self._deliver(state, result):
                processed.request_outputs.append(result)
        return processed

    def _settle(
        self, state: RequestState, completion: CompletionState, output: EngineCoreOutput, processed: Processed
    ) -> None:
        """Keep the books after an update. An output that was ended here is marked so, for whoever counts."""
        if output.new_token_ids:
            self._waiting_tokens.pop(completion.req_id, None)
        if completion.finish_reason is None:
            return
        if not output.finished and completion.req_id not in processed.abort_ids:
            processed.abort_ids.append(completion.req_id)
        output.finish_reason = completion.finish_reason
        self._forget(completion)
        if state.finished:
            self._remove(state)

    def _deliver(self, state: RequestState, output: RequestOutput) -> bool:
        if state.sink is None:
            return False
        state.sink(output)
        return True

    def _remove(self, state: RequestState) -> None:
        self._requests.pop(state.request.request_id, None)
        for completion in state.completions:
            self._forget(completion)

    def _forget(self, completion: CompletionState) -> None:
        self._completions.pop(completion.req_id, None)
        self._waiting_tokens.pop(completion.req_id, None)
