"""Conversations made to fit chat templates: after it, a template shows every text, in order, and raises nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.fake_engine import FakeEngine
from tests.server.test_client_forms import answered, notices
from tests.tiny import CHAT_TEMPLATE
from vllm.checkpoint.tokenizer import load_tokenizer
from vllm.engine.text.chat_template import render_chat
from vllm.entrypoints.chat_utils import parse_chat_messages
from vllm.entrypoints.template_fit import TemplateTraits, fitted, traits_of

__all__ = ["notices"]

TURNS = (
    "{% for m in messages[start:] %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}{% set start = 0 %}" + TURNS
)
SYSTEM_FIRST = (
    "{% set start = 1 if messages[0].role == 'system' else 0 %}{% if start %}[sys]{{ messages[0].content }}{% endif %}"
    + TURNS
)
LOSES_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
IN_PARTS = "{% for m in messages %}{% for part in m.content %}[{{ m.role }}]{{ part.text }}{% endfor %}{% endfor %}"
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
DEVELOPER = "{# knows developer #}" + CHAT_TEMPLATE
BROKEN = "{{ nothing.there() }}"

TRAITS = {
    CHAT_TEMPLATE: TemplateTraits("anywhere", True, False, False),
    NO_SYSTEM: TemplateTraits("nowhere", False, False, False),
    SYSTEM_FIRST: TemplateTraits("first", False, False, False),
    LOSES_SYSTEM: TemplateTraits("nowhere", True, False, False),
    WITH_TOOLS: TemplateTraits("anywhere", True, False, True),
    DEVELOPER: TemplateTraits("anywhere", True, True, False),
    BROKEN: TemplateTraits("anywhere", True, False, False),
}


@pytest.mark.parametrize(("template", "traits"), TRAITS.items())
def test_traits(template: str, traits: TemplateTraits) -> None:
    assert traits_of(template, "string", {}) == traits


def test_traits_of_a_real_template(smollm2: Path) -> None:
    data = load_tokenizer(smollm2)
    assert isinstance(data.chat_template, str)
    assert traits_of(data.chat_template, "string", data.special_tokens).tools is False
    assert traits_of(IN_PARTS, "openai", {}) == TemplateTraits("anywhere", True, False, False)


@given(st.lists(st.sampled_from("sdua"), min_size=1, max_size=6), st.sampled_from([*TRAITS, IN_PARTS]))
def test_nothing_is_lost(roles: list[str], template: str) -> None:
    if template in (BROKEN, NO_SYSTEM, SYSTEM_FIRST) and next((r for r in roles if r in "ua"), "a") == "a":
        return  # these templates want the user to begin, which no joining can bring about
    names = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    given: list[Any] = [{"role": names[role], "content": f"<{i}>"} for i, role in enumerate(roles)]
    form: Any = "openai" if template is IN_PARTS else "string"
    parsed = parse_chat_messages(given, form)
    before = [dict(message) for message in parsed]
    traits = traits_of(template, form, {})
    if template is BROKEN:
        assert fitted(parsed, traits) == [{**m, "role": "system"} if m["role"] == "developer" else m for m in before]
        return
    text = render_chat(template, fitted(parsed, traits))
    assert parsed == before
    assert all(f"<{i}>" in text for i in range(len(roles)))
    turns = [text.index(f"<{i}>") for i, role in enumerate(roles) if role in "ua"]
    assert turns == sorted(turns)
    prompts = [text.index(f"<{i}>") for i, role in enumerate(roles) if role in "sd"]
    assert prompts == sorted(prompts)


def test_calls_are_not_joined() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    conversation: Any = [{"role": "user", "content": "a"}, call, {"role": "assistant", "content": "b"}]
    assert fitted(conversation, TemplateTraits("first", False, False, False)) == conversation


async def test_the_server_fits_and_says_so(make_client: Any, engine: FakeEngine, notices: Any) -> None:
    engine.tokenizer.chat_template = SYSTEM_FIRST
    http = await make_client("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    assert "tools are not shown to the model" in notices()
    messages = [
        {"role": "user", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    tool = {"type": "function", "function": {"name": "f"}}
    await answered(http, "/v1/chat/completions", messages=messages, tools=[tool])
    conversation, _ = engine.tokenizer.rendered[-1]
    assert conversation == [{"role": "system", "content": "b"}, {"role": "user", "content": "a\n\nc"}]
    assert "/v1/chat/completions: `messages` are joined" in notices()
    assert "/v1/chat/completions: `tools` are not shown" in notices()
