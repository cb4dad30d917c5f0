"""The frozen tree that everything is built from.

Each field carries its default and its help text, once: the command line, the keyword arguments of `LLM` and the
reference in `docs/` are made from them (`vllm.engine.arg_utils`). A field whose metadata lacks help is derived, not set
by users. `settings.resolve` returns a changed copy; nothing here is mutated.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


def option(default: Any, help: str, **cli: Any) -> Any:
    """A user-settable field.

    cli: may hold argparse extras: choices, nargs, aliases, type ("json", "limits", "human_int"); example: of a mapping;
    path: a `~` at its beginning is the user's directory.
    """
    metadata = {"help": help, **cli}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    model: str = option("Qwen/Qwen3-0.6B", "Checkpoint: a directory, a GGUF file, or a Hugging Face hub id.")
    served_model_name: list[str] | None = option(
        None, "Names the API answers to; the first is reported in responses and metrics.", nargs="+"
    )
    tokenizer: str | None = option(None, "Tokenizer directory, file or hub id. Default: the model's own.")
    tokenizer_mode: str = option("auto", "How the tokenizer is loaded.", choices=["auto", "hf"])
    skip_tokenizer_init: bool = option(False, "Do without a tokenizer: prompts and outputs are token ids only.")
    trust_remote_code: bool = option(False, "No effect: code that comes with a checkpoint is never run.")
    dtype: str = option(
        "auto",
        "Arithmetic and storage type of unquantised weights. auto: bfloat16, or the checkpoint's quantised form.",
        choices=["auto", "half", "float16", "bfloat16", "float", "float32"],
    )
    max_model_len: int | None = option(
        None,
        "Longest sequence, prompt and output together. Default: the model's own. Accepts 1k, 2K.",
        type="human_int",
    )
    seed: int = option(0, "Seed of requests that bring none.")
    revision: str | None = option(None, "Branch, tag or commit of a hub checkpoint.")
    tokenizer_revision: str | None = option(None, "Branch, tag or commit of a hub tokenizer.")
    load_format: str = option("auto", "Form of the weights.", choices=["auto", "safetensors", "hf", "gguf", "dummy"])
    download_dir: str | None = option(
        None, "Where hub checkpoints are kept. Default: the hub client's cache.", path=True
    )
    hf_token: str | None = option(None, "Access token of the hub.")
    hf_overrides: dict[str, Any] = option(
        {},
        "Entries that replace those of the checkpoint's config.json.",
        type="json",
        example='{"rope_theta": 10000.0}',
    )
    limit_mm_per_prompt: dict[str, Any] = option(
        {}, 'Most images of one prompt, as {"image": 4}; 0 takes none. Default: as many as fit.', type="limits"
    )
    quantization: str | None = option(
        None, "Weight quantisation; on Neuron use override_neuron_config's `quantized` keys.", aliases=["-q"]
    )
    enforce_eager: bool = option(
        False, "Accepted for compatibility: programs are always compiled, eager has no meaning."
    )
    max_logprobs: int = option(20, "Most log-probabilities a request may ask for.")
    logprobs_mode: str = option("raw_logprobs", "What logprobs report.", choices=["raw_logprobs"])
    generation_config: str = option(
        "auto",
        "Where default sampling parameters come from: auto (the checkpoint), vllm (none), or a directory.",
        path=True,
    )
    override_generation_config: dict[str, Any] = option(
        {},
        "Entries that replace those defaults; max_new_tokens bounds every output of a server.",
        type="json",
        example='{"temperature": 0.7}',
    )
    chat_template: str | None = option(
        None, "Chat template: a file or the template itself. Default: the tokenizer's.", path=True
    )

    # Derived by the engine from the checkpoint.
    hf_config: dict[str, Any] = field(default_factory=dict)
    hf_generation_config: dict[str, Any] = field(default_factory=dict)
    model_path: str = ""

    @property
    def architecture(self) -> str:
        return str((self.hf_config.get("architectures") or ["unknown"])[0])

    @property
    def vocab_size(self) -> int:
        return int(self.hf_config["vocab_size"])

    @property
    def max_len(self) -> int:
        """`max_model_len` after it was resolved."""
        if self.max_model_len is None:
            raise ValueError("max_model_len is not resolved yet")
        return self.max_model_len

    @property
    def max_output_tokens(self) -> int | None:
        """The operator's bound of outputs over HTTP: `max_new_tokens` of `override_generation_config`, or of a named
        `generation_config`. The checkpoint's own is a default, and bounds nothing."""
        is_operators = self.generation_config not in ("auto", "vllm")
        if is_operators or "max_new_tokens" in self.override_generation_config:
            return self.hf_generation_config.get("max_new_tokens")
        return None


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    block_size: int | None = option(
        None, "Tokens in a KV block. Default: max_model_len (contiguous KV), 32 with block KV."
    )
    num_gpu_blocks_override: int | None = option(
        None, "Number of KV blocks. Default: enough for max_num_seqs sequences."
    )
    enable_prefix_caching: bool | None = option(
        None, "Reuse the KV of equal prompt prefixes. Default: the target's own."
    )
    prefix_caching_hash_algo: str = option("sha256", "Hash of the prefix chain.", choices=["sha256"])
    kv_cache_dtype: str = option(
        "auto",
        "Storage type of the KV cache. fp8: e4m3, cast without a scale. int8: with a scale for each token and head.",
        choices=["auto", "bfloat16", "float32", "fp8", "fp8_e4m3", "int8"],
    )
    gpu_memory_utilization: float = option(
        0.92,
        "Share of the device's memory, or on cpu of the machine's, that the model may take.",
        aliases=["--device-memory-utilization"],
    )
    kv_cache_memory_bytes: int | None = option(None, "Most bytes the KV cache may take.", type="human_int")
    kv_offloading_size: float | None = option(
        None, "GiB of host memory that keep cached prefixes when the KV cache needs their blocks. Default: none."
    )
    kv_offloading_backend: str = option("native", "What keeps them.", choices=["native"])
    kv_offloading_dir: str | None = option(
        None, "Directory of files that keep cached prefixes over restarts. Its owner alone may read them.", path=True
    )
    kv_offloading_dir_size: float | None = option(None, "Most GiB of these files. Default: 4.")

    # Derived by settings.resolve.
    num_blocks: int = 0

    @property
    def offloads_kv(self) -> bool:
        """Whether cached prefixes are kept outside the KV cache too."""
        return self.kv_offloading_size is not None or self.kv_offloading_dir is not None


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    max_num_seqs: int | None = option(
        None, "Sequences that run at once: rows of the compiled decode program. Default: 32."
    )
    max_num_batched_tokens: int | None = option(
        None,
        "Most tokens in one step. With chunked prefill this bounds what a running stream waits for between two tokens "
        "(vllm:decode_stall_seconds). Default: 256 with chunked prefill, else what whole prompts need.",
        type="human_int",
    )
    enable_chunked_prefill: bool | None = option(None, "Compute prompts in pieces beside running decodes.")
    scheduling_policy: str = option("fcfs", "Order of waiting requests.", choices=["fcfs", "priority"])
    max_consecutive_prefills: int = option(
        4,
        "Without chunked prefill, at most this many steps of prompts pass between two tokens of a running stream "
        "(vllm:decode_stall_seconds).",
    )
    max_num_queued_reqs: int | None = option(None, "Waiting requests beyond which new ones are refused (429).")
    max_num_queued_tokens: int | None = option(
        None, "Waiting prompt tokens beyond which new requests are refused.", type="human_int"
    )
    async_scheduling: bool | None = option(
        None,
        "Schedule the next step while one runs: pays where the device is not these processors. Default: off.",
    )
    stream_interval: int = option(1, "Tokens between two streamed pieces.")

    # Derived by settings.resolve: what the hardware limits, as plain numbers.
    prefill_batch_size: int = 1
    max_prefill_tokens: int = 0
    max_prompt_len: int = 0
    mixed_steps: bool = False
    num_lookahead_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    tensor_parallel_size: int = option(
        1, "NeuronCores the model is split over. The cpu target runs any degree unsplit.", aliases=["-tp"]
    )
    pipeline_parallel_size: int = option(1, "Only 1 is supported.", aliases=["-pp"])
    data_parallel_size: int = option(
        1, "Only 1 is supported: run one server a replica behind a load balancer.", aliases=["-dp"]
    )
    distributed_executor_backend: str | None = option(
        None, "How ranks are reached. One process drives all cores.", choices=["uni", "mp"]
    )


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    enable_lora: bool = option(False, "Serve LoRA adapters.")
    lora_modules: list[str | dict[str, str]] = option(
        [], 'Adapters to serve, NAME=PATH or {"name": ..., "path": ...}: requests name them.', nargs="+"
    )
    max_loras: int = option(1, "Adapters resident on the device at once.")
    max_lora_rank: int = option(16, "Largest adapter rank.")
    max_cpu_loras: int | None = option(None, "Adapters kept in host memory.")

    @property
    def adapters(self) -> dict[str, str]:
        """Path by name, in the order of their numbers (1, 2, ...); `lora_modules` after it was resolved."""
        return {each["name"]: each["path"] for each in self.lora_modules if isinstance(each, dict)}


