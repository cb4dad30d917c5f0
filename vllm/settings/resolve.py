"""`resolve`: from what a user asked to what will run.

A pure function of the config, the environment variables in `envs` and the presence of a device: nothing is written,
nothing given is mutated, and resolving twice is resolving once. All faults are reported in one `NeuronConfigError`.

What it decides: the target; the KV layout (`kv_layout`: contiguous, or blocks for prefixes and chunks); the rows,
prompts and tokens of a step as plain numbers for the scheduler; and the `NeuronConfig`. vLLM's settings and the Neuron
config's keys that mean the same must agree; where only one of the two is given, the other follows. All spellings of the
override become one, of JSON types, so that a resolved config can cross to another process and be resolved there again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from vllm import envs
from vllm.config import ModelConfig, ProgramConfig, VllmConfig
from vllm.core.profile import TargetProfile
from vllm.logger import init_logger
from vllm.settings.faults import Faults, nearest
from vllm.settings.host_platform import platform_name
from vllm.settings.kv_dtype import kv_token_bytes, settled_kv_dtype
from vllm.settings.kv_layout import BLOCK_KV_KEYS, KVModes, default_block_size, even_blocks, kv_layout, kv_modes
from vllm.settings.lora import settle_lora, without_names
from vllm.settings.neuron_config import NeuronConfig, examined_neuron_config, torch_dtype
from vllm.settings.neuron_config_sections import TORCH_DTYPES, dtype_name
from vllm.settings.options import merged_override
from vllm.settings.parallel import HeadSharding, degree_fault
from vllm.settings.refusals import refuse_keys, refuse_offloaded_drafts, refuse_options
from vllm.settings.section import keys, plain
from vllm.settings.speculation import METHOD_KEYS, settle_speculation
from vllm.settings.target import AUTOMATIC, TARGETS, Target, automatic_target, find_target, unused_hardware
from vllm.sizes import DTYPE_BYTES

logger = init_logger(__name__)

DEFAULT_MAX_NUM_SEQS = 32


def resolve(config: VllmConfig, faults: Faults | None = None) -> VllmConfig:
    """The config as it will run, with `target`, `neuron_config` and all derived fields set.

    faults: what was found already, to be told with the rest.
    Raises `NeuronConfigError` (a ValueError) that lists everything that cannot be, with what would work.
    """
    resolved, notices = resolve_quietly(config, faults=faults)
    for notice in notices:
        logger.info(notice)
    return resolved


def resolve_quietly(
    config: VllmConfig, target: str | None = None, faults: Faults | None = None
) -> tuple[VllmConfig, list[str]]:
    """`resolve` without logging: the resolved config, and sentences about it that a user should read.

    target: resolve for this one, whether or not this machine has it.
    """
    return resolved_of(examine(config, target, faults))


def resolved_of(examined: Examined) -> tuple[VllmConfig, list[str]]:
    """What `resolve_quietly` gives, of a config that was examined. Raises NeuronConfigError if it has faults."""
    examined.faults.raise_if_any("the configuration")
    neuron_config, options = examined.neuron_config, examined.config.neuron_options
    override = plain(examined.override)
    resolved = _with_step_limits(examined.config, neuron_config, examined.target.profile).replace(
        target=examined.target.profile.name,
        program_config=_program_config(neuron_config),
        neuron_config=neuron_config,
        neuron_options=replace(options, additional_config={}, override_neuron_config=override),
    )
    notices = _notices(resolved, neuron_config, examined.target.profile)
    return resolved, [*examined.faults.notes, *notices]


class Examined(NamedTuple):
    """A config with agreed settings (`config`) and what is wrong with it.

    is_exact: every key of the Neuron config has the value that was asked for; others hold their defaults.
    """

    config: VllmConfig
    target: Target
    override: dict[str, Any]
    neuron_config: NeuronConfig
    is_exact: bool
    faults: Faults


def examine(config: VllmConfig, target: str | None = None, faults: Faults | None = None) -> Examined:
    """All that `resolve` finds out, without raising."""
    faults = Faults() if faults is None else faults
    chosen = find_target(target) if target else choose_target(config.neuron_options.device, faults)
    profile = chosen.profile
    override = _without_idle(merged_override(config.neuron_options, faults), profile, faults)
    config = _with_stored_dtype(_with_kv_bound(config, chosen), profile, faults)
    _check_environment(override, faults)
    refuse_options(config, profile, faults)
    _check_remote_code(config.model_config, chosen, faults)
    config = config.replace(lora_config=settle_lora(config, override, _why_no_lora(profile), faults))
    override = without_names(override)
    modes = kv_modes(config, override, profile.block_kv_by_default, faults)
    if not modes.asked and modes.block_kv and _find_faults(config, override, chosen, modes):
        modes = KVModes(prefix_caching=False, chunked_prefill=False)
    settled, neuron_config, is_exact = _settle_and_check(config, override, chosen, modes, faults)
    return Examined(settled, chosen, override, neuron_config, is_exact, faults)


def _settle_and_check(
    config: VllmConfig, override: Mapping[str, Any], target: Target, modes: KVModes, faults: Faults
) -> tuple[VllmConfig, NeuronConfig, bool]:
    settled = _settle(config, override, modes, target.profile, faults)
    if settled.speculative_config is not None and not target.profile.adaptive_speculation:
        settled = settled.replace(speculative_config=replace(settled.speculative_config, adaptive=False))
    of_keys = Faults()
    neuron_config = _build_neuron_config(settled, override, of_keys)
    faults.absorb(of_keys)
    _check_step_tokens(settled, override, faults)
    refuse_offloaded_drafts(settled, faults)
    _check_model(settled, neuron_config, faults)
    refuse_keys(settled, neuron_config, target.profile, faults)
    target.check(settled, neuron_config, faults)
    return settled, neuron_config, not of_keys


def _find_faults(config: VllmConfig, override: Mapping[str, Any], target: Target, modes: KVModes) -> Faults:
    """What would stand against these modes."""
    faults = Faults()
    _settle_and_check(config, override, target, modes, faults)
    return faults


def choose_target(device: str | None, faults: Faults) -> Target:
    """The target of the option, else of VLLM_NEURON_TARGET, else the first that can run here."""
    name, asked = ("device", device) if device else ("VLLM_NEURON_TARGET", envs.VLLM_NEURON_TARGET)
    if asked in ("auto", "neuron"):
        return automatic_target()
    if asked not in TARGETS:
        faults.unreadable(name, asked, "unknown target", nearest(asked, [*TARGETS, "auto"]))
        return automatic_target()
    target = find_target(asked)
    if reason := target.why_absent():
        faults.add(name, asked, reason, f'Use "auto" or "{AUTOMATIC[-1]}"')
    return target


def _without_idle(override: Mapping[str, Any], profile: TargetProfile, faults: Faults) -> dict[str, Any]:
    """The override without keys that change nothing on this target."""
    for name in profile.idle_keys.keys() & override.keys():
        if override[name]:
            faults.note(f"{name}={override[name]!r} has no effect: {profile.idle_keys[name]}")
    return {name: value for name, value in override.items() if name not in profile.idle_keys}


def _check_remote_code(model: ModelConfig, target: Target, faults: Faults) -> None:
    """Code that comes with a checkpoint is never run: noted where it is not needed."""
    support = target.support(model.hf_config)
    if model.hf_config.get("auto_map") and support is not None and not support.value:
        why = "the model is made by code that comes with its checkpoint (auto_map), which is never run"
        faults.add("model", model.model, why, "Use a checkpoint of a known architecture")
    elif model.trust_remote_code:
        faults.note("trust_remote_code=True has no effect: code that comes with a checkpoint is never run")


def _why_no_lora(profile: TargetProfile) -> str:
    if profile.lora:
        return ""
    serving = [name for name in TARGETS if find_target(name).profile.lora]
    return f"LoRA adapters are served on the {', '.join(sorted(serving))} target alone, this is {profile.name}"


_LOGICAL_CORES = ("NEURON_LOGICAL_NC_CONFIG", "NEURON_RT_VIRTUAL_CORE_SIZE")
"""What the compiler and the runtime take a logical core to be: it must be the same."""


def _check_environment(override: Mapping[str, Any], faults: Faults) -> None:
    if envs.NEURON_ON_DEVICE_SAMPLING_DISABLED and override.get("on_device_sampling_config") is not None:
        why = "NEURON_ON_DEVICE_SAMPLING_DISABLED says otherwise"
        faults.add(
            "on_device_sampling_config", override["on_device_sampling_config"], why, "Unset it, or leave the key out"
        )
    logical = {name: int(getattr(envs, name)) for name in _LOGICAL_CORES if getattr(envs, name)}
    if isinstance(given := override.get("logical_nc_config"), int):
        logical["logical_nc_config"] = given
    if len(set(logical.values())) > 1:
        name, value = logical.popitem()
        others = " and ".join(f"{other}={said}" for other, said in logical.items())
        faults.add(name, value, f"{others}, and they must be the same", "Set one of them, or all alike")
    if envs.VLLM_NEURON_FRAMEWORK != "neuronx-distributed-inference":
        why = "only neuronx-distributed-inference is supported"
        faults.add("VLLM_NEURON_FRAMEWORK", envs.VLLM_NEURON_FRAMEWORK, why, "Unset it")


# Settings that a vLLM option and a Neuron key both name.


def _settle(
    config: VllmConfig, override: Mapping[str, Any], modes: KVModes, profile: TargetProfile, faults: Faults
) -> VllmConfig:
    """The config with one value for each such setting, and the KV layout that follows."""
    model, scheduler, parallel, cache = (
        config.model_config,
        config.scheduler_config,
        config.parallel_config,
        config.cache_config,
    )
    # A degree of 1 is what nobody asked for: the Neuron key alone may set it.
    degree = _agreed("tp_degree", override, "tensor_parallel_size", _unless_one(parallel.tensor_parallel_size), faults)
    max_num_seqs = _agreed("batch_size", override, "max_num_seqs", scheduler.max_num_seqs, faults)
    max_model_len = _agreed("seq_len", override, "max_model_len", model.max_model_len, faults)
    if max_model_len is None:
        faults.unreadable("max_model_len", None, "must be known by now", "For example 2048")
        max_model_len = 1
    settled = config.replace(
        model_config=replace(model, max_model_len=max_model_len, dtype=_agreed_dtype(model.dtype, override, faults)),
        scheduler_config=replace(
            scheduler,
            max_num_seqs=max_num_seqs or DEFAULT_MAX_NUM_SEQS,
            enable_chunked_prefill=modes.chunked_prefill,
        ),
        parallel_config=replace(parallel, tensor_parallel_size=degree or 1),
        cache_config=replace(
            cache,
            enable_prefix_caching=modes.prefix_caching,
            kv_cache_dtype=settled_kv_dtype(cache.kv_cache_dtype, override, faults),
        ),
    )
    block_size, num_blocks = even_blocks(
        _agreed("pa_block_size", override, "block_size", cache.block_size, faults),
        _agreed("pa_num_blocks", override, "num_gpu_blocks_override", cache.num_gpu_blocks_override, faults),
        max_model_len,
        profile.blocks.multiple,
        faults,
    )
    token_bytes = _kv_bytes_per_token(settled)
    memory = cache.kv_cache_memory_bytes
    size = block_size or default_block_size(max_model_len, modes.prefix_caching, profile.blocks.default)
    layout = kv_layout(
        max_model_len,
        max_num_seqs or DEFAULT_MAX_NUM_SEQS,
        block_size,
        num_blocks,
        modes.block_kv,
        faults,
        prefix_caching=modes.prefix_caching,
        default_size=profile.blocks.default,
        max_blocks=memory // (size * token_bytes) if memory and token_bytes else None,
    )
    cache = replace(settled.cache_config, block_size=layout.block_size, num_blocks=layout.num_blocks)
    return settled.replace(cache_config=cache, speculative_config=settle_speculation(settled, override, faults))


AGREED_KEYS = frozenset({"tp_degree", "batch_size", "seq_len", "pa_block_size", "pa_num_blocks", "speculation_length"})


def _agreed(key: str, override: Mapping[str, Any], option: str, value: int | None, faults: Faults) -> int | None:
    """The count that `option` and the Neuron `key` say. One may be absent; two that differ are a fault."""
    if value is not None and (not isinstance(value, int) or value < 1):
        faults.unreadable(option, value, "must be a positive integer")
        value = None
    given = override.get(key)
    if given is None:
        return value
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        faults.unreadable(key, given, "must be a positive integer")
    elif value is not None and given != value:
        faults.add(key, given, f"{option} is {value}", f"Leave {key} out, or give {option}={given}", involves=[option])
        faults.mark_unreadable(key)
    elif value is None:
        return given
    return value


def _unless_one(degree: int) -> int | None:
    return None if degree == 1 else degree


def _agreed_dtype(dtype: str, override: Mapping[str, Any], faults: Faults) -> str:
    """`dtype` under its plain name; "auto" stays, unless the Neuron key torch_dtype says something else."""
    dtype = dtype if dtype == "auto" else torch_dtype(dtype)
    given = dtype_name(override.get("torch_dtype"))
    if given is None or given == dtype or given not in TORCH_DTYPES:
        return dtype
    if dtype != "auto":
        faults.unreadable("torch_dtype", given, f"dtype is {dtype}", f"Leave it out, or give dtype={given}")
        return dtype
    return str(given)


# The Neuron config and what the scheduler needs of it.


def _build_neuron_config(config: VllmConfig, override: Mapping[str, Any], faults: Faults) -> NeuronConfig:
    entries = {
        name: value
        for name, value in override.items()
        if name not in AGREED_KEYS and not _is_settled(config, name, value)
    }
    if override.get("torch_dtype") is not None and config.model_config.dtype in DTYPE_BYTES:
        del entries["torch_dtype"]
    return examined_neuron_config(config, entries, faults)


def _is_settled(config: VllmConfig, name: str, value: Any) -> bool:
    """Whether a key was judged before. Values of wrong types are left for the Neuron config to complain of.

    `kv_modes` takes its keys in; `settle_speculation` has complained of its own wherever nothing speculates.
    """
    keys = BLOCK_KV_KEYS if config.speculative_config is not None else (*BLOCK_KV_KEYS, *METHOD_KEYS)
    return name in keys and (value is None or isinstance(value, bool))


def _program_config(neuron_config: NeuronConfig) -> ProgramConfig:
    return ProgramConfig(
        num_rows=neuron_config.batch_size,
        prompt_buckets=tuple(neuron_config.context_buckets),
        decode_buckets=tuple(neuron_config.token_buckets),
        num_candidates=neuron_config.global_topk,
        quantization=neuron_config.quantization,
        eagle_draft_input_norm=neuron_config.enable_eagle_draft_input_norm,
    )


def _with_step_limits(config: VllmConfig, neuron_config: NeuronConfig, profile: TargetProfile) -> VllmConfig:
    """The config with what the compiled programs limit, as plain numbers for the scheduler."""
    scheduler = config.scheduler_config
    longest, rows, prompts = neuron_config.max_context_length, neuron_config.batch_size, neuron_config.ctx_batch_size
    speculation, mixed = config.speculative_config, bool(scheduler.enable_chunked_prefill)
    lookahead = speculation.num_speculative_tokens if speculation else 0
    step_tokens = scheduler.max_num_batched_tokens
    if step_tokens is None:
        most = min(profile.default_step_tokens, longest * rows if profile.ragged_rows else longest)
        prompt_tokens = most if mixed else longest * prompts
        step_tokens = max(prompt_tokens, rows * (1 + lookahead))
    return config.replace(
        scheduler_config=replace(
            scheduler,
            max_num_batched_tokens=step_tokens,
            prefill_batch_size=rows if mixed and prompts == 1 else prompts,
            max_prefill_tokens=0,
            max_prompt_len=longest,
            mixed_steps=mixed,
            num_lookahead_tokens=lookahead,
        )
    )


def _check_step_tokens(config: VllmConfig, override: Mapping[str, Any], faults: Faults) -> None:
    tokens, rows = config.scheduler_config.max_num_batched_tokens, config.scheduler_config.max_num_seqs or 1
    if tokens is None:
        return
    if tokens < 1:
        faults.add("max_num_batched_tokens", tokens, "a step holds at least one token", "Leave it out")
    elif config.scheduler_config.enable_chunked_prefill:
        why = f"a step must hold one token for each of {rows} sequences"
        fix = f"Use {rows} or more, lower max_num_seqs, or leave it out"
        if tokens < rows:
            faults.add("max_num_batched_tokens", tokens, why, fix, involves=["max_num_seqs", "batch_size"])
    else:
        _check_whole_prompts_fit(config, override, tokens, rows, faults)


def _check_whole_prompts_fit(
    config: VllmConfig, override: Mapping[str, Any], tokens: int, rows: int, faults: Faults
) -> None:
    longest = override.get("max_context_length")
    longest = longest if isinstance(longest, int) else config.model_config.max_len
    needed = max(longest, rows)
    if tokens < needed:
        why = f"a step must hold the longest prompt ({longest} tokens) or one token for each of {rows} sequences"
        fix = f"Use {needed} or more, enable_chunked_prefill, or leave it out"
        faults.add("max_num_batched_tokens", tokens, why, fix, involves=["max_model_len", "max_context_length"])


def _check_model(config: VllmConfig, neuron_config: NeuronConfig, faults: Faults) -> None:
    """Checks that need the checkpoint's config.json, or the platform."""
    degree, hf_config = config.parallel_config.tensor_parallel_size, config.model_config.hf_config
    if reason := degree_fault(degree, platform_name()):
        faults.add("tensor_parallel_size", degree, reason, involves=["tp_degree"])
    _check_kv_memory(config, faults)
    vocab_size = hf_config.get("vocab_size")
    if vocab_size and neuron_config.global_topk > vocab_size:
        why = f"larger than the vocabulary of {vocab_size} tokens"
        fix = f"Use at most {vocab_size}, or leave it out"
        faults.add("on_device_sampling_config.global_topk", neuron_config.global_topk, why, fix)
    window, encoding_window = hf_config.get("sliding_window"), neuron_config.windowed_context_encoding_size
    if encoding_window and window and encoding_window != window:
        why = f"differs from the model's sliding_window={window}"
        faults.add("windowed_context_encoding_size", encoding_window, why, f"Use {window}")


