"""`LLM` and `LLMEngine` on the null target: what users see of every sampling parameter that is the engine's work."""

from __future__ import annotations

import pytest

from tests.engine.engines import PROMPTS, engine_args, greedy
from vllm import LLM, LLMEngine, SamplingParams, TokensPrompt
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TextPrompt
from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind


@pytest.fixture(scope="module")
def llm(tiny_llama):
    llm = LLM.from_engine_args(engine_args(tiny_llama, disable_log_stats=True))
    yield llm
    llm.shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(llm):
    yield
    engine = llm.llm_engine
    assert not engine.has_unfinished_requests()
    assert not llm._results
    engine.engine_core.step()
    engine.engine_core.call("check_integrity")


def _text(llm, prompt, params) -> str:
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].text


# Prompts and results.


def test_results_come_in_the_order_of_the_prompts_and_do_not_depend_on_company(llm):
    together = llm.generate(PROMPTS * 3, greedy(), use_tqdm=False)
    assert [output.prompt for output in together] == PROMPTS * 3
    alone = [_text(llm, prompt, greedy()) for prompt in PROMPTS]
    assert [output.outputs[0].text for output in together] == alone * 3
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in together)


def test_forms_of_prompts_give_the_same(llm):
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    forms = [PROMPTS[0], ids, TextPrompt(prompt=PROMPTS[0]), TokensPrompt(prompt_token_ids=ids)]
    texts = [_text(llm, form, greedy()) for form in forms]
    assert len(set(texts)) == 1
    assert [output.prompt_token_ids for output in llm.generate(forms, greedy(), use_tqdm=False)] == [ids] * 4
    assert llm.generate(prompt_token_ids=ids, sampling_params=greedy(), use_tqdm=False)[0].prompt is None


def test_one_set_of_parameters_for_each_prompt(llm):
    outputs = llm.generate(PROMPTS, [greedy(n) for n in (1, 2, 3, 4)], use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3, 4]
    with pytest.raises(VLLMValidationError, match=r"prompts \(4\) and params \(1\)"):
        llm.generate(PROMPTS, [greedy()], use_tqdm=False)
    with pytest.raises(VLLMValidationError, match=r"prompts \(4\) and params \(0\)"):
        llm.generate(PROMPTS, [], use_tqdm=False)


def test_no_prompts_no_results(llm):
    assert llm.generate([], greedy(), use_tqdm=False) == []


def test_without_parameters_the_checkpoints_defaults_hold(llm):
    output = llm.generate(PROMPTS[0], use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) <= 16
    assert llm.get_default_sampling_params() == SamplingParams.from_optional(**llm.default_sampling_params)


