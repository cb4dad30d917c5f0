"""Hands constraints to sandboxes, and remembers what became of them.

A sandbox that dies or is too slow is ended and replaced when the next constraint comes. There are at most
`NUM_SANDBOXES` of them, started when needed: so many hostile constraints at once delay others, by the time limit each.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import OrderedDict

import msgspec

from vllm import envs
from vllm.engine.structured_outputs.limits import MAX_CONSTRAINT_CHARS
from vllm.engine.structured_outputs.matcher_tokenizer import GrammarTokenizer
from vllm.exceptions import VLLMValidationError
from vllm.logger import init_logger
from vllm.sampling_params import StructuredOutputsParams

logger = init_logger(__name__)

NUM_SANDBOXES = 2
MAX_VERDICTS = 256
MAX_VERDICT_CHARS = 16 * 1024 * 1024
_START_SECONDS = 120.0
_MAX_MESSAGE = 400
_MAX_PLACE = 200
_COMMAND = [sys.executable, "-m", "vllm.engine.structured_outputs.sandbox"]

Verdict = dict[str, str]
"""{"grammar": text} or {"error": why, "place": where in the schema}."""


class SandboxLost(Exception):
    """The sandbox died. The message is for the user."""


class GrammarChecker:
    """Thread-safe. `check` blocks for as long as a grammar may take to compile, and for its turn."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        self._tokenizer = tokenizer
        self._verdicts = VerdictCache(MAX_VERDICTS, MAX_VERDICT_CHARS)
        self._free: list[Sandbox] = []
        self._turns = threading.Semaphore(NUM_SANDBOXES)
        self._lock = threading.Lock()
        self._closed = False

    def check(self, params: StructuredOutputsParams) -> str:
        """The constraint's grammar. Raises VLLMValidationError for one that cannot be used."""
        line = constraint_line(params)
        key = hashlib.sha256(line).digest()
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._judge(line)
            self._verdicts.put(key, verdict)
        if "grammar" in verdict:
            return verdict["grammar"]
        raise _refusal(params, verdict["error"], verdict.get("place", ""))

    def known(self, params: StructuredOutputsParams) -> str | None:
        """The grammar of a constraint that was checked before. Raises as `check` does; None if it is to be checked."""
        key = hashlib.sha256(constraint_line(params)).digest()
        return self.check(params) if self._verdicts.get(key) is not None else None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for sandbox in free:
            sandbox.close()

    def _judge(self, line: bytes) -> Verdict:
        """A sandbox that dies though it has served before may have died of age: a new one has the last word."""
        with self._turns:
            for _ in range(NUM_SANDBOXES + 1):
                sandbox = self._take()
                is_new = sandbox.num_asked == 0
                try:
                    verdict = sandbox.ask(line, envs.VLLM_REGEX_COMPILATION_TIMEOUT_S)
                except TimeoutError as error:
                    return {"error": str(error)}
                except SandboxLost as lost:
                    if is_new:
                        return {"error": str(lost)}
                    continue
                self._give_back(sandbox)
                return verdict
        raise RuntimeError("no sandbox for grammars stays alive")

    def _take(self) -> Sandbox:
        with self._lock:
            free = self._free.pop() if self._free else None
        return Sandbox(self._tokenizer) if free is None else free

    def _give_back(self, sandbox: Sandbox) -> None:
        with self._lock:
            if not self._closed:
                self._free.append(sandbox)
                return
        sandbox.close()


class VerdictCache:
    """Verdicts by key, the least recently used forgotten first. Bounded by their number and by their text."""

    def __init__(self, max_entries: int, max_chars: int) -> None:
        self._max_entries = max_entries
        self._max_chars = max_chars
        self._entries: OrderedDict[bytes, Verdict] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Verdict | None:
        with self._lock:
            verdict = self._entries.get(key)
            if verdict is not None:
                self._entries.move_to_end(key)
            return verdict

    def put(self, key: bytes, verdict: Verdict) -> None:
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = verdict
            self._num_chars += _num_chars(verdict)
            while len(self._entries) > self._max_entries or self._num_chars > self._max_chars:
                _, oldest = self._entries.popitem(last=False)
                self._num_chars -= _num_chars(oldest)


class Sandbox:
    """A sandbox process with its tokenizer. Used by one thread at a time."""

    def __init__(self, tokenizer: GrammarTokenizer) -> None:
        """Raises RuntimeError if the process does not come up: no fault of any constraint."""
        self.num_asked = 0
        self.process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=envs.of_children()
        )
        try:
            self._exchange(msgspec.json.encode(tokenizer) + b"\n", _START_SECONDS)
        except (SandboxLost, TimeoutError) as error:
            raise RuntimeError("the process that compiles grammars does not start; its log has the cause") from error

    def ask(self, line: bytes, seconds: float) -> Verdict:
        """Raises SandboxLost or TimeoutError; this object is of no use then."""
        self.num_asked += 1
        verdict: Verdict = json.loads(self._exchange(line, seconds))
        return verdict

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _exchange(self, line: bytes, seconds: float) -> bytes:
        try:
            return self._read_line(self._write(line), time.monotonic() + seconds)
        except TimeoutError:
            self.close()
            raise TimeoutError(f"it takes more than {seconds:g} s to compile; simplify it") from None
        except OSError:  # the pipe broke
            self.close()
            raise SandboxLost("it takes too much memory or nesting to compile; simplify it") from None

    def _write(self, line: bytes) -> int:
        """Lines are read as they come, so writing does not block for long. Returns where the answer is read."""
        if self.process.stdin is None or self.process.stdout is None:
            raise OSError("the process has no pipes")
        view = memoryview(line)
        while view:
            view = view[os.write(self.process.stdin.fileno(), view) :]
        return self.process.stdout.fileno()

    def _read_line(self, fd: int, deadline: float) -> bytes:
        pieces: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(fd, selectors.EVENT_READ)
            while not (pieces and pieces[-1].endswith(b"\n")):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise TimeoutError
                piece = os.read(fd, 1 << 16)
                if not piece:
                    raise OSError("the process ended")
                pieces.append(piece)
        return b"".join(pieces)


def constraint_line(params: StructuredOutputsParams) -> bytes:
    """A constraint as one line of JSON. Raises VLLMValidationError for what is no JSON, or too long."""
    fields = {
        name: value
        for name, value in msgspec.structs.asdict(params).items()
        if value is not None and value is not False and name != "backend"
    }
    try:
        line = json.dumps(fields, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(params, f"it is not JSON ({error})") from None
    if len(line) > MAX_CONSTRAINT_CHARS:
        raise _refusal(params, f"it has {len(line)} characters; at most {MAX_CONSTRAINT_CHARS} are taken")
    return line + b"\n"


def _refusal(params: StructuredOutputsParams, reason: str, place: str = "") -> VLLMValidationError:
    """place: of the fault, behind the constraint's own."""
    kind = f"{params.kinds[0]}{place[:_MAX_PLACE]}"
    reason = reason.strip()
    shown = reason if len(reason) <= _MAX_MESSAGE else f"{reason[:_MAX_MESSAGE]}..."
    return VLLMValidationError(f"structured_outputs.{kind} cannot be used: {shown}", parameter="structured_outputs")


def _num_chars(verdict: Verdict) -> int:
    return sum(map(len, verdict.values()))
