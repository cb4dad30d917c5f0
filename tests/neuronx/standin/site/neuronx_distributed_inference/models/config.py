"""Configuration objects: constructors pop what they know and only warn about the rest."""

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import torch

from neuronx_distributed_inference import at_least
from neuronx_distributed_inference.modules.lora_serving import LoraServingConfig

logger = logging.getLogger("Neuron")

DTYPES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
QUANTIZATION_DTYPES = ("int8", "f8e4m3", "f8e5m2", "f4e2m1fn_x4")

PLAIN = {
    "padding_side": "right",
    "cast_type": "config",
    "attention_dtype": None,
    "rpl_reduce_dtype": None,
    "allow_input_truncation": False,
    "output_logits": False,
    "on_cpu": False,
    "vocab_parallel": False,
    "enable_bucketing": False,
    "bucket_n_active_tokens": False,
    "is_continuous_batching": False,
    "kv_cache_padding_size": 0,
    "async_mode": False,
    "is_block_kv_layout": False,
    "is_prefix_caching": False,
    "prefix_buckets": None,
    "flash_decoding_enabled": False,
    "k_cache_transposed": False,
    "disable_kv_cache_tiling": False,
    "apply_seq_ids_mask": False,
    "kv_cache_quant": False,
    "quantized": False,
    "quantized_checkpoints_path": None,
    "quantization_type": "per_tensor_symmetric",
    "quantization_dtype": "int8",
    "modules_to_not_convert": None,
    "draft_model_modules_to_not_convert": None,
    "quantized_mlp_kernel_enabled": False,
    "activation_quantization_type": None,
    "rmsnorm_quantize_kernel_enabled": False,
    "quantize_clamp_bound": float("inf"),
    "speculation_length": 0,
    "enable_fused_speculation": False,
    "enable_eagle_speculation": False,
    "is_eagle_draft": False,
    "enable_eagle_draft_input_norm": False,
    "token_tree_config": None,
    "is_medusa": False,
    "medusa_speculation_length": 0,
    "num_medusa_heads": 0,
    "medusa_tree": None,
    "tp_degree": 1,
    "pp_degree": 1,
    "ep_degree": 1,
    "cp_degree": 1,
    "start_rank_id": 0,
    "sequence_parallel_enabled": False,
    "weight_gather_seq_len_threshold": 32768,
    "save_sharded_checkpoint": False,
    "skip_sharding": False,
    "fused_qkv": False,
    "attn_kernel_enabled": None,
    "qkv_kernel_enabled": False,
    "mlp_kernel_enabled": False,
    "cc_pipeline_tiling_factor": 2,
    "seq_len_threshold_for_cc_tiling": 16384,
    "target": None,
    "skip_warmup": False,
    "logical_nc_config": 1,
}
SINCE = {
    (0, 5): {"attention_dp_degree": 1, "scratchpad_page_size": None, "lm_head_pad": False},
    (0, 6): {"strided_context_parallel_kernel_enabled": False, "attn_block_tkg_nki_kernel_cascaded_attention": False},
    (0, 7): {
        "windowed_context_encoding_size": None,
        "mlp_cp_degree": 1,
        "is_mxfp4_compute": False,
        "quantization_block_size": None,
        "quantization_block_axis": None,
        "is_eagle3": False,
        "tensor_capture_config": None,
        "qkv_nki_kernel_enabled": False,
    },
    (0, 8): {
        "token_generation_batches": None,
        "disable_argmax_kernel": False,
        "kv_quant_config": None,
        "dma_order_config": None,
        "weights_to_skip_layout_optimization": [],
    },
}


class NeuronConfig:
    def __init__(self, **kwargs):
        self._pop(kwargs, PLAIN)
        for version, fields in SINCE.items():
            if at_least(*version):
                self._pop(kwargs, fields)
        self.batch_size = kwargs.pop("batch_size", 1)
        for name in ("ctx_batch_size", "tkg_batch_size", "max_batch_size", "spec_batch_size", "kv_cache_batch_size"):
            setattr(self, name, kwargs.pop(name, self.batch_size))
        self.seq_len = kwargs.pop("seq_len", 128)
        for name in ("max_context_length", "max_length", "n_active_tokens", "n_positions", "pa_block_size"):
            setattr(self, name, kwargs.pop(name, self.seq_len))
        self.pa_num_blocks = kwargs.pop("pa_num_blocks", self.batch_size)
        assert self.max_context_length <= self.max_length, "max_context_length cannot exceed max_length"
        self.max_new_tokens = kwargs.pop("max_new_tokens", self.seq_len - self.max_context_length) or None
        self._take_dtype(kwargs)
        self._take_buckets(kwargs)
        self._take_sections(kwargs)
        self.world_size = kwargs.pop("world_size", self.tp_degree * self.pp_degree * self.ep_degree)
        self.local_ranks_size = kwargs.pop("local_ranks_size", self.world_size)
        os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", "trn1")
        if os.environ.get("NEURON_LOGICAL_NC_CONFIG"):
            self.logical_nc_config = int(os.environ["NEURON_LOGICAL_NC_CONFIG"])
        if self.quantized:
            assert self.quantized_checkpoints_path is not None, "quantized_checkpoints_path is required"
            assert self.quantization_dtype in QUANTIZATION_DTYPES
        self.enable_fused_speculation = self.enable_fused_speculation or self.enable_eagle_speculation
        self._take_more(kwargs)
        if kwargs:
            logger.warning("NeuronConfig init: Unexpected keyword arguments: %s", kwargs)

    def _pop(self, kwargs, fields):
        for name, default in fields.items():
            setattr(self, name, kwargs.pop(name, default))

    def _take_more(self, kwargs):
        """For subclasses."""

    def _take_dtype(self, kwargs):
        self.overrides_torch_dtype = "torch_dtype" in kwargs
        dtype = kwargs.pop("torch_dtype", torch.bfloat16)
        kwargs.pop("overrides_torch_dtype", None)
        if isinstance(dtype, str):
            if dtype not in DTYPES:
                raise ValueError(f"unknown dtype {dtype}")
            dtype = getattr(torch, dtype)
        self.torch_dtype = dtype

    def _take_buckets(self, kwargs):
        self.buckets = kwargs.pop("buckets", [self.seq_len])
        for name, most in (
            ("context_encoding_buckets", self.max_context_length),
            ("token_generation_buckets", self.max_length),
        ):
            buckets = kwargs.pop(name, None)
            if buckets is not None:
                buckets.sort()
                assert buckets[-1] <= most, f"{name} exceed {most}"
            setattr(self, name, buckets)

    def _take_sections(self, kwargs):
        sampling = kwargs.pop("on_device_sampling_config", None)
        self.on_device_sampling_config = OnDeviceSamplingConfig(**sampling) if isinstance(sampling, dict) else sampling
        chunked = kwargs.pop("chunked_prefill_config", None)
        self.chunked_prefill_config = ChunkedPrefillConfig(**chunked) if isinstance(chunked, dict) else chunked
        if self.chunked_prefill_config:
            assert self.is_block_kv_layout
        lora = kwargs.pop("lora_config", None)
        self.lora_config = LoraServingConfig(**lora) if isinstance(lora, dict) else lora


