"""Host sampling on the stand-in: each parameter gives what the cpu target gives, tokens and log-probabilities alike."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.neuronx.conftest import on_a_device
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.core.contract import LOGITS_FAULT
from vllm.sampling_params import StructuredOutputsParams

PROMPTS = ["The quick brown fox", "Prefill writes", "decode reads them again for every token"]
SCHEMA = {"type": "object", "properties": {"n": {"enum": [1, 2, 3]}}, "required": ["n"], "additionalProperties": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("host"))


def _llm(model, **options):
    return LLM(model=str(model), max_num_seqs=2, max_model_len=64, dtype="float32", **options)


@pytest.fixture(scope="module", params=["environment", "override"])
def host_llm(request, model, tmp_path_factory):
    """Both ways to say that the host samples."""
    with on_a_device("0.9.0", tmp_path_factory.mktemp("site")) as patch:
        override = {}
        if request.param == "environment":
            patch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
        else:
            override = {"override_neuron_config": {"on_device_sampling_config": None}}
        yield _llm(model, device="neuronx", **override)


@pytest.fixture(scope="module")
def cpu_llm(model):
    return _llm(model, device="cpu")


CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.4},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.2},
    "seed": {"seed": 12345},
    "presence_penalty": {"presence_penalty": 1.5},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "repetition_penalty": {"repetition_penalty": 1.6},
    "logit_bias": {"logit_bias": {7: 4.0, 9: -100.0}},
    "allowed_token_ids": {"allowed_token_ids": [5, 6, 7, 8]},
    "bad_words": {"bad_words": ["the", "e"]},
    "min_tokens": {"min_tokens": 9, "ignore_eos": False},
    "stop": {"stop": ["e"], "ignore_eos": False},
    "stop_token_ids": {"stop_token_ids": list(range(200, 320)), "ignore_eos": False},
    "n": {"n": 2},
    "logprobs": {"logprobs": 3},
    "all logprobs": {"logprobs": 20, "temperature": 0.0},
    "choice": {"structured_outputs": StructuredOutputsParams(choice=["a fox", "a dog"]), "ignore_eos": False},
    "regex": {"structured_outputs": StructuredOutputsParams(regex=r"[0-9]{3}-[a-c]+"), "ignore_eos": False},
    "json": {
        "structured_outputs": StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True),
        "ignore_eos": False,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_parameter_does_what_it_does_on_the_cpu_target(host_llm, cpu_llm, name):
    params = SamplingParams(**{"temperature": 0.9, "seed": 3, "max_tokens": 12, "ignore_eos": True, **CASES[name]})
    found, expected = (llm.generate(PROMPTS, params, use_tqdm=False) for llm in (host_llm, cpu_llm))
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours.outputs, theirs.outputs, strict=True):
            assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
            _same_logprobs(one.logprobs, other.logprobs)


def _same_logprobs(ours, theirs):
    if theirs is None:
        assert ours is None
        return
    for one, other in zip(ours, theirs, strict=True):
        assert {token: entry.rank for token, entry in one.items()} == {t: e.rank for t, e in other.items()}
        for token, entry in one.items():
            assert entry.logprob == pytest.approx(other[token].logprob, abs=1e-3)


def test_outputs_have_the_form_that_was_asked_for(host_llm):
    def texts(name):
        params = SamplingParams(**{"temperature": 0.9, "seed": 3, "max_tokens": 24, **CASES[name]})
        return [output.outputs[0].text for output in host_llm.generate(PROMPTS, params, use_tqdm=False)]

    assert set(texts("choice")) <= {"a fox", "a dog"}
    assert all(json.loads(text)["n"] in (1, 2, 3) for text in texts("json"))


def test_logits_that_are_not_finite_end_their_request_alone(model, newest, monkeypatch, tmp_path):  # M4
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
    damaged = shutil.copytree(model, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    token = json.loads((damaged / "tokenizer.json").read_text())["model"]["vocab"]["Z"]
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
    one, failed, other = _llm(damaged, device="neuronx").generate(
        [PROMPTS[0], "a Z", PROMPTS[1]], params, use_tqdm=False
    )
    assert failed.outputs[0].finish_reason == "error" and failed.outputs[0].stop_reason.startswith(LOGITS_FAULT)
    expected = _llm(model, device="neuronx").generate(PROMPTS[:2], params, use_tqdm=False)
    assert [each.outputs[0].token_ids for each in (one, other)] == [each.outputs[0].token_ids for each in expected]
