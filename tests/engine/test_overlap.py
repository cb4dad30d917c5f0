"""Steps that overlap (`async_scheduling`): the same texts, and the device never waits for the host."""

from __future__ import annotations

import time

import pytest

from tests.engine.engines import PROMPTS, engine_args, greedy
from tests.neuron.driver import resolved_config
from vllm import LLM, SamplingParams
from vllm.core.contract import ModelRunnerOutput, SchedulerOutput
from vllm.engine.core.core import EngineCore
from vllm.engine.core.lane import StepLane
from vllm.engine.messages import EngineCoreRequest
from vllm.runner.executor import NeuronExecutor
from vllm.sampling_params import StructuredOutputsParams


def requests() -> list[tuple[str, SamplingParams]]:
    """Ends by length, by EOS, by stop token and stop string; samples, logprobs, choices; more than there are rows."""
    kinds = [
        greedy(9),
        SamplingParams(temperature=0.0, max_tokens=40),
        SamplingParams(temperature=1.0, seed=3, max_tokens=30, stop_token_ids=list(range(40, 60)), logprobs=2),
        SamplingParams(temperature=1.0, seed=4, max_tokens=30, stop=["e", "a"]),
        SamplingParams(temperature=0.7, seed=5, max_tokens=1, n=2),
        greedy(12, prompt_logprobs=1, min_tokens=3, repetition_penalty=1.3),
    ]
    return [(f"{PROMPTS[i % len(PROMPTS)]} {i}", kinds[i % len(kinds)]) for i in range(24)]


def answers(llm: LLM, prompts: list[str], params: list[SamplingParams]) -> list[object]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [
        (each.token_ids, each.text, each.finish_reason, each.stop_reason, each.cumulative_logprob)
        for output in outputs
        for each in output.outputs
    ]


@pytest.mark.parametrize("device", ["null", "cpu"])
@pytest.mark.parametrize("block_kv", [True, False])
def test_overlapped_steps_give_the_same_answers(tiny_llama, device, block_kv):
    prompts, params = zip(*requests(), strict=True)
    options = {} if block_kv else {"enable_prefix_caching": False, "enable_chunked_prefill": False}
    found = []
    for overlap in (False, True):
        llm = LLM.from_engine_args(engine_args(tiny_llama, device=device, async_scheduling=overlap, **options))
        found.append(answers(llm, list(prompts), list(params)))
        llm.llm_engine.engine_core.call("check_integrity")
        llm.shutdown()
    assert found[0] == found[1]


def test_rows_with_a_grammar_are_served_beside_others(tiny_llama):
    choice = SamplingParams(temperature=0.0, structured_outputs=StructuredOutputsParams(choice=["yes", "no, never"]))
    found = []
    for overlap in (False, True):
        llm = LLM.from_engine_args(engine_args(tiny_llama, async_scheduling=overlap))
        found.append(answers(llm, PROMPTS * 2, [choice, greedy(20)] * len(PROMPTS)))
        llm.shutdown()
    assert found[0] == found[1]
    assert {text for _, text, *_ in found[1][::2]} <= {"yes", "no, never"}


class Watched:
    """An executor that holds each step back until the next one has been scheduled, or cannot be."""

    def __init__(self, executor: NeuronExecutor) -> None:
        self._executor = executor
        self.core: EngineCore | None = None
        self.num_overlapped = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._executor, name)

    def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
        assert self.core is not None
        for _ in range(50):
            if len(self.core.scheduler._steps) > 1:
                self.num_overlapped += 1
                break
            time.sleep(0.01)
        return self._executor.execute(step)


def test_the_next_step_is_scheduled_while_one_runs(tiny_llama):
    config = resolved_config(tiny_llama, "null", async_scheduling=True)
    executor = Watched(NeuronExecutor(config))
    core = executor.core = EngineCore(config, executor)  # type: ignore[arg-type]
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    assert core.add_request(EngineCoreRequest("a", [5, 6, 7], params.for_core())) is None
    tokens: list[int] = []
    while core.has_work:
        tokens += [token for output in core.step().outputs for token in output.new_token_ids]
    core.check_integrity()
    core.shutdown()
    assert len(tokens) == 10
    assert executor.num_overlapped >= 8


def test_a_lost_device_is_told_by_the_step_it_was_lost_in():
    class Lost:
        def execute(self, step: SchedulerOutput) -> ModelRunnerOutput:
            if "bad" in step.finished_req_ids:
                raise RuntimeError("gone")
            return ModelRunnerOutput()

    lane = StepLane(Lost(), 2)  # type: ignore[arg-type]
    good, bad = SchedulerOutput(), SchedulerOutput(finished_req_ids=["bad"])
    lane.submit(good)
    lane.submit(bad)
    assert lane.take().scheduled is good
    with pytest.raises(RuntimeError, match="gone"):
        lane.take()
    lane.close()
