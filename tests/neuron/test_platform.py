"""`resolve`: defaults, agreement of settings and keys, refusals, targets; pure, and complete in its errors."""

from __future__ import annotations

import copy
import os

import msgspec
import pytest

from tests.neuron.configs import QWEN25_7B, TINYLLAMA, build
from vllm.config import VllmConfig
from vllm.device.model import DeviceModel, resolve_target
from vllm.settings import host_platform
from vllm.settings.faults import NeuronConfigError
from vllm.settings.resolve import examine, resolve, resolve_quietly
from vllm.settings.target import AUTOMATIC, PLANNED, TARGETS, find_target
from vllm.targets.neuronx.profile import NeuronxTarget


def faults_of(**options):
    with pytest.raises(NeuronConfigError) as caught:
        resolve(build(**options))
    return {fault.name: str(fault) for fault in caught.value.faults}


CONTIGUOUS = {"enable_prefix_caching": False, "enable_chunked_prefill": False}


def notices_of(**options):
    return resolve_quietly(build(**CONTIGUOUS, **options))[1]


GUIDE = {"max_num_seqs": 4, "max_model_len": 128, "tensor_parallel_size": 32}


def test_the_guides_offline_quickstart():
    config = resolve(build(**GUIDE))
    assert config.target == "cpu"
    assert (config.cache_config.block_size, config.cache_config.num_blocks) == (32, 20)
    neuron = config.neuron_config
    assert (neuron.tp_degree, neuron.batch_size, neuron.ctx_batch_size, neuron.seq_len) == (32, 4, 1, 128)
    assert neuron.enable_bucketing and neuron.is_continuous_batching and neuron.on_device_sampling
    assert (neuron.context_buckets, neuron.token_buckets) == ([128], [128])


@pytest.mark.parametrize("key", ["override_neuron_config", "override-neuron-config"])
def test_the_guides_bucketing_switch(key):
    config = resolve(build(**GUIDE, enable_prefix_caching=False, additional_config={key: {"enable_bucketing": False}}))
    assert not config.neuron_config.enable_bucketing


def test_the_guides_bucket_lists():
    override = {"context_encoding_buckets": [64, 128], "token_generation_buckets": [32, 128]}
    config = resolve(build(**GUIDE, override_neuron_config=override))
    assert (config.neuron_config.context_buckets, config.neuron_config.token_buckets) == ([64, 128], [32, 128])


def test_defaults():
    config = resolve(build())
    scheduler = config.scheduler_config
    assert scheduler.max_num_seqs == 32
    assert scheduler.max_num_batched_tokens == 256
    assert (scheduler.prefill_batch_size, scheduler.max_prefill_tokens, scheduler.max_prompt_len) == (32, 0, 1024)
    assert (scheduler.mixed_steps, scheduler.num_lookahead_tokens) == (True, 0)
    assert (config.cache_config.block_size, config.cache_config.num_blocks) == (32, 40 * 32)
    assert config.cache_config.enable_prefix_caching is True
    assert config.model_config.dtype == "auto"
    assert config.neuron_config.torch_dtype == "bfloat16"


def test_contiguous_kv_is_what_is_left_without_both():
    config = resolve(build(**CONTIGUOUS))
    scheduler, cache = config.scheduler_config, config.cache_config
    assert (scheduler.max_num_batched_tokens, scheduler.prefill_batch_size) == (1024, 1)
    assert (scheduler.mixed_steps, cache.block_size, cache.num_blocks) == (False, 1024, 32)


def test_prompts_of_a_step():
    config = resolve(build(**CONTIGUOUS, override_neuron_config={"ctx_batch_size": 4, "max_context_length": 256}))
    scheduler = config.scheduler_config
    assert (scheduler.prefill_batch_size, scheduler.max_prompt_len, scheduler.max_num_batched_tokens) == (4, 256, 1024)


def test_nothing_is_mutated_and_twice_is_once(monkeypatch):
    monkeypatch.setenv("NEURON_CONTEXT_LENGTH_BUCKETS", "256")
    override = {"on_device_sampling_config": {"global_topk": 64}, "weights_to_skip_layout_optimization": ["x"]}
    config = build(**GUIDE | {"max_model_len": 512}, additional_config={"override_neuron_config": override})
    before, environment = copy.deepcopy(config), dict(os.environ)
    first = resolve(config)
    assert (config, dict(os.environ)) == (before, environment)
    assert resolve(config) == first
    assert resolve(first) == first
    assert first.neuron_config.context_buckets == [256, 512]


