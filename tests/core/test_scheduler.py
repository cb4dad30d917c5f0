"""The scheduler's rules, one by one, on traffic small enough to be written down."""

from __future__ import annotations

import msgspec
import pytest

from tests.core.fake_device import make_config
from tests.core.harness import Engine
from vllm.config import SpeculativeConfig
from vllm.core.block_pool import IntegrityError
from vllm.core.contract import ModelRunnerOutput, SchedulerOutput, TokenLogprobs, Tokens, Vector
from vllm.core.outputs import EngineCoreOutput, RequestTimes, SchedulerStats
from vllm.core.request import Request
from vllm.core.scheduler import Scheduler
from vllm.core.work import CorePooling
from vllm.sampling_params import SamplingParams

LONG = {"max_tokens": 20, "ignore_eos": True}


def make_scheduler(**options: object) -> Scheduler:
    return Scheduler(make_config(**options))  # type: ignore[arg-type]


def make_request(req_id: str, prompt_len: int = 3, **params: object) -> Request:
    options = {"temperature": 0.0, "max_tokens": 8, **params}
    return Request(req_id, list(range(1, prompt_len + 1)), SamplingParams(**options).for_core())


def answer(step: SchedulerOutput, **tokens: list[int]) -> ModelRunnerOutput:
    return ModelRunnerOutput(results={req_id: Tokens(tokens.get(req_id, [5])) for req_id in step.num_scheduled_tokens})


def advance(scheduler: Scheduler, **tokens: list[int]) -> tuple[SchedulerOutput, list[EngineCoreOutput]]:
    step = scheduler.schedule()
    return step, scheduler.update_from_output(step, answer(step, **tokens))


def test_a_new_request_crosses_whole_then_as_a_diff() -> None:
    scheduler = make_scheduler()
    request = make_request("a")
    scheduler.add_request(request)
    first, outputs = advance(scheduler)
    (new,) = first.new_requests
    assert (new.req_id, new.prompt_token_ids, new.num_computed_tokens) == ("a", [1, 2, 3], 0)
    assert new.work is request.work
    assert len(new.block_ids) == 1
    assert first.num_scheduled_tokens == {"a": 3}
    assert [(output.req_id, output.new_token_ids) for output in outputs] == [("a", [5])]
    second, _ = advance(scheduler)
    (known,) = second.cached_requests
    assert (known.req_id, known.num_computed_tokens, known.new_block_ids) == ("a", 3, [])
    assert second.num_scheduled_tokens == {"a": 1}
    assert not second.new_requests


def test_adapters_of_running_and_of_waiting_requests() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    assert scheduler.stats().running_lora_ids == scheduler.stats().waiting_lora_ids == ()
    for i, lora_id in enumerate((2, 0, 3, 1, 3)):
        scheduler.add_request(Request(str(i), [1, 2], SamplingParams(max_tokens=4).for_core(), lora_id=lora_id))
    assert scheduler.stats().waiting_lora_ids == (1, 2, 3)
    advance(scheduler)
    assert (scheduler.stats().running_lora_ids, scheduler.stats().waiting_lora_ids) == ((2,), (1, 3))
    for i in ("0", "2", "4"):
        scheduler.finish_request(i)
    assert (scheduler.stats().running_lora_ids, scheduler.stats().waiting_lora_ids) == ((), (1,))


def test_block_ids_grow_only_as_tokens_need_them() -> None:
    scheduler = make_scheduler(block_size=4)
    scheduler.add_request(make_request("a", 4, max_tokens=6, ignore_eos=True))
    step, _ = advance(scheduler)
    assert len(step.new_requests[0].block_ids) == 1
    assert scheduler.pool.num_promised == 2
    gained = [len(advance(scheduler)[0].cached_requests[0].new_block_ids) for _ in range(5)]
    assert gained == [1, 0, 0, 0, 1]
    assert (scheduler.num_running, scheduler.pool.num_promised) == (0, 0)


