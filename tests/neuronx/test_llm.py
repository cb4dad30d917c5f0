"""The whole engine on the stand-in: `LLM(...)` as a user calls it."""

from __future__ import annotations

import json
import logging

import pytest

from tests.neuronx.conftest import on_a_device
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError

PROMPTS = ["The quick brown fox", "Prefill writes", "a", "decode reads them again for every token"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("llm"))


def _llm(model, **options):
    return LLM(model=str(model), max_num_seqs=3, max_model_len=64, dtype="float32", **options)


def _texts(llm, params=GREEDY):
    return [output.outputs[0].text for output in llm.generate(PROMPTS, params, use_tqdm=False)]


def test_texts_are_the_cpu_targets(library, model):
    """More requests than rows: lines are reused, prompts and decodes alternate."""
    assert _texts(_llm(model, device="neuronx")) == _texts(_llm(model, device="cpu"))


def test_overlapped_steps_find_every_live_row_in_every_decode(library, model):
    """Rows end by EOS, which only the step after knows, and by length; a live row that is missing loses its KV line."""
    params = [SamplingParams(temperature=0.0, max_tokens=4 + 5 * (i % 3), ignore_eos=i % 2 == 0) for i in range(8)]
    prompts = [PROMPTS[i % len(PROMPTS)] + str(i) for i in range(8)]
    found = []
    for options in ({"device": "neuronx", "async_scheduling": True}, {"device": "cpu"}):
        outputs = _llm(model, **options).generate(prompts, params, use_tqdm=False)
        found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]


def test_host_sampling_serves_what_the_cpu_target_serves(newest, model, monkeypatch):
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
    params = SamplingParams(
        temperature=0.8,
        seed=7,
        min_p=0.02,
        presence_penalty=0.4,
        min_tokens=4,
        logprobs=2,
        max_tokens=10,
        bad_words=["the"],
    )
    device, cpu = _llm(model, device="neuronx"), _llm(model, device="cpu")
    assert _texts(device, params) == _texts(cpu, params)
    (output,) = device.generate(PROMPTS[:1], params, use_tqdm=False)
    assert all(len(entry) in (2, 3) for entry in output.outputs[0].logprobs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("min_p", 0.1),
        ("presence_penalty", 0.5),
        ("frequency_penalty", 0.5),
        ("repetition_penalty", 1.2),
        ("logit_bias", {5: 1.0}),
        ("bad_words", ["the"]),
        ("allowed_token_ids", [5, 6]),
        ("min_tokens", 3),
        ("logprobs", 1),
        ("prompt_logprobs", 1),
        ("top_k", 257),
    ],
)
def test_what_the_device_cannot_sample_is_refused_by_name(device_llm, name, value):
    params = SamplingParams(temperature=0.5, max_tokens=8, **{name: value})
    with pytest.raises(VLLMValidationError, match=name):
        device_llm.generate(PROMPTS[:1], params, use_tqdm=False)


@pytest.fixture(scope="module")
def device_llm(model, tmp_path_factory):
    with on_a_device("0.9.0", tmp_path_factory.mktemp("site")):
        yield _llm(model, device="neuronx")


def test_temperature_top_k_and_top_p_are_served_and_left_as_they_were(device_llm):
    params = SamplingParams(temperature=0.7, top_k=-1, top_p=0.9, max_tokens=8)
    before = repr(params)
    assert all(_texts(device_llm, params))
    assert repr(params) == before


def test_prompt_logprobs_are_refused_where_logits_of_prompts_never_come_back(newest, model, monkeypatch):
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
    with pytest.raises(VLLMValidationError, match="prompt_logprobs"):
        _llm(model, device="neuronx").generate(PROMPTS[:1], SamplingParams(prompt_logprobs=1), use_tqdm=False)


def test_a_prompt_beyond_the_longest_bucket_is_refused_before_it_runs(device_llm):
    with pytest.raises(VLLMValidationError):
        device_llm.generate([{"prompt_token_ids": [5] * 64}], GREEDY, use_tqdm=False)


def test_one_token_prompts_beside_long_ones(device_llm, model):
    prompts = [{"prompt_token_ids": [9]}, {"prompt_token_ids": list(range(3, 40))}, {"prompt_token_ids": [9, 10]}]
    expected = _llm(model, device="cpu").generate(prompts, GREEDY, use_tqdm=False)
    found = device_llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in expected]


def test_defaults_of_the_checkpoint_that_the_device_cannot_honour_are_left_out(
    newest, tmp_path, caplog, monkeypatch
):  # N6
    """Nobody asked for them: no request fails for one, a line at the start says so. A client's own wish is refused."""
    checkpoint = make_checkpoint(tmp_path / "model")
    defaults = {"repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    (checkpoint / "generation_config.json").write_text(json.dumps(defaults))
    options = {"model": str(checkpoint), "max_model_len": 64, "max_num_seqs": 2, "dtype": "float32"}
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    device = LLM(device="neuronx", **options)
    assert "the default repetition_penalty=1.05 is left out: the neuronx target does not honour it" in caplog.text
    assert "--generation-config vllm" in caplog.text
    assert device.llm_engine.default_sampling_params == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert device.generate(["hi"], use_tqdm=False)[0].outputs[0].token_ids
    with pytest.raises(VLLMValidationError, match="repetition_penalty is not supported"):
        device.generate(["hi"], SamplingParams(repetition_penalty=1.05), use_tqdm=False)
    host = LLM(device="neuronx", override_neuron_config={"on_device_sampling_config": None}, **options)
    assert host.llm_engine.default_sampling_params == defaults


def test_under_speculation_requests_that_say_nothing_are_greedy(newest, tmp_path):  # N6
    checkpoint = make_checkpoint(tmp_path / "model")
    (checkpoint / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "top_k": 20}))
    options = {"max_model_len": 64, "max_num_seqs": 2, "dtype": "float32"}
    speculation = {"model": str(checkpoint), "num_speculative_tokens": 2}
    device = LLM(model=str(checkpoint), device="neuronx", speculative_config=speculation, **options)
    assert device.llm_engine.default_sampling_params["temperature"] == 0.0
    assert device.generate(["hi"], use_tqdm=False)[0].outputs[0].token_ids
