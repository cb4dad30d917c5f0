"""LoRA adapters on the stand-in in its three versions: each row takes its own, whoever runs beside it."""

from __future__ import annotations

import json
import time

import pytest

from tests.neuron.configs import build
from tests.neuronx.adapters import make_adapter, merged
from tests.neuronx.inputs import decode, prefill
from tests.neuronx.test_config import LLAMA
from tests.neuronx.test_inputs import LIMITS
from tests.tiny import make_checkpoint
from vllm import LLM, SamplingParams
from vllm.artifacts.find import artifact_key
from vllm.device.model import resolve_target
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.settings.faults import NeuronConfigError
from vllm.settings.neuron_config_sections import LoraServingConfig
from vllm.settings.resolve import resolve
from vllm.targets.neuronx.adapters import base_slot, library_entries
from vllm.targets.neuronx.input_checks import row_faults
from vllm.targets.neuronx.versions import Version

GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PROMPTS = [{"prompt_token_ids": [7 + i, 30 + i, 90 - i, 12, 200 + i]} for i in range(6)]
NAMES = ["a", "b", "a", "b", "b", "a"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("lora") / "model")


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(directory / name, model, seed) for seed, name in enumerate(("a", "b"))}


@pytest.fixture(scope="module")
def expected(model, adapters, tmp_path_factory):
    """Tokens of every prompt under each adapter, by checkpoints that have it in their weights, on the cpu target."""
    directory = tmp_path_factory.mktemp("merged")
    tokens = {None: _tokens(_llm(model, device="cpu"), [None] * len(PROMPTS))}
    for name, adapter in adapters.items():
        checkpoint = merged(directory / name, model, adapter)
        tokens[name] = _tokens(_llm(checkpoint, device="cpu"), [None] * len(PROMPTS))
    assert tokens[None] != tokens["a"] != tokens["b"]
    return tokens


def _llm(model, **options):
    return LLM(model=str(model), max_num_seqs=4, max_model_len=64, dtype="float32", **options)


def _served(model, adapters, **options):
    modules = [f"{name}={path}" for name, path in adapters.items()]
    return _llm(model, device="neuronx", enable_lora=True, lora_modules=modules, **options)


def _request(name):
    return None if name is None else LoRARequest(name, 1 + "ab".index(name))


def _tokens(llm, names):
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=[_request(name) for name in names])
    return [list(output.outputs[0].token_ids) for output in outputs]


def _wanted(expected, names):
    return [expected[name][i] for i, name in enumerate(names)]


def test_each_row_takes_its_own_adapter(library, model, adapters, expected):
    """More requests than rows: lines are reused by other adapters, prompts and decodes alternate."""
    llm = _served(model, adapters)
    assert _tokens(llm, NAMES) == _wanted(expected, NAMES)
    assert _tokens(llm, NAMES[::-1]) == _wanted(expected, NAMES[::-1])


def test_requests_without_an_adapter(library, model, adapters, expected):
    llm, names = _served(model, adapters), [None, "a", None, "b", "a", None]
    if library == "0.7.0":
        with pytest.raises(VLLMValidationError, match="name one of a, b"):
            _tokens(llm, names)
    else:
        assert _tokens(llm, names) == _wanted(expected, names)


def test_adapters_are_swapped_where_the_library_can(library, model, adapters, expected):
    options = {"override_neuron_config": {"lora_config": {"dynamic_multi_lora": True}}, "max_loras": 1}
    if library == "0.7.0":
        assert _tokens(_served(model, adapters, **options), NAMES) == _wanted(expected, NAMES)
    else:
        with pytest.raises(NeuronConfigError, match="cannot swap adapters"):
            _served(model, adapters, **options)


def test_adapters_in_use_are_told(newest, model, adapters):
    """vLLM's gauge, from which gateways see which replica has an adapter at hand."""
    llm = _served(model, adapters)
    engine = llm.llm_engine

    def told():
        (gauge,) = [metric for metric in engine.get_metrics() if metric.name == "vllm:lora_requests_info"]
        assert abs(gauge.value - time.time()) < 600
        return gauge.labels

    idle = {"max_lora": "1", "waiting_lora_adapters": "", "running_lora_adapters": ""}
    assert told() == idle
    for i, name in enumerate("aaaabb"):
        engine.add_request(
            str(i), PROMPTS[i], SamplingParams(temperature=0.0, max_tokens=3), lora_request=_request(name)
        )
    seen = []
    while engine.has_unfinished_requests():
        engine.step()
        seen.append(told())
    assert {**idle, "running_lora_adapters": "a", "waiting_lora_adapters": "b"} in seen
    assert {**idle, "running_lora_adapters": "b"} in seen and seen[-1] == idle


def test_adapters_may_be_named_in_a_file(newest, model, adapters, tmp_path):  # N10
    """Beside lora_modules, at the top of the override, or in lora_config. Read once, at start."""
    file = tmp_path / "adapters.json"
    names = {name: str(path) for name, path in adapters.items()}
    first = next(iter(names))
    content = {"lora-ckpt-dir": "/", "lora-ckpt-paths": {first: names[first][1:]}, "lora-ckpt-paths-cpu": names}
    file.write_text(json.dumps(content))
    modules = [f"{first}={names[first]}"]
    for key in ({"lora_ckpt_json": str(file)}, {"lora_config": {"lora_ckpt_json": str(file)}}):
        for more in ({}, {"lora_modules": modules}):
            config = resolve(
                build(device="neuronx", hf_config=LLAMA, enable_lora=True, override_neuron_config=key, **more)
            )
            assert config.lora_config.adapters == names
            assert config.neuron_config.lora_config.lora_ckpt_paths == names
            assert resolve(config).neuron_config == config.neuron_config