def test_lookahead_is_held_in_blocks_up_to_the_end_of_the_context() -> None:
    scheduler = make_scheduler(block_size=4, max_model_len=8, num_lookahead_tokens=3)
    scheduler.add_request(make_request("a", 3, max_tokens=99, ignore_eos=True))
    step, _ = advance(scheduler)
    assert len(step.new_requests[0].block_ids) == 2
    assert scheduler.pool.num_promised == 0


def test_the_whole_future_is_promised_before_a_request_starts() -> None:
    scheduler = make_scheduler(block_size=4, max_model_len=32, num_blocks=8, max_num_seqs=4, prefill_batch_size=4)
    scheduler.add_request(make_request("big", 3, max_tokens=20))
    scheduler.add_request(make_request("next", 3, max_tokens=10))
    scheduler.add_request(make_request("small", 1, max_tokens=1))
    step, _ = advance(scheduler)
    assert list(step.num_scheduled_tokens) == ["big"]
    assert (scheduler.num_waiting, scheduler.pool.num_free) == (2, 7)
    scheduler.finish_request("big")
    step, _ = advance(scheduler)
    assert list(step.num_scheduled_tokens) == ["next", "small"]


def test_rows_are_bounded_and_reused() -> None:
    scheduler = make_scheduler(max_num_seqs=2, prefill_batch_size=8)
    for req_id in "abc":
        scheduler.add_request(make_request(req_id))
    step, _ = advance(scheduler, a=[5, 5, 5, 5, 5, 5, 5, 5])
    assert list(step.num_scheduled_tokens) == ["a", "b"]
    step, _ = advance(scheduler)
    assert step.finished_req_ids == ["a"]
    assert list(step.num_scheduled_tokens) == ["c"]


def test_prefills_come_first_within_their_bound() -> None:
    """The kinds of steps while more prompts wait than rows decode: never more prompts in a row than allowed."""
    scheduler = make_scheduler(max_num_seqs=8, max_consecutive_prefills=2)
    for i in range(8):
        scheduler.add_request(make_request(str(i), **LONG))
    kinds = ["P" if advance(scheduler)[0].new_requests else "D" for _ in range(13)]
    assert "".join(kinds) == "PPPDPPDPPDPDD"


def test_prefill_batches_are_bounded_in_prompts_and_tokens() -> None:
    scheduler = make_scheduler(max_num_seqs=8, prefill_batch_size=3, max_num_batched_tokens=10)
    for req_id, prompt_len in zip("abcdef", [2, 2, 2, 5, 6, 4], strict=True):
        scheduler.add_request(make_request(req_id, prompt_len, **LONG))
    steps = [advance(scheduler)[0] for _ in range(3)]
    assert [list(step.num_scheduled_tokens) for step in steps] == [["a", "b", "c"], ["d"], ["e", "f"]]


def test_mixed_steps_take_decodes_first_then_pieces() -> None:
    scheduler = make_scheduler(
        max_num_seqs=4, mixed_steps=True, max_num_batched_tokens=8, max_prefill_tokens=6, prefill_batch_size=2
    )
    for req_id, prompt_len in zip("abc", [5, 9, 2], strict=True):
        scheduler.add_request(make_request(req_id, prompt_len, **LONG))
    budgets = [advance(scheduler)[0].num_scheduled_tokens for _ in range(4)]
    assert budgets == [{"a": 5, "b": 1}, {"a": 1, "b": 6}, {"a": 1, "b": 2, "c": 2}, {"a": 1, "b": 1, "c": 1}]


def test_mixed_steps_without_a_bound_of_their_own_fill_the_token_budget() -> None:
    scheduler = make_scheduler(max_num_seqs=2, mixed_steps=True, max_num_batched_tokens=4)
    scheduler.add_request(make_request("a", 10, **LONG))
    assert [advance(scheduler)[0].num_scheduled_tokens["a"] for _ in range(4)] == [4, 4, 2, 1]