@dataclass(frozen=True, kw_only=True)
class NeuronOptions:
    """What users say about the Neuron backend; `neuron.neuron_config.NeuronConfig` is what becomes of it."""

    device: str | None = option(
        None,
        "Device target: auto, neuronx, cpu, null. Default: VLLM_NEURON_TARGET, else neuronx on a device, else cpu.",
    )
    additional_config: dict[str, Any] = option(
        {},
        'Backend options, e.g. {"override_neuron_config": {"enable_bucketing": false}}.',
        type="json",
        example='{"override_neuron_config": {"enable_bucketing": false}}',
    )
    override_neuron_config: dict[str, Any] = option(
        {}, "Entries that replace those of the Neuron config.", type="json", example='{"enable_bucketing": false}'
    )
    compile: bool = option(True, "Compile when no artifact matches. --no-compile: refuse to start instead.")


@dataclass(frozen=True, kw_only=True)
class SpeculativeOptions:
    """What users say about speculative decoding; `SpeculativeConfig` is what becomes of it."""

    speculative_config: dict[str, Any] | None = option(
        None,
        'Speculative decoding, as in vLLM: {"method": "ngram", "num_speculative_tokens": 5} and the like.',
        type="json",
        aliases=["-sc"],
        example='{"method": "ngram", "num_speculative_tokens": 5}',
    )
    spec_method: str | None = option(None, "The same as speculative_config's method.")
    spec_model: str | None = option(None, "The same as speculative_config's model.")
    spec_tokens: int | None = option(None, "The same as speculative_config's num_speculative_tokens.")
    speculative_model: str | None = option(None, "An older name of spec_model.")
    num_speculative_tokens: int | None = option(None, "An older name of spec_tokens.")
    speculative_max_model_len: int | None = option(None, "An older name of speculative_config's max_model_len.")

    # Derived by the engine from the draft's checkpoint.
    draft_path: str = ""
    draft_hf_config: dict[str, Any] = field(default_factory=dict)


