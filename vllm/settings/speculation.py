"""Speculative decoding, from all its spellings to one `SpeculativeConfig`.

It can be asked for in vLLM's terms (`speculative_config`, `spec_method`/`spec_model`/`spec_tokens`, the older
`speculative_model`/`num_speculative_tokens`/`speculative_max_model_len`) and in NxD Inference's (`speculation_length`,
`enable_fused_speculation`, `enable_eagle_speculation`, `is_eagle3`). Whatever part of them is given must agree.

`num_speculative_tokens` counts drafts, as in vLLM; `speculation_length` counts the tokens that the target checks, its
own among them, and is one more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.config import SPECULATIVE_METHODS, SpeculativeConfig, SpeculativeOptions, VllmConfig
from vllm.settings.faults import NOTHING, Faults, NeuronConfigError
from vllm.settings.section import Section, key

DEFAULT_NUM_DRAFTS = {"ngram": 8, "draft_model": 5, "eagle": 5, "eagle3": 5}
DEFAULT_LOOKUP = (2, 4)
"""Fewest and most tokens at the end of the text that `ngram` looks for."""
MOST_DRAFTS = 32
METHOD_KEYS = ("enable_fused_speculation", "enable_eagle_speculation", "is_eagle3")
"""Keys of the Neuron config that say how drafts are made."""

_OTHER_SPELLINGS = {
    "spec_method": "method",
    "spec_model": "model",
    "spec_tokens": "num_speculative_tokens",
    "speculative_model": "model",
    "num_speculative_tokens": "num_speculative_tokens",
    "speculative_max_model_len": "max_model_len",
}
_NGRAM_NAMES = ("ngram", "[ngram]")
_FIXED = "the draft is compiled as its target is"
_FOREIGN = {
    "quantization": _FIXED,
    "enforce_eager": "programs are always compiled",
    "code_revision": "code that comes with a checkpoint is never run",
    "disable_by_batch_size": "the number of drafts follows the load by itself",
    "disable_padded_drafter_batch": "batches are not padded",
    "speculative_token_tree": "drafts are a chain, not a tree",
    "parallel_drafting": "drafts are made one after the other",
    "rejection_sample_method": "verification samples as without drafts, which is exact",
    "acceptance_method": "verification samples as without drafts, which is exact",
    "disable_logprobs": "log-probabilities are reported of every token",
}
_FOREIGN_METHODS = {
    "suffix": (
        "it drafts from a tree of all earlier answers, so that the pace of one user's stream tells what others were "
        "answered; what a text repeats of itself is looked up by ngram",
        'Use "ngram"',
    ),
    "medusa": ("heads of Medusa are not run", 'Use "eagle3" or "eagle"'),
    "mlp_speculator": ("MLP speculators are not run", 'Use "eagle3" or "eagle"'),
    "mtp": ("layers that predict several tokens are not run", 'Use "draft_model"'),
}
"""vLLM's methods that there are not: why, and what to use."""


@dataclass(frozen=True, kw_only=True)
class SpeculativeSection(Section):
    """`speculative_config` as users write it."""

    method: str | None = key(
        None, "How drafts are made. Default: by what `model` is.", choices=(*SPECULATIVE_METHODS, *_NGRAM_NAMES[1:])
    )
    model: str | None = key(None, "The draft's checkpoint: a directory, a GGUF file, or a Hugging Face hub id.")
    num_speculative_tokens: int | None = key(None, "Most drafts of a row and step.", at_least=1, at_most=MOST_DRAFTS)
    prompt_lookup_max: int | None = key(None, "ngram: longest end of the text that is looked up.", at_least=1)
    prompt_lookup_min: int | None = key(None, "ngram: shortest end of the text that is looked up.", at_least=1)
    max_model_len: int | None = key(None, "Length beyond which nothing is drafted.", at_least=2)
    draft_tensor_parallel_size: int | None = key(None, "1, or as the target's.", at_least=1)
    revision: str | None = key(None, "Branch, tag or commit of a hub checkpoint.")
    adaptive: bool = key(True, "Fewer drafts where they fail or cost too much; false: always as many as may be.")

    @classmethod
    def _what(cls) -> str:
        return "speculative_config"

    @classmethod
    def _advice(cls, name: str) -> tuple[str, str] | None:
        return (_FOREIGN[name], "Leave it out") if name in _FOREIGN else None


