"""A request's tokens and stops, and the order of the queue."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.core.request import Request, RequestQueue, RequestStatus
from vllm.sampling_params import SamplingParams


def make_request(req_id: str = "r", prompt: list[int] | None = None, **options: object) -> Request:
    params = {name: options.pop(name) for name in list(options) if name in SamplingParams.__struct_fields__}
    sampling = SamplingParams(**params).for_core(options.pop("eos_token_ids", ()))
    request = Request(req_id, prompt or [1, 2, 3], sampling, **options)
    request.max_total_tokens = request.num_prompt_tokens + (params.get("max_tokens") or 16)
    request.status = RequestStatus.RUNNING
    return request


@pytest.mark.parametrize(
    ("options", "tokens", "taken", "reason", "stop_reason"),
    [
        ({}, [5, 6], 2, None, None),
        ({"eos_token_ids": [9, 8]}, [5, 8, 6], 2, "stop", None),
        ({"eos_token_ids": [9], "ignore_eos": True}, [5, 9, 6], 3, None, None),
        ({"stop_token_ids": [7]}, [7], 1, "stop", 7),
        ({"stop_token_ids": [7], "eos_token_ids": [7]}, [7], 1, "stop", None),
        ({"stop_token_ids": [7], "eos_token_ids": [7], "ignore_eos": True}, [7], 1, "stop", 7),
        ({"max_tokens": 3}, [5, 5, 5, 5], 3, "length", None),
        ({"max_tokens": 2, "eos_token_ids": [9]}, [5, 9], 2, "stop", None),
        ({"min_tokens": 2, "eos_token_ids": [9], "stop_token_ids": [7]}, [9, 7, 5], 3, None, None),
        ({"min_tokens": 2, "eos_token_ids": [9]}, [9, 5, 9, 4], 3, "stop", None),
        ({"min_tokens": 2, "max_tokens": 2, "eos_token_ids": [9]}, [5, 9], 2, "length", None),
    ],
)
def test_append_stops_at_the_first_reason(options, tokens, taken, reason, stop_reason) -> None:
    request = make_request(**options)
    assert request.append(tokens) == taken
    assert request.output_token_ids == tokens[:taken]
    assert request.num_tokens == 3 + taken
    assert (request.status.finish_reason, request.stop_reason) == (reason, stop_reason)


@given(prompt=st.lists(st.integers(0, 9), min_size=1), output=st.lists(st.integers(0, 9)), data=st.data())
def test_tokens_between(prompt: list[int], output: list[int], data: st.DataObject) -> None:
    request = make_request(prompt=prompt, max_tokens=1000)
    request.append(output)
    stop = data.draw(st.integers(0, len(prompt + output)))
    start = data.draw(st.integers(0, stop))
    assert request.tokens_between(start, stop) == (prompt + output)[start:stop]


def test_block_hashes_do_not_depend_on_when_they_are_asked_for() -> None:
    late = make_request(prompt=[1, 2, 3, 4, 5], max_tokens=99)
    early = make_request(prompt=[1, 2, 3, 4, 5], max_tokens=99)
    early.block_hashes(2, 2)
    for request in (early, late):
        request.append([6, 7, 8])
    whole = make_request(prompt=[1, 2, 3, 4, 5, 6, 7, 8])
    assert early.block_hashes(4, 2) == late.block_hashes(4, 2) == whole.block_hashes(4, 2)
    assert len(set(whole.block_hashes(4, 2))) == 4
    assert whole.block_hashes(2, 2) == whole.block_hashes(4, 2)[:2]


@pytest.mark.parametrize("other", [{"lora_id": 1}, {"cache_salt": "tenant"}, {"lora_id": 1, "cache_salt": "tenant"}])
def test_adapter_and_salt_part_the_prefixes(other) -> None:
    assert make_request().block_hashes(1, 2) != make_request(**other).block_hashes(1, 2)


@pytest.mark.parametrize("reason", ["stop", "length", "abort", "error"])
def test_finish_reasons_round_trip(reason: str) -> None:
    status = RequestStatus.from_finish_reason(reason)
    assert status.is_finished
    assert status.finish_reason == reason


def test_an_unknown_finish_reason_lists_the_known() -> None:
    with pytest.raises(ValueError, match="'done'; known: stop, length, abort, error"):
        RequestStatus.from_finish_reason("done")


@pytest.mark.parametrize("by_priority", [False, True])
@given(seed=st.integers(0, 2**32))
def test_queue_against_a_sorted_list(by_priority: bool, seed: int) -> None:
    rng = random.Random(seed)
    queue, model, count = RequestQueue(by_priority=by_priority), [], 0
    for _ in range(120):
        action = rng.random()
        if action < 0.5:
            count += 1
            request = make_request(
                str(count), [0] * rng.randint(1, 5), priority=rng.randint(0, 2), arrival_time=float(rng.randint(0, 9))
            )
            queue.push(request)
            key = (request.priority, request.times.arrival, count) if by_priority else count
            model.append((key, request))
            model.sort(key=lambda entry: entry[0])
        elif action < 0.8 and model:
            _, request = model.pop(rng.randrange(len(model)))
            queue.remove(request)
            assert request.req_id not in queue
            assert queue.get(request.req_id) is None
        elif model:
            _, request = model.pop(0)
            assert queue.peek() is request
            assert queue.pop() is request
        assert len(queue) == len(model)
        assert queue.num_tokens == sum(request.num_prompt_tokens for _, request in model)
        assert {request.req_id for request in queue} == {request.req_id for _, request in model}
        assert queue.peek() is (model[0][1] if model else None)


def test_removed_entries_do_not_pile_up() -> None:
    queue = RequestQueue(by_priority=False)
    first = make_request("first")
    queue.push(first)
    for i in range(10_000):
        request = make_request(str(i))
        queue.push(request)
        queue.remove(request)
        assert len(queue._heap) < 32
    assert queue.pop() is first
    with pytest.raises(IndexError):
        queue.pop()
