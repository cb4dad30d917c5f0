"""Which architectures and keys each version of NxD Inference knows, and which the `cpu` target runs.

Versions are NxD Inference's; `SDK` maps them to releases of the Neuron SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm.neuron.cpu.models import supported_architectures
from vllm.neuron.faults import Faults, nearest

SDK = {"0.4.0": "2.24", "0.5.0": "2.25", "0.6.0": "2.26", "0.7.0": "2.27", "0.8.0": "2.28", "0.9.0": "2.29"}
NEWEST = "0.9.0"


class Support(NamedTuple):
    """key: the library's name of the model family. since: the first version that has it."""

    key: str
    since: str


ARCHITECTURES = {
    "LlamaForCausalLM": Support("llama", "0.4.0"),
    "MistralForCausalLM": Support("llama", "0.4.0"),
    "MixtralForCausalLM": Support("mixtral", "0.4.0"),
    "DbrxForCausalLM": Support("dbrx", "0.4.0"),
    "MllamaForConditionalGeneration": Support("mllama", "0.4.0"),
    "Llama4ForConditionalGeneration": Support("llama4", "0.5.0"),
    "Qwen2ForCausalLM": Support("qwen2", "0.5.0"),
    "Qwen3ForCausalLM": Support("qwen3", "0.5.0"),
    "Qwen3MoeForCausalLM": Support("qwen3_moe", "0.6.0"),
    "GptOssForCausalLM": Support("gpt_oss", "0.7.0"),
    "LlavaForConditionalGeneration": Support("pixtral", "0.8.0"),
    "Qwen2VLForConditionalGeneration": Support("qwen2_vl", "0.8.0"),
    "Qwen3VLForConditionalGeneration": Support("qwen3_vl", "0.8.0"),
    "Gemma3ForCausalLM": Support("gemma3", "0.9.0"),
    "Gemma3ForConditionalGeneration": Support("gemma3", "0.9.0"),
}
_KEYS_SINCE = {
    "attention_dp_degree": "0.5.0",
    "scratchpad_page_size": "0.5.0",
    "lm_head_pad": "0.5.0",
    "attn_block_tkg_nki_kernel_cascaded_attention": "0.6.0",
    "strided_context_parallel_kernel_enabled": "0.6.0",
    "hybrid_sharding_config": "0.6.0",
    "windowed_context_encoding_size": "0.7.0",
    "mlp_cp_degree": "0.7.0",
    "is_mxfp4_compute": "0.7.0",
    "is_eagle3": "0.7.0",
    "quantization_block_size": "0.7.0",
    "quantization_block_axis": "0.7.0",
    "tensor_capture_config": "0.7.0",
    "token_generation_batches": "0.8.0",
    "disable_argmax_kernel": "0.8.0",
    "kv_quant_config": "0.8.0",
    "dma_order_config": "0.8.0",
}
_LAST_CHUNKED_PREFILL = "0.7.0"
_WHOLE_ATTENTION_ONLY = (
    "flash_decoding_enabled",
    "attn_block_tkg_nki_kernel_enabled",
    "is_prefix_caching",
    "chunked_prefill_config",
)


def number(version: str) -> tuple[int, ...]:
    """A version to compare: "0.4.1" is (0, 4, 1). Raises ValueError for anything but numbers with dots between."""
    parts = version.split(".")
    if not all(part.isdigit() for part in parts):
        raise ValueError(f"{version!r} is not a version such as {NEWEST}")
    return tuple(map(int, parts))


def sdk_of(version: str) -> str:
    """The SDK release that carries `version`, or "" for one that is not in the table."""
    return SDK.get(".".join(map(str, (*number(version), 0, 0)[:2])) + ".0", "")


def support_of(hf_config: Mapping[str, Any]) -> Support | None:
    names = [str(name) for name in hf_config.get("architectures") or []]
    return next((ARCHITECTURES[name] for name in names if name in ARCHITECTURES), None)


def runs_on_cpu(hf_config: Mapping[str, Any]) -> bool:
    return any(name in supported_architectures() for name in hf_config.get("architectures") or [])


def check_architecture(hf_config: Mapping[str, Any], target: str, version: str, faults: Faults) -> None:
    """Whether `target` can run the model at all."""
    given = (hf_config.get("architectures") or ["(none)"])[0]
    if target == "cpu" and not runs_on_cpu(hf_config):
        known = supported_architectures()
        faults.add("architectures", given, "the cpu target does not run it", f"Known: {', '.join(known)}")
    if target != "neuronx":
        return
    support = support_of(hf_config)
    if support is None:
        fix = nearest(str(given), ARCHITECTURES) or f"Known: {', '.join(sorted(ARCHITECTURES))}"
        faults.add("architectures", given, "NxD Inference does not register it", fix)
    elif number(support.since) > number(version):
        why = f"NxD Inference has it since {support.since}, this plan is for {version}"
        faults.add("architectures", given, why, f"Use SDK {SDK[support.since]} or later")


def check_keys(
    override: Mapping[str, Any], neuron_config: Any, hf_config: Mapping[str, Any], version: str, faults: Faults
) -> None:
    """Keys that this version of the library does not have, and those that the model's attention excludes."""
    for name in sorted(override.keys() & _KEYS_SINCE.keys()):
        since = _KEYS_SINCE[name]
        if override[name] and number(since) > number(version):
            faults.add(name, override[name], f"NxD Inference has it since {since}, not in {version}", "Leave it out")
    if neuron_config.is_chunked_prefill and number(version) > number(_LAST_CHUNKED_PREFILL):
        why = f"NxD Inference {version} refuses chunked prefill; {_LAST_CHUNKED_PREFILL} was the last to have it"
        faults.add("chunked_prefill_config", True, why, "Use --no-enable-chunked-prefill")
    chunk = hf_config.get("attention_chunk_size")
    if chunk and chunk < neuron_config.seq_len:
        for name in _WHOLE_ATTENTION_ONLY:
            if value := getattr(neuron_config, name):
                why = f"the model attends in chunks of {chunk} tokens, shorter than max_model_len"
                faults.add(name, value, why, f"Leave it out, or use max_model_len={chunk} or less")
