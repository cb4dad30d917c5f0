"""A scheduler and a model runner over a device, without processes: requests in, tokens and logprobs out."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from typing import Any

from vllm.config import VllmConfig
from vllm.core.contract import TokenLogprobs
from vllm.core.outputs import EngineCoreOutput
from vllm.core.request import Request
from vllm.core.scheduler import Scheduler
from vllm.device.model import DeviceModel
from vllm.runner.model_runner import NeuronModelRunner
from vllm.sampling_params import SamplingParams


@dataclass
class Result:
    """All that a user sees of a request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_cached_tokens: int = 0
    finish_reason: str | None = None

    def take(self, output: EngineCoreOutput) -> None:
        self.token_ids += output.new_token_ids
        self.logprobs += output.logprobs or []
        self.prompt_logprobs += output.prompt_logprobs or []
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        self.finish_reason = output.finish_reason or self.finish_reason


class MiniEngine:
    def __init__(self, config: VllmConfig, device: DeviceModel) -> None:
        self.scheduler = Scheduler(config)
        self.runner = NeuronModelRunner(config, device)
        self.results: dict[str, Result] = {}
        self.num_steps = 0
        self.most_tokens = 0

    def add(self, prompt: list[int], params: SamplingParams, *, salt: str | None = None) -> str:
        req_id = f"r{len(self.results)}"
        self.scheduler.add_request(Request(req_id, prompt, params.for_core(), cache_salt=salt))
        self.results[req_id] = Result()
        return req_id

    def abort(self, req_id: str) -> None:
        if (output := self.scheduler.finish_request(req_id)) is not None:
            self.results[req_id].take(output)

    def step(self) -> None:
        work = self.scheduler.schedule()
        self.num_steps += 1
        self.most_tokens = max(self.most_tokens, work.total_num_scheduled_tokens)
        for output in self.scheduler.update_from_output(work, self.runner.execute(work)):
            self.results[output.req_id].take(output)

    def run(self) -> None:
        while self.scheduler.has_unfinished_requests() or self.scheduler.has_finished_requests():
            self.step()

    def generate(self, prompt: list[int], params: SamplingParams, **options: Any) -> Result:
        req_id = self.add(prompt, params, **options)
        self.run()
        return self.results[req_id]

    def check_clean(self) -> None:
        self.scheduler.check_integrity()
        pool = self.scheduler.pool
        assert (pool.num_free, pool.num_promised) == (pool.num_blocks, 0)
        assert not self.runner.batch.rows and not self.runner.batch._lines_in_use


def variant(
    config: VllmConfig,
    *,
    block_size: int | None = None,
    num_blocks: int = 0,
    prefix_caching: bool = False,
    step_tokens: int = 0,
    max_num_seqs: int | None = None,
    prefill_batch_size: int | None = None,
) -> VllmConfig:
    """The same resolved config in another layout. step_tokens: the budget of mixed steps; 0: prompts are whole."""
    rows = max_num_seqs or config.scheduler_config.max_num_seqs
    longest = config.model_config.max_len
    block_size = block_size or longest
    enough = rows * -(-longest // block_size)
    limits: dict[str, Any] = {"max_num_seqs": rows, "prefill_batch_size": prefill_batch_size or rows}
    if step_tokens:
        limits |= {"mixed_steps": True, "max_num_batched_tokens": max(step_tokens, rows)}
    else:
        limits |= {"mixed_steps": False, "max_num_batched_tokens": longest * rows}
    return config.replace(
        cache_config=dataclasses.replace(
            config.cache_config,
            block_size=block_size,
            num_blocks=max(num_blocks, enough),
            enable_prefix_caching=prefix_caching,
        ),
        scheduler_config=dataclasses.replace(config.scheduler_config, **limits),
    )


def random_request(rng: random.Random, longest: int) -> tuple[list[int], SamplingParams, str | None]:
    """Few prompts, often beginning alike or equal, so that prefixes are hit in every way; few kinds of parameters."""
    trunk = [3 + (i * 7 + rng.randrange(2) * 5) % 50 for i in range(1)] + [4 + i % 60 for i in range(longest)]
    prompt = trunk[rng.randrange(2) :][: rng.choice([1, 2, 7, 8, 9, 15, 16, 17, 24, longest - 6, longest - 1])]
    if rng.random() < 0.4:
        prompt = [*prompt[: longest - 2], 70 + rng.randrange(3)]
    options: dict[str, Any] = rng.choice(
        [
            {"temperature": 0.0},
            {"temperature": 0.0, "logprobs": 2},
            {"temperature": 1.0, "seed": rng.randrange(2), "logprobs": 1, "presence_penalty": 0.5},
            {"temperature": 0.0, "prompt_logprobs": 1},
        ]
    )
    params = SamplingParams(max_tokens=rng.choice([1, 2, 5, 9]), ignore_eos=True, **options)
    return prompt, params, rng.choice([None, None, None, "salt"])
