"""Which entries of a model's own config NxD Inference computes with: a table of architecture, entry and version.

The library has model classes of its own. Each reads some entries of config.json and drops the others without a word, so
that a model with such an entry would answer wrongly. A row says which values of an entry are computed as transformers
computes them; every other value is refused, and so is an entry of which the table knows nothing, unless its value says
that it is switched off. Rows hold for all versions that are driven unless they name one. `HARMLESS` are entries that
change no arithmetic.

Found by running the library's modules against transformers (tests/neuronx/test_real_library.py), versions 0.5 to 0.9,
and for what cannot be run so (Llama 4, and 0.4) by reading its source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm.settings.faults import Faults
from vllm.settings.neuron_config import NeuronConfig
from vllm.targets.neuronx.registry import known_architecture
from vllm.targets.neuronx.versions import NEWEST, OLDEST, Version

Config = Mapping[str, Any]


class Model(NamedTuple):
    """What a rule may ask of. config: the model's, in normal form. max_model_len: longest sequence that is served."""

    architecture: str
    config: Config
    neuron: NeuronConfig
    max_model_len: int
    version: Version


class Wrong(NamedTuple):
    """Why a value cannot be served, and what would work. name: the option at fault where it is not the entry itself."""

    why: str
    fix: str
    name: str = ""
    given: Any = None