def test_a_refused_prompt_leaves_nothing_of_the_others(llm):
    with pytest.raises(VLLMValidationError, match="cannot be empty"):
        llm.generate([PROMPTS[0], PROMPTS[1], ""], greedy(), use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    assert len(llm.generate(PROMPTS[:1], greedy(), use_tqdm=False)) == 1


def test_an_interrupted_call_leaves_nothing(llm, monkeypatch):
    step, calls = llm.llm_engine.step, []

    def interrupted():
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.llm_engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS * 2, greedy(), use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    [output] = llm.generate(PROMPTS[2], greedy(), use_tqdm=False)
    assert output.prompt == PROMPTS[2]


def test_a_request_that_fails_on_the_device_ends_alone(llm, monkeypatch):
    device = llm.llm_engine.engine_core.core.executor.worker.device
    forward = device.forward

    def failing(model_input):
        if (model_input.input_ids == 319).any():
            raise ValueError("no such thing")
        return forward(model_input)

    expected = _text(llm, PROMPTS[0], greedy())
    monkeypatch.setattr(device, "forward", failing)
    bad, good = llm.generate([[5, 319], PROMPTS[0]], greedy(), use_tqdm=False)
    assert bad.outputs[0].finish_reason == "error"
    assert "no such thing" in bad.outputs[0].stop_reason
    assert good.outputs[0].text == expected


def test_progress_bars(llm, capsys):
    made = []

    class Bar:
        def __init__(self, **options):
            made.append(self)
            self.options, self.count, self.closed = options, 0, False

        def set_postfix_str(self, text, refresh):
            assert "tokens/s" in text

        def update(self, count):
            self.count += count

        def close(self):
            self.closed = True

    llm.generate(PROMPTS, greedy(), use_tqdm=Bar)
    assert made[0].options["total"] == made[0].count == len(PROMPTS)
    assert made[0].closed
    llm.generate(PROMPTS, greedy())
    assert "Processed prompts: 100%" in capsys.readouterr().err


def test_enqueue_and_wait(llm):
    first = llm.enqueue(PROMPTS[:2], greedy())
    between = llm.generate(PROMPTS[2], greedy(), use_tqdm=False)
    second = llm.enqueue(PROMPTS[3], greedy())
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == first + second
    assert [output.prompt for output in outputs] == [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    assert between[0].prompt == PROMPTS[2]
    assert llm.wait_for_completion(use_tqdm=False) == []
    conversation = [{"role": "user", "content": "hi"}]
    options = {"add_generation_prompt": False, "chat_template_kwargs": {"bos_token": ""}, "use_tqdm": False}
    llm.enqueue_chat(conversation, greedy(), priority=0, **options)
    (queued,) = llm.wait_for_completion(use_tqdm=False)
    (plain,) = llm.chat(conversation, greedy(), priority=0, **options)
    assert (queued.prompt, queued.outputs[0].text) == (plain.prompt, plain.outputs[0].text)


# Chats.


def test_chat_goes_through_the_template(llm):
    messages = [{"role": "user", "content": "hi"}]
    [output] = llm.chat(messages, greedy(), use_tqdm=False)
    assert output.prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt_token_ids == llm.get_tokenizer().encode(output.prompt, add_special_tokens=False)
    assert len(llm.chat([messages] * 3, greedy(), use_tqdm=False)) == 3
    [parts] = llm.chat([{"role": "user", "content": [{"type": "text", "text": "hi"}]}], greedy(), use_tqdm=False)
    assert parts.prompt == output.prompt


def test_chat_options(llm):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I"}]
    options = {"add_generation_prompt": False, "continue_final_message": True, "use_tqdm": False}
    [output] = llm.chat(messages, greedy(), **options)
    assert output.prompt.endswith("<|im_start|>assistant\nI")
    template = "{{ messages[0].content }}{{ name }}"
    [output] = llm.chat(messages, greedy(), chat_template=template, chat_template_kwargs={"name": "!"}, use_tqdm=False)
    assert output.prompt == "hi!"
    with pytest.raises(VLLMValidationError, match="exclude"):
        llm.chat(messages, greedy(), continue_final_message=True, use_tqdm=False)
    with pytest.raises(VLLMValidationError):
        llm.chat([], greedy(), use_tqdm=False)


# Ends.


def test_eos_ends_an_output_and_is_no_text(llm):
    params = greedy(ignore_eos=False, logit_bias={2: 100.0})
    completion = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert (completion.text, list(completion.token_ids)) == ("", [2])
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_min_tokens_hold_eos_back(llm):
    params = greedy(ignore_eos=False, logit_bias={2: 100.0}, min_tokens=5)
    completion = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert len(completion.token_ids) == 6
    assert 2 not in completion.token_ids[:5]
    assert completion.finish_reason == "stop"


@pytest.mark.parametrize("include", [False, True])
def test_stop_tokens(llm, include):
    plain = llm.generate(PROMPTS[0], greedy(), use_tqdm=False)[0].outputs[0]
    stop_id = plain.token_ids[4]
    count = list(plain.token_ids).index(stop_id) + 1
    params = greedy(stop_token_ids=[stop_id], include_stop_str_in_output=include)
    completion = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert list(completion.token_ids) == list(plain.token_ids[:count])
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop_id)
    tokenizer = llm.get_tokenizer()
    assert completion.text == tokenizer.decode(plain.token_ids[: count if include else count - 1], True)


@pytest.mark.parametrize("include", [False, True])
def test_stop_strings(llm, include):
    plain = llm.generate(PROMPTS[0], greedy(), use_tqdm=False)[0].outputs[0]
    stop = plain.text[5:8]
    start = plain.text.find(stop)
    params = greedy(stop=["\0never", stop], include_stop_str_in_output=include)
    completion = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert completion.text == plain.text[: start + (len(stop) if include else 0)]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)
    assert list(completion.token_ids) == list(plain.token_ids[: len(completion.token_ids)])
    assert len(completion.token_ids) < len(plain.token_ids)


