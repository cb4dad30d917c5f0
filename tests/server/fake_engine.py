"""An engine that the server's own duties are tested on: it says what it is told to, waits, fails or dies on demand.

Tokens are bytes. What follows a prompt is a letter for each step, counted from the prompt's last token, so texts
differ by prompt; or `text`, whatever was asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from vllm.config import LoRAConfig
from vllm.exceptions import EngineDeadError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

MAX_MODEL_LEN = 64
VOCAB_SIZE = 256


class FakeTokenizer:
    chat_template = "{% for message in messages %}{{ message.role }}: {{ message['content'] }}\n{% endfor %}"

    special_ids: frozenset[int] = frozenset()

    def __init__(self) -> None:
        self.rendered: list[tuple[list[dict[str, Any]], dict[str, Any]]] = []
        """Conversations and what came with them, of every template that was applied."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """Of the last template that was applied."""
        return self.rendered[-1][1]

    def get_vocab(self) -> dict[str, int]:
        return {chr(token): token for token in range(VOCAB_SIZE)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return ([1] if add_special_tokens else []) + list(text.encode())

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return bytes(token for token in token_ids if token > 1).decode("utf-8", "replace")

    def convert_ids_to_tokens(self, token_ids: list[int]) -> list[str]:
        return [f"<{token}>" for token in token_ids]

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        return chat_template or self.chat_template

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> str:
        self.rendered.append((conversation, kwargs))
        if kwargs.get("spin"):
            while True:
                pass
        lines = [f"{message['role']}: {message['content']}" for message in conversation]
        return "\n".join(lines) + ("\nassistant:" if kwargs["add_generation_prompt"] else "")


class FakeEngine:
    def __init__(self, max_model_len: int = MAX_MODEL_LEN) -> None:
        self.model_config = SimpleNamespace(
            model="fake/model",
            served_model_name=["fake", "alias"],
            max_len=max_model_len,
            max_output_tokens=None,
            vocab_size=VOCAB_SIZE,
            skip_tokenizer_init=False,
            chat_template=None,
        )
        adapters = [{"name": "poet", "path": "/adapters/poet"}]
        self.vllm_config = SimpleNamespace(
            target="fake",
            model_config=self.model_config,
            cache_config=SimpleNamespace(enable_prefix_caching=True),
            lora_config=LoRAConfig(enable_lora=True, lora_modules=adapters),
        )
        self.adapters_asked: list[str | None] = []
        self.default_sampling_params: dict[str, Any] = {}
        self.running: set[str] = set()
        self.seen: list[tuple[str, Any, SamplingParams]] = []
        self.priorities: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: BaseException | None = None
        self.fail_after: int | None = None
        self.errored = self.stuck = False
        self.dead_error = EngineDeadError("told to")
        self.text: str | None = None
        self.stop_reason: int | str | None = None
        self.tokenizer = FakeTokenizer()
        self.images = None
        self.eos_token_ids: list[int] = []
        self.metrics = SimpleNamespace(registry=CollectorRegistry())

    async def check_structured_outputs(self, params: SamplingParams) -> None:
        """Every constraint passes."""

    async def check_health(self) -> None:
        if self.errored or self.stuck:
            raise EngineDeadError("told to")

    async def generate(
        self, prompt: dict[str, Any], sampling_params: SamplingParams, request_id: str, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        self.seen.append((request_id, prompt, sampling_params))
        adapter = kwargs.get("lora_request")
        self.adapters_asked.append(adapter and adapter.lora_name)
        self.priorities.append(kwargs.get("priority", 0))
        if self.failure is not None and self.fail_after is None:
            raise self.failure
        self.running.add(request_id)
        try:
            async for output in self._steps(prompt, sampling_params, request_id):
                yield output
        finally:
            self.running.discard(request_id)

    async def _steps(
        self, prompt: dict[str, Any], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[RequestOutput, None]:
        ids = prompt["prompt_token_ids"]
        num_tokens = params.max_tokens or 0
        tokens = [97 + (ids[-1] + step) % 26 for step in range(num_tokens)]
        if self.text is not None:
            tokens, num_tokens = list(self.text.encode()), len(self.text)
        if params.output_kind is RequestOutputKind.FINAL_ONLY:
            await self._wait(num_tokens)
            yield self._output(request_id, prompt, params, tokens, True)
            return
        for step, token in enumerate(tokens):
            await self._wait(step)
            yield self._output(request_id, prompt, params, [token], step == num_tokens - 1)

    async def _wait(self, step: int) -> None:
        await self.gate.wait()
        await asyncio.sleep(0)
        if self.failure is not None and self.fail_after is not None and step >= self.fail_after:
            raise self.failure

    def _output(
        self, request_id: str, prompt: dict[str, Any], params: SamplingParams, tokens: list[int], finished: bool
    ) -> RequestOutput:
        completions = [
            CompletionOutput(
                index=index,
                text=bytes(tokens).decode(),
                token_ids=tokens,
                logprobs=[_logprobs(token, params.logprobs) for token in tokens]
                if params.logprobs is not None
                else None,
                finish_reason=("length" if self.text is None else "stop") if finished else None,
                stop_reason=self.stop_reason if finished else None,
            )
            for index in range(params.n)
        ]
        ids = prompt["prompt_token_ids"]
        wanted = params.prompt_logprobs
        prompt_logprobs = None if wanted is None else [None, *(_logprobs(token, wanted) for token in ids[1:])]
        return RequestOutput(
            request_id, prompt.get("prompt"), ids, prompt_logprobs, completions, finished, num_cached_tokens=2
        )


def _logprobs(token: int, num_top: int) -> dict[int, Logprob]:
    """The token, less likely than each of the top ones, the last of which is impossible."""
    entries = {token: Logprob(-9.0, 50, chr(token))}
    for rank in range(1, num_top + 1):
        logprob = float("-inf") if rank == num_top else -float(rank)
        entries[32 + rank] = Logprob(logprob, rank, chr(32 + rank))
    return entries