def test_pieces_without_mixed_steps_alternate_with_decodes() -> None:
    scheduler = make_scheduler(max_num_seqs=2, max_prefill_tokens=3, max_consecutive_prefills=1)
    scheduler.add_request(make_request("a", 3, **LONG))
    advance(scheduler)
    scheduler.add_request(make_request("b", 7, **LONG))
    steps = [advance(scheduler)[0].num_scheduled_tokens for _ in range(6)]
    assert steps == [{"b": 3}, {"a": 1}, {"b": 3}, {"a": 1}, {"b": 1}, {"a": 1, "b": 1}]


def test_a_piece_samples_nothing_and_tells_nothing() -> None:
    scheduler = make_scheduler(max_num_seqs=2, mixed_steps=True, max_prefill_tokens=2)
    scheduler.add_request(make_request("a", 3))
    step = scheduler.schedule()
    assert scheduler.update_from_output(step, ModelRunnerOutput()) == []
    _, outputs = advance(scheduler)
    assert outputs[0].new_token_ids == [5]


@pytest.mark.parametrize(("policy", "order"), [("fcfs", "abcd"), ("priority", "cbda")])
def test_order(policy: str, order: str) -> None:
    """Priority: lower first, then arrival, whoever was queued first."""
    engine = Engine(make_config(scheduling_policy=policy, max_num_seqs=8))
    for req_id, priority in zip("abcd", [1, 0, -1, 0], strict=True):
        engine.add([1, 2, 3], req_id=req_id, priority=priority)
    engine.run()
    assert "".join(engine.admitted) == order


def drafting_scheduler(num_drafts: int, *, max_draft_len: int | None = None, **options: object) -> Scheduler:
    """One that always grants as many drafts as may be."""
    speculation = SpeculativeConfig(
        method="draft_model", num_speculative_tokens=num_drafts, max_model_len=max_draft_len, adaptive=False
    )
    config = make_config(num_lookahead_tokens=num_drafts, **options)  # type: ignore[arg-type]
    return Scheduler(config.replace(speculative_config=speculation))


def decode_step(scheduler: Scheduler, *requests: Request) -> SchedulerOutput:
    """The first decode step of these requests."""
    for request in requests:
        scheduler.add_request(request)
    while any(not request.num_output_tokens for request in requests):
        step = scheduler.schedule()
        assert not step.num_draft_tokens
        scheduler.update_from_output(step, answer(step))
    return scheduler.schedule()


def test_decodes_may_draft_and_what_was_accepted_is_computed() -> None:
    scheduler = drafting_scheduler(2)
    step = decode_step(scheduler, make_request("a", 3, max_tokens=20, ignore_eos=True))
    assert (step.num_draft_tokens, step.num_scheduled_tokens) == ({"a": 2}, {"a": 1})
    (output,) = scheduler.update_from_output(step, ModelRunnerOutput({"a": Tokens([6, 9], num_drafted=2)}))
    assert output.new_token_ids == [6, 9]
    step = scheduler.schedule()
    (known,) = step.cached_requests
    assert (known.num_computed_tokens, step.num_scheduled_tokens) == (5, {"a": 1})
    stats = scheduler.stats()
    assert (stats.spec_num_drafts, stats.spec_num_draft_tokens, stats.spec_num_accepted_tokens) == (1, 2, 1)
    assert stats.spec_num_accepted_by_position == (1, 0)


