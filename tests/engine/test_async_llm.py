"""`AsyncLLM`: streams from an engine in its own process, and what becomes of them when somebody leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal

import pytest
import pytest_asyncio

from tests.engine.engines import PROMPTS, engine_args, greedy
from tests.waiting import PATIENCE
from vllm import LLM, SamplingParams
from vllm.engine.async_llm import AsyncLLM, RequestOutputCollector
from vllm.engine.async_llm_engine import AsyncEngineDeadError, AsyncLLMEngine
from vllm.exceptions import EngineDeadError, QueueFullError, VLLMClientError, VLLMValidationError
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind

pytestmark = pytest.mark.asyncio(loop_scope="module")
DELTA = RequestOutputKind.DELTA


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tiny_llama):
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))
    yield engine
    engine.shutdown()


@pytest.fixture(scope="module")
def solo(tiny_llama):
    """The text of a prompt in an engine in this process."""
    llm = LLM.from_engine_args(engine_args(tiny_llama))
    yield lambda prompt, params: llm.generate(prompt, params, use_tqdm=False)[0]
    llm.shutdown()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_is_left_behind(request):
    yield
    if "engine" in request.fixturenames:
        engine = request.getfixturevalue("engine")
        await _drained(engine)
        assert await engine.engine_core.call("check_integrity")


async def _drained(engine) -> None:
    """Wait until the core runs and queues nothing."""
    assert engine.output_processor.num_unfinished == 0
    assert not engine._collectors
    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    for _ in range(1000):
        if not any(metric.value for metric in engine.get_metrics() if metric.name in gauges):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the core holds requests that nobody waits for")


async def _all(engine, prompt, params, request_id) -> list[RequestOutput]:
    return [output async for output in engine.generate(prompt, params, request_id)]


async def _text(engine, prompt, params, request_id) -> str:
    outputs = await _all(engine, prompt, params, request_id)
    return "".join(output.outputs[0].text for output in outputs)


async def test_many_streams_over_few_rows_give_their_solo_texts(engine, solo):
    count = 24
    prompts = [f"{PROMPTS[i % len(PROMPTS)]} {i}" for i in range(count)]
    params = [
        SamplingParams(seed=i, temperature=0.9, max_tokens=5 + i % 12, ignore_eos=True, output_kind=DELTA)
        for i in range(count)
    ]
    texts = await asyncio.gather(*(_text(engine, prompts[i], params[i], f"many-{i}") for i in range(count)))
    for i in range(count):
        assert texts[i] == solo(prompts[i], params[i]).outputs[0].text


@pytest.mark.parametrize("n", [1, 3])
async def test_kinds_of_output_tell_the_same(engine, solo, n):
    def params(kind: RequestOutputKind) -> SamplingParams:
        return SamplingParams(n=n, seed=4, max_tokens=10, ignore_eos=True, logprobs=1, output_kind=kind)

    expected = solo(PROMPTS[0], params(RequestOutputKind.FINAL_ONLY)).outputs
    [final] = await _all(engine, PROMPTS[0], params(RequestOutputKind.FINAL_ONLY), "final")
    cumulative = await _all(engine, PROMPTS[0], params(RequestOutputKind.CUMULATIVE), "cumulative")
    for completions in (final.outputs, cumulative[-1].outputs):
        assert [c.text for c in completions] == [c.text for c in expected]
        assert [c.logprobs for c in completions] == [c.logprobs for c in expected]
    deltas = await _all(engine, PROMPTS[0], params(DELTA), "delta")
    for index in range(n):
        parts = [c for output in deltas for c in output.outputs if c.index == index]
        assert "".join(c.text for c in parts) == expected[index].text
        assert [p for c in parts for p in c.logprobs] == expected[index].logprobs
    assert final.metrics.first_token_latency > 0


async def test_a_slow_consumer_gets_pieces_joined(engine, solo):
    params = greedy(30, output_kind=DELTA, logprobs=0)
    outputs = []
    async for output in engine.generate(PROMPTS[0], params, "slow"):
        outputs.append(output)
        while engine.output_processor.num_unfinished:
            await asyncio.sleep(0.01)
    assert len(outputs) < 30
    expected = solo(PROMPTS[0], params).outputs[0]
    assert "".join(output.outputs[0].text for output in outputs) == expected.text
    assert [i for output in outputs for i in output.outputs[0].token_ids] == list(expected.token_ids)
    assert [p for output in outputs for p in output.outputs[0].logprobs] == expected.logprobs


async def test_a_collector_joins_by_index():
    collector = RequestOutputCollector(DELTA, "r")
    for index, text in ((0, "a"), (1, "b"), (0, "c")):
        collector.put(RequestOutput("r", None, [1], None, [CompletionOutput(index, text, [index])], False))
    output = await collector.get()
    assert [(c.index, c.text, list(c.token_ids)) for c in output.outputs] == [(0, "ac", [0, 0]), (1, "b", [1])]
    collector.put(RequestOutput("r", None, [1], None, [], True))
    collector.fail(EngineDeadError("gone"))
    assert (await collector.get()).finished
    with pytest.raises(EngineDeadError, match="gone"):
        await collector.get()


@pytest.mark.parametrize("stop", [["\0never"], None])
async def test_closing_a_stream_aborts_its_request(engine, stop):
    stream = engine.generate(PROMPTS[0], greedy(80, stop=stop, output_kind=DELTA), "closed")
    async for _ in stream:
        break
    await stream.aclose()
    await _drained(engine)


async def test_cancelling_a_task_aborts_its_request(engine):
    tasks = [asyncio.create_task(_all(engine, PROMPTS[0], greedy(80), f"cancelled-{i}")) for i in range(10)]
    while engine.output_processor.num_unfinished < 10:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await _drained(engine)


async def test_an_abort_from_elsewhere_ends_the_stream(engine):
    outputs = []
    async for output in engine.generate(PROMPTS[0], greedy(80, n=1, output_kind=DELTA), "aborted"):
        outputs.append(output)
        await engine.abort(["aborted", "never heard of"])
    assert outputs[-1].finished
    assert outputs[-1].outputs[0].finish_reason == "abort"


async def test_stop_strings_abort_the_request_of_the_core(engine, solo):
    plain = solo(PROMPTS[0], greedy(40)).outputs[0].text
    params = greedy(40, stop=[plain[4:7]], output_kind=DELTA)
    outputs = await _all(engine, PROMPTS[0], params, "stopped")
    assert "".join(output.outputs[0].text for output in outputs) == plain[: plain.find(plain[4:7])]
    assert outputs[-1].outputs[0].finish_reason == "stop"
    stopped = [m for m in engine.get_metrics() if m.labels.get("finished_reason") == "stop"]
    assert stopped[0].value >= 1


async def test_refused_requests_leave_nothing(engine):
    with pytest.raises(VLLMValidationError, match="cannot be empty"):
        await _all(engine, "", greedy(), "refused")
    assert "refused" not in engine.output_processor


async def test_ids_in_use_are_refused_and_the_first_goes_on(engine):
    stream = engine.generate(PROMPTS[0], greedy(20), "twice")
    await anext(stream)
    with pytest.raises(VLLMValidationError, match="'twice' is in use"):
        await _all(engine, PROMPTS[0], greedy(), "twice")
    outputs = [output async for output in stream]
    assert len(outputs[-1].outputs[0].token_ids) == 20


async def test_pausing(engine):
    running = asyncio.create_task(_all(engine, PROMPTS[0], greedy(80), "running"))
    while not engine.output_processor.num_unfinished:
        await asyncio.sleep(0)
    await engine.pause_generation()
    assert await engine.is_paused()
    assert (await running)[-1].outputs[0].finish_reason in ("abort", "length")
    later = asyncio.create_task(_all(engine, PROMPTS[0], greedy(3), "later"))
    await asyncio.sleep(0.05)
    assert not later.done()
    await engine.resume_generation()
    assert (await later)[-1].finished
    whole = asyncio.create_task(_all(engine, PROMPTS[0], greedy(8), "whole"))
    while not engine._collectors:
        await asyncio.sleep(0)
    await engine.pause_generation(mode="wait")
    assert (await whole)[-1].outputs[0].finish_reason == "length"
    await engine.resume_generation()
    with pytest.raises(VLLMClientError, match="mode='keep' is not supported"):
        await engine.pause_generation(mode="keep")


async def test_what_third_parties_ask(engine, tiny_llama):
    assert AsyncLLMEngine is AsyncLLM
    assert engine.is_running and not engine.is_stopped and not engine.errored
    assert engine.model_config.max_len == 96
    assert (await engine.get_model_config()) is engine.model_config
    assert engine.get_tokenizer().decode(engine.get_tokenizer().encode("hi")) == "hi"
    assert await engine.get_supported_tasks() == ("generate",)
    assert not await engine.is_tracing_enabled()
    assert not await engine.is_sleeping()
    assert await engine.reset_prefix_cache()
    assert (await engine.executor_stats())["target"] == "null"
    assert await engine.list_loras() == set()
    await engine.check_health()
    await engine.do_log_stats()
    await engine.wait_for_requests_to_drain()
    with pytest.raises(ValueError, match="pooling"):
        async for _ in engine.encode("x"):
            pass
    with pytest.raises(NotImplementedError):
        await engine.sleep()


async def test_a_bounded_queue_refuses_what_is_too_much(tiny_llama, monkeypatch):
    monkeypatch.setenv("VLLM_NULL_STEP_MS", "5")
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama, max_num_seqs=1, max_num_queued_reqs=2))
    try:
        tasks = [asyncio.create_task(_all(engine, PROMPTS[0], greedy(20), f"r{i}")) for i in range(5)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, QueueFullError) for result in results) == 2
        assert sum(isinstance(result, list) for result in results) == 3
        rejected = [m.value for m in engine.get_metrics() if m.name == "vllm:admission_rejections"]
        assert rejected == [2]
    finally:
        engine.shutdown()


async def test_a_bounded_queue_counts_tokens(tiny_llama, monkeypatch):
    monkeypatch.setenv("VLLM_NULL_STEP_MS", "5")
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama, max_num_seqs=1, max_num_queued_tokens=50))
    try:
        streams = [engine.generate([5] * 20, greedy(20), f"r{i}") for i in range(4)]
        first = await anext(streams[0])
        results = await asyncio.gather(*(anext(stream) for stream in streams[1:]), return_exceptions=True)
        assert isinstance(first, RequestOutput)
        assert [isinstance(result, QueueFullError) for result in results] == [False, False, True]
        for stream in streams:
            await stream.aclose()
    finally:
        engine.shutdown()


async def test_a_dead_engine_fails_every_request(tiny_llama, monkeypatch):
    monkeypatch.setenv("VLLM_NULL_STEP_MS", "20")
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))
    try:
        tasks = [asyncio.create_task(_all(engine, PROMPTS[0], greedy(80), f"r{i}")) for i in range(6)]
        while engine.output_processor.num_unfinished < 6:
            await asyncio.sleep(0)
        os.kill(engine.engine_core.handle.process.pid, signal.SIGKILL)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        assert all(isinstance(result, EngineDeadError) for result in results)
        assert AsyncEngineDeadError is EngineDeadError
        assert engine.errored and not engine.is_running
        assert "signal 9" in str(engine.dead_error)
        with pytest.raises(EngineDeadError):
            await engine.check_health()
        with pytest.raises(EngineDeadError):
            await _all(engine, PROMPTS[0], greedy(), "late")
        assert engine.output_processor.num_unfinished == 0
    finally:
        engine.shutdown()


async def test_a_shutdown_inside_the_loop_is_quiet(tiny_llama):  # N18
    """Nothing that waited on the sockets ends in an error that nobody asked for."""
    said = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: said.append(context))
    try:
        for _ in range(3):
            engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))
            streams = [asyncio.ensure_future(_all(engine, PROMPTS[0], greedy(200), f"quiet-{i}")) for i in range(3)]
            await _all(engine, PROMPTS[0], greedy(2), "first")
            streams[0].cancel()
            engine.shutdown()
            results = await asyncio.gather(*streams, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError, EngineDeadError, EngineDeadError]
            del engine, streams, results
            for _ in range(5):
                await asyncio.sleep(0)
            gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert said == []


async def test_a_request_of_many_outputs_lets_others_have_the_loop(tiny_llama):
    """S1: it is handed over in pieces. One that is given up in between leaves nothing behind."""
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))
    many = SamplingParams(n=1000, max_tokens=2, temperature=1.0, ignore_eos=True)
    sent = []
    send = engine.engine_core.add_request
    engine.engine_core.add_request = lambda request: (sent.append(request.req_id), send(request))
    try:
        given_up = asyncio.ensure_future(_all(engine, PROMPTS[0], many, "given-up"))
        while not sent:
            await asyncio.sleep(0)
        assert len(sent) < 1000
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert not engine.output_processor.num_unfinished
        many.output_kind = RequestOutputKind.FINAL_ONLY
        (last,) = await _all(engine, PROMPTS[0], many, "whole")
        assert [len(output.token_ids) for output in last.outputs] == [2] * 1000
    finally:
        engine.shutdown()


async def test_after_shutdown_requests_fail(tiny_llama):
    engine = AsyncLLM.from_engine_args(engine_args(tiny_llama))
    running = asyncio.create_task(_all(engine, PROMPTS[0], greedy(80), "running"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    engine.shutdown()
    engine.shutdown()
    with pytest.raises(EngineDeadError, match="shut down"):
        await running
    with pytest.raises(EngineDeadError, match="shut down"):
        await _all(engine, PROMPTS[0], greedy(), "late")
    assert engine.engine_core.handle.process.poll() is not None