def test_what_requests_may_name(newest, model, adapters):
    llm = _served(model, adapters)
    engine = llm.llm_engine
    assert engine.list_loras() == {1, 2} and engine.add_lora(LoRARequest("b", 9, str(adapters["b"])))
    with pytest.raises(VLLMValidationError, match="no adapter 'c'; served: a, b"):
        llm.generate(PROMPTS[:1], GREEDY, use_tqdm=False, lora_request=LoRARequest("c", 3))
    with pytest.raises(VLLMValidationError, match="was loaded from"):
        llm.generate(PROMPTS[:1], GREEDY, use_tqdm=False, lora_request=LoRARequest("a", 1, "/elsewhere"))
    with pytest.raises(VLLMClientError, match="as long as the engine runs"):
        engine.remove_lora(1)


def _faults(**options):
    with pytest.raises(NeuronConfigError) as error:
        resolve(build(device="neuronx", hf_config=LLAMA, **options))
    return str(error.value)


def test_what_cannot_be_served_is_refused(newest, model, adapters, tmp_path):
    modules = [f"a={adapters['a']}"]
    assert "no adapter is named" in _faults(enable_lora=True)
    assert "named twice" in _faults(lora_modules=modules * 2)
    assert "a name and a path" in _faults(lora_modules=["a"])
    assert "a name and a path" in _faults(lora_modules=[{"name": "a", "path": "/x", "base": "m"}])
    assert "holds no adapter_config.json" in _faults(lora_modules=["a=/nowhere"])
    assert "Use 4 or more" in _faults(lora_modules=modules, max_lora_rank=2)
    assert "over block KV" in _faults(lora_modules=modules, enable_prefix_caching=True)
    assert "names other adapters" in _faults(
        lora_modules=modules, override_neuron_config={"lora_config": {"lora_ckpt_paths": {"b": "/b"}}}
    )
    for override in ({"lora_ckpt_json": "/none.json"}, {"lora_config": {"lora_ckpt_json": "/none.json"}}):  # N10
        said = _faults(enable_lora=True, override_neuron_config=override)
        assert "lora_config.lora_ckpt_json='/none.json': it cannot be read" in said
        assert "use lora_modules" in said and "no adapter is named" not in said
    with pytest.raises(NeuronConfigError, match="the library has LoRA adapters for"):
        mixtral = {**LLAMA, "architectures": ["MixtralForCausalLM"]}
        resolve(build(device="neuronx", hf_config=mixtral, lora_modules=modules))
    with pytest.raises(NeuronConfigError, match="on the neuronx target alone"):
        resolve(build(device="cpu", hf_config=LLAMA, lora_modules=modules))


@pytest.mark.parametrize("paths", [{"a": "{a}", "b": "{b}"}, ["a:{a}", "b:{b}"]])
def test_adapters_may_be_named_in_the_librarys_terms(newest, adapters, paths):
    def fill(text):
        return text.format(**adapters)

    given = {k: fill(v) for k, v in paths.items()} if isinstance(paths, dict) else [fill(text) for text in paths]
    config = resolve(
        build(device="neuronx", hf_config=LLAMA, override_neuron_config={"lora_config": {"lora_ckpt_paths": given}})
    )
    assert config.lora_config.enable_lora and list(config.lora_config.adapters) == ["a", "b"]
    assert config.neuron_config.lora_config.max_loras == 2
    assert resolve(config) == config


def test_the_artifacts_key_names_adapters_by_content(newest, model, adapters, tmp_path):
    def key(path):
        options = {"model": str(model), "hf_config": LLAMA, "lora_modules": [f"a={path}"]}
        return artifact_key(resolve(build(device="neuronx", **options)), resolve_target("neuronx"))

    copy = make_adapter(tmp_path / "copy", model, 0)
    assert key(adapters["a"]) == key(copy) != key(adapters["b"])
    assert str(tmp_path) not in str(key(copy))


@pytest.mark.parametrize(
    ("version", "base_model_only", "slot"),
    [("0.4", True, 0), ("0.6", False, 0), ("0.7", True, -1), ("0.8", True, -1), ("0.9", True, 0), ("0.9", False, -1)],
)
def test_slots_by_version(version, base_model_only, slot):
    lora = LoraServingConfig(enable_base_model_only=base_model_only)
    assert base_slot(lora, Version(0, int(version[2:]))) == slot
    assert base_slot(None, Version(0, int(version[2:]))) is None


def test_keywords_by_version():
    lora = LoraServingConfig(max_cpu_loras=7, batch_size=4)
    old, new = library_entries(lora, Version(0, 6)), library_entries(lora, Version(0, 7))
    assert old["max_loras_on_cpu"] == 7 and not {"batch_size", "max_cpu_loras", "dynamic_multi_lora"} & set(old)
    assert new["max_cpu_loras"] == 7 and new["batch_size"] == 4 and "enable_base_model_only" not in new
    assert "enable_base_model_only" in library_entries(lora, Version(0, 9))


def test_rows_that_no_slot_takes():
    import dataclasses

    import numpy as np

    without = dataclasses.replace(LIMITS, adapter_slot=None)
    with_all = dataclasses.replace(LIMITS, adapter_slot=-1)
    ids = np.asarray([0, 1], np.int32)
    assert list(row_faults(decode([5, 6], [0, 1], [3, 4], adapter_ids=ids), without)) == [1]
    assert list(row_faults(prefill([[5], [6]], [0, 1], adapter_ids=ids), with_all)) == [0]