def _with_kv_bound(config: VllmConfig, target: Target) -> VllmConfig:
    """The config with the target's own bound of the KV cache, where no option bounds it."""
    if config.cache_config.kv_cache_memory_bytes is not None:
        return config
    return config.replace(cache_config=replace(config.cache_config, kv_cache_memory_bytes=target.default_kv_bytes()))


def _with_stored_dtype(config: VllmConfig, profile: TargetProfile, faults: Faults) -> VllmConfig:
    """The config with dtype "auto" where its own is what the checkpoint is stored in, and not what is computed in."""
    model = config.model_config
    dtype = torch_dtype(model.dtype)
    if dtype in profile.dtypes or dtype != model.hf_config.get("torch_dtype"):
        return config
    faults.note(f"dtype={dtype} is what the checkpoint is stored in; the {profile.name} target computes in bfloat16")
    return config.replace(model_config=replace(model, dtype="auto"))


def _check_kv_memory(config: VllmConfig, faults: Faults) -> None:
    cache, limit = config.cache_config, config.cache_config.kv_cache_memory_bytes
    if not 0 < cache.gpu_memory_utilization <= 1:
        faults.add(
            "gpu_memory_utilization", cache.gpu_memory_utilization, "it is a share", "Use more than 0, at most 1"
        )
    if limit is None or not cache.block_size:
        return
    needed = _kv_bytes_per_token(config) * cache.block_size * cache.num_blocks
    if needed > limit:
        why = f"the KV cache takes {needed} bytes: {cache.num_blocks} blocks of {cache.block_size} tokens"
        fix = "Lower max_num_seqs or max_model_len, or raise it (or VLLM_CPU_KVCACHE_SPACE, where that set it)"
        faults.add("kv_cache_memory_bytes", limit, why, fix)