Rule = Callable[[Any, Model], Wrong | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One entry. text: the values that are computed, for the documents. absent: what a config without it means."""

    rule: Rule
    text: str
    absent: Any = None


def check_entries(config: Config, neuron: NeuronConfig, max_model_len: int, version: Version, faults: Faults) -> None:
    """Add a fault for each entry of `config` (in normal form) that this version would compute otherwise, or not at all.

    An architecture that the library does not have is left to `registry.check_architecture`.
    """
    architecture = known_architecture(config)
    if architecture is None:
        return
    model, rows = Model(architecture, config, neuron, max_model_len, version), ROWS[architecture]
    for name, row in rows.items():
        value = config.get(name)
        value = row.absent if value is None else value
        if value is not None and (wrong := row.rule(value, model)) is not None:
            faults.add(wrong.name or name, wrong.given if wrong.name else value, wrong.why, wrong.fix)
    for name, value in config.items():
        if value and name not in rows and not is_harmless(name):
            why = f"it is not known what NxD Inference {version} makes of it in a {architecture}"
            fix = f'If it changes nothing of what the model computes, say hf_overrides={{"{name}": null}}'
            faults.add(name, value, why, fix)
    _check_fused_qkv(model, faults)


def completed(config: Config) -> dict[str, Any]:
    """`config` with entries that the library demands under names of its own."""
    entries = dict(config)
    if config.get("model_type") == "gpt_oss" and isinstance(scaling := config.get("rope_scaling"), Mapping):
        entries.setdefault("initial_context_length", scaling.get("original_max_position_embeddings"))
    return entries


def _check_fused_qkv(model: Model, faults: Faults) -> None:
    """One weight for q, k and v: not every class can make it of a checkpoint's three."""
    if not model.neuron.fused_qkv:
        return
    since = FUSED_QKV_SINCE.get(model.architecture, OLDEST)
    if since is None or model.version < since:
        why = f"NxD Inference {model.version} cannot load a {model.architecture} with it"
        faults.add("fused_qkv", True, why, f"Leave it out, or install {since}" if since else "Leave it out")
    elif model.architecture == "LlamaForCausalLM" and model.config.get("attention_bias"):
        faults.add("fused_qkv", True, "the library fails to fuse the biases of q, k and v", "Leave it out")


FUSED_QKV_SINCE: dict[str, Version | None] = {
    "Qwen2ForCausalLM": Version(0, 7),
    "Qwen3ForCausalLM": Version(0, 9),
    "MixtralForCausalLM": None,
}
"""First version that takes `fused_qkv`; None: none does. Architectures not listed have it from the first."""


# Rules.


def _any(value: Any, model: Model) -> None:
    return None


READ = Row(_any, "any")


def only(*values: Any, fails: bool = False, on_cpu: bool = False, absent: Any = None) -> Row:
    """Other values are computed as if they were the first of these; or, with `fails`, end while loading."""

    def rule(value: Any, model: Model) -> Wrong | None:
        if value in values:
            return None
        computed = "fails on it" if fails else f"computes as if it were {values[0]}"
        why = f"NxD Inference {model.version} {computed} in a {model.architecture}"
        return Wrong(why, _no_version(on_cpu))

    return Row(rule, " or ".join(str(value) for value in values), absent)


def _no_version(on_cpu: bool = False) -> str:
    fix = f"No version from {OLDEST} to {NEWEST} computes it"
    return f"{fix}; the cpu target does" if on_cpu else fix


def _head_dim(value: Any, model: Model) -> Wrong | None:
    heads, width = model.config.get("num_attention_heads"), model.config.get("hidden_size")
    if not heads or not width or value == width // heads:
        return None
    why = f"NxD Inference {model.version} takes it for hidden_size / num_attention_heads = {width // heads}"
    return Wrong(why, _no_version())


def _output_bias(value: Any, model: Model) -> Wrong | None:
    """Normal form's entry for o_proj, which follows attention_bias unless a model has only this one."""
    if not value or model.config.get("attention_bias"):
        return None
    return Wrong(f"NxD Inference {model.version} computes as if it were False", _no_version())


OUTPUT_BIAS = Row(_output_bias, "False")
PLAIN_HEAD_DIM = Row(_head_dim, "hidden_size / num_attention_heads")


def rotation(*types: str, on_cpu: bool = True) -> Row:
    """rope_scaling: these types are read. Those that depend on the sequence are right while they scale nothing."""

    def rule(scaling: Any, model: Model) -> Wrong | None:
        kind = scaling.get("rope_type") if isinstance(scaling, Mapping) else None
        if kind in types:
            return None
        plain = _unscaled_length(scaling, model)
        if kind == "dynamic" or (kind == "longrope" and types):
            if plain and model.max_model_len <= plain:
                return None
            why = f"{kind} scaling depends on the sequence, and a compiled program has one rotation for all"
            return Wrong(why, f"Use max_model_len={plain} or less: up to there nothing is scaled" if plain else "")
        instead = "has no such rotation" if types else f"rotates a {model.architecture} without any scaling"
        fix = _no_version(on_cpu)
        if plain:
            fix += f'. Up to max_model_len={plain} the model needs none: say hf_overrides={{"rope_scaling": null}}'
        return Wrong(f"NxD Inference {model.version} {instead}", fix)

    named = f"{', '.join(types)}; longrope and dynamic" if types else "none; dynamic"
    return Row(rule, f"{named} where max_model_len does not reach what they scale")


def _unscaled_length(scaling: Any, model: Model) -> int | None:
    """Positions that the model was made for before it was stretched."""
    inner = scaling if isinstance(scaling, Mapping) else {}
    name = "original_max_position_embeddings"
    return model.config.get(name) or inner.get(name) or model.config.get("max_position_embeddings")


def _window(window: Any, model: Model) -> Wrong | None:
    config = model.config
    if "use_sliding_window" in config and not config["use_sliding_window"]:
        return None
    if "layer_types" in config and "sliding_attention" not in config["layer_types"]:
        return None
    if model.max_model_len <= window:
        return None
    why = f"beyond the model's sliding window of {window} tokens, which is not applied"
    return Wrong(why, f"Use at most {window}", "max_model_len", model.max_model_len)


UNAPPLIED_WINDOW = Row(_window, "max_model_len or more, or switched off")


def layers(*kinds: str) -> Row:
    """layer_types: of these kinds alone; which layer is which is judged with the entry that it follows from."""

    def rule(value: Any, model: Model) -> Wrong | None:
        other = sorted({str(kind) for kind in value} - set(kinds))
        why = f"NxD Inference {model.version} has no layers of {', '.join(other)} in a {model.architecture}"
        return Wrong(why, _no_version()) if other else None

    return Row(rule, "of " + " and ".join(kinds))


def _activation(value: Any, model: Model) -> Wrong | None:
    """The MLP's kernel has activations of its own."""
    known = ("silu", "swish") if model.version < Version(0, 9) else ("silu", "swish", "gelu_pytorch_tanh")
    if not model.neuron.mlp_kernel_enabled or value in known:
        return None
    return Wrong(f"the kernel computes silu, and the model has {value}", "Leave it out", "mlp_kernel_enabled", True)


ACTIVATION = Row(_activation, "any; with mlp_kernel_enabled silu, and gelu_pytorch_tanh from 0.9")
EXPERTS_ACTIVATION = only("silu", "gelu", "relu", fails=True)


def unquantized(method: str = "", since: Version = OLDEST) -> Row:
    """quantization_config: the library reads plain weights, those it quantised itself, and this method's."""

    def rule(value: Any, model: Model) -> Wrong | None:
        given = value.get("quant_method") if isinstance(value, Mapping) else None
        if not value or model.neuron.quantized or (method and given == method and model.version >= since):
            return None
        read = f"plain weights, or {method} from {since}" if method else "plain weights"
        why = f"the checkpoint is quantised ({given}), and of a {model.architecture} NxD Inference reads {read}"
        return Wrong(why, "Use the model's unquantised checkpoint, or quantized with quantized_checkpoints_path")

    return Row(rule, f"{method} from {since}, or with quantized" if method else "with quantized")


def section(rows: Mapping[str, Row]) -> Row:
    """A nested section, where null is a value. The first of its entries that cannot be served is named."""

    def rule(value: Any, model: Model) -> Wrong | None:
        for name, row in rows.items() if isinstance(value, Mapping) else ():
            inner = value.get(name, row.absent)
            wrong = row.rule(inner, model) if name in value or inner is not None else None
            if wrong is not None:
                return Wrong(f"{name}={inner!r}: {wrong.why}", wrong.fix)
        return None

    return Row(rule, "; ".join(f"{name}: {row.text}" for name, row in rows.items()))


# What is particular to one model.

LLAMA4_ROTATION = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 8192,
}


