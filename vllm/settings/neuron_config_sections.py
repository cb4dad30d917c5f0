"""The nested sections of the Neuron config, with NxD Inference's names and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.settings.faults import Faults
from vllm.settings.section import Section, key, keys

MAX_GLOBAL_TOPK = 256


def dtype_name(given: Any) -> Any:
    """A dtype's plain name: "bfloat16" for "bf16", "torch.bfloat16" and the torch object itself."""
    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    return _DTYPE_ALIASES.get(name, name)


_DTYPE_ALIASES = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
TORCH_DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


_COMPILED_IN = ("do_sample", "top_k", "top_p", "temperature")
"""Keys of `OnDeviceSamplingConfig` that mean nothing where each request brings its own."""


@dataclass(frozen=True, kw_only=True)
class OnDeviceSamplingConfig(Section):
    """On-device sampling.

    With `dynamic` each request brings its own top_k, top_p and temperature; without it the values here are compiled in.
    """

    do_sample: bool = key(False, "Sample with the values below; false: greedy, unless dynamic.")
    top_k: int = key(1, "Compiled top_k where not dynamic; -1 or 0: global_topk.", at_least=-1)
    top_p: float = key(1.0, "Compiled top_p where not dynamic.", above=0, at_most=1)
    temperature: float = key(1.0, "Compiled temperature where not dynamic; 0: greedy.", at_least=0)
    dynamic: bool = key(False, "Each request brings its own top_k, top_p and temperature.")
    deterministic: bool = key(False, "Draw at the fixed point 0.5 instead of a random one.")
    global_topk: int = key(
        MAX_GLOBAL_TOPK,
        "Most likely tokens that sampling may choose from: the meaning of a disabled top_k.",
        at_least=1,
        at_most=MAX_GLOBAL_TOPK,
    )
    on_device_sampling_config: bool = key(True, "Written by NxD Inference when it saves a config; true.")
    top_k_kernel_enabled: bool = key(False, "Use the accelerator's top-k kernel.", accelerator_only=True)
    sampling_dp_degree: int = key(1, "Ranks that share the batch while sampling.", at_least=1, accelerator_only=True)

    @classmethod
    def _what(cls) -> str:
        return "on_device_sampling_config"

    def _check(self, faults: Faults) -> None:
        if not self.on_device_sampling_config:
            faults.add(
                "on_device_sampling_config", False, "must be true", "Set the whole section to null to turn it off"
            )
        if not self.dynamic and self.top_k > self.global_topk:
            why = f"exceeds global_topk={self.global_topk}"
            faults.add("top_k", self.top_k, why, f"Use at most {self.global_topk}", involves=["global_topk"])
        if self.dynamic:
            self._leave_to_requests()

    def _leave_to_requests(self) -> None:
        """Values that would be compiled in take their defaults: equal programs have equal keys."""
        changed = self.changed()
        unused = [item for item in keys(type(self)) if item.name in _COMPILED_IN and item.name in changed]
        for item in unused:
            self._set(item.name, item.default)
        if unused:
            names = ", ".join(item.name for item in unused)
            self._notice(f"sampling is dynamic: {names} of on_device_sampling_config stand back for requests")


@dataclass(frozen=True, kw_only=True)
class ChunkedPrefillConfig(Section):
    """Chunked prefill."""

    max_num_seqs: int = key(0, "Sequences in one chunked step.", at_least=0)
    tkg_model_enabled: bool = key(True, "Keep a separate token generation program for steps without prefill.")
    kernel_q_tile_size: int = key(128, "Query tokens in a tile of the attention grid.", at_least=1)
    kernel_kv_tile_size: int = key(1024, "KV tokens in a tile of the attention grid.", at_least=1)

    @classmethod
    def _what(cls) -> str:
        return "chunked_prefill_config"

    def _check(self, faults: Faults) -> None:
        if self.max_num_seqs == 0:
            faults.add("max_num_seqs", 0, "gives a grid of no tiles", "Set it to the sequences that run at once")


@dataclass(frozen=True, kw_only=True)
class KVQuantizationConfig(Section):
    """Quantised KV cache."""

    k_quant_method: str = key("per_tensor_symmetric", "How keys are scaled.", choices=["per_tensor_symmetric"])
    v_quant_method: str = key("per_tensor_symmetric", "How values are scaled.", choices=["per_tensor_symmetric"])
    quant_dtype: str = key("float8_e4m3fn", "Storage type.", choices=["float8_e4m3fn", "float8_e5m2"], read=dtype_name)
    direct_cast: bool = key(True, "Cast without a scale.")

    @classmethod
    def _what(cls) -> str:
        return "kv_quant_config"


