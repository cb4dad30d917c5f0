"""LiteLLM, by its providers `hosted_vllm`, `openai` and `anthropic`."""

from typing import Any

import litellm
from asked import KEY, MODEL, SAY, TOOL, URL, run, tools_by

PROVIDERS: dict[str, Any] = {
    "vllm": {"model": f"hosted_vllm/{MODEL}", "api_base": f"{URL}/v1"},
    "openai": {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1"},
    "anthropic": {"model": f"anthropic/{MODEL}", "api_base": URL},
}
offered: Any = [{"type": "function", "function": TOOL}]


def _ask(provider: str, messages: Any, **fields: Any) -> Any:
    return litellm.completion(**PROVIDERS[provider], messages=messages, api_key=KEY, max_tokens=512, **fields)


def _answer(provider: str) -> str:
    return _ask(provider, [{"role": "user", "content": SAY}]).choices[0].message.content


def _stream(provider: str) -> list[str]:
    chunks = _ask(provider, [{"role": "user", "content": SAY}], stream=True)
    return [chunk.choices[0].delta.content or "" for chunk in chunks]


def _tools(provider: str) -> Any:
    return tools_by(lambda history: _ask(provider, history, tools=offered).choices[0].message)


def _streamed_tools(provider: str) -> Any:
    def ask(history: list[Any]) -> Any:
        return (
            litellm.stream_chunk_builder(list(_ask(provider, history, tools=offered, stream=True))).choices[0].message
        )

    return tools_by(ask)


def responses() -> str:
    given = litellm.responses(**PROVIDERS["openai"], input=SAY, api_key=KEY)
    return "".join(part.text for item in given.output if item.type == "message" for part in item.content)


run(
    "litellm",
    answer=lambda: _answer("vllm"),
    stream=lambda: _stream("vllm"),
    tools=lambda: _tools("vllm"),
    tools_streamed=lambda: _streamed_tools("vllm"),
    answer_of_openai=lambda: _answer("openai"),
    answer_of_responses=responses,
    answer_of_anthropic=lambda: _answer("anthropic"),
    stream_of_anthropic=lambda: _stream("anthropic"),
    tools_of_anthropic=lambda: _tools("anthropic"),
    tools_streamed_of_anthropic=lambda: _streamed_tools("anthropic"),
)
