"""What users may write of speculation: every spelling means the same, every contradiction is one clear error."""

from __future__ import annotations

from typing import Any

import pytest

from tests.neuron.configs import QWEN25_7B, TINYLLAMA, build
from vllm.config import SpeculativeConfig
from vllm.settings.faults import NeuronConfigError
from vllm.settings.resolve import resolve

EAGLE = {**TINYLLAMA, "architectures": ["LlamaForCausalLMEagle"], "num_hidden_layers": 1}
EAGLE3 = {**TINYLLAMA, "architectures": ["Eagle3LlamaForCausalLM"], "num_hidden_layers": 1}


def settled(**options: Any) -> SpeculativeConfig:
    speculation = resolve(build(device="cpu", draft_path="/m/draft", **options)).speculative_config
    assert speculation is not None
    return speculation


def drafted(**entries: Any) -> dict[str, Any]:
    return {"speculative_config": {"model": "draft", **entries}}


def keys(**entries: Any) -> dict[str, Any]:
    return {"override_neuron_config": entries}


DRAFT_SPELLINGS = [
    drafted(num_speculative_tokens=4),
    drafted(num_speculative_tokens=4, method="draft_model"),
    {"spec_model": "draft", "spec_tokens": 4, "spec_method": "draft_model"},
    {"speculative_model": "draft", "num_speculative_tokens": 4},
    {**drafted(), "spec_tokens": 4, "num_speculative_tokens": 4},
    {**drafted(), **keys(speculation_length=5)},
    {**drafted(num_speculative_tokens=4), **keys(speculation_length=5, enable_fused_speculation=True)},
    {**drafted(num_speculative_tokens=4), **keys(enable_eagle_speculation=False, is_eagle3=False)},
    drafted(num_speculative_tokens=4, draft_tensor_parallel_size=1),
]


@pytest.mark.parametrize("options", DRAFT_SPELLINGS)
def test_spellings_of_a_draft_model(options: dict[str, Any]) -> None:
    assert settled(draft_hf_config=TINYLLAMA, **options) == settled(
        draft_hf_config=TINYLLAMA, **drafted(num_speculative_tokens=4)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4}},
        {"speculative_config": {"method": "[ngram]", "num_speculative_tokens": 4}},
        {"speculative_config": {"model": "[ngram]", "num_speculative_tokens": 4}},
        {"speculative_model": "ngram", "num_speculative_tokens": 4},
        {"spec_method": "ngram", "spec_tokens": 4},
        {"speculative_config": {"prompt_lookup_max": 4, "num_speculative_tokens": 4}},
        {"speculative_config": {"method": "ngram"}, **keys(speculation_length=5, enable_fused_speculation=False)},
    ],
)
def test_spellings_of_ngram(options: dict[str, Any]) -> None:
    speculation = settled(**options)
    assert (speculation.method, speculation.model, speculation.num_speculative_tokens) == ("ngram", "", 4)
    assert (speculation.prompt_lookup_min, speculation.prompt_lookup_max) == (2, 4)


@pytest.mark.parametrize(("draft", "method"), [(TINYLLAMA, "draft_model"), (EAGLE, "eagle"), (EAGLE3, "eagle3")])
def test_a_drafts_architecture_says_the_method(draft: dict[str, Any], method: str) -> None:
    assert settled(draft_hf_config=draft, **drafted()).method == method


def test_a_named_method_goes_before_the_architecture() -> None:
    assert settled(draft_hf_config=TINYLLAMA, **drafted(method="eagle")).method == "eagle"


