"""Drives a `NeuronModelRunner` by hand: what a scheduler may ask of a target, said directly."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vllm.checkpoint import open_checkpoint
from vllm.config import CacheConfig, ModelConfig, NeuronOptions, ParallelConfig, SchedulerConfig, VllmConfig
from vllm.core.contract import CachedRequest, ModelRunnerOutput, NewRequest, PromptImages, SchedulerOutput, Tokens
from vllm.device.model import DeviceModel, resolve_target
from vllm.runner.model_runner import NeuronModelRunner
from vllm.sampling_params import SamplingParams
from vllm.settings.resolve import resolve


def resolved_config(
    model: Path,
    device: str,
    *,
    max_num_seqs: int = 4,
    max_model_len: int = 64,
    scheduling_policy: str = "fcfs",
    async_scheduling: bool | None = None,
    tensor_parallel_size: int = 1,
    override: dict[str, Any] | None = None,
    **model_options: Any,
) -> VllmConfig:
    """A resolved config for a checkpoint, float32 unless said otherwise, of contiguous KV."""
    checkpoint = open_checkpoint(str(model))
    options = {"dtype": "float32", **model_options}
    config = VllmConfig(
        model_config=ModelConfig(
            model=str(model),
            model_path=str(checkpoint.path),
            hf_config=checkpoint.config,
            max_model_len=max_model_len,
            **options,
        ),
        cache_config=CacheConfig(enable_prefix_caching=False),
        scheduler_config=SchedulerConfig(
            max_num_seqs=max_num_seqs,
            scheduling_policy=scheduling_policy,
            async_scheduling=async_scheduling,
            enable_chunked_prefill=False,
        ),
        parallel_config=ParallelConfig(tensor_parallel_size=tensor_parallel_size),
        neuron_options=NeuronOptions(device=device, override_neuron_config=override or {}),
    )
    return resolve(config)


def with_blocks(config: VllmConfig, block_size: int, num_blocks: int) -> VllmConfig:
    """The same config over block KV."""
    cache = dataclasses.replace(config.cache_config, block_size=block_size, num_blocks=num_blocks)
    return config.replace(cache_config=cache)


def load(config: VllmConfig, directory: Path) -> DeviceModel:
    """Compile into `directory` if it is empty, and load."""
    target = resolve_target(config.target)
    directory.mkdir(parents=True, exist_ok=True)
    if not any(directory.iterdir()):
        target.compile(config, directory, lambda what, share: None)
    return target.load(config, directory)


class Driver:
    """Requests on a runner, advanced step by step. `tokens[req_id]` is what each has generated so far."""

    def __init__(self, config: VllmConfig, device: DeviceModel) -> None:
        self.runner = NeuronModelRunner(config, device)
        self.tokens: dict[str, list[int]] = {}
        self.logprobs: dict[str, list[Any]] = {}
        self.prompt_logprobs: dict[str, list[Any]] = {}
        self.errors: dict[str, str] = {}
        self._known: dict[str, int] = {}
        self._computed: dict[str, int] = {}
        self._pending: dict[str, NewRequest] = {}
        self._finished: list[str] = []

    def add(
        self,
        req_id: str,
        prompt: list[int],
        blocks: list[int],
        params: SamplingParams | None = None,
        images: PromptImages | None = None,
    ) -> None:
        """Admit a request; its first `step` carries it across."""
        params = params or SamplingParams(temperature=0.0, max_tokens=1000)
        self._pending[req_id] = NewRequest(req_id, prompt, params.for_core(), blocks, images=images)
        self._known[req_id], self._computed[req_id] = len(prompt), 0
        self.tokens[req_id], self.logprobs[req_id], self.prompt_logprobs[req_id] = [], [], []

    def step(self, **num_tokens: int) -> ModelRunnerOutput:
        """Advance the named requests by so many tokens each (0: all that is known and not computed)."""
        work = SchedulerOutput(finished_req_ids=self._finished)
        self._finished = []
        for req_id, count in num_tokens.items():
            computed = self._computed[req_id]
            work.num_scheduled_tokens[req_id] = count or self._known[req_id] - computed
            if req_id in self._pending:
                work.new_requests.append(self._pending.pop(req_id))
            else:
                work.cached_requests.append(CachedRequest(req_id, computed))
        output = self.runner.execute(work)
        for req_id, count in work.num_scheduled_tokens.items():
            self._computed[req_id] += count
            got = output.results.get(req_id)
            if isinstance(got, Tokens):
                self._known[req_id] += len(got.token_ids)
                self.tokens[req_id] += got.token_ids
                self.logprobs[req_id] += got.logprobs or []
            self.prompt_logprobs[req_id] += output.prompt_logprobs.get(req_id, [])
        self.errors.update(output.errors)
        return output

    def finish(self, req_id: str) -> None:
        self._finished.append(req_id)

    def generate(self, req_id: str, count: int) -> list[int]:
        """Advance one request alone until it has `count` tokens."""
        while len(self.tokens[req_id]) < count:
            self.step(**{req_id: 0})
            assert req_id not in self.errors, self.errors
        return self.tokens[req_id]