class MoENeuronConfig(NeuronConfig):
    def _take_more(self, kwargs):
        self._pop(
            kwargs,
            {"capacity_factor": None, "glu_mlp": True, "moe_tp_degree": 1, "moe_ep_degree": 1},
        )
        self.blockwise_matmul_config = kwargs.pop("blockwise_matmul_config", {})
        self.router_config = kwargs.pop("router_config", None) or {
            "router_dtype": kwargs.pop("router_dtype", "float32"),
            "act_fn": kwargs.pop("act_fn", "softmax"),
        }


class OnDeviceSamplingConfig:
    def __init__(self, **kwargs):
        fields = {
            "do_sample": False,
            "top_k": 1,
            "top_p": 1.0,
            "temperature": 1.0,
            "dynamic": False,
            "deterministic": False,
            "global_topk": 256,
            "on_device_sampling_config": True,
            "top_k_kernel_enabled": at_least(0, 9),
        }
        if at_least(0, 8):
            fields["sampling_dp_degree"] = 1
        for name, default in fields.items():
            setattr(self, name, kwargs.pop(name, default))


class ChunkedPrefillConfig:
    def __init__(self, **kwargs):
        self.max_num_seqs = kwargs.pop("max_num_seqs", 0)
        self.tkg_model_enabled = kwargs.pop("tkg_model_enabled", True)
        self.kernel_q_tile_size = kwargs.pop("kernel_q_tile_size", 128)
        self.kernel_kv_tile_size = kwargs.pop("kernel_kv_tile_size", 1024)


class FusedSpecNeuronConfig:
    def __init__(self, worker_cls, draft_config=None, draft_model_path=None, **later):
        if unknown := set(later) - ({"draft_model_cls"} if at_least(0, 7) else set()):
            raise TypeError(f"FusedSpecNeuronConfig.__init__() got an unexpected keyword argument {unknown.pop()!r}")
        self.worker_cls = worker_cls
        self.draft_config = draft_config
        self.draft_model_path = draft_model_path
        self.draft_model_cls = later.get("draft_model_cls")


class InferenceConfig:
    def __init__(self, neuron_config, fused_spec_config=None, load_config=None, metadata=None, **kwargs):
        self.neuron_config = neuron_config
        self.fused_spec_config = fused_spec_config
        self.metadata = metadata
        if load_config is not None:
            load_config(self)
        for name, value in kwargs.items():
            setattr(self, name, value)
        self.add_derived_config()
        self.validate_config()

    def add_derived_config(self):
        """For subclasses."""

    def get_required_attributes(self):
        return []

    def validate_config(self):
        missing = [name for name in self.get_required_attributes() if not hasattr(self, name)]
        assert not missing, f"Config must define {missing}"

    @classmethod
    def get_neuron_config_cls(cls):
        return NeuronConfig

    def save(self, directory):
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / "neuron_config.json").write_text(json.dumps(_plain(self), indent=2, sort_keys=True))

    @classmethod
    def load(cls, directory):
        saved = json.loads((Path(directory) / "neuron_config.json").read_text())
        neuron_config = cls.get_neuron_config_cls()(**saved.pop("neuron_config"))
        saved.pop("fused_spec_config"), saved.pop("metadata")
        return cls(neuron_config, **saved)


SECTIONS = (
    LoraServingConfig,
    NeuronConfig,
    OnDeviceSamplingConfig,
    ChunkedPrefillConfig,
    FusedSpecNeuronConfig,
    InferenceConfig,
    SimpleNamespace,
)


def _plain(value):
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, SECTIONS):
        return _plain(vars(value))
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