def test_a_resolved_config_crosses_processes_as_json():
    class Dtype:
        def __str__(self) -> str:
            return "torch.float32"

    override = {"torch_dtype": Dtype(), "quantize_clamp_bound": float("inf"), "lm_head_pad": True}
    first = resolve(build(additional_config={"override-neuron-config": override}))
    text = msgspec.json.encode(first.replace(neuron_config=None))
    assert resolve(msgspec.json.decode(text, type=VllmConfig)) == first
    assert first.neuron_options.override_neuron_config["torch_dtype"] == "torch.float32"


# Settings and keys of the same meaning.


@pytest.mark.parametrize(
    ("entry", "option", "value"),
    [
        ({"batch_size": 8}, "scheduler_config.max_num_seqs", 8),
        ({"tp_degree": 8}, "parallel_config.tensor_parallel_size", 8),
        ({"torch_dtype": "float32"}, "model_config.dtype", "float32"),
        ({"torch_dtype": "torch.float32"}, "model_config.dtype", "float32"),
        ({"seq_len": 1024, "max_length": 1024}, "model_config.max_model_len", 1024),
        ({"pa_block_size": 1024, "pa_num_blocks": 32}, "cache_config.num_blocks", 32),
    ],
)
def test_a_setting_nobody_gave_follows_the_key(entry, option, value):
    config = resolve(build(override_neuron_config=entry))
    part, _, name = option.partition(".")
    assert getattr(getattr(config, part), name) == value


def test_equal_values_in_both_places_agree():
    override = {"batch_size": 4, "tp_degree": 32, "seq_len": 128, "torch_dtype": "bfloat16", "max_context_length": 128}
    config = resolve(build(**GUIDE, dtype="bfloat16", override_neuron_config=override))
    assert config.neuron_config == resolve(build(**GUIDE)).neuron_config


@pytest.mark.parametrize(
    ("options", "entry", "name"),
    [
        ({"max_num_seqs": 4}, {"batch_size": 8}, "batch_size"),
        ({"tensor_parallel_size": 2}, {"tp_degree": 8}, "tp_degree"),
        ({"max_model_len": 128}, {"seq_len": 256}, "seq_len"),
        ({"dtype": "float32"}, {"torch_dtype": "bfloat16"}, "torch_dtype"),
        ({"num_gpu_blocks_override": 32}, {"pa_num_blocks": 33}, "pa_num_blocks"),
        ({"max_num_seqs": 4}, {"max_batch_size": 8}, "max_batch_size"),
        ({"max_model_len": 128}, {"max_length": 64}, "max_length"),
    ],
)
def test_contradictions_are_faults(options, entry, name):
    assert name in faults_of(**options, override_neuron_config=entry)


def test_contradicting_spellings_of_the_override():
    faults = faults_of(
        additional_config={"override-neuron-config": {"enable_bucketing": False}},
        override_neuron_config={"enable_bucketing": True},
    )
    assert set(faults) == {"enable_bucketing"}


def test_host_sampling_by_environment(monkeypatch):
    monkeypatch.setenv("NEURON_ON_DEVICE_SAMPLING_DISABLED", "1")
    assert not resolve(build()).neuron_config.on_device_sampling
    faults = faults_of(override_neuron_config={"on_device_sampling_config": {"global_topk": 5}})
    assert "NEURON_ON_DEVICE_SAMPLING_DISABLED" in faults["on_device_sampling_config"]


# Faults.


def test_everything_wrong_is_in_one_error():
    faults = faults_of(
        pipeline_parallel_size=2,
        data_parallel_size=2,
        tensor_parallel_size=3,
        distributed_executor_backend="mp",
        trust_remote_code=True,
        quantization="awq",
        dtype="half",
        enable_lora=True,
        speculative_config={"method": "medusa"},
        kv_transfer_config={"kv_role": "kv_producer"},
        max_num_batched_tokens=10,
        device="gpu",
        additional_config={"overide_neuron_config": {}},
        override_neuron_config={"batchsize": 4, "speculation_length": -1},
    )
    assert set(faults) == {
        "pipeline_parallel_size",
        "data_parallel_size",
        "tensor_parallel_size",
        "distributed_executor_backend",
        "quantization",
        "dtype",
        "enable_lora",
        "speculative_config.method",
        "kv_transfer_config",
        "max_num_batched_tokens",
        "device",
        "additional_config['overide_neuron_config']",
        "batchsize",
        "speculation_length",
    }
    assert "Valid: 1, 2, 4, 8, 16, 24, 32, 64" in faults["tensor_parallel_size"]