def merged_options(options: SpeculativeOptions, faults: Faults) -> SpeculativeSection | None:
    """The section from all of vLLM's spellings, which may repeat but not contradict one another; None: none used."""
    values: dict[str, Any] = dict(options.speculative_config or {})
    sources = dict.fromkeys(values, "speculative_config")
    for option, name in _OTHER_SPELLINGS.items():
        value = getattr(options, option)
        if value is None:
            continue
        if name in values and values[name] != value:
            why = f"{sources[name]} says {values[name]!r}"
            faults.unreadable(option, value, why, "Give it once")
        values[name] = value
        sources.setdefault(name, option)
    if not values:
        return None
    method = values.get("method")
    if isinstance(method, str) and method in _FOREIGN_METHODS:
        faults.unreadable("speculative_config.method", method, *_FOREIGN_METHODS[method])
        return None
    try:
        return SpeculativeSection.from_dict(values)
    except NeuronConfigError as error:
        faults.extend(error.faults, prefix="speculative_config.")
        return None


def settle_speculation(config: VllmConfig, override: Mapping[str, Any], faults: Faults) -> SpeculativeConfig | None:
    """What will speculate. max_model_len of `config` must be known. None without speculation, or with a fault."""
    num_faults = len(faults.found)
    section = merged_options(config.speculative_options, faults)
    if len(faults.found) > num_faults:
        _num_drafts(SpeculativeSection(), "draft_model", override, faults)
        return None
    if section is None:
        _refuse_keys_alone(override, faults)
        return None
    method = method_of(section, config.speculative_options.draft_hf_config)
    _check_method(section, method, override, faults)
    _check_draft(config, method, faults)
    count = _num_drafts(section, method, override, faults)
    low, high = _lookup(section, method, faults)
    degree = config.parallel_config.tensor_parallel_size
    if section.draft_tensor_parallel_size not in (None, 1, degree):
        why, fix = f"{_FIXED}, on {degree} cores", f"Use {degree}, or leave it out"
        faults.add("speculative_config.draft_tensor_parallel_size", section.draft_tensor_parallel_size, why, fix)
    longest = config.model_config.max_len
    if count + 1 >= longest:
        why, fix = f"longer than a sequence, max_model_len={longest}", "Use 3 to 7"
        faults.add("speculative_config.num_speculative_tokens", count, why, fix)
    if len(faults.found) > num_faults:
        return None
    options = config.speculative_options
    return SpeculativeConfig(
        method=method,
        num_speculative_tokens=count,
        model=section.model or "" if method != "ngram" else "",
        model_path=options.draft_path,
        hf_config=options.draft_hf_config,
        load_format="dummy" if config.model_config.load_format == "dummy" else "auto",
        max_model_len=min(longest, section.max_model_len or longest, _own_length(options.draft_hf_config) or longest),
        draft_tensor_parallel_size=section.draft_tensor_parallel_size or degree,
        prompt_lookup_min=low,
        prompt_lookup_max=high,
        adaptive=section.adaptive,
    )


def method_of(section: SpeculativeSection, hf_config: Mapping[str, Any]) -> str:
    """The method that was named, or the one that the draft's architecture says."""
    named = section.method or (section.model if section.model in _NGRAM_NAMES else None)
    if named is not None:
        return named.strip("[]")
    if section.model is None and (section.prompt_lookup_max or section.prompt_lookup_min):
        return "ngram"
    architecture = str((hf_config.get("architectures") or [""])[0]).lower()
    if "eagle" in architecture:
        return "eagle3" if "eagle3" in architecture else "eagle"
    return "draft_model"


def draft_source(options: SpeculativeOptions) -> tuple[str, str | None] | None:
    """The draft's checkpoint and its revision, if a checkpoint drafts; faults are `settle_speculation`'s to report."""
    section = merged_options(options, Faults())
    if section is None or section.model is None or method_of(section, {}) == "ngram":
        return None
    return section.model, section.revision


