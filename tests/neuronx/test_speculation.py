"""Fused speculation on the stand-in in its three versions: tokens are those without it, whatever the draft guesses."""

from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.neuron.driver import load, resolved_config
from tests.neuron.test_target_contract import _alone
from tests.neuronx.inputs import decode, prefill
from tests.neuronx.test_inputs import LIMITS
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.checkpoint import open_checkpoint
from vllm.config import SpeculativeConfig
from vllm.device.model_input import Kind
from vllm.exceptions import VLLMValidationError
from vllm.settings.faults import NeuronConfigError
from vllm.settings.neuron_config import default_neuron_config
from vllm.targets.neuronx.input_checks import row_faults
from vllm.targets.neuronx.speculation import cache_length, draft_entries

LENGTH, DRAFTS = 64, 3
PROMPTS = [[7], [9, 10], [30, 31, 32, 40, 50], list(range(100, 140))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("target") / "model")


@pytest.fixture(scope="module")
def drafts(model, tmp_path_factory):
    """The target itself, which guesses all right, and a stranger, which guesses little."""
    directory = tmp_path_factory.mktemp("drafts")
    return {"itself": model, "stranger": make_checkpoint(directory / "stranger", seed=9, num_hidden_layers=1)}


def _speculating(model, draft, method):
    config, checkpoint = resolved_config(model, "neuronx"), open_checkpoint(str(draft))
    speculation = SpeculativeConfig(
        method=method,
        num_speculative_tokens=DRAFTS,
        model=str(draft),
        model_path=str(draft),
        hf_config=checkpoint.config,
    )
    is_eagle = method != "draft_model"
    keys = {
        "speculation_length": DRAFTS + 1,
        "enable_fused_speculation": True,
        "enable_eagle_speculation": is_eagle,
        "is_eagle3": method == "eagle3",
    }
    neuron = default_neuron_config(config, keys)
    return config.replace(speculative_config=speculation, neuron_config=neuron)


def _device(model, draft, method, directory):
    config = _speculating(model, draft, method)
    return load(config, directory / "artifact")


def _with_drafts(given, counts, kind):
    return dataclasses.replace(given, kind=kind, num_drafts=np.asarray(counts, np.int32))


def _generate(device, prompts, lines, most=DRAFTS, until=LENGTH):
    """Tokens of all prompts, decoded together to the last position; and how many came out a step."""
    tokens, steps = [list(prompt) for prompt in prompts], []
    first = device.forward(_with_drafts(prefill(prompts, lines), [0] * len(prompts), Kind.PREFILL))
    assert first.num_new.tolist() == [1] * len(prompts)
    for row, token in enumerate(first.tokens[:, 0].tolist()):
        tokens[row].append(token)
    live = [row for row in range(len(prompts)) if len(tokens[row]) < until]
    while live:
        positions = [len(tokens[row]) - 1 for row in live]
        counts = [min(most, until - len(tokens[row]) - 1) for row in live]
        given = decode([tokens[row][-1] for row in live], [lines[row] for row in live], positions)
        output = device.forward(_with_drafts(given, counts, Kind.VERIFY if any(counts) else Kind.DECODE))
        for i, row in enumerate(live):
            assert 1 <= output.num_new[i] <= 1 + counts[i]
            tokens[row] += output.tokens[i, : output.num_new[i]].tolist()
            steps.append(int(output.num_new[i]))
        live = [row for row in live if len(tokens[row]) < until]
    return [found[len(prompt) :] for found, prompt in zip(tokens, prompts, strict=True)], steps


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    config = resolved_config(model, "cpu")
    device = load(config, tmp_path_factory.mktemp("cpu"))
    tokens = [_alone((config, device), prompt, LENGTH - len(prompt))[0] for prompt in PROMPTS]
    device.shutdown()
    return tokens