@pytest.mark.parametrize("max_model_len", [None, 0, -1])
def test_a_length_must_be_known(max_model_len):
    assert set(faults_of(max_model_len=max_model_len)) == {"max_model_len"}


@pytest.mark.parametrize(("dtype", "target"), [("half", "cpu"), ("float16", "cpu")])
def test_float16_is_refused_where_it_is_not_computed(dtype, target):
    faults = faults_of(dtype=dtype, device=target)
    assert "Use bfloat16 or float32" in faults["dtype"]
    assert resolve(build(dtype=dtype, device="null")).model_config.dtype == "float16"


def test_float32_has_two_names():
    config = resolve(build(dtype="float"))
    assert (config.model_config.dtype, config.neuron_config.torch_dtype) == ("float32", "float32")


def test_quantised_gguf_files_may_say_so(tmp_path):  # M12
    (tmp_path / "blob").write_bytes(b"GGUF")
    assert resolve(build(model_path=str(tmp_path / "blob"), quantization="gguf")).target == "cpu"
    assert "quantization" in faults_of(quantization="gguf")


@pytest.mark.parametrize(
    "entry",
    [
        {"speculation_length": 3},
        {"lora_config": {}},
        {"lora_config": {"lora_ckpt_paths": {"a": "/a"}}},
        {"kv_quant_config": {"quant_dtype": "float8_e5m2"}},
        {"kv_quant_config": {"direct_cast": False}},
        {"tensor_capture_config": {}},
        {"on_device_sampling_config": {"dynamic": False}},
        {"on_device_sampling_config": {"deterministic": True}},
        {"on_device_sampling_config": {"global_topk": 1000}},
        {"torch_dtype": "float8_e4m3fn"},
        {"quantized": True, "modules_to_not_convert": ["lm_head"]},
    ],
)
def test_keys_that_are_not_served_are_refused(entry):
    assert faults_of(override_neuron_config=entry)


def test_global_topk_beyond_the_vocabulary():
    small = {**TINYLLAMA, "vocab_size": 64}
    assert resolve(build(hf_config=small)).neuron_config.global_topk == 64
    faults = faults_of(hf_config=small, override_neuron_config={"on_device_sampling_config": {"global_topk": 65}})
    assert "vocabulary of 64" in faults["on_device_sampling_config.global_topk"]


def test_a_step_must_hold_the_longest_prompt():
    assert "Use 1024 or more" in faults_of(**CONTIGUOUS, max_num_batched_tokens=1023)["max_num_batched_tokens"]
    for tokens in (1024, 5000):
        config = resolve(build(**CONTIGUOUS, max_num_batched_tokens=tokens))
        assert config.scheduler_config.max_num_batched_tokens == tokens
    assert resolve(build(max_num_batched_tokens=1023)).scheduler_config.mixed_steps
    assert "max_num_batched_tokens" in faults_of(max_num_batched_tokens=16, max_model_len=8, max_num_seqs=32)


@pytest.mark.parametrize(
    ("dtype", "override", "settled"),
    [
        ("auto", {}, "auto"),
        ("fp8", {}, "fp8"),
        ("fp8_e4m3", {}, "fp8"),
        ("int8", {}, "int8"),
        ("auto", {"kv_cache_quant": True}, "fp8"),
        ("fp8", {"kv_cache_quant": True}, "fp8"),
        ("auto", {"kv_cache_quant": False}, "auto"),
        ("auto", {"kv_quant_config": {}}, "fp8"),
        ("fp8_e4m3", {"kv_quant_config": {"quant_dtype": "float8_e4m3fn"}}, "fp8"),
    ],
)
def test_a_kv_cache_of_8_bits_has_many_names(dtype, override, settled):
    config = resolve(build(kv_cache_dtype=dtype, override_neuron_config=override, device="cpu"))
    assert config.cache_config.kv_cache_dtype == settled
    assert resolve(config) == config