@dataclass(frozen=True, kw_only=True)
class LoraServingConfig(Section):
    """LoRA serving."""

    max_loras: int = key(1, "Adapters resident on the device.", at_least=1)
    max_lora_rank: int = key(16, "Largest adapter rank.", at_least=1)
    max_cpu_loras: int = key(100, "Adapters kept in host memory.", at_least=1)
    batch_size: int = key(1, "Rows that adapters are compiled for.", at_least=1)
    target_modules: list[str] | None = key(None, "Modules that adapters change. None: those of the checkpoints.")
    lora_bias: str = key("none", "Whether adapters bring biases.", choices=["none", "all"])
    lora_ckpt_paths: dict[str, str] | list[str] | None = key(
        None, 'Adapters loaded at start: a mapping of id to path, or a list of "id:path".'
    )
    lora_ckpt_paths_cpu: dict[str, str] | list[str] | None = key(
        None, "Adapters kept in host memory, in the same forms."
    )
    lora_ckpt_json: str | None = key(None, "A JSON file with the directory and paths of adapters.")
    lora_memory_transpose: bool = key(True, "Transpose adapter weights for memory access.", accelerator_only=True)
    lora_shard_linear_layer: bool = key(True, "Shard adapters over the ranks.", accelerator_only=True)
    is_context_encoding: bool = key(False, "Set by NxD Inference on its copy for context encoding.")
    dynamic_multi_lora: bool = key(False, "Swap adapters between host and device while serving.")
    eviction_policy: str = key("lru", "Which adapter leaves the device first.", choices=["lru", "lfu"])
    lfu_decay_period: int = key(128, "Steps after which use counts halve under lfu.", at_least=1)
    base_model_quantized: bool = key(False, "The base model's weights are quantised.")
    enable_base_model_only: bool = key(False, "Keep a slot for requests without an adapter.")

    @classmethod
    def _what(cls) -> str:
        return "lora_config"

    @classmethod
    def _advice(cls, name: str) -> tuple[str, str] | None:
        return ("renamed", "Use 'max_cpu_loras'") if name == "max_loras_on_cpu" else None

    def _check(self, faults: Faults) -> None:
        if self.max_cpu_loras < self.max_loras:
            why = f"host memory must hold at least the max_loras={self.max_loras} adapters of the device"
            faults.add(
                "max_cpu_loras", self.max_cpu_loras, why, f"Use {self.max_loras} or more", involves=["max_loras"]
            )


@dataclass(frozen=True, kw_only=True)
class HybridShardingConfig(Section):
    """Mixture of experts: degrees by phase."""

    moe_cte_tp_degree: int = key(1, "Tensor-parallel degree of experts in context encoding.", at_least=1)
    moe_cte_ep_degree: int = key(1, "Expert-parallel degree in context encoding.", at_least=1)
    moe_tkg_tp_degree: int = key(1, "Tensor-parallel degree of experts in token generation.", at_least=1)
    moe_tkg_ep_degree: int = key(1, "Expert-parallel degree in token generation.", at_least=1)

    @classmethod
    def _what(cls) -> str:
        return "hybrid_sharding_config"


@dataclass(frozen=True, kw_only=True)
class TensorCaptureConfig(Section):
    """Capture of intermediate tensors, for debugging on the accelerator."""

    modules_to_capture: list[str] = key([], "Modules whose outputs are captured.")
    max_intermediate_tensors: int | None = key(None, "Most tensors captured.", at_least=1)
    auto_capture_moe_tensors: bool = key(False, "Capture tensors of the experts too.")
    capture_inputs: bool = key(False, "Capture the modules' inputs too.")

    @classmethod
    def _what(cls) -> str:
        return "tensor_capture_config"


@dataclass(frozen=True, kw_only=True)
class VisionNeuronConfig(Section):
    """The vision encoder of an image-to-text model. Lengths, types and ranks are the decoder's."""

    tp_degree: int | None = key(
        None, "Tensor-parallel degree. None: the largest that its heads allow; further ranks share tiles.", at_least=1
    )
    buckets: list[int] | None = key(
        None,
        "Numbers of tiles it is compiled for. None: 8, 28, 88, as far as a sequence holds them.",
        at_least=1,
        at_most=88,
    )
    fused_qkv: bool = key(False, "One weight for q, k and v.", accelerator_only=True)
    qkv_kernel_enabled: bool = key(False, "Use the kernel for q, k and v.", accelerator_only=True)
    attn_kernel_enabled: bool | None = key(None, "Use the attention kernel; none: as is best.", accelerator_only=True)
    mlp_kernel_enabled: bool = key(False, "Use the MLP kernel.", accelerator_only=True)

    @classmethod
    def _what(cls) -> str:
        return "vision_neuron_config"
