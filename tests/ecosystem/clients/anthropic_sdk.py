"""Anthropic's SDK: messages, and its own loop over tools."""

from typing import Any

import anthropic
from asked import KEY, MODEL, SAY, THINK, TOOL, TURNS, URL, get_weather, run, tools

client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
asked: Any = {"model": MODEL, "max_tokens": 512, "messages": [{"role": "user", "content": SAY}]}
offered: Any = [{"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}]


def answer() -> str:
    return client.messages.create(**asked).content[0].text


def stream() -> list[str]:
    with client.messages.stream(**asked) as events:
        return list(events.text_stream)


def _with_tools(*, streamed: bool) -> Any:
    history: list[Any] = []
    texts = []
    for turn in TURNS:
        history.append({"role": "user", "content": turn})
        while True:
            fields: Any = {"model": MODEL, "max_tokens": 512, "messages": history, "tools": offered}
            if streamed:
                with client.messages.stream(**fields) as events:
                    message = events.get_final_message()
            else:
                message = client.messages.create(**fields)
            history.append({"role": "assistant", "content": [block.model_dump() for block in message.content]})
            uses = [block for block in message.content if block.type == "tool_use"]
            if not uses:
                break
            results = [
                {"type": "tool_result", "tool_use_id": use.id, "content": get_weather(**use.input)} for use in uses
            ]
            history.append({"role": "user", "content": results})
        texts.append("".join(block.text for block in message.content if block.type == "text"))
    return tools(*texts)


def runner() -> Any:
    """The SDK's loop over a decorated function."""
    texts = []
    for turn in TURNS:
        loop = client.beta.messages.tool_runner(
            model=MODEL,
            max_tokens=512,
            tools=[anthropic.beta_tool(get_weather)],
            messages=[{"role": "user", "content": turn}],
        )
        texts.append("".join(block.text for block in loop.until_done().content if block.type == "text"))
    return tools(*texts)


def thinking() -> str:
    fields = {**asked, "messages": [{"role": "user", "content": THINK}], "thinking": {"type": "adaptive"}}
    return "".join(block.thinking for block in client.messages.create(**fields).content if block.type == "thinking")


def count() -> bool:
    return client.messages.count_tokens(model=MODEL, messages=asked["messages"]).input_tokens > 0


run(
    "anthropic",
    answer=answer,
    stream=stream,
    tools=lambda: _with_tools(streamed=False),
    tools_streamed=lambda: _with_tools(streamed=True),
    tools_by_runner=runner,
    thinking=thinking,
    count=count,
)