def test_a_kv_cache_of_8_bits_is_not_served_everywhere():
    faults = examine(build(kv_cache_dtype="int8"), "neuronx").faults
    assert any("does not keep KV in it. Use auto or" in str(fault) for fault in faults.found)
    faults = examine(build(override_neuron_config={"kv_cache_quant": True}), "neuronx").faults
    assert any("quantised KV cache is not served" in fault.why for fault in faults.found)


def test_names_of_the_kv_type_must_agree():
    faults = faults_of(kv_cache_dtype="int8", override_neuron_config={"kv_cache_quant": True})
    assert "kv_cache_dtype is int8" in faults["kv_cache_quant"]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_of_memory_is_a_share(share):
    assert set(faults_of(gpu_memory_utilization=share)) == {"gpu_memory_utilization"}


def test_kv_memory_is_reckoned_before_anything_is_read():
    per_token = 2 * 22 * 4 * 64 * 2
    assert resolve(build(max_num_seqs=4, kv_cache_memory_bytes=per_token * 4 * 1024)).target == "cpu"
    faults = faults_of(max_num_seqs=4, kv_cache_memory_bytes=per_token * 4 * 1024 - 1)
    assert f"takes {per_token * 4 * 1024} bytes" in faults["kv_cache_memory_bytes"]


def test_windowed_encoding_must_be_the_models_window():
    windowed = {**TINYLLAMA, "sliding_window": 512}
    resolve(build(hf_config=windowed, override_neuron_config={"windowed_context_encoding_size": 512}))
    faults = faults_of(hf_config=windowed, override_neuron_config={"windowed_context_encoding_size": 256})
    assert "sliding_window=512" in faults["windowed_context_encoding_size"]


# Environment.


def test_other_frameworks_are_refused(monkeypatch):
    monkeypatch.setenv("VLLM_NEURON_FRAMEWORK", "neuronx-distributed-inference")
    resolve(build())
    monkeypatch.setenv("VLLM_NEURON_FRAMEWORK", "transformers-neuronx")
    assert "VLLM_NEURON_FRAMEWORK" in faults_of()


# Tensor parallelism.


@pytest.mark.parametrize(
    "hf_config", [TINYLLAMA, QWEN25_7B, {**TINYLLAMA, "num_attention_heads": 9, "num_key_value_heads": 3}]
)
@pytest.mark.parametrize("degree", [1, 2, 4, 8, 16, 24, 32, 64])
def test_degrees_the_accelerator_accepts_run_anywhere(hf_config, degree):
    assert resolve(build(hf_config=hf_config, tensor_parallel_size=degree)).neuron_config.tp_degree == degree