def test_drafting_ends_where_the_shortest_limit_does() -> None:
    own = {**TINYLLAMA, "max_position_embeddings": 600}
    assert settled(draft_hf_config=TINYLLAMA, **drafted()).max_model_len == 1024
    assert settled(draft_hf_config=own, **drafted()).max_model_len == 600
    assert settled(draft_hf_config=own, **drafted(max_model_len=500)).max_model_len == 500
    assert settled(draft_hf_config=own, speculative_max_model_len=400, **drafted()).max_model_len == 400


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({**drafted(num_speculative_tokens=4), "spec_tokens": 5}, "spec_tokens", "says 4. Give it once"),
    ({**drafted(), "speculative_model": "other"}, "speculative_model", "speculative_config says 'draft'. Give it once"),
    ({"spec_model": "draft", "speculative_model": "other"}, "speculative_model", "spec_model says 'draft'"),
    (
        {"spec_tokens": 3, "num_speculative_tokens": 4, "spec_method": "ngram"},
        "num_speculative_tokens",
        "spec_tokens says 3",
    ),
    ({**drafted(max_model_len=9), "speculative_max_model_len": 8}, "speculative_max_model_len", "says 9"),
    ({**drafted(), "spec_method": "ngram"}, "speculative_config.model", "ngram looks drafts up in the text"),
    (drafted(method="ngram"), "speculative_config.model", 'Leave it out, or use method "draft_model"'),
    ({"spec_method": "eagle"}, "speculative_config.model", "method 'eagle' needs a draft's checkpoint"),
    ({"spec_tokens": 4}, "speculative_config.model", "needs a draft's checkpoint"),
    (drafted(prompt_lookup_max=4), "speculative_config.prompt_lookup_max", "it belongs to ngram"),
    (drafted(prompt_lookup_min=2), "speculative_config.prompt_lookup_min", "it belongs to ngram"),
    (
        {"speculative_config": {"method": "ngram", "prompt_lookup_min": 5, "prompt_lookup_max": 3}},
        "speculative_config.prompt_lookup_min",
        "more than prompt_lookup_max=3. Use at most 3",
    ),
    (drafted(num_speculative_tokens=0), "speculative_config.num_speculative_tokens", "1"),
    (drafted(num_speculative_tokens=33), "speculative_config.num_speculative_tokens", "32"),
    (drafted(num_speculative_tokens="4"), "speculative_config.num_speculative_tokens", "int"),
    ({**drafted(), **keys(speculation_length=1)}, "speculation_length", "nothing would be drafted. Use 2 or more"),
    (
        {**drafted(num_speculative_tokens=4), **keys(speculation_length=4)},
        "speculation_length",
        "num_speculative_tokens=4 drafts and the target's own token make 5. Use 5, or leave it out",
    ),
    ({**drafted(), **keys(speculation_length="4")}, "speculation_length", "must be a count of tokens"),
    (keys(speculation_length=4), "speculation_length", "nothing says what drafts"),
    (keys(enable_fused_speculation=True), "enable_fused_speculation", "nothing says what drafts"),
    (keys(enable_eagle_speculation=True), "enable_eagle_speculation", "nothing says what drafts"),
    (keys(is_eagle3=True), "is_eagle3", "nothing says what drafts"),
    ({**drafted(), **keys(enable_fused_speculation=False)}, "enable_fused_speculation", "method is 'draft_model'"),
    (
        {"spec_method": "ngram", **keys(enable_fused_speculation=True)},
        "enable_fused_speculation",
        "another method than 'ngram'",
    ),
    ({**drafted(), **keys(enable_eagle_speculation=True)}, "enable_eagle_speculation", "method is 'draft_model'"),
    ({**drafted(method="eagle"), **keys(is_eagle3=True)}, "is_eagle3", "method is 'eagle'"),
    ({**drafted(method="eagle3"), **keys(is_eagle3=False)}, "is_eagle3", "method is 'eagle3'"),
    ({**drafted(), "draft_hf_config": QWEN25_7B}, "speculative_config.model", "it has 152064 tokens, its target 32000"),
    ({**drafted(draft_tensor_parallel_size=4), "tensor_parallel_size": 2}, "draft_tensor_parallel_size", "on 2 cores"),
    ({**drafted(num_speculative_tokens=7), "max_model_len": 8}, "num_speculative_tokens", "max_model_len=8"),
    (drafted(quantization="fp8"), "speculative_config.quantization", "Leave it out"),
    (drafted(speculative_token_tree="[(0,)]"), "speculative_config.speculative_token_tree", "a chain, not a tree"),
    (drafted(num_speculative_token=4), "speculative_config.num_speculative_token", "num_speculative_tokens"),
    ({"spec_method": "suffix"}, "speculative_config.method", 'Use "ngram"'),
    ({"spec_method": "medusa"}, "speculative_config.method", 'Use "eagle3"'),
    ({"spec_method": "guess"}, "speculative_config.method", "draft_model"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "name", "reason"), FAULTS)
def test_every_contradiction_is_one_clear_error(options: dict[str, Any], name: str, reason: str) -> None:
    with pytest.raises(NeuronConfigError) as caught:
        settled(**options)
    (fault,) = caught.value.faults
    assert fault.name.endswith(name)
    assert reason in str(fault)