@pytest.mark.parametrize("draft", ["itself", "stranger"])
def test_tokens_are_those_without_speculation(library, model, drafts, expected, draft, tmp_path):
    """One-token prompts beside long ones, rows in any order of lines, up to the last position of the model."""
    device = _device(model, drafts[draft], "draft_model", tmp_path)
    found, steps = _generate(device, PROMPTS, [2, 0, 3, 1])
    assert found == expected
    assert (max(steps) == DRAFTS + 1) == (draft == "itself") or draft == "stranger"
    device.shutdown()


def test_what_a_row_may_not_use_is_dropped_and_computed_again(library, model, drafts, expected, tmp_path):
    device = _device(model, drafts["itself"], "draft_model", tmp_path)
    for most in (0, 1):
        found, steps = _generate(device, PROMPTS[2:], [1, 0], most=most)
        assert found == expected[2:] and max(steps) == 1 + most
    device.shutdown()


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_heads_follow_their_lines(library, model, drafts, expected, method, tmp_path):
    """The head remembers a line's hidden states: only where lines are a request's own for life does it guess right."""
    if method == "eagle3" and library == "0.4.0":
        head = _as_head(model, tmp_path / "head")
        options = {"method": method, "model": str(head), "num_speculative_tokens": DRAFTS}
        with pytest.raises(NeuronConfigError, match=r"is_eagle3=True: NxD Inference has it from 0\.7"):
            _llm(model, device="neuronx", speculative_config=options)
        return
    device = _device(model, drafts["itself"], method, tmp_path)
    found, steps = _generate(device, PROMPTS, [2, 0, 3, 1])
    assert found == expected and np.mean(steps) > 2
    device.shutdown()


GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


def _llm(model, **options):
    return LLM(model=str(model), max_num_seqs=3, max_model_len=LENGTH, dtype="float32", **options)


def _tokens(llm, params=GREEDY):
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in [*PROMPTS, *PROMPTS]], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("method", ["draft_model", "eagle"])
def test_through_the_engine(library, model, drafts, method, tmp_path):
    """More requests than rows, ending at different lengths, some at the model's last position."""
    draft = drafts["itself"] if method == "draft_model" else _as_head(model, tmp_path / "head")
    options = {"method": method, "model": str(draft), "num_speculative_tokens": DRAFTS}
    device = _llm(model, device="neuronx", speculative_config=options)
    assert _tokens(device) == _tokens(_llm(model, device="cpu"))
    accepted = next(m.value for m in device.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens")
    assert accepted > 100
    with pytest.raises(VLLMValidationError, match="compares greedily"):
        _tokens(device, SamplingParams(temperature=0.5))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"enable_prefix_caching": True}, "over contiguous KV"),
        ({"override_neuron_config": {"on_device_sampling_config": None}}, "must sample to check drafts"),
        ({"override_neuron_config": {"token_tree_config": {"0": [1]}}}, "it needs enable_eagle_speculation"),
    ],
)
def test_what_cannot_be_combined_is_refused(newest, model, drafts, options, reason):
    speculation = {"model": str(drafts["itself"]), "num_speculative_tokens": DRAFTS}
    with pytest.raises(NeuronConfigError, match=reason):
        _llm(model, device="neuronx", speculative_config=speculation, **options)


def test_drafts_of_the_host_are_refused(newest, model):
    with pytest.raises(NeuronConfigError, match="does not speculate by ngram"):
        _llm(model, device="neuronx", speculative_config={"method": "ngram", "num_speculative_tokens": 3})