def test_tokens_end_where_the_context_does(llm):
    [output] = llm.generate([[5] * 90], greedy(max_tokens=None), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 6
    assert output.outputs[0].finish_reason == "length"


# What is generated.


def test_seeds_repeat_and_n_outputs_differ(llm):
    params = SamplingParams(n=3, seed=11, max_tokens=8, ignore_eos=True)
    first, second = (llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs for _ in range(2))
    assert [completion.text for completion in first] == [completion.text for completion in second]
    assert [completion.index for completion in first] == [0, 1, 2]
    assert len({completion.text for completion in first}) == 3
    children = [SamplingParams(seed=11 + i, max_tokens=8, ignore_eos=True) for i in range(3)]
    assert [_text(llm, PROMPTS[0], child) for child in children] == [completion.text for completion in first]


def test_outputs_without_a_seed_differ(llm):
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    outputs = llm.generate([PROMPTS[0]] * 3, params, use_tqdm=False)
    assert len({output.outputs[0].text for output in outputs}) == 3


def test_allowed_tokens_and_bad_words(llm):
    params = greedy(allowed_token_ids=[40, 41])
    assert set(llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].token_ids) <= {40, 41}
    plain = llm.generate(PROMPTS[0], greedy(), use_tqdm=False)[0].outputs[0]
    tokenizer = llm.get_tokenizer()
    word = next(tokenizer.decode(i) for i in plain.token_ids if tokenizer.encode(tokenizer.decode(i)) == [i])
    assert word not in _text(llm, PROMPTS[0], greedy(bad_words=[word]))


def test_text_options(llm):
    plain = llm.generate(PROMPTS[0], greedy(), use_tqdm=False)[0].outputs[0]
    assert _text(llm, PROMPTS[0], greedy(detokenize=False)) == ""
    forced = {"allowed_token_ids": [1, 40], "logit_bias": {1: 100.0}}
    assert "<|im_start|>" in _text(llm, PROMPTS[0], greedy(skip_special_tokens=False, **forced))
    assert "<|im_start|>" not in _text(llm, PROMPTS[0], greedy(**forced))
    assert plain.text == llm.get_tokenizer().decode(plain.token_ids, skip_special_tokens=True)


# Log-probabilities.


@pytest.mark.parametrize("count", [0, 1, 3])
def test_logprobs(llm, count):
    params = SamplingParams(seed=3, max_tokens=6, ignore_eos=True, logprobs=count)
    completion = llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0]
    assert len(completion.logprobs) == len(completion.token_ids)
    for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True):
        assert next(iter(position)) == token_id
        assert count <= len(position) <= count + 1
        ranks = {entry.rank for entry in position.values()}
        assert ranks == set(range(1, count + 1)) | {position[token_id].rank}
        ordered = sorted(position.values(), key=lambda entry: entry.rank)
        assert [entry.logprob for entry in ordered] == sorted((e.logprob for e in ordered), reverse=True)
    total = sum(position[i].logprob for i, position in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)
    texts = [position[i].decoded_token for i, position in zip(completion.token_ids, completion.logprobs, strict=True)]
    assert completion.text.rstrip("\ufffd") == "".join(texts).rstrip("\ufffd")


def test_no_logprobs_unless_asked_for(llm):
    output = llm.generate(PROMPTS[0], greedy(), use_tqdm=False)[0]
    assert output.prompt_logprobs is None
    assert output.outputs[0].logprobs is None
    assert output.outputs[0].cumulative_logprob is None


def test_named_tokens_are_reported_without_a_rank(llm):
    params = greedy(4, logprobs=1, logprob_token_ids=[300])
    for position in llm.generate(PROMPTS[0], params, use_tqdm=False)[0].outputs[0].logprobs:
        assert 300 in position
        assert position[300].rank is None or position[300].rank == 1


@pytest.mark.parametrize("n", [1, 2])
def test_prompt_logprobs(llm, n):
    params = SamplingParams(n=n, seed=1, max_tokens=3, prompt_logprobs=2)
    output = llm.generate(PROMPTS[2], params, use_tqdm=False)[0]
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    for token_id, position in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert token_id in position
        assert 2 <= len(position) <= 3


