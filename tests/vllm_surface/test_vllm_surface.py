"""Each difference from vLLM's own package stands in `docs/migration.md` with a reason, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.process import serve
from tests.vllm_surface import compare, facts, reasons, wire
from tests.vllm_surface.compare import Difference
from vllm.entrypoints.fields import Fields, check_fields
from vllm.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from vllm.entrypoints.openai.protocol.base import OpenAIBaseModel
from vllm.entrypoints.openai.protocol.messages import MessagesRequest


@pytest.fixture(scope="module")
def differences(tiny_llama: Path) -> Iterator[list[Difference]]:
    theirs = compare.kept()
    with serve(tiny_llama, *wire.SERVER_OPTIONS) as server:
        answers = compare.wire_of(server.url)
    yield compare.static_differences(theirs, facts.facts()) + compare.wire_differences(theirs["wire"], answers)


def test_each_difference_has_a_reason(differences: list[Difference]) -> None:
    known = reasons.rows()
    assert not [str(each) for each in differences if reasons.reason(each.what, known) is None]


def test_each_row_says_something_of_today(differences: list[Difference]) -> None:
    names = [each.what for each in differences]
    patterns = [pattern for row in reasons.rows() for pattern in row.patterns]
    assert not [pattern for pattern in patterns if not any(reasons.fits(name, pattern) for name in names)]


def test_options_of_vllm_are_all_known() -> None:
    """By name at least: a pasted command meets a reason, never "unknown option"."""
    theirs, ours = compare.kept(), facts.facts()
    engine = theirs["classes"]["EngineArgs"].keys() - ours["classes"]["EngineArgs"].keys()
    ours_names = {name for option in ours["options"]["serve"].values() for name in option["names"]}
    missing = {name for option in theirs["options"]["serve"].values() for name in option["names"]} - ours_names
    assert not missing
    assert engine == {"reasoning_parser", "reasoning_parser_plugin", "shutdown_timeout"}, "options of the server alone"


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("ChatCompletionRequest", ChatCompletionRequest),
        ("CompletionRequest", CompletionRequest),
        ("ResponsesRequest", ResponsesRequest),
        ("AnthropicMessagesRequest", MessagesRequest),
    ],
)
def test_no_field_of_vllm_is_taken_for_a_slip(name: str, cls: type[OpenAIBaseModel]) -> None:
    """What we do not know of its fields has no effect there either on these routes."""
    known = cls.model_fields.keys() | cls.unsupported.keys() | cls.hints.keys() | cls.aliases.keys()
    unknown = compare.kept()["bodies"][name].keys() - known
    assert unknown <= {"mm_payload", "return_mm_kwargs", "return_token_offsets", "routed_experts_prompt_start"}
    check_fields(dict.fromkeys(unknown, 1), Fields(known), cls.route)