def _llama4_rotation(scaling: Any, model: Model) -> Wrong | None:
    if scaling == LLAMA4_ROTATION:
        return None
    why = f"NxD Inference {model.version} rotates every Llama 4 that has it as {LLAMA4_ROTATION}"
    fix = f"{_no_version()}. To serve the model as the library computes it, say so in hf_overrides"
    return Wrong(why, fix)


def _temperature(value: Any, model: Model) -> Wrong | None:
    scale = model.config.get("floor_scale") or 8192
    if not value or model.max_model_len <= scale:
        return None
    why = f"attn_temperature_tuning changes attention from {scale} tokens on, and NxD Inference does not compute it"
    fix = f'Use at most {scale}, or say hf_overrides={{"attn_temperature_tuning": false}} to do without it'
    return Wrong(why, fix, "max_model_len", model.max_model_len)


def _moe_layers(value: Any, model: Model) -> Wrong | None:
    step, count = model.config.get("interleave_moe_layer_step") or 1, model.config.get("num_hidden_layers") or 0
    if list(value) == list(range(step - 1, count, step)):
        return None
    why = f"NxD Inference {model.version} has experts in every layer that interleave_moe_layer_step={step} says"
    return Wrong(why, _no_version())


def _oss_rotation(scaling: Any, model: Model) -> Wrong | None:
    begin = model.config.get("initial_context_length", scaling.get("original_max_position_embeddings"))
    wanted = {"rope_type": "yarn", "truncate": False, "original_max_position_embeddings": begin}
    other = {name: scaling.get(name) for name, value in wanted.items() if scaling.get(name) != value}
    if not other:
        return None
    return Wrong(f"{other}: NxD Inference {model.version} computes {wanted}", _no_version())


def _oss_layers(value: Any, model: Model) -> Wrong | None:
    if list(value) == ["full_attention" if layer % 2 else "sliding_attention" for layer in range(len(value))]:
        return None
    why = f"NxD Inference {model.version} takes every second layer for one of a sliding window, from the first on"
    return Wrong(why, _no_version())


