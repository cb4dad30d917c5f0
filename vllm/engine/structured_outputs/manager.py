"""The core's part: compiled grammars, and where each request is in its own.

Grammars arrive as the sandbox let them through. They compile in a thread with a large stack; the engine goes on, and
the request waits. Matchers of one grammar share what they learn of it, so the compiled ones are kept.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import OrderedDict
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import NamedTuple

from llguidance import LLMatcher, LLTokenizer

from vllm.engine.structured_outputs.gate import Gate, Passed
from vllm.engine.structured_outputs.limits import COMPILER_STACK_BYTES, parser_limits
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.sampling_params import ReasoningGate

MAX_COMPILED = 64


class GrammarError(Exception):
    """One request's grammar failed. The message is for its user."""


class Compiled(NamedTuple):
    """matcher: at the beginning of its grammar; copied for each request."""

    matcher: LLMatcher
    tokenizer: LLTokenizer


class RequestGrammar:
    """Where one request is in its grammar. Owned by the engine's thread."""

    def __init__(
        self, matcher: LLMatcher, tokenizer: LLTokenizer, vocab_size: int, ends_by_token: bool, gate: Gate | None = None
    ) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._gate = gate
        self._num_bytes = 4 * ((vocab_size + 31) // 32)
        self._ends_by_token = ends_by_token
        self.num_accepted = 0

    def mask(self) -> bytes | None:
        """The tokens that may follow, or None for all; EOS alone once the output is complete. Raises GrammarError."""
        if self._gate is not None and self._gate.is_inside:
            return None
        mask = self._matcher.compute_bitmask()
        self._check()
        mask = mask[: self._num_bytes].ljust(self._num_bytes, b"\0")
        if self._gate is None or self._gate.is_open or self._gate.open_id is None:
            return mask
        return _with_bit(mask, self._gate.open_id)

    def accept(self, token_ids: list[int]) -> None:
        """Go on by what was sampled. Raises GrammarError for tokens that the mask did not allow."""
        self.num_accepted += len(token_ids)
        if self._gate is not None and not self._gate.is_open:
            token_ids = self._behind(self._gate.take(token_ids))
        if token_ids and not self._matcher.consume_tokens(token_ids):
            self._check()
            raise GrammarError("no token that the request's other parameters allow goes on with it")

    def _behind(self, passed: Passed) -> list[int]:
        """The tokens for the grammar. White space that came with the end of the reasoning need not fit it."""
        overhang = self._tokenizer.tokenize_bytes(passed.overhang)
        if not passed.overhang.strip() and self._matcher.validate_tokens(overhang) < len(overhang):
            return passed.token_ids
        return overhang + passed.token_ids

    def must_end(self, min_tokens: int) -> bool:
        """Whether the output is complete, nothing but EOS could follow, and EOS would not end it."""
        if self._gate is not None and not self._gate.is_open:
            return False
        return (not self._ends_by_token or self.num_accepted < min_tokens) and self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"it cannot be followed: {self._matcher.get_error()[:400]}")


class GrammarManager:
    """Compiles grammars, and keeps the `MAX_COMPILED` most recently used ones."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._compiled: OrderedDict[bytes, Future[Compiled]] = OrderedDict()
        self._compiler: _Compiler | None = None

    @property
    def num_compiled(self) -> int:
        return len(self._compiled)

    def set_tokenizer(self, tokenizer: GrammarTokenizer) -> None:
        """Before the first grammar. What goes wrong with it is told to each request that has one."""
        if self._compiler is None:
            self._compiler = _Compiler(tokenizer)

    def wait_for_vocabulary(self) -> None:
        """Until the vocabulary of the tokenizer that was set is read."""
        if self._compiler is not None:
            self._compiler.built.wait()

    def compile(self, grammar: str) -> Future[Compiled]:
        """A matcher at the beginning of the grammar, to be copied by `start`; it may be ready already."""
        if self._compiler is None:
            raise GrammarError("the engine was given no tokenizer for grammars")
        key = hashlib.sha256(grammar.encode()).digest()
        future = self._compiled.get(key)
        if future is None or (future.done() and (future.exception() or future.result().matcher.is_error())):
            future = self._compiled[key] = self._compiler.submit(grammar)
        self._compiled.move_to_end(key)
        while len(self._compiled) > MAX_COMPILED:
            self._compiled.popitem(last=False)
        return future

    def start(self, compiled: Future[Compiled], ends_by_token: bool, gate: ReasoningGate | None) -> RequestGrammar:
        """Of a finished future. ends_by_token: whether EOS ends the request. Raises GrammarError."""
        error = compiled.exception()
        if error is not None:
            raise GrammarError(f"the grammar cannot be compiled: {error}")
        matcher, tokenizer = compiled.result()
        opened = None if gate is None else Gate(gate, tokenizer.decode_bytes)
        return RequestGrammar(matcher.deep_copy(), tokenizer, self._vocab_size, ends_by_token, opened)

    def forget(self, grammar: str) -> None:
        """After a matcher failed: what it shares with others may be spent."""
        self._compiled.pop(hashlib.sha256(grammar.encode()).digest(), None)

    def close(self) -> None:
        if self._compiler is not None:
            self._compiler.close()


def wait_for_any(futures: list[Future[Compiled]], seconds: float) -> None:
    wait(futures, seconds, FIRST_COMPLETED)


class _Compiler:
    """A thread that builds the tokenizer, then compiles what it is given. It outlives what either does wrong, panics of
    the native library among it, which are no Exceptions: whoever waits for a grammar is told."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        self._tokenizer = tokenizer
        self.built = threading.Event()
        self._queue: queue.SimpleQueue[tuple[str, Future[Compiled]] | None] = queue.SimpleQueue()
        before = threading.stack_size(COMPILER_STACK_BYTES)
        try:
            threading.Thread(target=self._run, daemon=True, name="grammars").start()
        finally:
            threading.stack_size(before)

    def submit(self, grammar: str) -> Future[Compiled]:
        future: Future[Compiled] = Future()
        self._queue.put((grammar, future))
        return future

    def close(self) -> None:
        self._queue.put(None)

    def _run(self) -> None:
        tokenizer: LLTokenizer | None = None
        fault: BaseException | None = None
        try:
            tokenizer = self._tokenizer.build()
        except BaseException as error:
            fault = error
        self.built.set()
        while (work := self._queue.get()) is not None:
            grammar, future = work
            if tokenizer is None:
                future.set_exception(fault or RuntimeError("there is no tokenizer"))
                continue
            try:
                future.set_result(_compile(grammar, tokenizer))
            except BaseException as error:
                future.set_exception(error)


def _compile(grammar: str, tokenizer: LLTokenizer) -> Compiled:
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    if error := matcher.get_error():
        raise ValueError(error)
    return Compiled(matcher, tokenizer)


def _with_bit(mask: bytes, token_id: int) -> bytes:
    changed = bytearray(mask)
    changed[token_id // 8] |= 1 << token_id % 8
    return bytes(changed)
