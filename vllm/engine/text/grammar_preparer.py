"""The front's part: gives a request its grammar before the core sees it."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vllm.core.contract import Capabilities
from vllm.engine.structured_outputs.checker import NUM_SANDBOXES, GrammarChecker
from vllm.engine.structured_outputs.defaults import BACKENDS, OutputDefaults
from vllm.engine.structured_outputs.limits import MAX_REQUEST_GRAMMAR_CHARS
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer, within
from vllm.engine.text.input_processor import ProcessedRequest
from vllm.engine.text.tokenizer import Tokenizer
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams


class GrammarPreparer:
    """`send`: hands the core the tokenizer; called once, by `prepare` or before the first request with a grammar."""

    def __init__(
        self,
        capabilities: Capabilities,
        tokenizer: Tokenizer | None,
        vocab_size: int,
        eos_token_ids: list[int],
        send: Callable[[GrammarTokenizer], None],
        defaults: OutputDefaults,
    ) -> None:
        self._capabilities = capabilities
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._send = send
        self._defaults = defaults
        self._checker: GrammarChecker | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._finalizers: list[weakref.finalize[..., GrammarPreparer]] = []

    def prepare(self) -> bool:
        """Let the core read the vocabulary now: at the start it stops nobody, later everybody. False: it need not."""
        if not self._capabilities.structured_outputs or self._tokenizer is None:
            return False
        self._start()
        return True

    def check(self, params: SamplingParams) -> str | None:
        """The grammar of a request's constraint, if it has one. Blocks while it is compiled for the first time.

        Raises VLLMValidationError for a constraint that cannot be used, or that this model cannot honour.
        """
        constraint = self._constraint(params)
        return None if constraint is None else self._started(constraint).check(constraint)

    async def check_async(self, params: SamplingParams) -> str | None:
        """The same, without blocking the event loop."""
        constraint = self._constraint(params)
        if constraint is None:
            return None
        checker = self._started(constraint)
        known = checker.known(constraint)
        if known is not None:
            return known
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_SANDBOXES, thread_name_prefix="grammar-check")
        return await asyncio.get_running_loop().run_in_executor(self._threads, checker.check, constraint)

    def attach(self, request: ProcessedRequest, grammar: str | None) -> None:
        """Put a grammar into a request's core requests."""
        if grammar is None:
            return
        if len(grammar) * len(request.core_requests) > MAX_REQUEST_GRAMMAR_CHARS:
            raise VLLMValidationError(
                f"n={len(request.core_requests)} outputs with a grammar of {len(grammar)} characters each are more "
                f"than the {MAX_REQUEST_GRAMMAR_CHARS} that fit one request: lower n.",
                parameter="n",
            )
        for core_request in request.core_requests:
            core_request.grammar = grammar

    def close(self) -> None:
        if self._checker is not None:
            self._checker.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _constraint(self, params: SamplingParams) -> StructuredOutputsParams | None:
        given = params.structured_outputs
        return None if given is None else self._defaults.applied_to(given)

    def _started(self, constraint: StructuredOutputsParams) -> GrammarChecker:
        if not self._capabilities.structured_outputs:
            raise _refusal(f"this model on the {self._capabilities.target} target has no structured outputs")
        if constraint.backend not in (None, *BACKENDS):
            raise _refusal(f"backend {constraint.backend!r} is not available; known: {', '.join(BACKENDS)}")
        return self._start()

    def _start(self) -> GrammarChecker:
        if self._checker is None:
            tokenizer = self._grammar_tokenizer()
            self._send(tokenizer)
            self._checker = GrammarChecker(tokenizer)
            self._finalizers.append(weakref.finalize(self, self._checker.close))
        return self._checker

    def _grammar_tokenizer(self) -> GrammarTokenizer:
        if self._tokenizer is None:
            raise _refusal("they need a tokenizer, and skip_tokenizer_init is set")
        state = self._tokenizer.backend_tokenizer.to_str()
        num_tokens = self._tokenizer.max_token_id + 1
        if num_tokens > self._vocab_size:
            state, num_tokens = within(state, self._vocab_size), self._vocab_size
        ends = [token_id for token_id in self._eos_token_ids if token_id < self._vocab_size]
        return GrammarTokenizer(state, self._vocab_size, num_tokens, ends)


def _refusal(reason: str) -> VLLMValidationError:
    return VLLMValidationError(f"structured_outputs are not possible: {reason}.", parameter="structured_outputs")
