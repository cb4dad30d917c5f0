"""Messages as templates want them, and which form a template wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm.engine.text.tokenizer import Tokenizer
from vllm.entrypoints.chat_utils import detect_content_format, parse_chat_messages
from vllm.entrypoints.openai.protocol import TokenizeChatRequest
from vllm.entrypoints.openai.renderer import PromptRenderer
from vllm.exceptions import VLLMValidationError


def test_text_and_parts() -> None:
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, "two", {"type": "input_text", "text": "three"}]},
        {"role": "odd-role", "content": "", "name": "me", "extra": 1},
    ]
    parsed = parse_chat_messages(messages)
    assert [message["content"] for message in parsed] == ["be brief", "one\ntwo\nthree", ""]
    assert parsed[2] == {"role": "odd-role", "content": "", "name": "me", "extra": 1}
    parts = parse_chat_messages(messages, "openai")
    assert parts[0]["content"] == [{"type": "text", "text": "be brief"}]
    assert [part["text"] for part in parts[1]["content"]] == ["one", "two", "three"]


def test_tool_calls() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, 2]}'}}
    empty = {"function": {"name": "g", "arguments": ""}}
    messages: list[Any] = [{"role": "assistant", "content": None, "tool_calls": [call, empty]}]
    (parsed,) = parse_chat_messages(messages)
    assert parsed["content"] == ""
    assert [entry["function"]["arguments"] for entry in parsed["tool_calls"]] == [{"x": [1, 2]}, {}]
    assert call["function"]["arguments"] == '{"x": [1, 2]}', "the request itself is left as it was"


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (1, "messages[1]"),
        ({"content": "a"}, "messages[1].role"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "user", "content": {}}, "messages[1].content"),
        ({"role": "user", "content": ["a", 5]}, "messages[1].content[1]"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "video_url"}]}, "messages[1].content[0].type"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].function"),
    ],
)
def test_faults_name_their_place(message: Any, place: str) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        parse_chat_messages([{"role": "user", "content": "fine"}, message])
    assert caught.value.parameter == place and place in str(caught.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for message in messages %}{{ message['content'] }}{% endfor %}", "string"),
        ("{% for message in messages %}{{ message.content | trim }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% for m in messages %}{% for part in m['content'] | list %}{{ part.text }}{% endfor %}{% endfor %}",
            "openai",
        ),
        ("{% set content = m.content %}{% for part in content %}{{ part }}{% endfor %}", "openai"),
        ("{% for", "string"),
        ("", "string"),
    ],
)
def test_content_format(template: str, expected: str) -> None:
    assert detect_content_format(template) == expected


async def test_the_template_for_tools(tiny_llama: Path) -> None:  # M2
    """Each template in the form of content that it takes."""
    tokenizer = Tokenizer.load(str(tiny_llama))
    walks = "{% for part in messages[0].content %}T{{ part.text }}{% endfor %}"
    tokenizer.chat_template = {"tool_use": walks, "default": "D{{ messages[0].content }}"}
    renderer = PromptRenderer(tokenizer, max_model_len=64, vocab_size=320)
    messages, tool = [{"role": "user", "content": "hi"}], {"type": "function", "function": {"name": "f"}}
    for tools, prompt in ((None, "Dhi"), ([tool], "Thi")):
        request = TokenizeChatRequest(messages=messages, tools=tools)
        assert (await renderer.render_chat(request)).text == prompt
    renderer.close()