SPECULATIVE_METHODS = ("draft_model", "ngram", "eagle", "eagle3")


@dataclass(frozen=True, kw_only=True)
class SpeculativeConfig:
    """Speculative decoding, resolved. Made by `neuron.speculation`; the names are vLLM's.

    method: one of SPECULATIVE_METHODS. num_speculative_tokens: the most a row drafts in a step.
    model, model_path, hf_config, load_format: the draft's checkpoint; model is "" for ngram.
    max_model_len: length beyond which nothing is drafted.
    adaptive: the count follows acceptance and load; False: always num_speculative_tokens, as compiled programs need.
    """

    method: str
    num_speculative_tokens: int
    model: str = ""
    model_path: str = ""
    hf_config: dict[str, Any] = field(default_factory=dict)
    load_format: str = "auto"
    max_model_len: int | None = None
    draft_tensor_parallel_size: int = 1
    prompt_lookup_min: int = 0
    prompt_lookup_max: int = 0
    adaptive: bool = True

    @property
    def uses_model(self) -> bool:
        """Whether a checkpoint of its own drafts."""
        return self.method != "ngram"


@dataclass(frozen=True, kw_only=True)
class ObservabilityConfig:
    disable_log_stats: bool = option(False, "Do not log statistics, and keep no per-request metrics.")
    otlp_traces_endpoint: str | None = option(None, "OpenTelemetry collector that a span for each request is sent to.")


@dataclass(frozen=True, kw_only=True)
class ProgramConfig:
    """Shapes that programs are made for, and what they do, in no target's words. Derived by settings.resolve."""

    num_rows: int = 1
    """Sequences of a decode step."""
    prompt_buckets: tuple[int, ...] = ()
    """Lengths in tokens that a prompt's program is made for, ascending."""
    decode_buckets: tuple[int, ...] = ()
    """Lengths of context in tokens that a decode's program is made for, ascending."""
    num_candidates: int = 0
    """Most likely tokens that are sampled from where a request sets no `top_k`; 0: all of the vocabulary."""
    quantization: str | None = None
    """Form that weights are quantised to: "int4", or "<dtype>_<what one scale belongs to>" as "int8_per_channel"."""
    eagle_draft_input_norm: bool = False
    """An EAGLE draft normalises its inputs."""


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    model_config: ModelConfig
    cache_config: CacheConfig = field(default_factory=CacheConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    lora_config: LoRAConfig = field(default_factory=LoRAConfig)
    neuron_options: NeuronOptions = field(default_factory=NeuronOptions)
    speculative_options: SpeculativeOptions = field(default_factory=SpeculativeOptions)
    observability_config: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    structured_outputs_config: dict[str, Any] | None = option(
        None,
        "For every output of a given form: backend, disable_any_whitespace, disable_additional_properties.",
        type="json",
        example='{"disable_any_whitespace": true}',
    )
    kv_transfer_config: dict[str, Any] | None = option(
        None, "Disaggregated prefill and decode.", type="json", example='{"kv_role": "kv_producer"}'
    )

    # Derived by settings.resolve: the name of the chosen target; what its programs are made for; and, for the
    # accelerator and the artifact's key, a neuron.neuron_config.NeuronConfig.
    target: str = ""
    program_config: ProgramConfig = field(default_factory=ProgramConfig)
    speculative_config: SpeculativeConfig | None = None
    neuron_config: Any = None

    def replace(self, **changes: Any) -> VllmConfig:
        return dataclasses.replace(self, **changes)
