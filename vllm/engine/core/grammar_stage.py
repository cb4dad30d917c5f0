"""Requests with a grammar, beside the scheduler: those that wait for theirs to compile, and where the others are.

    add -> (compiled in a thread) -> take_ready -> scheduler -> fill_masks, advance, fill_masks, ... -> gone

Every fault here is one request's, and ends that request.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from vllm.core.outputs import GRAMMAR_FAULT, EngineCoreOutput
from vllm.engine.messages import EngineCoreRequest
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.sample.core_sampling import CoreSampling

if TYPE_CHECKING:
    from vllm.engine.structured_outputs.manager import Compiled, GrammarManager, RequestGrammar

WAIT_SECONDS = 0.01


class Ending(NamedTuple):
    """A request that the scheduler is to end, and why: "error" with a message, or "stop"."""

    req_id: str
    reason: str
    error: str | None = None


class _Waiting(NamedTuple):
    request: EngineCoreRequest
    sampling: CoreSampling
    compiled: Future[Compiled]


class _Running(NamedTuple):
    request: EngineCoreRequest
    sampling: CoreSampling
    grammar: RequestGrammar


class GrammarStage:
    """Owned by the engine's thread."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._manager: GrammarManager | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._running: dict[str, _Running] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[EngineCoreRequest]:
        """Requests whose grammars are being compiled."""
        return [waiting.request for waiting in self._waiting.values()]

    @property
    def num_waiting_tokens(self) -> int:
        return sum(len(waiting.request.prompt_token_ids) for waiting in self._waiting.values())

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def manager(self) -> GrammarManager:
        if self._manager is None:
            from vllm.engine.structured_outputs.manager import GrammarManager

            self._manager = GrammarManager(self._vocab_size)
        return self._manager

    def set_tokenizer(self, tokenizer: GrammarTokenizer) -> None:
        self.manager.set_tokenizer(tokenizer)

    def wait_for_vocabulary(self) -> None:
        self.manager.wait_for_vocabulary()

    def add(self, request: EngineCoreRequest) -> None:
        """Let a request's grammar be compiled. Raises ValueError for an id in use, GrammarError without tokenizer."""
        if not isinstance(request.work, CoreSampling):
            raise ValueError("a grammar holds generated text to its form, and this request generates none")
        if request.grammar is None or request.req_id in self._waiting or request.req_id in self._running:
            raise ValueError(f"request id {request.req_id!r} is in use; ids must be unique among unfinished requests")
        self._waiting[request.req_id] = _Waiting(request, request.work, self.manager.compile(request.grammar))

    def abort(self, req_id: str) -> EngineCoreOutput | None:
        """The last output of a request that waits here. One that runs is the scheduler's to end."""
        self._running.pop(req_id, None)
        waiting = self._waiting.pop(req_id, None)
        if waiting is None:
            return None
        return EngineCoreOutput(req_id, [], finish_reason="abort", front=waiting.request.front)

    def drop(self, req_id: str) -> None:
        self._running.pop(req_id, None)

    def take_ready(self, *, may_wait: bool) -> list[tuple[EngineCoreRequest, Exception | None]]:
        """Requests for the scheduler, in order of arrival, or what went wrong with them."""
        if not self._waiting:
            return []
        if may_wait:
            from vllm.engine.structured_outputs.manager import wait_for_any

            wait_for_any([waiting.compiled for waiting in self._waiting.values()], WAIT_SECONDS)
        ready = [waiting for waiting in self._waiting.values() if waiting.compiled.done()]
        return [(waiting.request, self._start(waiting)) for waiting in ready]

    def _start(self, waiting: _Waiting) -> Exception | None:
        request = waiting.request
        del self._waiting[request.req_id]
        sampling = waiting.sampling
        try:
            grammar = self.manager.start(waiting.compiled, bool(sampling.eos_token_ids), sampling.reasoning_gate)
        except Exception as error:
            return error
        self._running[request.req_id] = _Running(request, sampling, grammar)
        return None

    def fill_masks(self, masks: dict[str, bytes], req_ids: list[str]) -> list[Ending]:
        """Write the masks of those of `req_ids` that have a grammar."""
        endings = []
        for req_id in req_ids:
            running = self._running.get(req_id)
            if running is None:
                continue
            try:
                mask = running.grammar.mask()
            except Exception as error:
                endings.append(self._failed(running, error))
                continue
            if mask is not None:
                masks[req_id] = mask
        return endings

    def advance(self, outputs: list[EngineCoreOutput]) -> list[Ending]:
        """Take in a step's tokens; what is to be ended by them."""
        endings = []
        for output in outputs:
            running = self._running.get(output.req_id)
            if running is None:
                continue
            if output.finished:
                del self._running[output.req_id]
            elif output.new_token_ids and (ending := self._accept(running, output.new_token_ids)) is not None:
                endings.append(ending)
        return endings

    def close(self) -> None:
        if self._manager is not None:
            self._manager.close()

    def _accept(self, running: _Running, token_ids: list[int]) -> Ending | None:
        req_id = running.request.req_id
        try:
            running.grammar.accept(token_ids)
        except Exception as error:
            return self._failed(running, error)
        if running.grammar.must_end(running.sampling.min_tokens):
            del self._running[req_id]
            return Ending(req_id, "stop")
        return None

    def _failed(self, running: _Running, error: Exception) -> Ending:
        req_id, grammar = running.request.req_id, running.request.grammar
        del self._running[req_id]
        if grammar is not None:
            self.manager.forget(grammar)
        return Ending(req_id, "error", f"{GRAMMAR_FAULT}{error}")