def test_what_speculation_did_for_a_request_is_told() -> None:
    scheduler = drafting_scheduler(2)
    step = decode_step(scheduler, make_request("a", 3, max_tokens=5, ignore_eos=True))
    (output,) = scheduler.update_from_output(step, ModelRunnerOutput({"a": Tokens([6, 9], num_drafted=2)}))
    assert output.spec_decode_metrics.num_drafts == 1
    step = scheduler.schedule()
    (output,) = scheduler.update_from_output(step, ModelRunnerOutput({"a": Tokens([6, 9], num_drafted=1)}))
    metrics = output.spec_decode_metrics
    assert (metrics.num_drafts, metrics.num_draft_tokens, metrics.num_accepted_tokens) == (2, 3, 2)
    assert (metrics.acceptance_length, metrics.acceptance_rate) == (2.0, 2 / 3)


def test_no_more_is_drafted_than_can_become_output() -> None:
    scheduler = drafting_scheduler(4)
    step = decode_step(scheduler, make_request("a", 3, max_tokens=3, ignore_eos=True))
    assert step.num_draft_tokens == {"a": 1}
    scheduler.update_from_output(step, ModelRunnerOutput({"a": Tokens([5], num_drafted=1)}))
    assert scheduler.schedule().num_draft_tokens == {}


def test_nothing_is_drafted_beyond_the_drafts_own_length() -> None:
    step = decode_step(drafting_scheduler(4, max_draft_len=7), make_request("a", 3, **LONG))
    assert step.num_draft_tokens == {"a": 2}


def test_a_row_under_a_grammar_drafts_nothing() -> None:
    scheduler = drafting_scheduler(4)
    free, bound = make_request("a", 3, **LONG), make_request("b", 3, **LONG)
    bound.has_grammar = True
    assert decode_step(scheduler, free, bound).num_draft_tokens == {"a": 4}


def test_drafts_leave_every_sequence_its_place_in_the_step() -> None:
    scheduler = drafting_scheduler(4, max_num_seqs=4, max_num_batched_tokens=11, max_prefill_tokens=4)
    step = decode_step(scheduler, *(make_request(name, 3, **LONG) for name in "abcd"))
    assert step.num_draft_tokens == dict.fromkeys("abcd", 1)


def test_tokens_after_a_stop_are_cut_with_their_logprobs() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request("a", stop_token_ids=[7]))
    step = scheduler.schedule()
    logprobs = [TokenLogprobs(token, -1.0, 1) for token in (5, 7, 8)]
    (output,) = scheduler.update_from_output(step, ModelRunnerOutput({"a": Tokens([5, 7, 8], logprobs)}))
    assert (output.new_token_ids, output.logprobs) == ([5, 7], logprobs[:2])
    assert (output.finish_reason, output.stop_reason) == ("stop", 7)
    assert (scheduler.num_running, scheduler.pool.num_free) == (0, scheduler.pool.num_blocks)


def test_prompt_logprobs_pass_through_piece_by_piece() -> None:
    scheduler = make_scheduler(mixed_steps=True, max_prefill_tokens=2)
    scheduler.add_request(make_request("a", 3, prompt_logprobs=1))
    entries = [TokenLogprobs(2, -1.0, 1), TokenLogprobs(3, -2.0, 4)]
    step = scheduler.schedule()
    (piece,) = scheduler.update_from_output(step, ModelRunnerOutput(prompt_logprobs={"a": entries[:1]}))
    assert (piece.new_token_ids, piece.prompt_logprobs, piece.times) == ([], entries[:1], None)
    step = scheduler.schedule()
    (last,) = scheduler.update_from_output(
        step, ModelRunnerOutput({"a": Tokens([5])}, prompt_logprobs={"a": entries[1:]})
    )
    assert (last.new_token_ids, last.prompt_logprobs) == ([5], entries[1:])


def test_an_error_ends_that_request_alone() -> None:
    scheduler = make_scheduler(prefill_batch_size=2)
    scheduler.add_request(make_request("a"))
    scheduler.add_request(make_request("b"))
    step = scheduler.schedule()
    result = ModelRunnerOutput({"b": Tokens([5])}, errors={"a": "no such adapter"})
    bad, good = scheduler.update_from_output(step, result)
    assert (bad.req_id, bad.finish_reason, bad.error) == ("a", "error", "no such adapter")
    assert (good.req_id, good.new_token_ids, good.error) == ("b", [5], None)
    step = scheduler.schedule()
    assert (step.finished_req_ids, step.num_scheduled_tokens) == (["a"], {"b": 1})