def test_flat_logprobs_hold_the_same(llm):
    flat = llm.generate(PROMPTS[0], greedy(4, logprobs=2, flat_logprobs=True, prompt_logprobs=1), use_tqdm=False)[0]
    plain = llm.generate(PROMPTS[0], greedy(4, logprobs=2, prompt_logprobs=1), use_tqdm=False)[0]
    assert isinstance(flat.outputs[0].logprobs, FlatLogprobs)
    assert list(flat.outputs[0].logprobs) == plain.outputs[0].logprobs
    assert list(flat.prompt_logprobs)[1:] == plain.prompt_logprobs[1:]
    assert flat.prompt_logprobs[0] == {}


# What a text generator refuses.


def test_a_chat_with_tools_takes_the_template_for_them(llm, monkeypatch):  # M2
    monkeypatch.setattr(llm.get_tokenizer(), "chat_template", {"tool_use": "T{{ tools | length }}", "default": "D"})
    messages, tools = [{"role": "user", "content": "hi"}], [{"type": "function", "function": {"name": "f"}}]
    for given, prompt in ((tools, "T1"), ([], "D"), (None, "D")):
        (output,) = llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False, tools=given)
        assert output.prompt == prompt


@pytest.mark.parametrize("method", ["encode", "embed", "classify", "score", "reward"])
def test_pooling_methods_say_what_is_supported(llm, method):
    with pytest.raises(ValueError, match=r"only supported for .* models; this model generates text"):
        getattr(llm, method)("x")


def test_what_is_not_there_yet_says_so(llm):
    with pytest.raises(NotImplementedError, match="apply_model"):
        llm.apply_model(print)


def test_unknown_keywords_name_the_nearest(tiny_llama):
    with pytest.raises(TypeError, match="did you mean 'max_num_seqs'"):
        LLM(str(tiny_llama), max_num_seq=4)


def test_metrics(llm):
    llm.generate(PROMPTS, greedy(), use_tqdm=False)
    metrics = {(metric.name, metric.labels.get("kind")): metric for metric in llm.get_metrics()}
    assert metrics["vllm:bucket_tokens", "decode"].value > 0
    assert metrics["vllm:num_preemptions", None].value == 0
    assert llm.reset_prefix_cache() is True
    assert llm.get_world_size() == 1


# Step by step.


@pytest.fixture(scope="module")
def engine(tiny_llama):
    engine = LLMEngine.from_engine_args(engine_args(tiny_llama, stream_interval=1))
    yield engine
    engine.shutdown()


def _steps(engine) -> dict[str, list]:
    seen: dict[str, list] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            seen.setdefault(output.request_id, []).append(output)
    return seen


@pytest.mark.parametrize("n", [1, 3])
def test_every_kind_of_output_tells_the_same(engine, n):
    for kind in RequestOutputKind:
        params = SamplingParams(
            n=n, seed=5, max_tokens=9, ignore_eos=True, logprobs=1, stop=["\0", "zzzzzz"], output_kind=kind
        )
        engine.add_request(kind.name, PROMPTS[0], params)
    seen = _steps(engine)
    final = seen["FINAL_ONLY"]
    assert len(final) == 1
    expected = final[0].outputs
    assert [completion.index for completion in expected] == list(range(n))
    assert [c.text for c in seen["CUMULATIVE"][-1].outputs] == [c.text for c in expected]
    assert [c.logprobs for c in seen["CUMULATIVE"][-1].outputs] == [c.logprobs for c in expected]
    for index in range(n):
        deltas = [c for output in seen["DELTA"] for c in output.outputs if c.index == index]
        assert len(deltas) == 9
        assert "".join(c.text for c in deltas) == expected[index].text
        assert [i for c in deltas for i in c.token_ids] == list(expected[index].token_ids)
        assert [p for c in deltas for p in c.logprobs] == expected[index].logprobs
        assert deltas[-1].cumulative_logprob == expected[index].cumulative_logprob
        assert [c.finish_reason for c in deltas] == [None] * 8 + ["length"]
    for outputs in seen.values():
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_cumulative_outputs_are_not_changed_afterwards(engine):
    engine.add_request("r", PROMPTS[0], greedy(6, logprobs=0))
    outputs = _steps(engine)["r"]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 2, 3, 4, 5, 6]
    assert [len(output.outputs[0].logprobs) for output in outputs] == [1, 2, 3, 4, 5, 6]