def _as_head(checkpoint, directory, without=""):
    """The checkpoint's weights with the projection that an EAGLE head has."""
    shutil.copytree(checkpoint, directory)
    weights = load_file(checkpoint / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not without or without not in name}
    width = weights["model.embed_tokens.weight"].shape[1]
    save_file(kept | {"fc.weight": torch.zeros(width, 2 * width)}, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_an_eagle_head_must_bring_what_it_shares(newest, model, tmp_path):
    head = _as_head(model, tmp_path / "head", without="lm_head")
    with pytest.raises(NeuronConfigError, match=r"lacks lm_head\.weight"):
        _llm(model, device="neuronx", speculative_config={"method": "eagle", "model": str(head)})


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_a_whole_model_is_no_eagle_head(newest, model, drafts, method):  # N5
    with pytest.raises(NeuronConfigError, match=r"no tensor 'fc\.weight'. Leave method out: a whole model drafts"):
        _llm(model, device="neuronx", speculative_config={"method": method, "model": str(drafts["stranger"])})


def test_a_draft_of_another_family(library, model, tmp_path):
    other = make_checkpoint(tmp_path / "qwen", "qwen2")
    speculation = {"model": str(other), "num_speculative_tokens": DRAFTS}
    if library == "0.4.0":
        with pytest.raises(NeuronConfigError, match="cannot join"):
            _llm(model, device="neuronx", speculative_config=speculation)
    else:
        device = _llm(model, device="neuronx", speculative_config=speculation)
        assert _tokens(device) == _tokens(_llm(model, device="cpu"))


@pytest.mark.parametrize("padding", [0, -1])
def test_zero_is_a_token_and_not_padding(newest, model, drafts, padding, tmp_path, monkeypatch):
    """Token 0 in the middle of what was accepted and at its end, with what versions up to 0.7 pad, and later ones."""
    device = _device(model, drafts["itself"], "draft_model", tmp_path)
    fused = [
        torch.tensor([[5, 0, 0, 7], [6, 0, padding, padding]], dtype=torch.int32),
        torch.zeros(2, 1),
        None,
        torch.tensor([[9], [5]], dtype=torch.int32),
    ]
    monkeypatch.setattr(device.application, "forward", lambda **arguments: SimpleNamespace(fused_outputs=fused))
    given = _with_drafts(decode([1, 2], [0, 1], [5, 3]), [DRAFTS, DRAFTS], Kind.VERIFY)
    output = device.forward(given)
    assert output.num_new.tolist() == [4, 2]
    assert output.tokens[0].tolist() == [5, 0, 0, 7] and output.tokens[1, :2].tolist() == [6, 0]


def test_the_cache_has_room_behind_the_last_position():
    neuron = SimpleNamespace(enable_fused_speculation=True, speculation_length=4, max_length=1024)
    assert cache_length(neuron) == 1152
    assert cache_length(SimpleNamespace(**{**vars(neuron), "max_length": 1000})) == 1004
    assert cache_length(SimpleNamespace(**{**vars(neuron), "enable_fused_speculation": False})) == 1024


def test_the_drafts_keys():
    target = {
        "speculation_length": 4,
        "enable_fused_speculation": True,
        "sequence_parallel_enabled": True,
        "quantized": True,
        "quantized_checkpoints_path": "/q",
        "modules_to_not_convert": ["a"],
        "draft_model_modules_to_not_convert": ["b"],
        "tp_degree": 8,
    }
    own = draft_entries(target)
    assert own["speculation_length"] == 0 and not own["enable_fused_speculation"] and own["tp_degree"] == 8
    assert own["modules_to_not_convert"] == ["b"] and "quantized_checkpoints_path" not in own
    assert not own["quantized"] and not own["sequence_parallel_enabled"] and "is_eagle_draft" not in own
    eagle = draft_entries({**target, "enable_eagle_speculation": True})
    assert eagle["is_eagle_draft"] and eagle["speculation_length"] == 4 and eagle["enable_fused_speculation"]


def test_a_verification_needs_programs_for_it():
    given = dataclasses.replace(decode([5], [0], [3]), kind=Kind.VERIFY)
    assert "without speculation" in row_faults(given, LIMITS)[0]
    fused = dataclasses.replace(LIMITS, speculation_length=4)
    assert not row_faults(given, fused)
    assert not row_faults(dataclasses.replace(decode([5], [0], [63]), kind=Kind.VERIFY), fused)
    assert row_faults(dataclasses.replace(decode([5], [0], [64]), kind=Kind.VERIFY), fused)