def test_a_row_without_its_token_is_an_error_not_a_hang() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request("a"))
    step = scheduler.schedule()
    (output,) = scheduler.update_from_output(step, ModelRunnerOutput())
    assert output.finish_reason == "error"
    assert "returned no token" in output.error
    assert not scheduler.has_unfinished_requests()


def test_abort_while_waiting_leaves_nothing_to_tell_the_device() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request("a"))
    output = scheduler.finish_request("a")
    assert (output.req_id, output.new_token_ids, output.finish_reason) == ("a", [], "abort")
    assert not scheduler.has_unfinished_requests()
    assert not scheduler.has_finished_requests()
    assert scheduler.finish_request("a") is None


def test_abort_between_schedule_and_update_drops_the_step() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request("a"))
    step = scheduler.schedule()
    scheduler.finish_request("a")
    assert scheduler.pool.num_free == scheduler.pool.num_blocks
    assert scheduler.update_from_output(step, answer(step)) == []
    assert scheduler.has_finished_requests()
    last = scheduler.schedule()
    assert (last.finished_req_ids, last.num_scheduled_tokens) == (["a"], {})
    assert scheduler.update_from_output(last, ModelRunnerOutput()) == []
    assert not scheduler.has_finished_requests()


def test_an_id_may_be_used_again_at_once_and_gets_only_its_own_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request("a"))
    step = scheduler.schedule()
    scheduler.finish_request("a")
    scheduler.add_request(make_request("a", 4))
    assert scheduler.update_from_output(step, answer(step)) == []
    step, outputs = advance(scheduler)
    assert step.finished_req_ids == ["a"]
    assert step.new_requests[0].prompt_token_ids == [1, 2, 3, 4]
    assert len(outputs) == 1


def test_a_caller_may_end_a_request_for_its_own_reason() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request("a"))
    advance(scheduler)
    output = scheduler.finish_request("a", "stop")
    assert output.finish_reason == "stop"
    scheduler.check_integrity()
    with pytest.raises(ValueError, match="unknown finish reason"):
        scheduler.finish_request("a", "bored")


def test_steps_are_updated_once_and_in_order() -> None:
    scheduler = make_scheduler(prefill_batch_size=1)
    scheduler.add_request(make_request("a"))
    scheduler.add_request(make_request("b"))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert list(second.num_scheduled_tokens) == ["b"]
    with pytest.raises(ValueError, match="before an older one"):
        scheduler.update_from_output(second, answer(second))
    scheduler.update_from_output(first, answer(first))
    with pytest.raises(ValueError, match="twice"):
        scheduler.update_from_output(first, answer(first))
    scheduler.update_from_output(second, answer(second))
    assert scheduler.schedule().num_scheduled_tokens == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("config", "prompt_len", "params", "message"),
    [
        ({}, 0, {}, "the prompt is empty"),
        ({}, 32, {}, "the prompt has 32 tokens, but max_model_len=32 leaves room for 31"),
        ({"max_prompt_len": 6}, 7, {}, "the longest compiled prompt has 6"),
        ({"max_num_batched_tokens": 8}, 9, {}, "max_num_batched_tokens=8; .* enable chunked prefill"),
        ({"block_size": 4, "num_blocks": 3}, 5, {"max_tokens": 9}, "need 4 KV blocks of 4 tokens, but there are 3"),
    ],
)
def test_what_can_never_run_is_refused_with_what_would(config, prompt_len: int, params, message: str) -> None:
    scheduler = make_scheduler(**config)
    with pytest.raises(ValueError, match=message):
        scheduler.add_request(make_request("a", prompt_len, **params))
    assert not scheduler.has_unfinished_requests()
    scheduler.add_request(make_request("a", 5, max_tokens=2))
    advance(scheduler)
    assert scheduler.num_running == 1


