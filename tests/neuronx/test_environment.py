"""What the runtime reads from the environment, and who holds the cores."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest

from tests.neuron.driver import load, resolved_config
from vllm.artifacts.manifest import ArtifactError
from vllm.checkpoint import normalise_config
from vllm.settings import host_platform
from vllm.targets.neuronx import environment
from vllm.targets.neuronx.library import load_library


@pytest.fixture
def config(newest, tiny_llama):
    return resolved_config(tiny_llama, "neuronx")


def _with_degree(tiny_llama, degree):
    from tests.neuron.configs import build
    from vllm.settings.resolve import resolve

    hf_config = normalise_config(json.loads((tiny_llama / "config.json").read_text()))
    options = {"model": str(tiny_llama), "hf_config": hf_config, "max_model_len": 64, "dtype": "float32"}
    return resolve(build(device="neuronx", tensor_parallel_size=degree, **options))


def test_variables_are_set_before_the_runtime_is_imported(newest, tiny_llama, tmp_path):
    config = _with_degree(tiny_llama, 2)
    environment.prepare(config)
    load_library()
    seen = importlib.import_module("torch_neuronx").ENVIRONMENT_AT_IMPORT
    assert seen["NEURON_RT_NUM_CORES"] == "2"
    assert seen["NEURON_RT_VIRTUAL_CORE_SIZE"] == seen["NEURON_LOGICAL_NC_CONFIG"] == "1"


def test_nothing_imports_the_library_before(newest, tiny_llama):
    code = (
        "import sys; import vllm.targets.neuronx.model, vllm.settings.resolve; "
        "print(*(name for name in ('torch', 'torch_neuronx', 'neuronx_distributed_inference') if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_too_late_is_an_error_that_says_what_to_set(config, tiny_llama):
    importlib.import_module("torch_neuronx")
    with pytest.raises(RuntimeError, match=r"Start with .*NEURON_RT_NUM_CORES=1"):
        environment.prepare(config)


def test_a_second_load_in_the_process_needs_no_change(config):
    environment.prepare(config)
    load_library()
    environment.prepare(config)


def test_a_users_cores_are_kept(config, monkeypatch):
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "4-7")
    environment.prepare(config)
    assert os.environ["NEURON_RT_VISIBLE_CORES"] == "4-7"
    assert "NEURON_RT_NUM_CORES" not in os.environ


@pytest.mark.parametrize(("name", "value"), [("NEURON_RT_VISIBLE_CORES", "0-2"), ("NEURON_RT_NUM_CORES", "3")])
def test_too_few_cores(newest, tiny_llama, monkeypatch, name, value):
    config = _with_degree(tiny_llama, 8)
    monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=f"{name}={value} shows 3 NeuronCores, but tensor_parallel_size takes 8"):
        environment.prepare(config)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("", []), ("3", [3]), ("0-3", [0, 1, 2, 3]), ("0, 2,4-5", [0, 2, 4, 5]), ("1,0-1", [0, 1])],
)
def test_visible_cores(text, cores):
    assert environment.visible_cores(text) == cores


def test_a_list_of_cores_is_loaded_on(newest, tiny_llama, monkeypatch, tmp_path):  # N20
    monkeypatch.setenv("NEURON_RT_VISIBLE_CORES", "0,8-9")
    load(_with_degree(tiny_llama, 2), tmp_path / "artifact").shutdown()


@pytest.mark.parametrize("text", ["all", "3-1", "0,", "-1", "0-1-2", "1.5"])
def test_visible_cores_that_cannot_be_read(text):
    with pytest.raises(ValueError, match="0-3 or 0,1,4-7"):
        environment.visible_cores(text)


def test_fp8_weights_need_two_variables_of_the_compiler(newest, tiny_llama):
    config = resolved_config(tiny_llama, "neuronx")
    assert "UNSAFE_FP8FNCAST" not in environment.wanted_variables(config)
    from vllm.settings.neuron_config import NeuronConfig

    fp8 = NeuronConfig(quantized=True, quantized_checkpoints_path="/q", quantization_dtype="f8e4m3")
    wanted = environment.wanted_variables(config.replace(neuron_config=fp8))
    assert wanted["UNSAFE_FP8FNCAST"] == wanted["XLA_HANDLE_SPECIAL_SCALAR"] == "1"


def _neuron_ls(tmp_path, monkeypatch, *processes):
    """A tool that reports these (pid, command) on device 0."""
    found = [{"neuron_device": 0, "neuron_processes": [{"pid": pid, "command": text} for pid, text in processes]}]
    tool = tmp_path / "bin" / "neuron-ls"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/bin/sh\necho '{json.dumps(found)}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


def _dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_cores_held_by_a_dead_process_are_said_to_be(config, tmp_path, monkeypatch):
    pid = _dead_pid()
    _neuron_ls(tmp_path, monkeypatch, (pid, "python server.py"), (1, "init"))
    monkeypatch.setenv("STANDIN_CORES_HELD", "1")
    with pytest.raises(ArtifactError) as caught:
        load(config, tmp_path / "a")
    text = str(caught.value)
    assert f"held by process {pid} (python server.py), which is dead here" in text
    assert "held by process 1 (init), which is running" in text
    assert "NEURON_RT_VISIBLE_CORES" in text


def test_without_the_tool_the_error_points_to_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    error = RuntimeError("nrt_allocate_neuron_cores: NeuronCore(s) not available - Requested:2 Available:0")
    assert "see neuron-ls" in environment.explain_load_failure(error)
    assert environment.explain_load_failure(RuntimeError("no such file")) == "no such file"


def test_a_tool_that_answers_nonsense_is_no_obstacle(tmp_path, monkeypatch):
    _neuron_ls(tmp_path, monkeypatch)
    (tmp_path / "bin" / "neuron-ls").write_text("#!/bin/sh\necho nonsense\n")
    assert environment.holders() == []


def test_no_device_is_said_in_clear(newest, monkeypatch):
    from tests.neuron.configs import build
    from vllm.settings import resolve as platform
    from vllm.settings.faults import NeuronConfigError

    monkeypatch.setattr(host_platform, "has_neuron_device", lambda: False)
    with pytest.raises(NeuronConfigError, match="no Neuron device on this machine"):
        platform.resolve(build(device="neuronx"))


def test_a_library_that_cannot_be_imported_says_what_is_installed(clean_environment):
    with pytest.raises(RuntimeError, match=r"neuronx-distributed-inference missing.*requirements-neuron.txt"):
        load_library()


@pytest.mark.parametrize(
    ("product", "platform"), [("trn1.32xlarge", "trn1"), ("inf2.48xlarge", "inf2"), ("m7i.large", "")]
)
def test_the_platform_is_the_instances_unless_it_is_set(product, platform, clean_environment, tmp_path, monkeypatch):
    (tmp_path / "product_name").write_text(f"{product}\n")
    monkeypatch.setattr(host_platform, "PRODUCT_NAME", tmp_path / "product_name")
    monkeypatch.setattr(host_platform, "_set_by_library", [])
    assert host_platform.platform_name() == platform
    with host_platform.library_setting_the_platform():
        os.environ["NEURON_PLATFORM_TARGET_OVERRIDE"] = "trn1"
    assert host_platform.platform_name() == platform
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn2")
    assert host_platform.platform_name() == "trn2"