def test_a_stream_interval_joins_pieces(engine):
    params = greedy(10, output_kind=RequestOutputKind.DELTA, stream_interval=4)
    engine.add_request("r", PROMPTS[0], params)
    assert [len(output.outputs[0].token_ids) for output in _steps(engine)["r"]] == [1, 4, 4, 1]


def test_metrics_of_a_request(engine):
    engine.add_request("r", PROMPTS[0], greedy(5))
    stats = _steps(engine)["r"][-1].metrics
    assert stats.num_generation_tokens == 5
    assert stats.queued_ts <= stats.scheduled_ts <= stats.first_token_ts <= stats.last_token_ts
    assert stats.first_token_latency > 0
    finished = next(
        m for m in engine.get_metrics() if m.name == "vllm:request_success" and m.labels["finished_reason"] == "length"
    )
    assert finished.value >= 1


def test_aborted_requests_are_silent(engine):
    engine.add_request("a", PROMPTS[0], greedy(50))
    engine.add_request("b", PROMPTS[1], greedy(5))
    engine.step()
    engine.abort_request(["a", "never heard of"])
    seen = _steps(engine)
    assert "a" not in seen
    assert seen["b"][-1].finished
    assert engine.get_num_unfinished_requests() == 0


def test_ids_in_use_are_refused(engine):
    engine.add_request("a", PROMPTS[0], greedy(5))
    with pytest.raises(VLLMValidationError, match="'a' is in use"):
        engine.add_request("a", PROMPTS[0], greedy(5))
    _steps(engine)
    engine.add_request("a", PROMPTS[0], greedy(1))
    _steps(engine)


def test_priorities_go_before_arrival(tiny_llama):
    engine = LLMEngine.from_engine_args(engine_args(tiny_llama, max_num_seqs=1, scheduling_policy="priority"))
    for name, priority in (("low", 5), ("high", -5), ("middle", 0)):
        engine.add_request(name, PROMPTS[0], greedy(2, output_kind=RequestOutputKind.FINAL_ONLY), priority=priority)
    assert list(_steps(engine)) == ["high", "middle", "low"]
    engine.shutdown()


def test_without_a_tokenizer(tiny_llama):
    engine = LLMEngine.from_engine_args(engine_args(tiny_llama, skip_tokenizer_init=True))
    engine.add_request("r", [5, 6], greedy(3, logprobs=1))
    completion = _steps(engine)["r"][-1].outputs[0]
    assert completion.text == ""
    assert all(entry.decoded_token is None for position in completion.logprobs for entry in position.values())
    with pytest.raises(ValueError, match="skip_tokenizer_init"):
        engine.get_tokenizer()
    engine.shutdown()


def test_a_lost_device_ends_the_call_and_says_so(tiny_llama, monkeypatch):
    from vllm.device.model import DeviceLost

    llm = LLM.from_engine_args(engine_args(tiny_llama))
    device = llm.llm_engine.engine_core.core.executor.worker.device

    def lost(model_input):
        raise DeviceLost("the core is gone")

    monkeypatch.setattr(device, "forward", lost)
    with pytest.raises(DeviceLost, match="the core is gone"):
        llm.generate(PROMPTS, greedy(), use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    llm.shutdown()


# The real model.


def test_a_real_model_streams_the_text_it_returns(smollm2):
    llm = LLM(str(smollm2), device="cpu", max_num_seqs=2, max_model_len=96)
    prompts = ["The capital of France is", "Repeat: 😀 日本語 🏳️‍🌈 😀 日本語"]
    expected = llm.generate(prompts, greedy(24), use_tqdm=False)
    assert " Paris" in expected[0].outputs[0].text
    for prompt, output in zip(prompts, expected, strict=True):
        llm.llm_engine.add_request("stream", prompt, greedy(24, output_kind=RequestOutputKind.DELTA))
        deltas = _steps(llm.llm_engine)["stream"]
        assert "".join(delta.outputs[0].text for delta in deltas) == output.outputs[0].text
    llm.shutdown()