def test_longer_prompts_than_the_budget_run_in_pieces() -> None:
    engine = Engine(make_config(max_num_batched_tokens=4, max_prefill_tokens=4))
    engine.add(list(range(1, 11)))
    engine.run()
    engine.check_texts()


def test_ids_are_unique_among_unfinished_requests() -> None:
    scheduler = make_scheduler()
    scheduler.add_request(make_request("a"))
    with pytest.raises(ValueError, match="'a' is in use"):
        scheduler.add_request(make_request("a"))
    advance(scheduler)
    with pytest.raises(ValueError, match="'a' is in use"):
        scheduler.add_request(make_request("a"))
    scheduler.finish_request("a")
    scheduler.add_request(make_request("a"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_num_seqs": 8, "max_num_batched_tokens": 7}, "it must be at least 8"),
        ({"max_consecutive_prefills": 0}, "max_consecutive_prefills=0"),
        ({"prefill_batch_size": 0}, "prefill_batch_size=0"),
        ({"prefix_caching": True}, "prefix caching needs KV blocks shorter than max_model_len=32"),
    ],
)
def test_limits_that_exclude_one_another_are_refused(config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scheduler(**config)


def test_an_unresolved_config_is_refused() -> None:
    config = make_config()
    with pytest.raises(ValueError, match="not resolved"):
        Scheduler(config.replace(cache_config=type(config.cache_config)()))


def test_times_in_order() -> None:
    engine = Engine(make_config())
    req_id = engine.add([1, 2, 3], max_tokens=3, ignore_eos=True)
    outputs = [output for _ in range(3) for output in engine.step()]
    assert [output.times is not None for output in outputs] == [True, False, True]
    times = engine.told[req_id].request.times
    stamps = [times.queued, times.scheduled, times.first_token, times.last_token]
    assert stamps == sorted(set(stamps))
    assert times.arrival == 1.0


def test_stats_count_what_waits_runs_and_hits() -> None:
    engine = Engine(make_config(max_num_seqs=2, block_size=4, prefix_caching=True, prefill_batch_size=1))
    first = engine.add(list(range(1, 10)), max_tokens=1)
    engine.step()
    assert engine.told[first].end is not None
    engine.add(list(range(1, 10)), max_tokens=4)
    engine.add([1, 2, 3], max_tokens=4)
    assert engine.scheduler.stats() == SchedulerStats(0, 2, 12, 0.0, 9, 0)
    (output,) = engine.step()
    assert output.num_cached_tokens == 8
    assert engine.scheduler.stats() == SchedulerStats(1, 1, 3, 3 / 16, 18, 8)


def cached_tokens(engine: Engine, prompt: list[int], **options: object) -> int:
    """Run one request alone; how much of its prompt was found."""
    req_id = engine.add(prompt, **options)
    engine.run()
    return engine.told[req_id].end.num_cached_tokens


def test_prefix_hits() -> None:
    engine = Engine(make_config(max_num_seqs=1, block_size=4, prefix_caching=True, max_model_len=32))
    prompt = list(range(1, 9))
    assert cached_tokens(engine, prompt) == 0
    assert cached_tokens(engine, prompt) == 7, "one token of a full hit is left to compute"
    assert cached_tokens(engine, [*prompt, 3]) == 8
    assert cached_tokens(engine, [1, 2, 3, 4, 9, 9, 9, 9, 9]) == 4
    assert cached_tokens(engine, [9, *prompt]) == 0
    assert cached_tokens(engine, [*prompt, 3], lora_id=1) == 0
    assert cached_tokens(engine, [*prompt, 3], prompt_logprobs=0) == 0
    assert cached_tokens(engine, [*prompt, 3], skip_reading_prefix_cache=True) == 0
    engine.change_weights()
    assert cached_tokens(engine, [*prompt, 3]) == 0
    engine.check_texts()


def test_generated_tokens_are_found_as_well() -> None:
    engine = Engine(make_config(max_num_seqs=1, block_size=4, prefix_caching=True, max_model_len=32))
    first = engine.add([1, 2, 3], max_tokens=10, ignore_eos=True)
    engine.run()
    conversation = [1, 2, 3, *engine.told[first].token_ids, 5]
    assert cached_tokens(engine, conversation) == 12


def test_a_long_gone_prefix_makes_room() -> None:
    engine = Engine(make_config(max_num_seqs=1, block_size=4, prefix_caching=True, max_model_len=16, num_blocks=4))
    old = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert cached_tokens(engine, old, max_tokens=1) == 0
    assert cached_tokens(engine, [10, 9, 8, 7, 6], max_tokens=1) == 0
    assert cached_tokens(engine, old, max_tokens=1) == 8
    assert cached_tokens(engine, [2] * 15, max_tokens=1) == 0
    assert cached_tokens(engine, old, max_tokens=1) == 0
    engine.check_clean()


def test_leaks_are_found() -> None:
    def leak_block(scheduler: Scheduler) -> None:
        scheduler.pool.promise(1)
        scheduler.pool.allocate(1)

    def leak_row(scheduler: Scheduler) -> None:
        scheduler._running["a"].status = make_request("x").status

    def leak_promise(scheduler: Scheduler) -> None:
        scheduler.pool.promise(1)

    def leak_entry(scheduler: Scheduler) -> None:
        next(iter(scheduler._waiting)).status = scheduler._running["a"].status

    def lose_tokens(scheduler: Scheduler) -> None:
        scheduler._waiting.num_tokens -= 1

    for damage in (leak_block, leak_row, leak_promise, leak_entry, lose_tokens):
        scheduler = make_scheduler()
        scheduler.add_request(make_request("a"))
        advance(scheduler)
        scheduler.add_request(make_request("b"))
        scheduler.check_integrity()
        damage(scheduler)
        with pytest.raises(IntegrityError):
            scheduler.check_integrity()


def test_outputs_cross_as_msgpack() -> None:
    logprobs = [TokenLogprobs(5, -0.5, 2, [(4, -0.25), (5, -0.5)])]
    output = EngineCoreOutput("a", [5], logprobs, logprobs, "stop", 7, 4, "no", RequestTimes(1.0, 2.0, 3.0, 4.0, 5.0))
    stats = SchedulerStats(1, 2, 3, 0.5, 4, 5)
    for value in (output, EngineCoreOutput("b", []), stats):
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=type(value)) == value
    assert output.finished
    assert not EngineCoreOutput("b", []).finished


def test_a_vector_ends_its_request() -> None:
    """Its prompt may take several steps, fill the context, and be found in the prefix cache by others."""
    scheduler = make_scheduler(
        max_num_seqs=2, max_model_len=9, block_size=4, num_blocks=16, prefix_caching=True, max_prefill_tokens=6
    )
    scheduler.add_request(Request("a", list(range(9)), CorePooling("mean")))
    with pytest.raises(ValueError, match="leaves room for 9; shorten"):
        scheduler.add_request(Request("b", list(range(10)), CorePooling()))
    step = scheduler.schedule()
    assert scheduler.update_from_output(step, ModelRunnerOutput()) == []
    step = scheduler.schedule()
    (output,) = scheduler.update_from_output(step, ModelRunnerOutput({"a": Vector(b"\0\0\x80?")}))
    assert (output.vector, output.finish_reason, output.new_token_ids) == (b"\0\0\x80?", "stop", [])
    assert scheduler.num_running == 0 and scheduler.pool.num_cached == 2
    scheduler.check_integrity()