def _kv_bytes_per_token(config: VllmConfig) -> int:
    """Bytes of one token's KV; 0 where they are not known."""
    model = config.model_config
    return kv_token_bytes(model.hf_config, config.cache_config.kv_cache_dtype, torch_dtype(model.dtype))


def _notices(config: VllmConfig, neuron_config: NeuronConfig, profile: TargetProfile) -> Iterator[str]:
    if reason := unused_hardware(profile.name):
        yield f"the Neuron device of this machine is not used: {reason}"
    yield from neuron_config.notices
    if config.scheduler_config.mixed_steps:
        tokens = config.scheduler_config.max_num_batched_tokens
        yield (
            f"chunked prefill: a step computes at most {tokens} tokens (max_num_batched_tokens), so that no running "
            "stream waits for more than those before its next token"
        )
    heads = HeadSharding.from_hf_config(neuron_config.tp_degree, config.model_config.hf_config)
    if heads and heads.degree > 1:
        split = "" if profile.splits_model else f"; the {profile.name} target splits nothing"
        yield heads.describe() + split
    if profile.quantizes and neuron_config.quantized_checkpoints_path:
        yield f"quantized_checkpoints_path is not read: the {profile.name} target quantises the checkpoint itself"
    if not profile.heeds_accelerator_keys:
        accelerator_only = {item.name for item in keys(NeuronConfig) if item.metadata["accelerator_only"]}
        idle = sorted(accelerator_only & neuron_config.changed().keys())
        if idle:
            yield f"only accelerator programs depend on {', '.join(idle)}: no effect on the {profile.name} target"