# The table.

_SHAPES = dict.fromkeys(
    (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "rope_theta",
    ),
    READ,
)
_DENSE = {
    **_SHAPES,
    "intermediate_size": READ,
    "head_dim": READ,
    "rms_norm_eps": READ,
    "tie_word_embeddings": READ,
    "hidden_act": ACTIVATION,
    "partial_rotary_factor": only(1.0, fails=True),
    "sliding_window": UNAPPLIED_WINDOW,
    "layer_types": layers("full_attention", "sliding_attention"),
    "quantization_config": unquantized(),
}
_LLAMA_ROTATIONS = rotation("llama3", "linear", "yarn")
_NO_BIASES = {"attention_bias": only(False, on_cpu=True), "attention_output_bias": OUTPUT_BIAS}
_WINDOW_SWITCHES = dict.fromkeys(("use_sliding_window", "max_window_layers"), READ)

ROWS: dict[str, dict[str, Row]] = {
    "LlamaForCausalLM": {
        **_DENSE,
        "rope_scaling": _LLAMA_ROTATIONS,
        "attention_bias": READ,
        "attention_output_bias": READ,
        "mlp_bias": READ,
        **_WINDOW_SWITCHES,
    },
    "MistralForCausalLM": {
        **_DENSE,
        "rope_scaling": _LLAMA_ROTATIONS,
        "attention_bias": only(False, fails=True),
        "attention_output_bias": OUTPUT_BIAS,
    },
    "Qwen2ForCausalLM": {
        **_DENSE,
        "head_dim": PLAIN_HEAD_DIM,
        "rope_scaling": rotation(),
        "attention_bias": READ,
        "attention_output_bias": OUTPUT_BIAS,
        **_WINDOW_SWITCHES,
    },
    "Qwen3ForCausalLM": {**_DENSE, "rope_scaling": rotation(), **_NO_BIASES, **_WINDOW_SWITCHES},
    "Qwen3MoeForCausalLM": {
        **_DENSE,
        "tie_word_embeddings": only(False, fails=True),
        "hidden_act": EXPERTS_ACTIVATION,
        "rope_scaling": rotation(on_cpu=False),
        "attention_bias": only(False),
        "num_experts": READ,
        "num_local_experts": READ,
        "num_experts_per_tok": READ,
        "moe_intermediate_size": READ,
        "norm_topk_prob": only(True, absent=False),
        "decoder_sparse_step": only(1, fails=True),
        "mlp_only_layers": only([], fails=True),
        "mlp_bias": READ,
        "quantization_config": unquantized("fp8", Version(0, 7)),
        **_WINDOW_SWITCHES,
    },
    "MixtralForCausalLM": {
        **_DENSE,
        "head_dim": PLAIN_HEAD_DIM,
        "tie_word_embeddings": only(False, fails=True),
        "hidden_act": EXPERTS_ACTIVATION,
        "rope_scaling": rotation(on_cpu=False),
        "num_local_experts": READ,
        "num_experts_per_tok": READ,
        "attention_bias": READ,
        "mlp_bias": READ,
    },
    "DbrxForCausalLM": {
        **_SHAPES,
        **dict.fromkeys(("d_model", "n_heads", "n_layers", "max_seq_len", "head_dim", "intermediate_size"), READ),
        **dict.fromkeys(("num_local_experts", "num_experts_per_tok"), READ),
        "tie_word_embeddings": only(False, fails=True),
        "partial_rotary_factor": only(1.0),
        "rope_scaling": rotation(on_cpu=False),
        "attn_config": section({"kv_n_heads": READ, "clip_qkv": READ, "rope_theta": READ}),
        "ffn_config": section(
            {
                **dict.fromkeys(("ffn_hidden_size", "moe_num_experts", "moe_top_k"), READ),
                "ffn_act_fn": section({"name": EXPERTS_ACTIVATION}),
                "moe_normalize_expert_weights": only(1),
            }
        ),
        "quantization_config": unquantized(),
    },
    "GptOssForCausalLM": {
        **_SHAPES,
        **dict.fromkeys(("intermediate_size", "head_dim", "rms_norm_eps", "attention_bias", "sliding_window"), READ),
        **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok", "experts_per_token"), READ),
        **dict.fromkeys(("initial_context_length", "rope_scaling_factor", "rope_ntk_alpha", "rope_ntk_beta"), READ),
        "tie_word_embeddings": only(False, fails=True),
        "partial_rotary_factor": only(1.0),
        "hidden_act": only("silu"),
        "swiglu_limit": only(7.0),
        "swiglu_alpha": only(1.702),
        "rope_scaling": Row(_oss_rotation, "yarn from initial_context_length, not truncated"),
        "layer_types": Row(_oss_layers, "sliding_attention and full_attention by turns"),
        "quantization_config": unquantized("mxfp4", Version(0, 7)),
    },
    "Llama4ForConditionalGeneration": {
        **_SHAPES,
        **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "head_dim", "rms_norm_eps", "hidden_act"), READ),
        **dict.fromkeys(("num_local_experts", "num_experts_per_tok", "interleave_moe_layer_step"), READ),
        **dict.fromkeys(("use_qk_norm", "no_rope_layers", "no_rope_layer_interval", "attention_chunk_size"), READ),
        **dict.fromkeys(("text_config", "vision_config", "image_token_index", "attention_bias"), READ),
        **dict.fromkeys(("floor_scale", "attn_scale"), Row(_any, "see attn_temperature_tuning")),
        "attn_temperature_tuning": Row(_temperature, "any, up to max_model_len=floor_scale; false beyond", absent=True),
        "rope_scaling": Row(_llama4_rotation, f"none, or {LLAMA4_ROTATION}"),
        "moe_layers": Row(_moe_layers, "as interleave_moe_layer_step says"),
        "layer_types": layers("chunked_attention", "full_attention"),
        "tie_word_embeddings": only(False, fails=True),
        "partial_rotary_factor": only(1.0),
        "quantization_config": unquantized(),
    },
}

