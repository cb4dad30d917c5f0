"""The documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from vllm.entrypoints.openai.protocol.base import ErrorResponse
from vllm.entrypoints.openai.reference_docs import page

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_is_up_to_date() -> None:
    hint = "run: python -m vllm.entrypoints.openai.reference_docs docs/server_reference.md"
    assert (DOCS / "server_reference.md").read_text(encoding="utf-8") == page(), hint


def test_options_named_in_the_guide_exist() -> None:
    guide = (DOCS / "server.md").read_text(encoding="utf-8")
    reference = page()
    terminal = {"--stats", "--max-tokens", "--config", "--help"}
    named = set(re.findall(r"--[a-z][a-z-]+", guide)) - terminal
    assert len(named) > 10
    assert not [option for option in named if f"`{option}`" not in reference]


def test_form_of_errors_is_as_described() -> None:
    assert set(ErrorResponse.model_json_schema()["$defs"]["ErrorInfo"]["properties"]) == {
        "message",
        "type",
        "param",
        "code",
    }