def test_degrees_of_the_named_platform(monkeypatch):
    monkeypatch.setenv("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
    assert resolve(build(tensor_parallel_size=8)).neuron_config.tp_degree == 8
    assert "Valid: 1, 2, 8, 16, 32" in faults_of(tensor_parallel_size=4)["tensor_parallel_size"]


def test_one_line_says_what_the_accelerator_would_do():
    (notice,) = notices_of(**GUIDE)
    assert notice.startswith("tensor_parallel_size=32: an accelerator would give each of 32 cores 1 of 32 query heads")
    assert notice.endswith("the cpu target splits nothing")
    assert notices_of() == []


def test_keys_without_effect_here_are_named():
    (notice,) = notices_of(
        override_neuron_config={"fused_qkv": True, "mlp_kernel_enabled": True, "qkv_kernel_enabled": False}
    )
    assert "fused_qkv, mlp_kernel_enabled:" in notice
    assert "no effect on the cpu target" in notice


def test_the_accelerators_quantised_checkpoint_is_not_read_here():
    override = {"quantized": True, "quantized_checkpoints_path": "/quantized"}
    (notice,) = notices_of(override_neuron_config=override)
    assert "the cpu target quantises the checkpoint itself" in notice


def test_extended_buckets_are_noticed():
    (notice,) = notices_of(override_neuron_config={"context_encoding_buckets": [128]})
    assert "1024 was added" in notice


# Targets.


@pytest.fixture
def accelerator(monkeypatch):
    """Whether this machine has an accelerator, as the tests say."""

    def present(reason: str) -> None:
        monkeypatch.setattr(NeuronxTarget, "why_absent", lambda self: reason)

    return present


@pytest.mark.parametrize(
    ("option", "variable", "reason", "target"),
    [
        (None, None, "none", "cpu"),
        (None, None, "", "neuronx"),
        ("auto", None, "", "neuronx"),
        ("neuron", None, "none", "cpu"),
        ("cpu", "null", "", "cpu"),
        (None, "null", "", "null"),
        ("neuronx", "cpu", "", "neuronx"),
    ],
)
def test_choice_of_target(option, variable, reason, target, accelerator, monkeypatch):
    accelerator(reason)
    if variable:
        monkeypatch.setenv("VLLM_NEURON_TARGET", variable)
    assert resolve(build(device=option)).target == target


def test_targets_that_cannot_be():
    assert "no Neuron device" in faults_of(device="neuronx")["device"]
    assert "Did you mean 'cpu'?" in faults_of(device="cpuu")["device"]


def test_unknown_target_in_the_environment(monkeypatch):
    monkeypatch.setenv("VLLM_NEURON_TARGET", "nul")
    assert "Did you mean 'null'?" in faults_of()["VLLM_NEURON_TARGET"]


def test_a_device_that_cannot_be_used_is_mentioned(monkeypatch):
    monkeypatch.setattr(host_platform, "has_neuron_device", lambda: True)
    monkeypatch.setattr(NeuronxTarget, "compiles_here", lambda self: False)
    (notice,) = notices_of()
    assert notice.startswith("the Neuron device of this machine is not used: ")
    assert "device" in faults_of(device="neuronx")


def test_what_only_the_accelerator_minds(accelerator):
    accelerator("")
    quantized = {"quantized": True, "quantization_dtype": "int4"}
    faults = faults_of(override_neuron_config=quantized)
    assert set(faults) == {"quantized", "quantization_dtype"}
    accelerator("none")
    assert resolve(build(override_neuron_config=quantized)).neuron_config.quantization == "int4"


@pytest.mark.parametrize(
    ("variables", "given", "message"),
    [
        (
            {"NEURON_LOGICAL_NC_CONFIG": "2", "NEURON_RT_VIRTUAL_CORE_SIZE": "1"},
            None,
            "NEURON_LOGICAL_NC_CONFIG=2, and",
        ),
        ({"NEURON_LOGICAL_NC_CONFIG": "2"}, 1, "logical_nc_config=1: NEURON_LOGICAL_NC_CONFIG=2, and they must be the"),
        ({"NEURON_RT_VIRTUAL_CORE_SIZE": "1"}, 2, "logical_nc_config=2: NEURON_RT_VIRTUAL_CORE_SIZE=1, and"),
    ],
)
def test_logical_cores_that_contradict_each_other(monkeypatch, variables, given, message):
    """The runtime and the compiler read the variables, whatever the config says."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    override = {} if given is None else {"logical_nc_config": given}
    with pytest.raises(NeuronConfigError, match=message):
        resolve(build(device="null", override_neuron_config=override))


@pytest.mark.parametrize("name", TARGETS)
def test_a_profile_is_its_targets(name):
    target = find_target(name)
    assert target.profile.name == name
    assert issubclass(resolve_target(name), DeviceModel)
    assert set(AUTOMATIC) <= set(TARGETS) and PLANNED in TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_a_profile_promises_is_not_refused(name):
    profile = find_target(name).profile
    for dtype in profile.kv_dtypes:
        assert "does not keep KV in it" not in faults_on(name, kv_cache_dtype=dtype)
    for dtype in profile.dtypes:
        assert "does not compute in it" not in faults_on(name, dtype=dtype)
    for method in profile.speculation_methods:
        options = {"method": method} | ({} if method == "ngram" else {"model": "draft"})
        assert "does not speculate" not in faults_on(name, speculative_config=options)


def faults_on(target, **options):
    return "\n".join(map(str, examine(build(**options), target).faults.found))


def test_quantisations_without_kernels_are_refused_before_anything_is_compiled():
    override = {"quantized": True, "quantization_dtype": "int8", "quantization_type": "blockwise_symmetric"}
    override["quantization_block_size"] = [128, 128]
    faults = faults_of(device="cpu", override_neuron_config=override)
    assert "no kernels for int8_blockwise weights. It has f8e4m3_per_channel" in faults["quantization_dtype"]
    assert (
        resolve(build(device="null", override_neuron_config=override)).program_config.quantization == "int8_blockwise"
    )