_IDENTITY = """
architectures model_type torch_dtype dtype auto_map name_or_path tokenizer_class is_llama_config license language
transformers.js_config task_specific_params finetuning_task problem_type id2label label2id num_labels
"""
"""What the model is called, and who wrote the file."""
_TOKENS = """
bos_token_id eos_token_id pad_token_id sep_token_id boi_token_index eoi_token_index decoder_start_token_id
"""
"""Tokens: a prompt is padded to the right, and nothing attends to its padding."""
_TRAINING = """
initializer_range attention_dropout hidden_dropout resid_pdrop emb_pdrop embd_pdrop attn_pdrop dropout
classifier_dropout router_aux_loss_coef router_jitter_noise output_router_logits gradient_checkpointing
neftune_noise_alpha pretraining_tp max_sequence_length model_max_length seq_length
"""
"""Training."""
_RUNNING = """
use_cache cache_implementation attn_implementation use_flash_attention use_flash_attn use_flash_attention_2
use_bfloat16 output_attentions output_hidden_states return_dict use_return_dict torchscript pruned_heads
chunk_size_feed_forward is_decoder tf_legacy_loss remove_invalid_values
"""
"""How transformers runs a model, and what it returns."""
_REQUESTS = """
do_sample temperature top_k top_p typical_p min_p max_length min_length max_new_tokens num_beams num_beam_groups
num_return_sequences diversity_penalty length_penalty repetition_penalty no_repeat_ngram_size
encoder_no_repeat_ngram_size early_stopping bad_words_ids suppress_tokens begin_suppress_tokens forced_bos_token_id
forced_eos_token_id exponential_decay_length_penalty return_dict_in_generate
"""
"""Defaults of requests, which older checkpoints keep here."""
HARMLESS = frozenset((_IDENTITY + _TOKENS + _TRAINING + _RUNNING + _REQUESTS).split())
"""Entries that change nothing of what a model computes from tokens to logits."""


def is_harmless(name: str) -> bool:
    """Whether an entry changes no arithmetic in any architecture."""
    return name in HARMLESS or name.startswith(("_", "unsloth")) or name.endswith("_version")