def neuron_keys(speculation: SpeculativeConfig | None) -> dict[str, Any]:
    """The keys of the Neuron config that follow."""
    if speculation is None:
        return {}
    is_eagle = speculation.method in ("eagle", "eagle3")
    return {
        "speculation_length": speculation.num_speculative_tokens + 1,
        "enable_fused_speculation": speculation.uses_model,
        "enable_eagle_speculation": is_eagle,
        "is_eagle3": speculation.method == "eagle3",
    }


def _own_length(hf_config: Mapping[str, Any]) -> int | None:
    length = hf_config.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def _refuse_keys_alone(override: Mapping[str, Any], faults: Faults) -> None:
    for name in (*METHOD_KEYS, "speculation_length"):
        if override.get(name):
            fix = 'Give speculative_config={"model": ..., "num_speculative_tokens": ...}'
            faults.add(name, override[name], "nothing says what drafts", fix)


def _check_method(section: SpeculativeSection, method: str, override: Mapping[str, Any], faults: Faults) -> None:
    if method == "ngram":
        if section.model not in (None, *_NGRAM_NAMES):
            why = "ngram looks drafts up in the text and needs no model"
            faults.add("speculative_config.model", section.model, why, 'Leave it out, or use method "draft_model"')
    elif section.model is None:
        why = f"method {method!r} needs a draft's checkpoint"
        faults.add("speculative_config.model", NOTHING, why, 'Give "model", or use method "ngram"')
    else:
        for name in ("prompt_lookup_max", "prompt_lookup_min"):
            if getattr(section, name) is not None:
                faults.add(f"speculative_config.{name}", getattr(section, name), "it belongs to ngram", "Leave it out")
    expected = (method != "ngram", method in ("eagle", "eagle3"), method == "eagle3")
    for name, value in zip(METHOD_KEYS, expected, strict=True):
        if override.get(name) not in (None, value):
            fix = f"Leave it out, or choose another method than {method!r}"
            faults.unreadable(name, override[name], f"speculative_config's method is {method!r}", fix)


def _check_draft(config: VllmConfig, method: str, faults: Faults) -> None:
    """The draft must speak of the target's tokens."""
    target, draft = config.model_config.hf_config, config.speculative_options.draft_hf_config
    if method == "ngram" or not draft or not target:
        return
    if draft.get("vocab_size") != target.get("vocab_size"):
        why = f"it has {draft.get('vocab_size')} tokens, its target {target.get('vocab_size')}"
        fix = "A draft must have its target's vocabulary; choose one of the same family"
        faults.add("speculative_config.model", config.speculative_options.draft_path or NOTHING, why, fix)


def _num_drafts(section: SpeculativeSection, method: str, override: Mapping[str, Any], faults: Faults) -> int:
    length, count = override.get("speculation_length"), section.num_speculative_tokens
    if length is None:
        return count or DEFAULT_NUM_DRAFTS[method]
    if not isinstance(length, int) or isinstance(length, bool):
        faults.unreadable("speculation_length", length, "must be a count of tokens", "Use 2 or more")
        return count or DEFAULT_NUM_DRAFTS[method]
    if length < 2:
        why = "it counts the target's own token, so nothing would be drafted"
        faults.unreadable("speculation_length", length, why, "Use 2 or more")
    elif count is not None and length != count + 1:
        why = f"num_speculative_tokens={count} drafts and the target's own token make {count + 1}"
        faults.unreadable("speculation_length", length, why, f"Use {count + 1}, or leave it out")
    return count or max(length - 1, 1)


def _lookup(section: SpeculativeSection, method: str, faults: Faults) -> tuple[int, int]:
    if method != "ngram":
        return 0, 0
    low, high = section.prompt_lookup_min, section.prompt_lookup_max
    low = low or min(DEFAULT_LOOKUP[0], high or DEFAULT_LOOKUP[0])
    high = high or max(DEFAULT_LOOKUP[1], low)
    if low > high:
        why, fix = f"more than prompt_lookup_max={high}", f"Use at most {high}"
        faults.add("speculative_config.prompt_lookup_min", low, why, fix)
    return low, high
